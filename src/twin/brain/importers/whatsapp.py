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
    r"^\[?(\d{1,4})[./-] ?(\d{1,2})[./-] ?(\d{1,4})\.?(?:,| à)? "
    r"(\d{1,2})[:.](\d{2})(?:[:.](\d{2}))?(?: ?([AaPp])\.? ?[Mm]\.?)?(?:\]| -) (.*)$"
)
_MARK = "\u200e"  # iOS puts it before what WhatsApp itself says in a person's name
_INVISIBLE = str.maketrans(
    {"\u200e": "", "\u200f": "", "\u202a": "", "\u202c": "", "\ufeff": "", "\u202f": " ", "\u00a0": " "}
)
_MEDIA = re.compile(
    r"<(?:media|medien|médias|multimedia)\b[^<>]*>|media omitted|<attached: [^<>]+>|[^\n]+\.\w{2,4} \(file attached\)"
    r"|(?:image|video|audio|sticker|GIF|document|contact card) omitted",
    re.IGNORECASE,
)
_DELETED = re.compile(r"(?:This message was deleted|You deleted this message)\.?|null")
_EDITED = re.compile(r"\s*<This message was edited>$")


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
    lines = [line.rstrip("\r") for line in path.read_text("utf-8-sig").removesuffix("\n").split("\n")]
    starts = [match for line in lines if (match := _START.match(line.translate(_INVISIBLE)))]
    order = _date_order(starts)
    if order is None:
        if not starts:
            return
        raise UsageError(f"The dates of '{path}' fit no order of day, month and year.", "Export the chat again.")
    started: list[tuple[datetime, list[str], bool]] = []
    for raw in lines:
        line = raw.translate(_INVISIBLE)
        match = _START.match(line)
        at = _when(match, order) if match else None
        if match and at:
            marked = raw.partition(": ")[2].startswith(_MARK)
            started.append((at, [match[8]], marked))
        elif started:
            started[-1][1].append(line)
    messages: list[Message] = []
    for at, said, whatsapps in started:
        speaker, colon, first = said[0].partition(": ")
        if not colon or (speaker.count('"') % 2 and '"' in first):  # a colon inside a quoted group name
            skipped["WhatsApp's own message"] += 1
            continue
        if _MEDIA.fullmatch(first):  # a caption may follow on the next lines
            first = ""
        text = _EDITED.sub("", "\n".join([first, *said[1:]]).strip())
        if not text:
            skipped["media"] += 1
        elif (whatsapps and first) or _DELETED.fullmatch(text):
            skipped["WhatsApp's own message"] += 1
        else:
            messages.append(Message(speaker.strip(), text, at))
    if messages:
        yield Conversation(name, tuple(messages))


def _date_order(matches: list[re.Match[str]]) -> str | None:
    """Return ``dmy``, ``mdy`` or ``ymd``: under which most dates exist, then time runs backward least."""
    best: tuple[int, int, str] | None = None
    twelve_hours = any(match[7] for match in matches)  # where the day comes second, the clock has twelve hours
    for order in ("mdy", "dmy", "ymd") if twelve_hours else ("dmy", "mdy", "ymd"):
        times = [at for match in matches if (at := _when(match, order))]
        backward = sum(later < earlier for earlier, later in pairwise(times))
        if times and (best is None or (-len(times), backward) < best[:2]):
            best = (-len(times), backward, order)
    return best[2] if best else None


def _when(match: re.Match[str], order: str) -> datetime | None:
    """Return the time of a line, or None where it is none: words that only look like a date carry a message on."""
    parts = {unit: int(match[position]) for position, unit in enumerate(order, start=1)}
    year = parts["y"] + 2000 if parts["y"] < 100 else parts["y"]
    hour = int(match[4])
    if half := match[7]:
        hour = hour % 12 + (12 if half in "Pp" else 0)
    try:
        return datetime(year, parts["m"], parts["d"], hour, int(match[5]), int(match[6] or 0))
    except ValueError:
        return None
