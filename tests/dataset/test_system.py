"""Nine conversations in ten carry the system prompt; the choice hangs on the conversation and the seed alone."""

from hypothesis import given
from hypothesis import strategies as st

from twin.dataset.system import OTHER_SHARE, with_system
from twin.records import Example, Turn

TURNS = (Turn("user", "q"), Turn("assistant", "a"))


def rows(count, each=2):
    return [Example(f"c{n}:{k}", f"c{n}", "chat", TURNS) for n in range(count) for k in range(each)]


def system_of(row):
    return row.turns[0].content if row.turns[0].role == "system" else None


def test_shares_of_many_conversations():
    done = with_system(rows(4000, 1), "P", "O", seed=0)
    share = {kind: sum(system_of(row) == kind for row in done) / len(done) for kind in ("P", "O", None)}
    assert abs(share["P"] - (1 - OTHER_SHARE)) < 0.02
    assert abs(share["O"] - OTHER_SHARE / 2) < 0.015
    assert abs(share[None] - OTHER_SHARE / 2) < 0.015


@given(st.integers(0, 100), st.integers(1, 30))
def test_the_rows_of_a_conversation_agree_whatever_stands_around(seed, count):
    done = with_system(rows(count), "P", "O", seed)
    choice = {}
    for row in done:
        assert choice.setdefault(row.conversation_id, system_of(row)) == system_of(row)
        assert row.turns[-2:] == TURNS
        assert len(row.turns) == 2 + (system_of(row) is not None)
    last = with_system(rows(count)[-2:], "P", "O", seed)
    assert last == done[-2:]


def test_seeds_choose_differently():
    assert with_system(rows(200), "P", "O", 1) != with_system(rows(200), "P", "O", 2)


def test_with_no_share_all_carry_the_prompt():
    assert {system_of(row) for row in with_system(rows(200), "P", "O", 0, share=0)} == {"P"}


def test_an_empty_prompt_is_no_turn():
    assert with_system(rows(5), "", "", 0) == rows(5)
