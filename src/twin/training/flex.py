"""Attention over a prefix tree on a GPU, by PyTorch's FlexAttention: one kernel for a pack of any shape.

A pack stands depth first, so a token's subtree is a span, and a query may look at a key exactly if
``key <= query < end of the key's subtree``: two comparisons in place of a [T, T] mask, and blocks of the mask that are
empty are never visited. Registered with transformers as the attention ``prefix_tree_flex``.
Source: Dong et al. 2024, "Flex Attention" (arXiv 2412.05496); ``torch.nn.attention.flex_attention``.
Imported late: torch and transformers are at the top.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward

from twin.training.prefix_tree import Pack, subtree_ends

NAME = "prefix_tree_flex"
# Below 128 queries another kernel is taken, made for generation, that does not compile for grouped heads (PyTorch 2.11).
_NAMED = {"dropout": 0.0, "kernel_options": {"FORCE_USE_FLEX_ATTENTION": True}}


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

        def seen(batch: Any, head: Any, query: Any, key: Any) -> Any:
            return (key <= query) & (query < ends[key])

        def near(batch: Any, head: Any, query: Any, key: Any) -> Any:
            return (key <= query) & (query < ends[key]) & (depths[query] - depths[key] < window)

        return seen if window is None else near


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
    sliding_window: int | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **named: Any,
) -> tuple[torch.Tensor, None]:
    """Attend along the tree. Attention dropout is not done: a shared token would be dropped for all samples at once.

    Args:
        module: the layer.
        query: [1, heads, T, head_dim].
        key: [1, key_value_heads, T, head_dim].
        value: as ``key``.
        attention_mask: unused, None.
        prefix_tree: the pack, from ``prepared``.
        sliding_window: how many tokens back this layer looks, itself included.
        s_aux: attention sinks, which are not computed.
        position_bias: summands by distance, which are not computed.
        named: ``scaling`` and ``softcap``, as transformers has them.

    Returns:
        [1, T, heads, head_dim] and None for the weights.

    Raises:
        NotImplementedError: a model with sinks or a bias.
    """
    if prefix_tree is None:
        raise NotImplementedError("attention that is not told of the tree")
    if s_aux is not None or position_bias is not None:
        raise NotImplementedError("attention with sinks or a bias by position")
    mask = prefix_tree.mask(sliding_window)
    output, _ = flex_attention_forward(module, query, key, value, mask, **named | _NAMED)
    return output, None


def register() -> None:
    """Make the attention known to transformers under ``NAME``."""
    AttentionInterface.register(NAME, flex_tree_attention)
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
