"""The brain JSON of the Chirag Clone app: ``GET /api/training/export`` and ``GET /api/cognitive/core-memories``.

Not obvious: the app stores exchanges (context, response), one a row; rows with one ``source`` in the order of their
``timestamp`` are one chat again. Every field is untrusted: a row with a wrong type is left out and counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from twin.brain.document import Document
from twin.brain.reading import iso_time, json_object, starts_as_json
from twin.dropped import Dropped
from twin.records import ME, Conversation, Memory, Message, Personality

LAYOUT = "the app's brain JSON and core memories JSON"
HOLDS = (Conversation, Memory, Personality)
# What the app calls the sources of replies that its clone gave, not the person.
_BOT_SOURCES = {"bot", "clone", "ai", "auto", "auto_reply", "autopilot", "assistant", "generated"}

_KEYS = re.compile(rb'"(?:personality_profile"\s*:\s*\{|(?:training_examples|memories)"\s*:\s*\[)')


def sniff(document: Document, head: bytes) -> bool:
    """JSON whose beginning has one of the app's keys."""
    return starts_as_json(document, head) and bool(_KEYS.search(head))


def read(document: Document, dropped: Dropped) -> Iterator[Conversation | Memory | Personality]:
    """Yield the profile, one conversation a source, and memories.

    Raises:
        UsageError: JSON that does not parse (a truncated download, say).
    """
    data = json_object(document)
    profile = data.get("personality_profile")
    person = ""
    if isinstance(profile, dict):
        personality = _personality(profile)
        person = personality.name
        yield personality
    rows = data.get("training_examples")
    if isinstance(rows, list):
        yield from _conversations(rows, document.name, person or ME, dropped)
    memories = data.get("memories")
    if isinstance(memories, list):
        yield from _memories(memories, document.name, dropped)


def _strings(value: Any) -> tuple[str, ...]:
    """Return the texts of a list, or a mapping's keys by falling count."""
    if isinstance(value, dict):
        weighed = [(key, count) for key, count in value.items() if isinstance(count, int | float)]
        return tuple(key for key, _ in sorted(weighed, key=lambda pair: -pair[1]) if key.strip())
    if isinstance(value, list):
        return tuple(item.strip() for item in value if isinstance(item, str) and item.strip())
    return ()


def _personality(profile: dict[str, Any]) -> Personality:
    name = profile.get("name")
    examples = profile.get("response_examples")
    pairs = [item for item in examples if isinstance(item, dict)] if isinstance(examples, list) else []
    return Personality(
        name=name.strip() if isinstance(name, str) else "",
        common_phrases=_strings(profile.get("common_phrases")),
        emoji=_strings(profile.get("emoji_patterns")),
        typing_quirks=_strings(profile.get("typing_quirks")),
        tone=_strings(profile.get("tone_markers")),
        facts=_strings(profile.get("facts")),
        response_examples=tuple(
            (pair["context"], pair["response"])
            for pair in pairs
            if isinstance(pair.get("context"), str) and isinstance(pair.get("response"), str)
        ),
    )


def _conversations(rows: list[Any], name: str, person: str, dropped: Dropped) -> Iterator[Conversation]:
    chats: dict[str, list[tuple[datetime | None, str, str]]] = {}
    for row in rows:
        texts = (row.get("context"), row.get("response")) if isinstance(row, dict) else (None, None)
        if not (isinstance(texts[0], str) and isinstance(texts[1], str)):
            dropped.add("broken app example", where=name)
            continue
        source = row.get("source")
        chat = source if isinstance(source, str) and source else "app"
        if chat.casefold().partition(":")[0] in _BOT_SOURCES:
            dropped.add("the app's own reply", texts[1], name)
            continue
        chats.setdefault(chat, []).append((iso_time(row.get("timestamp")), texts[0], texts[1]))
    for chat, exchanges in chats.items():
        if all(at is not None for at, _, _ in exchanges):
            exchanges.sort(key=lambda exchange: exchange[0] or datetime.min)
        other = chat.partition(":")[2].strip() or "someone"
        messages = [
            Message(speaker, text, at)
            for at, context, response in exchanges
            for speaker, text in ((other, context), (person, response))
            if text.strip()
        ]
        if messages:
            yield Conversation(f"{name}/{chat}", tuple(messages))


def _memories(rows: list[Any], name: str, dropped: Dropped) -> Iterator[Memory]:
    for number, row in enumerate(rows):
        text = row.get("memory") if isinstance(row, dict) else None
        if not isinstance(text, str) or not text.strip():
            dropped.add("broken app memory", where=name)
            continue
        importance, own_id = row.get("importance"), row.get("id")
        category = row.get("category")
        yield Memory(
            id=f"{name}#{own_id}" if isinstance(own_id, int | str) else f"{name}#row{number}",
            text=text.strip(),
            category=category if isinstance(category, str) else "facts",
            importance=float(importance) if isinstance(importance, int | float) else 0.5,
            at=iso_time(row.get("created_at")),
        )
