r"""Conversations → the app's exchanges: what was said to the person, and what they replied.

    Bea  are you coming?   ┐ context   "are you coming?\nit starts at 8"
    Bea  it starts at 8    ┘
    Ada  on my way           response  "on my way"

Not obvious: ``twin.brain.importers.app_brain`` reads this back. Rows of one ``source`` are one chat to it, the other's
name is what follows the first colon, and it sorts by time only where each row has one. So a source is numbered and its
own colons are escaped, and a time that runs backwards is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import chain, groupby
from typing import NamedTuple

from twin.records import Conversation, Message


class Exchange(NamedTuple):
    """One row of the app's brain. ``context`` is empty where the person spoke first."""

    context: str
    response: str
    source: str
    at: datetime | None


def exchanges(conversations: Iterable[Conversation], person: str) -> Iterator[Exchange]:
    """Yield the exchanges of all conversations in their order; what nobody answered is none.

    Args:
        conversations: a long one may come in pieces that follow one another under one id.
        person: whose replies count.
    """
    for number, (own_id, pieces) in enumerate(groupby(conversations, key=lambda one: one.id), start=1):
        first = next(pieces)
        others = {message.speaker for message in first.messages} - {person}
        other = others.pop() if len(others) == 1 else ""
        source = f"{number} {_file_name(own_id)}:{_text(other)}"
        messages = chain(first.messages, (message for piece in pieces for message in piece.messages))
        yield from _pairs(messages, person, other, source)


def _pairs(messages: Iterable[Message], person: str, other: str, source: str) -> Iterator[Exchange]:
    """Yield one exchange a reply; messages that follow one another from one side are a line each."""
    asked: list[str] = []
    latest: datetime | None = None
    spoken = ((message, _text(message.text)) for message in messages)
    for own, run in groupby((pair for pair in spoken if pair[1]), key=lambda pair: pair[0].speaker == person):
        said = list(run)
        if not own:
            # In a group the words say whose they are.
            asked = [text if one.speaker == other else f"{_text(one.speaker)}: {text}" for one, text in said]
            continue
        at = said[0][0].at
        backwards = at is not None and latest is not None and _before(at, latest)
        latest = latest if backwards else at or latest
        yield Exchange("\n".join(asked), "\n".join(text for _, text in said), source, None if backwards else at)
        asked = []


def _before(one: datetime, other: datetime) -> bool:
    """Compare wall-clock times, with or without a zone."""
    return one.replace(tzinfo=None) < other.replace(tzinfo=None)


def _file_name(conversation_id: str) -> str:
    """Return the id without the folders that lead to its file, and without a colon."""
    return _text(conversation_id.replace("\\", "/").rpartition("/")[2]).replace("%", "%25").replace(":", "%3A")


def _text(value: str) -> str:
    """Return what JSON can carry: halves of characters (lone surrogates) are left out."""
    return value.encode("utf-8", "ignore").decode("utf-8").strip()
