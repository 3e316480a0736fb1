"""How many tokens a piece may have: what pieces of a step share is computed in each of them, so the fewer the better.

What a token takes on a CPU is counted on the model itself without its weights, as ``memory`` does for GPUs. Imported
late: torch is at the top.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import psutil
import torch

from twin.records import Sample
from twin.training.execution import TOKEN_BUDGET, PrefixTree
from twin.training.memory import counting
from twin.training.prefix_tree import pack_within

_MOST = 4096  # a step is seldom longer
_SPARE = 1 << 30  # bytes for libraries, compiled kernels and the rows
_SHARE = 0.6  # of what is free then: other programs go on, and gradients come on top of what is kept
_LIMIT, _USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")  # of a container


def choose(model: torch.nn.Module, samples: Sequence[Sample], dtype: torch.dtype, free: int) -> int:
    """Return how many tokens are computed at once on a CPU; ``TOKEN_BUDGET`` at least, whatever memory there is.

    Args:
        model: with LoRA and the tree's attention; on the device ``meta``.
        samples: of an optimizer step, in its order.
        dtype: of the model's weights.
        free: bytes of memory.
    """
    weights = sum(weight.nbytes for weight in model.parameters())
    left = _SHARE * (free - weights - _SPARE)
    return int(min(_MOST, max(TOKEN_BUDGET, left / bytes_a_token(model, samples, dtype))))


def bytes_a_token(model: torch.nn.Module, samples: Sequence[Sample], dtype: torch.dtype) -> float:
    """Return what a forward pass keeps for the way back, a token of the longest piece of ``samples``."""
    longest = max(pack_within(samples, TOKEN_BUDGET), key=lambda pack: pack.computed)
    model.train()
    with counting(model) as counted:
        PrefixTree("").losses(model, longest, dtype)
    return counted[0] / longest.computed


def free_memory() -> int:
    """Return the bytes of memory that are free here, those of a container where there is one."""
    free = int(psutil.virtual_memory().available)
    try:
        limit, used = _LIMIT.read_text("ascii").strip(), _USED.read_text("ascii").strip()
    except OSError:
        return free
    return min(free, int(limit) - int(used)) if limit.isdigit() else free
