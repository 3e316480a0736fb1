"""What sharing saves and what each row costs, counted before anything is trained. Pure functions on samples.

A token that samples of one pack share is computed once, so its cost is divided among the samples that hold it: a
sample's cost is the sum over its tokens of 1 / (samples of its pack that hold the token). So the costs of a pack's
samples add up to the tokens of the pack, and those of all samples to the tokens that training computes.

    sample 1: S S S a b    holders 2 2 2 1 1    cost 3.5
    sample 2: S S S c      holders 2 2 2 1      cost 2.5, together the 6 tokens of the pack

A sample's last token is learned and never read, so it costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from twin.records import Example, Sample
from twin.training.prefix_tree import Ints, Pack, common, pack_within


@dataclass(frozen=True, slots=True)
class Cost:
    """What one row takes, over the whole training.

    Args:
        id: the row's id; ``ID@TURN`` where a row teaches several replies.
        tokens: its length, end token included.
        times: in how many optimizer steps it is learned.
        own_tokens: how many tokens are computed for it alone.
        computed_tokens: those, and its part of what it shares.
    """

    id: str
    tokens: int
    times: int
    own_tokens: int
    computed_tokens: float


@dataclass(frozen=True, slots=True)
class System:
    """A system prompt: the tokens of its text, 0 where there is none, and how many rows have it."""

    tokens: int
    rows: int


@dataclass(frozen=True, slots=True)
class Account:
    """What a training would compute, in tokens of all its passes.

    ``tokens - last_tokens - shared_system - shared_history == unique_tokens``.

    Args:
        rows: the samples that there are; a fraction of a pass may leave some out.
        passes: over the rows, the last one perhaps of a part of them.
        steps: optimizer steps.
        tokens: of all rows as they stand, each as often as it is learned.
        last_tokens: of these the last ones, which are learned and never read.
        shared_system: saved on what several conversations begin with: system prompt, template (see ``openings``).
        shared_history: saved on what rows of one conversation alone begin with: its history.
        unique_tokens: what is computed.
        one_tree_tokens: what would be if each pass were one step and one tree: sharing can give no more.
        padded_tokens: what padded batches would compute: the same steps, each row as long as its step's longest.
        packs: trees that are computed one after another; a step is one of them, or several where it is long.
        token_budget: most tokens of a pack, but for a row that is longer alone.
        largest_pack: its tokens.
        costs: of each row, in the rows' order.
    """

    rows: int
    passes: int
    steps: int
    tokens: int
    last_tokens: int
    shared_system: int
    shared_history: int
    unique_tokens: int
    one_tree_tokens: int
    padded_tokens: int
    packs: int
    token_budget: int
    largest_pack: int
    costs: tuple[Cost, ...]


def samples_holding(pack: Pack) -> Ints:
    """Return [T], how many samples hold each token."""
    return _gather(pack, np.bincount(_last_nodes(pack), minlength=len(pack.input_ids)), int.__add__)


def _gather(pack: Pack, values: Ints, join: Callable[[int, int], int]) -> Ints:
    """Return [T], the ``values`` [T] of each node and all below it, joined."""
    joined = values.tolist()
    for node, parent in zip(range(len(joined) - 1, -1, -1), pack.parents[::-1].tolist(), strict=True):
        if parent >= 0:  # a parent stands before its children
            joined[parent] = join(joined[parent], joined[node])
    return np.array(joined, dtype=np.int64)


def openings(samples: Sequence[Sample]) -> list[int]:
    """Return of each sample how many of its first tokens a sample of another conversation begins with too.

    That is the system prompt and what the template writes around it: conversations have little else in common.
    """
    order = sorted(range(len(samples)), key=lambda place: samples[place].input_ids)
    longest = [0] * len(samples)
    for way in (order, order[::-1]):
        shared = 0  # with the nearest sample of another conversation that came before, in order of their ids
        for left, right in pairwise(way):
            one, other = samples[left], samples[right]
            alike = common(one.input_ids, other.input_ids)
            shared = alike if one.conversation_id != other.conversation_id else min(alike, shared)
            longest[right] = max(longest[right], shared)
    return longest


def costs(pack: Pack) -> list[tuple[int, float]]:
    """Return of each sample of ``pack`` the tokens that it alone holds, and its cost."""
    alone: list[int] = []
    cost: list[float] = []
    for parent, samples in zip(pack.parents.tolist(), samples_holding(pack).tolist(), strict=True):
        alone.append((alone[parent] if parent >= 0 else 0) + (samples == 1))
        cost.append((cost[parent] if parent >= 0 else 0.0) + 1 / samples)
    return [(alone[node], cost[node]) for node in _last_nodes(pack)]


def _last_nodes(pack: Pack) -> list[int]:
    """Return the node of each sample's last token that is read."""
    return [int(pack.predictors[pairs[-1]]) for pairs in pack.of_sample]


def tree_tokens(samples: Iterable[Sample]) -> int:
    """Return how many tokens one tree of all ``samples`` has."""
    read = sorted(sample.input_ids[:-1] for sample in samples)
    return sum(map(len, read)) - sum(common(one, other) for one, other in pairwise(read))


def account(samples: Sequence[Sample], passes: Sequence[Sequence[Sequence[Sample]]], token_budget: int) -> Account:
    """Return what training would compute, and for which row.

    Args:
        samples: all of them.
        passes: of each pass over them the samples of each optimizer step.
        token_budget: most tokens of a pack.
    """
    whole = {id(sample): [0, 0, 0.0] for sample in samples}  # times, own tokens, cost
    opening = dict(zip(map(id, samples), openings(samples), strict=True))
    system = history = padded = largest = unique = packs = 0
    steps = [step for one in passes for step in one]
    for step in steps:
        padded += len(step) * max(len(sample.input_ids) for sample in step)
        start = 0
        for pack in pack_within(step, token_budget):
            members = step[start : start + len(pack.of_sample)]
            start += len(members)
            size = len(pack.input_ids)
            reach = np.zeros(size, dtype=np.int64)
            np.maximum.at(reach, _last_nodes(pack), [opening[id(sample)] for sample in members])
            opens = pack.position_ids < _gather(pack, reach, max)
            saved = samples_holding(pack) - 1
            system += int(saved[opens].sum())
            history += int(saved[~opens].sum())
            unique, largest, packs = unique + size, max(largest, size), packs + 1
            for sample, (own, cost) in zip(members, costs(pack), strict=True):
                kept = whole[id(sample)]
                kept[0], kept[1], kept[2] = kept[0] + 1, kept[1] + own, kept[2] + cost
    learned = [sample for step in steps for sample in step]
    return Account(
        rows=len(samples),
        passes=len(passes),
        steps=len(steps),
        tokens=sum(len(sample.input_ids) for sample in learned),
        last_tokens=len(learned),
        shared_system=system,
        shared_history=history,
        unique_tokens=unique,
        one_tree_tokens=sum(tree_tokens(sample for step in one for sample in step) for one in passes),
        padded_tokens=padded,
        packs=packs,
        token_budget=token_budget,
        largest_pack=largest,
        costs=tuple(
            Cost(sample.id, len(sample.input_ids), int(times), int(own), cost)
            for sample, (times, own, cost) in zip(samples, whole.values(), strict=True)
        ),
    )


def systems(rows: Iterable[Example], samples: Iterable[Sample], count: Callable[[str], int]) -> tuple[System, ...]:
    """Return the system prompts of what is learned, the most frequent first.

    Args:
        rows: the rows that the samples were made of.
        samples: what is learned of them.
        count: the number of tokens of a text.
    """
    texts = {row.id: row.turns[0].content if row.turns[0].role == "system" else "" for row in rows}
    held: dict[str, int] = {}
    for sample in samples:
        text = texts[sample.id if sample.id in texts else sample.id.rpartition("@")[0]]
        held[text] = held.get(text, 0) + 1
    ranked = sorted(held.items(), key=lambda item: -item[1])
    return tuple(System(count(text) if text else 0, number) for text, number in ranked)
