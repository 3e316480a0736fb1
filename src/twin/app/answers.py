"""JSON of any size, checked as its bytes pass: is it one whole object, of the promised types, and what does it hold?

Not obvious: nothing of it is kept, so a brain of gigabytes costs the memory of its longest text. ijson's parser is fed
(``basic_parse_coro``), which also counts: an answer can be well-formed and empty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import ijson

from twin.errors import first_line

MAX_DEPTH = 100
MAX_VALUE_BYTES = 64 << 20  # of one text or number
# ijson's C parser has no word for a number of thousands of digits: Python's own refusal comes out as a SystemError.
_BROKEN = (ijson.JSONError, ValueError, ArithmeticError, SystemError)
_OPENS = frozenset({"start_map", "start_array"})
_CLOSES = frozenset({"end_map", "end_array"})


class BrokenAnswerError(ValueError):
    """The bytes are not what was promised; the message says what they are, to follow "it is"."""


class ObjectCheck:
    """Reads one JSON object piece by piece.

    Attributes:
        types: the first event of each key's value (``start_array``, ``string`` …).
        items: by key: how many objects its list holds, or how many texts, numbers and keys lie inside the lists and
            objects of its object. A scalar right below the object (a name, say) does not count.
    """

    def __init__(self) -> None:
        self.types: dict[str, str] = {}
        self.items: Counter[str] = Counter()
        self._events = ijson.sendable_list()
        self._parser = ijson.basic_parse_coro(self._events)
        self._depth = 0
        self._key = ""
        self._silent_bytes = 0

    def feed(self, piece: bytes) -> None:
        """Read on.

        Raises:
            BrokenAnswerError: no JSON, no object, nested too deep, or one value too long.
        """
        try:
            self._parser.send(piece)
        except _BROKEN as error:
            raise BrokenAnswerError(f"broken JSON ({first_line(error)[:100]})") from None
        self._silent_bytes = 0 if self._events else self._silent_bytes + len(piece)
        if self._silent_bytes > MAX_VALUE_BYTES:
            raise BrokenAnswerError(f"JSON with a value of over {MAX_VALUE_BYTES:,} bytes")
        self._see(self._events)
        del self._events[:]

    def close(self) -> None:
        """Say that there is no more.

        Raises:
            BrokenAnswerError: cut short, or nothing at all.
        """
        try:
            self._parser.close()
        except _BROKEN as error:
            raise BrokenAnswerError(f"cut short ({first_line(error)[:100]})") from None
        self._see(self._events)

    def _see(self, events: Iterable[tuple[str, Any]]) -> None:
        for event, value in events:
            if event in _CLOSES:
                self._depth -= 1
                continue
            if self._depth == 0 and event != "start_map":
                raise BrokenAnswerError("JSON, but no object")
            if self._depth == 1:
                if event == "map_key":
                    self._key = value
                else:
                    self.types[self._key] = event
            elif self._depth >= 2:
                self._count(event, value)
            if event in _OPENS:
                self._depth += 1
                if self._depth > MAX_DEPTH:
                    raise BrokenAnswerError(f"JSON nested over {MAX_DEPTH} deep")

    def _count(self, event: str, value: Any) -> None:
        if self.types[self._key] == "start_array":
            if self._depth == 2 and event == "start_map":
                self.items[self._key] += 1
        elif self._depth > 2 and event not in _OPENS and value not in ("", None):
            self.items[self._key] += 1
