"""Which of many messages may hold something private: a coarse look over all of them at once, before the close one.

One in ten messages has an @, some digits, a word for a password or a long token; ``redact.find`` and
``secrets.kind_of_secret`` look at those alone. Whatever they find, this must let through: a test holds that.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from ahocorasick_rs import AhoCorasick

from twin.dataset.redact import ATS, DOTS, plain_marks
from twin.dataset.secrets import NETWORKS, WORDS

_DIGIT, _TOKEN, _SPACE, _DOT, _COLON, _LETTER = 1, 2, 4, 8, 16, 32
_IN_BRACKETS = tuple(f"{bracket}{space}{at}" for bracket in "[({<" for space in ("", " ") for at in ATS)
_OF_VALUES = ("@", "://", "::", "wa.me/", "アット", *_IN_BRACKETS, *(dot for dot in DOTS if dot != "."))
_OF_KEYS = ("-----begin", "hooks.slack", "webhooks/")
_DIGITS_NEAR = 6, 30  # so many digits within so many characters
_TOKEN_RUN = 15
_WORDS_RUN = 11


@cache
def _classes() -> np.ndarray:
    """Return the classes of the first 65,536 characters, as bits."""
    table = np.zeros(0x10001, np.uint8)
    for code in range(0x10000):
        letter = chr(code)
        if letter.isdecimal():
            table[code] |= _DIGIT
        if letter.isspace() or letter in ",、，-./":
            table[code] |= _SPACE
        if letter.isascii() and letter.isalpha():
            table[code] |= _LETTER
        if letter.isascii() and (letter.isalnum() or letter in "-_./+=:"):
            table[code] |= _TOKEN
    table[ord(".")] |= _DOT
    table[ord(":")] |= _COLON
    return table


def _bits(text: str) -> np.ndarray:
    """Return the classes of each character."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    bits = _classes()[np.minimum(codes, 0x10000)]
    beyond = np.flatnonzero(codes > 0xFFFF)  # emoji, and digits of mathematics and of rarer scripts
    bits[beyond] = [_DIGIT if chr(code).isdecimal() else 0 for code in codes[beyond].tolist()]
    return bits


class Suspects(NamedTuple):
    """Numbers of texts that deserve a close look, in order, by what to look for.

    Args:
        values: e-mails, numbers, addresses, links.
        keys: keys and tokens.
        passwords: passwords told in words.
        seeds: twelve words or more.
    """

    values: list[int]
    keys: list[int]
    passwords: list[int]
    seeds: list[int]


@cache
def _words() -> tuple[AhoCorasick, np.ndarray]:
    """Return the words looked for, and what each is of: values 0, keys 1, passwords 2."""
    passwords = {word.lower() for word in (*WORDS, *NETWORKS)}
    words = [*_OF_VALUES, *_OF_KEYS, *sorted(passwords)]
    kinds = [0] * len(_OF_VALUES) + [1] * len(_OF_KEYS) + [2] * len(passwords)
    return AhoCorasick(words), np.array(kinds)


def suspects(texts: Sequence[str]) -> Suspects:
    """Return which texts deserve a close look.

    Args:
        texts: messages; none holds a NUL.
    """
    if not texts:
        return Suspects([], [], [], [])
    joined = plain_marks("\0".join(texts))
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    starts = np.cumsum(lengths + 1) - (lengths + 1)
    bits = _bits(joined)

    def numbers(places: np.ndarray) -> np.ndarray:
        """Return the numbers of the texts at places of the joined text."""
        return np.searchsorted(starts, places, side="right") - 1

    said, of = _said(joined, texts, starts)
    dots = np.flatnonzero(bits & _DOT)
    dots = dots[(dots > 0) & (dots < len(bits) - 1)]
    dots = dots[(bits[dots - 1] & bits[dots + 1] & _DIGIT) > 0]
    values = np.concatenate(
        (
            said[of == 0],
            _close(np.flatnonzero(bits & _DIGIT), *_DIGITS_NEAR),
            _postal_codes(bits),
            _close(dots, 3, 12),
            _close(np.flatnonzero(bits & _COLON), 3, 20),
        )
    )
    gaps = np.flatnonzero(np.concatenate(([True], (bits & _TOKEN) == 0, [True])))
    long = gaps[np.flatnonzero(np.diff(gaps) > _TOKEN_RUN)]
    # Twelve words have eleven spaces between them.
    spaces = np.bincount(numbers(np.flatnonzero(bits & _SPACE)), minlength=len(texts))
    return Suspects(
        _distinct(numbers(values)),
        _distinct(numbers(np.concatenate((long, said[of == 1])))),
        _distinct(numbers(said[of == 2])),
        np.flatnonzero(spaces >= _WORDS_RUN).tolist(),
    )


def _postal_codes(bits: np.ndarray) -> np.ndarray:
    """Return where a postal code may stand: 62704, SW1A 2AA, K1A 0B1."""
    digits = np.flatnonzero(bits & _DIGIT)
    first, second = digits[:-1], digits[1:]
    apart = second - first
    inside = ((apart == 2) | (apart == 3)) & (first > 0) & (second < len(bits) - 2)
    first, second = first[inside], second[inside]
    letters = bits[first - 1] & bits[second + 1] & _LETTER
    last = bits[second + 2] & (_LETTER | _DIGIT)
    return np.concatenate((_close(digits, 5, 4), first[(letters > 0) & (last > 0)]))


def _distinct(numbers: np.ndarray) -> list[int]:
    return sorted(set(numbers.tolist()))


def _said(joined: str, texts: Sequence[str], starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where the words stand that are looked for, and what each is of."""
    finder, kinds = _words()
    low = joined.replace("İ", "I").lower()
    if len(low) == len(joined):
        hits = [(begin, word) for word, begin, _ in finder.find_matches_as_indexes(low, overlapping=True)]
    else:  # a letter whose small form is longer ("İ"): places would shift, so each text is looked at by itself
        hits = [
            (start, word)
            for start, text in zip(starts.tolist(), texts, strict=True)
            for word, _, _ in finder.find_matches_as_indexes(text.lower(), overlapping=True)
        ]
    places = np.array([place for place, _ in hits], np.int64)
    return places, kinds[np.array([word for _, word in hits], np.int64)]


def _close(places: np.ndarray, count: int, near: int) -> np.ndarray:
    """Return the first of each ``count`` places that stand within ``near`` characters."""
    if len(places) < count:
        return places[:0]
    first = places[: len(places) - count + 1]
    close: np.ndarray = first[places[count - 1 :] - first <= near]
    return close
