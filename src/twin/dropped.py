"""What is left out on the way from a brain to rows: counted by reason, and listed where somebody looks."""

from __future__ import annotations

from collections import Counter

MAX_LISTED = 10_000


class Dropped:
    """Counts of what was left out, by reason; what stopped a file halfway; and one reason's texts, where watched.

    Args:
        watch: the reason whose texts are kept, for ``twin preview --dropped REASON``; None: texts are not kept.
    """

    def __init__(self, watch: str | None = None) -> None:
        self.watch = watch
        self.counts: Counter[str] = Counter()
        self.listed: list[tuple[str, str]] = []
        self.problems: dict[str, str] = {}

    def add(self, reason: str, text: str = "", where: str = "") -> None:
        """Count one thing left out.

        Args:
            reason: why, in a few words that name no private thing.
            text: what it was; kept only while its reason is watched.
            where: the file, conversation or row it stood in.
        """
        if not reason.isascii():  # a file's name may be no Unicode
            reason = reason.encode("utf-8", "replace").decode()
        self.counts[reason] += 1
        if reason == self.watch and len(self.listed) < MAX_LISTED:
            self.listed.append((where, text))

    def problem(self, message: str, hint: str) -> None:
        """Remember a sentence about input that could be used in part or not at all."""
        self.problems.setdefault(message.encode("utf-8", "replace").decode(), hint)

    def merge(self, other: Dropped) -> None:
        """Take over what another part of the work left out."""
        self.counts.update(other.counts)
        self.listed.extend(other.listed[: MAX_LISTED - len(self.listed)])
        for message, hint in other.problems.items():
            self.problem(message, hint)
