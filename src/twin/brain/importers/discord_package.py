"""Discord's data package ("Request all of my Data"): ``messages.json``, before 2023 ``messages.csv``, one a channel.

Layout (https://support.discord.com/hc/en-us/articles/360004957991; the keys as github.com/purarue/discord_data reads
them): ``messages/c<ID>/channel.json`` beside a list of rows with ``ID``, ``Timestamp`` (UTC), ``Contents`` and
``Attachments``. Not obvious: it holds what the person sent and nothing that they answered; the folder is ``Messages``
since 2025, or that word in the person's language, so that the files beside one another tell what they are; and the
rows come in any order, which their ids (growing with time) put right.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any

from twin.brain.document import Document, as_text
from twin.brain.importers.discord import readable
from twin.brain.reading import clean, iso_time, json_items, pieces, starts_as_json
from twin.dropped import Dropped
from twin.errors import UsageError
from twin.records import ME, Conversation, Message

LAYOUT = "Discord's data package"
HOLDS = (Conversation,)


def sniff(document: Document, head: bytes) -> bool:
    """A file of that name with the package's keys, or, where a channel is empty, beside its ``channel.json``."""
    name = document.path.name.lower()
    if name == "messages.csv":
        return as_text(head).lower().startswith("id,timestamp,contents")
    if name != "messages.json" or not starts_as_json(document, head, b"["):
        return False
    keys = head.lower()
    return (b'"timestamp"' in keys and b'"contents"' in keys) or document.sibling("channel.json") is not None


def read(document: Document, dropped: Dropped) -> Iterator[Conversation]:
    """Yield the channel as one conversation of the person alone, the oldest message first.

    Raises:
        UsageError: JSON or CSV that does not parse, after the messages before the break.
    """
    said: list[tuple[int | None, Message]] = []
    try:
        for row in _csv_rows(document) if document.suffix == ".csv" else json_items(document):
            # Some packages have their keys in small letters.
            row = {str(key).lower(): value for key, value in row.items()} if isinstance(row, dict) else None  # noqa: PLW2901
            if message := _message(row, document.name, dropped):
                said.append((_number(row and row.get("id")), message))
    finally:
        if all(number is not None for number, _ in said):
            said.sort(key=lambda pair: pair[0] or 0)
        yield from pieces(document.name, (message for _, message in said))


def _csv_rows(document: Document) -> Iterator[dict[str, Any]]:
    try:
        yield from csv.DictReader(f"{line}\n" for line in document.lines())
    except csv.Error as error:
        raise UsageError(f"{document} is broken CSV: {error}.", "It may be cut short: export it again.") from None


def _message(row: dict[str, Any] | None, where: str, dropped: Dropped) -> Message | None:
    if row is None or not isinstance(row.get("contents"), str):
        dropped.add("broken Discord message", where=where)
        return None
    text = clean(readable(clean(row["contents"]), {}))
    if not text:  # calls, joins and the like have neither words nor files
        dropped.add("media" if row.get("attachments") else "Discord's own message", where=where)
        return None
    return Message(ME, text, iso_time(row.get("timestamp")))


def _number(value: Any) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 20:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
