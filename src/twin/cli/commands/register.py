"""``twin register``: GGUF → Ollama."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twin.cli import options
from twin.cli.console import Output, env_hint, env_lines

NAME = "register"
HELP = """Register a twin in Ollama and prove on the live server that its prompts are those of training.

NAME is also the run: adapters/NAME, or the newest run when there is none (it says which). A missing GGUF is made first.

Examples:

  twin register chirag-v1

  twin register chirag-v1 --adapter adapters/smollm2-135m --force

  twin register chirag-v1 --env ~/chirag-clone/.env

--env makes the app use the twin: its .env is checked first and set last, with a copy of the old one beside it. The
address written is the one used here (see --host); an app in a container may need another.
"""


def command(
    name: Annotated[str, typer.Argument(help="The model's name in Ollama.")],
    adapter: Annotated[Path | None, typer.Option(help="The run's folder, where not adapters/NAME.")] = None,
    gguf: Annotated[Path | None, typer.Option(help="The GGUF, where not the run's own.")] = None,
    host: options.Host = None,
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
    settings = load_settings(ollama={"host": host, "num_ctx": num_ctx})
    done = pipeline.register(name, settings, out.reporter(), adapter, gguf, force, dry_run, env)
    lines = [f"{done.model} {'could be' if dry_run else 'is'} served at {done.host}"]
    lines += [f"  {check}: {what}" for check, what in done.checks.items()]
    lines += env_lines(done.env, dry_run) if done.env else []
    out.result(done.as_json(), [*lines, "Nothing was written (--dry-run)."] if dry_run else lines)
    if not dry_run:
        out.hint(env_hint(done.env) if done.env else f"twin chat {name}")
