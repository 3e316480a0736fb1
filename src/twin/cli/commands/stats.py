"""``twin stats``: what the brain holds, plotted in the terminal."""

from __future__ import annotations

from datetime import date
from typing import Any

from twin.cli import options
from twin.cli.console import Output, few_reasons

NAME = "stats"
HELP = """Show what your brain holds: messages a month, hours, lengths, people, and what an export would leave out.

Nothing is written.

Examples:

  twin stats

  twin stats ~/chats/family.zip --person "Ada Byron"
"""

_WIDTH = 72
_MOST_PEOPLE = 12
_BAR = 40
_FIRST_MONTH = "1971-01"  # earlier ones are the zeros of clocks: 1, 1601, 1904, 1970


def command(
    sources: options.Sources = None,
    person: options.Person = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Stats."""
    from twin import curate
    from twin.settings import load_settings

    out = Output(json, quiet, verbose)
    seen = curate.stats(sources or [], load_settings(export={"person": person}), out.reporter())
    lines = [] if json else _lines(seen.as_json())
    out.result(seen.as_json(), lines)
    if seen.train:
        out.hint("twin preview, or twin export")


def _lines(seen: dict[str, Any]) -> list[str]:
    lines = [
        f"{seen['person']}: {seen['own_messages']} of {seen['messages']} messages in {seen['conversations']} chats, "
        f"{seen['memories']} memories, {seen['journals']} journal entries",
        f"An export would give {seen['rows']['train']} rows to learn and {seen['rows']['val']} held out.",
    ]
    months = seen["own_messages_by_month"]
    if months:
        lines += ["", *_by_month(months, date.today().year + 1)]
    lines += [
        "",
        "Own messages by hour of the day",
        *_bars({f"{int(hour):02d}": count for hour, count in seen["own_messages_by_hour"].items()}),
    ]
    lines += ["", "Own messages by length in characters, from", *_bars(seen["own_lengths_in_characters"])]
    lines += ["", "Messages by person", *_bars(dict(list(seen["people"].items())[:_MOST_PEOPLE]))]
    if seen["dropped"]:
        lines += ["", "Left out", *_bars(dict(few_reasons(seen["dropped"])))]
    if seen["redacted"]:
        lines += ["", "Replaced by placeholders", *_bars(seen["redacted"])]
    return lines + [f"Could not be read whole: {one}" for one in seen["problems"]]


def _by_month(months: dict[str, int], last_year: int) -> list[str]:
    """Return a plot of messages over months, months without any included.

    Args:
        months: the messages of each month, ``YYYY-MM``.
        last_year: months after it, and before 1971, are counted below and not drawn: they would leave the rest no room.
    """
    drawn = {month: count for month, count in months.items() if _FIRST_MONTH <= month <= f"{last_year:04d}-12"}
    elsewhere = sum(months.values()) - sum(drawn.values())
    note = [f"Not drawn, dated before {_FIRST_MONTH[:4]} or after {last_year}: {elsewhere}"] if elsewhere else []
    return ["Own messages a month", *(_plot(drawn) if drawn else []), *note]


def _plot(months: dict[str, int]) -> list[str]:
    import plotext

    first, last = min(months), max(months)
    year, month = (int(part) for part in first.split("-"))
    names: list[str] = []
    while (name := f"{year:04d}-{month:02d}") <= last:
        names.append(name)
        year, month = (year + 1, 1) if month == 12 else (year, month + 1)
    plot = plotext.figure
    plot.clear()
    plot.plot_size(_WIDTH, 12)
    plot.draw(plot.bar(list(range(len(names))), [months.get(name, 0) for name in names]))
    ticks = list(range(0, len(names), max(1, len(names) // 5)))
    plot.ruler("x").ticks(ticks, [names[tick] for tick in ticks])
    return str(plot.build().string(colorless=True)).rstrip().split("\n")


def _bars(counts: dict[str, int]) -> list[str]:
    """Return one line a name with a bar; the longest is 40 characters."""
    most = max(counts.values(), default=0)
    width = min(34, max((len(name) for name in counts), default=0))
    return [
        f"  {name[:width]:<{width}} {'█' * round(_BAR * count / most) if most else ''} {count}"
        for name, count in counts.items()
    ]
