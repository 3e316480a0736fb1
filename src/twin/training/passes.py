"""Which samples each optimizer step learns, and in which pieces.

Imported late: torch comes in through ``execution``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain

from twin.presets import TrainPlan
from twin.records import Sample
from twin.training import many
from twin.training.execution import Execution, Piece
from twin.training.prefix_tree import batches


def plan_passes(samples: Sequence[Sample], plan: TrainPlan) -> list[list[list[Sample]]]:
    """Return of each pass its optimizer steps' samples; a fraction of an epoch takes that share of its batches."""
    passes: list[list[list[Sample]]] = []
    for epoch in range(math.ceil(plan.epochs)):
        one = batches(samples, plan.batch_size, plan.seed + epoch)
        share = plan.epochs - epoch
        passes.append(one if share >= 1 else one[: max(1, round(len(one) * share))])
    return passes


def plan_steps(samples: Sequence[Sample], plan: TrainPlan, execution: Execution) -> list[list[Piece]]:
    """Return the pieces of each optimizer step."""
    return [
        [piece for part in many.parts(batch) for piece in execution.cut(part)]
        for batch in chain.from_iterable(plan_passes(samples, plan))
    ]
