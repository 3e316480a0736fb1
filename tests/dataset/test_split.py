"""Whole conversations are held out, with all that say the same; a leak is seen whoever made it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.dataset.split import check, groups, held_out, same_lines
from twin.errors import GateError
from twin.settings import ExportSettings

DAY = 86_400.0


def talks(count):
    return [(f"c{number}", float(number)) for number in range(count)]


pairs = st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=14)


@given(pairs)
def test_groups_are_what_hangs_together(bound):
    found = groups(12, bound)
    for one, other in bound:
        if one != other:
            assert found[one] == found[other]
            assert {one, other} <= set(found[one])
    reached = {one: {one} for one in range(12)}
    for _ in range(12):
        for one, other in bound:
            both = reached[one] | reached[other]
            for number in both:
                reached[number] = reached[number] | both
    assert found == {one: sorted(group) for one, group in reached.items() if len(group) > 1}


@given(
    bound=pairs,
    share=st.floats(0, 0.5),
    by=st.sampled_from(["seed", "time"]),
    seed=st.integers(0, 5),
    fixed=st.frozensets(st.integers(0, 11), max_size=3),
)
def test_a_group_is_on_one_side(bound, share, by, seed, fixed):
    settings = ExportSettings(validation_split=share, split_by=by, seed=seed)
    together = groups(12, bound)
    out = held_out(talks(12), settings, together, fixed)
    assert out == held_out(talks(12), settings, together, fixed)
    assert not out & fixed
    for group in together.values():
        assert out.issuperset(group) or out.isdisjoint(group)
    assert len(out) <= max(1, round(12 * share))


@given(st.integers(2, 60), st.floats(0.01, 0.5), st.integers(0, 9))
def test_the_share_is_of_conversations(count, share, seed):
    out = held_out(talks(count), ExportSettings(validation_split=share, seed=seed))
    assert len(out) == max(1, round(count * share))
    backward = held_out(list(reversed(talks(count))), ExportSettings(validation_split=share, seed=seed))
    assert {count - 1 - number for number in backward} == out


@pytest.mark.parametrize(("count", "share"), [(0, 0.1), (1, 0.5), (5, 0)])
def test_nothing_is_held_out(count, share):
    assert held_out(talks(count), ExportSettings(validation_split=share)) == set()


def test_what_is_held_out_stays_so_when_new_conversations_come():
    before = held_out(talks(200), ExportSettings())
    after = held_out(talks(260), ExportSettings())
    old = {number for number in after if number < 200}
    assert len(before) == 20
    assert len(after) == 26
    assert len(old - before) <= 6 <= len(before & old)
    assert len(before - old) <= 6


def test_the_seed_decides():
    assert len({frozenset(held_out(talks(50), ExportSettings(seed=seed))) for seed in range(10)}) == 10


def test_by_time_the_last_ones_and_undated_is_early():
    dated = [("late", 9 * DAY), ("never", None), ("early", 1 * DAY), ("mid", 5 * DAY)]
    assert held_out(dated, ExportSettings(split_by="time", validation_split=0.5)) == {0, 3}


def test_by_time_what_hangs_on_an_early_conversation_stays_with_it():
    settings = ExportSettings(split_by="time", validation_split=0.5)
    assert held_out(talks(6), settings) == {3, 4, 5}
    assert held_out(talks(6), settings, groups(6, [(0, 4)])) == {3, 5}


def test_sessions_with_one_line_in_common():
    keys, sessions = np.array([7, 8, 7, 9, 7]), np.array([3, 3, 1, 2, 1])
    assert same_lines(keys, sessions) == [(1, 3)]
    assert same_lines(keys[:0], sessions[:0]) == []


# ---------------------------------------------------------------- the check, and controls in which it says no

VAL = np.array([False, True, False])  # of sessions
SESSION = np.array([0, 1, 2])
LENGTH = np.array([80, 80, 80])
NO_PAIRS = np.empty((0, 2), np.int64), np.empty(0)
NO_LINES = np.empty(0, np.int64), np.empty(0, np.int64)


def checked(keys=(1, 2, 3), pairs=NO_PAIRS, lines=NO_LINES, lengths=LENGTH):
    return check(VAL, (SESSION, np.array(keys), lengths), pairs, lines)


def alike(one, other, similarity):
    return np.array([(one, other)]), np.array([similarity])


def test_a_clean_split_and_its_closest_pair():
    assert checked() is None
    assert checked(pairs=alike(0, 2, 0.95)) is None  # on one side
    assert checked(pairs=alike(1, 2, 0.6)) == (0.6, 2, 1)
    both = np.array([(0, 1), (1, 2)]), np.array([0.3, 0.5])
    assert checked(pairs=both).similarity == 0.5


@pytest.mark.parametrize(
    ("planted", "what"),
    [
        ({"keys": (1, 1, 3)}, "the same row on both sides"),
        ({"pairs": alike(0, 1, 0.93)}, "rows that are 0.93 alike"),
        ({"lines": (np.array([5, 5]), np.array([0, 1]))}, "a long line of the same words"),
    ],
)
def test_a_planted_leak_is_caught(planted, what):
    with pytest.raises(GateError, match=what) as caught:
        checked(**planted)
    assert caught.value.exit_code == 5


def test_what_two_short_rows_share_is_no_leak():
    short = np.array([80, 5, 80])
    assert checked(keys=(1, 1, 3), lengths=short) is None
    assert checked(pairs=alike(0, 1, 0.95), lengths=short) is None
