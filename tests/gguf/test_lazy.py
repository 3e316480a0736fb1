"""Rows in another order: found by labels, read in blocks; anything else that a graph does is not taken for one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twin.gguf import lazy
from twin.gguf.lazy import _Leaf

COLUMNS = 6


def permuted(weight, heads=4):
    """What llama.cpp's converter does to queries and keys."""
    count, columns = weight.shape
    return weight.reshape(heads, 2, count // heads // 2, columns).swapaxes(1, 2).reshape(count, columns)


MOVES = {
    "nothing": lambda weight: weight,
    "heads": permuted,
    "a part": lambda weight: weight[8:24],
    "back to front": lambda weight: weight.flip(0),
    "twice": lambda weight: torch.cat([weight, weight[:2]]),
}
MORE = {
    "one more": lambda weight: weight + 1,
    "the other sign": lambda weight: -weight,
    "no sign": lambda weight: weight.abs(),
    "doubled": lambda weight: weight * 2,
    "turned": lambda weight: weight.T,
    "columns moved": lambda weight: weight.flip(1),
    "heads of columns moved": lambda weight: permuted(permuted(weight).T, 1).T,
    "rows mixed": lambda weight: weight.reshape(-1).roll(1).reshape(weight.shape),
    "a mean": lambda weight: weight.float(),
    "cut": lambda weight: weight[:, :2],
    "added": lambda weight: weight + weight.flip(0),
}


def order_of(move, one):
    """What is found of a move of a leaf's rows."""
    rows, columns = (move(lazy._labels(one, dimension)) for dimension in (0, 1))
    return lazy._order(rows, columns, one, tuple(rows.shape))


def leaf(count=32, columns=COLUMNS, file=None, **more):
    return _Leaf("w", file, 0, (count, columns), torch.float32, None, **more)


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("count", [32, 40])
def test_rows_that_move_are_found(name, count):
    one = leaf(count)
    order = order_of(MOVES[name], one)
    values = torch.randn(count, COLUMNS)
    assert torch.equal(values[order], MOVES[name](values))


@pytest.mark.parametrize("name", MORE)
@pytest.mark.parametrize("count", [32, 40])  # powers of two divide the range of the labels
def test_anything_else_is_computed_as_a_whole(name, count):
    assert order_of(MORE[name], leaf(count)) is None


@given(st.integers(1, 300_000))
def test_labels_are_all_different(count):
    assert len(lazy._numbers(count).unique()) == count


@pytest.mark.parametrize("name", MOVES)
def test_blocks_in_another_order(tmp_path, name):
    values = torch.randn(32, COLUMNS)
    file = tmp_path / "w"
    file.write_bytes(values.numpy().tobytes())
    one, whole = leaf(file=file), MOVES[name](values)
    order = order_of(MOVES[name], one)
    for size in (1, 3, 7, 32):
        blocks = [
            lazy._ordered(one, order, start, min(start + size, len(whole))) for start in range(0, len(whole), size)
        ]
        assert torch.equal(torch.cat(blocks), whole)


def test_rows_far_apart_are_read_one_by_one(tmp_path):
    values = torch.randn(1000, COLUMNS)
    file = tmp_path / "w"
    file.write_bytes(values.numpy().tobytes())
    read = []
    one = leaf(1000, file=file)
    counted = SimpleNamespace(rows=lambda start, stop: read.append(stop - start) or one.rows(start, stop))
    order = torch.tensor([999, 0, 500])
    assert torch.equal(lazy._ordered(counted, order, 0, 3), values[order])
    assert read == [1, 1, 1]
