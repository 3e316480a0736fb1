"""Going on from an earlier adapter's weights. Imported late: torch and peft are at the top.

Not obvious: they are copied into LoRA weights that were made as a fresh run makes them, so dtype, dropout and the order
of the weights are the plan's, and nothing of the earlier ``adapter_config.json`` decides what is built.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
from safetensors.torch import load_file

from twin.errors import UsageError
from twin.training import many


def take_up(model: Any, weights: Path) -> None:
    """Copy an adapter's weights into the fresh LoRA weights of ``model``.

    Args:
        model: a PEFT model, of the same base, target modules and rank.
        weights: ``adapter_model.safetensors``.

    Raises:
        UsageError: a weight is missing, too many or of another shape.
    """
    earlier = many.world().share(lambda: load_file(weights))
    wanted = peft.get_peft_model_state_dict(model)
    if {name: one.shape for name, one in earlier.items()} != {name: one.shape for name, one in wanted.items()}:
        raise UsageError(f"The adapter '{weights.parent}' does not fit the base model.", "Name another --from-adapter.")
    peft.set_peft_model_state_dict(model, earlier)
