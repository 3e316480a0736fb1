"""Quantization by the library that will also serve: which type each tensor gets, and a block of rows in that type.

Not obvious: which tensor gets which type is decided by llama.cpp alone. It is given a GGUF with all metadata and no
data, and asked for a dry run; what it logs is the plan. The bytes come from the same library, block by block, so they
are those that its own quantizer writes. Imported late: llama_cpp is at the top.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import llama_cpp
import numpy as np
import numpy.typing as npt

from twin.errors import StepError, UsageError, nearest
from twin.gguf import imatrix
from twin.gguf.ggml import BASE

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

# llama.cpp's file types by the names that llama-quantize takes (llama.h, enum llama_ftype).
_NAMES = (
    "q2_k", "q2_k_s", "q3_k_s", "q3_k_m", "q3_k_l", "q4_0", "q4_1", "q4_k_s", "q4_k_m", "q5_0", "q5_1", "q5_k_s",
    "q5_k_m", "q6_k", "q8_0", "iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "iq3_xxs", "iq3_xs", "iq3_s",
    "iq3_m", "iq4_nl", "iq4_xs", "f16", "bf16",
)  # fmt: skip
TYPES: dict[str, int] = {name: getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name.upper()}") for name in _NAMES}
# Those that llama.cpp asks for an importance matrix on any model; its dry run is asked too (see ``plan``).
NEEDS_IMATRIX = frozenset({"q2_k_s", "iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "iq3_xxs", "iq3_xs"})

_LOGGED = re.compile(
    r"\[ *\d+/ *\d+\] +(\S+) +- \[[^]]*\], type = *(\w+), size = *[\d.]+ MiB(?: -> *[\d.]+ MiB \((\w+)\))?"
)
_ASKS = "will require an imatrix"
_NO_IMATRIX = "One is made of your training rows where they are here; without, try -q q3_k_m."
_REFUSED = re.compile(r"failed to quantize: (.+)")


def check_names(names: Sequence[str]) -> list[str]:
    """Return quantization names in lower case, each once.

    Raises:
        UsageError: a name that this version does not make; the hint has the nearest ones.
    """
    lowered = list(dict.fromkeys(name.lower() for name in names))
    for name in lowered:
        if name not in TYPES:
            raise UsageError(f"There is no quantization '{name}'.", nearest(name, TYPES))
    return lowered


@cache
def type_numbers() -> dict[str, int]:
    """Return ggml's number of each tensor type, by its name."""
    names = {number: BASE.ggml_type_name(number) for number in range(llama_cpp.GGML_TYPE_COUNT)}
    return {name.decode(): number for number, name in names.items() if name}


def row_bytes(kind: int, length: int) -> int:
    """Return the bytes of a row of ``length`` values in type ``kind``."""
    return int(BASE.ggml_row_size(kind, length))


def plan(shell: Path, name: str, means: Mapping[str, Floats]) -> dict[str, int]:
    """Return the type that each tensor gets, in the order of the file, as llama.cpp decides.

    Args:
        shell: a GGUF of the unquantized model, whose data may be a hole.
        name: the quantization.
        means: an importance matrix by tensor; empty: none.

    Raises:
        StepError: llama.cpp refuses the model; its own words are in the sentence.
        UsageError: it asks for an importance matrix.
    """
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.dry_run = TYPES[name], True
    matrix = imatrix.as_parameters(means) if means else None
    if matrix:
        parameters.imatrix = ctypes.cast(matrix, type(parameters.imatrix))
    said: list[bytes] = []

    @llama_cpp.llama_log_callback
    def hear(level: int, text: bytes, data: ctypes.c_void_p) -> None:
        said.append(text)

    llama_cpp.llama_log_set(hear, ctypes.c_void_p(0))
    try:
        failed = llama_cpp.llama_model_quantize(os.fsencode(shell), os.fsencode(shell), ctypes.byref(parameters))
    finally:
        from twin.llama import silence

        silence()
    text = b"".join(said).decode("utf-8", "replace")
    if failed:
        reason = _REFUSED.search(text)
        raise StepError(
            f"llama.cpp can't make a {name} of this model: {reason[1] if reason else 'it says no more'}.",
            "Try another quantization: -q q8_0",
        )
    if _ASKS in text and not means:
        raise UsageError(f"The quantization {name} needs an importance matrix.", _NO_IMATRIX)
    numbers = type_numbers()
    return {tensor: numbers[to or kind] for tensor, kind, to in _LOGGED.findall(text)}


class Quantizer:
    """Rows in one tensor's type.

    Args:
        tensor: its name in the GGUF, for what is said.
        kind: ggml's number of the type.
        length: values in a row.
        rows_per_expert: rows that share one line of the importance matrix; all rows where there are no experts.
        imatrix: [experts, length] float32, contiguous (see ``imatrix.weights``); None: without.

    Raises:
        UsageError: the type needs an importance matrix, and there is none for this tensor.
    """

    def __init__(self, tensor: str, kind: int, length: int, rows_per_expert: int, imatrix: Floats | None) -> None:
        self.tensor, self.kind, self.length, self.rows_per_expert = tensor, kind, length, rows_per_expert
        self.imatrix = imatrix
        if self.imatrix is None and BASE.ggml_quantize_requires_imatrix(kind):
            raise UsageError(f"The type of '{tensor}' needs an importance matrix.", _NO_IMATRIX)
        BASE.ggml_quantize_init(kind)

    def rows(self, values: Floats, first: int) -> Bytes:
        """Return the bytes of rows, of one expert.

        Args:
            values: [rows, length] float32, contiguous.
            first: the number of the first of them in the tensor.

        Raises:
            StepError: the library's own check finds values in them that are no numbers.
        """
        made = np.empty(len(values) * row_bytes(self.kind, self.length), np.uint8)
        weights = None
        if self.imatrix is not None:
            weights = self.imatrix[first // self.rows_per_expert].ctypes.data
        BASE.ggml_quantize_chunk(self.kind, values.ctypes.data, made.ctypes.data, 0, len(values), self.length, weights)
        if not BASE.ggml_validate_row_data(self.kind, made.ctypes.data, made.nbytes):
            raise StepError(
                f"'{self.tensor}' has values that are no numbers once quantized.",
                "The adapter may have grown too large: train again with a lower --learning-rate.",
            )
        return made
