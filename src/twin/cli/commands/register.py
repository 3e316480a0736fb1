"""``twin register``: GGUF → Ollama."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twin.cli import options
from twin.cli.console import Output, env_hint, env_lines

if TYPE_CHECKING:
    from twin.settings import Settings

NAME = "register"
HELP = """Register a twin in Ollama and prove on the live server that its prompts are those of training.

NAME is also the run: adapters/NAME, or the newest run when there is none (it says which). A missing GGUF is made first.

Examples:

  twin register chirag-v1

  twin register chirag-v1 --adapter adapters/smollm2-135m --force

  twin register chirag-v1 --env ~/chirag-clone/.env

  twin register chirag-v1 --to llama-server

--env makes the app use the twin: its .env is checked first and set last, with a copy of the old one beside it. The
address written is the one used here (see --host); an app in a container may need another.

--to llama-server checks the GGUF in llama.cpp's own server, the one at --host or one that it starts for it, and says
how to run it. --to lmstudio says what LM Studio needs, which was not tried.
"""


TARGETS = ("ollama", "llama-server", "lmstudio")


def _hand_over(
    name: str, to: str, settings: Settings, out: Output, adapter: Path | None, gguf: Path | None, host: str | None,
    dry_run: bool, for_ollama: bool,
) -> None:  # fmt: skip
    from twin import handover
    from twin.errors import UsageError, nearest

    if to not in TARGETS:
        raise UsageError(f"'{to}' serves no GGUF that twin knows of.", nearest(to, TARGETS))
    if for_ollama:
        raise UsageError(f"--env and --force belong to Ollama, not to {to}.", f"Type: twin register {name} --to {to}")
    done = handover.hand_over(name, to, settings, out.reporter(), adapter, gguf, host, dry_run)
    lines = [f"{done.gguf} for {to}", *(f"  {check}: {what}" for check, what in done.checks.items()), *done.todo]
    out.result(done.as_json(), [*lines, "Nothing was written (--dry-run)."] if dry_run else lines)


def command(
    name: Annotated[str, typer.Argument(help="The model's name in Ollama.")],
    adapter: Annotated[Path | None, typer.Option(help="The run's folder, where not adapters/NAME.")] = None,
    gguf: Annotated[Path | None, typer.Option(help="The GGUF, where not the run's own.")] = None,
    host: options.Host = None,
    to: Annotated[str, typer.Option(help="Who serves it: ollama, llama-server or lmstudio.")] = TARGETS[0],
    base: options.Base = None,
    num_ctx: Annotated[int | None, typer.Option(help="Context length in tokens. Default: the preset's")] = None,
    env: options.Env = None,
    force: options.Force = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    dry_run: options.DryRun = False,
) -> None:
    """Register."""
    from twin import pipeline
    from twin.settings import load_settings

    out = Output(json, quiet, verbose)
    settings = load_settings(ollama={"host": host, "num_ctx": num_ctx}, gguf={"base": base})
    if to != TARGETS[0]:
        _hand_over(name, to, settings, out, adapter, gguf, host, dry_run, env is not None or force)
        return
    done = pipeline.register(name, settings, out.reporter(), adapter, gguf, force, dry_run, env)
    lines = [f"{done.model} {'could be' if dry_run else 'is'} served at {done.host}"]
    lines += [f"  {check}: {what}" for check, what in done.checks.items()]
    lines += env_lines(done.env, dry_run) if done.env else []
    out.result(done.as_json(), [*lines, "Nothing was written (--dry-run)."] if dry_run else lines)
    if not dry_run:
        out.hint(env_hint(done.env) if done.env else f"twin chat {name}")
