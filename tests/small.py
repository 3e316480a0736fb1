"""Models of several families, two layers of random weights each, and PEFT adapters on them: no tokenizer, no training.

What PEFT makes of an adapter is the measure of what twin makes of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from tests.tiny import TOKENIZER_FILES

SHAPE = {
    "vocab_size": 72, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
KINDS = ("llama", "qwen2", "phi3", "gemma2", "gpt2")
# For each kind: what a LoRA is put on, and the embedding.
TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "qwen2": ["q_proj", "k_proj", "o_proj", "gate_proj"],
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj"],
    "gemma2": ["q_proj", "v_proj", "up_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
}


def save_small(folder: Path, kind: str, tied: bool = False, tokenizer: Path | None = None, **more: Any) -> Path:
    """Save a model of that kind with random weights in float32 into ``folder``, which is returned.

    Args:
        folder: made where it is missing.
        kind: transformers' ``model_type``.
        tied: one tensor for embedding and output layer.
        tokenizer: a folder with SmolLM2's tokenizer to give it, and its vocabulary's size.
        more: of the configuration.
    """
    import shutil

    import torch
    import transformers

    torch.manual_seed(0)
    shape = dict(SHAPE)
    if kind == "gpt2":
        shape = {"vocab_size": 72, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 128}
    if kind == "gemma2":
        shape |= {"head_dim": 8}
    if tokenizer:
        shape["vocab_size"] = 49152
        folder.mkdir(parents=True, exist_ok=True)
        for name in TOKENIZER_FILES:
            shutil.copyfile(tokenizer / name, folder / name)
    config = transformers.AutoConfig.for_model(kind, **shape, tie_word_embeddings=tied, **more)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
    model.to(torch.float32).save_pretrained(folder, safe_serialization=True)
    return folder


class Tuned(NamedTuple):
    """A base, an adapter on it, the tensors before and after PEFT merged the one into the other, and its answer."""

    base: Path
    adapter: Path
    before: dict[str, Any]
    after: dict[str, Any]
    logits: Any


def load(folder: Path) -> dict[str, Any]:
    """Return all tensors of a checkpoint."""
    from safetensors.torch import load_file

    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def save_adapter(base: Path, folder: Path, seed: int = 1, dtype: str = "float32", **settings: Any) -> Path:
    """Save a PEFT adapter for a base with random weights, none of them zero; ``settings`` are ``LoraConfig``'s."""
    import peft
    import torch
    import transformers

    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 6} | settings
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                if "lora_magnitude_vector" in name:
                    parameter.mul_(1 + 0.3 * torch.rand_like(parameter))
                else:
                    parameter.normal_(0, 0.2)
                parameter.data = parameter.data.to(getattr(torch, dtype))
    wrapped.save_pretrained(folder, safe_serialization=True)
    return folder


IDS = [[1, 5, 3, 9, 40, 71, 8, 3]]


def logits_of(model: Any) -> Any:
    """Return a model's logits of ``IDS``."""
    import torch

    with torch.inference_mode():
        return model.eval()(torch.tensor(IDS)).logits


def logits_of_peft(base: Path, adapter: Path | None, ids: list[int]) -> Any:
    """Return the logits of ids, an array of a row each, under a base with PEFT's adapter at run time, or without."""
    import peft
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter:
        model = peft.PeftModel.from_pretrained(model, str(adapter), autocast_adapter_dtype=False)
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def logits_with(base: Path, tensors: dict[str, Any]) -> Any:
    """Return the logits of a base's model with other tensors in its checkpoint."""
    import tempfile

    import torch
    import transformers
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_bytes((base / "config.json").read_bytes())
        save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        return logits_of(transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))


def merge_by_peft(base: Path, adapter: Path, target: Path) -> Any:
    """Save what PEFT makes of base and adapter, in float32, into ``target``; return its logits before the merge."""
    import peft
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    wrapped = peft.PeftModel.from_pretrained(model, str(adapter))
    logits = logits_of(wrapped)
    wrapped.merge_and_unload(safe_merge=True).save_pretrained(target, safe_serialization=True)
    return logits


def tune(folder: Path, kind: str, tied: bool = False, more: dict[str, Any] | None = None, **settings: Any) -> Tuned:
    """Make base, adapter and PEFT's merge below ``folder``."""
    base = save_small(folder / "base", kind, tied, **(more or {}))
    adapter = save_adapter(base, folder / "adapter", **({"target_modules": TARGETS[kind]} | settings))
    logits = merge_by_peft(base, adapter, folder / "merged")
    return Tuned(base, adapter, load(base), load(folder / "merged"), logits)
