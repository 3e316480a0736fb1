"""WhatsApp's "Export chat", Android and iOS: the text, or the zip it comes in.

Layout (https://faq.whatsapp.com/1180414079177245): one line a message, ``date, time - name: text`` (Android) or
``[date, time] name: text`` (iOS); a line without that beginning carries on the message above; a line with a date but no
name is WhatsApp speaking. Not obvious: the date's order is the phone's, so it is settled over the whole file, and
invisible marks (U+200E, U+202F) stand anywhere.
"""

from __future__ import annotations

import errno
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from twin.errors import UsageError
from twin.records import Conversation, Message

LAYOUT = "WhatsApp exports (text or zip)"
MAX_TEXT_BYTES = 1 << 30
MAX_RATIO = 200  # of a chat's text to its packed size; text packs to a fifth, a bomb to a thousandth
# What zipfile raises for bytes that are no zip.
_BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, RuntimeError, struct.error)
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
    r"<(?:media|medien|médias|multimedia)\b[^<>]*>|media omitted|<attached: [^<>]+>|[^\n]+\.\w{2,4} \(file attached\)"
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
_EDITED = re.compile(r"\s*<This message was edited>$")


def sniff(path: Path, head: bytes) -> bool:
    """Text with a WhatsApp line among its first ten, or a zip that holds one such text."""
    if path.suffix.lower() == ".zip":
        member = _member(path) if zipfile.is_zipfile(path) else None
        return member is not None
    if path.suffix.lower() != ".txt":
        return False
    lines = head.decode("utf-8", "ignore").translate(_INVISIBLE).splitlines()[:10]
    return any(_START.match(line) for line in lines)


def _member(path: Path) -> zipfile.ZipInfo | None:
    """Return the one text at the top of a chat's zip; its media are never looked at."""
    try:
        with zipfile.ZipFile(path) as archive:
            texts = [one for one in archive.infolist() if one.filename.lower().endswith(".txt")]
    except (*_BROKEN_ZIP, OSError):
        return None
    named = [one for one in texts if one.filename in ("_chat.txt", "chat.txt") or "WhatsApp" in one.filename]
    return named[0] if len(named) == 1 and "/" not in named[0].filename else None


def _text(path: Path) -> str:
    """Return the export's text, out of its zip where it is in one; nothing is unpacked to disk.

    Raises:
        UsageError: a zip with a password, one that is broken, or a text of a size that no chat has.
    """
    if path.suffix.lower() != ".zip":
        return path.read_text("utf-8-sig")
    member = _member(path)
    if member is None:
        raise UsageError(f"'{path}' holds no WhatsApp chat.", "Export the chat again.")
    if member.flag_bits & 1:
        raise UsageError(f"'{path}' has a password.", "Unpack it, and name the text inside.")
    if member.file_size > min(MAX_TEXT_BYTES, MAX_RATIO * max(member.compress_size, 1)):
        raise UsageError(
            f"'{member.filename}' in '{path}' would unpack to {member.file_size:,} bytes, more than a chat is.",
            "Unpack it yourself if you trust it, and name the text inside.",
        )
    try:
        with zipfile.ZipFile(path) as archive:
            data = archive.read(member)
    except (*_BROKEN_ZIP, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # a place before the file's beginning
            raise
        raise UsageError(f"'{path}' is a broken zip: {error}.", "Export the chat again.") from None
    return data.decode("utf-8-sig")


def read(path: Path, name: str, skipped: Counter[str]) -> Iterator[Conversation]:
    """Yield the chat as one conversation.

    Raises:
        UsageError: dates that fit no order of day, month and year; a zip that can't be read.
    """
    lines = [line.rstrip("\r") for line in _text(path).removesuffix("\n").split("\n")]
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
            started.append((at, [match["said"]], marked))
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
    # Where the day comes second, the clock has twelve hours, told in Latin letters.
    twelve_hours = any(match["after"] and match["after"].isascii() for match in matches)
    for order in ("mdy", "dmy", "ymd") if twelve_hours else ("dmy", "mdy", "ymd"):
        times = [at for match in matches if (at := _when(match, order))]
        backward = sum(later < earlier for earlier, later in pairwise(times))
        if times and (best is None or (-len(times), backward) < best[:2]):
            best = (-len(times), backward, order)
    return best[2] if best else None


def _when(match: re.Match[str], order: str) -> datetime | None:
    """Return the time of a line, or None where it is none: words that only look like a date carry a message on."""
    parts = {unit: int(match[name]) for unit, name in zip(order, ("one", "two", "three"), strict=True)}
    year = parts["y"] + 2000 if parts["y"] < 100 else parts["y"]
    hour = int(match["hour"])
    if half := match["before"] or match["after"]:
        hour = hour % 12 + (12 if re.fullmatch(_SECOND_HALF, half) else 0)
    try:
        return datetime(year, parts["m"], parts["d"], hour, int(match["minute"]), int(match["second"] or 0))
    except ValueError:
        return None
