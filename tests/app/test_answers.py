"""The streaming checks: what they count equals what a parser that holds everything counts, however the bytes come."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.app import rows
from twin.app.answers import BrokenAnswerError, ObjectCheck
from twin.app.rows import NO_JSON, NO_REPLY, NO_ROW, RowFilter, row_problem

scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)
objects = st.dictionaries(st.sampled_from(["training_examples", "personality_profile", "x"]), values)


def cut(data: bytes, places: list[int]) -> Iterator[bytes]:
    """Yield the data in pieces."""
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    for start, stop in pairwise(ends):
        yield data[start:stop]


def leaves(value: Any) -> int:
    """Count texts, numbers and keys inside lists and objects, as the check's docstring says."""
    if isinstance(value, dict):
        return sum((key != "") + leaves(inner) for key, inner in value.items())
    if isinstance(value, list):
        return sum(leaves(inner) for inner in value)
    return value not in ("", None)


@given(objects, st.lists(st.integers(0, 10_000), max_size=6))
def test_what_is_counted_is_what_is_there(value: dict[str, Any], places: list[int]) -> None:
    check = ObjectCheck()
    for piece in cut(orjson.dumps(value), places):
        check.feed(piece)
    check.close()
    assert set(check.types) == set(value)
    for key, inner in value.items():
        if isinstance(inner, list):
            assert check.items[key] == sum(isinstance(item, dict) for item in inner)
        elif isinstance(inner, dict):
            nested = [one for one in inner.values() if isinstance(one, dict | list)]
            assert check.items[key] == sum(leaves(one) for one in nested)
        else:
            assert check.items[key] == 0


@given(objects, st.integers(1, 10_000))
def test_a_cut_answer_is_broken(value: dict[str, Any], place: int) -> None:
    data = orjson.dumps(value)
    check = ObjectCheck()
    with pytest.raises(BrokenAnswerError):
        check.feed(data[: len(data) - 1 - place % len(data)])
        check.close()


# --- rows -----------------------------------------------------------------------------------------------------------

ROW = b'{"context": "hi", "response": "hello"}'


@given(st.lists(st.sampled_from([ROW, b"", b"{", b" ", b"[]", b"\xff", ROW + b"\r"]), max_size=8), st.booleans(),
       st.lists(st.integers(0, 10_000), max_size=6))  # fmt: skip
def test_lines_are_the_same_however_they_come(lines: list[bytes], ends: bool, places: list[int]) -> None:
    data = b"\n".join(lines) + (b"\n" if ends else b"")
    out, dropped = io.BytesIO(), Counter[str]()
    kept = RowFilter(out, dropped)
    for piece in cut(data, places):
        kept.take(piece)
    kept.close()
    good = [line.strip() for line in lines if line.startswith(ROW)]
    assert out.getvalue() == b"".join(line + b"\n" for line in good)
    assert kept.rows == len(good)
    assert dropped == Counter({NO_JSON: sum(line in (b"{", b"\xff") for line in lines), NO_ROW: lines.count(b"[]")})
    assert kept.lines == sum(bool(line.strip()) for line in lines)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (ROW, ""), (b'{"context": "", "response": "x"}', NO_REPLY), (b'{"context": "x", "response": " "}', NO_REPLY),
        (b'{"context": "x"}', NO_ROW), (b'{"context": "x", "response": 3}', NO_ROW), (b'"x"', NO_ROW), (b"3", NO_ROW),
        (b"null", NO_ROW), (b"[" * 2000, NO_JSON), (b'{"a": "\\ud800"}', NO_JSON), (b"{}", NO_ROW),
        (b'{"messages": []}', NO_REPLY), (b'{"messages": {}}', NO_REPLY), (b'{"messages": null}', NO_ROW),
        (b'{"messages": [{"role": "tool", "content": "x"}]}', NO_ROW), (b'{"messages": ["x"]}', NO_ROW),
        (b'{"messages": [{"role": ["user"], "content": "x"}]}', NO_ROW),
        (b'{"messages": [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]}', NO_REPLY),
        (b'{"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}], "system": 3}', NO_ROW),
        (b'{"instruction": "x", "output": "y"}', ""),
        (b'{"instruction": "x", "output": "y", "history": [["a"]]}', NO_ROW),
        (b'{"instruction": "x", "output": "y", "history": 3}', NO_ROW), (b'{"instruction": "x"}', NO_ROW),
        (b'{"text": "Bea: hi\\nAda: hello"}', ""), (b'{"text": "hi"}', NO_ROW), (b'{"text": "Ada: hi"}', NO_REPLY),
        (b'{"text": 3}', NO_ROW), (b'{"text": "ab", "spans": [{"role": "user", "start": 0, "stop": 1}, {"role": "assistant", "start": 1, "stop": 2}]}', ""),  # noqa: E501
        (b'{"text": "ab", "spans": [["user", 0, 1], ["assistant", 1, "2"]]}', NO_ROW),
        (b'{"text": "ab", "spans": [{"role": "user", "start": 0, "stop": 1}, {"role": "assistant", "start": 5, "stop": 9}]}', NO_REPLY),  # noqa: E501
        (b'{"text": "ab", "spans": [["user", 0]]}', NO_ROW), (b'{"text": "ab", "spans": 3}', NO_ROW),
    ],
)  # fmt: skip
def test_a_row_is_known_or_not(row: bytes, problem: str) -> None:
    assert row_problem(row) == problem


def test_a_line_at_the_bound_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_LINE_BYTES", len(ROW))
    for line, count in ((ROW, 1), (ROW + b" ", 0)):
        dropped = Counter[str]()
        kept = RowFilter(io.BytesIO(), dropped)
        kept.take(line)
        kept.close()
        assert (kept.rows, dropped.total()) == (count, 1 - count)
