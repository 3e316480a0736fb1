"""Checkpoints that llama.cpp converts, of several architectures: two layers of random weights, a small SentencePiece.

The measure of the one pass is the long way: PEFT's merge in float32, llama.cpp's converter as a program, llama.cpp's
quantizer on its float16 file.
"""

from __future__ import annotations

import ctypes
import io
import json
from pathlib import Path
from typing import Any

from tests import small
from twin.gguf import converter
from twin.progress import Silent

# Rows of 256 values: K-quants take no shorter ones.
WIDTH = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 512,
}  # fmt: skip
TARGETS = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "smollm": ["q_proj", "v_proj", "down_proj"],
    "mistral": ["q_proj", "k_proj", "o_proj", "up_proj"],
    "qwen2": ["q_proj", "k_proj", "v_proj", "gate_proj"],
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "gemma2": ["q_proj", "k_proj", "v_proj", "down_proj"],
}
CONFIG = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False}
_TEXT = ["The twin says what its person would have said.", "Ja, gern! Bis morgen um 7.", "¿Qué tal? 漢字 के साथ 🙂"] * 40


def save_tokenizer(folder: Path) -> int:
    """Train a SentencePiece model of a few pieces and bytes into ``folder``; return its size."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_TEXT), model_writer=model, vocab_size=360, model_type="bpe", byte_fallback=True,
        unk_id=0, bos_id=1, eos_id=2, character_coverage=1.0, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return int(sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).vocab_size())


def save_base(folder: Path, kind: str, dtype: str = "bfloat16", **more: Any) -> Path:
    """Save a checkpoint of an architecture, with a tokenizer, into ``folder``, which is returned."""
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    shape: dict[str, Any] = WIDTH | {"vocab_size": save_tokenizer(folder)}
    shape |= {"tie_word_embeddings": kind in ("smollm", "gemma2")}
    if kind == "gemma2":
        shape |= {"head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 128}
    if kind == "phi3":
        shape |= {"original_max_position_embeddings": 512, "sliding_window": None}
    name = {"smollm": "llama"}.get(kind, kind)
    config = transformers.AutoConfig.for_model(name, **(shape | more))
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                parameter.normal_(0, 0.1)
            elif "norm" in key:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.to(getattr(torch, dtype)).save_pretrained(folder, safe_serialization=True)
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG))
    return folder


def save_adapter(base: Path, folder: Path, kind: str, **settings: Any) -> Path:
    """Save a LoRA with random weights for a base, which is returned."""
    return small.save_adapter(base, folder, **({"target_modules": TARGETS[kind], "r": 8} | settings))


def long_way(script: Path, base: Path, adapter: Path | None, folder: Path, name: str, template: str) -> Path:
    """Return the float16 GGUF of PEFT's merge by llama.cpp's converter, run as a program, below ``folder``."""
    import shutil

    merged = folder / "merged"
    if adapter is None:
        shutil.copytree(base, merged)
    else:
        small.merge_by_peft(base, adapter, merged)
        shutil.copyfile(base / "tokenizer.model", merged / "tokenizer.model")
    (merged / "tokenizer_config.json").write_text(json.dumps(CONFIG | {"chat_template": template}))
    target = folder / "f16.gguf"
    converter.convert(script, merged, target, Silent(), name)
    return target


def quantized_by_llama_cpp(f16: Path, target: Path, kind: int, means: Any = None) -> Path:
    """Return the file that llama.cpp's own quantizer makes of another; ``means`` is an importance matrix."""
    import llama_cpp

    from twin.gguf.imatrix import as_parameters
    from twin.llama import silence

    silence()
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = kind
    matrix = as_parameters(means) if means else None
    if matrix:
        parameters.imatrix = ctypes.cast(matrix, type(parameters.imatrix))
    assert not llama_cpp.llama_model_quantize(str(f16).encode(), str(target).encode(), ctypes.byref(parameters))
    return target


def metadata(file: Path) -> dict[str, Any]:
    """Return the metadata of a GGUF by key."""
    import gguf

    fields = gguf.GGUFReader(str(file)).fields
    return {name: field.contents() for name, field in fields.items() if not name.startswith("GGUF.")}


def tensors(file: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return type, shape and bytes of each tensor of a GGUF, in its order."""
    import gguf

    return {
        one.name: (one.tensor_type.name, tuple(map(int, one.shape)), one.data.tobytes())
        for one in gguf.GGUFReader(str(file)).tensors
    }
