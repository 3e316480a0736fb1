"""A GGUF that llama.cpp opens and answers with, written in a blink: bytes for a vocabulary, random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quants
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from twin.records import Turn
from twin.templates import Family, load_family, render

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WIDTH, INNER, HEADS, LAYERS = 256, 512, 4, 2
FAMILY: Family = load_family("chatml")
_WORDS = sorted(pre_tokenizers.ByteLevel.alphabet())
_MERGES = [("t", "h"), ("th", "e")]
TOKENS = [*SPECIAL, *_WORDS, *("".join(pair) for pair in _MERGES)]
PROMPTS = [("a greeting", [Turn("user", "Are you there, the one?")]), ("digits", [Turn("user", "½ 42")])]


def tokenizer() -> Tokenizer:
    """Return the vocabulary as training reads it."""
    made = Tokenizer(models.BPE(vocab={token: at for at, token in enumerate(TOKENS)}, merges=_MERGES))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return made


def training_ids(turns: Sequence[Turn]) -> list[int]:
    """Return the ids of turns' prompt as training reads them."""
    return list(tokenizer().encode(render(FAMILY, turns)).ids)


def weights(experts: int = 1) -> dict[str, np.ndarray]:
    """Return random weights by name, in float32; ``experts`` makes the feed-forward layers a mixture."""
    random = np.random.default_rng(0)

    def matrix(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) / shape[-1] ** 0.5).astype(np.float32)

    found = {"token_embd.weight": matrix(len(TOKENS), WIDTH) * 16}
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        found |= {f"{block}attn_{part}.weight": matrix(WIDTH, WIDTH) for part in ("q", "k", "v", "output")}
        found |= {f"{block}{part}_norm.weight": np.ones(WIDTH, np.float32) for part in ("attn", "ffn")}
        many, ending = ((experts,), "_exps") if experts > 1 else ((), "")
        found |= {f"{block}ffn_{part}{ending}.weight": matrix(*many, INNER, WIDTH) for part in ("gate", "up")}
        found[f"{block}ffn_down{ending}.weight"] = matrix(*many, WIDTH, INNER)
        if experts > 1:
            found[f"{block}ffn_gate_inp.weight"] = matrix(experts, WIDTH)
    found["output_norm.weight"] = np.ones(WIDTH, np.float32)
    found["output.weight"] = matrix(len(TOKENS), WIDTH)
    return found


def write(
    path: Path,
    kind: str = "F16",
    *,
    experts: int = 1,
    changes: Mapping[str, Any] | None = None,
    damage: Callable[[dict[str, tuple[np.ndarray, Any]]], None] | None = None,
    tokens: Sequence[str] = TOKENS,
) -> Path:
    """Write the file.

    Args:
        path: the file, which is returned.
        kind: of the matrices, a name of ``GGMLQuantizationType``.
        experts: see ``weights``.
        changes: metadata → value in place of what is right; None leaves it out.
        damage: changes the tensors, by name: data as they go into the file, and their type.
        tokens: the vocabulary.
    """
    types = GGMLQuantizationType
    metadata: dict[str, Any] = {
        "general.name": "twin", "llama.block_count": LAYERS, "llama.context_length": 2048,
        "llama.embedding_length": WIDTH, "llama.feed_forward_length": INNER, "llama.attention.head_count": HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.dimension_count": WIDTH // HEADS,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": list(tokens),
        "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in _MERGES], "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": FAMILY.jinja,
    }  # fmt: skip
    if experts > 1:
        metadata |= {"llama.expert_count": experts, "llama.expert_used_count": 2}
    metadata |= changes or {}
    tensors: dict[str, tuple[np.ndarray, Any]] = {}
    for name, values in weights(experts).items():
        plain = values.ndim == 1 or "gate_inp" in name
        chosen = types.F32 if plain else types[kind]
        tensors[name] = (quants.quantize(values, chosen), chosen)
    if damage:
        damage(tensors)
    writer = GGUFWriter(path, metadata.pop("general.architecture", "llama"))
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            writer.add_string(key, value)
    for name, (data, chosen) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def is_held(path: Path) -> bool:
    """Say whether this process maps a file or has it open, as Linux tells: Windows renames and removes no such file."""
    mapped = str(path) in Path("/proc/self/maps").read_text()
    return mapped or path in [one.resolve() for one in Path("/proc/self/fd").iterdir()]
