"""The interval says no where there is nothing, and the log-likelihood of a GGUF is that of transformers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twin.evaluate.likelihood import compare, score_gguf
from twin.llama import open_gguf
from twin.records import Sample, Scored


def scores(rng, shift, noise=0.3, conversations=25, replies=5):
    return [
        Scored(f"{c}-{r}", f"c{c}", float(20 * (4 + shift + rng.normal(0, noise))), 20)
        for c in range(conversations)
        for r in range(replies)
    ]


def test_a_real_gain_lies_below_zero():
    change = compare(scores(np.random.default_rng(0), 0), scores(np.random.default_rng(1), -0.5))
    assert change.low < change.change < change.high < 0
    assert change.change == pytest.approx(change.after - change.before)
    assert (change.conversations, change.replies) == (25, 125)


def test_no_gain_holds_zero():
    change = compare(scores(np.random.default_rng(0), 0), scores(np.random.default_rng(1), 0))
    assert change.low < 0 < change.high


def test_one_lucky_conversation_is_no_gain():
    before = [Scored(f"{c}", f"c{c}", 80.0, 20) for c in range(20)]
    after = [Scored(f"{c}", f"c{c}", 20.0 if c == 0 else 80.5, 20) for c in range(20)]
    change = compare(before, after)
    assert change.change < 0 < change.high


def test_the_same_scores_are_no_change():
    before = scores(np.random.default_rng(0), 0)
    change = compare(before, before)
    assert (change.change, change.low, change.high) == (0, 0, 0)


def test_other_replies_can_not_be_compared():
    before = scores(np.random.default_rng(0), 0)
    with pytest.raises(ValueError, match="not scored on the same replies"):
        compare(before, before[1:])
    with pytest.raises(ValueError, match="not scored on the same replies"):
        compare([], [])


def test_one_conversation_has_no_interval():
    before = [Scored("a", "c", 80.0, 20), Scored("b", "c", 60.0, 20)]
    change = compare(before, [replace(one, nll=one.nll - 10) for one in before])
    assert (change.change, change.low, change.high) == (-0.5, None, None)


def test_many_conversations_are_drawn_in_parts():
    before = [Scored(str(c), str(c), 80.0 + c % 7, 20) for c in range(3000)]
    change = compare(before, [replace(one, nll=one.nll - 10) for one in before], resamples=2000)
    assert change.low == pytest.approx(-0.5) == change.high


@given(st.integers(0, 5))
def test_the_interval_is_reproducible(seed):
    before, after = scores(np.random.default_rng(seed), 0), scores(np.random.default_rng(seed + 1), -0.1)
    assert compare(before, after, resamples=200) == compare(before, after, resamples=200)


@pytest.mark.slow
def test_a_gguf_scores_what_transformers_scores(smollm2, smollm2_gguf, tokenizer):
    """Q4_1 was dequantized to make the checkpoint, so both hold nearly the same weights."""
    from transformers import AutoModelForCausalLM

    prompt = "<|im_start|>user\nWhat is tea?<|im_end|>\n<|im_start|>assistant\n"
    asked = []
    for number, reply in enumerate(["Tea is a drink.<|im_end|>", "Tea is hot, 90 degrees ½.<|im_end|>"]):
        first = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        ids = first + tokenizer(reply, add_special_tokens=False)["input_ids"]
        asked.append(Sample(str(number), "c", "chat", tuple(ids), len(first)))
    with open_gguf(smollm2_gguf, num_ctx=512) as model:
        found = score_gguf(model, asked)
        again = score_gguf(model, asked[::-1])[::-1]
    reference = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    for one, other, sample in zip(found, again, asked, strict=True):
        ids, first = sample.input_ids, sample.prompt_length
        with torch.no_grad():
            logits = reference(torch.tensor([ids[:-1]])).logits[0, first - 1 :]
        nll = float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[first:]), reduction="sum"))
        assert one.nll == pytest.approx(nll, rel=0.02)
        assert other.nll == pytest.approx(one.nll, rel=0.01)
