"""Which rows are held out: whole conversations, and with one all others that say the same.

Sessions that share a near-duplicate row or a long line (a quote, a forward) stand or fall together: ``groups`` finds
them. ``check`` looks at the result anew, whatever made it, and refuses one in which something stands on both sides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from twin.dataset.dedup import new_values, run_starts
from twin.errors import GateError
from twin.settings import ExportSettings

ALIKE = 0.7  # rows of this Jaccard similarity stay on one side
LEAK_LENGTH = 40  # characters: that two short rows are alike tells nothing


def groups(sessions: int, pairs: Sequence[tuple[int, int]]) -> dict[int, list[int]]:
    """Return for each session that has to stay with others all of its group (a union-find over the pairs).

    Args:
        sessions: how many there are.
        pairs: session numbers that belong together.
    """
    if not pairs:
        return {}
    parent = list(range(sessions))

    def root(one: int) -> int:
        while parent[one] != one:
            parent[one] = parent[parent[one]]
            one = parent[one]
        return one

    for one, other in pairs:
        parent[root(one)] = root(other)
    members: dict[int, list[int]] = {}
    for one in sorted({number for pair in pairs for number in pair}):
        members.setdefault(root(one), []).append(one)
    return {one: group for group in members.values() if len(group) > 1 for one in group}


def same_lines(keys: np.ndarray, sessions: np.ndarray) -> list[tuple[int, int]]:
    """Return pairs of sessions in which one long line is said: each with the first that says it."""
    order = np.lexsort((sessions, keys))
    keys, sessions = keys[order], sessions[order]
    first = sessions[run_starts(new_values(keys))]
    apart = first != sessions
    return list({*zip(first[apart].tolist(), sessions[apart].tolist(), strict=True)})


def held_out(
    conversations: Sequence[tuple[str, float | None]],
    settings: ExportSettings,
    together: Mapping[int, Sequence[int]] | None = None,
    fixed: frozenset[int] = frozenset(),
) -> set[int]:
    """Return the numbers of the conversations held out.

    Args:
        conversations: id and beginning (seconds since 1970) of each, in a stable order.
        settings: ``validation_split`` of them (rounded, at least one unless 0), by ``split_by`` and ``seed``. Fewer
            than two conversations: none. By time, a conversation without a date counts as early.
        together: for a conversation's number those that must stay with it; a group that does not fit is not held out.
        fixed: numbers that can't be held out, nor what has to stay with them.
    """
    choices = [number for number in range(len(conversations)) if number not in fixed]
    if not settings.validation_split or len(choices) < 2:
        return set()
    count = max(1, round(len(choices) * settings.validation_split))
    together = together or {}
    if settings.split_by == "time":
        times = [at for _, at in conversations]
        ordered = sorted(choices, key=lambda number: (times[number] is not None, times[number] or 0.0))
        last = set(ordered[-count:])
        apart = {id(group) for number, group in together.items() if number not in last}
        return {number for number in last if id(together.get(number)) not in apart}
    # Each by its own draw: what was held out stays so when new conversations come, and is not learned meanwhile.
    drawn = {number: _draw(settings.seed, conversations[number][0]) for number in choices}
    out: set[int] = set()
    seen: set[int] = set()  # groups that were looked at
    for number in sorted(choices, key=lambda number: drawn[number]):
        group = together.get(number, (number,))
        if id(group) not in seen and len(out) + len(group) <= count and fixed.isdisjoint(group):
            out.update(group)
        if number in together:
            seen.add(id(group))
        if len(out) >= count:
            break
    return out


def _draw(seed: int, name: str) -> bytes:
    """Return a random number that a conversation's id and the seed alone decide."""
    return hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogatepass")).digest()


class Closest(NamedTuple):
    """The two most similar rows on different sides of the split, with their Jaccard similarity."""

    similarity: float
    train: int
    val: int


def check(
    val: np.ndarray,
    rows: tuple[np.ndarray, np.ndarray, np.ndarray],
    alike: tuple[np.ndarray, np.ndarray],
    quoted: tuple[np.ndarray, np.ndarray],
) -> Closest | None:
    """Return the closest pair across the split, None where no two rows share as much as a MinHash band.

    Args:
        val: which sessions are held out (shape: sessions, boolean).
        rows: session number, key and length in characters of each row that is kept (shape: rows, each).
        alike: pairs of places among those rows (shape: pairs, 2) and their similarity (shape: pairs).
        quoted: hashes of long lines, and the session of each.

    Raises:
        GateError: one conversation's words stand on both sides.
    """
    session, keys, lengths = rows
    pairs, similar = alike
    side = val[session]
    long = lengths >= LEAK_LENGTH
    both = np.intersect1d(keys[side & long], keys[~side & long])
    if len(both):
        one, other = (int(np.flatnonzero((keys == both[0]) & part)[0]) for part in (~side, side))
        raise _leak("the same row", one, other)
    if len(quoted[0]):
        kept = np.isin(quoted[1], session)
        line_side = val[quoted[1]]
        if len(np.intersect1d(quoted[0][kept & line_side], quoted[0][kept & ~line_side])):
            raise _leak("a long line of the same words", -1, -1)
    across = np.flatnonzero(side[pairs[:, 0]] != side[pairs[:, 1]]) if len(pairs) else np.empty(0, np.int64)
    across = across[np.minimum(lengths[pairs[across, 0]], lengths[pairs[across, 1]]) >= LEAK_LENGTH]
    if not len(across):
        return None
    best = int(across[np.argmax(similar[across])])
    one, other = sorted(pairs[best].tolist(), key=lambda row: bool(side[row]))
    if similar[best] >= ALIKE:
        raise _leak(f"rows that are {similar[best]:.2f} alike", one, other)
    return Closest(float(similar[best]), one, other)


def _leak(what: str, one: int, other: int) -> GateError:
    where = f" (rows {one} and {other})" if one >= 0 else ""
    return GateError(
        f"The split leaks: {what} on both sides{where}.", "This is a bug of twin's: please report the sentence above."
    )
