"""Each form of an adapter against PEFT's own merge, tensor by tensor; and what is refused, by name."""

from __future__ import annotations

import json

import pytest
import torch

from tests import small
from twin.gguf import delta

CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def shapes_of(tensors):
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def merged(tuned, tied=False, block=None):
    """Return every tensor of the base as the adapter makes it, whole or in blocks of rows."""
    changes = delta.open_adapter(tuned.adapter).bind(shapes_of(tuned.before), tied)
    out = dict(tuned.before)
    for name, change in changes.items():
        weight = tuned.before[name]
        step = block if block and change.rowwise else len(weight)
        kept = weight.clone()
        rows = [
            change.rows(weight[at : at + step], at, min(at + step, len(weight))) for at in range(0, len(weight), step)
        ]
        assert torch.equal(weight, kept), "what came in was changed"
        out[name] = torch.cat(rows)
        assert out[name].dtype == torch.float32
    return out, changes


def holds(tuned, tied=False):
    """Check that twin's merge is PEFT's, whole and by blocks, and that it changes what PEFT changes."""
    whole, changes = merged(tuned, tied)
    assert changes
    assert whole.keys() == tuned.after.keys()
    for name, tensor in tuned.after.items():
        torch.testing.assert_close(whole[name], tensor.float(), **CLOSE, msg=lambda text, name=name: f"{name}: {text}")
    moved = {name for name, tensor in tuned.after.items() if not torch.equal(tensor, tuned.before[name])}
    assert moved <= changes.keys()
    for block in (1, 5):
        for name, tensor in merged(tuned, tied, block)[0].items():
            torch.testing.assert_close(tensor, whole[name], **CLOSE)
    return changes


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("kind", small.KINDS)
def test_lora(tmp_path, kind, rslora):
    tuned = small.tune(tmp_path, kind, use_rslora=rslora)
    changes = holds(tuned)
    assert len(changes) == 2 * len(small.TARGETS[kind]) + (2 if kind == "gpt2" else 0)  # two modules are c_proj
    assert all(change.rowwise for change in changes.values())


def test_the_control_sees_a_wrong_scale(tmp_path):
    tuned = small.tune(tmp_path, "llama")
    config = json.loads((tuned.adapter / delta.CONFIG).read_text())
    (tuned.adapter / delta.CONFIG).write_text(json.dumps(config | {"lora_alpha": config["lora_alpha"] * 1.01}))
    with pytest.raises(AssertionError):
        holds(tuned)


def test_patterns_of_rank_and_alpha(tmp_path):
    """The first pattern that fits wins, a name's end counts, and a pattern may be a regular expression."""
    ranks = {r"layers\.1\.self_attn\.q_proj": 7, "q_proj": 3, "model.layers.0.self_attn.v_proj": 2}
    holds(
        small.tune(
            tmp_path, "llama", rank_pattern=ranks, alpha_pattern={r".*\.0\.mlp\.down_proj": 11, "v_proj": 5, "proj": 1}
        )
    )


def test_layers_and_exclusions_and_all_linear(tmp_path):
    changes = holds(small.tune(tmp_path / "a", "llama", layers_to_transform=[1], layers_pattern="layers"))
    assert {name.split(".")[2] for name in changes} == {"1"}
    changes = holds(small.tune(tmp_path / "b", "qwen2", target_modules="all-linear", exclude_modules=["k_proj"]))
    assert len(changes) == 2 * 6
    holds(small.tune(tmp_path / "c", "llama", target_modules=r".*\.0\..*(q|up)_proj"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_adapters_in_half_precision(tmp_path, dtype):
    """PEFT rounds the product to the adapter's dtype; ours is the product of the same weights in float32."""
    tuned = small.tune(tmp_path, "llama", dtype=dtype)
    ours, changes = merged(tuned)
    weights = small.load(tuned.adapter)
    name = "model.layers.0.self_attn.q_proj.weight"
    a, b = (weights[f"base_model.model.model.layers.0.self_attn.q_proj.lora_{half}.weight"] for half in "AB")
    assert a.dtype == getattr(torch, dtype)
    torch.testing.assert_close(ours[name], tuned.before[name] + 1.5 * b.float() @ a.float(), **CLOSE)
    for name in changes:
        torch.testing.assert_close(ours[name], tuned.after[name], rtol=1e-2, atol=1e-2)
