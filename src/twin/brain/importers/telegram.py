"""Telegram Desktop's "Export chat history" or "Export Telegram data" as JSON: ``result.json``, one chat or all.

Layout (https://core.telegram.org/import-export): a chat has ``name``, ``id`` and ``messages``; a whole account has its
chats in ``chats.list``. Not obvious: a text is a string, or a list of strings and of objects with ``text`` (links,
mentions, bold words); what was forwarded is somebody else's words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twin.brain.reading import iso_time, json_object
from twin.records import Conversation, Message

LAYOUT = "Telegram Desktop's JSON export"


def sniff(path: Path, head: bytes) -> bool:
    """JSON that begins as one of the two exports does."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if path.suffix.lower() != ".json" or not start.startswith(b"{"):
        return False
    whole_account = b'"personal_information"' in head or (b'"chats"' in head and b'"list"' in head)
    return whole_account or (b'"messages"' in head and b'"type"' in head and b'"date_unixtime"' in head)


def read(path: Path, name: str, skipped: Counter[str]) -> Iterator[Conversation]:
    """Yield each chat as a conversation.

    Raises:
        UsageError: JSON that does not parse (a truncated export, say).
    """
    data = json_object(path)
    chats = data.get("chats")
    listed = chats.get("list") if isinstance(chats, dict) else None
    for number, chat in enumerate(listed if isinstance(listed, list) else [data]):
        rows = chat.get("messages") if isinstance(chat, dict) else None
        if not isinstance(rows, list):
            skipped["broken Telegram chat"] += 1
            continue
        messages = [message for row in rows if (message := _message(row, skipped))]
        if messages:
            yield Conversation(f"{name}/{number}" if listed is not None else name, tuple(messages))


def _message(row: Any, skipped: Counter[str]) -> Message | None:
    """Return a person's own message, or None, counted by its reason."""
    if not isinstance(row, dict) or row.get("type") != "message":
        skipped["Telegram's own message"] += 1
        return None
    if row.get("forwarded_from") is not None or row.get("saved_from") is not None:
        skipped["forward"] += 1
        return None
    if row.get("via_bot") is not None:
        skipped["a bot's words"] += 1
        return None
    text = _text(row.get("text")).strip()
    if not text:
        skipped["media"] += 1
        return None
    speaker = row.get("from")
    who = speaker if isinstance(speaker, str) and speaker.strip() else str(row.get("from_id") or "Deleted account")
    return Message(who, text, iso_time(row.get("date")))


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(_text(part.get("text")) if isinstance(part, dict) else _text(part) for part in value)
    return ""
