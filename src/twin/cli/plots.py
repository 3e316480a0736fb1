"""Plots in the terminal, as lines of text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

_LOSS_HEIGHT = 12
_TICKS = 4
_WIDEST = 100
_NARROWEST = 30


def loss(
    logs: Sequence[Mapping[str, Any]], before: float | None, after: float | None, best_step: int, width: int
) -> list[str]:
    """Return training loss over optimizer steps, and held-out loss before and of the adapter; nothing for one step.

    Args:
        logs: a run's ``metrics.jsonl``.
        before: held-out loss in nats a token before training, where it was measured.
        after: the adapter's.
        best_step: the step that the adapter is of.
        width: of the terminal, in characters.
    """
    points = [(one["step"], one["loss"]) for one in logs if one["loss"] is not None and math.isfinite(one["loss"])]
    if len(points) < 2 or width < _NARROWEST:
        return []
    import plotext

    steps, losses = zip(*points, strict=True)
    plot = plotext.figure
    plot.clear()
    plot.plot_size(min(width, _WIDEST), _LOSS_HEIGHT)
    curve = plot.signal(list(steps), list(losses), marker="braille")
    curve.lines()
    plot.draw(curve)
    told = "Loss a step, nats a token"
    if before is not None and after is not None:
        plot.draw(plot.signal([steps[0], best_step], [before, after], marker="o"))
        told += " (o: held out, before and after)"
    ticks = sorted({steps[round(place * (len(steps) - 1) / _TICKS)] for place in range(_TICKS + 1)})
    plot.ruler("x").ticks(ticks, [str(tick) for tick in ticks])
    return [told, *(line.rstrip() for line in plot.build().string(colorless=True).rstrip().split("\n"))]
