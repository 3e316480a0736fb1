"""What a finished file must show before it gets its name: the template, the ids, the end token, an answer.

Imported late: llama_cpp comes in through ``twin.llama``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from twin.errors import GateError
from twin.gguf.reader import chat_template, open_reader
from twin.llama import open_gguf
from twin.records import Turn
from twin.templates import Family, gate


def check(
    path: Path,
    family: Family,
    prompts: Sequence[tuple[str, Sequence[Turn]]],
    training_ids: Callable[[Sequence[Turn]], Sequence[int]],
) -> dict[str, str]:
    """Return what was verified of the file, by name.

    Args:
        path: the GGUF.
        family: the pair it was trained with.
        prompts: names and turns; the first is also answered.
        training_ids: the ids of training for turns' prompt.

    Raises:
        GateError: the first thing that is wrong, with both sides.
        UsageError: no GGUF, or a damaged one.
    """
    again = "Make it again with twin, which puts its own in: twin gguf"
    reader = open_reader(path)
    jinja = chat_template(reader)
    if jinja != family.jinja:
        gate.check_words(jinja, f"The Jinja in '{path.name}'", again)
        place = gate.first_difference(jinja.encode(), family.jinja.encode(), ("the file", "ours"))
        raise GateError(f"'{path.name}' does not carry the template of family '{family.name}', at {place}.", again)
    for tensor in reader.tensors:
        if tensor.tensor_type.name in ("F32", "F16") and not np.isfinite(tensor.data).all():
            raise GateError(f"Tensor '{tensor.name}' of '{path.name}' has values that are not finite.", again)
    with open_gguf(path, num_ctx=2048) as model:
        gate.check_end(family, model.plain_ids, model.ends_generation)
        count = gate.check_ids(family, prompts, training_ids, model.ids, model.piece)
        answer = ""
        if prompts:
            answer = "".join(model.reply(training_ids(prompts[0][1]), temperature=0.0, max_tokens=24)).strip()
            if not answer:
                raise GateError(f"'{path.name}' answers nothing to its first prompt.", "Train longer, or try -q q8_0.")
    return {
        "template": f"family {family.name}, byte for byte",
        "input_ids": f"{count} prompts, the ids of training",
        "end_token": family.end_token,
        "tensors": f"{len(reader.tensors)}, float ones finite",
        "answer": answer,
    }
