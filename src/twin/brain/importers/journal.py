"""Markdown and text journals: one file an entry; its date is in the file's name, its title is the first heading."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from twin.brain.importers import whatsapp
from twin.records import JournalEntry

LAYOUT = "Markdown and text journals"
_DATE = re.compile(r"(?<!\d)(\d{4})-(\d{2})-(\d{2})(?!\d)")
# A date, a time, a name, a colon: a chat in a layout that no importer knows. As a journal it would put the words of
# the other side into the person's mouth.
_DATE_THERE, _TIME_THERE = r"\d{1,4}\D{1,3}\d{1,2}\D{1,3}\d{1,4}", r"\d{1,2}[:.]\d{2}"
_CHAT_LINE = re.compile(
    rf"\W{{0,3}}(?:{_DATE_THERE}\D{{1,12}}{_TIME_THERE}|{_TIME_THERE}\D{{1,12}}{_DATE_THERE})[^\n:]{{0,60}}?\D: ?\S"
)
_HEADING = re.compile(r"#{1,6}\s+(.+)")


def sniff(path: Path, head: bytes) -> bool:
    """Text files that are no chat export."""
    if path.suffix.lower() not in {".md", ".markdown", ".txt"} or whatsapp.sniff(path, head):
        return False
    lines = [line for line in head.decode("utf-8", "ignore").splitlines() if line.strip()]
    return 3 * sum(bool(_CHAT_LINE.match(line)) for line in lines) < len(lines)


def read(path: Path, name: str, skipped: Counter[str]) -> Iterator[JournalEntry]:
    """Yield the entry, or count it when nothing but a heading is in it."""
    lines = path.read_text("utf-8-sig").splitlines()
    while lines and not lines[0].strip():
        lines.pop(0)
    title = ""
    if lines and (heading := _HEADING.fullmatch(lines[0].strip())):
        title = heading[1].strip()
        lines.pop(0)
    text = "\n".join(line.rstrip() for line in lines).strip()
    if not text:
        skipped["journal without text"] += 1
        return
    at = None
    if found := _DATE.search(path.stem):
        try:
            at = datetime(*(int(part) for part in found.groups()))  # type: ignore[arg-type]
        except ValueError:
            skipped["journal with an impossible date"] += 1
    yield JournalEntry(name, text, title, at)
