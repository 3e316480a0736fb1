"""Compute once what samples share: their ids in a trie, depth first, each token seeing its ancestors alone.

    sample 1: S S S a b       trie:  S S S ┬ a b          input_ids     S S S a b c
    sample 2: S S S c                      └ c            position_ids  0 1 2 3 4 3
                                                          c sees        1 1 1 0 0 1

The gradient is that of the samples one by one: a shared token counts as often as samples hold it (Tree Training,
arXiv 2511.00413). Tokens whose loss is taken and that no supervised token needs afterwards are not in the pack at all:
a sample's last token is a target, never an input.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from twin.records import Sample

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pack:
    """A trie as arrays; T tokens, P supervised pairs.

    Args:
        input_ids: [T] node tokens, depth first.
        position_ids: [T] depth of each node.
        parents: [T] index of each node's parent, -1 at a root.
        predictors: [P] index of the node that predicts.
        targets: [P] token it should predict.
        weights: [P] how many samples say so.
        of_sample: for each sample the indices of its pairs.
    """

    input_ids: Ints
    position_ids: Ints
    parents: Ints
    predictors: Ints
    targets: Ints
    weights: Ints
    of_sample: tuple[Ints, ...]

    @property
    def whole(self) -> int:
        """How many tokens its samples have as they stand, their last ones included."""
        return sum(int(self.position_ids[self.predictors[pairs[-1]]]) + 2 for pairs in self.of_sample)

    @property
    def computed(self) -> int:
        """How many tokens are computed."""
        return len(self.input_ids)

    def filled(self, tokens: int) -> Pack:
        """Return the pack with so many tokens at least: what is added is alone, and nothing is learned of it."""
        more = max(0, tokens - len(self.input_ids))
        none, roots = np.zeros(more, np.int64), np.full(more, -1)
        return (
            replace(
                self,
                input_ids=np.concatenate([self.input_ids, none]),
                position_ids=np.concatenate([self.position_ids, none]),
                parents=np.concatenate([self.parents, roots]),
            )
            if more
            else self
        )

    def mask(self) -> npt.NDArray[np.bool_]:
        """Return [T, T], true where the row's token may look: itself and its ancestors."""
        return ancestors(self.parents)


def ancestors(parents: Ints) -> npt.NDArray[np.bool_]:
    """Return [T, T], true where the column's node is the row's or one of its ancestors; a parent < 0 is none."""
    seen = np.zeros((len(parents), len(parents)), dtype=np.bool_)
    for index, parent in enumerate(parents):
        if parent >= 0:
            seen[index] = seen[parent]
        seen[index, index] = True
    return seen


def subtree_ends(parents: Ints) -> Ints:
    """Return [T], the end of each node's subtree: depth first, its nodes stand side by side behind it."""
    ends = np.arange(1, len(parents) + 1)
    for index in range(len(parents) - 1, -1, -1):  # children stand behind their parent
        if parents[index] >= 0:
            ends[parents[index]] = max(ends[parents[index]], ends[index])
    return ends


@dataclass(slots=True)
class _Node:
    token: int
    children: dict[int, _Node] = field(default_factory=dict)
    targets: dict[int, int] = field(default_factory=dict)


def pack(samples: Iterable[Sample]) -> Pack:
    """Return the trie of ``samples``. Each sample has a prompt of one token at least."""
    root = _Node(-1)
    said: list[list[tuple[int, int]]] = []  # for each sample (node, target), nodes by identity
    for sample in samples:
        node = root
        own: list[tuple[int, int]] = []
        said.append(own)
        for place, token in enumerate(sample.input_ids[:-1]):
            node = node.children.setdefault(token, _Node(token))
            if place + 1 >= sample.prompt_length:
                target = sample.input_ids[place + 1]
                node.targets[target] = node.targets.get(target, 0) + 1
                own.append((id(node), target))
    tokens: list[int] = []
    positions: list[int] = []
    parents: list[int] = []
    pairs: list[tuple[int, int, int]] = []
    place_of: dict[tuple[int, int], int] = {}
    stack = [(child, -1, 0) for child in reversed(root.children.values())]
    while stack:
        node, parent, depth = stack.pop()
        index = len(tokens)
        tokens.append(node.token)
        positions.append(depth)
        parents.append(parent)
        for target, weight in node.targets.items():
            place_of[id(node), target] = len(pairs)
            pairs.append((index, target, weight))
        stack += [(child, index, depth + 1) for child in reversed(node.children.values())]
    table = np.array(pairs, dtype=np.int64).reshape(-1, 3)
    return Pack(
        np.array(tokens, dtype=np.int64),
        np.array(positions, dtype=np.int64),
        np.array(parents, dtype=np.int64),
        table[:, 0],
        table[:, 1],
        table[:, 2],
        tuple(np.array([place_of[pair] for pair in own], dtype=np.int64) for own in said),
    )


def pack_within(samples: Sequence[Sample], token_budget: int) -> list[Pack]:
    """Return packs of ``samples`` in order, each of ``token_budget`` tokens at most (a sample alone may exceed it).

    There are as few packs as the budget allows, and then as even ones as that number allows: the largest pack decides
    how much memory a step takes.
    """
    if not samples:
        return []
    lengths, shared = read_lengths(samples), shared_with_the_one_before(samples)
    cuts = even_cuts(lengths, shared, len(_cut(lengths, shared, token_budget)), token_budget)
    return [pack(samples[start:stop]) for start, stop in zip(cuts, [*cuts[1:], len(samples)], strict=True)]


def read_lengths(samples: Sequence[Sample]) -> list[int]:
    """Return of each sample how many tokens are read: all but the last, which is a target and no input."""
    return [len(sample.input_ids) - 1 for sample in samples]


def shared_with_the_one_before(samples: Sequence[Sample]) -> list[int]:
    """Return of each sample how many tokens that are read it begins with as the one before it does."""
    read = [sample.input_ids[:-1] for sample in samples]
    return [0, *(common(one, other) for one, other in pairwise(read))]


def even_cuts(lengths: Sequence[int], shared: Sequence[int], most: int, high: int | None = None) -> list[int]:
    """Return where parts begin, of a sequence cut into ``most`` at most, so that the largest is as small as can be.

    Args:
        lengths: of what is cut, in tokens.
        shared: how much of each is computed already where the one before is in the same part.
        most: how many parts there may be.
        high: a size of parts that gives no more, where one is known.
    """
    low, high = 1, sum(lengths) if high is None else high
    while low < high:
        middle = (low + high) // 2
        if len(_cut(lengths, shared, middle)) <= most:
            high = middle
        else:
            low = middle + 1
    return _cut(lengths, shared, high)


def _cut(lengths: Sequence[int], shared: Sequence[int], token_budget: int) -> list[int]:
    """Return where packs begin, each filled as far as it goes."""
    starts: list[int] = []
    used = 0
    for place, length in enumerate(lengths):
        own = length - shared[place]
        if starts and used + own <= token_budget:
            used += own
        else:
            starts.append(place)
            used = length
    return starts


def common(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many tokens both begin with."""
    for place, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return place
    return min(len(left), len(right))


def batches(samples: Sequence[Sample], batch_size: int, seed: int) -> list[list[Sample]]:
    """Return one pass over ``samples`` in batches of about ``batch_size``, conversations kept together.

    Conversations are shuffled; one that is longer than a batch is cut into batches of its own, and a batch is closed
    once it is full, so its size is ``batch_size`` at least (but the last) and below twice that.
    """
    conversations: dict[str, list[Sample]] = {}
    for sample in samples:
        conversations.setdefault(sample.conversation_id, []).append(sample)
    pieces = [
        own[start : start + batch_size] for own in conversations.values() for start in range(0, len(own), batch_size)
    ]
    random.Random(seed).shuffle(pieces)  # noqa: S311 - a reproducible order, no secret
    done: list[list[Sample]] = [[]]
    for piece in pieces:
        if len(done[-1]) >= batch_size:
            done.append([])
        done[-1] += piece
    # In order of their ids neighbours share the most, so that ``pack_within`` counts exactly.
    return [sorted(batch, key=lambda sample: sample.input_ids) for batch in done if batch]
