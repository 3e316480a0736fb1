"""WhatsApp's "Export chat" text, Android and iOS.

Layout (https://faq.whatsapp.com/1180414079177245): one line a message, ``date, time - name: text`` (Android) or
``[date, time] name: text`` (iOS); a line without that beginning carries on the message above; a line with a date but no
name is WhatsApp speaking. Not obvious: the date's order is the phone's, so it is settled over the whole file, and
invisible marks (U+200E, U+202F) stand anywhere.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from twin.errors import UsageError
from twin.records import Conversation, Message

LAYOUT = "WhatsApp text exports"
_START = re.compile(
    r"^\[?(\d{1,4})[./-](\d{1,2})[./-](\d{1,4}),? "
    r"(\d{1,2})[:.](\d{2})(?:[:.](\d{2}))?(?: ?([AaPp])\.? ?[Mm]\.?)?(?:\]| -) (.*)$"
)
_INVISIBLE = str.maketrans(
    {"\u200e": "", "\u200f": "", "\u202a": "", "\u202c": "", "\ufeff": "", "\u202f": " ", "\u00a0": " "}
)
_MEDIA = re.compile(
    r"<(media|medien|médias|multimedia)\b[^<>]*>|<attached: [^<>]+>|\S+\.\w{2,4} \(file attached\)"
    r"|(image|video|audio|sticker|GIF|document|contact card) omitted",
    re.IGNORECASE,
)


def sniff(path: Path, head: bytes) -> bool:
    """Text with a WhatsApp line among its first ten."""
    if path.suffix.lower() != ".txt":
        return False
    lines = head.decode("utf-8", "ignore").translate(_INVISIBLE).splitlines()[:10]
    return any(_START.match(line) for line in lines)


def read(path: Path, name: str, skipped: Counter[str]) -> Iterator[Conversation]:
    """Yield the chat as one conversation.

    Raises:
        UsageError: dates that fit no order of day, month and year.
    """
    starts: list[tuple[re.Match[str], list[str]]] = []
    with path.open(encoding="utf-8-sig") as handle:
        for raw in handle:
            line = raw.rstrip("\r\n").translate(_INVISIBLE)
            if match := _START.match(line):
                starts.append((match, [match[8]]))
            elif starts:
                starts[-1][1].append(line)
    order = _date_order([match for match, _ in starts])
    if order is None:
        raise UsageError(f"The dates of '{path}' fit no order of day, month and year.", "Export the chat again.")
    messages: list[Message] = []
    for match, lines in starts:
        speaker, colon, first = lines[0].partition(": ")
        if not colon:
            skipped["WhatsApp's own message"] += 1
            continue
        text = "\n".join([first, *lines[1:]]).strip()
        if _MEDIA.fullmatch(text) or not text:
            skipped["media"] += 1
            continue
        messages.append(Message(speaker.strip(), text, _when(match, order)))
    if messages:
        yield Conversation(name, tuple(messages))


def _date_order(matches: list[re.Match[str]]) -> str | None:
    """Return ``dmy``, ``mdy`` or ``ymd``: the first under which every date exists and time runs forward most often."""
    best: tuple[int, str] | None = None
    for order in ("dmy", "mdy", "ymd"):
        try:
            times = [_when(match, order) for match in matches]
        except ValueError:
            continue
        backward = sum(later < earlier for earlier, later in pairwise(times))
        if best is None or backward < best[0]:
            best = (backward, order)
    return best[1] if best else None


def _when(match: re.Match[str], order: str) -> datetime:
    parts = {unit: int(match[position]) for position, unit in enumerate(order, start=1)}
    year = parts["y"] + 2000 if parts["y"] < 100 else parts["y"]
    hour = int(match[4])
    if half := match[7]:
        hour = hour % 12 + (12 if half in "Pp" else 0)
    return datetime(year, parts["m"], parts["d"], hour, int(match[5]), int(match[6] or 0))
