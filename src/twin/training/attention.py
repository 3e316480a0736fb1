"""Attention over a prefix tree: no work for the empty part of the mask.

A dense mask over a pack of T tokens costs T² though most of it is empty. Here the tokens attend in blocks of about a
hundred, each to those tokens alone that one of the block may see: exactly the same sums, over few pairs more than the
mask has. A layer with a sliding window looks at those ancestors alone that are near by depth, so near in the sample.

Plain products and a softmax with a backward of their own, not ``scaled_dot_product_attention``: with a mask, its CPU
kernel takes 2.4 times as long (forward and backward, float32, 729 tokens), and what autograd keeps and copies between
the products took a third of the time. Registered with transformers as the attention ``prefix_tree``; a pack's blocks
travel with the call. Imported late: torch and transformers are at the top.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AttentionInterface, AttentionMaskInterface

from twin.training.prefix_tree import Ints, Pack, ancestors

NAME = "prefix_tree"
LEAST_TOKENS = 0  # of a pack
UNTOLD = "attention that is not told of the tree"
_BLOCK = 96  # tokens at most; 64 to 128 take as long, more compute what nobody sees
_GAP = 8  # unseen keys between seen ones that cost less than one more piece


@dataclass(frozen=True, slots=True)
class Block:
    """Tokens ``start`` to ``stop`` that look at the tokens of some spans through ``mask``.

    The blocks of a pack lie side by side and cover it.

    Args:
        start: first query.
        stop: end of the queries.
        keys: spans (start, stop) of the tokens that are the keys, in order.
        mask: [queries, keys], true where a query may look.
    """

    start: int
    stop: int
    keys: tuple[tuple[int, int], ...]
    mask: torch.Tensor


def blocks(pack: Pack) -> list[Block]:
    """Return the blocks of ``pack``: every allowed pair of its mask lies in exactly one of them."""
    seen = ancestors(pack.parents)
    done: list[Block] = []
    start = 0
    while start < len(seen):
        stop = _end(pack.parents, start)
        keys = _spans(np.asarray(seen[start:stop].any(axis=0)))
        mask = np.concatenate([seen[start:stop, first:last] for first, last in keys], axis=1)
        done.append(Block(start, stop, keys, torch.from_numpy(mask)))
        start = stop
    return done


def _end(parents: Ints, start: int) -> int:
    """Return where a block ends that begins at ``start``: where the tree jumps back the farthest, if it is large."""
    if len(parents) - start <= _BLOCK:
        return len(parents)
    ends = np.arange(start + _BLOCK, start + _BLOCK // 2, -1)
    return int(ends[np.argmax(ends - parents[ends])])


def _spans(seen: npt.NDArray[np.bool_]) -> tuple[tuple[int, int], ...]:
    """Return the spans of what is true, those with a small gap between them as one."""
    edges = np.flatnonzero(np.diff(seen, prepend=False, append=False))
    starts, stops = edges[::2], edges[1::2]
    far = starts[1:] - stops[:-1] > _GAP
    return tuple(zip(starts[np.r_[True, far]].tolist(), stops[np.r_[far, True]].tolist(), strict=True))


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
            keys = np.concatenate([self.depths[first:last] for first, last in block.keys])
            near = self.depths[block.start : block.stop, None] - keys < window
            seen = seen & torch.from_numpy(near)
        least = torch.finfo(self.dtype).min
        return torch.zeros(seen.shape, dtype=self.dtype).masked_fill_(~seen, least).to(self.device)


def prepared(pack: Pack, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tree:
    """Return what a model's layers need of ``pack``; its scores are in ``dtype`` on ``device``."""
    return Tree(blocks(pack), pack.position_ids, dtype, device)


class _Attend(torch.autograd.Function):
    """Attention block by block. What is kept for the way back is one matrix a block: its softmax.

    Heads that share their keys are one long matrix: [groups, heads / groups * queries, head_dim].
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        tree: Sequence[Block],
        masks: Sequence[torch.Tensor],
        scaling: float,
        softcap: float | None,
    ) -> torch.Tensor:
        groups, tokens, head_dim = key.shape
        each = query.shape[0] // groups
        query = query.unflatten(0, (groups, each))
        out = query.new_empty(tokens, groups, each, head_dim)
        kept: list[torch.Tensor] = []
        for block, mask in zip(tree, masks, strict=True):
            size = block.stop - block.start
            queries = _rows(query[:, :, block.start : block.stop] * scaling)
            scores = torch.bmm(queries, _at(key, block.keys).transpose(1, 2))
            if softcap is not None:
                kept.append(scores.div_(softcap).tanh_())
                scores = scores * softcap
            scores.view(groups, each, size, -1).add_(mask)
            weights = torch.softmax(scores, dim=-1)
            kept.append(weights)
            seen = torch.bmm(weights, _at(value, block.keys)).view(groups, each, size, head_dim)
            out[block.start : block.stop] = seen.permute(2, 0, 1, 3)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.tree, ctx.scaling, ctx.softcap = tree, scaling, softcap
        return out.flatten(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        groups, each, _, head_dim = query.shape
        grad = grad.unflatten(1, (groups, each)).permute(1, 2, 0, 3)
        to_query, to_key, to_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        left = iter(kept)
        for block in ctx.tree:
            capped = next(left) if ctx.softcap is not None else None
            weights = next(left)
            rows = _rows(grad[:, :, block.start : block.stop])
            to_scores = torch.bmm(rows, _at(value, block.keys).transpose(1, 2))
            to_scores = torch._softmax_backward_data(to_scores, weights, -1, weights.dtype)
            if capped is not None:  # the derivative of the hyperbolic tangent
                to_scores = to_scores.mul_(1 - capped * capped)
            found = torch.bmm(to_scores, _at(key, block.keys)).view(groups, each, -1, head_dim)
            torch.mul(found, ctx.scaling, out=to_query[:, :, block.start : block.stop])
            queries = _rows(query[:, :, block.start : block.stop] * ctx.scaling)
            for whole, part in (
                (to_key, torch.bmm(to_scores.transpose(1, 2), queries)),
                (to_value, torch.bmm(weights.transpose(1, 2), rows)),
            ):
                place = 0
                for first, last in block.keys:
                    whole[:, first:last] += part[:, place : place + last - first]
                    place += last - first
        return to_query.flatten(0, 1), to_key, to_value, None, None, None, None


def _rows(heads: torch.Tensor) -> torch.Tensor:
    """Return [groups, each * queries, head_dim] of [groups, each, queries, head_dim]."""
    return heads.reshape(heads.shape[0], -1, heads.shape[-1])


def _at(tensor: torch.Tensor, spans: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Return the tokens of ``spans`` of [groups, tokens, head_dim]."""
    return torch.cat([tensor[:, first:last] for first, last in spans], dim=1)


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
        raise NotImplementedError(UNTOLD)
    refuse_more(s_aux, position_bias)
    masks = prefix_tree.masks(sliding_window)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    # Not [0], whose backward fills a tensor of zeros.
    batch = (query.squeeze(0), key.squeeze(0), value.squeeze(0))
    return _Attend.apply(*batch, prefix_tree.blocks, masks, scaling, softcap)[None], None


def refuse_more(s_aux: torch.Tensor | None, position_bias: torch.Tensor | None) -> None:
    """Refuse what a model's scores are made of besides queries and keys, which no attention over a tree computes.

    Raises:
        NotImplementedError: a model with sinks or a bias.
    """
    if s_aux is not None or position_bias is not None:
        raise NotImplementedError("attention with sinks or a bias by position")


def make_known(name: str, attend: Callable[..., Any]) -> None:
    """Make an attention known to transformers, which then makes no mask for it."""
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, lambda *args, **kwargs: None)


def register() -> None:
    """Make the attention known to transformers under ``NAME``."""
    make_known(NAME, prefix_tree_attention)
