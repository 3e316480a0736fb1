"""mlx-lm's adapters: the files are written here as its source writes them, and judged by its own formulas."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from tests import small
from tests.gguf.test_delta import CLOSE, blocks_and_answers
from twin.errors import UsageError
from twin.gguf import delta, mlx


def save_mlx(base, folder, kind="lora", rank=3, scale=2.5, targets=("q_proj", "down_proj"), **config):
    """Write an adapter as ``mlx_lm.lora`` does, and return the base's tensors as ``mlx_lm.fuse`` makes them."""
    torch.manual_seed(3)
    tensors, fused = {}, small.load(base)
    for name, weight in list(fused.items()):
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] not in targets:
            continue
        if kind == "full":
            tensors[name] = fused[name] = torch.randn_like(weight)
            continue
        embedding = module.endswith("embed_tokens")
        out, inside = weight.T.shape if embedding else weight.shape
        a, b = torch.randn(inside, rank) / 4, torch.randn(rank, out) / 4
        merged = weight + (scale * a @ b if embedding else scale * b.T @ a.T)
        tensors |= {f"{module}.lora_a": a, f"{module}.lora_b": b}
        if kind == "dora":
            length = weight.norm(dim=1) * (1 + torch.rand(len(weight)))
            tensors[f"{module}.m"] = length
            merged = (length / merged.norm(dim=1))[:, None] * merged
        fused[name] = merged
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / mlx.MLX_WEIGHTS)
    config = {
        "fine_tune_type": kind, "model": "mlx-community/Tiny-4bit", "num_layers": 16,
        "lora_parameters": {"rank": rank, "scale": scale, "dropout": 0.0},
    } | config  # fmt: skip
    (folder / delta.CONFIG).write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return fused


def convert(folder, target):
    target.mkdir()
    mlx.to_peft(folder, target)
    return delta.open_adapter(target)


FORMS = {
    "lora": ("llama", False, {}),
    "dora": ("llama", False, {"kind": "dora"}),
    "full": ("llama", False, {"kind": "full", "targets": ("q_proj", "norm", "lm_head")}),
    "turned": ("gpt2", False, {"targets": ("c_attn", "c_proj")}),
    "fused": ("phi3", False, {"targets": ("qkv_proj",)}),
    "embedding": ("llama", False, {"targets": ("embed_tokens", "q_proj")}),
    "tied embedding": ("llama", True, {"targets": ("embed_tokens", "q_proj")}),
    "tied full embedding": ("llama", True, {"kind": "full", "targets": ("embed_tokens",)}),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(tmp_path, form):
    """What comes out is what mlx-lm fuses: a tied output layer uses the adapted embedding there."""
    kind, tied, options = FORMS[form]
    base = small.save_small(tmp_path / "base", kind, tied)
    if kind == "gpt2":  # mlx-lm turns Conv1D's weights into Linear's when it loads them
        turned = small.load(base)
        layers = [name for name, t in turned.items() if ".h." in name and name.endswith(".weight") and t.dim() == 2]
        save_file(
            {name: t.T.contiguous() if name in layers else t for name, t in turned.items()},
            tmp_path / "model.safetensors",
        )
        fused = save_mlx(tmp_path, tmp_path / "a", **options)
        fused = {name: tensor.T if name in layers else tensor for name, tensor in fused.items()}
    else:
        fused = save_mlx(base, tmp_path / "a", **options)
    adapter = convert(tmp_path / "a", tmp_path / "peft")
    before = small.load(base)
    shapes, is_tied = delta.base_shapes(base)
    assert is_tied == tied
    changes = adapter.bind(shapes, is_tied)
    assert changes
    for name, tensor in fused.items():
        ours = changes[name].rows(before[name], 0, len(tensor)) if name in changes else before[name]
        torch.testing.assert_close(ours, tensor, **CLOSE)
    assert adapter.base_model == "mlx-community/Tiny-4bit"


def test_peft_reads_what_is_written(tmp_path):
    base = small.save_small(tmp_path / "base", "llama")
    fused = save_mlx(base, tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "peft")
    config = json.loads((tmp_path / "peft" / delta.CONFIG).read_text()) | {"target_modules": ["q_proj", "down_proj"]}
    (tmp_path / "peft" / delta.CONFIG).write_text(json.dumps(config))
    logits = small.merge_by_peft(base, tmp_path / "peft", tmp_path / "merged")
    tuned = small.Tuned(base, tmp_path / "peft", small.load(base), small.load(tmp_path / "merged"), logits)
    blocks_and_answers(tuned, fused)


def refused(folder, match, hint=""):
    target = folder.parent / "out"
    target.mkdir(exist_ok=True)
    with pytest.raises(UsageError, match=match) as told:
        mlx.to_peft(folder, target)
    assert told.value.hint
    assert hint in told.value.hint


def test_alpha_beside_scale(tmp_path):
    """Only an old file that has both, and not the same, can't be told."""
    base = small.save_small(tmp_path / "base", "llama")
    both = {"rank": 3, "scale": 2.0, "alpha": 16}
    save_mlx(base, tmp_path / "new", lora_parameters=both)
    assert convert(tmp_path / "new", tmp_path / "p").config["lora_alpha"] == 6.0
    save_mlx(base, tmp_path / "old", lora_parameters=both, fine_tune_type=None)
    refused(tmp_path / "old", "has scale 2.0 and alpha 16", hint="Take alpha out")
    save_mlx(base, tmp_path / "same", lora_parameters=both | {"alpha": 3}, fine_tune_type=None)
    assert convert(tmp_path / "same", tmp_path / "q").config["lora_alpha"] == 6.0
    save_mlx(base, tmp_path / "dora", kind="dora", fine_tune_type=None, use_dora=True)
    assert convert(tmp_path / "dora", tmp_path / "r").config["use_dora"]


@pytest.mark.parametrize(
    ("told", "match"),
    [
        ({"lora_parameters": None}, "odd rank"),
        ({"lora_parameters": {"rank": True, "scale": 1}}, "odd rank"),
        ({"lora_parameters": {"rank": 3}}, "no scale"),
        ({"lora_parameters": {"rank": 3, "scale": "2"}}, "no scale"),
        ({"fine_tune_type": "new"}, "fine_tune_type 'new'"),
    ],
)
def test_odd_values(tmp_path, told, match):
    save_mlx(small.save_small(tmp_path / "base", "llama"), tmp_path / "a", **told)
    refused(tmp_path / "a", match)


def test_what_pefts_layout_can_not_hold(tmp_path):
    base = small.save_small(tmp_path / "base", "llama")
    save_mlx(base, tmp_path / "dora", kind="dora", targets=("embed_tokens",))
    refused(tmp_path / "dora", "an embedding with DoRA", hint="mlx_lm.fuse")
    for label, tensors, match in (
        ("experts", {"model.layers.0.mlp.switch_mlp.up_proj.lora_a": torch.ones(2, 3, 4)}, "of experts"),
        ("other", {"model.layers.0.q_proj.lora_c": torch.ones(2, 2)}, "no part of a lora adapter"),
        ("length", {"model.layers.0.q_proj.m": torch.ones(2)}, "no part of a lora adapter"),
    ):
        save_mlx(base, tmp_path / label)
        save_file(tensors, tmp_path / label / mlx.MLX_WEIGHTS)
        refused(tmp_path / label, match)
    save_mlx(base, tmp_path / "full", kind="full")
    save_file({"model.layers.0.q_proj.scales": torch.ones(2)}, tmp_path / "full" / mlx.MLX_WEIGHTS)
    refused(tmp_path / "full", "quantized weights")
    (tmp_path / "full" / mlx.MLX_WEIGHTS).write_bytes(b"x")
    refused(tmp_path / "full", "no whole safetensors")
