"""Whole conversations are held out: seeded, stable, never a row here and its neighbour there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.dataset.split import held_out, split
from twin.records import Example, Turn
from twin.settings import ExportSettings

TURNS = (Turn("user", "q"), Turn("assistant", "a"))
DAY = 86_400.0


def row(conversation, number=0, kind="chat"):
    return Example(f"{conversation}:{number}", conversation, kind, TURNS)


tables = st.lists(
    st.tuples(
        st.integers(0, 8).map(lambda number: f"c{number}"),
        st.sampled_from(["chat", "chat", "chat", "memory", "journal"]),
    ),
    max_size=40,
)
times = st.none() | st.floats(0, 10 * DAY)


def rows_of(table, when):
    rows = []
    for number, (conversation, kind) in enumerate(table):
        own = conversation if kind == "chat" else f"{kind}{number}"
        at = when.get(conversation) if kind == "chat" else (number * DAY / 10 if kind == "journal" else None)
        rows.append((row(own, number, kind), at))
    return rows


@given(
    tables,
    st.dictionaries(st.integers(0, 8).map(lambda number: f"c{number}"), times),
    st.floats(0, 0.5),
    st.sampled_from(["seed", "time"]),
    st.integers(0, 5),
)
def test_no_conversation_on_both_sides_and_no_row_lost(table, when, share, by, seed):
    rows = rows_of(table, when)
    settings = ExportSettings(validation_split=share, split_by=by, seed=seed)
    train, val = split(rows, settings)
    assert {one.conversation_id for one in train}.isdisjoint(one.conversation_id for one in val)
    assert sorted(one.id for one in [*train, *val]) == sorted(one.id for one, _ in rows)
    assert split(rows, settings) == (train, val)
    order = [one.id for one, _ in rows]
    assert [order.index(one.id) for one in val] == sorted(order.index(one.id) for one in val)
    if by == "seed":
        assert {one.kind for one in val} <= {"chat"}


@given(st.integers(2, 60), st.floats(0.01, 0.5), st.integers(0, 9))
def test_the_share_is_of_conversations(count, share, seed):
    talks = [(f"c{number}", float(number)) for number in range(count)]
    out = held_out(talks, ExportSettings(validation_split=share, seed=seed))
    assert len(out) == max(1, round(count * share))
    assert out < {name for name, _ in talks}
    assert held_out(list(reversed(talks)), ExportSettings(validation_split=share, seed=seed)) == out


@pytest.mark.parametrize(("count", "share"), [(0, 0.1), (1, 0.5), (5, 0)])
def test_nothing_is_held_out(count, share):
    talks = [(f"c{number}", None) for number in range(count)]
    assert held_out(talks, ExportSettings(validation_split=share)) == set()


def test_the_seed_decides():
    talks = [(f"c{number}", None) for number in range(50)]
    picks = {frozenset(held_out(talks, ExportSettings(seed=seed))) for seed in range(10)}
    assert len(picks) == 10


def test_by_time_the_last_ones_and_undated_is_early():
    talks = [("late", 9 * DAY), ("never", None), ("early", 1 * DAY), ("mid", 5 * DAY)]
    settings = ExportSettings(split_by="time", validation_split=0.5)
    assert held_out(talks, settings) == {"late", "mid"}


def test_by_time_a_journal_of_the_held_out_days_is_held_out():
    rows = [(row(f"c{day}"), day * DAY) for day in range(10)]
    rows += [(row(f"j{day}", kind="journal"), day * DAY) for day in (3, 8, 9)]
    rows.append((row("m", kind="memory"), None))
    train, val = split(rows, ExportSettings(split_by="time", validation_split=0.2))
    assert {one.conversation_id for one in val} == {"c8", "c9", "j8", "j9"}
    assert {"j3", "m", "c0"} <= {one.conversation_id for one in train}


@given(tables, st.integers(0, 5))
def test_adding_memories_moves_no_conversation(table, seed):
    rows = rows_of(table, {})
    more = [*rows, *[(row(f"extra{number}", number, "memory"), None) for number in range(5)]]
    settings = ExportSettings(seed=seed, validation_split=0.3)
    assert split(rows, settings)[1] == split(more, settings)[1]
