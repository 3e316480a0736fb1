"""The adapter's own GGUF, opened by llama.cpp on the base's: its logits are PEFT's; and what it can't hold, by name."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import small
from twin.errors import GateError, StepError, UsageError
from twin.gguf import adapter_file, converter, delta
from twin.llama import open_gguf
from twin.progress import Silent

FAR = 0.02  # of the largest logit's change: the base's GGUF is float16


@pytest.fixture(scope="module")
def script():
    return converter.find_converter(None, Silent())


def base_gguf(base, script):
    target = base.parent / "base.gguf"
    converter.convert(script, base, target, Silent(), "tiny")
    return target


def make(base, adapter, target, opener=None):
    return adapter_file.make_adapter(base, delta.open_adapter(adapter), target, None, opener, Silent())


FORMS = {
    "llama": ("llama", {}),
    "other scales": ("llama", {"use_rslora": True, "rank_pattern": {"q_proj": 7}, "alpha_pattern": {"v_proj": 20}}),
    "turned": ("gpt2", {}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "output layer": ("llama", {"target_modules": ["lm_head", "q_proj"]}),
}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_llama_cpp_adds_what_peft_adds(tmp_path, smollm2, script, form):
    kind, settings = FORMS[form]
    tuned = small.tune(tmp_path, kind, more={"tokenizer": smollm2, "n_ctx": 64}, **settings)
    opener = base_gguf(tuned.base, script)
    made = make(tuned.base, tuned.adapter, tmp_path / "out" / "adapter.gguf", opener)
    assert made["checks"]["opened"] == "on base.gguf"
    assert made["bytes"] == (tmp_path / "out" / "adapter.gguf").stat().st_size
    bare = small.logits_with(tuned.base, tuned.before)[0].numpy()
    peft = tuned.logits[0].numpy()
    with open_gguf(opener, num_ctx=64) as model:
        without = model.logits(small.IDS[0], 0)
        with model.adapted(tmp_path / "out" / "adapter.gguf"):
            added = model.logits(small.IDS[0], 0)
    moved = np.abs(peft - bare).max()
    assert np.abs(without - bare).max() < FAR * moved
    assert np.abs(added - peft).max() < FAR * moved
    assert np.abs(added - bare).max() > 0.5 * moved
    assert list((tmp_path / "out").iterdir()) == [tmp_path / "out" / "adapter.gguf"]


REFUSED = {
    "DoRA": ("llama", False, {"use_dora": True}),
    "trained weights": ("llama", False, {"modules_to_save": ["lm_head"]}),
    "the bias of B": ("qwen2", False, {"lora_bias": True, "target_modules": ["q_proj"]}),
    "trained tokens": ("llama", False, {"trainable_token_indices": [3, 5]}),
    "a LoRA for embedding and output layer in one": (
        "llama", True, {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", REFUSED)
def test_what_is_no_product_is_refused_by_name(tmp_path, form):
    kind, tied, settings = REFUSED[form]
    base = small.save_small(tmp_path / "base", kind, tied)
    adapter = small.save_adapter(base, tmp_path / "a", **({"target_modules": small.TARGETS[kind]} | settings))
    with pytest.raises(UsageError, match=form) as told:
        adapter_file.write_plain(base, delta.open_adapter(adapter), tmp_path / "out")
    assert told.value.hint == "Make the whole model instead: twin gguf"


def test_embeddings_that_were_saved_as_they_are_are_no_change(tmp_path):
    """PEFT saves an embedding that has a LoRA; once it is another than the base's, a LoRA file can't say so."""
    base = small.save_small(tmp_path / "base", "llama")
    adapter = small.save_adapter(base, tmp_path / "a", target_modules=["embed_tokens"])
    (tmp_path / "out").mkdir()
    assert list(adapter_file.write_plain(base, delta.open_adapter(adapter), tmp_path / "out")) == [
        "model.embed_tokens.weight"
    ]
    tensors = load_file(adapter / delta.WEIGHTS)
    tensors["base_model.model.model.embed_tokens.base_layer.weight"][3, 4] += 1
    save_file(tensors, adapter / delta.WEIGHTS)
    with pytest.raises(UsageError, match=r"trained weights .*embed_tokens.base_layer.weight"):
        adapter_file.write_plain(base, delta.open_adapter(adapter), tmp_path / "out")


def test_sums_of_squares_are_those_of_the_change(tmp_path):
    tuned = small.tune(tmp_path, "gpt2", use_rslora=True, alpha_pattern={"c_fc": 30})
    (tmp_path / "out").mkdir()
    sums = adapter_file.write_plain(tuned.base, delta.open_adapter(tuned.adapter), tmp_path / "out")
    for name, wanted in sums.items():
        change = (tuned.after[name] - tuned.before[name]).double().square().sum().item()
        assert wanted == pytest.approx(change, rel=1e-4)
    assert len(sums) == sum(not torch.equal(tuned.after[name], tuned.before[name]) for name in tuned.before)


@pytest.mark.slow
def test_the_check_sees_what_a_converter_left_out(tmp_path, script):
    """The control: a file without one module, one with another scale, and one for another model are refused."""
    base = small.save_small(tmp_path / "base", "llama")
    adapter = small.save_adapter(base, tmp_path / "a", target_modules=["q_proj", "down_proj"])
    (tmp_path / "plain").mkdir()
    products = adapter_file.write_plain(base, delta.open_adapter(adapter), tmp_path / "plain")
    target = make(base, adapter, tmp_path / "whole.gguf")["gguf"]
    assert adapter_file.check(tmp_path / "whole.gguf", products, None)["added"].startswith("to 4 tensors")
    tensors = load_file(tmp_path / "plain" / delta.WEIGHTS)
    (tmp_path / "less").mkdir()
    kept = {name: tensor for name, tensor in tensors.items() if "layers.1.mlp" not in name}
    save_file(kept, tmp_path / "less" / delta.WEIGHTS)
    config = (tmp_path / "plain" / delta.CONFIG).read_text()
    (tmp_path / "less" / delta.CONFIG).write_text(config)
    adapter_file.lora_gguf(script, base, tmp_path / "less", tmp_path / "less.gguf", Silent())
    with pytest.raises(GateError, match=r"'model.layers.1.mlp.down_proj.weight' of the adapter is not in"):
        adapter_file.check(tmp_path / "less.gguf", products, None)
    other = json.loads(config)
    other["lora_alpha"] *= 1.01
    (tmp_path / "plain" / delta.CONFIG).write_text(json.dumps(other))
    adapter_file.lora_gguf(script, base, tmp_path / "plain", tmp_path / "scale.gguf", Silent())
    with pytest.raises(GateError, match="adds something else than the adapter does"):
        adapter_file.check(tmp_path / "scale.gguf", products, None)
    with pytest.raises(StepError):
        adapter_file.check(tmp_path / "whole.gguf", products, tmp_path / "whole.gguf")
    assert target == str(tmp_path / "whole.gguf")
