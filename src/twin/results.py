"""What each step returns, and the object that ``--json`` prints for it. The keys are a contract with other programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import floor
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
    """GGUF files of a run; each has ``gguf``, ``quantization``, ``bytes`` and, once made, ``sha256`` and ``checks``.

    ``foreseen_seconds`` is what a dry run says that making them takes.
    """

    paths: RunPaths
    files: tuple[dict[str, Any], ...]
    seconds: float
    foreseen_seconds: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the object of ``--json``."""
        foreseen = {} if self.foreseen_seconds is None else {"foreseen_seconds": round(self.foreseen_seconds, 1)}
        figures = {"seconds": round(self.seconds, 3), "peak_rss_bytes": peak_rss_bytes()}
        return {"files": list(self.files), **foreseen, **figures}


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
class Change:
    """The change of the mean loss from one model to another, in nats a token; below 0 is better.

    Args:
        before: token-mean loss of the first model.
        after: token-mean loss of the second.
        change: after - before.
        low: lower end of the 95 % interval of the change; None with one conversation, which can't be resampled.
        high: upper end; None as well.
        conversations: how many were resampled.
        replies: how many replies were scored.
    """

    before: float
    after: float
    change: float
    low: float | None
    high: float | None
    conversations: int
    replies: int

    @property
    def nothing(self) -> bool:
        """Say whether it may be no gain at all: its interval reaches 0, or without one the change itself does."""
        return not (self.change if self.high is None else self.high) < 0  # nor is what is no number a gain


@dataclass(frozen=True, slots=True)
class Answered:
    """A held-out prompt with the answers of base, twin and person."""

    prompt: str
    base: str
    twin: str
    person: str


@dataclass(frozen=True, slots=True)
class Survival:
    """Held-out loss of the twin's GGUF against the base model's GGUF of the same quantization, and some answers.

    Args:
        reference: the change by the adapter itself, added to the base model before its quantization.
        gguf: the change between the two files, in nats a token, with its interval.
        kept: what share of the first change the second one is.
        kept_low: lower end of its 95 % interval; None with one conversation, which can't be resampled.
        kept_high: upper end; None as well.
        samples: held-out prompts with the answers of base, twin and person.
        adapter: the change that training measured on the adapter, on all that is held out.
        quantization: of the two files.
        unquantized: what the base model before its quantization was: ``f16``, or ``q8_0`` where memory was short.
        gguf_sha256: the twin's file.
        refused: why the twin is not served; empty where it passed.
    """

    reference: Change
    gguf: Change
    kept: float
    kept_low: float | None
    kept_high: float | None
    samples: tuple[Answered, ...]
    adapter: Change | None = None
    quantization: str = ""
    unquantized: str = ""
    gguf_sha256: str = ""
    refused: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return what ``likelihood.json`` holds."""
        return asdict(self)

    def share(self) -> str:
        """Return what was kept, in words."""
        if self.kept_low is None or self.kept_high is None:
            interval = "no interval from one conversation"
        else:
            interval = f"95 % interval {floor(self.kept_low * 100)} to {floor(self.kept_high * 100)}"
        return f"{floor(self.kept * 100)} % of the adapter's gain ({interval})"


def read_survival(value: dict[str, Any]) -> Survival | None:
    """Return what a ``likelihood.json`` holds; None where it is not as this version writes it, or was edited."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(Survival).validate_python(value)
    except ValidationError:
        return None


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
    """What ``run`` did; ``survival`` is None when no conversation is held out, ``env`` None without an ``.env``."""

    name: str
    paths: RunPaths
    seconds: dict[str, float | None]
    survival: Survival | None
    registered: bool
    note: str
    env: AppEnv | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the object of ``--json``; a step's seconds are null when it was skipped."""
        return {
            "name": self.name,
            "adapter": str(self.paths.root),
            "steps": self.seconds,
            "likelihood": self.survival.as_json() if self.survival else {},
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
