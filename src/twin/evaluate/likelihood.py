"""Log-likelihood of held-out replies under a GGUF, and the paired bootstrap of a change between two models.

The unit of chance is the conversation: replies of one conversation share their subject and mood. Pure but for
``score_gguf``, which opens a model through ``twin.llama``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from twin.records import Sample, Scored
from twin.results import Change

if TYPE_CHECKING:
    from twin.llama import Gguf


Floats = npt.NDArray[np.float64]
_DRAWN_AT_ONCE = 2_000_000


@dataclass(frozen=True, slots=True)
class Kept:
    """What share of one change another one keeps; 1 is all of it.

    Args:
        share: change of the second pair of models / change of the first.
        low: lower end of the 95 % interval; None with one conversation, which can't be resampled.
        high: upper end; None as well.
    """

    share: float
    low: float | None
    high: float | None


def score_gguf(model: Gguf, samples: Sequence[Sample], tick: Callable[[], None] = lambda: None) -> list[Scored]:
    """Return the log-likelihood of each sample's reply under ``model``.

    Args:
        model: an open GGUF whose context holds the longest sample.
        samples: in an order in which neighbours share their beginnings, which is then computed once.
        tick: called after each sample.
    """
    scored = []
    for sample in samples:
        logits = model.logits(sample.input_ids[:-1], sample.prompt_length - 1).astype(np.float64)
        targets = np.asarray(sample.input_ids[sample.prompt_length :])
        peak = logits.max(axis=1, keepdims=True)
        normalizer = np.log(np.exp(logits - peak).sum(axis=1)) + peak[:, 0]
        nll = float((normalizer - logits[np.arange(len(targets)), targets]).sum())
        scored.append(Scored(sample.id, sample.conversation_id, nll, len(targets)))
        tick()
    return scored


def compare(before: Sequence[Scored], after: Sequence[Scored], resamples: int = 10_000, seed: int = 0) -> Change:
    """Return the change between two models with a 95 % percentile interval of the paired bootstrap over conversations.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13; pairs as in Koehn (2004),
    Statistical Significance Tests for Machine Translation Evaluation.

    Raises:
        ValueError: the two lists are not of the same replies.
    """
    sums = _by_conversation([before, after])

    def change(sums: Floats) -> Floats:
        return np.asarray((sums[1] - sums[0]) / sums[2])

    total = sums.sum(axis=1)
    low, high = _interval(sums, change, resamples, seed)
    return Change(
        before=float(total[0] / total[2]),
        after=float(total[1] / total[2]),
        change=float(change(total)),
        low=low,
        high=high,
        conversations=sums.shape[1],
        replies=len(before),
    )


def keep(
    reference: tuple[Sequence[Scored], Sequence[Scored]],
    other: tuple[Sequence[Scored], Sequence[Scored]],
    resamples: int = 10_000,
    seed: int = 0,
) -> Kept:
    """Return what share of the change between the models of ``reference`` those of ``other`` keep.

    The interval is the 95 % percentile interval of that ratio, all four scored on the conversations of each draw (see
    ``compare``). A draw in which the reference gains nothing, or a loss is no number, counts as one that keeps nothing.

    Args:
        reference: scores before and after.
        other: as well, of the same replies.
        resamples: how many draws.
        seed: of the draws.

    Raises:
        ValueError: the four lists are not of the same replies.
    """
    sums = _by_conversation([*reference, *other])

    def share(sums: Floats) -> Floats:
        gain, kept = sums[0] - sums[1], sums[2] - sums[3]
        counts = (gain > 0) & np.isfinite(kept)
        return np.where(counts, kept / np.where(counts, gain, 1.0), 0.0)

    low, high = _interval(sums, share, resamples, seed)
    return Kept(float(share(sums.sum(axis=1))), low, high)


def _by_conversation(models: Sequence[Sequence[Scored]]) -> Floats:
    """Return [models + 1, conversations]: the summed losses under each model, and last the number of tokens.

    Raises:
        ValueError: the lists are empty, or not of the same replies.
    """
    first = models[0]
    told = [(scored.id, scored.tokens) for scored in first]
    if not told or any([(scored.id, scored.tokens) for scored in scores] != told for scores in models):
        raise ValueError("the models were not scored on the same replies")
    place = {name: number for number, name in enumerate(dict.fromkeys(scored.conversation_id for scored in first))}
    sums = np.zeros((len(models) + 1, len(place)))
    for scores in zip(*models, strict=True):
        sums[:, place[scores[0].conversation_id]] += (*(scored.nll for scored in scores), scores[0].tokens)
    return sums


def _interval(
    sums: Floats, figure: Callable[[Floats], Floats], resamples: int, seed: int
) -> tuple[float, float] | tuple[None, None]:
    """Return the 95 % percentile interval of a figure; none with one conversation.

    Args:
        sums: [rows, conversations].
        figure: [rows, draws] sums over the conversations of each draw → [draws].
        resamples: how many draws.
        seed: of the draws.
    """
    random = np.random.default_rng(seed)
    size = sums.shape[1]
    if size < 2:
        return None, None
    figures: list[Floats] = []
    at_once = max(1, _DRAWN_AT_ONCE // size)  # all at once would be gigabytes for ten thousand conversations
    for start in range(0, resamples, at_once):
        drawn = random.integers(0, size, size=(min(at_once, resamples - start), size))
        figures.append(figure(np.stack([row[drawn].sum(axis=1) for row in sums])))
    low, high = np.quantile(np.concatenate(figures), [0.025, 0.975])
    return float(low), float(high)
