"""Instagram's and Messenger's "Download your information" as JSON: a ``message_1.json`` a chat.

Layout: ``participants`` [{name}], ``messages`` [{sender_name, timestamp_ms, content, …}], the newest first, ``title``,
``thread_path``; a long chat goes on in ``message_2.json``, which is older. Not obvious: the exporter writes each byte
of the UTF-8 text as one escaped character, so that ``é`` arrives as ``Ã©``; read as Latin-1 the bytes are whole again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from twin.brain.document import Document
from twin.brain.reading import clean, epoch_time, json_items, pieces, starts_as_json
from twin.dropped import Dropped
from twin.records import Conversation, Message

LAYOUT = "Instagram's and Messenger's JSON"
HOLDS = (Conversation,)
# What the apps say in a person's name, in English; in other languages such lines are read as speech.
_APP_SPEAKS = re.compile(
    r"(?:Liked a message|Reacted \S{1,12} to your message|.{1,60} (?:sent an attachment|missed your (?:video )?call)"
    r"|You missed a (?:video )?call from .{1,60})\.?"
)
_NOT_TYPED = ("photos", "videos", "audio_files", "gifs", "sticker", "files", "share", "call_duration")


def sniff(document: Document, head: bytes) -> bool:
    """JSON with participants and messages."""
    ours = b'"participants"' in head and b'"messages"' in head and b'"sender_name"' in head
    return starts_as_json(document, head) and ours


def read(document: Document, dropped: Dropped) -> Iterator[Conversation]:
    """Yield the chat as one conversation, the oldest message first.

    Raises:
        UsageError: JSON that does not parse, after the messages before the break.
    """
    messages: list[Message] = []
    try:
        for row in json_items(document, "messages"):
            if message := _message(row, document.name, dropped):
                messages.append(message)
    finally:
        messages.reverse()
        if all(message.at for message in messages):
            messages.sort(key=lambda message: message.at or datetime.min)
        yield from pieces(document.name, messages)


def _message(row: Any, where: str, dropped: Dropped) -> Message | None:
    if not isinstance(row, dict) or not isinstance(row.get("sender_name"), str):
        dropped.add("broken Instagram or Messenger message", where=where)
        return None
    content = row.get("content")
    text = clean(mended(content)) if isinstance(content, str) else ""
    if row.get("is_unsent") is True or _APP_SPEAKS.fullmatch(text):
        dropped.add("Instagram's or Messenger's own message", text, where)
        return None
    if not text:
        known = any(key in row for key in _NOT_TYPED)
        dropped.add("media" if known else "Instagram's or Messenger's own message", where=where)
        return None
    return Message(clean(mended(row["sender_name"])), text, epoch_time(row.get("timestamp_ms"), 1000))


def mended(text: str) -> str:
    """Return the text whose UTF-8 bytes were written as one character each; other text stays as it is."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except (UnicodeEncodeError, UnicodeDecodeError):
        return text
