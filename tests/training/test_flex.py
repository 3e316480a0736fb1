"""FlexAttention over a tree: its rule is the mask, its sums are those of the blocks; gradients where a GPU is."""

import pytest
import torch
from hypothesis import given
from torch.nn.attention.flex_attention import create_mask

from tests.training.test_attention import assert_same, one_by_one
from tests.training.test_execution import SAMPLES, TREES, computed, random_model
from tests.training.test_prefix_tree import sample, sample_lists
from twin.training import attention, execution, flex
from twin.training.prefix_tree import pack

WIDE = {"hidden_size": 64, "head_dim": 16}  # its kernels take no narrower heads


def dense(rule, size):
    return create_mask(rule, None, None, size, size, device="cpu")[0, 0]


@given(sample_lists())
def test_the_rule_is_the_mask_of_ancestors(samples):
    one = pack(samples)
    found = dense(flex.prepared(one, torch.float32, "cpu").rule(None), one.computed)
    assert torch.equal(found, torch.from_numpy(one.mask()))


@given(sample_lists())
def test_a_window_takes_the_ancestors_that_are_near(samples):
    one = pack(samples)
    depth = torch.from_numpy(one.position_ids)
    wanted = torch.from_numpy(one.mask()) & (depth[:, None] - depth < 3)
    assert torch.equal(dense(flex.prepared(one, torch.float32, "cpu").rule(3), one.computed), wanted)


def test_a_window_that_holds_the_longest_sample_is_none():
    spans = flex.prepared(pack(SAMPLES), torch.float32, "cpu")
    assert spans.mask(1000) is spans.mask(None)
    assert spans.mask(5) is not spans.mask(None)


@pytest.mark.parametrize("name", sorted(TREES))
def test_the_losses_of_every_family_are_those_of_the_blocks(name):
    """On a CPU, where FlexAttention goes forward alone; the control is a rule that lets siblings see one another."""
    model = random_model(name, **TREES[name]).eval()
    found = []
    with torch.no_grad():
        for attends in (attention, flex):
            attends.register()
            model.set_attn_implementation(attends.NAME)
            found.append(execution.PrefixTree("", attends=attends.NAME).losses(model, pack(SAMPLES), torch.float32))
        assert torch.allclose(*found, atol=1e-4)
        spoilt = pack(SAMPLES)
        spoilt.parents[1:] = range(len(spoilt.parents) - 1)  # one path
        other = execution.PrefixTree("", attends=flex.NAME).losses(model, spoilt, torch.float32)
    assert float((other - found[0]).abs().mean()) > 1e-2


@pytest.mark.gpu
@pytest.mark.parametrize("name", sorted(TREES))
def test_on_a_gpu_loss_and_gradient_of_every_family_are_those_of_the_samples_one_by_one(name, cuda):
    model = random_model(name, **TREES[name] | WIDE).to("cuda")
    model.set_attn_implementation("eager")
    plain = one_by_one(model, SAMPLES)
    chosen = execution.choose(model, SAMPLES, torch.float32)
    assert isinstance(chosen, execution.PrefixTree), chosen.why
    assert chosen.attends == flex.NAME, chosen.why
    assert_same(plain, computed(chosen, model, SAMPLES))
    smaller = execution.PrefixTree("", 20, flex.NAME)
    assert len(smaller.cut(SAMPLES)) > 1
    assert_same(plain, computed(smaller, model, SAMPLES))


@pytest.mark.gpu
def test_on_a_gpu_packs_of_many_lengths_are_compiled_a_few_times(cuda):
    """Past a limit PyTorch goes on uncompiled without a word: many times as slow, and all scores in memory."""
    model = random_model("Llama", **WIDE).to("cuda")
    tree = execution.choose(model, SAMPLES, torch.float32)
    torch._dynamo.utils.counters.clear()
    for number in range(40, 400, 9):
        long = sample(*(3 + place % 90 for place in range(number)), 2, prompt=4)
        computed(tree, model, [*SAMPLES, long])
        with torch.no_grad():
            tree.losses(model, pack([*SAMPLES, long]), torch.float32)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 6


@pytest.mark.gpu
def test_on_a_gpu_without_flexattention_the_blocks_are_taken(cuda, monkeypatch):
    def broken(*given, **named):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(flex, "_compiled", lambda: broken)
    model = random_model("Llama", **WIDE).to("cuda")
    plain = one_by_one(model, SAMPLES)
    chosen = execution.choose(model, SAMPLES, torch.float32)
    assert chosen.attends == attention.NAME
    assert "no compiler with FlexAttention" in chosen.why
    assert_same(plain, computed(chosen, model, SAMPLES))
