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

if TYPE_CHECKING:
    from twin.llama import Gguf


Floats = npt.NDArray[np.float64]
_DRAWN_AT_ONCE = 2_000_000


@dataclass(frozen=True, slots=True)
class Change:
    """The change of the mean loss from one model to another, in nats a token; below 0 is better.

    Args:
        before: token-mean loss of the first model.
        after: token-mean loss of the second.
        change: after - before.
        low: lower end of the 95 % interval of the change; None with one conversation, which can't be resampled.
        high: upper end; None as well.
        conversations: how many were resampled.
        replies: how many replies were scored.
    """

    before: float
    after: float
    change: float
    low: float | None
    high: float | None
    conversations: int
    replies: int


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
    if not before or [(s.id, s.tokens) for s in before] != [(s.id, s.tokens) for s in after]:
        raise ValueError("the two models were not scored on the same replies")
    names = list(dict.fromkeys(scored.conversation_id for scored in before))
    place = {name: number for number, name in enumerate(names)}
    sums = np.zeros((3, len(names)))
    for one, other in zip(before, after, strict=True):
        sums[:, place[one.conversation_id]] += (one.nll, other.nll, one.tokens)
    low, high = _interval(sums, resamples, seed) if len(names) > 1 else (None, None)
    total = sums.sum(axis=1)
    return Change(
        before=float(total[0] / total[2]),
        after=float(total[1] / total[2]),
        change=float((total[1] - total[0]) / total[2]),
        low=low,
        high=high,
        conversations=len(names),
        replies=len(before),
    )


def _interval(sums: Floats, resamples: int, seed: int) -> tuple[float, float]:
    """Return the 95 % percentile interval of the change.

    Args:
        sums: [3, conversations]: the losses under either model and the number of tokens.
        resamples: how many.
        seed: of the draw.
    """
    random = np.random.default_rng(seed)
    size = sums.shape[1]
    changes: list[Floats] = []
    at_once = max(1, _DRAWN_AT_ONCE // size)  # all at once would be gigabytes for ten thousand conversations
    for start in range(0, resamples, at_once):
        drawn = random.integers(0, size, size=(min(at_once, resamples - start), size))
        first, second, tokens = (row[drawn].sum(axis=1) for row in sums)
        changes.append((second - first) / tokens)
    low, high = np.quantile(np.concatenate(changes), [0.025, 0.975])
    return float(low), float(high)
