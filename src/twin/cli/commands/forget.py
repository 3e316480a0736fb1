"""``twin forget``: hide people, sources and times, and name what was made from them."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from twin.cli import options
from twin.cli.console import Output

NAME = "forget"
HELP = """Hide a person, a source or a time from everything twin makes, and export again.

Your source files stay as they are: forgotten.json hides what is named, and taking a line out of it shows it again. What
a finished adapter has learned stays learned, so every adapter, GGUF and registered model made from what is gone is
named, with the commands that remove it.

Examples:

  twin forget "Sam Poe"

  twin forget --source whatsapp/family.zip --before 2020-01-01

  twin forget "Sam Poe" --output elsewhere/data
"""


def command(
    person: Annotated[str | None, typer.Argument(help="Whose messages to hide, in every chat.")] = None,
    source: Annotated[str | None, typer.Option(help="A file or folder of the brain, as row ids call it.")] = None,
    before: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Hide what is dated earlier, YYYY-MM-DD.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the dataset to export again, as it was made. Default: data")
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    dry_run: options.DryRun = False,
) -> None:
    """Forget."""
    from twin import curate
    from twin.settings import load_settings

    out = Output(json, quiet, verbose)
    settings = load_settings(export={"output": output})
    done = curate.forget(settings, out.reporter(), person or "", source or "", before, dry_run)
    verb = "Would hide" if dry_run else "Hidden"
    lines = [f"{verb}: {done.what}: {done.messages} messages, {done.others} memories and journal entries"]
    if done.exported:
        rows = f"{done.exported.train} rows to learn, {done.exported.val} held out"
        lines.append(f"Exported again: {rows}, in {done.dataset}")
    elif done.dataset:
        lines.append(f"Would be exported again: {done.dataset}")
    else:
        lines.append(f"There is no dataset in {settings.export.output} to export again. Another: --output DIR")
    for run in done.made:
        sure = "was made from it" if run["certain"] else "does not say what it was made from"
        lines.append(f"{run['adapter']} {sure}")
        lines += [f"  {path}" for path in run["gguf"]]
        lines += [f"  the model {model['model']} at {model['host']}" for model in run["models"]]
    if not done.made:
        lines.append("No adapter was made from it.")
    out.result(done.as_json(), lines)
    names = [model["model"] for run in done.made for model in run["models"]]
    if done.made:
        removal = "".join(f"; ollama rm {name}" for name in names)
        out.hint(f"train again (twin train), or remove: rm -r {' '.join(run['adapter'] for run in done.made)}{removal}")
