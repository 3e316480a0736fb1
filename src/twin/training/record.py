"""What a run leaves beside its adapter: the loss plot and the model card."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from twin.runs import RunPaths, atomic_write, write_text

_CARD = """---
base_model: {base}
library_name: peft
license: other
tags: [lora, twin]
---

# {name}

A LoRA adapter trained with twin {version} on one person's own words. It speaks as that person: share it only if they
agree, and only under terms that the base model's license ({license}) allows.

| | |
|---|---|
| Base model | `{base}` |
| Rows | {rows_train} to learn from, {rows_val} held out |
| Optimizer steps | {steps}, {batch_size} replies each |
| LoRA | rank {lora_r}, alpha {lora_alpha}, on {targets} |
| Held-out loss (nats a token) | {val_loss_base} before, {val_loss} after |
| Chat template | family `{family}`, in `chat_template.jinja` |

Load it with plain PEFT: `PeftModel.from_pretrained(base_model, "this folder")`. Every setting, version and figure is in
`run.json`.
"""


def write_loss_plot(
    paths: RunPaths, steps: Sequence[int], losses: Sequence[float], before: float | None, after: float | None
) -> None:
    """Draw training loss (nats a token) over optimizer steps, with held-out loss at both ends."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, label="training", linewidth=1)
    if before is not None and after is not None and steps:
        axes.plot([0, steps[-1]], [before, after], "o--", label="held out")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss, nats a token")
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    with atomic_write(paths.loss_plot) as handle:
        handle.write(buffer.getvalue())


def write_card(paths: RunPaths, facts: dict[str, Any]) -> None:
    """Write the model card of a run."""
    write_text(paths.card, _CARD.format(**facts))
