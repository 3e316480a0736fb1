"""Conversations → sessions (cut at silences) → one example a reply, with the turns before it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from twin.records import Brain, Conversation, Example, Message, Turn
from twin.settings import ExportSettings


def seconds(at: datetime | None) -> float | None:
    """Return seconds since 1970; None without a date, or for the zero dates that some programs write."""
    try:
        return at.timestamp() if at else None
    except (ValueError, OverflowError, OSError):
        return None


def sessions(messages: Sequence[Message], gap: timedelta) -> Iterator[tuple[int, list[Message]]]:
    """Yield runs of messages without a silence of ``gap`` between them, each with the number of its first message."""
    start = 0
    for number in range(1, len(messages) + 1):
        if number < len(messages):
            before, after = messages[number - 1].at, messages[number].at
            if before is None or after is None or after - before < gap:
                continue
        yield start, list(messages[start:number])
        start = number


def turns_of(messages: Sequence[Message], person: str) -> list[tuple[Turn, int, int]]:
    """Return turns with the numbers of their first and last message.

    Messages that follow one another from the same side become one turn, a line each: bursts stay as they were typed.
    With several other speakers each of their messages begins with who said it.
    """
    others = {message.speaker for message in messages} - {person}
    turns: list[tuple[Turn, int, int]] = []
    for number, message in enumerate(messages):
        own = message.speaker == person
        text = message.text if own or len(others) < 2 else f"{message.speaker}: {message.text}"
        role = "assistant" if own else "user"
        if turns and turns[-1][0].role == role:
            turn, first, _ = turns[-1]
            turns[-1] = (Turn(turn.role, f"{turn.content}\n{text}"), first, number)
        else:
            turns.append((Turn("assistant" if own else "user", text), number, number))
    return turns


def _examples(
    conversation: Conversation, person: str, settings: ExportSettings, dropped: Counter[str]
) -> Iterator[tuple[Example, float | None]]:
    gap = timedelta(hours=settings.session_gap_hours)
    for start, messages in sessions(conversation.messages, gap):
        session_id = f"{conversation.id}#{start}"
        at = seconds(messages[0].at)
        turns = turns_of(messages, person)
        others = sorted({message.speaker for message in messages} - {person})
        other = others[0] if len(others) == 1 else ""
        for place, (turn, first, last) in enumerate(turns):
            if turn.role != "assistant":
                continue
            if place == 0:
                dropped["nothing was said before it"] += 1
                continue
            begin = max(0, place - settings.context_turns)
            if turns[begin][0].role == "assistant":  # a prompt begins with the other side
                begin += 1
            history = tuple(earlier for earlier, _, _ in turns[begin:place])
            row_id = f"{conversation.id}:{start + first}-{start + last}"
            yield Example(row_id, session_id, "chat", (*history, turn), other), at


def conversation_examples(
    brain: Brain, settings: ExportSettings, dropped: Counter[str]
) -> Iterator[tuple[Example, float | None]]:
    """Yield one example a reply of the person, with the time its session began (seconds since 1970, or None)."""
    for conversation in brain.conversations:
        yield from _examples(conversation, brain.person, settings, dropped)
