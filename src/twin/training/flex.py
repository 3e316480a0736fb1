"""Attention over a prefix tree on a GPU, by PyTorch's FlexAttention: one kernel for a pack of any shape.

A pack stands depth first, so a token's subtree is a span, and a query may look at a key exactly if
``key <= query < end of the key's subtree``: two comparisons in place of a [T, T] mask, and blocks of the mask that are
empty are never visited. Registered with transformers as the attention ``prefix_tree_flex``.
Source: Dong et al. 2024, "Flex Attention" (arXiv 2412.05496); ``torch.nn.attention.flex_attention``.
Imported late: torch is at the top.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from twin.training.attention import UNTOLD, make_known, refuse_more
from twin.training.prefix_tree import Pack, subtree_ends

NAME = "prefix_tree_flex"
# A pack is filled up to more than a block of 128, for a mask of a single block would be compiled by itself.
LEAST_TOKENS = 129
# Below 128 queries a kernel for generation is taken, that does not compile for grouped heads (PyTorch 2.11).
_OPTIONS = {"FORCE_USE_FLEX_ATTENTION": True}
_MOST_VERSIONS = 64  # compiled ones; past PyTorch's own 8 it would go on uncompiled, many times as slow


@dataclass(slots=True)
class Spans:
    """A pack for one forward pass; each mask is made once and used by every layer.

    Args:
        ends: [T] where the subtree of each token ends.
        depths: [T] how many tokens stand before each in its sample.
        longest: the tokens of the longest sample.
    """

    ends: torch.Tensor
    depths: torch.Tensor
    longest: int
    _masks: dict[int | None, BlockMask] = field(default_factory=dict)

    def mask(self, window: int | None) -> BlockMask:
        """Return the mask of a layer.

        Args:
            window: how many tokens the layer looks back, itself included; None: to the beginning.
        """
        if window is not None and window >= self.longest:
            window = None
        if window not in self._masks:
            size = len(self.ends)
            self._masks[window] = create_block_mask(self.rule(window), None, None, size, size, device=self.ends.device)
        return self._masks[window]

    def rule(self, window: int | None) -> Any:
        """Return the function that says whether a query may look at a key, as FlexAttention calls it."""
        ends, depths = self.ends, self.depths
        back = None if window is None else torch.tensor(window, device=ends.device)  # a number would be compiled in

        def seen(batch: Any, head: Any, query: Any, key: Any) -> Any:
            return (key <= query) & (query < ends[key])

        def near(batch: Any, head: Any, query: Any, key: Any) -> Any:
            return (key <= query) & (query < ends[key]) & (depths[query] - depths[key] < back)

        return seen if window is None else near


@cache
def _compiled() -> Callable[..., torch.Tensor]:
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_VERSIONS)
    return torch.compile(flex_attention, dynamic=True)  # type: ignore[no-any-return]


@cache
def _capped(softcap: float, device: torch.device) -> Callable[..., torch.Tensor]:
    most = torch.tensor(softcap, device=device)  # PyTorch 2.11 does not compile it as a number

    def cap(score: torch.Tensor, batch: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
        return most * torch.tanh(score / most)

    return cap


def prepared(pack: Pack, dtype: torch.dtype, device: torch.device | str = "cuda") -> Spans:
    """Return what a model's layers need of ``pack``; ``dtype`` is the other attention's affair."""
    ends = torch.from_numpy(subtree_ends(pack.parents)).to(device)
    depths = torch.from_numpy(pack.position_ids).to(device)
    return Spans(ends, depths, int(pack.position_ids.max()) + 1)


def flex_tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    prefix_tree: Spans | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend along the tree. Attention dropout is not done: a shared token would be dropped for all samples at once.

    Args:
        module: the layer.
        query: [1, heads, T, head_dim].
        key: [1, key_value_heads, T, head_dim].
        value: as ``key``.
        attention_mask: unused, None.
        prefix_tree: the pack, from ``prepared``.
        scaling: factor of the scores.
        sliding_window: how many tokens back this layer looks, itself included.
        softcap: scores become ``softcap * tanh(scores / softcap)``.
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
    attend = _compiled() if query.device.type == "cuda" else flex_attention
    output = attend(
        query,
        key,
        value,
        score_mod=None if softcap is None else _capped(softcap, query.device),
        block_mask=prefix_tree.mask(sliding_window),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        kernel_options=_OPTIONS,
    )
    return output.transpose(1, 2).contiguous(), None


def register() -> None:
    """Make the attention known to transformers under ``NAME``."""
    make_known(NAME, flex_tree_attention)
