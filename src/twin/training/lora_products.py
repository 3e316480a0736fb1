"""LoRA's products, fewer and larger: modules that read the same input share one, sums are made in place.

    y = x Wᵀ + b + s (x Aᵀ) Bᵀ

peft computes the four parts as modules one after another: eight operations there and thirteen back, each with a tensor
of its own. Here one function does both ways: the A of q, k and v (of gate and up) are stacked, the scale s is folded
into them, each sum is the product's own (``addmm``), and of the frozen weight no gradient is asked. The modules stay
peft's, and so does what is saved; a module of a kind that is not known here is left to peft. Weights that bitsandbytes
keeps in 4 bits are unpacked for each product, as they are without this. Imported late: torch and
peft are at the top.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import Linear

# Of one parent, in the order in which the model's code calls them. Another order costs time and is as right.
_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class _Products(torch.autograd.Function):
    """The outputs of modules that read the same input.

    Args, after the context: x [..., in], the scales, the modules that are frozen, W [out, in] and b [out] or none, and
    of each A [r, in] and B [out, r].
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, scales: Sequence[float], frozen: Sequence[Any], *weights: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        downs, ups = weights[::2], weights[1::2]
        rows = x.reshape(-1, x.shape[-1])
        down = torch.cat([one * scale for one, scale in zip(downs, scales, strict=True)])
        thin = rows @ down.t()
        ranks = [one.shape[0] for one in downs]
        outputs = []
        for base, up, part in zip(frozen, ups, thin.split(ranks, dim=1), strict=True):
            output = base(rows).addmm_(part, up.t())
            outputs.append(output.view(*x.shape[:-1], -1))
        ctx.save_for_backward(rows, down, thin, *ups)
        ctx.frozen, ctx.scales, ctx.ranks, ctx.shape = frozen, scales, ranks, x.shape
        return tuple(outputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, down, thin, *ups = ctx.saved_tensors
        flat = [one.reshape(-1, one.shape[-1]) for one in grads]
        to_thin = torch.cat([one @ up for one, up in zip(flat, ups, strict=True)], dim=1)
        to_ups = [one.t() @ part for one, part in zip(flat, thin.split(ctx.ranks, dim=1), strict=True)]
        to_downs = (to_thin.t() @ rows).split(ctx.ranks)
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = to_thin @ down
            for one, base in zip(flat, ctx.frozen, strict=True):
                to_x.addmm_(one, _weight(base))
            to_x = to_x.view(ctx.shape)
        weights: list[torch.Tensor | None] = []
        for to_down, scale, to_up in zip(to_downs, ctx.scales, to_ups, strict=True):
            weights += [to_down * scale, to_up]
        return to_x, None, None, *weights


def _weight(base: Any) -> torch.Tensor:
    """Return [out, in], unpacked where it is kept in 4 bits."""
    if not _is_packed(base):
        return base.weight
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(base.weight.data, base.weight.quant_state)


def _is_packed(base: Any) -> bool:
    return type(base).__name__ == "Linear4bit" and type(base).__module__.startswith("bitsandbytes.")


class _Together:
    """Modules that read the same input: the first one's call computes them all, the others find theirs."""

    def __init__(self, modules: Sequence[Linear]) -> None:
        self.modules = modules
        self.peft = [module.forward for module in modules]
        self.read: tuple[torch.Tensor, int, bool] | None = None  # the input, its version, whether with gradients
        self.left: dict[int, torch.Tensor] = {}
        for place, module in enumerate(modules):
            module.forward = self._forward(place)

    def _forward(self, place: int) -> Any:
        def forward(x: torch.Tensor, *args: Any, **named: Any) -> torch.Tensor:
            if args or named or any(_why_not(module, x) for module in self.modules):
                return self.peft[place](x, *args, **named)
            return self._output(place, x)

        return forward

    def _output(self, place: int, x: torch.Tensor) -> torch.Tensor:
        known = self.read is not None and self.read[0] is x and self.read[1:] == (x._version, torch.is_grad_enabled())
        if not known or place not in self.left:
            self.read, self.left = None, {}
            # Kept once there is something to keep: memory may end in here, and layers that are computed again end in
            # here by an exception, and what is kept keeps the graph behind it.
            outputs = self._apply(x)
            self.read, self.left = (x, x._version, torch.is_grad_enabled()), dict(enumerate(outputs))
        output = self.left.pop(place)
        if not self.left:
            self.read = None
        return output

    def _apply(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        scales, weights = list[float](), list[Any]()
        for module in self.modules:
            (name,) = module.active_adapters
            scales.append(module.scaling[name])
            weights += [module.lora_A[name].weight, module.lora_B[name].weight]
        outputs: tuple[torch.Tensor, ...] = _Products.apply(
            x, scales, [one.base_layer for one in self.modules], *weights
        )
        return outputs


def _why_not(module: Any, x: torch.Tensor | None = None) -> str | None:
    """Return why a module is computed by peft, at all or just now with ``x``; None: it is computed here."""
    plain = type(module) is Linear and type(module.base_layer) is torch.nn.Linear and not module.fan_in_fan_out
    packed = type(module).__module__ == "peft.tuners.lora.bnb" and _is_packed(module.base_layer)
    if not (plain or packed):
        return f"of a kind that is not known: {type(module).__module__}.{type(module).__name__}"
    if module.disable_adapters or module.merged or len(module.active_adapters) != 1:
        return "not exactly one adapter, unmerged"
    (name,) = module.active_adapters
    if name not in module.lora_A or name in module.lora_variant or module.lora_B[name].bias is not None:
        return "another kind of LoRA"
    if not isinstance(module.lora_dropout[name], torch.nn.Identity):
        return "dropout"
    down, up, base = module.lora_A[name].weight, module.lora_B[name].weight, module.base_layer
    dtype = base.compute_dtype if packed else base.weight.dtype
    if base.weight.requires_grad or not down.dtype == up.dtype == dtype == (down if x is None else x).dtype:
        return "other dtypes, or a base that is trained"
    return None


def install(model: torch.nn.Module) -> dict[str, str]:
    """Compute the LoRA modules of ``model`` as above.

    Args:
        model: with LoRA by peft.

    Returns:
        The names of LoRA modules that are left to peft, and why.
    """
    left: dict[str, str] = {}
    for parent_name, parent in model.named_modules():
        own = {name: module for name, module in parent.named_children() if hasattr(module, "lora_A")}
        why = {name: _why_not(module) for name, module in own.items()}
        left |= {f"{parent_name}.{name}": reason for name, reason in why.items() if reason}
        known = [name for name, reason in why.items() if not reason]
        groups = [[name for name in names if name in known] for names in _TOGETHER]
        alone = [[name] for name in known if not any(name in group for group in groups)]
        for group in [*groups, *alone]:
            if group:
                _Together([own[name] for name in group])
    return left
