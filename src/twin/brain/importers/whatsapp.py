"""WhatsApp's "Export chat", Android and iOS: the text, or the zip it comes in.

Layout (https://faq.whatsapp.com/1180414079177245): one line a message, ``date, time - name: text`` (Android) or
``[date, time] name: text`` (iOS); a line without that beginning carries on the message above; a line with a date but no
name is WhatsApp speaking. Not obvious: the date's order is the phone's, so it is settled over the whole file, and
invisible marks (U+200E, U+202F) stand anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import date, datetime

from twin.brain.document import Document, as_text
from twin.brain.reading import day_of, pieces
from twin.dropped import Dropped
from twin.errors import UsageError
from twin.records import Conversation, Message

LAYOUT = "WhatsApp exports (text or zip)"
HOLDS = (Conversation,)
# Halves of the day: Latin, Greek, Chinese, Japanese, Korean, Arabic, Hindi.
_FIRST_HALF = r"[Aa]\.? ?[Mm]\.?|π\.?μ\.?|上午|凌晨|早上|午前|오전|ص|पूर्वाह्न"
_SECOND_HALF = r"[Pp]\.? ?[Mm]\.?|μ\.?μ\.?|下午|中午|晚上|午後|오후|م|अपराह्न"
_HALF = rf"{_FIRST_HALF}|{_SECOND_HALF}"
_START = re.compile(
    r"^\[?(?P<one>\d{1,4})(?:[./-] ?|년 |年)(?P<two>\d{1,2})(?:[./-] ?|월 |月)(?P<three>\d{1,4})(?:\.|일|日| ?г\.)?"
    rf"(?:[,،]| à| klo| kl\.)? (?:(?P<before>{_HALF}) ?)?"
    rf"(?P<hour>\d{{1,2}})[:.](?P<minute>\d{{2}})(?:[:.](?P<second>\d{{2}}))?(?: ?(?P<after>{_HALF}))?(?: ч\.)?"
    r"(?:\]| -|(?(before),(?= [^:]{1,60} ?: )|(?!))) (?P<said>.*)$"  # Korean: '오후 9:14, name : text'
)
_MARK = "\u200e"  # iOS puts it before what WhatsApp itself says in a person's name
_INVISIBLE = str.maketrans(
    {"\u200e": "", "\u200f": "", "\u202a": "", "\u202c": "", "\ufeff": "", "\u202f": " ", "\u00a0": " "}
)
_MEDIA = re.compile(
    r"(?:[^\n]{1,200} )?<attached: [^<>]+>|[^\n]+\.\w{2,5} (?:<attached>|\(file attached\))"
    r"|<(?:media|medien|médias|multimedia)\b[^<>]*>|media omitted"
    r"|(?:image|video|audio|sticker|GIF|document|contact card) omitted"
    # The same in another language: a whole line in angle brackets, of several words or of other letters.
    r"|[<‹](?=[^<>‹›\n]*(?:\w \w|[^\x00-\x7f]))[^<>‹›\n]{3,60}[>›]",
    re.IGNORECASE,
)
_DELETED = re.compile(
    r"(?:This message was deleted|You deleted this message"
    r"|Diese Nachricht wurde gelöscht|Du hast diese Nachricht gelöscht"
    r"|Se eliminó este mensaje|Eliminaste este mensaje|Ce message a été supprimé|Vous avez supprimé ce message"
    r"|Questo messaggio è stato eliminato|Hai eliminato questo messaggio|Mensagem apagada|Esta mensagem foi apagada"
    r"|Você apagou esta mensagem|Dit bericht is verwijderd|Je hebt dit bericht verwijderd)\.?|null"
)
_EDITED = "<This message was edited>"


def sniff(document: Document, head: bytes) -> bool:
    """Text with a WhatsApp line among its first ten."""
    if document.suffix != ".txt":
        return False
    lines = as_text(head).translate(_INVISIBLE).splitlines()[:10]
    return any(_START.match(line) for line in lines)


def read(document: Document, dropped: Dropped) -> Iterator[Conversation]:
    """Yield the chat as one conversation, in pieces. The text is read twice: first for the order of its dates.

    Raises:
        UsageError: dates that fit no order of day, month and year; a zip that can't be read.
    """
    order = _date_order(match for line in document.lines() if (match := _START.match(_visible(line))))
    if order == "":
        raise UsageError(f"The dates of {document} fit no order of day, month and year.", "Export the chat again.")
    if order:
        yield from pieces(document.name, _messages(document, order, dropped))


def _visible(line: str) -> str:
    """Return a line without invisible marks."""
    return line if line.isascii() else line.translate(_INVISIBLE)


def _messages(document: Document, order: str, dropped: Dropped) -> Iterator[Message]:
    at: datetime | None = None
    said: list[str] = []
    marked = False
    for raw in document.lines(dropped):
        line = _visible(raw)
        match = _START.match(line)
        begins = _when(match, order) if match else None
        if match and begins:
            if at and (message := _message(at, said, marked, document.name, dropped)):
                yield message
            at, said, marked = begins, [match["said"]], raw.partition(": ")[2].startswith(_MARK)
        elif at:
            said.append(line)
    if at and (message := _message(at, said, marked, document.name, dropped)):
        yield message


def _message(at: datetime, said: list[str], marked: bool, where: str, dropped: Dropped) -> Message | None:
    """Return what a person typed, or None, counted by its reason."""
    speaker, colon, first = said[0].partition(": ")
    if not colon or (speaker.count('"') % 2 and '"' in first):  # a colon inside a quoted group name
        dropped.add("WhatsApp's own message", said[0], where)
        return None
    if _MEDIA.fullmatch(first):  # a caption may follow on the next lines
        first = ""
    text = "\n".join([first, *said[1:]]).strip().removesuffix(_EDITED).rstrip()
    if not text:
        dropped.add("media", said[0], where)
    elif (marked and first) or _DELETED.fullmatch(text):
        dropped.add("WhatsApp's own message", said[0], where)
    else:
        return Message(speaker.strip(), text, at)
    return None


def _date_order(matches: Iterable[re.Match[str]]) -> str | None:
    """Return ``dmy``, ``mdy`` or ``ymd``: under which most dates exist, then time runs backward least.

    Without dates None; ``""`` where they fit no order.
    """
    found = twelve_hours = False
    fit = dict.fromkeys(("dmy", "mdy", "ymd"), 0)
    backward = dict.fromkeys(fit, 0)
    before: dict[str, date] = {}
    last: tuple[str, ...] = ()
    for match in matches:
        found = True
        # Where the day comes second, the clock has twelve hours, told in Latin letters.
        twelve_hours = twelve_hours or bool(match["after"] and match["after"].isascii())
        own = match.group("one", "two", "three")
        if own == last:
            continue
        last = own
        for order in fit:
            if day := day_of(own, order):
                fit[order] += 1
                backward[order] += order in before and day < before[order]
                before[order] = day
    if not before:
        return "" if found else None
    ranked = ("mdy", "dmy", "ymd") if twelve_hours else ("dmy", "mdy", "ymd")
    return min(ranked, key=lambda order: (-fit[order], backward[order]))


def _when(match: re.Match[str], order: str) -> datetime | None:
    """Return the time of a line, or None where it is none: words that only look like a date carry a message on."""
    one, two, three, hours, minute, second, before, after = match.group(
        "one", "two", "three", "hour", "minute", "second", "before", "after"
    )
    day = day_of((one, two, three), order)
    hour = int(hours)
    if half := before or after:
        hour = hour % 12 + (12 if re.fullmatch(_SECOND_HALF, half) else 0)
    try:
        return datetime(day.year, day.month, day.day, hour, int(minute), int(second or 0)) if day else None
    except ValueError:
        return None
