"""What of ggml the llama_cpp package has no Python for, called in the very library that it loads.

Not obvious: ggml gives no function for a tensor's operands and strides, so ``Tensor`` repeats the struct of
ggml.h as the pinned release has it, and ``check_layout`` asks the library whether the struct is still that one.
Imported late: llama_cpp is at the top.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import llama_cpp
from llama_cpp import _ctypes_extensions

from twin.errors import MachineError

_DIMENSIONS = 4


def _library() -> Any:
    found = _ctypes_extensions.load_shared_library("ggml-base", Path(llama_cpp.__file__).parent / "lib")
    for name, result, arguments in (
        ("ggml_get_name", ctypes.c_void_p, [ctypes.c_void_p]),
        ("ggml_get_data", ctypes.c_void_p, [ctypes.c_void_p]),
        ("ggml_nbytes", ctypes.c_size_t, [ctypes.c_void_p]),
        ("ggml_op_desc", ctypes.c_char_p, [ctypes.c_void_p]),
        ("ggml_backend_tensor_get", None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]),
        (
            "ggml_quantize_chunk",
            ctypes.c_size_t,
            [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p],
        ),
        ("ggml_quantize_init", None, [ctypes.c_int]),
        ("ggml_type_name", ctypes.c_char_p, [ctypes.c_int]),
        ("ggml_row_size", ctypes.c_size_t, [ctypes.c_int, ctypes.c_int64]),
        ("ggml_quantize_requires_imatrix", ctypes.c_bool, [ctypes.c_int]),
        ("ggml_validate_row_data", ctypes.c_bool, [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]),
    ):
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    return found


BASE = _library()


class Tensor(ctypes.Structure):
    """``struct ggml_tensor`` of ggml.h, up to its name. ``ne`` is elements and ``nb`` bytes a step, innermost first."""


Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * _DIMENSIONS),
    ("nb", ctypes.c_size_t * _DIMENSIONS),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(Tensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
]


def check_layout(address: int) -> Tensor:
    """Return the tensor at ``address``.

    Raises:
        MachineError: the library's struct is another than ours.
    """
    tensor = Tensor.from_address(address)
    if BASE.ggml_get_name(address) != address + Tensor.name.offset or BASE.ggml_get_data(address) != tensor.data:
        raise MachineError(
            f"llama-cpp-python {llama_cpp.__version__} lays out its tensors in another way than twin knows.",
            "Install the version that twin asks for: pip install 'twin-llm[gguf]'",
        )
    return tensor
