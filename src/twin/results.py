"""What each step returns, and the object that ``--json`` prints for it. The keys are a contract with other programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from twin.progress import peak_rss_bytes
from twin.runs import DatasetPaths, RunPaths


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote; ``kinds`` counts the rows kept by where they come from."""

    person: str
    paths: DatasetPaths
    train: int
    val: int
    dropped: dict[str, int]
    kinds: dict[str, int]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Return the object of ``--json``."""
        return {
            "person": self.person,
            "rows": {"total": self.train + self.val, "train": self.train, "val": self.val, "kinds": self.kinds},
            "dropped": self.dropped,
            "paths": {"full": str(self.paths.full), "train": str(self.paths.train), "val": str(self.paths.val)},
            "seconds": round(self.seconds, 3),
            "peak_rss_bytes": peak_rss_bytes(),
        }


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """A finished run: its files, and what ``run.json`` holds."""

    paths: RunPaths
    record: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return the object of ``--json``."""
        return {"adapter": str(self.paths.root), "base_model": self.record["base_model"], **self.record["result"]}


@dataclass(frozen=True, slots=True)
class Made:
    """GGUF files of a run; each has ``gguf``, ``quantization`` and, once made, ``bytes`` and ``checks``."""

    paths: RunPaths
    files: tuple[dict[str, Any], ...]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Return the object of ``--json``."""
        return {"files": list(self.files), "seconds": round(self.seconds, 3), "peak_rss_bytes": peak_rss_bytes()}


@dataclass(frozen=True, slots=True)
class Survival:
    """Held-out loss of the twin's GGUF against the base model's GGUF of the same quantization, and some answers.

    Args:
        adapter: the change that training measured on the adapter; None where nothing was held out.
        gguf: the change between the two files, in nats a token, with its interval.
        samples: held-out prompts with the answers of base, twin and person.
    """

    adapter: dict[str, float | None] | None
    gguf: dict[str, float | int | None]
    samples: tuple[dict[str, str], ...]

    def as_json(self) -> dict[str, Any]:
        """Return what ``likelihood.json`` holds."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Registered:
    """A model that Ollama serves, checked live."""

    model: str
    host: str
    created: bool
    adapter: str
    gguf: str
    checks: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """Return the object of ``--json``."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What ``run`` would do: the rows it would learn from, and which steps were done before."""

    exported: Exported
    done_before: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the object of ``--json``."""
        return {"export": self.exported.as_json(), "done_before": list(self.done_before)}


@dataclass(frozen=True, slots=True)
class Whole:
    """What ``run`` did; ``survival`` is empty when no conversation is held out."""

    name: str
    paths: RunPaths
    seconds: dict[str, float | None]
    survival: dict[str, Any]
    registered: bool
    note: str

    def as_json(self) -> dict[str, Any]:
        """Return the object of ``--json``; a step's seconds are null when it was skipped."""
        return {
            "name": self.name,
            "adapter": str(self.paths.root),
            "steps": self.seconds,
            "likelihood": self.survival,
            "registered": self.registered,
            "note": self.note,
            "peak_rss_bytes": peak_rss_bytes(),
        }
