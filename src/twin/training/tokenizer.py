r"""A base model's tokenizer, made to read text as llama.cpp will when it serves the model.

What a tokenizer does before it looks into its vocabulary is where the two part; the ids of a piece are the same.

- SentencePiece: llama.cpp puts a blank before the text behind *every* control token, transformers before the first
  alone, never, or not before a text that begins with one, by the tokenizer's age.
- Qwen's tokenizers compose characters (NFC); llama.cpp reads them as they are written.
- Tekken (Mistral Nemo) cuts words where case changes, in any script, marks included; llama.cpp in Latin's a to z alone.
- Phi-3's tokenizer drops every blank behind a control token; llama.cpp drops those of ASCII.

So training takes llama.cpp's reading in these. ``gate.check_ids`` proves it for each model, and finds what is missing.
Imported late: transformers is at the top.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer

from twin.errors import UsageError, first_line
from twin.foreign import bounded

_TEKKEN = (
    r"[^\r\n\p{{L}}\p{{N}}]?{upper}*{lower}+|[^\r\n\p{{L}}\p{{N}}]?{upper}+{lower}*|\p{{N}}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN_PUBLISHED = _TEKKEN.format(upper=r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", lower=r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]")
_TEKKEN_SERVED = _TEKKEN.format(upper=r"[\p{L}&&[^a-z]]", lower=r"[\p{L}&&[^A-Z]]")
_NO_BLANKS = {"type": "Replace", "pattern": {"Regex": r"\A[ \t\n\v\f\r]+"}, "content": ""}
_BLANKS = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
_BLANK_FIRST = {"type": "Prepend", "prepend": "▁"}


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of the checkpoint in ``folder``, reading as llama.cpp does.

    Raises:
        UsageError: it is not there, or can't be read.
    """
    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # it warns of patterns that are replaced here
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # what is no tokenizer is told in many ways, by tokenizers as an Exception
        raise UsageError(
            f"The tokenizer of '{folder}' can't be read: {bounded(first_line(error), 200)}.",
            "Fetch or copy the base model again, with its tokenizer.json.",
        ) from None
    finally:
        transformers.utils.logging.set_verbosity(level)
    built = json.loads(tokenizer.backend_tokenizer.to_str())  # 33 MB for some, so it is read and written once
    before = json.dumps([built["normalizer"], built["pre_tokenizer"]])
    _read_as_served(built, folder)
    if json.dumps([built["normalizer"], built["pre_tokenizer"]]) != before:
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(built))
    return tokenizer


def _read_as_served(built: dict[str, Any], folder: Path) -> None:
    """Change the description of a tokenizer (tokenizer.json) where llama.cpp reads otherwise."""
    if built["model"].get("byte_fallback") and "▁" in built["model"]["vocab"]:
        steps = [_BLANK_FIRST, _BLANKS] if _blank_first(folder, built) else [_BLANKS]
        if any(token["rstrip"] for token in built["added_tokens"]):
            steps = [_NO_BLANKS, *steps]
        built["normalizer"], built["pre_tokenizer"] = {"type": "Sequence", "normalizers": steps}, None
        for token in built["added_tokens"]:
            token["rstrip"] = False
    elif (built["normalizer"] or {}).get("type") == "NFC":
        built["normalizer"] = None
    for step in (built["pre_tokenizer"] or {}).get("pretokenizers", []):
        if step.get("pattern") == {"Regex": _TEKKEN_PUBLISHED}:
            step["pattern"] = {"Regex": _TEKKEN_SERVED}


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
