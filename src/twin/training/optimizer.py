"""The optimizer of low-precision LoRA weights. Imported late: torch is at the top."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


class MasterAdamW(torch.optim.AdamW):
    """AdamW on float32 copies of low-precision weights (Micikevicius et al. 2018, arXiv 1710.03740, section 3.1).

    The thin products of LoRA run in the base model's bfloat16, without a conversion a call, and small updates are not
    rounded away.

    Args:
        working: the model's trainable weights.
        kwargs: as for AdamW.
    """

    def __init__(self, working: Sequence[torch.nn.Parameter], **kwargs: Any) -> None:
        self.working = list(working)
        masters = [weight.detach().float().clone().requires_grad_() for weight in self.working]
        super().__init__(masters, fused=True, **kwargs)  # a third of the time of the default on a CPU

    def _masters(self) -> list[torch.Tensor]:
        return [weight for group in self.param_groups for weight in group["params"]]

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Step the float32 weights with the working weights' gradients, then round them into place."""
        masters = self._masters()
        learned = [
            (one, weight.grad) for one, weight in zip(masters, self.working, strict=True) if weight.grad is not None
        ]
        for master in masters:
            master.grad = None
        for master, _ in learned:
            master.grad = torch.empty_like(master)
        # All at once: on a GPU a call for each would take longer than the step.
        torch._foreach_copy_([master.grad for master, _ in learned], [gradient for _, gradient in learned])
        result = super().step(closure)
        with torch.no_grad():
            torch._foreach_copy_(self.working, masters)
        return result

    def state_dict(self) -> dict[str, Any]:
        """Return the state with the float32 weights: the working weights alone would lose what was rounded away."""
        state: dict[str, Any] = super().state_dict()
        return state | {"masters": [weight.detach().clone() for weight in self._masters()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state, float32 weights included."""
        rest = {key: value for key, value in state_dict.items() if key != "masters"}
        super().load_state_dict(rest)
        with torch.no_grad():
            for master, weight, saved in zip(self._masters(), self.working, state_dict["masters"], strict=True):
                master.copy_(saved)
                weight.copy_(saved)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear both sets of gradients."""
        super().zero_grad(set_to_none)
        for weight in self.working:
            weight.grad = None
