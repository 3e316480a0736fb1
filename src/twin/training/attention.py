"""Attention over a prefix tree on a CPU: no work for the empty part of the mask.

Plain products and a softmax, not ``scaled_dot_product_attention``: with a mask, its CPU kernel took 2.2 times as long
(forward and backward, bfloat16, 250 queries and 530 keys).

A dense mask over a pack of T tokens costs T² though most of it is empty. Here each root's unbranched chain (the shared
system prompt) attends to itself, and each subtree below it attends to that chain and to itself: exactly the same sums.
Registered with transformers as the attention ``prefix_tree``; a pack's blocks travel with the call.
Imported late: torch and transformers are at the top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface

from twin.training.prefix_tree import Pack, ancestors

NAME = "prefix_tree"


@dataclass(frozen=True, slots=True)
class Block:
    """Tokens ``start`` to ``stop`` that look at the tokens of the blocks ``keys`` through ``mask``.

    The blocks of a pack lie side by side and cover it.

    Args:
        start: first query.
        stop: end of the queries.
        keys: where the blocks begin whose tokens are the keys, in order.
        mask: [queries, keys], true where a query may look (or, once ``prepared``, a summand of the scores).
    """

    start: int
    stop: int
    keys: tuple[int, ...]
    mask: torch.Tensor


def blocks(pack: Pack) -> list[Block]:
    """Return the blocks of ``pack``: every allowed pair of its mask lies in exactly one of them."""
    parents = pack.parents
    size = len(parents)
    children: list[list[int]] = [[] for _ in range(size)]
    roots: list[int] = []
    for index, parent in enumerate(parents):
        (roots if parent < 0 else children[parent]).append(index)
    done: list[Block] = []
    for root, end in zip(roots, [*roots[1:], size], strict=True):
        stop = root + 1
        while stop < end and children[stop - 1] == [stop]:
            stop += 1
        done.append(Block(root, stop, (root,), torch.ones(stop - root, stop - root, dtype=torch.bool).tril()))
        branches = children[stop - 1]
        ends = [*branches[1:], end][: len(branches)]
        for branch, branch_end in zip(branches, ends, strict=True):
            mask = np.ones((branch_end - branch, stop - root + branch_end - branch), dtype=np.bool_)
            mask[:, stop - root :] = ancestors(parents[branch:branch_end] - branch)
            done.append(Block(branch, branch_end, (root, branch), torch.from_numpy(mask)))
    return done


def prepared(pack: Pack, dtype: torch.dtype, device: torch.device | str = "cpu") -> list[Block]:
    """Return the blocks with masks as summands of ``dtype`` on ``device``, made once and used by every layer."""
    return [
        replace(
            block,
            mask=torch.zeros(block.mask.shape, dtype=dtype)
            .masked_fill_(~block.mask, torch.finfo(dtype).min)
            .to(device),
        )
        for block in blocks(pack)
    ]


def prefix_tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    prefix_tree: Sequence[Block],
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend block by block.

    Args:
        module: the layer (its grouping of heads is read off the shapes).
        query: [1, heads, T, head_dim].
        key: [1, key_value_heads, T, head_dim].
        value: as ``key``.
        attention_mask: unused, None.
        prefix_tree: the pack's blocks, from ``prepared``.
        scaling: factor of the scores.

    Returns:
        [1, T, heads, head_dim] and None for the weights.
    """
    heads, groups = query.shape[1], key.shape[1]
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    sizes = [block.stop - block.start for block in prefix_tree]
    # Split once, not sliced a block: the backward of a split is one concatenation, that of each slice a zeroed tensor.
    own_queries = query[0].split(sizes, dim=1)
    own_keys = dict(zip((block.start for block in prefix_tree), key[0].split(sizes, dim=1), strict=True))
    own_values = dict(zip((block.start for block in prefix_tree), value[0].split(sizes, dim=1), strict=True))
    parts = []
    for block, size, queries in zip(prefix_tree, sizes, own_queries, strict=True):
        keys = torch.cat([own_keys[start] for start in block.keys], dim=1)
        values = torch.cat([own_values[start] for start in block.keys], dim=1)
        # Heads that share their keys are one long matrix: [groups, heads / groups * queries, head_dim].
        scores = torch.bmm(queries.reshape(groups, -1, query.shape[-1]), keys.transpose(1, 2))
        scores.view(groups, heads // groups, size, -1).add_(block.mask)
        parts.append(torch.bmm(torch.softmax(scores, dim=-1), values).view(1, heads, size, -1))
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def register() -> None:
    """Make the attention known to transformers under ``NAME``."""
    AttentionInterface.register(NAME, prefix_tree_attention)
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
