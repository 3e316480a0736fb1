"""What is mended in every row, and which rows are left out, with the reason. Nothing here depends on the language."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from twin.records import Brain, Example, Turn

_INVISIBLE = dict.fromkeys(map(ord, "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"))
_LINK_STARTS = ("http://", "https://", "www.")
_LETTER_OR_SYMBOL = re.compile(r"[^\s.,;:!?'\"()\[\]{}<>/\\|_*~`^+=\-–—…]")


@dataclass(frozen=True, slots=True)
class Habits:
    """How the person writes, read off their own messages (shares of messages, 0 to 1)."""

    starts_lowercase: float
    ends_with_full_stop: float


def habits(brain: Brain) -> Habits:
    """Measure casing and full stops over all messages of the person that begin with a cased letter."""
    texts = [
        message.text
        for conversation in brain.conversations
        for message in conversation.messages
        if message.speaker == brain.person
    ]
    cased = [text for text in texts if text[:1].lower() != text[:1].upper()]
    lower = sum(text[0].islower() for text in cased) / len(cased) if cased else 0.0
    stops = sum(text.rstrip().endswith((".", "。", "।")) for text in texts) / len(texts) if texts else 1.0
    return Habits(lower, stops)


def in_their_hand(text: str, hand: Habits) -> str:
    """Return a neutral statement with the person's casing and full stops."""
    text = text.strip()
    if hand.ends_with_full_stop < 0.5:
        text = text.removesuffix(".")
    return text.lower() if hand.starts_lowercase > 0.9 else text


def normalise(example: Example) -> Example:
    """Return the row with unified line ends, without direction marks and without spaces at the ends of turns."""
    turns = tuple(
        Turn(turn.role, turn.content.replace("\r\n", "\n").replace("\r", "\n").translate(_INVISIBLE).strip())
        for turn in example.turns
    )
    return replace(example, turns=turns)


def reason_to_drop(example: Example, quality_filter: bool) -> str | None:
    """Return why the row can't be learned from, or None."""
    if not example.reply:
        return "empty reply"
    if not example.turns[-2].content:
        return "empty prompt"
    if not quality_filter:
        return None
    if all(word.startswith(_LINK_STARTS) for word in example.reply.split()):
        return "links only"
    if not _LETTER_OR_SYMBOL.search(example.reply):
        return "punctuation only"
    return None
