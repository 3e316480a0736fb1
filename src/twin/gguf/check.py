"""What a finished file must show before it gets its name: the template, the ids, the end token, an answer.

Imported late: llama_cpp comes in through ``twin.llama``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from gguf import GGUFReader

from twin.errors import GateError
from twin.llama import open_gguf
from twin.templates import Family


def check(path: Path, family: Family, samples: Sequence[tuple[str, Sequence[int]]]) -> dict[str, str]:
    """Return what was verified of the file, by name.

    Args:
        path: the GGUF.
        family: the pair it was trained with.
        samples: prompts as text and the ids that training used for them.

    Raises:
        GateError: the first thing that is wrong, with both sides.
    """
    again = "The converter and the training disagree: please report it with the base model's name."
    reader = GGUFReader(str(path))
    found = reader.get_field("tokenizer.chat_template")
    if found is None or found.contents() != family.jinja:
        raise GateError(f"'{path.name}' does not carry the template of family '{family.name}'.", again)
    for tensor in reader.tensors:
        if tensor.tensor_type.name in ("F32", "F16") and not np.isfinite(tensor.data).all():
            raise GateError(f"Tensor '{tensor.name}' of '{path.name}' has values that are not finite.", again)
    with open_gguf(path, num_ctx=2048) as model:
        for text, expected in samples:
            got = model.ids(text)
            if got != list(expected):
                place = next(
                    (at for at, pair in enumerate(zip(got, expected, strict=False)) if pair[0] != pair[1]),
                    min(len(got), len(expected)),
                )
                raise GateError(
                    f"llama.cpp reads a prompt as {len(got)} ids, training as {len(expected)}, parting at id {place}: "
                    f"{got[place : place + 3]} against {list(expected[place : place + 3])}.",
                    again,
                )
        for stop in family.stops:
            ids = model.ids(stop)
            if stop == family.end_token and not (len(ids) == 1 and model.ends_generation(ids[0])):
                raise GateError(f"'{path.name}' does not end a reply at '{stop}'.", again)
        answer = ""
        if samples:
            answer = "".join(model.reply(samples[0][1], temperature=0.0, max_tokens=24)).strip()
            if not answer:
                raise GateError(f"'{path.name}' answers nothing to its first prompt.", "Train longer, or try -q q8_0.")
    return {
        "template": f"family {family.name}, byte for byte",
        "input_ids": f"{len(samples)} prompts, the ids of training",
        "end_token": family.end_token,
        "tensors": f"{len(reader.tensors)}, float ones finite",
        "answer": answer,
    }
