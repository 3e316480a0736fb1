"""Messages of the shape the app sends: its own system prompt, another one each time, ten turns of history, a question.

The system message has the personality first; then, each only when the app has it, what ``PARTS`` names, in this order.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from twin.records import Brain, Example, Turn

PARTS = ("mood", "examples", "memories", "facts", "search", "picture")
HISTORY = 10
_MOODS = {
    "content": "Let it show in small things. Keep it light.",
    "tired": "Answer more briefly than usual, and do not explain it.",
    "excited": "Be quicker to joke, and ask something back.",
    "annoyed": "Be short, but never unkind.",
}
_SEARCH = (
    "The harbour authority said on Tuesday that the late ferry will run again from March, weather permitting.",
    "A review of seven portable typewriters finds that the quiet ones were never quiet, and that owners do not mind.",
    "Town clocks lose a minute a month in damp weather; the oil is to blame more often than the spring.",
)
_PICTURE = (
    "A photograph of a kitchen table by a window. On it stand a grey typewriter with its cover off, a mug, a "
    "screwdriver and a saucer of small screws. A cat is asleep on the newspaper beside them."
)


def system_message(brain: Brain, examples: Sequence[Example], number: int, parts: int) -> str:
    """Return the system message of request ``number``: the personality, and the first ``parts`` of ``PARTS``.

    Args:
        brain: whose twin is asked.
        examples: rows that five examples are drawn from; never held-out ones, which would tell the answer.
        number: of the request; another one draws another mood, other examples, memories and facts.
        parts: 0 to 6.
    """
    draw, who = random.Random(number), brain.personality  # noqa: S311 - the same request each time
    name = who.name or brain.person
    shown = draw.sample(list(examples), 5)
    recalled = draw.sample(list(brain.memories), min(12, len(brain.memories)))
    mood = draw.choice(sorted(_MOODS))
    sections = [
        f"You are the digital clone of {name}. You answer exactly as {name} would, in the first person. Never say that "
        f"you are an AI and never break character.\n\n## Personality\nTone: {', '.join(who.tone)}\n"
        f"Common phrases: {', '.join(who.common_phrases)}\nEmoji: {' '.join(who.emoji)}\n"
        f"Typing style: {'; '.join(who.typing_quirks)}",
        f"## Current mood\n{name} is feeling {mood} right now. {_MOODS[mood]}",
        "## Examples of how you answer\n"
        + "\n\n".join(f"Them: {row.turns[-2].content}\nYou: {row.reply}" for row in shown),
        "## Relevant memories\n" + "\n".join(f"- {memory.text} ({memory.category})" for memory in recalled),
        "## Known facts\n" + "\n".join(f"{name} -> knows -> {fact}" for fact in draw.sample(who.facts, len(who.facts))),
        "## Search results\n" + "\n".join(f"[{at}] {text}" for at, text in enumerate(_SEARCH, start=1)),
        f"## The picture they sent\n{_PICTURE}",
    ]
    return "\n\n".join(sections[: parts + 1])


def app_request(
    brain: Brain, examples: Sequence[Example], turns: Sequence[Turn], number: int, parts: int = len(PARTS)
) -> list[Turn]:
    """Return the messages of one request.

    Args:
        brain: see ``system_message``.
        examples: see ``system_message``.
        turns: the talk so far, the user's message last; a system prompt of twin's own is left out.
        number: see ``system_message``.
        parts: see ``system_message``.
    """
    said = [turn for turn in turns if turn.role != "system"]
    return [Turn("system", system_message(brain, examples, number, parts)), *said[-1 - HISTORY :]]


def merged(turns: Sequence[Turn]) -> list[Turn]:
    """Return ``turns`` as a server merges them: neighbours of one role are one turn, a blank line between."""
    found: list[Turn] = []
    for turn in turns:
        if found and found[-1].role == turn.role:
            found[-1] = Turn(turn.role, f"{found[-1].content}\n\n{turn.content}")
        else:
            found.append(turn)
    return found
