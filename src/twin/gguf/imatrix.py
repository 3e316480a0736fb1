"""The importance matrix: how large a model's activations are at each input of its weights, on the person's own rows.

A quantizer that has one keeps a weight the better the more its column is used. For every weight that llama.cpp
multiplies activations by, it holds the mean of their squares a column, as llama.cpp's own tool gathers it
(tools/imatrix/imatrix.cpp): the weights of the blocks alone, not the output layer.

Not obvious: the sums are read in ``cb_eval`` while llama.cpp computes, from the first operand's name and the second
one's values, and the computation ends at the last norm, before the output layer that nobody asks for.
Imported late: llama_cpp is at the top.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
import psutil
from gguf import GGMLQuantizationType, GGUFWriter

from twin.errors import StepError, UsageError, file_errors
from twin.files import scratch_dir
from twin.gguf.ggml import BASE, Tensor, check_layout
from twin.gguf.reader import open_reader
from twin.llama import open_gguf
from twin.progress import Reporter

Floats = npt.NDArray[np.float32]

# Tokens of a pass, and of the longest row: what is beyond a context of this size is left out.
_BATCH = 512
_CONTEXT = 2048
_ROWS = 64  # of one context
_PLAIN, _CHOSEN = b"MUL_MAT", b"MUL_MAT_ID"  # of one weight, and of the experts that a token chose
_LAST = b"result_norm"
_SUMS, _COUNTS = ".in_sum2", ".counts"
_AGAIN = "It is made anew where it is missing: remove it."


def choose(sequences: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
    """Return rows of at most ``max_tokens`` tokens in all, spread evenly over all of them; always the same ones.

    Args:
        sequences: ids of each row.
        max_tokens: of the choice; the last row is cut there.
    """
    golden = (5**0.5 - 1) / 2  # multiples of it, modulo 1, lie evenly wherever one stops
    chosen: list[list[int]] = []
    for at in sorted(range(len(sequences)), key=lambda at: at * golden % 1):
        row = list(sequences[at][: min(max_tokens, _CONTEXT)])
        max_tokens -= len(row)
        if row:
            chosen.append(row)
    return chosen


def gather(gguf: Path, sequences: Sequence[Sequence[int]], reporter: Reporter) -> dict[str, Floats]:
    """Return the mean of squared activations of every column, by the name of the weight.

    Args:
        gguf: the model, float16 or so near to it that its activations are those of the file to quantize.
        sequences: ids of rows, each read from an empty context; see ``choose``. What is beyond 2048 tokens is cut.
        reporter: told of the tokens.

    Returns:
        ``[columns]`` for a weight, ``[experts, columns]`` for those of a mixture; an expert that no token chose is 1
        throughout, as llama.cpp takes it.

    Raises:
        UsageError: no token in ``sequences``.
        StepError: the model can't be opened or evaluated, or an activation is not finite.
    """
    rows = [list(row[:_CONTEXT]) for row in sequences if row]
    if not rows:
        raise UsageError("There is no row to gather an importance matrix from.", "Make some: twin export")
    collector = _Collector()
    room = max(_BATCH, *map(len, rows))
    with (
        open_gguf(gguf, num_ctx=_BATCH) as model,
        reporter.task("Gathering the importance matrix", sum(map(len, rows))) as task,
        _Context(model.model.model, collector, room) as context,
    ):
        for together in _packed(rows, room):
            context.clear()
            places = [(token, at, number) for number, row in enumerate(together) for at, token in enumerate(row)]
            for start in range(0, len(places), _BATCH):
                context.decode(places[start : start + _BATCH])
                task.advance(len(places[start : start + _BATCH]))
    return collector.means()


def _packed(rows: Iterable[list[int]], room: int) -> Iterator[list[list[int]]]:
    """Yield rows that a context of ``room`` tokens holds beside one another: a pass for each short one costs thrice."""
    together: list[list[int]] = []
    for row in rows:
        if together and (sum(map(len, together)) + len(row) > room or len(together) == _ROWS):
            yield together
            together = []
        together.append(row)
    yield together


class _Context:
    """A context of its own beside the one of the open model, with a collector in it."""

    def __init__(self, model: Any, collector: _Collector, room: int) -> None:
        self._collector = collector
        self._callback = llama_cpp.ggml_backend_sched_eval_callback(collector)  # has to live as long as the context
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = room
        parameters.n_seq_max = _ROWS
        parameters.kv_unified = True  # each row may take all of the room
        parameters.n_batch = parameters.n_ubatch = _BATCH
        parameters.n_threads = psutil.cpu_count(logical=False) or 2
        parameters.n_threads_batch = psutil.cpu_count() or 2
        parameters.cb_eval = self._callback
        self._context = llama_cpp.llama_init_from_model(model, parameters)
        if not self._context:
            raise StepError("llama.cpp made no context for the importance matrix.", "Is there memory left?")
        self._batch = llama_cpp.llama_batch_init(_BATCH, 0, 1)

    def __enter__(self) -> _Context:
        return self

    def __exit__(self, *error: object) -> None:
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def decode(self, places: Sequence[tuple[int, int, int]]) -> None:
        """Compute tokens, each with its place in its row and the row's number."""
        batch = self._batch
        batch.n_tokens = len(places)
        for at, (token, place, number) in enumerate(places):
            batch.token[at] = token
            batch.pos[at] = place
            batch.n_seq_id[at] = 1
            batch.seq_id[at][0] = number
            batch.logits[at] = True  # else the last block computes only what is asked for
        failed = llama_cpp.llama_decode(self._context, batch)
        if self._collector.error is not None:
            raise self._collector.error
        if failed:
            raise StepError("llama.cpp could not evaluate a row.", "Are its ids those of the model's vocabulary?")


class _Collector:
    """Sums of squares a column and counts of rows, by weight: [experts, columns] and [experts]."""

    def __init__(self) -> None:
        self.sums: dict[str, npt.NDArray[np.float64]] = {}
        self.counts: dict[str, npt.NDArray[np.int64]] = {}
        self.error: BaseException | None = None
        self._checked = False

    def __call__(self, address: int, ask: bool, _: int | None) -> bool:
        """Say whether a node's operands are wanted, or take them; ctypes would drop what is raised here."""
        try:
            return self.error is None and (self._wanted(address) if ask else self._take(address))
        except BaseException as error:  # an interruption too; ``decode`` raises it
            self.error = error
            return False

    def _wanted(self, address: int) -> bool:
        if not self._checked:
            check_layout(address)
            self._checked = True
        tensor, operation = Tensor.from_address(address), BASE.ggml_op_desc(address)
        if operation == _CHOSEN:
            return True
        if operation == _PLAIN:
            one, other = tensor.src[0].contents, tensor.src[1].contents
            return other.type == GGMLQuantizationType.F32 and _weight(one).startswith("blk.")
        return bool(tensor.name == _LAST)

    def _take(self, address: int) -> bool:
        tensor, operation = Tensor.from_address(address), BASE.ggml_op_desc(address)
        if operation not in {_PLAIN, _CHOSEN}:
            return False  # llama.cpp computes nothing further
        weights, activations = tensor.src[0].contents, tensor.src[1].contents
        name = _weight(weights)
        matrices = weights.ne[2] * weights.ne[3]
        columns = activations.ne[0]
        if name not in self.sums:
            self.sums[name] = np.zeros((matrices, columns))
            self.counts[name] = np.zeros(matrices, np.int64)
        values = _values(activations, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            if operation == _CHOSEN:
                self._add_chosen(name, values[0], _values(tensor.src[2].contents, np.int32)[0, 0])
            else:
                squares = np.einsum("abij,abij->abj", values, values).reshape(-1, columns)
                np.add.at(self.sums[name], np.arange(len(squares)) % matrices, squares)
                self.counts[name] += values.size // columns // matrices
        if not np.isfinite(self.sums[name]).all():
            raise StepError(f"What goes into '{name}' is not finite.", "Make the float16 file anew: twin gguf -q f16")
        return True

    def _add_chosen(self, name: str, values: Floats, experts: npt.NDArray[np.int32]) -> None:
        """Add what each expert of a mixture saw.

        Args:
            name: of the weight.
            values: [tokens, experts a token or 1, columns].
            experts: [tokens, experts a token], the experts that tokens chose.
        """
        for place in range(experts.shape[1]):
            rows = values[:, place % values.shape[1]]
            for expert in np.unique(experts[:, place]):
                seen = rows[experts[:, place] == expert]
                self.sums[name][expert] += np.einsum("ij,ij->j", seen, seen)
                self.counts[name][expert] += len(seen)

    def means(self) -> dict[str, Floats]:
        """Return the means; see ``gather``."""
        found = {}
        for name in sorted(self.sums):
            counts = self.counts[name][:, None]
            means = np.where(counts, self.sums[name] / np.maximum(counts, 1), 1.0).astype(np.float32)
            found[name] = means[0] if len(means) == 1 else means
        return found


def _weight(tensor: Tensor) -> str:
    """Return a weight's name; a copy of it on another device has the device before and a number behind, between #."""
    name = bytes(tensor.name).decode("utf-8", "replace")
    return name.split("#")[1] if "#" in name else name


def _values(tensor: Tensor, kind: type[np.generic]) -> npt.NDArray[Any]:
    """Return a tensor's values, outermost dimension first, wherever they are."""
    address = ctypes.addressof(tensor)
    raw = bytearray(BASE.ggml_nbytes(address))
    BASE.ggml_backend_tensor_get(address, (ctypes.c_char * len(raw)).from_buffer(raw), 0, len(raw))
    return np.ndarray(tuple(tensor.ne)[::-1], kind, raw, strides=tuple(tensor.nb)[::-1])


def write(path: Path, means: Mapping[str, Floats], tokens: int) -> None:
    """Write an importance matrix as llama.cpp's tools read it: a GGUF of sums and counts, for its owner alone.

    Args:
        path: the file, which appears whole or not at all.
        means: see ``gather``.
        tokens: how many were gathered from.
    """
    with scratch_dir(path) as scratch, file_errors(path, "write"):
        made = scratch / "imatrix.gguf"
        writer = GGUFWriter(made, "")
        writer.add_string("general.type", "imatrix")
        writer.add_array("imatrix.datasets", ["twin"])
        writer.add_uint32("imatrix.chunk_count", max(1, tokens // _BATCH))
        writer.add_uint32("imatrix.chunk_size", _BATCH)
        for name, mean in sorted(means.items()):
            rows = np.atleast_2d(mean)
            count = np.full((len(rows), 1), tokens, np.float32)
            writer.add_tensor(name + _SUMS, rows * count)
            writer.add_tensor(name + _COUNTS, count)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        made.chmod(0o600)
        made.replace(path)


def read(path: Path) -> dict[str, Floats]:
    """Return an importance matrix from a file of ours or of llama-imatrix; see ``gather``.

    Raises:
        UsageError: it is none, or a damaged one.
    """
    tensors = {tensor.name: tensor for tensor in open_reader(path).tensors}
    means = {}
    for name in sorted(name.removesuffix(_SUMS) for name in tensors if name.endswith(_SUMS)):
        pair = [tensors[key] for key in (name + _SUMS, name + _COUNTS) if key in tensors]
        if [tensor.tensor_type for tensor in pair] != [GGMLQuantizationType.F32] * 2:
            raise UsageError(f"'{path}' is no importance matrix: '{name}' has no sums and counts.", _AGAIN)
        counts = np.round(pair[1].data.reshape(-1, 1))
        if not len(counts) or pair[0].data.size % len(counts):
            raise UsageError(f"'{path}' is no importance matrix: the sums of '{name}' have another shape.", _AGAIN)
        sums = pair[0].data.reshape(len(counts), -1)
        if not (np.isfinite(sums).all() and np.isfinite(counts).all() and (sums >= 0).all()):
            raise UsageError(f"'{path}' is damaged: '{name}' holds what is no mean of squares.", _AGAIN)
        mean = np.where(counts > 0, sums / np.maximum(counts, 1), 1).astype(np.float32)
        means[name] = mean[0] if len(mean) == 1 else mean
    if not means:
        raise UsageError(f"'{path}' is no importance matrix: it has no sums.", _AGAIN)
    return means


def weights(means: Mapping[str, Floats] | None, name: str, columns: int, experts: int = 1) -> Floats | None:
    """Return what ``ggml_quantize_chunk`` takes last: contiguous [experts, columns], or None for a weight without any.

    Args:
        means: see ``gather``.
        name: of the weight.
        columns: of the weight, its innermost dimension.
        experts: matrices of the weight. A chunk may not go over from one to the next, and takes its own row.

    Raises:
        StepError: the matrix is of another model.
    """
    mean = None if means is None else means.get(name)
    if mean is None:
        return None
    if mean.size != columns * experts:
        raise StepError(
            f"The importance matrix has {mean.size} columns for '{name}', which has {columns * experts}.", _AGAIN
        )
    return np.ascontiguousarray(mean.reshape(experts, columns), np.float32)


def as_parameters(means: Mapping[str, Floats]) -> Any:
    """Return what ``llama_model_quantize_params.imatrix`` points to; keep it until the quantizer has returned.

    Args:
        means: see ``gather``.
    """
    entries = (llama_cpp.llama_model_imatrix_data * (len(means) + 1))()  # the last one's name is NULL
    kept = [np.ascontiguousarray(mean, np.float32) for mean in means.values()]
    for entry, name, mean in zip(entries, means, kept, strict=False):
        entry.name = name.encode()
        entry.data = mean.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = mean.size
    entries.kept = kept
    return entries
