r"""A base model's tokenizer, made to read text as llama.cpp will when it serves the model.

What a tokenizer does before it looks into its vocabulary is where the two part; the ids of a piece are the same.

- SentencePiece: llama.cpp puts a blank before the text behind *every* control token, transformers before the first
  alone, never, or not before a text that begins with one, by the tokenizer's age.
- Qwen's tokenizers compose characters (NFC); llama.cpp reads them as they are written.
- Tekken (Mistral Nemo) cuts words where case changes, in any script, marks included; llama.cpp in Latin's a to z alone.

So training takes llama.cpp's reading in these three. ``gate.check_ids`` proves it for each model, and finds any fourth.
Imported late: transformers is at the top.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Regex, normalizers, pre_tokenizers

_TEKKEN = (
    r"[^\r\n\p{{L}}\p{{N}}]?{upper}*{lower}+|[^\r\n\p{{L}}\p{{N}}]?{upper}+{lower}*|\p{{N}}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN_PUBLISHED = _TEKKEN.format(upper=r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", lower=r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]")
_TEKKEN_SERVED = _TEKKEN.format(upper=r"[\p{L}&&[^a-z]]", lower=r"[\p{L}&&[^A-Z]]")


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of the checkpoint in ``folder``, reading as llama.cpp does."""
    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # it warns of patterns that are replaced here
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    finally:
        transformers.utils.logging.set_verbosity(level)
    backend = tokenizer.backend_tokenizer
    built = json.loads(backend.to_str())
    if built["model"].get("byte_fallback") and "▁" in built["model"]["vocab"]:
        blanks = normalizers.Replace(" ", "▁")
        first = _blank_first(folder, built)
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), blanks]) if first else blanks
        backend.pre_tokenizer = None
    elif (built["normalizer"] or {}).get("type") == "NFC":
        backend.normalizer = None
    if json.dumps(_TEKKEN_PUBLISHED) in json.dumps(built["pre_tokenizer"]):
        cut = pre_tokenizers.Split(Regex(_TEKKEN_SERVED), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    return tokenizer


def _blank_first(folder: Path, built: dict[str, Any]) -> bool:
    """Say whether a SentencePiece tokenizer puts a blank before a text, by what was published with the model."""
    config = folder / "tokenizer_config.json"
    told = json.loads(config.read_text("utf-8")).get("add_prefix_space") if config.is_file() else None
    if told is not None:
        return bool(told)
    published = folder / "tokenizer.json"
    steps = json.loads(published.read_text("utf-8")) if published.is_file() else built
    text = json.dumps([steps["normalizer"], steps["pre_tokenizer"]])
    return '"Prepend"' in text or ('"Metaspace"' in text and '"prepend_scheme": "never"' not in text)
