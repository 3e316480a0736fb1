"""What a run is begun with: device, dtype, and how it fits into memory, all chosen before a weight is loaded.

Not obvious: it is kept with the checkpoints, and a run that is gone on with takes it from there, because a machine that
is busy, or has less memory free, would choose otherwise. Imported late: torch and transformers are at the top.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers

from twin.errors import MachineError, UsageError, first_line
from twin.presets import TrainPlan
from twin.records import Sample
from twin.training import attention, budget, execution, hardware, many, memory
from twin.training.backends import HF, PLAIN, UNSLOTH, Chosen
from twin.training.model import add_lora
from twin.training.padded import Padded
from twin.training.passes import plan_steps
from twin.training.prefix_tree import Pack, batches

# Packs differ in length, and oneDNN keeps a compiled kernel for each shape: 1,024 of them, and PyTorch as many again,
# which is a gigabyte. These hold one pack's. Read at the first product, so setting them at import is early enough.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
os.environ.setdefault("LRU_CACHE_CAPACITY", "128")
GPU_HINT = "Update its driver, or install the PyTorch that goes with it: pytorch.org/get-started; or use --device cpu"
_MOST_PRODUCTS, _MEASURED_SECONDS = 30, 0.05  # of each dtype, on a CPU


@dataclass(frozen=True, slots=True)
class Begun:
    """What a run is begun with and goes on with, since other weights would come of anything else.

    Args:
        device: where it is trained.
        dtype: that it is computed in: ``bfloat16`` or ``float32``.
        why: the reason for the dtype.
        threads: of PyTorch, which decide in what order a CPU adds up.
        token_budget: most tokens of a piece.
        four_bit: the base model's weights are kept in 4 bits.
        checkpointing: each layer is computed again in the backward pass.
        predicted_gpu_bytes: the most memory that it takes; 0: not foreseen.
        memory_why: the reason for these.
        backend: that loads the model; see ``backends``.
        backend_why: the reason for it.
    """

    device: str
    dtype: str
    why: str
    threads: int
    token_budget: int = execution.TOKEN_BUDGET
    four_bit: bool = False
    checkpointing: bool = False
    predicted_gpu_bytes: int = 0
    memory_why: str = ""
    backend: str = HF
    backend_why: str = "asked for"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as PyTorch has it."""
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32


def begin(plan: TrainPlan, folder: Path, samples: Sequence[Sample], backend: Chosen = PLAIN) -> Begun:
    """Choose what a run is begun with.

    Args:
        plan: every setting.
        folder: the base model's checkpoint, of which the configuration is read.
        samples: what is trained.
        backend: that loads the model.

    Raises:
        MachineError: a device that was asked for and is not there; a GPU that is too small.
        UsageError: 4 bits on something else than a CUDA GPU.
    """
    device = choose_device(plan.device)
    dtype, why = choose_dtype(device)
    known = Begun(
        device, str(dtype).removeprefix("torch."), why, torch.get_num_threads(), backend=backend.name,
        backend_why=backend.why,
    )  # fmt: skip
    if device != "cuda":
        if plan.four_bit:
            raise UsageError(f"4-bit weights need a CUDA GPU, and this is trained on {device}.", "Leave them out.")
        return known if device != "cpu" else replace(known, token_budget=_token_budget(folder, plan, samples, dtype))
    fit = foresee_memory(plan, folder, samples, torch.cuda.mem_get_info()[0], dtype)
    return replace(
        known, token_budget=fit.token_budget, four_bit=fit.four_bit, checkpointing=fit.checkpointing,
        predicted_gpu_bytes=fit.predicted_bytes, memory_why=fit.why,
    )  # fmt: skip


def foresee_memory(
    plan: TrainPlan, folder: Path, samples: Sequence[Sample], free_bytes: int, dtype: torch.dtype = torch.bfloat16
) -> memory.Fit:
    """Return how to train within a GPU's free memory; see ``memory.fit``.

    Raises:
        MachineError: the GPU is too small.
    """
    can_pack = find_spec("bitsandbytes") is not None
    try:
        need = memory.need(folder, lambda model: add_lora(model, plan), dtype)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        why = f"its memory could not be foreseen ({first_line(error)})"
        return memory.Fit(bool(plan.four_bit), False, execution.TOKEN_BUDGET, 0, why)
    steps = plan_steps(samples, plan, execution.foresee(folder, memory.MOST_TOKENS))
    works = [piece.work for step in steps for piece in step]
    rows = memory.Rows(
        max(samples, key=lambda one: len(one.input_ids)),
        max(work.computed for work in works),
        max(_logits(work) / work.computed for work in works),
    )
    world = many.world()
    four_bit = plan.four_bit
    if world.sharded:  # each process holds its share, and a layer whole while it is computed; 4 bits can't be shared
        need = replace(need, weights=need.weights // world.size + need.weights // need.layers)
        four_bit = bool(four_bit)
    return memory.fit(need, free_bytes, rows, four_bit, can_pack)


def _logits(work: Pack | Padded) -> int:
    """Return for how many tokens logits are computed."""
    return len(work.targets) if isinstance(work, Pack) else len(work.input_ids) * len(work.kept)


def _token_budget(base: Path, plan: TrainPlan, samples: Sequence[Sample], dtype: torch.dtype) -> int:
    """Return how many tokens a CPU's memory holds at once, where samples are computed as trees."""
    config = transformers.AutoConfig.from_pretrained(base)
    if execution.why_no_tree(config):
        return execution.TOKEN_BUDGET
    attention.register()
    first = batches(samples, plan.batch_size, plan.seed)[0]
    try:
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=attention.NAME
            )
            model = add_lora(model, plan)
        return budget.choose(model, first, dtype, budget.free_memory() // many.beside())
    except (NotImplementedError, TypeError, ValueError, RuntimeError):  # what it computes hangs on its weights
        return execution.TOKEN_BUDGET


def begun_with(facts: Mapping[str, Any]) -> Begun:
    """Return what a run was begun with, as its checkpoints' ``job.json`` says.

    Raises:
        UsageError: somebody changed it.
        MachineError: its device is not here.
    """
    known = {one.name: one.type for one in fields(Begun)}
    if {name: type(value).__name__ for name, value in facts.items()} != known or not (
        facts["dtype"] in ("bfloat16", "float32")
        and 0 < facts["threads"] <= 4096
        and 0 < facts["token_budget"] <= 1 << 20
        and facts["backend"] in (HF, UNSLOTH)
    ):
        raise UsageError("The checkpoint's job.json says oddly what the run was begun with.", "Train again: twin train")
    choose_device(facts["device"])
    return Begun(**facts)


def choose_device(wanted: str) -> str:
    """Return where to train.

    Raises:
        MachineError: a device that was asked for and is not there.
    """
    have = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if have[name])
    if wanted == "cuda" and (reason := hardware.why_no_cuda()):
        raise MachineError(f"PyTorch can't use the GPU that is here: {reason}.", GPU_HINT)
    if not have[wanted]:
        raise MachineError(
            f"PyTorch finds no device '{wanted}' here.", "Use --device cpu, or install the right PyTorch."
        )
    return wanted


def choose_dtype(device: str) -> tuple[torch.dtype, str]:
    """Return the base model's dtype on ``device`` and why; a CPU is measured, which takes a tenth of a second.

    Without instructions for bfloat16 a single product may take half a second: then it is the only one.
    """
    if device == "cuda":
        good = torch.cuda.is_bf16_supported(including_emulation=False)
        return (torch.bfloat16, "the GPU has bfloat16") if good else (torch.float32, "the GPU has no bfloat16")
    if device == "mps":
        return torch.float32, "bfloat16 was not tried on MPS"
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.ones(512, 768, dtype=dtype), torch.ones(768, 768, dtype=dtype)
        begun = time.perf_counter()
        fastest = math.inf  # of many: other work on the machine makes a product slower, never faster
        for number in range(_MOST_PRODUCTS):
            start = time.perf_counter()
            left @ right
            end = time.perf_counter()
            fastest = min(fastest, end - start)
            if end - begun > _MEASURED_SECONDS * (1 if number else 5):  # the first one also sets up
                break
        rates[dtype] = 2 * 512 * 768 * 768 / fastest / 1e9
    ratio = rates[torch.bfloat16] / rates[torch.float32]
    why = f"bfloat16 products run at {ratio:.1f}x the rate of float32 here ({rates[torch.bfloat16]:.0f} GFLOP/s)"
    return (torch.bfloat16 if ratio > 1.2 else torch.float32), why
