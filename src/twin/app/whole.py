"""The whole brain as the app's JSON, and what its exchanges are like: both read it once, and hold one exchange."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import orjson

from twin import __version__
from twin.app import models
from twin.app.exchanges import Exchange, exchanges
from twin.app.source import BrainSource

PIECE_BYTES = 256 << 10  # of a streamed answer: each costs a hop between threads


def brain_json(source: BrainSource) -> Iterator[bytes]:
    """Yield the JSON of ``models.BrainExport``, an exchange at a time."""
    person = source.personality
    head = {
        "format_version": "1.0",
        "app_name": "twin",
        "exported_at": datetime.now(UTC).isoformat(),
        "metadata": {"twin": __version__},
        "personality_profile": {
            "name": source.person,
            "common_phrases": person.common_phrases,
            "emoji_patterns": person.emoji,
            "vocabulary": [],
            "avg_message_length": None,
            "typing_quirks": person.typing_quirks,
            "tone_markers": person.tone,
            "facts": person.facts,
            "response_examples": [{"context": one, "response": two} for one, two in person.response_examples],
        },
    }
    yield orjson.dumps(head).removesuffix(b"}") + b',"training_examples":['
    for number, pair in enumerate(exchanges(source.conversations(), source.person)):
        at = pair.at.isoformat() if pair.at else None
        row = {"context": pair.context, "response": pair.response, "source": pair.source, "timestamp": at}
        yield (b"," if number else b"") + orjson.dumps(row)
    yield b"]}"


def in_pieces(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in fewer pieces."""
    held = bytearray()
    for part in parts:
        held += part
        if len(held) >= PIECE_BYTES:
            yield bytes(held)
            held.clear()
    yield bytes(held)


def analysis(pairs: Iterable[Exchange]) -> models.Analysis:
    """Return counts, lengths and the first and last time."""
    count = without = asked = replied = longest = 0
    times: list[datetime] = []
    for pair in pairs:
        count += 1
        without += not pair.context
        asked += len(pair.context)
        replied += len(pair.response)
        longest = max(longest, len(pair.response))
        if pair.at:
            at = pair.at.replace(tzinfo=None)
            times = [min([*times[:1], at]), max([*times[1:], at])]
    return models.Analysis(
        exchanges=count,
        without_context=without,
        mean_context_characters=asked / max(1, count - without),
        mean_response_characters=replied / max(1, count),
        longest_response_characters=longest,
        first=times[0].isoformat() if times else None,
        last=times[1].isoformat() if times else None,
    )
