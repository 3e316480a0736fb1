"""The trie holds each sample whole, each supervised token as often as samples say it, and no token twice."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.training.prefix_tree import _cut, ancestors, batches, common, pack, pack_within
from twin.training.samples import Sample


def sample(*ids, prompt=1, conversation="c", name="s"):
    return Sample(name, conversation, "chat", tuple(ids), prompt)


@st.composite
def sample_lists(draw, min_size=1):
    """Samples over few tokens, so that they share history, repeat, and are prefixes of one another."""
    ids = draw(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=10), min_size=min_size, max_size=10))
    return [
        sample(*own, prompt=draw(st.integers(1, len(own) - 1)), conversation=f"c{number // 3}", name=str(number))
        for number, own in enumerate(ids)
    ]


def path(one, index):
    """Return the indices from the root to a node."""
    way = []
    while index >= 0:
        way.append(index)
        index = int(one.parents[index])
    return way[::-1]


def test_golden():
    """The drawing at the top of the module."""
    one = pack([sample(7, 7, 7, 1, 2, 9, prompt=3), sample(7, 7, 7, 3, 9, prompt=3)])
    assert one.input_ids.tolist() == [7, 7, 7, 1, 2, 3]
    assert one.position_ids.tolist() == [0, 1, 2, 3, 4, 3]
    assert one.parents.tolist() == [-1, 0, 1, 2, 3, 2]
    pairs = list(zip(one.predictors.tolist(), one.targets.tolist(), one.weights.tolist(), strict=True))
    assert pairs == [(2, 1, 1), (2, 3, 1), (3, 2, 1), (4, 9, 1), (5, 9, 1)]
    assert one.mask()[5].tolist() == [True, True, True, False, False, True]


def test_a_strict_prefix_and_a_repeat_cost_nothing():
    long, short = sample(1, 2, 3, 4, 5, prompt=2), sample(1, 2, 3, prompt=2)
    one = pack([long, short, long])
    assert one.input_ids.tolist() == [1, 2, 3, 4]
    assert list(zip(one.predictors.tolist(), one.targets.tolist(), one.weights.tolist(), strict=True)) == [
        (1, 3, 3),
        (2, 4, 2),
        (3, 5, 2),
    ]


def test_no_samples():
    one = pack([])
    assert [len(array) for array in (one.input_ids, one.parents, one.predictors)] == [0, 0, 0]
    assert one.mask().shape == (0, 0)
    assert pack_within([], 10) == []
    assert batches([], 8, 0) == []


@given(sample_lists())
def test_the_trie_holds_each_sample(samples):
    one = pack(samples)
    ways = [tuple(one.input_ids[path(one, index)].tolist()) for index in range(len(one.input_ids))]
    assert len(set(ways)) == len(ways), "a shared prefix is computed twice"
    assert set(ways) == {own.input_ids[:stop] for own in samples for stop in range(1, len(own.input_ids))}
    assert one.position_ids.tolist() == [len(way) - 1 for way in ways]


@given(sample_lists())
def test_each_supervised_token_counts_as_often_as_samples_say_it(samples):
    one = pack(samples)
    expected = Counter(
        (own.input_ids[:place], own.input_ids[place])
        for own in samples
        for place in range(own.prompt_length, len(own.input_ids))
    )
    found = Counter()
    for predictor, target, weight in zip(one.predictors, one.targets, one.weights, strict=True):
        found[tuple(one.input_ids[path(one, int(predictor))].tolist()), int(target)] += int(weight)
    assert found == expected
    assert one.weights.sum() == sum(own.supervised for own in samples)
    assert len(one.predictors) == len(expected)


@given(sample_lists())
def test_each_sample_reads_its_own_pairs_out_of_the_trie(samples):
    one = pack(samples)
    assert len(one.of_sample) == len(samples)
    for own, pairs in zip(samples, one.of_sample, strict=True):
        learned = list(own.input_ids[own.prompt_length :])
        assert one.targets[pairs].tolist() == learned
        last = path(one, int(one.predictors[pairs[-1]]))
        assert one.input_ids[last].tolist() == list(own.input_ids[:-1])
        assert one.predictors[pairs].tolist() == last[own.prompt_length - 1 :]


@given(sample_lists())
def test_a_token_sees_its_ancestors_alone(samples):
    one = pack(samples)
    mask = one.mask()
    for index in range(len(one.input_ids)):
        assert np.flatnonzero(mask[index]).tolist() == path(one, index)
    assert not np.triu(mask, 1).any()


@given(sample_lists())
def test_depth_first(samples):
    one = pack(samples)
    for index, parent in enumerate(one.parents.tolist()):
        assert parent < index
        if index:
            assert parent in [-1, *path(one, index - 1)]


def test_ancestors_of_a_part_of_a_trie():
    assert ancestors(np.array([-5, 0, 0])).tolist() == [[True, False, False], [True, True, False], [True, False, True]]


@given(sample_lists(), st.integers(1, 30))
def test_packs_keep_the_budget_and_the_order(samples, budget):
    packs = pack_within(samples, budget)
    counts = [len(one.of_sample) for one in packs]
    assert sum(counts) == len(samples)
    begin = 0
    for one, count in zip(packs, counts, strict=True):
        group = samples[begin : begin + count]
        begin += count
        same = pack(group)
        assert one.input_ids.tolist() == same.input_ids.tolist()
        assert one.parents.tolist() == same.parents.tolist()
        assert len(one.input_ids) <= budget or count == 1 or len({own.input_ids for own in group}) == 1
    assert sum(one.computed for one in packs) == sum(len(one.input_ids) for one in packs)


def test_a_budget_for_all_is_one_pack():
    samples = [sample(1, 2, number, 5) for number in range(10)]
    assert len(pack_within(samples, 1000)) == 1
    assert sum(one.computed for one in pack_within(samples, 1000)) == 12
    assert sum(one.computed for one in pack_within(samples, 1)) == 30


def test_packs_are_even():
    """Filled one after another they would hold six samples and two."""
    samples = [sample(1, 2, *range(10 * number, 10 * number + 11)) for number in range(1, 9)]
    assert [len(one.of_sample) for one in pack_within(samples, 70)] == [4, 4]


@given(sample_lists(), st.integers(1, 30))
def test_a_pack_of_several_samples_keeps_to_the_budget(samples, budget):
    for one in pack_within(sorted(samples, key=lambda own: own.input_ids), budget):
        alike = len({own.input_ids[:-1] for own in samples}) == 1
        assert one.computed <= budget or len(one.of_sample) == 1 or alike


def test_last_tokens_are_not_counted():
    """Each is a target and never read."""
    samples = [sample(1, 2, 3, other, prompt=2) for other in (4, 5)]
    assert [one.computed for one in pack_within(samples, 3)] == [3]


@given(sample_lists(), st.integers(1, 30))
def test_even_packs_are_no_more_packs(samples, budget):
    ordered = sorted(samples, key=lambda own: own.input_ids)
    read = [own.input_ids[:-1] for own in ordered]
    lengths = [len(ids) for ids in read]
    shared = [0, *(common(one, other) for one, other in pairwise(read))]
    assert len(pack_within(ordered, budget)) == len(_cut(lengths, shared, budget))


@given(sample_lists(), st.integers(1, 6), st.integers(0, 5))
def test_a_pass_visits_each_sample_once(samples, batch_size, seed):
    passes = batches(samples, batch_size, seed)
    assert sorted(own.id for batch in passes for own in batch) == sorted(own.id for own in samples)
    assert all(batch_size <= len(batch) < 2 * batch_size for batch in passes[:-1])
    assert 0 < len(passes[-1]) < 2 * batch_size
    assert batches(samples, batch_size, seed) == passes


def test_conversations_stay_together_and_the_seed_shuffles_them():
    samples = [sample(1, 2, conversation=f"c{number // 4}", name=str(number)) for number in range(80)]
    passes = batches(samples, 4, 0)
    assert all(len({own.conversation_id for own in batch}) == 1 for batch in passes)
    assert len({str(batches(samples, 4, seed)) for seed in range(5)}) == 5


@pytest.mark.parametrize("length", [5, 9, 12])
def test_a_long_conversation_is_cut_into_batches(length):
    samples = [sample(1, 2, name=str(number)) for number in range(length)]
    assert sorted(len(batch) for batch in batches(samples, 4, 0))[-1] <= 7


@given(sample_lists(), st.integers(0, 60))
def test_a_filled_pack_is_the_pack_and_tokens_that_nobody_sees(samples, tokens):
    one = pack(samples)
    filled = one.filled(tokens)
    assert filled.computed == max(tokens, one.computed)
    seen = filled.mask()
    assert (seen[: one.computed, : one.computed] == one.mask()).all()
    assert seen[: one.computed, one.computed :].sum() == 0
    assert seen[one.computed :].sum() == filled.computed - one.computed
    assert filled.predictors is one.predictors
