"""For every family each way to compute samples gives their loss and gradient one by one, or is not taken."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers

from tests.training.test_attention import SYSTEM, assert_same, one_by_one
from tests.training.test_prefix_tree import sample
from twin.training import attention, execution

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = 5  # of samples of 6 to 19 tokens
TREES = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {},
    "SmolLM3": {},
    "Mistral": {"sliding_window": WINDOW},
    "Phi3": {"sliding_window": WINDOW},
    "Gemma": {},
    "Gemma2": {"sliding_window": WINDOW, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    "Gemma3Text": {"sliding_window": WINDOW, "query_pre_attn_scalar": 8},
}
# The windows of all but Mistral stand in no layer's call: only what is longer than one shows it.
UNTOLD = {"Phimoe": {"sliding_window": 64, "num_local_experts": 2, "num_experts_per_tok": 1, "attention_bias": False}}
SINGLE = {
    "Bloom": ({"n_layer": 2, "n_head": 4}, "can't be replaced"),
    "GptOss": ({"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": WINDOW}, "sinks"),
    "Lfm2": ({"full_attn_idxs": [1]}, "layers of conv"),
    "FalconH1": ({"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}, "carries a state"),
}
TALK = (*SYSTEM, 10, 11, 12, 2, 20, 21, 2, 30)
SAMPLES = [
    sample(*SYSTEM, 10, 11, 12, 2, prompt=8),
    sample(*TALK, 31, 32, 2, prompt=14),
    sample(*TALK, 31, 33, 34, 35, 2, prompt=14),
    sample(*SYSTEM, 50, 51, 2, prompt=7),
    sample(60, 61, 62, 63, 64, 65, 66, 67, 2, prompt=5),
]


def random_model(name, **options):
    """Two layers, float32, and large enough weights for the attention to matter."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SMALL, **options})
    return transformers.AutoModelForCausalLM.from_config(config).float()


def computed(chosen, model, samples):
    """Return (token-mean loss, gradients) of the pieces."""
    model.zero_grad()
    supervised = sum(own.supervised for own in samples)
    loss = torch.zeros(())
    for work, _ in chosen.cut(samples):
        losses = chosen.losses(model, work, torch.float32)
        loss = loss + (losses * torch.from_numpy(work.weights).to(losses.device)).sum() / supervised
    loss.backward()
    return loss.item(), {
        name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None
    }


@pytest.mark.parametrize("name", sorted(TREES))
def test_loss_and_gradient_of_every_family_are_those_of_the_samples_one_by_one(name):
    model = random_model(name, **TREES[name])
    chosen = execution.choose(model, SAMPLES, torch.float32)  # as it is loaded: PyTorch's kernels, which know no cap
    assert isinstance(chosen, execution.PrefixTree), chosen.why
    plain = one_by_one(model, SAMPLES)
    model.set_attn_implementation(attention.NAME)
    assert_same(plain, computed(chosen, model, SAMPLES))
    smaller = replace(chosen, token_budget=20)
    assert len(smaller.cut(SAMPLES)) > 1
    assert_same(plain, computed(smaller, model, SAMPLES))
    model.set_attn_implementation("eager")
    assert_same(plain, computed(execution.LengthGrouped("", 20), model, SAMPLES))


@pytest.mark.parametrize("name", sorted(SINGLE))
def test_a_model_that_takes_no_tree_is_computed_sample_by_sample(name):
    options, why = SINGLE[name]
    model = random_model(name, **options)
    chosen = execution.choose(model, SAMPLES, torch.float32)
    assert isinstance(chosen, execution.LengthGrouped)
    assert why in chosen.why
    ours = computed(chosen, model, SAMPLES)
    theirs = [computed(chosen, model, [one]) for one in SAMPLES]
    tokens = [one.supervised for one in SAMPLES]
    mean = sum(loss * count for (loss, _), count in zip(theirs, tokens, strict=True)) / sum(tokens)
    assert ours[0] == pytest.approx(mean, rel=1e-4)


@pytest.mark.parametrize("wrong", ["siblings", "positions", "branch", "window", "cap"])
def test_the_probe_sees_a_tree_that_is_wrong(wrong, monkeypatch):
    """Controls: the loss moves by over 1e-2 where siblings see one another, a position is off, a branch is lost."""
    name = {"window": "Mistral", "cap": "Gemma2"}.get(wrong, "Llama")
    model = random_model(name, **TREES[name])
    plain = one_by_one(model, SAMPLES)
    if wrong == "siblings":
        monkeypatch.setattr(attention, "ancestors", lambda parents: np.tri(len(parents), dtype=bool))
    elif wrong == "positions":
        original = attention.prepared

        def shifted(one, *rest):
            one.position_ids[one.position_ids >= len(SYSTEM)] += 1
            return original(one, *rest)

        monkeypatch.setattr(attention, "prepared", shifted)
    else:
        original_attention = attention.prefix_tree_attention
        spoilt = {"window": {"sliding_window": None}, "cap": {"softcap": None}, "branch": {}}[wrong]

        def other(module, query, key, value, mask, **kwargs):
            if wrong == "branch":
                value = value.clone()
                value[:, :, -6:] = 0
            return original_attention(module, query, key, value, mask, **{**kwargs, **spoilt})

        monkeypatch.setattr(attention, "prefix_tree_attention", other)
    chosen = execution.choose(model, SAMPLES, torch.float32)
    assert isinstance(chosen, execution.LengthGrouped)
    assert "a tree gave other losses" in chosen.why
    model.set_attn_implementation(attention.NAME)
    loss, _ = computed(execution.PrefixTree(""), model, SAMPLES)
    assert abs(loss - plain[0]) > 1e-2


def test_what_is_foreseen_reads_no_weights(tmp_path):
    for name, options, kind in (
        ("Llama", {}, execution.PrefixTree),
        ("Lfm2", SINGLE["Lfm2"][0], execution.LengthGrouped),
    ):
        getattr(transformers, f"{name}Config")(**{**SMALL, **options}).save_pretrained(tmp_path / name)
        assert isinstance(execution.foresee(tmp_path / name), kind)


def test_a_window_that_no_layer_is_told_of_is_seen_where_a_sample_is_longer():
    """Control: without the long sample the probe of 48 tokens finds nothing wrong."""
    model = random_model("Phimoe", **UNTOLD["Phimoe"])
    long = [sample(*SYSTEM, *(3 + (number * 7) % 90 for number in range(120)), 2, prompt=8)]
    assert isinstance(execution.choose(model, SAMPLES, torch.float32), execution.PrefixTree)
    chosen = execution.choose(model, long, torch.float32)
    assert isinstance(chosen, execution.LengthGrouped)
    assert "a tree gave other losses" in chosen.why


def test_a_model_that_says_nothing_of_the_tree_to_its_attention_is_computed_sample_by_sample(monkeypatch):
    model = random_model("Llama")
    original = attention.prefix_tree_attention

    def untold(*args, **named):
        named.pop("prefix_tree")
        return original(*args, **named)

    monkeypatch.setitem(transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS._global_mapping, attention.NAME, untold)
    monkeypatch.setattr(attention, "register", lambda: None)
    chosen = execution.choose(model, SAMPLES, torch.float32)
    assert isinstance(chosen, execution.LengthGrouped)
    assert chosen.why == "'llama' has no tree: attention that is not told of the tree"
    assert model.config._attn_implementation == "eager"
