"""``twin preview``: rows as a reader sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twin.cli import options
from twin.cli.console import Output

NAME = "preview"
HELP = """Show some rows as they would be learned, or what was left out, and why.

What is learned is marked with '>'. Nothing is written.

Examples:

  twin preview 5

  twin preview --dropped media
"""


def command(
    count: Annotated[int, typer.Argument(min=1, max=1000, help="How many to show.")] = 5,
    source: Annotated[
        list[Path] | None, typer.Option(help="A file or folder of exports; may be repeated. Default: ./brain")
    ] = None,
    dropped: Annotated[str | None, typer.Option(help="Show what was left out for this reason.")] = None,
    person: options.Person = None,
    seed: options.Seed = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Preview."""
    from twin import curate
    from twin.settings import load_settings

    out = Output(json, quiet, verbose)
    settings = load_settings(export={"person": person, "seed": seed})
    seen = curate.preview(source or [], settings, out.reporter(), count, dropped)
    lines: list[str] = []
    for row in seen.rows:
        lines.append(f"--- {row.kind}, {row.id}")
        for place, turn in enumerate(row.turns):
            learned = place == len(row.turns) - 1
            speaker = seen.person if turn.role == "assistant" else row.other if turn.role == "user" else "(system)"
            mark = "> " if learned else "  "
            head = f"{speaker}: " if speaker else ""
            lines += [mark + line for line in f"{head}{turn.content}".split("\n")]
    for where, text in seen.listed:
        lines.append(f"--- {where}")
        lines += [f"  {line}" for line in (text or "(nothing but the fact)").split("\n")]
    if dropped and seen.dropped[dropped] > len(seen.listed):
        lines.append(f"{seen.dropped[dropped] - len(seen.listed)} more of that reason")
    out.result(seen.as_json(), lines)
    if not dropped and seen.dropped:
        reasons = ", ".join(sorted(seen.dropped)[:6])
        out.hint(f"twin preview --dropped REASON ({reasons}), or twin export")
