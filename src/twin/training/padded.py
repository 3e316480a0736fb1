"""Samples side by side, padded to one length: what is computed where a model can't take a prefix tree.

    sample 1: S S S a b       input_ids   S S S a     attention_mask   1 1 1 1
    sample 2: S S c                       S S . .                      1 1 0 0

Nothing is shared. Samples of like lengths stand together, so that little is padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from twin.records import Sample

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Padded:
    """A batch as arrays; B samples, T columns, K of them kept, P supervised pairs.

    Args:
        input_ids: [B, T], 0 behind a sample's end. A sample's last token is a target, never an input.
        attention_mask: [B, T], 1 for a sample's own tokens.
        kept: [K] columns in which some sample predicts.
        rows: [P] the sample that predicts.
        columns: [P] in which of the kept columns.
        targets: [P] token it should predict.
        weights: [P] ones: each pair is one sample's.
        of_sample: for each sample the indices of its pairs.
    """

    input_ids: Ints
    attention_mask: Ints
    kept: Ints
    rows: Ints
    columns: Ints
    targets: Ints
    weights: Ints
    of_sample: tuple[Ints, ...]

    @property
    def whole(self) -> int:
        """How many tokens its samples have as they stand, their last ones included."""
        return int(self.attention_mask.sum()) + len(self.of_sample)

    @property
    def computed(self) -> int:
        """How many tokens are computed, padding included."""
        return self.input_ids.size


def padded(samples: Sequence[Sample]) -> Padded:
    """Return one batch of ``samples``. Each sample has a prompt of one token at least."""
    lengths = [len(one.input_ids) - 1 for one in samples]
    input_ids = np.zeros((len(samples), max(lengths)), np.int64)
    attention_mask = np.zeros_like(input_ids)
    for row, one in enumerate(samples):
        input_ids[row, : lengths[row]] = one.input_ids[:-1]
        attention_mask[row, : lengths[row]] = 1
    spans = [np.arange(one.prompt_length - 1, length) for one, length in zip(samples, lengths, strict=True)]
    sizes = [len(span) for span in spans]
    kept, columns = np.unique(np.concatenate(spans), return_inverse=True)
    ends = np.cumsum(sizes)
    return Padded(
        input_ids,
        attention_mask,
        kept,
        np.repeat(np.arange(len(samples)), sizes),
        columns,
        np.concatenate([np.array(one.input_ids[one.prompt_length :], np.int64) for one in samples]),
        np.ones(int(ends[-1]), np.int64),
        tuple(np.arange(end - size, end) for end, size in zip(ends, sizes, strict=True)),
    )


def length_groups(samples: Sequence[Sample], token_budget: int) -> list[list[int]]:
    """Return the numbers of the samples of each batch: like lengths together, ``token_budget`` tokens with padding.

    A sample alone may exceed the budget.
    """
    groups: list[list[int]] = []
    for number in sorted(range(len(samples)), key=lambda number: len(samples[number].input_ids)):
        length = len(samples[number].input_ids) - 1  # of the longest so far
        if groups and (len(groups[-1]) + 1) * length <= token_budget:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups
