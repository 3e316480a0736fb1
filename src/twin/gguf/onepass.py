"""One pass from a converted model to finished files: each block of rows is read, merged and quantized once.

The header of a file is written first, for its types and sizes are known from llama.cpp's plan; then its tensors, in
llama.cpp's order, a block at a time. Several quantizations share the reading and the merging. Memory is a few blocks.
Runs in the converter's process (see ``worker``), where ``gguf`` is llama.cpp's own.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from twin.errors import StepError
from twin.gguf import imatrix, quantize
from twin.gguf.lazy import Converted, Source
from twin.gguf.quantize import Bytes, Floats, Quantizer

_BLOCK_VALUES = 1 << 20  # a block in float32 is 4 MB: it stays in a core's cache
_AHEAD = 3  # blocks under way for each thread
_SYNC_BYTES = 64 << 20
_TYPE = "general.file_type"
_COUNT_AT = 16  # where a GGUF says how many values its metadata has
_SAMPLE_SECONDS = 1.5


@dataclass(frozen=True)
class Planned:
    """A file to be written.

    Args:
        quantization: its name.
        kinds: ggml's type of each tensor, in the order of the file.
        size: of the file in bytes, exactly.
        header: its first bytes, up to the data of the first tensor.
    """

    quantization: str
    kinds: dict[str, int]
    size: int
    header: bytes


def plan(model: Converted, names: Sequence[str], scratch: Path, means: Mapping[str, Floats]) -> list[Planned]:
    """Return what each file will be: llama.cpp is asked, with a file that has all but the data.

    Args:
        model: the converted model.
        names: quantizations.
        scratch: an existing folder.
        means: an importance matrix by tensor; empty: none.

    Raises:
        UsageError: a quantization needs an importance matrix.
        StepError: llama.cpp refuses the model, or names other tensors than it was given.
    """
    shell = scratch / "shell.gguf"
    unquantized = {name: quantize.type_numbers()["f16" if one.half else "f32"] for name, one in model.sources.items()}
    header, size = _header(model, unquantized, model.metadata, shell)
    os.truncate(shell, size)
    planned = []
    for name in names:
        kinds = quantize.plan(shell, name, means)
        if sorted(kinds) != sorted(model.sources):
            odd = sorted(set(kinds) ^ set(model.sources))[0]
            raise StepError(f"llama.cpp and its converter do not agree on the tensor '{odd}'.", "Report this, please.")
        metadata = model.metadata | {_TYPE: replace(model.metadata[_TYPE], value=quantize.TYPES[name])}
        header, size = _header(model, kinds, metadata, scratch / "header.gguf")
        planned.append(Planned(name, kinds, size, header))
    shell.unlink()
    return planned


def expected(model: Converted, planned: Planned) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the shape and ggml's type of each tensor of a file."""
    import gguf

    kinds = {name: gguf.GGMLQuantizationType(kind).name for name, kind in planned.kinds.items()}
    return {name: (model.sources[name].shape, kind) for name, kind in kinds.items()}


def ones(model: Converted) -> dict[str, Floats]:
    """Return an importance matrix that weighs all alike: the types of a file hang on there being one, not on which."""
    return {
        name: np.ones(source.shape[-1] * (source.count // source.rows_per_matrix), np.float32)
        for name, source in model.sources.items()
        if len(source.shape) > 1 and name.startswith("blk.")
    }


def _header(model: Converted, kinds: Mapping[str, int], metadata: Mapping[str, Any], file: Path) -> tuple[bytes, int]:
    """Write a GGUF's header to ``file``, by llama.cpp's own writer; return it, padded, and the size of the whole."""
    import gguf

    writer = gguf.GGUFWriter(None, model.architecture)
    writer.kv_data[0] = dict(metadata)
    size = 0
    for name, kind in kinds.items():
        source = model.sources[name]
        nbytes = source.count * quantize.row_bytes(kind, source.shape[-1])
        raw = gguf.GGMLQuantizationType(kind)
        writer.add_tensor_info(name, source.shape, np.dtype(np.float32), nbytes, raw)
        size += writer.ggml_pad(nbytes, writer.data_alignment)
    writer.write_header_to_file(file)
    writer.write_kv_data_to_file()
    writer.fout[0].write(b"".join(model.vocabulary))
    writer.write_ti_data_to_file()
    writer.close()
    header = bytearray(file.read_bytes())
    struct.pack_into("<Q", header, _COUNT_AT, len(metadata) + len(model.vocabulary))
    header += bytes(writer.ggml_pad(len(header), writer.data_alignment) - len(header))
    file.write_bytes(header)
    return bytes(header), len(header) + size


@dataclass
class _Out:
    """A file under way: what was written is hashed, and goes to the disk while the next blocks are computed."""

    planned: Planned
    handle: BinaryIO
    disk: ThreadPoolExecutor
    written: int = 0
    unsynced: int = 0

    def __post_init__(self) -> None:
        self.digest = hashlib.sha256()
        self.syncs: list[Future[None]] = []

    def write(self, data: Any) -> None:
        self.handle.write(data)
        self.digest.update(data)
        self.written += len(data)
        self.unsynced += len(data)
        if self.unsynced >= _SYNC_BYTES:
            self.unsynced = 0
            self.handle.flush()
            self.syncs.append(self.disk.submit(os.fsync, self.handle.fileno()))

    def close(self) -> None:
        """Bring all of it to the disk; what one of the syncs met is raised here."""
        self.handle.flush()
        self.syncs.append(self.disk.submit(os.fsync, self.handle.fileno()))
        for sync in self.syncs:
            sync.result()


def write(
    model: Converted,
    plans: Sequence[Planned],
    targets: Sequence[Path],
    means: Mapping[str, Floats],
    threads: int,
    tick: Callable[[int], None],
) -> list[str]:
    """Write the planned files and return the SHA-256 of each, in hexadecimal.

    Args:
        model: the converted model.
        plans: what to write.
        targets: where, a path for each.
        means: an importance matrix by tensor; empty: none.
        threads: how many blocks are computed at a time.
        tick: told how many values of the model are done since it was last.

    Raises:
        StepError: a tensor has values that are no numbers.
        UsageError: see ``Converted.check_used`` and ``Quantizer``.
        OSError: the disk is full, and what else a disk says.
    """
    import gguf

    with ExitStack() as held:
        disk = held.enter_context(ThreadPoolExecutor(1))
        outs = [
            _Out(planned, held.enter_context(target.open("wb")), disk)
            for planned, target in zip(plans, targets, strict=True)
        ]
        for out in outs:
            out.write(out.planned.header)
        for name, blocks in _blocks(model, plans, means, threads):
            total = 0.0
            for made, squares, values in blocks:
                total += squares
                for out, data in zip(outs, made, strict=True):
                    out.write(data)
                tick(values)
            if not np.isfinite(total):
                raise StepError(
                    f"'{name}' has values that are no numbers.",
                    "If the base model is whole, train again with a lower --learning-rate.",
                )
            for out in outs:
                out.write(bytes(-out.written % gguf.GGUF_DEFAULT_ALIGNMENT))
        model.check_used()
        for out in outs:
            if out.written != out.planned.size:
                raise StepError(
                    f"{out.written} bytes were written where {out.planned.size} were planned.", "Report it."
                )
            out.close()
        return [out.digest.hexdigest() for out in outs]


Block = tuple[list[Bytes], float, int]


def _blocks(
    model: Converted, plans: Sequence[Planned], means: Mapping[str, Floats], threads: int
) -> Iterator[tuple[str, Iterator[Block]]]:
    """Yield each tensor's name and blocks, in order, while later blocks are computed on ``threads`` threads."""
    with ThreadPoolExecutor(threads) as pool:
        under_way: deque[Future[Block] | None] = deque()  # None: a tensor ends

        def submit() -> Iterator[None]:
            for name in plans[0].kinds:
                source = model.sources[name]
                quantizers = _quantizers(source, plans, means)
                for start, stop in _ranges(source):
                    under_way.append(pool.submit(_compute, source, quantizers, start, stop))
                    yield
                under_way.append(None)

        coming = submit()

        def blocks() -> Iterator[Block]:
            while True:
                while len(under_way) < _AHEAD * threads and next(coming, coming) is not coming:
                    pass
                future = under_way.popleft()
                if future is None:
                    return
                yield future.result()

        try:
            for name in plans[0].kinds:
                yield name, blocks()
                model.sources[name].forget()
        finally:
            for future in under_way:
                if future:
                    future.cancel()


def _ranges(source: Source) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows of about a block each, none across two experts."""
    size = max(1, _BLOCK_VALUES // source.shape[-1])
    expert = source.rows_per_matrix
    for first in range(0, source.count, expert):
        for start in range(first, first + expert, size):
            yield start, min(start + size, first + expert)


def _quantizers(source: Source, plans: Sequence[Planned], means: Mapping[str, Floats]) -> list[Quantizer | None]:
    """Return what makes each file's rows of a tensor; None where they stay float32."""
    expert = source.rows_per_matrix
    float32 = quantize.type_numbers()["f32"]
    made: list[Quantizer | None] = []
    for planned in plans:
        kind = planned.kinds[source.name]
        weights = imatrix.weights(means, source.name, source.shape[-1], source.count // expert)
        made.append(None if kind == float32 else Quantizer(source.name, kind, source.shape[-1], expert, weights))
    return made


def _compute(source: Source, quantizers: Sequence[Quantizer | None], start: int, stop: int) -> Block:
    """Return a block in each file's type, its sum of squares, and its number of values."""
    values: Floats = source.rows(start, stop).numpy()
    flat = values.ravel()
    squares = float(np.dot(flat, flat))
    made = [values.view(np.uint8).ravel() if one is None else one.rows(values, start) for one in quantizers]
    return made, squares, values.size


def estimate_seconds(model: Converted, plans: Sequence[Planned], means: Mapping[str, Floats], threads: int) -> float:
    """Return how long ``write`` will take, from a second's worth of blocks that are spread over the model."""
    work = []
    for name in plans[0].kinds:
        source = model.sources[name]
        if source.leaf is not None:
            work += [(source, ranges) for ranges in _ranges(source)]
    total = sum(source.count * source.shape[-1] for source in model.sources.values())
    random = np.random.default_rng(0)
    done, cached = 0, {}
    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        order = random.permutation(len(work))
        for some in range(0, len(order), threads):
            futures = []
            for index in order[some : some + threads]:
                source, (start, stop) = work[index]
                if source.name not in cached:
                    cached[source.name] = _quantizers(source, plans, means)
                futures.append(pool.submit(_compute, source, cached[source.name], start, stop))
            done += sum(future.result()[2] for future in futures)
            if time.perf_counter() - began > _SAMPLE_SECONDS:
                break
    return (time.perf_counter() - began) * total / max(done, 1)
