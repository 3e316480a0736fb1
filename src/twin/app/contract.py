"""What both ends of the API say to one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RowFormat = Literal["chatml", "alpaca", "sharegpt", "raw"]
FORMATS: dict[RowFormat, str] = {
    "chatml": "messages with role and content",
    "alpaca": "system, instruction, input, output and history",
    "sharegpt": "conversations with from and value",
    "raw": "text: speakers' names and their words",
}
ROLES = ("admin", "owner")  # whose tokens may export
MOST_MEMORIES = 100_000  # of one answer


@dataclass(frozen=True, slots=True)
class ExportAsk:
    """The body of ``POST /api/finetune/export``.

    Args:
        format: how the rows are written.
        include_system: put the system prompt into the rows.
        deduplicate: drop near-duplicate rows.
        quality_filter: drop rows without words of their own.
        validation_split: share held out, 0 to 0.5; 0 asks for one file.
        shuffle: mix the rows' order.
    """

    format: RowFormat = "chatml"
    include_system: bool = True
    deduplicate: bool = True
    quality_filter: bool = True
    validation_split: float = 0.1
    shuffle: bool = True
