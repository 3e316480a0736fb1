"""The app's JSONL, line by line: rows that train are kept as they are, the rest is left out and counted by reason."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import IO, Any

import orjson

MAX_LINE_BYTES = 64 << 20
TOO_LONG = f"line over {MAX_LINE_BYTES >> 20} MiB"
NO_JSON = "line that is no JSON"
NO_ROW = "row of no known shape"
NO_REPLY = "row without a prompt and a reply to it"

_SIDES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
_SPEAKER = re.compile(r"([^:\n]{1,60}): ")
_BOM = b"\xef\xbb\xbf"


class RowFilter:
    """Takes bytes as they come and writes the lines that are rows.

    Args:
        out: where they go.
        dropped: counts the others.
    """

    def __init__(self, out: IO[bytes], dropped: Counter[str]) -> None:
        self.rows = 0
        self.lines = 0
        self._out = out
        self._dropped = dropped
        self._line = bytearray()
        self._length = 0

    def take(self, piece: bytes) -> None:
        """Read on."""
        for number, part in enumerate(piece.split(b"\n")):
            if number:
                self._end_line()
            self._length += len(part)
            if self._length <= MAX_LINE_BYTES:
                self._line += part
            else:
                self._line.clear()

    def close(self) -> None:
        """Say that there is no more; a last line needs no line end."""
        self._end_line()

    def _end_line(self) -> None:
        line, too_long = bytes(self._line).removeprefix(_BOM).strip(), self._length > MAX_LINE_BYTES
        self._line.clear()
        self._length = 0
        if not line and not too_long:
            return
        self.lines += 1
        problem = TOO_LONG if too_long else row_problem(line)
        if problem:
            self._dropped[problem] += 1
        else:
            self._out.write(line + b"\n")
            self.rows += 1


def row_problem(line: bytes) -> str:
    """Return why a line is no row to learn from; empty when it is one.

    Args:
        line: JSON of one of the shapes chatml, alpaca, sharegpt, raw, or the app's own context and response.
    """
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        return NO_JSON
    try:
        sides = _sides(row)
    except (KeyError, TypeError, ValueError, AttributeError):
        return NO_ROW
    last = len(sides) - 1 - sides[::-1].index("assistant") if "assistant" in sides else 0
    return "" if "user" in sides[:last] else NO_REPLY


def _sides(row: Any) -> list[str]:
    """Return who says something, turn by turn; the shapes are told apart in the order of ``dataset.formats``.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: not a row.
    """
    if not isinstance(row, dict):
        raise TypeError("no object")
    if "messages" in row:
        return _said([(turn["role"], turn["content"]) for turn in row["messages"]])
    _said([("system", row.get("system") or "")])
    if "conversations" in row:
        return _said([(turn["from"], turn["value"]) for turn in row["conversations"]])
    if "instruction" in row:
        for ask, answer in row.get("history") or []:
            _said([("user", ask), ("assistant", answer)])
        asked = [("user", row["instruction"]), ("user", row.get("input") or "")]
        return _said([*asked, ("assistant", row["output"])])
    if "context" in row:
        return _said([("user", row["context"]), ("assistant", row["response"])])
    return _spoken(row)


def _said(turns: Sequence[tuple[Any, Any]]) -> list[str]:
    """Return the sides of the turns that hold words."""
    if not all(isinstance(words, str) for _, words in turns):
        raise TypeError("a text is expected")
    return [side for side, words in ((_SIDES[side], words) for side, words in turns) if words.strip()]


def _spoken(row: dict[str, Any]) -> list[str]:
    """Return the sides of a ``raw`` row: by its spans, or by the names before the words; who speaks last is learned."""
    text = row["text"]
    if not isinstance(text, str):
        raise TypeError("a text is expected")
    if "spans" in row:
        places = [(one["role"], one["start"], one["stop"]) for one in row["spans"]]
        if not all(type(place) is int and place >= 0 for _, *span in places for place in span):
            raise TypeError("places in the text are expected")
        return _said([(side, text[start:stop]) for side, start, stop in places])
    if not _SPEAKER.match(text):
        raise ValueError("no speaker")
    names = [match[1] for line in text.split("\n") if (match := _SPEAKER.match(line))]
    return ["assistant" if name == names[-1] else "user" for name in names]
