"""All rows of an export, chosen among by number and read from disk one at a time."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, overload

import numpy as np
import orjson

from twin.dataset.redact import OPEN, Redactor, numbered
from twin.dataset.shard import BEGINNING, Shard, text_file
from twin.records import Example, Turn

_OPEN = OPEN.encode()
_BATCH = 4096


class Table:
    """The rows of several parts, numbered through.

    Args:
        shards: the parts, in the order of their sources.
        redactor: gives each private value its number in the whole dataset, in the order of the parts.
    """

    def __init__(self, shards: Sequence[Shard], redactor: Redactor) -> None:
        self._shards = shards
        self._files = ExitStack()
        self._handles = [self._opened(shard.path) for shard in shards]
        self._text_handles = [self._opened(text_file(shard.path)) for shard in shards]
        counts = [len(shard.kinds) for shard in shards]
        self.rows = sum(counts)
        self._first = np.cumsum([0, *counts])
        sessions = np.cumsum([0, *(len(shard.session_ids) for shard in shards)])
        self.session_ids = [name for shard in shards for name in shard.session_ids]
        self.session_times = np.array([at for shard in shards for at in shard.session_times], np.float64)
        self.kinds = _joined([shard.kinds for shard in shards], np.uint8)
        self.lengths = _joined([shard.lengths for shard in shards], np.uint32)
        self.keys = _joined([shard.keys for shard in shards], np.uint64)
        self.bands = np.concatenate([shard.bands for shard in shards])
        self.session = _joined(
            [shard.session + before for shard, before in zip(shards, sessions[:-1], strict=True)], np.int64
        )
        self.quoted = (
            _joined([shard.quoted[0] for shard in shards], np.uint64),
            _joined([shard.quoted[1] + before for shard, before in zip(shards, sessions[:-1], strict=True)], np.int64),
        )
        self.replies = self._reply_numbers()
        self._offsets = np.concatenate([shard.offsets for shard in shards])
        self._text_offsets = np.concatenate([shard.text_offsets for shard in shards])
        self._numbers = [_numbers(shard, redactor) for shard in shards]

    def _reply_numbers(self) -> np.ndarray:
        """Return of each row its short reply's number among all, -1 for a long one."""
        known: dict[str, int] = {}
        parts = []
        for shard in self._shards:
            own = np.array([known.setdefault(reply, len(known)) for reply in shard.replies] + [-1], np.int64)
            parts.append(own[shard.reply])
        return _joined(parts, np.int64)

    def _opened(self, path: Path) -> int:
        return self._files.enter_context(path.open("rb", buffering=0)).fileno()

    def close(self) -> None:
        """Close the parts' files."""
        self._files.close()

    def _read(self, handles: Sequence[int], offsets: np.ndarray, rows: np.ndarray) -> tuple[list[int], list[bytes]]:
        """Return for each row the number of its part, and its bytes in the part's file."""
        parts = np.searchsorted(self._first, rows, side="right") - 1
        places = rows + parts  # each part has one offset more than rows
        begins = offsets[places]
        sizes = (offsets[places + 1] - begins).tolist()
        numbers = parts.tolist()
        where = zip(numbers, sizes, begins.tolist(), strict=True)
        return numbers, [_read_at(handles[number], size, begin) for number, size, begin in where]

    def lines(self, rows: np.ndarray) -> list[bytes]:
        """Return rows as ChatML JSON lines without their beginning, ``{"messages":[``."""
        numbers, lines = self._read(self._handles, self._offsets, rows)
        for place, line in enumerate(lines):
            if _OPEN in line:
                lines[place] = numbered(line, self._numbers[numbers[place]])
        return lines

    def records(self, rows: np.ndarray) -> Iterator[dict[str, Any]]:
        """Yield rows as JSON objects in ChatML."""
        for begin in range(0, len(rows), _BATCH):
            for line in self.lines(rows[begin : begin + _BATCH]):
                yield orjson.loads(BEGINNING + line)

    def example(self, row: int, system: str = "") -> Example:
        """Return a row as a record."""
        [data] = self.records(np.array([row]))
        turns = [Turn(item["role"], item["content"]) for item in data["messages"]]
        number = int(np.searchsorted(self._first, row, side="right")) - 1
        shard = self._shards[number]
        other = shard.session_others[int(shard.session[row - int(self._first[number])])]
        if OPEN in other:
            other = numbered(other.encode(), self._numbers[number]).decode()
        head = [Turn("system", system)] if system else []
        return Example(data["id"], data["conversation"], data["kind"], (*head, *turns), other)

    def texts(self, rows: np.ndarray) -> list[str]:
        """Return rows' last prompts and replies, flat, as duplicates are looked for."""
        return [text.decode() for text in self._read(self._text_handles, self._text_offsets, rows)[1]]


def _lseek_and_read(handle: int, size: int, place: int) -> bytes:
    os.lseek(handle, place, os.SEEK_SET)
    return os.read(handle, size)


_read_at: Callable[[int, int, int], bytes] = getattr(os, "pread", _lseek_and_read)  # Windows has no pread


def _joined(parts: list[np.ndarray], kind: type) -> np.ndarray:
    return np.concatenate(parts).astype(kind, copy=False) if parts else np.empty(0, kind)


def _numbers(shard: Shard, redactor: Redactor) -> dict[tuple[str, int], int]:
    """Return for a kind and a part's own number the dataset's number."""
    own: Counter[str] = Counter()
    numbers = {}
    for kind, value in shard.values:
        own[kind] += 1
        numbers[kind, own[kind]] = redactor.number(kind, value)
    return numbers


class Rows(Sequence[Example]):
    """Rows of a table in one order, each with the system prompt it carries.

    Args:
        table: where the rows are.
        order: their numbers.
        system_of: the system prompt of a session's number; empty for none.
    """

    def __init__(self, table: Table, order: np.ndarray, system_of: Callable[[int], str]) -> None:
        self.table, self.order, self.system_of = table, order, system_of

    def __len__(self) -> int:
        return len(self.order)

    @overload
    def __getitem__(self, place: int) -> Example: ...
    @overload
    def __getitem__(self, place: slice) -> list[Example]: ...
    def __getitem__(self, place: int | slice) -> Example | list[Example]:
        if isinstance(place, slice):
            return [self._example(row) for row in self.order[place].tolist()]
        return self._example(int(self.order[place]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rows) and list(self) == list(other)

    def __hash__(self) -> int:
        return id(self)

    def _example(self, row: int) -> Example:
        return self.table.example(row, self.system_of(int(self.table.session[row])))

    def chatml(self) -> Iterator[bytes]:
        """Yield the rows as lines of ChatML, some thousand at a time, without making records of them."""
        prompt_of, beginning_of = cache(self.system_of), cache(_beginning)  # sessions are many, prompts a few
        for first in range(0, len(self.order), _BATCH):
            order = self.order[first : first + _BATCH]
            sessions = self.table.session[order].tolist()
            beginnings = map(beginning_of, map(prompt_of, sessions))
            yield b"".join(chain.from_iterable(zip(beginnings, self.table.lines(order), strict=True)))


def _beginning(prompt: str) -> bytes:
    """Return what stands before the first turn of rows with a system prompt, or with none."""
    return b"%b%b," % (BEGINNING, orjson.dumps({"role": "system", "content": prompt})) if prompt else BEGINNING


def shuffled(rows: np.ndarray, seed: int) -> np.ndarray:
    """Return the rows in an order of the seed's. ``RandomState`` keeps its stream across NumPy's versions (NEP 19)."""
    return np.random.RandomState(seed).permutation(rows)


def thinned(replies: np.ndarray, alive: np.ndarray, seed: int) -> np.ndarray:
    """Return which rows go because their reply is said so often that it would drown the voice (shape: rows, boolean).

    Up to 1 in 200 of all rows (20 at least) a short reply keeps every row; beyond, it keeps the limit times
    ``1 + ln(count / limit)``: what is said more often still is, in proportion. Which ones stay is spread evenly.
    """
    gone = np.zeros(len(replies), bool)
    rows = np.flatnonzero(alive & (replies >= 0))
    counts = np.bincount(replies[rows]) if len(rows) else np.empty(0, np.int64)
    limit = max(20, int(alive.sum()) // 200)
    chooser = random.Random(seed)  # noqa: S311 - a reproducible choice, no secret
    for reply in np.flatnonzero(counts > limit).tolist():
        own = rows[replies[rows] == reply]
        keep = int(limit * (1 + np.log(len(own) / limit)))
        shift = chooser.random()
        numbers = np.floor((np.arange(len(own) + 1) + shift) * keep / len(own))
        gone[own[numbers[1:] == numbers[:-1]]] = True
    return gone
