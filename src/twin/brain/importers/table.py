"""Tables: CSV with a header, JSONL with an object a line. A row is a message, or an exchange: context and response.

CSV is RFC 4180 (https://www.rfc-editor.org/rfc/rfc4180) with a comma, semicolon or tab; JSONL is https://jsonlines.org.
Columns go by the common names below, or by the user's own mapping, ``document.columns``. Not obvious: rows of several
conversations may be mixed (a dump in the order of time), so a row waits for its neighbours, at most 65,536 messages
long; and some exports (LinkedIn's ``messages.csv``) are written newest first, which their times tell.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import islice, pairwise
from typing import Any

import orjson

from twin.brain.document import Document, as_text
from twin.brain.reading import PIECE, clean, day_of, epoch_time
from twin.dropped import Dropped
from twin.errors import UsageError
from twin.records import ME, Conversation, Message

LAYOUT = "CSV and JSONL with a speaker and a text, or a context and a response, a row"
HOLDS = (Conversation,)
# Our names of the columns, and theirs in order of preference: in small letters, letters and digits alone.
NAMES = {
    "speaker": ("speaker", "speakername", "sender", "sendername", "from", "fromname", "author", "authorname",
                "username", "user"),
    "text": ("text", "message", "content", "contents", "body", "messagetext", "messagebody", "msg"),
    "at": ("at", "timestamp", "datetime", "date", "time", "createdat", "sentat", "messagedate", "ts"),
    "conversation": ("conversation", "conversationid", "chat", "chatid", "chatname", "thread", "threadid", "channel",
                     "channelid", "room", "group", "groupname", "session", "sessionid"),
    "context": ("context", "prompt"),
    "response": ("response", "reply"),
    "other": ("other", "othername", "contact", "contactname", "partner"),
}  # fmt: skip
# Not read by guess: rows of training data, whose words may be anybody's, and DiscordChatExporter's CSV, which does not
# tell what Discord or a bot said (its JSON does).
_NOT_OURS = ({"messages"}, {"conversations"}, {"instruction"}, {"spans"}, {"authorid", "attachments", "reactions"})
_DELIMITERS = ",;\t"
_SUFFIXES = {".csv": True, ".tsv": True, ".jsonl": False, ".ndjson": False}
_WAITING = 16 * PIECE  # messages that wait for others of their conversation
_SAMPLE = 200  # rows that tell how times are written
_MOST_DATES = 100_000
_ROW_CHARACTERS = 1 << 20  # a quote that nothing closes would take in the rest of the file
_DATE = re.compile(
    r"(?P<one>\d{1,4})[./-](?P<two>\d{1,2})[./-](?P<three>\d{1,4})"
    r"(?:,?[ T]+(?P<hour>\d{1,2})[:.](?P<minute>\d{2})(?:[:.](?P<second>\d{2}))?(?:\s?(?P<half>[AaPp])\.?[Mm]\.?)?)?"
)
_ZONE = re.compile(r"\s{0,3}(?:UTC|GMT)$")
_HINTS = {
    "broken line": "Such lines are left out and counted, the rest is read.",
    "row too short": "Such rows are left out and counted, the rest is read.",
    "row too long": "Put the texts in quotes; such rows are left out and counted, the rest is read.",
    "row with an unreadable date": "Write dates as 2024-03-05 21:14; such rows are read without one.",
}

Row = tuple[int, Any, Any, Any, Any, Any]  # line, conversation, at, context or speaker, response or text, other
When = Callable[[Any], datetime | None]
Said = Callable[[Row, list[Message]], None]
_NO_CHAT: Any = object()


@dataclass(frozen=True, slots=True)
class _Table:
    """What the beginning of a table tells.

    Args:
        columns: our names and the table's own.
        names: the header of a CSV.
        delimiter: of a CSV, ``""`` for JSONL.
    """

    columns: dict[str, str]
    names: tuple[str, ...] = ()
    delimiter: str = ""

    @property
    def exchanges(self) -> bool:
        return "response" in self.columns

    def used(self) -> tuple[str | None, ...]:
        """Return the table's own names in the order of a row's fields; None where it has no such column."""
        pair = ("context", "response", "other") if self.exchanges else ("speaker", "text", "")
        return tuple(self.columns.get(name) for name in ("conversation", "at", *pair))


class _Counting:
    """Counts what is left out with its line, and says once for each reason where it begins."""

    def __init__(self, document: Document, dropped: Dropped) -> None:
        self._document, self._dropped = document, dropped
        self._said: set[str] = set()

    def __call__(self, reason: str, line: int, text: str = "") -> None:
        self._dropped.add(reason, text, f"{self._document.name}:{line}")
        if reason in _HINTS and reason not in self._said:
            self._said.add(reason)
            self._dropped.problem(f"{self._document} has a {reason} (the first is line {line}).", _HINTS[reason])


def sniff(document: Document, head: bytes) -> bool:
    """A table with columns that are known, and no rows of training data."""
    return document.suffix in _SUFFIXES and _table(document, head) is not None


def read(document: Document, dropped: Dropped) -> Iterator[Conversation]:
    """Yield the conversations. Exchanges with neither a conversation nor a time stand alone, each for itself.

    Raises:
        UsageError: no known columns; bytes that are no text, after the rows before them.
    """
    table = _table(document, document.head())
    if table is None:
        raise UsageError(
            f"{document} has no columns that twin knows.",
            "Name them in twin.toml, under [columns]: speaker and text, or context and response.",
        )
    rows = partial(_csv_rows if table.delimiter else _json_rows, document, table)
    sample: list[Row] = []
    with suppress(UsageError):  # it comes again below, after what stands before it
        sample.extend(islice(rows(_Counting(document, Dropped())), _SAMPLE))
    count = _Counting(document, dropped)
    when = _clock(sample, lambda: rows(_Counting(document, Dropped())))
    said = partial(_exchange if table.exchanges else _message, when, count)
    if table.exchanges and not {"conversation", "at"} & table.columns.keys():
        yield from _alone(document.name, rows(count), said)
    else:
        backward = not table.exchanges and _newest_first(sample, when)
        yield from _gathered(document.name, rows(count), said, backward)


# ---------------------------------------------------------------- which columns


def _table(document: Document, head: bytes) -> _Table | None:
    if _SUFFIXES.get(document.suffix):
        return _csv_table(document, as_text(head))
    rows = [row for line in islice(as_text(head).split("\n"), 50) if isinstance(row := _loads(line), dict)]
    best, most = None, 0
    for columns in _columns(dict.fromkeys(name for row in rows for name in row), document.columns):
        table = _Table(columns)
        first, second = table.used()[2:4]
        whole = sum(bool(_name(row.get(first)) and _text(row.get(second))) for row in rows)
        if whole > most:
            best, most = table, whole
    return best


def _csv_table(document: Document, text: str) -> _Table | None:
    found = []
    for delimiter in _DELIMITERS:
        _, header = next(_records(iter(text.split("\n")), delimiter), (0, None))
        names = tuple(header or ())
        found += [_Table(columns, names, delimiter) for columns in _columns(names, document.columns)[:1]]
    return max(found, key=lambda table: len(table.names), default=None)


def _flat(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _columns(names: Iterable[str], own: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """Return our names and the table's own: as exchanges, as messages, as both, or as neither.

    Args:
        names: the table's columns.
        own: the user's mapping, which goes before the common names; columns that the table lacks are passed over.
    """
    known: dict[str, str] = {}
    for name in names:
        known.setdefault(_flat(name), name)
        known[name] = name
    theirs = {ours: known.get(name) or known.get(_flat(name)) for ours, name in own if ours in NAMES}
    mapped = {ours: name for ours, name in theirs.items() if name is not None}
    if not mapped and any(others <= known.keys() for others in _NOT_OURS):
        return []
    guessed = {ours: next((known[one] for one in common if one in known), None) for ours, common in NAMES.items()}
    columns = {ours: name for ours, name in guessed.items() if name is not None} | mapped
    kinds = [{"context", "response"}, {"speaker", "text"}]
    if kinds[1] & mapped.keys():
        kinds.reverse()
    either = kinds[0] | kinds[1]
    return [
        {ours: name for ours, name in columns.items() if ours in kind or ours not in either}
        for kind in kinds
        if kind <= columns.keys()
    ]


# ---------------------------------------------------------------- rows


def _json_rows(document: Document, table: _Table, count: _Counting) -> Iterator[Row]:
    """Yield the rows of a JSONL; a line that orjson refuses (NaN, half a character) gets a second chance."""
    conversation, at, first, second, other = table.used()
    loads = orjson.loads
    for number, line in _json_lines(document):
        try:
            row = loads(line)  # type: ignore[arg-type]  # None, a line too long, is refused like any other
        except orjson.JSONDecodeError:
            if line is not None and not line.strip():
                continue
            row = _loads(line)
        if row.__class__ is not dict:
            count("broken line", number)
            continue
        get = row.get
        yield number, get(conversation), get(at), get(first), get(second), get(other)


def _json_lines(document: Document) -> Iterator[tuple[int, bytes | None]]:
    start = document.head()[:3]
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):  # UTF-16: PowerShell writes it
        yield from ((number, line.encode()) for number, line in enumerate(document.lines(), 1))
        return
    lines = document.byte_lines()
    if start == b"\xef\xbb\xbf" and (first := next(lines, None)):
        yield first[0], first[1] and first[1][3:]
    yield from lines


def _loads(line: str | bytes | None) -> Any:
    """Return what a line of JSON holds, the texts of an object cleaned; None for a broken one."""
    try:
        row = json.loads(line) if line else None
    except (ValueError, RecursionError):
        return None
    if isinstance(row, dict):
        return {name: clean(value) if isinstance(value, str) else value for name, value in row.items()}
    return row


def _csv_rows(document: Document, table: _Table, count: _Counting) -> Iterator[Row]:
    width = len(table.names)
    places = [table.names.index(name) if name is not None else width for name in table.used()]
    needed = max(place for place in places if place < width) + 1
    conversation, at, first, second, other = places
    records = _records(document.lines(), table.delimiter)
    next(records)  # the header
    for number, row in records:
        if row is None:
            count("broken line", number)
        elif len(row) < needed:
            count("row too short", number, table.delimiter.join(row))
        elif any(row[width:]):
            count("row too long", number, table.delimiter.join(row))
        else:
            del row[width:]
            row.extend([""] * (width + 1 - len(row)))  # the last is what a column holds that the table lacks
            yield number, row[conversation], row[at], row[first], row[second], row[other]


class _Feed:
    """Lines for ``csv.reader``, which can be taken back: a broken row must not take the next ones with it."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._back: deque[str] = deque()
        self._taken: list[str] = []
        self._characters = self._number = self.first = 0

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        line = self._back.popleft() if self._back else next(self._lines)
        self._number += 1
        self._taken.append(line)
        self._characters += len(line)
        if self._characters > _ROW_CHARACTERS:
            raise csv.Error
        return line + "\n"

    def begin(self) -> None:
        """Begin a row with the next line."""
        self._taken.clear()
        self._characters, self.first = 0, self._number + 1

    def give_up(self) -> None:
        """Take back all lines of the row but its first."""
        self._back.extendleft(reversed(self._taken[1:]))
        self._number = self.first


def _records(lines: Iterator[str], delimiter: str) -> Iterator[tuple[int, list[str] | None]]:
    """Yield the rows of a CSV with the number of their first line, None for a broken one; blank ones are none."""
    feed = _Feed(line.rstrip("\r") for line in lines)
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    while True:
        feed.begin()
        try:
            row = next(reader, None)
        except csv.Error:
            feed.give_up()
            yield feed.first, None
            continue
        if row is None:
            return
        if row and not (feed.first == 1 and row[0].startswith("sep=")):  # how a spreadsheet is told the delimiter
            yield feed.first, row


# ---------------------------------------------------------------- messages


def _text(value: Any) -> str:
    if value.__class__ is not str:
        return ""
    return (value if "\0" not in value else value.replace("\0", "")).strip()


def _name(value: Any) -> str:
    """Return a name, or a number that stands for one, as text."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else _text(value)


def _message(when: When, count: _Counting, row: Row, own: list[Message]) -> None:
    """Put the message of a row at the end of ``own``, or count why it has none."""
    line, _, raw, who, said, _ = row
    text, speaker = _text(said), _name(who)
    if not text or not speaker:
        count("row without a speaker" if text else "row without text", line, text)
        return
    at = when(raw) if raw else None
    if at is None and raw:
        count("row with an unreadable date", line, text)
    own.append(Message(speaker, text, at))


def _exchange(when: When, count: _Counting, row: Row, own: list[Message]) -> None:
    """Put what was said and the person's reply at the end of ``own``, the one alone where the other is empty."""
    line, _, raw, said, replied, who = row
    context, response = _text(said), _text(replied)
    if not context and not response:
        count("row without text", line)
        return
    at = when(raw) if raw else None
    if at is None and raw:
        count("row with an unreadable date", line, response)
    if context:
        own.append(Message((who and _name(who)) or "Someone", context, at))
    if response:
        own.append(Message(ME, response, at))


def _alone(name: str, rows: Iterator[Row], said: Said) -> Iterator[Conversation]:
    for row in rows:
        own: list[Message] = []
        said(row, own)
        if own:
            yield Conversation(f"{name}/{row[0]}", tuple(own))


def _gathered(name: str, rows: Iterator[Row], said: Said, backward: bool) -> Iterator[Conversation]:
    """Yield the rows' messages by their conversation, in pieces; each piece has the number of its first message."""
    held: dict[str, list[Message]] = {}
    done: dict[str, int] = {}
    own: list[Message] = []
    chat, now, waiting, before = "", _NO_CHAT, 0, 0
    for row in rows:
        if row[1] != now:
            waiting += len(own) - before
            if waiting >= _WAITING:
                yield from _pieces(name, held, done, backward)
                waiting = 0
            chat, now = _name(row[1]), row[1]
            own = held.setdefault(chat, [])
            before = len(own)
        said(row, own)
        if len(own) >= PIECE - 1:  # an exchange more would be too many
            held[chat] = held.pop(chat)  # the last, where its next piece follows
            yield from _pieces(name, held, done, backward)
            own, now, waiting, before = [], _NO_CHAT, 0, 0
    yield from _pieces(name, held, done, backward)


def _pieces(name: str, held: dict[str, list[Message]], done: dict[str, int], backward: bool) -> Iterator[Conversation]:
    """Yield what is held of each conversation, and hold it no longer."""
    for chat, messages in held.items():
        start = done.get(chat, 0)
        done[chat] = start + len(messages)
        if backward:
            messages.reverse()
        if messages:
            yield Conversation(f"{name}/{chat}" if chat else name, tuple(messages), start)
    held.clear()


# ---------------------------------------------------------------- times


def _time(value: Any) -> datetime | None:
    """Return the wall-clock time of an ISO date, or the UTC time of seconds since 1970 or thousandths of them."""
    if isinstance(value, str) and not (len(value) > 8 and value.isdecimal()):  # 1704825730123 reads as a date too
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            pass
        else:
            return at if at.tzinfo is None else at.replace(tzinfo=None)
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (ValueError, TypeError, OverflowError):
        return None
    for _ in range(3):
        if abs(seconds) >= 1e11:
            seconds /= 1000
    return epoch_time(seconds)


def _clock(sample: Iterable[Row], rows: Callable[[], Iterator[Row]]) -> When:
    """Return what reads a table's times. Days and months in figures are read in the one order that fits all of it."""
    raw = [row[2] for row in sample if row[2]]
    if all(_time(value) for value in raw) or not any(_figures(value) for value in raw):
        return _time
    dates: dict[str, re.Match[str]] = {}
    with suppress(UsageError):
        for row in rows():
            if (match := _figures(row[2])) and len(dates) < _MOST_DATES:
                dates.setdefault(match[0].partition(" ")[0], match)
    order = _order(dates.values())

    def told(value: Any) -> datetime | None:
        match = _figures(value)
        return _told(match, order) if match else _time(value)

    return told


def _figures(value: Any) -> re.Match[str] | None:
    return _DATE.fullmatch(_ZONE.sub("", value.strip())) if isinstance(value, str) else None


def _order(dates: Iterable[re.Match[str]]) -> str:
    """Return the order of day, month and year under which most dates exist, then fewest run backward."""
    found = list(dates)
    ranked = ("mdy", "dmy", "ymd") if any(match["half"] for match in found) else ("dmy", "mdy", "ymd")
    told = {order: [at for match in found if (at := _told(match, order))] for order in ranked}
    steps = {order: sum(after < before for before, after in pairwise(times)) for order, times in told.items()}
    return min(ranked, key=lambda order: (-len(told[order]), min(steps[order], len(told[order]) - 1 - steps[order])))


def _told(match: re.Match[str], order: str) -> datetime | None:
    day = day_of(match.group("one", "two", "three"), "ymd" if len(match["one"]) == 4 else order)
    hour = int(match["hour"] or 0)
    if half := match["half"]:
        hour = hour % 12 + (12 if half in "Pp" else 0)
    with suppress(ValueError):
        if day:
            return datetime(day.year, day.month, day.day, hour, int(match["minute"] or 0), int(match["second"] or 0))
    return None


def _newest_first(sample: Iterable[Row], when: When) -> bool:
    """Say whether most rows are older than the one before them in their conversation."""
    before: dict[str, datetime] = {}
    steps = 0
    for row in sample:
        if at := when(row[2]):
            chat = _name(row[1])
            earlier = before.get(chat, at)
            steps += (at > earlier) - (at < earlier)
            before[chat] = at
    return steps < 0
