"""Conversations → sessions (cut at silences) → turns → one row a reply, with the turns before it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import accumulate
from typing import NamedTuple

from twin.records import Conversation, Message, Role

MAX_SESSION = 20_000  # messages, about: a group that is never silent would be one session, held whole in memory


class Session(NamedTuple):
    """Messages without a long silence between them.

    Args:
        conversation_id: the chat they are of.
        start: the number of the first message in its chat.
        messages: they follow one another.
    """

    conversation_id: str
    start: int
    messages: Sequence[Message]

    @property
    def id(self) -> str:
        """The unit of the split."""
        return f"{self.conversation_id}#{self.start}"


class SaidTurn(NamedTuple):
    """What one side said before the other answered: a role, its words, the numbers of its first and last message."""

    role: Role
    content: str
    first: int
    last: int


def seconds(at: datetime | None) -> float | None:
    """Return seconds since 1970; None without a date, or for the zero dates that some programs write."""
    try:
        return at.timestamp() if at else None
    except (ValueError, OverflowError, OSError):
        return None


def sessions(conversations: Iterable[Conversation], gap: timedelta) -> Iterator[Session]:
    """Yield runs of messages without a silence of ``gap`` between them.

    The pieces of one chat are joined where the next begins with the message after the last; a hidden message between
    them ends the session, and so does the end of a piece once it holds 20,000 messages.
    """
    name, start, held = "", 0, list[Message]()
    for piece in conversations:
        if held and (piece.id != name or piece.start != start + len(held) or len(held) >= MAX_SESSION):
            yield Session(name, start, held)
            held = []
        if not held:
            name, start = piece.id, piece.start
        before = held[-1].at if held else None
        for message in piece.messages:
            after = message.at
            if before is not None and after is not None and after - before >= gap:
                yield Session(name, start, held)
                start, held = start + len(held), []
            held.append(message)
            before = after
    if held:
        yield Session(name, start, held)


def turns_of(messages: Sequence[Message], person: str) -> list[SaidTurn]:
    """Return turns with the numbers of their first and last message.

    Messages that follow one another from the same side become one turn, a line each: bursts stay as they were typed.
    With several other speakers each of their messages begins with who said it. Empty messages say nothing.
    """
    others = {message.speaker for message in messages}
    others.discard(person)
    group = len(others) > 1
    turns: list[SaidTurn] = []
    lines: list[str] = []
    role: Role | None = None
    first = last = 0
    for number, (speaker, text, _) in enumerate(messages):
        own: Role = "assistant" if speaker == person else "user"
        if own != role:
            if role:
                turns.append(SaidTurn(role, "\n".join(lines), first, last))
            role, lines, first = own, [], number
        last = number
        if text:
            lines.append(f"{speaker}: {text}" if group and own == "user" else text)
    if role:
        turns.append(SaidTurn(role, "\n".join(lines), first, last))
    return turns


def context(turns: Sequence[SaidTurn], tokens: Sequence[int], most_turns: int, most_tokens: int) -> list[int]:
    """Return for each turn where its prompt begins: ``turns[begin:place]`` are what was said before it.

    A prompt begins with the other side, holds at most ``most_turns`` turns, and more than its last turn only while it
    stays within ``most_tokens``.

    Args:
        turns: of one session.
        tokens: of each turn, by estimate.
        most_turns: how many may stand before a reply.
        most_tokens: how many of them may stand before a reply.
    """
    if len(turns) <= most_turns and sum(tokens) <= most_tokens:  # everything before, from the other side's first turn
        first = int(turns[0].role == "assistant")
        return [min(first, max(0, place - 1)) for place in range(len(turns))]
    costs = [0, *accumulate(tokens)]
    begins = []
    for place in range(len(turns)):
        begin = max(0, place - most_turns, bisect_left(costs, costs[place] - most_tokens))
        if begin < place and turns[begin].role == "assistant":
            begin += 1
        begins.append(min(begin, max(0, place - 1)))
    return begins
