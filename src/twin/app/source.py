"""What is served, as the pipeline hands it in: records and callables, so that ``app`` needs no other feature."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twin.app.contract import ExportAsk, RowFormat
from twin.records import Conversation, Memory, Personality


@dataclass(frozen=True, slots=True)
class ExportedFiles:
    """A dataset that was written.

    Args:
        train_examples, val_examples: how many rows each part has.
        full, train, val: the files: all rows, and the two parts.
    """

    train_examples: int
    val_examples: int
    full: Path
    train: Path
    val: Path


@dataclass(frozen=True, slots=True)
class BrainSource:
    """What is served; the pipeline makes it. Each callable may be called from several threads, ``export`` from one.

    Args:
        person: whose brain it is.
        personality: how they speak.
        memories: what is known of them.
        conversations: reads all conversations anew.
        export: writes a dataset.
        preview: returns the first rows of a format, at most so many, as an export would write them.
    """

    person: str
    personality: Personality
    memories: Sequence[Memory]
    conversations: Callable[[], Iterable[Conversation]]
    export: Callable[[ExportAsk], ExportedFiles]
    preview: Callable[[RowFormat, int], Sequence[Mapping[str, Any]]]
