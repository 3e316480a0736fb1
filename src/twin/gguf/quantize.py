"""Quantization by the library that will also serve: names and calls of llama.cpp's ``llama_model_quantize``.

Imported late: llama_cpp is at the top.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import llama_cpp

from twin.errors import StepError, UsageError, nearest
from twin.llama import silence

# llama.cpp's file types (llama.h, enum llama_ftype) that need no importance matrix.
TYPES: dict[str, int] = {
    name: getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name.upper()}")
    for name in ("q3_k_m", "q4_0", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k", "q8_0", "f16")
}


def check_names(names: list[str]) -> list[str]:
    """Return quantization names in lower case, each once.

    Raises:
        UsageError: a name that this version does not make; the hint has the nearest ones.
    """
    lowered = list(dict.fromkeys(name.lower() for name in names))
    for name in lowered:
        if name not in TYPES:
            raise UsageError(f"There is no quantization '{name}'.", nearest(name, TYPES))
    return lowered


def quantize(source: Path, target: Path, name: str) -> None:
    """Write the float16 GGUF ``source`` as ``name`` to ``target``.

    Raises:
        StepError: the library refused.
    """
    silence()
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = TYPES[name]
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters)):
        raise StepError(f"llama.cpp could not quantize to {name}.", "Check disk and memory, or try -q q8_0.")
