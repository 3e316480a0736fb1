"""The one system prompt: personality first, then the most important memories, 300 tokens at most.

Training and serving both take it from the run's record, so they can't differ. What does not fit becomes rows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from twin.records import Brain, Memory

MAX_TOKENS = 300
_PIECES = re.compile(r"[A-Za-z]+|[0-9]|[^\x00-\x7f]|[^\sA-Za-z0-9]|\n")


@dataclass(frozen=True, slots=True)
class SystemPrompt:
    """The prompt and what went into it: the rest of the brain becomes rows."""

    text: str
    memory_ids: frozenset[str]
    facts: frozenset[str]


def estimate_tokens(text: str) -> int:
    """Return a cautious estimate of ``text``'s length in tokens: the dataset is built without a tokenizer.

    A word counts one token and one more for every five letters beyond the first, a capitalized one (a name, most often)
    one for every two letters, a digit or mark one, any other character its UTF-8 bytes. Rare spellings can need more;
    training counts with the model's own tokenizer and refuses a prompt that is longer than the bound after all.
    """
    total = 0
    for piece in _PIECES.findall(text):
        if not (piece.isascii() and piece.isalpha()):
            total += len(piece.encode("utf-8"))
        elif piece[0].isupper():
            total += (len(piece) + 1) // 2
        else:
            total += 1 + (len(piece) - 1) // 5
    return total


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text if text.endswith((".", "!", "?", "…", "।", "。")) else text + "."


def by_importance(memories: tuple[Memory, ...]) -> list[Memory]:
    """Return memories, the most important first; ties keep their order."""
    return sorted(memories, key=lambda memory: -memory.importance)


def build(brain: Brain, max_tokens: int = MAX_TOKENS) -> SystemPrompt:
    """Return the system prompt of ``brain``'s person.

    Args:
        brain: what is known of them.
        max_tokens: the bound, by ``estimate_tokens``.
    """
    who = brain.personality
    name = who.name or brain.person
    lines = [f"You are {name}. You reply to messages just as {name} does."]
    if who.typing_quirks:
        lines.append("How you type: " + "; ".join(quirk.strip().rstrip(".") for quirk in who.typing_quirks) + ".")
    if who.common_phrases:
        lines.append("You often say: " + ", ".join(who.common_phrases[:6]) + ".")
    if who.emoji:
        lines.append("Your emoji: " + " ".join(who.emoji[:5]))
    kept: list[str] = []
    for line in lines:  # the first line always; another only if it leaves room
        if not kept or estimate_tokens("\n".join([*kept, line])) <= max_tokens * 2 // 3:
            kept.append(line)
    memory_ids: set[str] = set()
    facts: set[str] = set()
    about: list[str] = []
    candidates = [(fact, None) for fact in who.facts[:4]] + [(m.text, m.id) for m in by_importance(brain.memories)]
    for text, memory_id in candidates:
        sentence = _sentence(text)
        longer = "\n".join([*kept, "About you: " + " ".join([*about, sentence])])
        if sentence in about or estimate_tokens(longer) > max_tokens:
            continue
        about.append(sentence)
        if memory_id is None:
            facts.add(text)
        else:
            memory_ids.add(memory_id)
    if about:
        kept.append("About you: " + " ".join(about))
    return SystemPrompt("\n".join(kept), frozenset(memory_ids), frozenset(facts))


def reworded(brain: Brain) -> str:
    """Return another, shorter wording, for the rows that teach the twin not to lean on one prompt."""
    name = brain.personality.name or brain.person
    tone = ", ".join(brain.personality.tone[:3])
    return f"Answer as {name} would." + (f" Tone: {tone}." if tone else "")
