"""A GGUF written anew with other metadata, or made larger without computing more: what a test breaks on purpose.

Not obvious: gguf-py takes seconds to read a vocabulary, so one file is read once a process.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter

TEMPLATE = "tokenizer.chat_template"
TOKENS = "tokenizer.ggml.tokens"
# As models ship it that can call tools: one look at `tools`, and Ollama from 0.30 on renders it for every request.
STOCK_JINJA = (Path(__file__).parent / "ollama" / "stock.jinja").read_text("utf-8")
_FEED_FORWARD = ("ffn_gate.weight", "ffn_up.weight", "ffn_down.weight")


@cache
def _read(source: Path) -> tuple[GGUFReader, dict[str, tuple[Any, GGUFValueType, GGUFValueType | None]]]:
    reader = GGUFReader(str(source))
    fields = {
        name: (field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.") and name != "general.architecture"
    }
    return reader, fields


def metadata(source: Path) -> dict[str, Any]:
    """Return the metadata of a GGUF, by key."""
    return {name: value for name, (value, _, _) in _read(source)[1].items()}


def write_variant(
    source: Path, target: Path, changes: Mapping[str, Any], experts: int = 1, vocabulary_only: bool = False
) -> Path:
    """Write ``source`` with other metadata.

    Args:
        source: a GGUF of the llama architecture.
        target: the file to write, which is returned.
        changes: key → value, of the type that the key has there, or a text where it is new.
        experts: copies of every feed-forward layer as a mixture of which one expert answers: a file that many times
            as large (but for attention and embedding) which computes and answers the same.
        vocabulary_only: leave the tensors out.
    """
    reader, fields = _read(source)
    writer = GGUFWriter(target, "llama")
    changed = {
        name: (value, *fields.get(name, (None, GGUFValueType.STRING, None))[1:]) for name, value in changes.items()
    }
    if experts > 1:
        numbers = {"llama.expert_count": experts, "llama.expert_used_count": 1}
        changed |= {name: (number, GGUFValueType.UINT32, None) for name, number in numbers.items()}
    for name, (value, kind, inner) in (fields | changed).items():
        writer.add_key_value(name, value, kind, inner)
    for tensor in [] if vocabulary_only else reader.tensors:
        block, _, part = tensor.name.partition(".ffn_")
        if experts > 1 and f"ffn_{part}" in _FEED_FORWARD:
            every = np.repeat(tensor.data[None], experts, axis=0)
            writer.add_tensor(
                f"{block}.ffn_{part.replace('.weight', '_exps.weight')}", every, raw_dtype=tensor.tensor_type
            )
            if part == "gate.weight":  # the router: zeros choose the first expert
                writer.add_tensor(f"{block}.ffn_gate_inp.weight", np.zeros((experts, int(tensor.shape[0])), np.float32))
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
