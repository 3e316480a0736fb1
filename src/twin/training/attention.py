"""Attention over a prefix tree: no work for the empty part of the mask.

Plain products and a softmax, not ``scaled_dot_product_attention``: with a mask, its CPU kernel took 2.2 times as long
(forward and backward, bfloat16, 250 queries and 530 keys).

A dense mask over a pack of T tokens costs T² though most of it is empty. Here each root's unbranched chain (the shared
system prompt) attends to itself, and each subtree below it attends to that chain and to itself: exactly the same sums.
A layer with a sliding window looks at those ancestors alone that are near by depth, so near in the sample.
Registered with transformers as the attention ``prefix_tree``; a pack's blocks travel with the call.
Imported late: torch and transformers are at the top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface

from twin.training.prefix_tree import Pack, ancestors

NAME = "prefix_tree"
LEAST_TOKENS = 0  # of a pack


@dataclass(frozen=True, slots=True)
class Block:
    """Tokens ``start`` to ``stop`` that look at the tokens of the blocks ``keys`` through ``mask``.

    The blocks of a pack lie side by side and cover it.

    Args:
        start: first query.
        stop: end of the queries.
        keys: where the blocks begin whose tokens are the keys, in order.
        mask: [queries, keys], true where a query may look.
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


@dataclass(slots=True)
class Tree:
    """A pack's blocks for one forward pass, their masks made once and used by every layer.

    Args:
        blocks: of the pack.
        depths: [T] how many tokens stand before each in its sample.
        dtype: of the scores.
        device: where they are.
    """

    blocks: Sequence[Block]
    depths: np.ndarray
    dtype: torch.dtype
    device: torch.device | str
    _masks: dict[int | None, list[torch.Tensor]] = field(default_factory=dict)

    def masks(self, window: int | None) -> list[torch.Tensor]:
        """Return each block's mask as a summand of the scores.

        Args:
            window: how many tokens a layer looks back, itself included; None: to the beginning.
        """
        if window is not None and window > self.depths.max():
            window = None
        if window not in self._masks:
            self._masks[window] = [self._summand(block, window) for block in self.blocks]
        return self._masks[window]

    def _summand(self, block: Block, window: int | None) -> torch.Tensor:
        seen = block.mask
        if window is not None:
            ends = {one.start: one.stop for one in self.blocks}
            keys = np.concatenate([self.depths[start : ends[start]] for start in block.keys])
            near = self.depths[block.start : block.stop, None] - keys < window
            seen = seen & torch.from_numpy(near)
        least = torch.finfo(self.dtype).min
        return torch.zeros(seen.shape, dtype=self.dtype).masked_fill_(~seen, least).to(self.device)


def prepared(pack: Pack, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tree:
    """Return what a model's layers need of ``pack``; its scores are in ``dtype`` on ``device``."""
    return Tree(blocks(pack), pack.position_ids, dtype, device)


def prefix_tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    prefix_tree: Tree | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend block by block. Attention dropout is not done: a shared token would be dropped for all samples at once.

    Args:
        module: the layer (its grouping of heads is read off the shapes).
        query: [1, heads, T, head_dim].
        key: [1, key_value_heads, T, head_dim].
        value: as ``key``.
        attention_mask: unused, None.
        prefix_tree: the pack, from ``prepared``.
        scaling: factor of the scores.
        sliding_window: how many tokens back this layer looks, itself included.
        softcap: scores become ``softcap * tanh(scores / softcap)`` (Gemma 2, arXiv 2408.00118, section 2).
        s_aux: attention sinks, which are not computed.
        position_bias: summands by distance, which are not computed.

    Returns:
        [1, T, heads, head_dim] and None for the weights.

    Raises:
        NotImplementedError: a model with sinks or a bias.
    """
    if prefix_tree is None:
        raise NotImplementedError("attention that is not told of the tree")
    if s_aux is not None or position_bias is not None:
        raise NotImplementedError("attention with sinks or a bias by position")
    heads, groups = query.shape[1], key.shape[1]
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    tree = prefix_tree.blocks
    sizes = [block.stop - block.start for block in tree]
    # Split once, not sliced a block: the backward of a split is one concatenation, that of each slice a zeroed tensor.
    own_queries = query[0].split(sizes, dim=1)
    own_keys = dict(zip((block.start for block in tree), key[0].split(sizes, dim=1), strict=True))
    own_values = dict(zip((block.start for block in tree), value[0].split(sizes, dim=1), strict=True))
    parts = []
    masks = prefix_tree.masks(sliding_window)
    for block, size, queries, mask in zip(tree, sizes, own_queries, masks, strict=True):
        keys = torch.cat([own_keys[start] for start in block.keys], dim=1)
        values = torch.cat([own_values[start] for start in block.keys], dim=1)
        # Heads that share their keys are one long matrix: [groups, heads / groups * queries, head_dim].
        scores = torch.bmm(queries.reshape(groups, -1, query.shape[-1]), keys.transpose(1, 2))
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores.view(groups, heads // groups, size, -1).add_(mask)
        parts.append(torch.bmm(torch.softmax(scores, dim=-1), values).view(1, heads, size, -1))
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def register() -> None:
    """Make the attention known to transformers under ``NAME``."""
    AttentionInterface.register(NAME, prefix_tree_attention)
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
