"""The brain JSON of the Chirag Clone app: ``GET /api/training/export`` and ``GET /api/cognitive/core-memories``.

Not obvious: the app stores exchanges (context, response), one a row; rows with one ``source`` in the order of their
``timestamp`` are one chat again. Every field is untrusted: a row with a wrong type is left out and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from twin.brain.reading import iso_time, json_object
from twin.records import Conversation, Memory, Message, Personality

LAYOUT = "the app's brain JSON and core memories JSON"


def sniff(path: Path, head: bytes) -> bool:
    """JSON whose beginning has one of the app's keys."""
    if path.suffix.lower() != ".json" or not head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return False
    return any(key in head for key in (b'"personality_profile"', b'"training_examples"', b'"memories"'))


def read(path: Path, name: str, skipped: Counter[str]) -> Iterator[Conversation | Memory | Personality]:
    """Yield the profile, one conversation a source, and memories.

    Raises:
        UsageError: JSON that does not parse (a truncated download, say).
    """
    data = json_object(path)
    profile = data.get("personality_profile")
    person = ""
    if isinstance(profile, dict):
        personality = _personality(profile)
        person = personality.name
        yield personality
    rows = data.get("training_examples")
    if isinstance(rows, list):
        yield from _conversations(rows, name, person or "me", skipped)
    memories = data.get("memories")
    if isinstance(memories, list):
        yield from _memories(memories, name, skipped)


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


def _conversations(rows: list[Any], name: str, person: str, skipped: Counter[str]) -> Iterator[Conversation]:
    chats: dict[str, list[tuple[datetime | None, str, str]]] = {}
    for row in rows:
        texts = (row.get("context"), row.get("response")) if isinstance(row, dict) else (None, None)
        if not (isinstance(texts[0], str) and isinstance(texts[1], str)):
            skipped["broken app example"] += 1
            continue
        source = row.get("source")
        chat = source if isinstance(source, str) and source else "app"
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


def _memories(rows: list[Any], name: str, skipped: Counter[str]) -> Iterator[Memory]:
    for number, row in enumerate(rows):
        text = row.get("memory") if isinstance(row, dict) else None
        if not isinstance(text, str) or not text.strip():
            skipped["broken app memory"] += 1
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
