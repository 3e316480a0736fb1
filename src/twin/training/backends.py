"""Which backend trains, and why; the one place that knows them all.

    hf        transformers and PEFT: any device; a batch's shared beginnings are computed once (``prefix_tree``)
    unsloth   Unsloth's kernels (FastLanguageModel) on a CUDA GPU

Both give ``backend_hf.train`` the same two things, a model with LoRA weights and how to compute samples with it, so
that checkpoints, stops, measurements and records are one implementation. Not obvious: Unsloth replaces parts of
transformers, PEFT and TRL as it is imported, and has to be first; so the choice is made before those are imported, and
whoever has not chosen Unsloth never imports it.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from twin.errors import MachineError, UsageError, first_line
from twin.presets import TrainPlan
from twin.runs import cache_dir

if TYPE_CHECKING:
    from twin.training.backend_hf import Job
    from twin.training.execution import Execution

HF, UNSLOTH = "hf", "unsloth"
INSTALL = "pip install 'twin-llm[unsloth]'"
_ASK_SECONDS = 120
_ASK = """
import sys, pathlib
from twin.training.execution import LengthGrouped, foresee
chosen = foresee(pathlib.Path(sys.argv[1]))
print("tree" if not isinstance(chosen, LengthGrouped) else "no tree: " + chosen.why)
"""


class Chosen(NamedTuple):
    """A backend by its name, and the reason for it in words."""

    name: str
    why: str


PLAIN = Chosen(HF, "asked for")


@dataclass(frozen=True, slots=True)
class Facts:
    """What the choice rests on.

    Args:
        asked: ``auto`` or a backend.
        device: ``auto`` or a device, as asked for.
        cuda: PyTorch finds a CUDA GPU.
        installed: the package unsloth is there.
        processes: that train together.
        no_tree: why the base model can't take a prefix tree; None: it can, as far as its configuration tells.
    """

    asked: str
    device: str
    cuda: bool
    installed: bool
    processes: int = 1
    no_tree: str | None = None


def choose_backend(facts: Facts) -> Chosen:
    """Return the backend to train with.

    Raises:
        UsageError: Unsloth was asked for together with a device or processes that it does not train on.
        MachineError: Unsloth was asked for and there is no CUDA GPU, or it is not installed.
    """
    if facts.asked == HF:
        return PLAIN
    hindrance = _hindrance(facts)
    if facts.asked == UNSLOTH:
        if hindrance is not None:
            raise hindrance
        return Chosen(UNSLOTH, "asked for")
    if hindrance is not None:
        return Chosen(HF, hindrance.message.rstrip("."))
    if facts.no_tree is None:
        return Chosen(HF, "what samples share is computed once")
    return Chosen(UNSLOTH, f"nothing shared could be computed once: {facts.no_tree}")


def _hindrance(facts: Facts) -> UsageError | MachineError | None:
    """Return why Unsloth can't be had."""
    if facts.device not in ("auto", "cuda"):
        return UsageError(
            f"Unsloth trains on a CUDA GPU, and this is to be trained on {facts.device}.", "Use --backend hf."
        )
    if not facts.cuda:
        return MachineError(
            "Unsloth trains on a CUDA GPU, and PyTorch finds none here.",
            f"Use --backend hf; on a machine with a GPU: {INSTALL}",
        )
    if not facts.installed:
        return MachineError("Unsloth is not installed.", f"Install it: {INSTALL}")
    if facts.processes > 1:
        return UsageError(
            f"Unsloth trains in one process here, and there are {facts.processes}.",
            "Use --backend hf for several GPUs.",
        )
    return None


def facts_of(plan: TrainPlan, folder: Path | None = None) -> Facts:
    """Return the facts of this machine; what costs seconds to know is looked up only where it matters.

    Args:
        plan: the backend and the device as they were asked for.
        folder: the base model's checkpoint, of which the configuration is read; None: not known yet.
    """
    if plan.backend == HF or plan.device not in ("auto", "cuda"):
        return Facts(plan.backend, plan.device, False, False)
    installed = find_spec(UNSLOTH) is not None
    if plan.backend == "auto" and not installed:
        return Facts(plan.backend, plan.device, True, False)
    import torch

    cuda, processes = torch.cuda.is_available(), int(os.environ.get("WORLD_SIZE") or 1)
    asks = plan.backend == "auto" and cuda and processes == 1 and folder is not None
    return Facts(plan.backend, plan.device, cuda, installed, processes, _no_tree(folder) if asks and folder else None)


def _no_tree(folder: Path) -> str | None:
    """Return why a model can't take a tree. Asked of a process of its own: here transformers is not imported yet."""
    command = [sys.executable, "-c", _ASK, str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_ASK_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None  # whatever is wrong shows, and is told, when the model is loaded
    answer = (done.stdout.splitlines() or [""])[-1]
    return answer.removeprefix("no tree: ") if answer.startswith("no tree: ") else None


def ready(plan: TrainPlan, folder: Path, trains: bool = True, begun: str | None = None) -> Chosen:
    """Choose the backend, and import what has to be first for it.

    Args:
        plan: the backend and the device as they were asked for.
        folder: the base model's checkpoint.
        trains: not a dry run.
        begun: the backend of the run that is gone on with.

    Raises:
        UsageError, MachineError: see ``choose_backend`` and ``first_import``.
    """
    if plan.backend == "auto" and begun in (HF, UNSLOTH):
        plan = plan.model_copy(update={"backend": begun})
    chosen = choose_backend(facts_of(plan, folder))
    if trains:
        first_import(chosen.name)
    return chosen


def first_import(name: str) -> None:
    """Import Unsloth where it was chosen, before the libraries that it replaces parts of.

    Without its statistics, which are downloads that its makers count; with the code that it writes for itself in twin's
    cache, not in the folder that one stands in.

    Raises:
        MachineError: it does not come up on this machine.
    """
    if name != UNSLOTH:
        return
    # Any value counts (``get_statistics`` in unsloth/models/_utils.py); the place is read in unsloth_zoo/compiler.py.
    os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(cache_dir() / "unsloth_compiled_cache"))
    try:
        importlib.import_module(UNSLOTH)
    except (ImportError, NotImplementedError, RuntimeError, AttributeError) as error:
        reason = first_line(error)
        raise MachineError(
            f"Unsloth can't be used here: {reason}.", f"Install it anew, {INSTALL}, or use --backend hf."
        ) from None


def loader(name: str) -> Callable[[Job], tuple[Any, Execution]]:
    """Return what loads a job's base model, gives it LoRA weights and tells how samples are computed with it.

    Raises:
        MachineError: the package of that backend is not there.
    """
    if name == HF:
        from twin.training import backend_hf

        return backend_hf.load
    if find_spec(UNSLOTH) is None:
        raise MachineError("This run was begun with Unsloth, which is not installed.", f"Install it: {INSTALL}")
    first_import(name)
    from twin.training import backend_unsloth

    return backend_unsloth.load
