"""OpenAI's data export of ChatGPT: ``conversations.json``, since 2026 ``conversations-000.json``, ``-001`` and so on.

OpenAI documents no layout; this is the one of github.com/mohamed-chs/convoviz, ``docs/dev/chatgpt-spec.md``: a list of
conversations, each with a ``mapping`` of nodes {id, parent, children, message {author {role}, content {content_type,
parts}, recipient, create_time}} and ``current_node``. Not obvious: a conversation is a tree. An edited question or a
second answer is a branch, and what was talked about last is the way from ``current_node`` up to the root; most nodes
are the program's own (tools, thoughts, instructions), and are no speech.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from twin.brain.document import Document
from twin.brain.reading import clean, epoch_time, json_items, pieces, starts_as_json
from twin.dropped import Dropped
from twin.records import ME, Conversation, Message

LAYOUT = "ChatGPT's data export"
HOLDS = (Conversation,)
_SPEAKERS = {"user": ME, "assistant": "ChatGPT"}
_SPEECH = ("text", "multimodal_text")
# Marks of sources, which the app shows as buttons.
_SOURCE = re.compile("\ue200[^\ue200\ue201]*\ue201|【\\d[^【】†]{0,40}†[^【】]{0,200}】")


def sniff(document: Document, head: bytes) -> bool:
    """A list whose first conversation begins with its tree."""
    keys = (b'"parent"', b'"children"', b'"author"', b'"current_node"')
    ours = b'"mapping"' in head and b'"message"' in head and any(key in head for key in keys)
    return ours and starts_as_json(document, head, b"[")


def read(document: Document, dropped: Dropped) -> Iterator[Conversation]:
    """Yield each conversation as it was left: the person is ``ME``, the model "ChatGPT".

    Raises:
        UsageError: JSON that does not parse, after the conversations before the break.
    """
    for number, talk in enumerate(json_items(document)):
        name = f"{document.name}/{number}"
        tree = talk.get("mapping") if isinstance(talk, dict) else None
        if not isinstance(tree, dict):
            dropped.add("broken ChatGPT conversation", where=name)
            continue
        way = _way(tree, talk.get("current_node"))
        yield from pieces(name, (message for key in way if (message := _message(tree[key], name, dropped))))
        taken = set(way)
        for key in tree:
            if key not in taken and _holds_something(tree[key]):
                dropped.add("a branch of a ChatGPT conversation", _text(tree[key]), name)


def _way(tree: dict[str, Any], last: Any) -> list[str]:
    """Return the keys from the root down to ``last``, or to the newest end of a branch where that is none."""
    key = last if isinstance(last, str) and last in tree else _newest_end(tree)
    way: dict[str, None] = {}
    while isinstance(key, str) and key in tree and key not in way:  # a broken tree may run in a circle
        way[key] = None
        node = tree[key]
        key = node.get("parent") if isinstance(node, dict) else None
    return list(way)[::-1]


def _newest_end(tree: dict[str, Any]) -> str | None:
    parents = {
        parent for node in tree.values() if isinstance(node, dict) and isinstance(parent := node.get("parent"), str)
    }
    ends = [key for key in tree if key not in parents] or list(tree)
    return max(reversed(ends), key=lambda key: _at(tree[key]) or datetime.min, default=None)


def _holds_something(node: Any) -> bool:
    """Say whether a node is more than a place in the tree, as the root is."""
    return not isinstance(node, dict) or node.get("message") is not None


def _told(node: Any) -> dict[str, Any]:
    message = node.get("message") if isinstance(node, dict) else None
    return message if isinstance(message, dict) else {}


def _at(node: Any) -> datetime | None:
    return epoch_time(_told(node).get("create_time"))


def _message(node: Any, where: str, dropped: Dropped) -> Message | None:
    """Return what the person or the model said, or None, counted by its reason."""
    if not _holds_something(node):
        return None
    text = _text(node)
    reason = _reason_to_leave_out(node, text)
    if reason:
        dropped.add(reason, text, where)
        return None
    return Message(_SPEAKERS[_told(node)["author"]["role"]], text, _at(node))


def _reason_to_leave_out(node: Any, text: str) -> str | None:
    message = _told(node)
    author, content, metadata = message.get("author"), message.get("content"), message.get("metadata")
    if not isinstance(author, dict) or not isinstance(content, dict):
        return "broken ChatGPT message"
    hidden = isinstance(metadata, dict) and metadata.get("is_visually_hidden_from_conversation") is True
    spoken = author.get("role") in list(_SPEAKERS) and content.get("content_type") in _SPEECH
    if hidden or not spoken or message.get("recipient") not in (None, "all"):  # to another recipient: a tool is called
        return "ChatGPT's own message"
    if text:
        return None
    return "media" if any(isinstance(part, dict) for part in _parts(node)) else "ChatGPT's own message"


def _parts(node: Any) -> list[Any]:
    content = _told(node).get("content")
    parts = content.get("parts") if isinstance(content, dict) else None
    return parts if isinstance(parts, list) else []


def _text(node: Any) -> str:
    """Return what is written in a node, and what was said in it aloud, which the app writes down."""
    texts = (
        part.get("text") if isinstance(part, dict) and part.get("content_type") == "audio_transcription" else part
        for part in _parts(node)
    )
    return clean(_SOURCE.sub("", "\n".join(text for text in map(clean, texts) if text)))
