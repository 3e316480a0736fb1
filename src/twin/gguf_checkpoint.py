"""A Hugging Face checkpoint out of a GGUF whose tokenizer is SmolLM's byte-level BPE.

Not obvious: transformers dequantizes the weights rightly but builds the *tokenizer* wrongly (end token
``<|im_start|>``, no pad token, the digit splitting lost), so the tokenizer is built here from the GGUF's own metadata.
Imported late: torch and transformers are at the top.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from twin.errors import StepError

_CONTROL = 3  # gguf.TokenType.CONTROL


def read_tokenizer(gguf: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer that a SmolLM GGUF describes.

    Raises:
        StepError: another tokenizer model or pre-tokenizer than the one this function knows.
    """
    reader = GGUFReader(str(gguf))

    def value(key: str) -> Any:
        field = reader.get_field(f"tokenizer.ggml.{key}")
        return None if field is None else field.contents()

    if (value("model"), value("pre")) != ("gpt2", "smollm"):
        raise StepError(
            f"'{gguf.name}' has the tokenizer {value('model')}/{value('pre')}, not SmolLM's.",
            "Use the model's own checkpoint.",
        )
    tokens: list[str] = value("tokens")
    kinds: list[int] = value("token_type")
    merges = [tuple(merge.split(" ")) for merge in value("merges")]
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == _CONTROL
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokens[value("bos_token_id")],
        eos_token=tokens[value("eos_token_id")],
        unk_token=tokens[value("unknown_token_id")],
        pad_token=tokens[value("padding_token_id")],
        clean_up_tokenization_spaces=False,
        model_max_length=8192,
    )


def save_checkpoint(gguf: Path, folder: Path) -> None:
    """Write config, float16 safetensors and tokenizer of ``gguf`` into ``folder``."""
    model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float16)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    tokenizer = read_tokenizer(gguf)
    model.config.bos_token_id = tokenizer.bos_token_id
    model.config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
