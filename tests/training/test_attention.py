"""Attention over the trie: its blocks are the mask, and its loss and gradient are those of the samples one by one."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from transformers import LlamaConfig, LlamaForCausalLM

from tests.training.test_prefix_tree import sample, sample_lists
from twin.training import attention
from twin.training.prefix_tree import pack, pack_within

VOCABULARY = 64


@pytest.fixture(scope="module", autouse=True)
def one_thread_and_small_blocks():
    """Products this small are slower on several threads, and packs this small are one block but for these bounds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_BLOCK", 4)
        patch.setattr(attention, "_GAP", 2)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model():
    """Two layers, grouped heads, float32, random, and large enough weights for the attention to matter."""
    torch.manual_seed(0)
    attention.register()
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config).float()


def one_by_one(model, samples):
    """Return (token-mean loss, gradients) of a plain loop with the model's own attention."""
    model.set_attn_implementation("eager")
    model.zero_grad()
    total = torch.zeros(())
    for own in samples:
        ids = torch.tensor([own.input_ids], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, own.prompt_length - 1 : -1]
        total = total + torch.nn.functional.cross_entropy(logits, ids[0, own.prompt_length :], reduction="sum")
    loss = total / sum(own.supervised for own in samples)
    loss.backward()
    return loss.item(), {name: weight.grad.clone() for name, weight in model.named_parameters()}


def as_trees(model, packs):
    """Return the same of the packs."""
    model.set_attn_implementation(attention.NAME)
    model.zero_grad()
    supervised = sum(int(one.weights.sum()) for one in packs)
    loss = torch.zeros(())
    for one in packs:
        logits = model(
            input_ids=torch.from_numpy(one.input_ids)[None],
            position_ids=torch.from_numpy(one.position_ids)[None],
            prefix_tree=attention.prepared(one, torch.float32),
            use_cache=False,
        ).logits[0]
        losses = torch.nn.functional.cross_entropy(
            logits[torch.from_numpy(one.predictors)], torch.from_numpy(one.targets), reduction="none"
        )
        loss = loss + (losses * torch.from_numpy(one.weights)).sum() / supervised
    loss.backward()
    return loss.item(), {name: weight.grad.clone() for name, weight in model.named_parameters()}


def assert_same(left, right):
    assert left[0] == pytest.approx(right[0], rel=1e-5)
    assert left[1].keys() == right[1].keys()
    norms = {name: torch.linalg.vector_norm(gradient).item() for name, gradient in left[1].items()}
    rounding = 1e-6 * max(norms.values())  # where a gradient is zero in theory, nothing but this is left of it
    for name, gradient in left[1].items():
        difference = torch.linalg.vector_norm(gradient - right[1][name]).item()
        assert difference <= 1e-5 * norms[name] + rounding, name


SYSTEM = (1, 40, 41, 42, 43, 2)
HISTORY = (*SYSTEM, 10, 11, 12, 2, 20, 21, 2)
CASES = {
    "alone": [sample(*HISTORY, prompt=10)],
    "shared history": [
        sample(*SYSTEM, 10, 11, 12, 2, prompt=8),
        sample(*HISTORY, 13, 14, 2, prompt=14),
        sample(*HISTORY, 13, 15, 16, 2, prompt=14),
        sample(*SYSTEM, 30, 31, 2, prompt=7),
    ],
    "strict prefix": [
        sample(*HISTORY, prompt=10),
        sample(*HISTORY, 5, 6, 7, 2, prompt=15),
        sample(*HISTORY, 5, 6, prompt=14),
    ],
    "a repeat counts twice": [sample(*HISTORY, prompt=10), sample(*HISTORY, prompt=10), sample(*SYSTEM, 9, prompt=6)],
    "without the system prompt": [
        sample(*SYSTEM, 10, 11, 12, 2, prompt=8),
        sample(10, 11, 12, 2, prompt=2),
        sample(10, 11, 13, 2, prompt=2),
        sample(50, 51, prompt=1),
    ],
    "one root token": [sample(1, 2, prompt=1), sample(1, 3, 4, prompt=1), sample(1, 5, 6, prompt=2)],
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_loss_and_gradient_are_those_of_the_samples_one_by_one(model, case):
    samples = CASES[case]
    plain = one_by_one(model, samples)
    assert_same(plain, as_trees(model, [pack(samples)]))
    assert_same(plain, as_trees(model, pack_within(samples, 16)))


@hypothesis_settings(max_examples=15)
@given(samples=sample_lists())
def test_loss_and_gradient_of_any_samples(model, samples):
    assert_same(one_by_one(model, samples), as_trees(model, pack_within(samples, 20)))


def test_the_order_of_the_samples_does_not_matter(model):
    samples = CASES["shared history"]
    assert_same(as_trees(model, [pack(samples)]), as_trees(model, [pack(samples[::-1])]))


def test_a_token_outside_its_ancestors_changes_nothing(model):
    """The test's own test: with the branches swapped for others, the first sample's logits stay."""
    model.set_attn_implementation(attention.NAME)

    def logits_of_first(other):
        one = pack([sample(1, 2, 3, 4, prompt=2), other])
        with torch.no_grad():
            return model(
                input_ids=torch.from_numpy(one.input_ids)[None],
                position_ids=torch.from_numpy(one.position_ids)[None],
                prefix_tree=attention.prepared(one, torch.float32),
                use_cache=False,
            ).logits[0, :3]

    assert torch.equal(logits_of_first(sample(1, 2, 7, 8, prompt=2)), logits_of_first(sample(1, 2, 30, 31, prompt=2)))


@given(sample_lists())
def test_the_blocks_cover_exactly_the_mask(samples):
    one = pack(samples)
    size = len(one.input_ids)
    done = attention.blocks(one)
    assert [block.start for block in done] == [0, *[block.stop for block in done[:-1]]]
    assert done[-1].stop == size
    covered = np.zeros((size, size), dtype=int)
    for block in done:
        columns = np.concatenate([np.arange(first, last) for first, last in block.keys])
        assert block.mask.shape == (block.stop - block.start, len(columns))
        covered[np.ix_(np.arange(block.start, block.stop), columns)] += block.mask.numpy()
    assert (covered == one.mask()).all()


@pytest.mark.parametrize("scaling", [None, 0.3])
def test_attention_is_that_of_the_dense_mask(scaling):
    one = pack(CASES["shared history"] + CASES["without the system prompt"])
    size = len(one.input_ids)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, size, 8, generator=generator) for heads in (4, 2, 2))
    blocks = attention.prepared(one, torch.float32)
    ours, weights = attention.prefix_tree_attention(
        torch.nn.Identity(), query, key, value, None, prefix_tree=blocks, scaling=scaling
    )
    dense = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=torch.from_numpy(one.mask()), scale=scaling, enable_gqa=True
    )
    assert weights is None
    torch.testing.assert_close(ours, dense.transpose(1, 2))


def test_little_is_computed_that_nobody_sees(monkeypatch):
    """64 samples of 290 tokens under a prompt of 250: of the dense mask's pairs a tenth is seen."""
    monkeypatch.setattr(attention, "_BLOCK", 96)
    prompt = tuple(range(1000, 1250))
    one = pack([sample(*prompt, *(first + place for place in range(40)), prompt=251) for first in range(64)])
    pairs = sum(block.mask.numel() for block in attention.blocks(one))
    assert one.mask().sum() <= pairs < 1.25 * one.mask().sum() < 0.15 * one.mask().size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prepared_masks_are_summands(dtype):
    one = pack(CASES["shared history"])
    tree = attention.prepared(one, dtype)
    for window in (None, 3, 1, 10_000):
        near = (one.position_ids[:, None] - one.position_ids) < (window or 10_000)
        for block, ready in zip(tree.blocks, tree.masks(window), strict=True):
            keys = [place for first, last in block.keys for place in range(first, last)]
            seen = torch.from_numpy((one.mask() & near)[np.ix_(range(block.start, block.stop), keys)])
            assert ready.dtype == dtype
            assert (ready[seen] == 0).all()
            assert (ready[~seen] == torch.finfo(dtype).min).all()
    assert tree.masks(None) is tree.masks(10_000)  # a window longer than every sample hides nothing


def test_registering_twice_is_no_error(model):
    attention.register()
    attention.register()
    assert np.isfinite(as_trees(model, [pack(CASES["alone"])])[0])
