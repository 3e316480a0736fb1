"""Instagram's and Messenger's "Download your information" as JSON: a ``message_1.json`` a chat.

Layout: ``participants`` [{name}], ``messages`` [{sender_name, timestamp_ms, content, …}], the newest first, ``title``,
``thread_path``; a long chat goes on in ``message_2.json``, which is older. Not obvious: the exporter writes each byte
of the UTF-8 text as one escaped character, so that ``é`` arrives as ``Ã©``; read as Latin-1 the bytes are whole again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from twin.brain.reading import json_object
from twin.records import Conversation, Message

LAYOUT = "Instagram's and Messenger's JSON"
# What the apps say in a person's name, in English; in other languages such lines are read as speech.
_APP_SPEAKS = re.compile(
    r"(?:Liked a message|Reacted \S{1,12} to your message|.{1,60} (?:sent an attachment|missed your (?:video )?call)"
    r"|You missed a (?:video )?call from .{1,60})\.?"
)
_NOT_TYPED = ("photos", "videos", "audio_files", "gifs", "sticker", "files", "share", "call_duration")


def sniff(path: Path, head: bytes) -> bool:
    """JSON with participants and messages."""
    if path.suffix.lower() != ".json" or not head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return False
    return b'"participants"' in head and b'"messages"' in head and b'"date_unixtime"' not in head


def read(path: Path, name: str, skipped: Counter[str]) -> Iterator[Conversation]:
    """Yield the chat as one conversation, the oldest message first.

    Raises:
        UsageError: JSON that does not parse.
    """
    data = json_object(path)
    rows = data.get("messages")
    if not isinstance(rows, list):
        skipped["broken Instagram or Messenger chat"] += 1
        return
    messages = [message for row in reversed(rows) if (message := _message(row, skipped))]
    if all(message.at for message in messages):
        messages.sort(key=lambda message: message.at or datetime.min)
    if messages:
        yield Conversation(name, tuple(messages))


def _message(row: Any, skipped: Counter[str]) -> Message | None:
    if not isinstance(row, dict) or not isinstance(row.get("sender_name"), str):
        skipped["broken Instagram or Messenger message"] += 1
        return None
    content = row.get("content")
    text = mended(content).strip() if isinstance(content, str) else ""
    if row.get("is_unsent") is True or _APP_SPEAKS.fullmatch(text):
        skipped["Instagram's or Messenger's own message"] += 1
        return None
    if not text:
        known = any(key in row for key in _NOT_TYPED)
        skipped["media" if known else "Instagram's or Messenger's own message"] += 1
        return None
    return Message(mended(row["sender_name"]).strip(), text, _when(row.get("timestamp_ms")))


def mended(text: str) -> str:
    """Return the text whose UTF-8 bytes were written as one character each; other text stays as it is."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except (UnicodeEncodeError, UnicodeDecodeError):
        return text


def _when(value: Any) -> datetime | None:
    try:
        return datetime.fromtimestamp(value / 1000, UTC).replace(tzinfo=None) if isinstance(value, int) else None
    except (ValueError, OverflowError, OSError):
        return None
