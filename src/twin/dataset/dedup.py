"""Near-duplicate rows by MinHash (Broder 1997), each suspicion checked with the true Jaccard similarity."""

from __future__ import annotations

from rensa import RMinHash, RMinHashLSH

from twin.records import Example

SIMILARITY = 0.9
_PERMUTATIONS = 128
_BANDS = 16
_SHINGLE = 5


def shingles(text: str) -> frozenset[str]:
    """Return the character 5-grams of ``text``, case and spaces unified: the same in every script."""
    flat = " ".join(text.casefold().split())
    return frozenset(flat[start : start + _SHINGLE] for start in range(max(1, len(flat) - _SHINGLE + 1)))


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """Return the share of shingles that two sets have in common."""
    return len(left & right) / len(left | right)


class Deduplicator:
    """Remembers rows; the first of a group of near-duplicates stays."""

    def __init__(self) -> None:
        self._seen: list[frozenset[str]] = []
        self._exact: set[str] = set()
        self._index = RMinHashLSH(threshold=SIMILARITY, num_perm=_PERMUTATIONS, num_bands=_BANDS)

    def reason_to_drop(self, example: Example) -> str | None:
        """Return ``duplicate`` or ``near-duplicate`` when a row like this was seen, else remember it."""
        text = f"{example.turns[-2].content}\n{example.reply}"
        if text in self._exact:
            return "duplicate"
        own = shingles(text)
        signature = RMinHash(num_perm=_PERMUTATIONS, seed=1)
        signature.update(sorted(own))
        if any(jaccard(own, self._seen[number]) >= SIMILARITY for number in self._index.query(signature)):
            return "near-duplicate"
        self._exact.add(text)
        self._index.insert(len(self._seen), signature)
        self._seen.append(own)
        return None
