"""Near-duplicate rows by MinHash (Broder 1997), each suspicion checked with the true Jaccard similarity.

A row's text is its last prompt and its reply. Not obvious: the hashing is done over thousands of rows at once. Their
texts stand in one array of code points, in which a 5-gram's hash needs its place alone; where a 5-gram would reach into
the next text, the hash of the text's first one stands instead, which changes neither a set nor its minimum.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
from rensa import RMinHash

SIMILARITY = 0.9
BANDS = 5
_ROWS_A_BAND = 4
_SHINGLE = 5
_BATCH = 1024  # texts hashed at once: their arrays stay in the processor's cache
_STEP, _MIX = np.uint64(0x100000001B3), np.uint64(0xBF58476D1CE4E5B9)
_SHIFT = np.uint64(32)
_PAIR = np.uint64(_BATCH - 1)  # the bits of a batch's numbers
_PADDING = "\ue000"  # no tidied text has it
_NEIGHBOURS = 3
_ODD = np.array([0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F], np.uint32)


def flat(text: str) -> str:
    """Return a text with case and spaces unified: what two copies of it share, in every script."""
    return " ".join(text.casefold().split())


def shingles(text: str) -> frozenset[str]:
    """Return the character 5-grams of ``text``, case and spaces unified."""
    one = flat(text)
    return frozenset([one[start : start + _SHINGLE] for start in range(max(1, len(one) - _SHINGLE + 1))])


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """Return the share of shingles that two sets have in common."""
    return len(left & right) / len(left | right)


def _hashes(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the 64-bit hashes of all 5-grams of flat texts, and where each text's begin (one more entry: the end)."""
    padded = [text if len(text) >= _SHINGLE else text.ljust(_SHINGLE, _PADDING) for text in texts]
    data = "\0".join([*padded, "\0" * _SHINGLE]).encode("utf-32-le", "surrogatepass")
    codes = np.frombuffer(data, np.uint32).astype(np.uint64)
    lengths = np.fromiter(map(len, padded), np.int64, len(padded))
    ends = np.cumsum(lengths + 1)
    total = int(ends[-1])
    hashes = codes[:total].copy()
    for place in range(1, _SHINGLE):
        hashes *= _STEP
        hashes += codes[place : total + place]
    hashes *= _MIX
    hashes ^= hashes >> _SHIFT
    hashes *= _MIX
    hashes ^= hashes >> _SHIFT
    starts = np.concatenate(([0], ends))
    over = (ends[:, None] - np.arange(1, _SHINGLE + 1)).ravel()
    hashes[over] = np.repeat(hashes[starts[:-1]], _SHINGLE)
    return hashes, starts


def keys(texts: Sequence[str]) -> np.ndarray:
    """Return one 64-bit hash a flat text: the sum of its 5-grams' hashes."""
    parts = []
    for begin in range(0, len(texts), _BATCH):
        hashes, starts = _hashes(texts[begin : begin + _BATCH])
        parts.append(np.add.reduceat(hashes, starts[:-1]))
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)


def signatures(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return of flat texts one 64-bit hash each, and their MinHash bands (shape: texts, bands).

    Texts whose Jaccard similarity is 0.9 share a band with probability 0.995, those at 0.5 with 0.28.
    """
    sums, bands = [np.empty(0, np.uint64)], [np.empty((0, BANDS), np.uint32)]
    for begin in range(0, len(texts), _BATCH):
        hashes, starts = _hashes(texts[begin : begin + _BATCH])
        sums.append(np.add.reduceat(hashes, starts[:-1]))
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(
            hashes, starts.astype(np.uint64), BANDS * _ROWS_A_BAND, 1
        )
        values = chain.from_iterable(matrix.to_rows())
        digests = np.fromiter(values, np.uint32, (len(starts) - 1) * BANDS * _ROWS_A_BAND).reshape(
            -1, BANDS, _ROWS_A_BAND
        )
        bands.append((digests * _ODD).sum(axis=2, dtype=np.uint32))
    return np.concatenate(sums), np.concatenate(bands)


def first_of_each(row_keys: np.ndarray) -> np.ndarray:
    """Return which rows are the first with their key (shape: rows, boolean)."""
    first = np.zeros(len(row_keys), bool)
    first[np.unique(row_keys, return_index=True)[1]] = True
    return first


def new_values(ordered: np.ndarray) -> np.ndarray:
    """Return where each run of equal values begins in a sorted array (shape: values, boolean)."""
    return np.concatenate((np.ones(min(1, len(ordered)), bool), ordered[1:] != ordered[:-1]))


def run_starts(new: np.ndarray) -> np.ndarray:
    """Return for each place of a sorted array the place where its run of equal values begins (shape: values)."""
    starts: np.ndarray = np.maximum.accumulate(np.where(new, np.arange(len(new)), 0))
    return starts


def candidates(bands: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """Return pairs of rows that share a band (shape: pairs, 2; the earlier row first; sorted).

    Each row is paired with the first of its band's group and with its nearest few before it.
    """
    rows = np.flatnonzero(alive)
    found = []
    for band in range(bands.shape[1]):
        values = bands[rows, band]
        order = np.argsort(values, kind="stable")
        values, ordered = values[order], rows[order]
        new = new_values(values)
        group_start = run_starts(new)
        inside = np.flatnonzero(~new)
        found.append(ordered[group_start[inside]] * len(alive) + ordered[inside])
        for back in range(1, _NEIGHBOURS + 1):
            near = inside[inside - back > group_start[inside]]
            found.append(ordered[near - back] * len(alive) + ordered[near])
    packed = np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)
    pairs = np.stack((packed // max(1, len(alive)), packed % max(1, len(alive))), axis=1)
    return pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))]


def similarities(left: Sequence[str], right: Sequence[str]) -> np.ndarray:
    """Return the true Jaccard similarity of each two flat texts, over the hashes of their 5-grams (shape: pairs).

    All sets of a batch are one sorted array: the low bits of a hash give way to the number of its pair.
    """
    done = [np.empty(0)]
    for begin in range(0, len(left), _BATCH):
        ours, theirs = (_sorted_sets(texts[begin : begin + _BATCH]) for texts in (left, right))
        both = np.concatenate((ours, theirs))
        both.sort()
        shared = both[:-1][both[1:] == both[:-1]]
        one, other, common = (
            np.bincount((keys & _PAIR).astype(np.int64), minlength=len(left[begin : begin + _BATCH]))
            for keys in (ours, theirs, shared)
        )
        done.append(common / (one + other - common))
    return np.concatenate(done)


def _sorted_sets(texts: Sequence[str]) -> np.ndarray:
    """Return the distinct hashes of each text, all in one sorted array, each with its text's number in the low bits."""
    hashes, starts = _hashes(texts)
    numbered = (hashes & ~_PAIR) | np.repeat(np.arange(len(texts), dtype=np.uint64), np.diff(starts))
    numbered.sort()
    distinct: np.ndarray = numbered[new_values(numbered)]
    return distinct


def near_duplicates(pairs: np.ndarray, similar: np.ndarray, rows: int) -> np.ndarray:
    """Return which rows are near-duplicates of an earlier row that stays (shape: rows, boolean)."""
    gone = np.zeros(rows, bool)
    for one, other in pairs[similar >= SIMILARITY].tolist():  # by the later row
        if not gone[one]:
            gone[other] = True
    return gone
