"""What is mended in every message, and which rows are left out, and why. Nothing here depends on the language."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_INVISIBLE = dict.fromkeys(
    map(ord, "\0\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff\ue000\ue001")
)
_TO_MEND = re.compile("[\r\0\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ue000\ue001\ud800-\udfff]")
_LINK_STARTS = ("http://", "https://", "www.")
_LETTER_OR_SYMBOL = re.compile(r"[^\s.,;:!?'\"()\[\]{}<>/\\|_*~`^+=\-–—…]")
MAX_MESSAGE = 20_000  # characters: a file sent as text, whoever sent it
MAX_REPLY = 4000  # characters: what is longer was hardly typed into a chat
MAX_TYPED, MAX_TYPED_WITH_LINK = 1500, 600  # characters of one message: what is longer was pasted


@dataclass(slots=True)
class Habits:
    """How the person writes, counted over their own messages."""

    texts: int = 0
    stops: int = 0
    cased: int = 0
    lower: int = 0

    def hear(self, texts: Iterable[str]) -> None:
        """Count casing and full stops of messages; casing, of those that begin with a cased letter."""
        for text in texts:
            self.texts += 1
            self.stops += text.endswith((".", "。", "।"))
            first = text[:1]
            if first.lower() != first.upper():
                self.cased += 1
                self.lower += first.islower()

    def merge(self, other: Habits) -> None:
        """Add what was heard elsewhere."""
        self.texts += other.texts
        self.stops += other.stops
        self.cased += other.cased
        self.lower += other.lower

    @property
    def starts_lowercase(self) -> float:
        """The share of messages that begin with a small letter, 0 to 1."""
        return self.lower / self.cased if self.cased else 0.0

    @property
    def ends_with_full_stop(self) -> float:
        """The share of messages that end with a full stop, 0 to 1."""
        return self.stops / self.texts if self.texts else 1.0


def in_their_hand(text: str, hand: Habits) -> str:
    """Return a neutral statement with the person's casing and full stops."""
    text = text.strip()
    if hand.ends_with_full_stop < 0.5:
        text = text.removesuffix(".")
    return text.lower() if hand.starts_lowercase > 0.9 else text


def tidy(text: str) -> str:
    """Return a text with unified line ends, without direction marks, halves of characters and spaces at its ends."""
    if _TO_MEND.search(text):
        text = text.replace("\r\n", "\n").replace("\r", "\n").translate(_INVISIBLE)
        text = text.encode("utf-8", "ignore").decode("utf-8")
    return text.strip()


def tidied(texts: Sequence[str]) -> list[str]:
    """Return many texts tidied; one look over all of them finds out whether any needs more than its edges cut."""
    if _TO_MEND.search("".join(texts)):
        return [tidy(text) for text in texts]
    return [text.strip() for text in texts]


def pasted(text: str) -> bool:
    """Say whether one chat message is too long to have been typed there."""
    return len(text) > MAX_TYPED_WITH_LINK and (len(text) > MAX_TYPED or "://" in text)


def reason_to_drop(prompt: str, reply: str, quality_filter: bool) -> str | None:
    """Return why a row can't be learned from, or None.

    Args:
        prompt: the turn before the reply.
        reply: what would be learned.
        quality_filter: leave out rows without words of their own, and over-long ones.
    """
    if not (reply and prompt):
        return "empty prompt" if reply else "empty reply"
    if not quality_filter:
        return None
    if reply.startswith(_LINK_STARTS) and all(word.startswith(_LINK_STARTS) for word in reply.split()):
        return "links only"
    if not _LETTER_OR_SYMBOL.search(reply):
        return "punctuation only"
    return "over-long" if len(reply) > MAX_REPLY else None
