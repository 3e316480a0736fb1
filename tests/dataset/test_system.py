"""Nine conversations in ten carry the system prompt; the choice hangs on the conversation and the seed alone."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from twin.dataset.system import OTHER_SHARE, prompt_of


def prompts(count, seed=0, **more):
    return [prompt_of(f"c{number}", "P", "O", seed, **more) for number in range(count)]


def test_shares_of_many_conversations():
    share = {kind: count / 4000 for kind, count in Counter(prompts(4000)).items()}
    assert abs(share["P"] - (1 - OTHER_SHARE)) < 0.02
    assert abs(share["O"] - OTHER_SHARE / 2) < 0.015
    assert abs(share[""] - OTHER_SHARE / 2) < 0.015


@given(st.integers(0, 100), st.text(max_size=9))
def test_the_choice_is_the_conversations_own(seed, name):
    assert prompt_of(name, "P", "O", seed) == prompt_of(name, "P", "O", seed)


def test_seeds_choose_differently():
    assert prompts(200, 1) != prompts(200, 2)


def test_with_no_share_all_carry_the_prompt():
    assert set(prompts(200, share=0)) == {"P"}
