"""What is told of sharing adds up, and is what plain counting on the samples says."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.test_prefix_tree import sample, sample_lists
from twin.records import Example, Turn
from twin.training.explain import System, account, costs, openings, samples_holding, systems, tree_tokens
from twin.training.prefix_tree import batches, common, pack, pack_within

BUDGETS = st.integers(1, 40)


def prefixes(own):
    """What a sample has computed: each beginning of it, but for the whole."""
    return [own.input_ids[:stop] for stop in range(1, len(own.input_ids))]


def plan(samples, batch_size, number):
    return [batches(samples, batch_size, seed) for seed in range(number)]


def test_golden():
    """The drawing at the top of the module, as two conversations and as one."""
    first, second = sample(7, 7, 7, 1, 2, 9, prompt=3, name="a"), sample(7, 7, 7, 3, 9, prompt=3, name="b")
    assert costs(pack([first, second])) == [(2, 3.5), (1, 2.5)]
    told = account([first, second], [[[first, second]]], 100)
    assert (told.tokens, told.last_tokens, told.unique_tokens, told.shared_history, told.shared_system) == (
        11, 2, 6, 3, 0,
    )  # fmt: skip
    assert told.padded_tokens == 12
    apart = account([first, other := replace(second, conversation_id="d")], [[[first, other]]], 100)
    assert (apart.shared_history, apart.shared_system) == (0, 3)


@given(sample_lists())
def test_costs_add_up_to_the_pack(samples):
    one = pack(samples)
    assert sum(cost for _, cost in costs(one)) == pytest.approx(len(one.input_ids))


@given(sample_lists())
def test_a_cost_is_that_of_the_definition(samples):
    held = Counter(prefix for own in samples for prefix in prefixes(own))
    for own, (alone, cost) in zip(samples, costs(pack(samples)), strict=True):
        assert alone == sum(held[prefix] == 1 for prefix in prefixes(own))
        assert cost == pytest.approx(float(sum(Fraction(1, held[prefix]) for prefix in prefixes(own))))


@given(sample_lists())
def test_the_samples_that_hold_a_token_are_counted(samples):
    held = Counter(prefix for own in samples for prefix in prefixes(own))
    assert sorted(samples_holding(pack(samples)).tolist()) == sorted(held.values())


@given(sample_lists())
def test_an_opening_is_what_another_conversation_begins_with_too(samples):
    for own, length in zip(samples, openings(samples), strict=True):
        others = [other for other in samples if other.conversation_id != own.conversation_id]
        assert length == max((common(own.input_ids, other.input_ids) for other in others), default=0)


@given(sample_lists())
def test_one_tree_is_the_trie_of_all(samples):
    assert tree_tokens(samples) == len(pack(samples).input_ids)
    assert pack(samples).whole == sum(len(own.input_ids) for own in samples)


@given(sample_lists(), st.integers(1, 4), st.integers(1, 3), BUDGETS)
def test_the_account_adds_up(samples, batch_size, number, budget):
    passes = plan(samples, batch_size, number)
    told = account(samples, passes, budget)
    packs = [one for steps in passes for step in steps for one in pack_within(step, budget)]
    assert told.unique_tokens == sum(one.computed for one in packs)
    assert (told.packs, told.largest_pack) == (len(packs), max(len(one.input_ids) for one in packs))
    assert told.steps == sum(map(len, passes))
    assert told.tokens - told.last_tokens - told.shared_system - told.shared_history == told.unique_tokens
    lengths = dict(zip((own.id for own in samples), openings(samples), strict=True))
    saved = {True: 0, False: 0}  # in openings, elsewhere
    for steps in passes:
        for step in steps:
            begin = 0
            for one in pack_within(step, budget):
                members = step[begin : begin + len(one.of_sample)]
                begin += len(members)
                held = Counter((prefix, len(prefix) <= lengths[own.id]) for own in members for prefix in prefixes(own))
                for (_, opens), times in held.items():
                    saved[opens] += times - 1
    assert (told.shared_system, told.shared_history) == (saved[True], saved[False])
    assert told.tokens == number * sum(len(own.input_ids) for own in samples)
    assert sum(cost.computed_tokens for cost in told.costs) == pytest.approx(told.unique_tokens)
    assert [(cost.id, cost.tokens, cost.times) for cost in told.costs] == [
        (own.id, len(own.input_ids), number) for own in samples
    ]
    assert told.one_tree_tokens <= told.unique_tokens <= told.padded_tokens
    assert told.padded_tokens >= told.tokens
    for cost in told.costs:
        assert cost.own_tokens <= cost.computed_tokens + 1e-9
        assert cost.computed_tokens <= number * (cost.tokens - 1) + 1e-9


def test_a_row_that_a_part_of_a_pass_leaves_out_costs_nothing():
    samples = [sample(1, 2, 3, name=name, conversation=name) for name in "ab"]
    told = account(samples, [[[samples[1]]]], 10)
    assert [(cost.id, cost.times, cost.computed_tokens) for cost in told.costs] == [("a", 0, 0.0), ("b", 1, 2.0)]


def test_system_prompts_are_counted_by_what_is_learned():
    def row(name, system, every_reply=False):
        turns = [Turn("system", system)] if system else []
        return Example(name, "c", "chat", (*turns, Turn("user", "?"), Turn("assistant", "!")), every_reply=every_reply)

    rows = [row("a", "be kind"), row("b", ""), row("a@b", "be kind", every_reply=True), row("gone", "too long")]
    learned = [sample(1, 2, name=name) for name in ("a", "b", "a@b@1", "a@b@3")]
    assert systems(rows, learned, lambda text: len(text.split())) == (System(2, 3), System(0, 1))
