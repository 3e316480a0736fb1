"""``twin run``: every step, each once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from twin.cli import options
from twin.cli.console import Output, env_hint, env_lines, few, printable

if TYPE_CHECKING:
    from twin.results import Change, Survival, Whole

NAME = "run"
_STEPS = "export, train, gguf, evaluate or register"
HELP = """Do everything: export, train, gguf, evaluate, register. A step whose inputs did not change is skipped.

--until ends after a step and --from begins at one, so that a machine with a GPU can train: copy data/ there, and
adapters/NAME back. In data/ are the rows, redacted; whoever owns that machine can read them. What comes back is
checked before it is used: docs/elsewhere.md.

Examples:

  twin run chirag-v1

  twin run chirag-v1 ~/chats --person "Ada Byron" --preset smollm2-135m

  twin run chirag-v1 --env ~/chirag-clone/.env

  twin run chirag-v1 --until export

  twin run chirag-v1 --from train --until train

  twin run chirag-v1 --from gguf
"""


def command(
    name: Annotated[str, typer.Argument(help="The run's and the model's name.")],
    sources: options.Sources = None,
    person: options.Person = None,
    preset: options.Preset = None,
    model: options.Model = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    learning_rate: options.LearningRate = None,
    lora_r: options.LoraR = None,
    max_length: options.MaxLength = None,
    device: options.Device = None,
    quantization: options.Quantization = None,
    llama_cpp: options.LlamaCpp = None,
    host: options.Host = None,
    seed: options.Seed = None,
    from_adapter: options.FromAdapter = None,
    replay: options.Replay = None,
    env: options.Env = None,
    first: Annotated[str, typer.Option("--from", help=f"The first step to do: {_STEPS}.")] = "export",
    last: Annotated[str, typer.Option("--until", help=f"The last step to do: {_STEPS}.")] = "register",
    force: options.Force = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    dry_run: options.DryRun = False,
) -> None:
    """Run all steps."""
    from twin import pipeline
    from twin.errors import EXIT_MACHINE, MachineError
    from twin.settings import load_settings

    out = Output(json, quiet, verbose)
    settings = load_settings(
        export={"person": person, "seed": seed},
        train={
            "preset": preset, "model": model, "epochs": epochs, "batch_size": batch_size,
            "learning_rate": learning_rate, "lora_r": lora_r, "max_length": max_length, "device": device, "seed": seed,
            "from_adapter": from_adapter, "replay": replay,
        },
        gguf={"quantization": quantization, "llama_cpp": llama_cpp},
        ollama={"host": host},
    )  # fmt: skip
    chosen = pipeline.steps_between(first, last)
    if dry_run:
        seen = pipeline.foresee(name, sources or [], settings, out.reporter(), env, chosen)
        before = ", ".join(seen.done_before) or "none"
        rows = seen.exported
        out.result(
            seen.as_json(),
            [
                *([f"{rows.train} rows to learn from {rows.person}, {rows.val} held out"] if rows else []),
                f"Steps to do: {', '.join(chosen)}",
                f"Steps done before (skipped where nothing changed): {before}",
                *(env_lines(seen.env, dry_run) if seen.env else []),
                "Nothing was written (--dry-run).",
            ],
        )
        return
    done = pipeline.run(name, sources or [], settings, out.reporter(), force, env, chosen)
    show(done, out, chosen)
    if done.env and not json:
        out.result({}, env_lines(done.env))
        out.hint(env_hint(done.env))
    if chosen[-1] != "register":
        out.hint(f"twin run {name} --from {pipeline.STEPS[pipeline.STEPS.index(chosen[-1]) + 1]}")
    if done.note:
        if json:  # the one object says it
            raise typer.Exit(EXIT_MACHINE)
        register = f"twin register {name}" + (f" --env '{env}'" if env else "")
        raise MachineError(
            "No Ollama answers, so the twin is made and not registered.", f"ollama serve, then: {register}"
        )


def show(done: Whole, out: Output, chosen: Sequence[str] = ("evaluate",)) -> None:
    """Print the one screen at the end: seconds a step, loss before and after, answers side by side."""
    if out.json:
        out.result(done.as_json(), [])
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    times = ", ".join(
        f"{step} {'skipped' if value is None else f'{value:.0f} s'}" for step, value in done.seconds.items()
    )
    memory = done.as_json()["peak_rss_bytes"] / 1e9
    console.print(f"Steps: {times}; peak memory {memory:.1f} GB", markup=False)
    measured = done.survival
    if measured is None:
        if "evaluate" in chosen:
            console.print("Not measured: no conversation is held out.", markup=False)
        return
    for line in _losses(measured):
        console.print(line, markup=False)
    table = Table(box=box.SIMPLE_HEAD, show_lines=True)
    for column in ("held-out prompt", "base model", "twin"):
        table.add_column(column, ratio=1, overflow="fold")
    for sample in measured.samples:
        texts = (sample.prompt, sample.base, sample.twin)
        table.add_row(*(Text(printable(re.sub(r"\n{2,}", "\n", text))) for text in texts))
    console.print(table)


def _losses(measured: Survival) -> list[str]:
    """Return what was measured, a line each."""
    change, reference = measured.gguf, measured.reference
    lines = [
        f"Held-out loss on {change.replies} replies in {change.conversations} conversations, nats a token "
        "(lower is more like the person):",
        f"  adapter: {reference.before:.3f} before, {reference.after:.3f} after, on the base model in "
        f"{measured.unquantized}",
        f"           change {_interval(reference)}",
        f"  GGUF:    {change.before:.3f} before, {change.after:.3f} after, both in {measured.quantization}",
        f"           change {_interval(change)}",
        f"  kept {measured.share()}",
        *([f"  refused, and gone on with (--force): {measured.refused}"] if measured.refused else []),
    ]
    return [*lines, *few(change.conversations)]


def _interval(change: Change) -> str:
    if change.low is None or change.high is None:
        return f"{change.change:+.3f}, no interval from one conversation"
    return f"{change.change:+.3f}, 95 % interval {change.low:+.3f} to {change.high:+.3f}"
