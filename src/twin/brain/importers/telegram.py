"""Telegram Desktop's "Export chat history" or "Export Telegram data" as JSON: ``result.json``, one chat or all.

Layout (https://core.telegram.org/import-export): a chat has ``name``, ``id`` and ``messages``; a whole account has its
chats in ``chats.list``. Not obvious: a text is a string, or a list of strings and of objects with ``text`` (links,
mentions, bold words); what was forwarded is somebody else's words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from twin.brain.document import Document
from twin.brain.reading import clean, iso_time, json_items, pieces, starts_as_json
from twin.dropped import Dropped
from twin.errors import UsageError
from twin.records import Conversation, Message

LAYOUT = "Telegram Desktop's JSON export"
HOLDS = (Conversation,)


def sniff(document: Document, head: bytes) -> bool:
    """JSON that begins as one of the two exports does."""
    if not starts_as_json(document, head):
        return False
    whole_account = b'"personal_information"' in head or (b'"chats"' in head and b'"list"' in head)
    return whole_account or (b'"messages"' in head and b'"type"' in head and b'"date_unixtime"' in head)


def read(document: Document, dropped: Dropped) -> Iterator[Conversation]:
    """Yield each chat as a conversation.

    Raises:
        UsageError: JSON that does not parse (a truncated export, say), after the chats or messages before the break.
    """
    number = -1
    for number, chat in enumerate(_chats(document)):
        rows = chat.get("messages") if isinstance(chat, dict) else None
        if not isinstance(rows, list):
            dropped.add("broken Telegram chat", where=document.name)
            continue
        yield from _conversation(f"{document.name}/{number}", rows, dropped)
    if number < 0:
        yield from _conversation(document.name, json_items(document, "messages"), dropped)


def _chats(document: Document) -> Iterator[Any]:
    """Yield the chats of a whole account; of one chat's export none, though it be cut short."""
    seen = False
    try:
        for chat in json_items(document, "chats", "list"):
            seen = True
            yield chat
    except UsageError:
        if seen:
            raise


def _conversation(name: str, rows: Iterable[Any], dropped: Dropped) -> Iterator[Conversation]:
    yield from pieces(name, (message for row in rows if (message := _message(row, name, dropped))))


def _message(row: Any, where: str, dropped: Dropped) -> Message | None:
    """Return a person's own message, or None, counted by its reason."""
    text = clean(_text(row.get("text"))) if isinstance(row, dict) else ""
    reason = _reason_to_leave_out(row, text)
    if reason:
        dropped.add(reason, text, where)
        return None
    speaker = clean(row.get("from"))
    return Message(speaker or str(row.get("from_id") or "Deleted account"), text, iso_time(row.get("date")))


def _reason_to_leave_out(row: Any, text: str) -> str | None:
    if not isinstance(row, dict) or row.get("type") != "message":
        return "Telegram's own message"
    if row.get("forwarded_from") is not None or row.get("saved_from") is not None:
        return "forward"
    if row.get("via_bot") is not None:
        return "a bot's words"
    return None if text else "media"


def _text(value: Any) -> str:
    parts = value if isinstance(value, list) else [value]
    texts = (part.get("text") if isinstance(part, dict) else part for part in parts)
    return "".join(text for text in texts if isinstance(text, str))
