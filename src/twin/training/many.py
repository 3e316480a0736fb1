"""One training in several processes: each computes its share of every step, and all hold the same adapter.

The first process reads the dataset, proves it, plans, and writes; the others are told the job and read the base model
alone, so on another machine nothing else has to be. What processes tell one another goes through one kind of call
(``World.exchange``), and an error travels along with it: what fails in one process ends all of them, with its sentence.
Imported late: torch is at the top.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from twin.errors import MachineError, StepError, TwinError, UsageError
from twin.processes import place
from twin.records import Sample
from twin.training import execution
from twin.training.execution import Execution, Piece
from twin.training.prefix_tree import even_cuts, read_lengths, shared_with_the_one_before

if TYPE_CHECKING:
    from twin.training.backend_hf import Job

_T = TypeVar("_T")
_R = TypeVar("_R")
# How long one waits for the first to fetch a base model and check every row; one that ended is noticed at once.
_PATIENCE = timedelta(days=1)
_GONE = (
    "Another process of this training ended.",
    "Its own lines, or the launcher's, say why. Then go on with --resume-from auto.",
)
_FSDP = "ACCELERATE_USE_FSDP"
_OTHERS = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM"}


@dataclass(slots=True)
class World:
    """The processes of one training; alone it is one, and each call returns what it was given.

    Args:
        rank: this one's number, from 0.
        size: how many there are.
        local_rank: this one's number on its machine.
        sharded: each holds a share of the base model's weights (FSDP), and not all of them.
        group: what is said between them goes through it.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    sharded: bool = False
    group: Any = None
    _over: bool = False  # an error was told: nobody listens any more

    @property
    def first(self) -> bool:
        """Say whether this process reads the dataset and writes."""
        return self.rank == 0

    def exchange(self, value: _T, error: Exception | None = None) -> list[_T]:
        """Return what each process gives, in their order. All have to call it, at the same place.

        Raises:
            TwinError: one of them gave an error: the first such one, in each process.
            MachineError: one of them is gone.
        """
        if self.size == 1:
            if error:
                raise error
            return [value]
        if self._over:
            raise error or MachineError(*_GONE)
        told: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(told, (value, _portable(error, self.rank)), self.group)
        except RuntimeError:
            self._over = True
            raise error or MachineError(*_GONE) from None
        for _, wrong in told:
            if wrong is not None:
                self._over = True
                raise error or wrong
        return [given for given, _ in told]

    def share(self, make: Callable[[], _T] | None) -> _T:
        """Return in each process what ``make`` returns in the first, the only one to call it."""
        told: list[Any] = [None]
        with self.together():
            if self.first and make:
                told = [make()]
        if self.size == 1:
            return told[0]  # type: ignore[no-any-return]
        dist.broadcast_object_list(told, src=0, group=self.group)
        return told[0]  # type: ignore[no-any-return]

    @contextmanager
    def together(self) -> Iterator[None]:
        """End the block in all processes alike: an error in one is raised in each."""
        wrong: Exception | None = None
        try:
            yield
        except Exception as error:
            wrong = error
        self.exchange(None, wrong)

    def share_of(self, number: int) -> int:
        """Return how many of ``number`` things ``spread`` lets this process do, at least about."""
        return number if self.sharded else -(-number // self.size)

    def spread(self, items: Sequence[_T], work: Callable[[Sequence[_T]], Sequence[_R]], size: int) -> list[_R]:
        """Return the results of ``work``, which takes ``size`` of ``items`` at a time; each process does its share.

        Where the base model is sharded each does all: none could compute while the others do not.
        """
        blocks = [items[start : start + size] for start in range(0, len(items), size)]
        if self.sharded or self.size == 1:
            return [result for block in blocks for result in work(block)]
        parts = self.exchange([work(block) for block in blocks[self.rank :: self.size]])
        return [result for place in range(len(blocks)) for result in parts[place % self.size][place // self.size]]

    @contextmanager
    def stepping(self, *alike: type[Exception]) -> Iterator[None]:
        """Let an error that is not ``alike`` in all processes end this one: the others wait for its gradients.

        Raises:
            MachineError: another process is gone.
        """
        try:
            yield
        except alike:
            raise
        except Exception as error:
            self._over = True
            if isinstance(error, dist.DistError) or (type(error) is RuntimeError and "gloo" in str(error)):
                raise MachineError(*_GONE) from None
            raise

    def _leave(self, error: Exception) -> None:
        """Tell the others why this process ends, where they listen."""
        if not self._over:
            self.exchange(None, error)  # which raises it


def _portable(error: Exception | None, rank: int) -> Exception | None:
    """Return what the others are told of an error: a sentence."""
    if error is None or isinstance(error, TwinError):
        return error
    return StepError(f"Process {rank} failed: {type(error).__name__}: {error}", "Its own lines say where.")


ALONE = World()
_world = ALONE


def world() -> World:
    """Return the processes that train together now."""
    return _world


def beside() -> int:
    """Return how many processes of this training share the machine's memory, this one included."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or 1) if _world.size > 1 else 1


@contextmanager
def joined() -> Iterator[World]:
    """Join the processes that a launcher started with this one; without a launcher it is alone.

    Raises:
        UsageError: the launcher was asked for a way to train that twin does not have.
    """
    global _world  # noqa: PLW0603 - torch.distributed's own groups are the process's too
    here = place()
    if here.size == 1:
        yield ALONE
        return
    for variable, name in _OTHERS.items():
        if _is_set(variable):
            raise UsageError(f"twin does not train with {name}.", "Launch it with torchrun, or with DDP or FSDP.")
    fsdp = os.environ.pop(_FSDP, None)  # twin shards by itself: only what is never trained
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    group = dist.new_group(backend="gloo", timeout=_PATIENCE)
    _world = World(here.rank, here.size, here.local_rank, _true(fsdp), group)
    try:
        yield _world
    except Exception as error:
        _world._leave(error)
        raise
    finally:
        _world = ALONE
        if fsdp is not None:
            os.environ[_FSDP] = fsdp
        dist.destroy_process_group()


def _true(value: str | None) -> bool:
    return (value or "").lower() in ("1", "true", "yes", "on")


def _is_set(variable: str) -> bool:
    return _true(os.environ.get(variable))


# ---------------------------------------------------------------- the job


def lead(job: Job) -> Job:
    """Tell the others what is trained; return it. Called by the first process, ``follow`` by all others."""
    told = _world.share(lambda: job)
    _world.exchange(None)  # one on each machine has the base model
    if job.checkpoint:
        _send_folder(job.checkpoint, None)
    return told


@contextmanager
def follow(fetch: Callable[[str], Path]) -> Iterator[Job]:
    """Wait to be told what is trained.

    Args:
        fetch: the folder of a base model, fetched where it has to be.
    """
    job: Job = _world.share(None)
    with _world.together():
        if _world.local_rank == 0:
            fetch(job.plan.model)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = job.checkpoint and _send_folder(job.checkpoint, Path(folder) / job.checkpoint.name)
        yield replace(job, base=fetch(job.plan.model), checkpoint=checkpoint, report_to=())


def _send_folder(source: Path, to: Path | None) -> Path:
    """Return where this process has the files of ``source``, a folder of the first; the others get them into ``to``."""
    contents = _world.share(lambda: {file.name: file.read_bytes() for file in source.iterdir()})
    with _world.together():
        if to is None:
            return source
        to.mkdir()
        for name, content in contents.items():
            (to / name).write_bytes(content)
    return to


# ---------------------------------------------------------------- how it is computed


def take_device(device: str) -> None:
    """Give this process a GPU of its own.

    Raises:
        MachineError: there are more processes than GPUs here, or several were started for Apple's only one.
    """
    if _world.size == 1 or device == "cpu":
        return
    gpus = torch.cuda.device_count() if device == "cuda" else 1
    if device != "cuda" or _world.local_rank >= gpus:
        raise MachineError(
            f"There are more processes than GPUs here ({gpus}).", f"Start as many: --nproc-per-node {gpus}"
        )
    torch.cuda.set_device(_world.local_rank)


def shard(model: Any, device: str) -> None:
    """Leave of each weight of the base model a share in each process (FSDP2), gathered layer by layer when needed.

    What is trained is added later and stays whole everywhere: it is a hundredth of the weights, and saving, keeping
    the best and going on are then those of one process.
    """
    model.requires_grad_(False)
    mesh = dist.init_device_mesh(device, (_world.size,))
    names = set(getattr(model, "_no_split_modules", None) or ())
    for module in model.modules():
        if type(module).__name__ in names:
            fully_shard(module, mesh=mesh)
    # By default the root keeps what it gathered, until saving in the first process gives it up there alone.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def keep_sharded(model: Any) -> None:
    """Tell DDP, which averages the gradients of what is trained, to leave the shares of the base model alone."""
    names = [name for name, weight in model.named_parameters(remove_duplicate=False) if isinstance(weight, DTensor)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)


def same_weights(model: Any) -> None:
    """Refuse a base model that is another one on another machine: each would compute gradients of its own.

    Raises:
        UsageError: the bytes of a weight add up to something else there.
    """
    if _world.size > 1:
        bytes_of = (weight.detach().contiguous().reshape(-1).view(torch.uint8) for weight in model.parameters())
        if len(set(_world.exchange(tuple(int(one.sum(dtype=torch.int64)) for one in bytes_of)))) > 1:
            raise UsageError(
                "The base model's weights are not the same for all processes.",
                "Fetch them again on the machine where they are older.",
            )


def same_execution(model: Any, chosen: Execution) -> Execution:
    """Return what all processes compute with: the first's choice, or padded batches where one can't take a tree."""
    choices = _world.exchange(chosen)
    refused = [one for one in choices if one.name != choices[0].name]
    if not refused:
        return choices[0]
    model.set_attn_implementation(execution.TRUTH)
    return next(one for one in choices if isinstance(one, execution.LengthGrouped))


def parts(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Return an optimizer step's samples in as many parts as there are processes, the largest as small as can be."""
    if _world.size == 1 or not samples:
        return [list(samples)]
    cuts = even_cuts(read_lengths(samples), shared_with_the_one_before(samples), _world.size)
    return [list(samples[start:stop]) for start, stop in zip(cuts, [*cuts[1:], len(samples)], strict=True)]


def share(pieces: Sequence[Piece]) -> list[Piece]:
    """Return this process's pieces of a step; each process has as many, so that all compute together.

    One that has fewer computes another's smallest piece beside its own, with a weight of 0.
    """
    if _world.size == 1:
        return list(pieces)
    sizes = [piece.work.computed for piece in pieces]
    cuts = even_cuts(sizes, [0] * len(pieces), _world.size)
    shares = [list(pieces[start:stop]) for start, stop in zip(cuts, [*cuts[1:], len(pieces)], strict=True)]
    shares += [[] for _ in range(_world.size - len(shares))]
    own, most = shares[_world.rank], max(map(len, shares))
    smallest = pieces[sizes.index(min(sizes))]
    idle = Piece(replace(smallest.work, weights=np.zeros_like(smallest.work.weights)), smallest.samples)
    return [idle] * (most - len(own)) + own
