"""Padded batches: what stands in them, and which samples stand together."""

from hypothesis import given
from hypothesis import strategies as st

from tests.training.test_prefix_tree import sample, sample_lists
from twin.training.padded import length_groups, padded


def test_what_is_drawn_at_the_top_of_the_module():
    batch = padded([sample(7, 7, 7, 1, 2, 3, prompt=4), sample(7, 7, 4, 5, prompt=2)])
    assert batch.input_ids.tolist() == [[7, 7, 7, 1, 2], [7, 7, 4, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch.kept.tolist() == [1, 2, 3, 4]
    assert (batch.rows.tolist(), batch.kept[batch.columns].tolist()) == ([0, 0, 1, 1], [3, 4, 1, 2])
    assert batch.targets.tolist() == [2, 3, 4, 5]
    assert [own.tolist() for own in batch.of_sample] == [[0, 1], [2, 3]]
    assert batch.computed == 10


@given(sample_lists())
def test_every_supervised_token_is_predicted_from_the_one_before_it(samples):
    batch = padded(samples)
    for number, (one, pairs) in enumerate(zip(samples, batch.of_sample, strict=True)):
        assert set(batch.rows[pairs]) == {number}
        columns = batch.kept[batch.columns[pairs]]
        assert columns.tolist() == list(range(one.prompt_length - 1, len(one.input_ids) - 1))
        assert batch.input_ids[number, columns].tolist() == list(one.input_ids[one.prompt_length - 1 : -1])
        assert batch.targets[pairs].tolist() == list(one.input_ids[one.prompt_length :])
        assert batch.attention_mask[number].sum() == len(one.input_ids) - 1
    assert batch.weights.tolist() == [1] * len(batch.targets)


@given(sample_lists(), st.integers(1, 60))
def test_groups_hold_each_sample_once_and_keep_the_budget(samples, budget):
    groups = length_groups(samples, budget)
    assert sorted(number for group in groups for number in group) == list(range(len(samples)))
    for group in groups:
        lengths = [len(samples[number].input_ids) - 1 for number in group]
        assert lengths == sorted(lengths)
        assert len(group) == 1 or len(group) * lengths[-1] <= budget
