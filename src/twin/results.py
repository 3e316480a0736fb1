"""What each step returns, and the object that ``--json`` prints for it. The keys are a contract with other programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from twin.progress import peak_rss_bytes
from twin.records import Example
from twin.runs import DatasetPaths, RunPaths


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote.

    Args:
        person: whose twin it is for.
        paths: the files.
        train, val: rows to learn from and held out.
        dropped: what was left out, by reason.
        kinds: the rows kept, by where they come from.
        redacted: private values replaced, by kind.
        reserved: memories kept out of everything, for evaluation.
        closest: Jaccard similarity of the closest pair of rows across the split; None: none was found alike.
        closest_rows: the ids of that pair, the training row first.
        problems: sentences about input that could be used in part or not at all.
        seconds: how long it took.
    """

    person: str
    paths: DatasetPaths
    train: int
    val: int
    dropped: dict[str, int]
    kinds: dict[str, int]
    redacted: dict[str, int]
    reserved: int
    closest: float | None
    closest_rows: tuple[str, ...]
    problems: tuple[str, ...]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Return the object of ``--json``."""
        return {
            "person": self.person,
            "rows": {"total": self.train + self.val, "train": self.train, "val": self.val, "kinds": self.kinds},
            "dropped": self.dropped,
            "redacted": self.redacted,
            "reserved_memories": self.reserved,
            "closest_across_split": self.closest,
            "closest_rows": list(self.closest_rows),
            "problems": list(self.problems),
            "paths": {"full": str(self.paths.full), "train": str(self.paths.train), "val": str(self.paths.val)},
            "seconds": round(self.seconds, 3),
            "peak_rss_bytes": peak_rss_bytes(),
        }


@dataclass(frozen=True, slots=True)
class Masked:
    """A sample as text: ``context``, then what is ``learned``, each with its number of tokens.

    ``turns_cut`` is how many of the oldest turns are not in it.
    """

    id: str
    kind: str
    context: str
    learned: str
    context_tokens: int
    learned_tokens: int
    turns_cut: int

    def as_json(self) -> dict[str, Any]:
        """Return an entry of ``mask`` in the object of ``--json``."""
        return {
            "id": self.id,
            "kind": self.kind,
            "pieces": [{"text": self.context, "learned": False}, {"text": self.learned, "learned": True}],
            "tokens": {"context": self.context_tokens, "learned": self.learned_tokens},
            "turns_cut": self.turns_cut,
        }


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """A finished run: its files, what ``run.json`` holds, the lines of ``metrics.jsonl``, and samples as text."""

    paths: RunPaths
    record: dict[str, Any]
    logs: tuple[dict[str, float | int | None], ...] = ()
    mask: tuple[Masked, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the object of ``--json``."""
        counts = {key: self.record["dataset"][key] for key in ("samples", "shortened", "too_long")}
        counts["unwritable"] = self.record["mask"]["unwritable"]
        mask = {"mask": [one.as_json() for one in self.mask]} if self.mask else {}
        about = {"adapter": str(self.paths.root), "base_model": self.record["base_model"]}
        earlier = {"earlier": self.record["earlier"]} if "earlier" in self.record else {}
        return {**about, **counts, **self.record["result"], **earlier, **mask}


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
class Checked:
    """What the gate passed: for the adapter and each file, what was compared and the outcome in words."""

    target: str
    family: str
    checks: dict[str, dict[str, str]]

    def as_json(self) -> dict[str, Any]:
        """Return the object of ``--json``."""
        return asdict(self)


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
class AppEnv:
    """What was set in the app's ``.env``, or would be.

    Args:
        file: the file itself, where a link led to it.
        changed: the keys that got another value; empty where it said all of it already.
        repeated: the keys that stand there more than once: the last one counts.
        backup: the copy of the old file; None where nothing was written.
    """

    file: str
    changed: tuple[str, ...]
    repeated: tuple[str, ...]
    backup: str | None


@dataclass(frozen=True, slots=True)
class Registered:
    """A model that Ollama serves, checked live; ``env`` is None where no ``.env`` of the app was named."""

    model: str
    host: str
    created: bool
    adapter: str
    gguf: str
    checks: dict[str, str]
    env: AppEnv | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the object of ``--json``."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class HandedOver:
    """A GGUF for another server than Ollama: what was checked, and what is left to do there, a line each."""

    model: str
    to: str
    adapter: str
    gguf: str
    system: str
    parameters: dict[str, Any]
    stops: list[str]
    checks: dict[str, str]
    todo: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the object of ``--json``."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What ``run`` would do: the rows, which steps were done before, what to the app's ``.env``, and which steps.

    ``exported`` is None where the export is left out.
    """

    exported: Exported | None
    done_before: tuple[str, ...]
    env: AppEnv | None = None
    steps: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the object of ``--json``."""
        env = asdict(self.env) if self.env else None
        exported = self.exported.as_json() if self.exported else None
        return {"export": exported, "done_before": list(self.done_before), "env": env, "steps": list(self.steps)}


@dataclass(frozen=True, slots=True)
class Whole:
    """What ``run`` did; ``survival`` is empty when no conversation is held out, ``env`` None without an ``.env``."""

    name: str
    paths: RunPaths
    seconds: dict[str, float | None]
    survival: dict[str, Any]
    registered: bool
    note: str
    env: AppEnv | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the object of ``--json``; a step's seconds are null when it was skipped."""
        return {
            "name": self.name,
            "adapter": str(self.paths.root),
            "steps": self.seconds,
            "likelihood": self.survival,
            "registered": self.registered,
            "note": self.note,
            "env": asdict(self.env) if self.env else None,
            "peak_rss_bytes": peak_rss_bytes(),
        }


@dataclass(frozen=True, slots=True)
class Seen:
    """What a brain holds, and what an export would make of it; the fields are those of ``Exported``."""

    person: str
    counts: dict[str, Any]
    memories: int
    journals: int
    train: int
    val: int
    kinds: dict[str, int]
    dropped: dict[str, int]
    redacted: dict[str, int]
    reserved: int
    problems: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the object of ``--json``."""
        rows = {"total": self.train + self.val, "train": self.train, "val": self.val, "kinds": self.kinds}
        return {
            "person": self.person,
            **self.counts,
            "memories": self.memories,
            "journals": self.journals,
            "rows": rows,
            "dropped": self.dropped,
            "redacted": self.redacted,
            "reserved_memories": self.reserved,
            "problems": list(self.problems),
        }


@dataclass(frozen=True, slots=True)
class Previewed:
    """Some rows, or what was left out for one reason: where it stood, and its text."""

    person: str
    rows: tuple[Example, ...]
    listed: tuple[tuple[str, str], ...]
    dropped: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        """Return the object of ``--json``."""
        rows = [{"id": row.id, "kind": row.kind, "turns": [turn._asdict() for turn in row.turns]} for row in self.rows]
        listed = [{"where": where, "text": text} for where, text in self.listed]
        return {"person": self.person, "rows": rows, "listed": listed, "dropped": self.dropped}


@dataclass(frozen=True, slots=True)
class Forgot:
    """What was hidden.

    Args:
        what: the tombstone, in words.
        messages: how many messages it hides.
        others: how many memories and journal entries it hides.
        dataset: the folder of the dataset that is exported again; None where there is none.
        exported: the new dataset; None where there was none, or nothing was done.
        made: runs that learned from what is gone, each with ``adapter``, ``gguf``, ``models``, and ``certain``: False
            where the run does not say what it learned from.
    """

    what: str
    messages: int
    others: int
    dataset: Path | None
    exported: Exported | None
    made: tuple[dict[str, Any], ...]

    def as_json(self) -> dict[str, Any]:
        """Return the object of ``--json``."""
        return {
            "forgotten": self.what,
            "messages": self.messages,
            "memories_and_journals": self.others,
            "dataset": str(self.dataset) if self.dataset else None,
            "export": self.exported.as_json() if self.exported else None,
            "made_from_it": list(self.made),
        }
