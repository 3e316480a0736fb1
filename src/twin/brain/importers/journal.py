"""Markdown and text journals: one entry a file, or one entry a dated heading (``## 2024-03-05``, ``5 March 2024``).

Also read: Obsidian's and Logseq's daily notes (the date is the file's name), jrnl's text and its folders
(``2024/03/05.txt``, https://jrnl.sh/en/stable/journal-types/) and Day One's plain text. Not obvious: front matter is
read as lines of a key and a value (``date:``, ``title:``, ``created:``), which needs no YAML; month names are the
English ones; figures with the day first are read with points alone, since 05/03/2024 may be May.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from twin.brain.document import Document, as_text
from twin.brain.importers import whatsapp
from twin.dropped import Dropped
from twin.records import JournalEntry

LAYOUT = "Markdown and text journals"
HOLDS = (JournalEntry,)
# A date, a time, a name, a colon: a chat in a layout that no importer knows. As a journal it would put the words of
# the other side into the person's mouth.
_DATE_THERE, _TIME_THERE = r"\d{1,4}\D{1,3}\d{1,2}\D{1,3}\d{1,4}", r"\d{1,2}[:.]\d{2}"
_CHAT_LINE = re.compile(
    rf"[^\w#]{{0,3}}(?:{_DATE_THERE}\D{{1,12}}{_TIME_THERE}|{_TIME_THERE}\D{{1,12}}{_DATE_THERE})[^\n:]{{0,60}}?\D: ?\S"
)
_RULED = re.compile(r"={40,}\s*\n(?:Guild|Channel): ")  # DiscordChatExporter's text, which names who speaks in brackets
# jrnl's lines ("%F %R", "%F %r") look as chats' do, which have a name and a colon; WhatsApp's and signal-export's may
# have a comma, or seconds of 24 hours, too.
_STAMP = re.compile(
    r"\[\d{4}-\d\d-\d\d(?P<comma>,?) \d\d:\d\d(?P<rest>:\d\d(?: [AP]M)?)?\] (?P<name>[^:\n]{0,60}:(?: |$))?"
)

_HEADING = re.compile(r"#{1,6}\s+(.+)")
_KEY = re.compile(r"(\w[\w -]*?):(?:\s+(.*))?")
_FRONT_LINES = 200
_IMAGE = re.compile(r"(?:!\[[^\]]*\]\([^)]*\)|!\[\[[^\]]*\]\])\s*")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = (
    r"(?<![^\W\d_])(?P<month>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?"
    r"|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)(?![^\W\d_])\.?"
)
_DAY, _YEAR, _GAP = r"(?<!\d)(?P<day>\d{1,2})(?:st|nd|rd|th)?", r"(?P<year>\d{4})(?!\d)", r"[\s_,-]+"
_DATES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(?<!\d)(?P<year>\d{4})(?P<mark>[-_./])(?P<month>\d{2})(?P=mark)(?P<day>\d{2})(?!\d)",
        r"(?<!\d)(?P<year>(?:19|20)\d\d)(?P<month>0[1-9]|1[0-2])(?P<day>0[1-9]|[12]\d|3[01])(?!\d)",
        r"(?<!\d)(?P<day>\d{1,2})\.\s?(?P<month>\d{1,2})\.\s?(?P<year>\d{4})(?!\d)",
        rf"{_DAY}{_GAP}(?:of\s+)?{_MONTH}{_GAP}{_YEAR}",
        rf"{_MONTH}{_GAP}{_DAY}{_GAP}{_YEAR}",
        rf"(?<!\d)(?P<year>\d{{4}}){_GAP}{_MONTH}{_GAP}(?P<day>\d{{1,2}})(?!\d)",
    )
)
_FOLDERS = re.compile(r"(?P<year>\d{4})/(?P<month>\d{2})/(?P<day>\d{2})")
_CLOCK = re.compile(
    r"(?:T|,?\s+(?:at\s+)?)(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::\d{2})?(?:\s?(?P<half>[ap])\.?m\b)?", re.IGNORECASE
)
_BEFORE = re.compile(
    r"[\W_]*(?:(?:mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)(?:day)?[\s,.]+)?", re.IGNORECASE
)
_EDGES = " \t-–—:,|.[]*_"  # what stands between a heading's date and its words
_PERIOD = re.compile(
    rf"#{{1,6}}\s+(?:{_MONTH}(?:{_GAP}\d{{4}})?|\d{{4}}(?:-\d{{2}})?|week\s\d{{1,2}}\W*)", re.IGNORECASE
)
_DAY_ONE = re.compile(r"\tDate:\t(.+)")
_DAY_ONE_MORE = re.compile(r"\t[A-Z][\w ]*:\t.*")


class _Date(NamedTuple):
    """A date in a text: None for one that no calendar has; where it ends."""

    at: datetime | None
    end: int


class _Section(NamedTuple):
    """A dated heading (its date, its words) and the lines below it; what stands above all headings has no date."""

    date: _Date | None
    title: str
    lines: list[str]


def sniff(document: Document, head: bytes) -> bool:
    """Text files that are no chat export."""
    text = as_text(head)
    if document.suffix not in {".md", ".markdown", ".txt"} or _RULED.match(text):
        return False
    lines = [line for line in text.splitlines() if line.strip()]
    stamps = [match for line in lines if (match := _STAMP.match(line))]
    if stamps and _STAMP.match(lines[0]):
        if 2 * sum(match["name"] is not None for match in stamps) >= len(stamps):
            return False
        if not any(match["comma"] or len(match["rest"] or "") == 3 for match in stamps):
            return True
    return 3 * sum(bool(_CHAT_LINE.match(line)) for line in lines) < len(lines) and not whatsapp.sniff(document, head)


def read(document: Document, dropped: Dropped) -> Iterator[JournalEntry]:
    """Yield the entries; count those of which nothing but a heading is there, and lines that are cut.

    Of several entries in one file the first dated one is ``name#1``; what stands above it is ``name#0``.
    """
    front, lines = _front_matter(document.text(dropped).split("\n"))
    above, *dated = _sections(lines)
    above_is_empty = not any(line.strip() for line in above.lines)
    if len(dated) == 1 and not any(line.strip() for line in dated[0].lines):  # a date below its text
        dated = [dated[0]._replace(lines=above.lines)]
        above_is_empty = True
    if len(dated) > 1 or (dated and not above_is_empty):
        for number, section in enumerate([above, *dated]):
            if section.date or not above_is_empty:
                yield from _entry(f"{document.name}#{number}", section, {}, document, dropped)
    else:
        yield from _entry(document.name, dated[0] if dated else above, front, document, dropped)


def _entry(
    name: str, section: _Section, front: dict[str, str], document: Document, dropped: Dropped
) -> Iterator[JournalEntry]:
    """Yield the entry of a section, or count it.

    Its title is its heading's, else the front matter's, else its first line's if that is a heading. Its date is the
    front matter's ``date``, else the file's, else the heading's or the title's, else the front matter's ``created``;
    the file's is not that of its several entries.
    """
    title, lines = section.title, list(section.lines)
    told = front.get("title", "")
    if not title and not _is_date(told):
        title = told
    while lines and not lines[0].strip():
        lines.pop(0)
    if lines and (heading := _HEADING.fullmatch(lines[0].strip())) and title in ("", heading[1].strip()):
        title = heading[1].strip()
        lines.pop(0)
    for line in lines:
        if _IMAGE.fullmatch(line.strip()):
            dropped.add("media", line.strip(), document.name)
    text = "\n".join(line.rstrip() for line in lines if not _IMAGE.fullmatch(line.strip())).strip()
    if section.title and not text:  # a day of one line
        title, text = "", section.title
    if not text:
        dropped.add("journal without text", title, document.name)
        return
    found = [_date(front.get("date", "")), section.date, _date(title), _date(front.get("created", ""))]
    if name == document.name:
        found.insert(1, _file_date(document))
    at = next((date.at for date in found if date and date.at), None)
    if at is None and any(found):
        dropped.add("journal with an impossible date", title, document.name)
    yield JournalEntry(name, text, title, at)


# ---------------------------------------------------------------- parts of a file


def _front_matter(lines: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return the keys and values between two lines of ``---`` at the beginning, and the lines below them."""
    values: dict[str, str] = {}
    if not lines or lines[0].rstrip() != "---":
        return {}, lines
    for number, line in enumerate(lines[1:_FRONT_LINES], 1):
        if line.rstrip() in ("---", "..."):
            return values, lines[number + 1 :]
        if match := _KEY.fullmatch(line.rstrip()):
            values.setdefault(match[1].casefold(), (match[2] or "").strip().strip("'\""))
        elif line.strip() and line[0] not in " \t-#":
            break
    return {}, lines


def _sections(lines: list[str]) -> list[_Section]:
    """Return what stands above the first dated heading, then each dated heading with its lines."""
    sections = [_Section(None, "", [])]
    blank_before = True
    about_day = False  # Day One: weather, place, tags below the date
    for line in lines:
        if section := _dated(line, blank_before):
            sections.append(section)
            about_day = line.startswith("\t")
        elif not (about_day and _DAY_ONE_MORE.fullmatch(line)):
            about_day = False
            sections[-1].lines.append(line)
        blank_before = not line.strip()
    if len(sections) > 2:
        for section in sections:  # headings of months and years between the days
            section.lines[:] = [line for line in section.lines if not _PERIOD.fullmatch(line.strip())]
    return sections


def _dated(line: str, blank_before: bool) -> _Section | None:
    """Return the section that a line begins, or None: a heading's date, a date alone, jrnl's or Day One's."""
    heading = _HEADING.fullmatch(line.strip())
    day_one = _DAY_ONE.fullmatch(line)
    jrnl = line.startswith("[")
    told = heading[1] if heading else day_one[1] if day_one else line
    if not (heading or day_one or jrnl or (blank_before and len(line) < 60)) or not (opening := _opening(told)):
        return None
    date, rest = opening
    if day_one:
        return _Section(date, "", [])
    if jrnl and line[date.end :].startswith("] "):
        return _Section(date, "", [line[date.end + 1 :].strip().removesuffix(" *")])  # a star marks a favourite
    return _Section(date, rest, []) if heading or not rest else None


# ---------------------------------------------------------------- dates


def _date(text: str) -> _Date | None:
    """Return the first date anywhere in a text."""
    return next((_read(match) for pattern in _DATES if (match := pattern.search(text))), None)


def _opening(text: str) -> tuple[_Date, str] | None:
    """Return the date with which a text begins, a weekday or not before it, and the words behind it."""
    before = _BEFORE.match(text)
    start = before.end() if before else 0
    for pattern in _DATES:
        if match := pattern.match(text, start):
            date = _read(match)
            return date, text[date.end :].lstrip(_EDGES).rstrip(" \t:*_")
    return None


def _is_date(text: str) -> bool:
    opening = _opening(text)
    return opening is not None and not opening[1]


def _file_date(document: Document) -> _Date | None:
    """Return the date in a file's name, or in its folders."""
    folders = _FOLDERS.fullmatch("/".join(document.path.with_suffix("").parts[-3:]))
    return _read(folders) if folders else _date(document.path.stem)


def _read(match: re.Match[str]) -> _Date:
    """Return the date of a match, and the time that may stand behind it."""
    month = match["month"].casefold()
    number = int(month) if month.isdecimal() else _MONTHS.index(month[:3]) + 1
    clock = _CLOCK.match(match.string, match.end())
    hour, minute = (int(clock["hour"]), int(clock["minute"])) if clock else (0, 0)
    if clock and clock["half"]:
        hour = hour % 12 + (12 if clock["half"] in "Pp" else 0)
    try:
        at = datetime(int(match["year"]), number, int(match["day"]), hour, minute)
    except ValueError:
        at = None
    return _Date(at, (clock or match).end())
