"""What a finished file must show before it gets its name: metadata, tensors, the ids, the end of a reply, an answer.

Cheap things come first, so that a damaged file is told by what is damaged and not by what llama.cpp makes of it. The
tensors are read in pieces, which are let go of before the model is opened: memory stays flat.
Imported late: llama_cpp comes in through ``twin.llama``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUFReader, ReaderTensor, quants

from twin.errors import GateError, file_errors
from twin.gguf.ggml import BASE
from twin.gguf.reader import array_length, chat_template, open_reader
from twin.llama import Gguf, open_gguf
from twin.records import Turn
from twin.templates import Family, gate

_AGAIN = "Make it again with twin: twin gguf"
_PIECE = 4 << 20  # bytes of a tensor at once
_ANSWER = 12  # most ids of the answer: enough to see one
_PHI = "phi-3"  # llama.cpp reads text in another way where general.name holds it
_TOKENS = "tokenizer.ggml.tokens"


def check(
    path: Path,
    family: Family,
    prompts: Sequence[tuple[str, Sequence[Turn]]],
    training_ids: Callable[[Sequence[Turn]], Sequence[int]],
    *,
    expected: Mapping[str, tuple[Sequence[int], str]] | None = None,
    vocabulary: Path | None = None,
) -> dict[str, str]:
    """Return what was verified of the file, by name.

    Args:
        path: the GGUF.
        family: the pair it was trained with.
        prompts: names and turns; the first is also answered.
        training_ids: the ids of training for turns' prompt.
        expected: for every tensor its shape, outermost dimension first, and the name of ggml's type: what the writer
            meant to write.
        vocabulary: the base model's, as it was before training (see ``gguf.vocabulary``): its architecture and special
            tokens have to be the file's.

    Raises:
        GateError: the first thing that is wrong, with both sides.
        UsageError: no GGUF, or a damaged one.
        StepError: llama.cpp can't open it; its reason is in the sentence.
    """
    reader = open_reader(path)
    _check_metadata(reader, path, family)
    if vocabulary is not None:
        _check_like(reader, path, open_reader(vocabulary))
    if expected is not None:
        _check_shapes(reader, path, expected)
    rows = _check_vocabulary(reader, path)
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        list(threads.map(partial(_check_values, path), reader.tensors))
    count = len(reader.tensors)
    del reader  # its pages with it
    with open_gguf(path, num_ctx=2048, copies=False) as model:
        _check_ends(path, family, model)
        same = gate.check_ids(family, prompts, training_ids, model.ids, model.piece)
        answer = _answer(path, model, training_ids(prompts[0][1])) if prompts else ""
    return {
        "template": f"family {family.name}, byte for byte",
        "vocabulary": f"{rows} tokens, a row of the embedding for each",
        "input_ids": f"{same} prompts, the ids of training",
        "end_token": family.end_token,
        "tensors": f"{count}, all finite, none all zero",
        "answer": answer,
    }


def _value(reader: GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    try:
        return None if field is None else field.contents()
    except UnicodeDecodeError:
        return None


def _check_metadata(reader: GGUFReader, path: Path, family: Family) -> None:
    jinja = chat_template(reader)
    if jinja != family.jinja:
        gate.check_words(jinja, f"The Jinja in '{path.name}'", _AGAIN)
        place = gate.first_difference(jinja.encode(), family.jinja.encode(), ("the file", "ours"))
        raise GateError(f"'{path.name}' does not carry the template of family '{family.name}', at {place}.", _AGAIN)
    name = str(_value(reader, "general.name") or "")
    if (_PHI in name) != (_PHI in family.gguf_name):
        raise GateError(
            f"'{path.name}' says that its name is '{name[:60]}', and llama.cpp reads text of family '{family.name}' "
            f"rightly in a file called '{family.gguf_name}'.",
            _AGAIN,
        )


def _check_like(reader: GGUFReader, path: Path, vocabulary: GGUFReader) -> None:
    keys = [key for key in vocabulary.fields if key.startswith("tokenizer.ggml.")]
    for key in ["general.architecture", *keys]:
        meant, found = (
            array_length(one, key) or _value(one, key) for one in (vocabulary, reader)
        )  # an array's values show in the ids
        if meant != found:
            raise GateError(
                f"'{path.name}' has '{key}' as {str(found)[:60]!r}, and the base model as {str(meant)[:60]!r}.", _AGAIN
            )


def _check_shapes(reader: GGUFReader, path: Path, expected: Mapping[str, tuple[Sequence[int], str]]) -> None:
    found = {
        tensor.name: ([int(size) for size in tensor.shape[::-1]], tensor.tensor_type.name) for tensor in reader.tensors
    }
    for name in [*expected, *found]:
        if name not in found:
            raise GateError(f"'{path.name}' has no tensor '{name}'.", _AGAIN)
        if name not in expected:
            raise GateError(f"'{path.name}' has a tensor '{name}' that nothing asked for.", _AGAIN)
        shape, kind = list(expected[name][0]), expected[name][1]
        if found[name] != (shape, kind):
            raise GateError(
                f"Tensor '{name}' of '{path.name}' is {found[name][1]} {found[name][0]} and not {kind} {shape}.", _AGAIN
            )


def _check_vocabulary(reader: GGUFReader, path: Path) -> int:
    tokens = array_length(reader, _TOKENS)
    for tensor in reader.tensors:
        if tensor.name in ("token_embd.weight", "output.weight") and int(tensor.shape[-1]) != tokens:
            raise GateError(
                f"Tensor '{tensor.name}' of '{path.name}' has {int(tensor.shape[-1])} rows for {tokens} tokens.", _AGAIN
            )
    return tokens


def _check_values(path: Path, tensor: ReaderTensor) -> None:
    """Refuse a tensor with a value, or a scale of a block, that is not finite, or with nothing but zeros.

    Biases may be all zero: models are published whose biases are.
    """
    _, size = GGML_QUANT_SIZES[tensor.tensor_type]
    buffer = memoryview(bytearray(min(_PIECE // size * size, tensor.n_bytes)))
    zero = not tensor.name.endswith(".bias")
    with file_errors(path, "read"), path.open("rb", buffering=0) as handle:
        handle.seek(tensor.data_offset)
        for start in range(0, tensor.n_bytes, len(buffer)):
            piece = np.frombuffer(buffer[: tensor.n_bytes - start], np.uint8)
            if handle.readinto(buffer[: len(piece)]) != len(piece):
                raise GateError(f"'{path.name}' is cut short in tensor '{tensor.name}'.", _AGAIN)
            # ggml's own check, which says to stderr what it found in which block
            if not BASE.ggml_validate_row_data(int(tensor.tensor_type), piece.ctypes.data, len(piece)):
                raise GateError(f"Tensor '{tensor.name}' of '{path.name}' has values that are not finite.", _AGAIN)
            zero = zero and _all_zero(piece.reshape(-1, size), tensor)
    if zero:
        raise GateError(f"Tensor '{tensor.name}' of '{path.name}' is all zero.", _AGAIN)


def _all_zero(blocks: np.ndarray[Any, np.dtype[np.uint8]], tensor: ReaderTensor) -> bool:
    """Say whether blocks hold nothing but zeros; a few tell of almost every tensor that they do not."""
    step = 256
    for start in range(0, len(blocks), step):
        values = quants.dequantize(blocks[start : start + step], tensor.tensor_type)
        if values.any():
            return False
        step = 16384
    return True


def _check_ends(path: Path, family: Family, model: Gguf) -> None:
    """Every end of a reply has to end generation, and nothing that a prompt is made of may."""
    for stop in dict.fromkeys([family.end_token, *family.stops]):
        gate.check_end(family.model_copy(update={"end_token": stop}), model.plain_ids, model.ends_generation)
    ends = {family.end_token, *family.stops}
    for text in [mark for mark in family.control_tokens if mark not in ends]:
        ids = model.plain_ids(text)
        if len(ids) == 1 and model.ends_generation(ids[0]):
            raise GateError(f"In '{path.name}' {text!r} ends generation, and prompts are made of it.", _AGAIN)
    eos = model.model.token_eos()
    if not model.is_control(eos):
        said = ascii(model.piece(eos).decode("utf-8", "replace"))
        raise GateError(f"The end of generation of '{path.name}' is id {eos}, {said}, which is text.", _AGAIN)


def _answer(path: Path, model: Gguf, ids: Sequence[int]) -> str:
    """Return the beginning of the likeliest reply."""
    said = list(ids)
    for _ in range(_ANSWER):
        logits = model.logits(said, len(said) - 1)[0]
        if not np.isfinite(logits).all():
            raise GateError(
                f"'{path.name}' computes what is not finite for its first prompt.", "Try another: -q q8_0, or -q f16."
            )
        token = int(logits.argmax())
        if model.ends_generation(token):
            break
        said.append(token)
    answer = "".join(model.texts(said[len(ids) :])).strip()
    if not answer:
        raise GateError(f"'{path.name}' answers nothing to its first prompt.", "Train longer, or try -q q8_0.")
    return answer
