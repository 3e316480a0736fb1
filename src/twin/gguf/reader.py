"""The single values and the tensors of a GGUF.

gguf's own reader makes two arrays of each token of a vocabulary, which is half a minute for 262,144 of them; this one
steps over arrays.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, cast

import numpy as np
from gguf import GGUFReader, GGUFValueType

from twin.errors import UsageError, file_errors


class _Reader(GGUFReader):
    fields_end = 0  # where the last of the values ends

    def _build_fields(self, offs: int, count: int) -> int:
        self.fields_end = super()._build_fields(offs, count)
        return self.fields_end

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[Any]]:
        if raw_type != GGUFValueType.ARRAY:
            parts: tuple[int, list[Any], list[int], list[Any]] = super()._get_field_parts(orig_offs, raw_type)
            return parts
        data = memoryview(self.data)
        kind, length = struct.unpack_from("<IQ", data, orig_offs)
        at = orig_offs + 12
        if kind == GGUFValueType.STRING:
            for _ in range(length):
                at += 8 + struct.unpack_from("<Q", data, at)[0]
        else:
            at += length * self.gguf_scalar_to_np[GGUFValueType(kind)]().itemsize
        return at - orig_offs, [np.array([length], np.uint64)], [], [GGUFValueType.ARRAY]


def open_reader(path: Path) -> GGUFReader:
    """Return a reader of a file's single values and tensors; its arrays are empty.

    Raises:
        UsageError: no GGUF, or a damaged one.
    """
    with file_errors(path, "read"), path.open("rb") as handle:
        magic = handle.read(4)
    try:
        if magic == b"GGUF":
            return _Reader(str(path))
    except (ValueError, KeyError, IndexError, OSError, OverflowError, struct.error):
        pass
    raise UsageError(f"'{path}' is no GGUF, or it is cut short.", "Copy it again, or make it anew: twin gguf")


def array_length(reader: GGUFReader, name: str) -> int:
    """Return how many values an array of the metadata has; 0 where there is none."""
    found = reader.get_field(name)
    return int(found.parts[-1][0]) if found is not None and found.types[:1] == [GGUFValueType.ARRAY] else 0


def chat_template(reader: GGUFReader) -> str:
    """Return the Jinja in a file; empty where there is none.

    Raises:
        UsageError: it is no text.
    """
    found = reader.get_field("tokenizer.chat_template")
    try:
        return "" if found is None else str(found.contents())
    except UnicodeDecodeError:
        raise UsageError(
            "The 'tokenizer.chat_template' of the GGUF is no UTF-8 text.", "Make the file anew: twin gguf"
        ) from None


def raw_fields(path: Path) -> dict[str, bytes]:
    """Return the metadata of a file by key, each as its bytes stand there: key, type and value.

    Raises:
        UsageError: no GGUF, or a damaged one.
    """
    reader = cast("_Reader", open_reader(path))
    starts = {name: field.offset for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    ends = [*sorted(starts.values())[1:], reader.fields_end]
    spans = dict(zip(sorted(starts.values()), ends, strict=True))
    return {name: reader.data[start : spans[start]].tobytes() for name, start in starts.items()}
