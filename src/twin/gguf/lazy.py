"""llama.cpp's converter, asked for tensors one block of rows at a time: names, order and metadata stay its own.

Not obvious: the converter builds a graph for each tensor and computes it when it writes. Nothing is written here; a
graph that only changes types and the order of rows (queries and keys) is computed for a block of rows, so that a tensor
of gigabytes never stands in memory, and any other graph (stacked experts) as a whole. Runs in a process of its own,
where the converter's ``gguf`` is the one that is imported (see ``worker``); torch is at the top.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from twin.errors import StepError, UsageError, first_line
from twin.gguf.converter import refused
from twin.gguf.reader import raw_fields

# The converter's lazy types wrap each call in one of these closures; it names none of its nodes.
_CAST, _TO_NUMPY, _METHOD = "LazyNumpyTensor.astype", "LazyTorchTensor.numpy", "LazyMeta.__new__.<locals>.__getattr__"
_MOST_SPREAD = 4  # a block's rows are read with those between them, where these are not many more
_TORCH_TYPES = {np.dtype(np.float16): torch.float16, np.dtype(np.float32): torch.float32}


class Merged(Protocol):
    """What an adapter makes of one tensor of the base; ``gguf.delta`` has it."""

    rowwise: bool

    def rows(self, weight: Tensor, start: int, stop: int) -> Tensor:
        """Return float32 rows ``start`` to ``stop`` of the changed tensor; ``weight`` holds these rows of the base."""


@dataclass
class _Leaf:
    """A tensor of the checkpoint as it lies in a file, changed by the adapter where ``merged`` says so."""

    name: str
    file: Path
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    merged: Merged | None
    used: bool = False

    @property
    def rowwise(self) -> bool:
        return len(self.shape) > 1 and (self.merged is None or self.merged.rowwise)

    def rows(self, start: int, stop: int) -> Tensor:
        """Return rows of the first dimension; read, not mapped: pages of a map would count as this process's memory."""
        width = prod(self.shape[1:]) * self.dtype.itemsize
        data = np.fromfile(self.file, np.uint8, (stop - start) * width, offset=self.offset + start * width)
        if len(data) != (stop - start) * width:
            raise UsageError(f"'{self.file}' ends within '{self.name}'.", "Fetch the base model again.")
        rows = torch.from_numpy(data).view(self.dtype).reshape(stop - start, *self.shape[1:])
        self.used = True
        return rows if self.merged is None else self.merged.rows(rows, start, stop)

    def whole(self) -> Tensor:
        """Return all of it; a single value has no dimension."""
        if not self.shape:
            return _Leaf(self.name, self.file, self.offset, (1,), self.dtype, self.merged).whole().reshape(())
        return self.rows(0, self.shape[0])


@dataclass
class Source:
    """A tensor of the GGUF to be, whose rows are computed when they are asked for.

    Args:
        name: in the GGUF.
        shape: the last dimension is that of a row, which GGUF names first.
        half: it is stored as float16 in an unquantized file (else as float32).
        leaf: where its rows are those of one tensor of the checkpoint.
        types: the types that they are cast to, in order.
        order: which of the leaf's rows each row is; None: as they stand.
        graph: the converter's own graph, where they are not.
    """

    name: str
    shape: tuple[int, ...]
    half: bool
    leaf: _Leaf | None = None
    types: tuple[torch.dtype, ...] = ()
    order: Tensor | None = field(default=None, repr=False)
    graph: Any = field(default=None, repr=False)

    @property
    def count(self) -> int:
        """How many rows there are, over all dimensions but the last."""
        return prod(self.shape[:-1])

    @property
    def rows_per_matrix(self) -> int:
        """How many rows one matrix has: an expert's, where experts are stacked, else all."""
        return self.shape[-2] if len(self.shape) > 1 else 1

    @cached_property
    def _whole(self) -> Tensor:
        whole = type(self.graph).to_eager(self.graph)
        self.graph = None
        return torch.from_numpy(whole.reshape(-1, self.shape[-1]))

    def rows(self, start: int, stop: int) -> Tensor:
        """Return [stop - start, row] float32, with the values that the float16 file would hold."""
        if self.leaf is None:
            rows = self._whole[start:stop]
        else:
            rows = _ordered(self.leaf, self.order, start, stop)
            for dtype in self.types:
                rows = rows.to(dtype)
        return (rows.to(torch.float16) if self.half else rows).to(torch.float32).contiguous()

    def forget(self) -> None:
        """Free what was computed as a whole."""
        self.__dict__.pop("_whole", None)
        self.graph = None


def _ordered(leaf: _Leaf, order: Tensor | None, start: int, stop: int) -> Tensor:
    """Return rows ``order[start:stop]`` of a leaf; a head's lie together, so they are read in one piece."""
    if order is None:
        return leaf.rows(start, stop)
    wanted = order[start:stop]
    first, last = int(wanted.min()), int(wanted.max())
    if last - first < _MOST_SPREAD * (stop - start):
        return leaf.rows(first, last + 1)[wanted - first]
    return torch.cat([leaf.rows(row, row + 1) for row in wanted.tolist()])


@dataclass
class Converted:
    """What the converter made of a checkpoint.

    Args:
        architecture: llama.cpp's name of it.
        metadata: the converter's values, by key, of its own writer's type.
        vocabulary: more of it, each as its bytes stand in a file: key, type and value.
        sources: the tensors.
        leaves: the checkpoint's tensors, by name.
    """

    architecture: str
    metadata: dict[str, Any]
    vocabulary: list[bytes]
    sources: dict[str, Source]
    leaves: dict[str, _Leaf]

    def check_used(self) -> None:
        """Refuse a change that reached no tensor of the file.

        Raises:
            UsageError: the adapter changes a tensor that llama.cpp's file does not have.
        """
        for leaf in self.leaves.values():
            if leaf.merged is not None and not leaf.used:
                raise _left_out(leaf.name)


def _left_out(name: str) -> UsageError:
    return UsageError(
        f"The adapter changes '{name}', which llama.cpp's file of this model does not hold.",
        "Is the embedding shared with the output? Train without this module.",
    )


def convert(
    checkpoint: Path,
    base: Path,
    changes: Mapping[str, Merged],
    vocabulary: Path,
    name: str,
    chat_template: str,
) -> Converted:
    """Ask the converter for a model's metadata and tensors; weights are not read yet.

    Args:
        checkpoint: a folder with the configuration.
        base: the folder with the weights.
        changes: what an adapter makes of which of the base's tensors.
        vocabulary: a GGUF without weights that the converter made of the same configuration and tokenizer (see
            ``gguf.vocabulary``): what was proved before training is what the file gets.
        name: what the file says its name is.
        chat_template: the Jinja that the file carries.

    Raises:
        StepError: the converter does not know the architecture, or fails in another way.
        UsageError: a change of a tensor that the converter leaves out.
    """
    import gguf

    leaves: dict[str, _Leaf] = {}
    model_class = _watching(_model_class(checkpoint), base, leaves, changes)
    with _refusals():
        model = model_class(checkpoint, gguf.LlamaFileType.MOSTLY_F16, checkpoint / "f16.gguf", model_name=name)
        model.prepare_tensors()
        model.prepare_metadata(vocab_only=False)
    writer = model.gguf_writer
    writer.add_chat_template(chat_template)
    sources = {}
    for tensors in writer.tensors:
        for key, info in tensors.items():
            sources[key] = _source(key, tuple(info.shape), info.dtype == gguf.GGMLQuantizationType.F16, info.tensor)
            info.tensor = None
    for changed in changes:
        if changed not in leaves:
            raise _left_out(changed)
    metadata = dict(writer.kv_data[0])
    proved = [raw for key, raw in raw_fields(vocabulary).items() if key not in metadata]
    return Converted(writer.arch, metadata, proved, sources, leaves)


def write_vocabulary(checkpoint: Path, target: Path, name: str) -> None:
    """Let the converter write a GGUF without weights.

    Args:
        checkpoint: a folder with the configuration and the tokenizer.
        target: the file.
        name: what the file says its name is.

    Raises:
        StepError: the converter does not know the architecture, or fails in another way.
    """
    import gguf

    known = _model_class(checkpoint)
    with _refusals():
        known(checkpoint, gguf.LlamaFileType.MOSTLY_F16, target, model_name=name).write_vocab()


def _model_class(checkpoint: Path) -> Any:
    """Return the converter's class for a checkpoint's architecture.

    Raises:
        StepError: it has none.
    """
    conversion: Any = import_module("conversion")
    logging.getLogger("hf-to-gguf").setLevel(logging.ERROR)
    architecture = ""
    try:
        hparams = conversion.ModelBase.load_hparams(checkpoint, False)
        architecture = conversion.get_model_architecture(hparams, conversion.ModelType.TEXT)
        return conversion.get_model_class(architecture)
    except NotImplementedError:
        raise StepError(
            f"llama.cpp's converter does not know the architecture '{architecture}'.",
            "A newer checkout may: --llama-cpp DIR",
        ) from None


@contextmanager
def _refusals() -> Iterator[None]:
    """Say what the converter refuses as the program would.

    Raises:
        StepError: it does.
    """
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, NotImplementedError, OSError) as error:
        raise refused("model", first_line(error)) from None


def _watching(known: Any, base: Path, leaves: dict[str, _Leaf], changes: Mapping[str, Merged]) -> Any:
    """Return the architecture's class, whose tensors come from ``base`` and are ``leaves``."""
    lazy: Any = import_module("conversion.base").LazyTorchTensor

    def take(name: str, local: Any) -> Any:
        if name not in leaves:
            stored, place = lazy._dtype_str_map[local.dtype], local.data_range
            leaves[name] = _Leaf(name, place.filename, place.offset, tuple(local.shape), stored, changes.get(name))
        leaf = leaves[name]
        dtype = leaf.dtype if leaf.merged is None else torch.float32
        return lazy(meta=lazy.meta_with_dtype_and_shape(dtype, leaf.shape), args=(leaf,), func=_Leaf.whole)

    class Watching(known):
        model_arch = known.model_arch
        dir_model: Path

        def index_tensors(self, remote_hf_model_id: str | None = None) -> Any:
            # The weights' own folder, for this one look: what else lies there is not the converter's to read.
            own, self.dir_model = self.dir_model, base
            try:
                return super().index_tensors(remote_hf_model_id)
            finally:
                self.dir_model = own

        def set_vocab(self) -> None:
            """Leave it to the file that has it."""

        @classmethod
        def filter_tensors(cls, item: Any) -> Any:
            name, make = item
            local = getattr(make, "__defaults__", None)
            if not local or not hasattr(local[0], "data_range"):  # asked of a name alone
                return super().filter_tensors(item)
            return super().filter_tensors((name, lambda: take(name, local[0])))

    return Watching


def _source(name: str, shape: tuple[int, ...], half: bool, graph: Any) -> Source:
    """Return the source of a tensor: rows of one leaf where its graph only changes types and order, else the graph."""
    types: list[torch.dtype] = []
    leaves: list[_Leaf] = []
    try:
        rows, columns = _follow(graph, 0, types, leaves), _follow(graph, 1, [], [])
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError):  # it does more than move rows
        return Source(name, shape, half, graph=graph)
    order = _order(rows, columns, leaves[0], shape) if len(leaves) == 1 else None
    if order is None:
        return Source(name, shape, half, graph=graph)
    plain = torch.equal(order, torch.arange(leaves[0].shape[0]))
    return Source(name, shape, half, leaves[0], tuple(types), None if plain else order)


def _follow(node: Any, dimension: int, types: list[torch.dtype], leaves: list[_Leaf]) -> Any:
    """Return what a graph makes of labels in place of its leaves.

    Args:
        node: of the graph; what is no node is returned as it is.
        dimension: along which labels differ: 0, rows have one each, or 1, columns have.
        types: gets the types that are cast to, in order; a cast changes no label.
        leaves: gets the leaves.
    """
    if type(node) in (list, tuple):
        return type(node)([_follow(one, dimension, types, leaves) for one in node])
    if not hasattr(node, "_func"):
        return node
    function, arguments = node._func, node._args
    if function is None:
        return node._data
    if function is _Leaf.whole:
        leaves.append(arguments[0])
        return _labels(arguments[0], dimension)
    place = getattr(function, "__qualname__", "")
    done = _follow(arguments, dimension, types, leaves)
    if place.startswith(_CAST):
        types.append(_TORCH_TYPES[np.dtype(arguments[1])])
    elif place.startswith(_METHOD) and _called(function) == "to" and isinstance(arguments[1], torch.dtype):
        types.append(arguments[1])
    elif not place.startswith(_TO_NUMPY):
        return function(*done, **node._kwargs)
    return done[0]


def _labels(leaf: _Leaf, dimension: int) -> Tensor:
    """Return a tensor of a leaf's shape in which each row (each column) is one number, by which it is known again."""
    if len(leaf.shape) != 2 or not leaf.rowwise:
        raise ValueError(leaf.name)
    return _numbers(leaf.shape[dimension]).unsqueeze(1 - dimension).expand(leaf.shape)


def _numbers(count: int) -> Tensor:
    """Return so many different numbers, none of which is another one shifted or multiplied, but by chance."""
    random, width = torch.Generator().manual_seed(0), 2**31 // count
    drawn = torch.randperm(count, generator=random) * width + torch.randint(width, (count,), generator=random)
    return (drawn - 2**30).to(torch.int32)


def _order(rows: Any, columns: Any, leaf: _Leaf, shape: tuple[int, ...]) -> Tensor | None:
    """Return which row of a leaf each row is; None where the graph did anything but move whole rows.

    Args:
        rows: what it made of labels of the rows.
        columns: of labels of the columns.
        leaf: the leaf.
        shape: of what it makes.
    """
    if shape[1:] != leaf.shape[1:]:
        return None
    for labels in (rows, columns):
        if not isinstance(labels, Tensor) or tuple(labels.shape) != shape or labels.dtype != torch.int32:
            return None
    if not (_alike(rows, 1) and _alike(columns, 0) and torch.equal(columns[0], _numbers(shape[1]))):
        return None
    numbers, where = _numbers(leaf.shape[0]).sort()
    found = torch.searchsorted(numbers, rows[:, 0].contiguous()).clamp(max=len(numbers) - 1)
    return where[found] if torch.equal(numbers[found], rows[:, 0]) else None


def _alike(labels: Tensor, dimension: int) -> bool:
    """Say whether labels are the same all along a dimension; those that were never copied are one number there."""
    return labels.stride(dimension) == 0 or bool((labels == labels.narrow(dimension, 0, 1)).all())


def _called(function: Any) -> str:
    """Return the name of the method that a lazy node calls."""
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    return str(cells["name"].cell_contents) if "name" in cells else ""
