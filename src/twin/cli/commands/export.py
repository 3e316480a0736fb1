"""``twin export``: brain → dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twin.cli import options
from twin.cli.console import Output, few_reasons
from twin.errors import UsageError

if TYPE_CHECKING:
    from twin.results import Exported

NAME = "export"
HELP = """Turn exports of your chats, memories and journals into a dataset.

Put what you have into a folder named brain, zips as they are: WhatsApp, Telegram, Signal, iMessage (chat.db), Discord,
Slack, Instagram, Messenger, e-mail (mbox), ChatGPT, CSV and JSONL, journals, the app's brain JSON. Secrets never become
rows; e-mails, phones, cards, IBANs, IP addresses and links with passwords become placeholders. Every row left out is
counted with its reason in dataset.json.

Examples:

  twin export --format chatml

  twin export ~/chats/family.zip ~/journal --person "Ada Byron" --validation-split 0.1

  twin export --via brain --url http://localhost:8000
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
    redact: Annotated[
        bool | None, typer.Option("--redact/--no-redact", help="Put placeholders in place of private values.")
    ] = None,
    pseudonyms: Annotated[
        bool | None, typer.Option("--pseudonyms/--no-pseudonyms", help="Call other people [person 1], [person 2], …")
    ] = None,
    reserve: Annotated[
        float | None, typer.Option(help="Share of memories kept out, for evaluation, 0 to 0.5. Default: 0.1")
    ] = None,
    via: Annotated[
        str | None, typer.Option(help="Read the app: its brain, or (app) the rows that it makes itself.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="The app's address. Default: TWIN_APP_URL, else port 8000 here")
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
    from twin import curate
    from twin.settings import load_settings

    out = Output(json, quiet, verbose)
    if via not in (None, "brain", "app"):
        raise UsageError(f"'{via}' is no --via.", "Known: app, brain.")
    if via == "app" and (sources or dry_run):
        raise UsageError(
            "--via app fetches the app's own rows alone.", "Leave out sources and --dry-run, or: --via brain"
        )
    settings = load_settings(
        export={
            "format": format, "output": output, "person": person, "include_system": include_system,
            "quality_filter": quality_filter, "deduplicate": deduplicate, "validation_split": validation_split,
            "seed": seed, "redact": redact, "pseudonyms": pseudonyms, "reserve": reserve,
        },
        app={"url": url},
    )  # fmt: skip
    meant: Any = via or ("brain" if url else None)
    done = curate.export(sources or [], settings, out.reporter(), dry_run, meant, options.hidden_prompt())
    out.result(done.as_json(), _lines(done, dry_run, compared=via != "app"))
    if not dry_run:
        data = "" if str(done.paths.root) == "data" else f" --dataset {done.paths.train}"
        out.hint(f"twin preview, or twin train --preset {settings.train.preset}{data}")


def _lines(done: Exported, dry_run: bool, compared: bool = True) -> list[str]:
    """Return what a person reads of an export.

    Args:
        done: what was exported.
        dry_run: nothing was written.
        compared: rows were compared across the split; nobody did that with the app's own.
    """
    whose = f" from {done.person}" if done.person else ""
    lines = [f"{done.train} rows to learn{whose}, {done.val} held out"]
    lines += [f"  left out: {count} ({reason})" for reason, count in few_reasons(done.dropped)]
    if done.redacted:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(done.redacted.items()))
        lines.append(f"  replaced by placeholders: {kinds}")
    if done.val and compared:
        alike = f"{done.closest:.2f} alike (1 is the same)" if done.closest is not None else "none found alike"
        lines.append(f"  closest pair across the split: {alike}")
        lines += [f"    {row}" for row in done.closest_rows]
    if done.train < _FEW_ROWS:
        lines.append("Few rows: expect little likeness. A voice takes some hundreds of replies.")
    if dry_run:
        lines.append("Nothing was written (--dry-run).")
    else:
        lines += [f"  {path}" for path in (done.paths.full, done.paths.train, done.paths.val, done.paths.report)]
    return lines
