"""The bodies of the served API, as its OpenAPI page shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from twin.app.contract import MOST_MEMORIES, RowFormat


def _integral(value: Any) -> Any:
    """Return 3 for 3.0, which is an integer to JSON Schema."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, Field(ge=0)]
# No "date-time" of JSON Schema, which has a zone: chats tell wall-clock time.
WallClock = Annotated[str, Field(description="ISO 8601; without a zone it is the chat's own wall clock")]


class Asked(BaseModel):
    """A request's body: a text is no number, and an unknown field is refused, not passed over."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ExportBody(Asked):
    """What a dataset should be."""

    format: RowFormat = "chatml"
    include_system: bool = Field(True, description="put the system prompt into the rows")
    deduplicate: bool = Field(True, description="drop near-duplicate rows")
    quality_filter: bool = Field(True, description="drop rows without words of their own")
    validation_split: float = Field(0.1, ge=0, le=0.5, description="share held out, 0 to 0.5")
    shuffle: bool = Field(True, description="mix the rows' order")


class PreviewBody(Asked):
    """Which rows to show."""

    format: RowFormat = "chatml"
    limit: Annotated[int, BeforeValidator(_integral)] = Field(5, ge=1, le=20, description="how many rows")


class MemoriesQuery(BaseModel):
    """How many memories to list."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(50, ge=1, le=MOST_MEMORIES)


class SplitExport(BaseModel):
    """A dataset in two parts; the paths are file names."""

    success: Literal[True] = True
    format: RowFormat
    total_examples: Count
    train_examples: Count
    val_examples: Count
    train_path: str
    val_path: str
    full_path: str


class WholeExport(BaseModel):
    """A dataset in one file, of which ``path`` is the name."""

    success: Literal[True] = True
    format: RowFormat
    total_examples: Count
    path: str


class NoExport(BaseModel):
    """There was nothing to write."""

    success: Literal[False] = False
    format: RowFormat
    total_examples: Literal[0] = 0
    error: str


class Stats(BaseModel):
    """What the brain holds."""

    person: str
    conversations: Count
    exchanges: Count
    memories: Count
    memories_by_category: dict[str, Count]


class Analysis(BaseModel):
    """What the exchanges are like; lengths are in characters, times are the chats' own wall clock."""

    exchanges: Count
    without_context: Count = Field(description="the person spoke first")
    mean_context_characters: float = Field(ge=0)
    mean_response_characters: float = Field(ge=0)
    longest_response_characters: Count
    first: WallClock | None
    last: WallClock | None


class FormatInfo(BaseModel):
    """One format of rows."""

    name: RowFormat
    description: str


class Formats(BaseModel):
    """The formats that an export can have."""

    formats: list[FormatInfo]


class Preview(BaseModel):
    """Rows as an export would write them."""

    format: RowFormat
    examples: list[dict[str, Any]]


class Pair(BaseModel):
    """An example of how the person answers."""

    context: str
    response: str


class Profile(BaseModel):
    """How the person speaks. What twin does not measure is empty or null."""

    name: str
    common_phrases: list[str]
    emoji_patterns: list[str]
    vocabulary: list[str] = []
    avg_message_length: float | None = None
    typing_quirks: list[str]
    tone_markers: list[str]
    facts: list[str]
    response_examples: list[Pair]


class TrainingExample(BaseModel):
    """What was said to the person and what they replied; ``timestamp`` is null where it is not known."""

    context: str
    response: str
    source: str
    timestamp: WallClock | None


class BrainExport(BaseModel):
    """The whole brain."""

    format_version: Literal["1.0"] = "1.0"
    app_name: str = "twin"
    exported_at: datetime
    metadata: dict[str, str]
    personality_profile: Profile
    training_examples: list[TrainingExample]


class CoreMemory(BaseModel):
    """One memory."""

    id: int
    memory: str
    category: str
    importance: float
    created_at: WallClock | None


class MemoryStats(BaseModel):
    """All memories, the ones beyond the limit too."""

    total: Count
    by_category: dict[str, Count]


class CoreMemories(BaseModel):
    """The most important memories first."""

    memories: list[CoreMemory]
    stats: MemoryStats


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str
