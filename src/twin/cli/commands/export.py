"""``twin export``: brain → dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twin.cli import options
from twin.cli.console import Output

NAME = "export"
HELP = """Turn exports of your chats, memories and journals into a dataset.

Reads WhatsApp exports (text or zip), Telegram's, Instagram's and Messenger's JSON, Markdown and text journals, and
the app's brain JSON. Every row left out is counted with its reason in dataset.json.

Examples:

  twin export --format chatml

  twin export ~/chats/family.txt ~/journal --person "Ada Byron" --validation-split 0.1
"""

_FEW_ROWS = 100


def command(
    sources: options.Sources = None,
    format: Annotated[str | None, typer.Option(help="chatml, alpaca, sharegpt or raw. Default: chatml")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the dataset. Default: data")] = None,
    person: options.Person = None,
    include_system: Annotated[
        bool | None, typer.Option("--include-system/--no-include-system", help="Put the system prompt into the rows.")
    ] = None,
    quality_filter: Annotated[
        bool | None, typer.Option("--quality-filter/--no-quality-filter", help="Drop rows without words of their own.")
    ] = None,
    deduplicate: Annotated[
        bool | None, typer.Option("--deduplicate/--no-deduplicate", help="Drop near-duplicate rows.")
    ] = None,
    validation_split: Annotated[
        float | None, typer.Option(help="Share of conversations held out, 0 to 0.5. Default: 0.1")
    ] = None,
    seed: options.Seed = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    dry_run: options.DryRun = False,
) -> None:
    """Export."""
    from twin import pipeline
    from twin.settings import load_settings

    out = Output(json, quiet, verbose)
    settings = load_settings(
        export={
            "format": format, "output": output, "person": person, "include_system": include_system,
            "quality_filter": quality_filter, "deduplicate": deduplicate, "validation_split": validation_split,
            "seed": seed,
        }
    )  # fmt: skip
    done = pipeline.export(sources or [], settings, out.reporter(), dry_run)
    lines = [f"{done.train} rows to learn from {done.person}, {done.val} held out"]
    lines += [f"  left out: {count} ({reason})" for reason, count in sorted(done.dropped.items())]
    if done.train < _FEW_ROWS:
        lines.append("Few rows: expect little likeness. A voice takes some hundreds of replies.")
    if dry_run:
        lines.append("Nothing was written (--dry-run).")
    else:
        lines += [f"  {path}" for path in (done.paths.full, done.paths.train, done.paths.val, done.paths.report)]
    out.result(done.as_json(), lines)
    if not dry_run:
        data = "" if str(done.paths.root) == "data" else f" --dataset {done.paths.train}"
        out.hint(f"twin train --preset {settings.train.preset}{data}")
