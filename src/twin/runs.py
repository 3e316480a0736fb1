"""Every path of a project, and what a run says of itself.

A project is the folder ``twin`` is run in: ``brain/`` in, ``data/`` and ``adapters/NAME/`` out. Nothing else in the
code joins these names.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from twin.errors import UsageError, file_errors
from twin.files import file_digest, read_json, write_json

# What later steps read of run.json.
_RECORD_KEYS = ("base_model", "base_hub_id", "family", "system_prompt", "result", "plan")
_PLAN_KEYS = ("license", "max_length", "num_ctx", "temperature")
_RECORD_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("base_model", "base_hub_id", "family", "system_prompt", "license"), str),
    **dict.fromkeys(("max_length", "num_ctx"), int),
    "temperature": (int, float), "plan": dict, "result": dict,
}  # fmt: skip
METRICS = "metrics.jsonl"  # in the folder of checkpoints while it grows, then in the run's
_CHECKPOINT_JOB = "job.json"
_CHECKPOINT_STATE = "trainer_state.json"  # transformers writes it last
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")


def cache_dir() -> Path:
    """Return twin's folder in the user's cache (base models, llama.cpp's converter); ``TWIN_CACHE`` moves it."""
    return Path(os.environ.get("TWIN_CACHE") or user_cache_path("twin-llm"))


@dataclass(frozen=True, slots=True)
class DatasetPaths:
    """The files of one export."""

    root: Path

    @property
    def full(self) -> Path:
        """All rows, the validation rows included."""
        return self.root / "finetune_dataset.jsonl"

    @property
    def train(self) -> Path:
        """Rows to learn from."""
        return self.root / "train.jsonl"

    @property
    def val(self) -> Path:
        """Held-out rows, never trained on."""
        return self.root / "val.jsonl"

    @property
    def reserved(self) -> Path:
        """Memories kept out of every row and prompt, for evaluation."""
        return self.root / "reserved.jsonl"

    @property
    def report(self) -> Path:
        """Counts, dropped rows by reason, provenance."""
        return self.root / "dataset.json"

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them."""
        return self.full, self.train, self.val, self.reserved, self.report


@dataclass(frozen=True, slots=True)
class RunPaths:
    """The files of one run, ``adapters/NAME``."""

    root: Path

    @property
    def name(self) -> str:
        """The run's name, which is its folder's."""
        return self.root.name

    @property
    def adapter_config(self) -> Path:
        """PEFT's description of the adapter."""
        return self.root / "adapter_config.json"

    @property
    def adapter_weights(self) -> Path:
        """The adapter itself."""
        return self.root / "adapter_model.safetensors"

    @property
    def record(self) -> Path:
        """What was run: every setting, version, figure. Written last: a run without it is unfinished."""
        return self.root / "run.json"

    @property
    def chat_template(self) -> Path:
        """The Jinja of training, where transformers looks for it."""
        return self.root / "chat_template.jinja"

    @property
    def metrics(self) -> Path:
        """One JSON object a logged step."""
        return self.root / METRICS

    @property
    def loss_plot(self) -> Path:
        """The loss over steps."""
        return self.root / "loss.png"

    @property
    def system_prompt(self) -> Path:
        """The system prompt as plain text, for servers that have to be sent it."""
        return self.root / "system.txt"

    @property
    def card(self) -> Path:
        """The model card."""
        return self.root / "README.md"

    @property
    def tensorboard(self) -> Path:
        """What TensorBoard reads, where it was asked for."""
        return self.root / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """The trainer's checkpoints, while it runs."""
        return self.root / "checkpoints"

    def gguf_record(self, quantization: str) -> Path:
        """Return the file that says which adapter a GGUF was made of."""
        return self.root / f"model-{quantization}.json"

    @property
    def modelfile(self) -> Path:
        """What ``ollama create -f`` would read."""
        return self.root / "Modelfile"

    @property
    def registered(self) -> Path:
        """Which model of which server ``twin run`` registered."""
        return self.root / "registered.json"

    @property
    def models(self) -> Path:
        """The models that were registered from this run, and where."""
        return self.root / "models.json"

    @property
    def steps(self) -> Path:
        """Fingerprints of what each step of ``twin run`` read and wrote."""
        return self.root / "steps.json"

    @property
    def likelihood(self) -> Path:
        """Held-out log-likelihoods of base and twin."""
        return self.root / "likelihood.json"

    def gguf(self, quantization: str) -> Path:
        """Return the model file of one quantization."""
        return self.root / f"model-{quantization}.gguf"


def forgotten_file() -> Path:
    """Return the project's file of tombstones: what of the brain is hidden."""
    return Path("forgotten.json")


def remember_model(paths: RunPaths, model: str, host: str) -> None:
    """Note in a run's folder that a model was registered from it."""
    known = registered_models(paths)
    if {"model": model, "host": host} not in known:
        write_json(paths.models, {"models": [*known, {"model": model, "host": host}]})


def registered_models(paths: RunPaths) -> list[dict[str, str]]:
    """Return the models that were registered from a run; they may have been removed since.

    Raises:
        UsageError: the file was changed to something else.
    """
    models = read_json(paths.models).get("models", []) if paths.models.exists() else []
    named = isinstance(models, list) and all(
        isinstance(one, dict) and all(isinstance(one.get(key), str) for key in ("model", "host")) for one in models
    )
    if not named:
        raise UsageError(f"'{paths.models}' is no list of models.", "Mend it, or remove it: ollama list names them.")
    return models


def all_runs(root: Path = Path("adapters")) -> list[RunPaths]:
    """Return every run with an adapter, a record or checkpoints, by name: one that was stopped has learned too."""
    learned = ("*/adapter_config.json", "*/run.json", "*/checkpoints/checkpoint-*")
    found = {path.relative_to(root).parts[0] for pattern in learned for path in root.glob(pattern)}
    return [RunPaths(root / name) for name in sorted(found)]


def has_checkpoints(paths: RunPaths) -> bool:
    """Say whether a training left checkpoints: it was stopped, and the run's record is not of it."""
    return any(paths.checkpoints.glob("checkpoint-*"))


def run_paths(name: str, root: Path = Path("adapters")) -> RunPaths:
    """Return the paths of the run called ``name``, checking the name before it becomes a path.

    Raises:
        UsageError: a name with characters that Ollama or a file system would refuse.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"'{name}' can't be a model's name.", "Use letters, digits, '-', '_' and '.', 80 at most.")
    return RunPaths(root / name)


def find_adapter(where: Path) -> RunPaths:
    """Return the run in folder ``where``.

    Raises:
        UsageError: no such folder, or no adapter in it.
    """
    paths = RunPaths(where)
    if not where.is_dir():
        raise UsageError(f"There is no adapter folder '{where}'.", "Train one: twin train --preset smollm2-135m")
    for needed in (paths.adapter_config, paths.adapter_weights):
        if not needed.is_file():
            raise UsageError(f"'{where}' holds no adapter: {needed.name} is missing.", "Train one: twin train")
    return paths


def newest_adapter(root: Path = Path("adapters")) -> RunPaths:
    """Return the run that finished last.

    Raises:
        UsageError: no finished run.
    """
    records = sorted(root.glob("*/run.json"), key=lambda path: path.stat().st_mtime)
    if not records:
        raise UsageError(f"There is no finished run in '{root}'.", "Train one: twin train --preset smollm2-135m")
    return find_adapter(records[-1].parent)


def find_checkpoint(resume_from: str | None, paths: RunPaths) -> Path | None:
    """Return the checkpoint to go on from; None to start.

    Args:
        resume_from: a checkpoint folder, ``auto`` for the run's newest, or None.
        paths: of the run.

    Raises:
        UsageError: there is none.
    """
    if resume_from is None:
        return None
    if resume_from != "auto":
        if not (Path(resume_from) / _CHECKPOINT_STATE).is_file():
            raise UsageError(
                f"'{resume_from}' is no checkpoint.", "Name a folder checkpoint-N, or use --resume-from auto."
            )
        return Path(resume_from)
    whole = [
        folder
        for folder in paths.checkpoints.glob("checkpoint-*")
        if folder.name.rpartition("-")[2].isdigit() and (folder / _CHECKPOINT_STATE).is_file()
    ]
    if not whole:
        raise UsageError(
            f"There is no checkpoint in '{paths.checkpoints}' to resume from.", "Leave --resume-from out to start."
        )
    return max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]))


def bind_checkpoints(paths: RunPaths, checkpoint: Path | None, job: Mapping[str, Any]) -> None:
    """Say in the run's checkpoint folder what they are of; older ones go, unless one of them is gone on from.

    Args:
        paths: of the run.
        checkpoint: what to go on from, or None.
        job: what the weights hang on: settings, base model, digests of the rows.

    Raises:
        UsageError: the checkpoint is of something else, which is named.
    """
    if checkpoint is None:
        shutil.rmtree(paths.checkpoints, ignore_errors=True)
    else:
        beside = checkpoint.parent / _CHECKPOINT_JOB
        made = read_json(beside) if beside.exists() else {}
        for key in job:
            if made.get(key) != job[key]:
                raise UsageError(
                    f"The checkpoint '{checkpoint}' was made with another {key.replace('_', ' ')}.",
                    "Use the settings and rows that it was made with, or leave --resume-from out to start again.",
                )
    with file_errors(paths.checkpoints, "write"):
        paths.checkpoints.mkdir(parents=True, exist_ok=True, mode=0o700)  # they hold the person's weights
    write_json(paths.checkpoints / _CHECKPOINT_JOB, job)


def matching_checkpoint(paths: RunPaths, job: Mapping[str, Any]) -> Path | None:
    """Return the run's newest checkpoint if it is of this very ``job`` (see ``bind_checkpoints``), else None."""
    beside = paths.checkpoints / _CHECKPOINT_JOB
    try:
        return find_checkpoint("auto", paths) if beside.exists() and read_json(beside) == job else None
    except UsageError:  # none is whole
        return None


def read_record(paths: RunPaths) -> dict[str, Any]:
    """Return what a finished run says of itself.

    Raises:
        UsageError: no record, or one without what later steps need.
    """
    if not paths.record.exists():
        raise UsageError(f"There is no run.json in '{paths.root}'.", "Train with twin, which writes it: twin train")
    record = read_json(paths.record)
    plan = record.get("plan")
    for table, keys in ((record, _RECORD_KEYS), (plan if isinstance(plan, dict) else {}, _PLAN_KEYS)):
        for key in keys:
            if key not in table:
                raise UsageError(f"'{paths.record}' lacks '{key}'.", "Train again: twin train")
            if not isinstance(table[key], _RECORD_TYPES.get(key, object)):
                raise UsageError(f"'{paths.record}' has an odd '{key}'.", "Train again: twin train")
    return record


def adapter_digests(paths: RunPaths) -> dict[str, str]:
    """Return the SHA-256 of each file of a run's adapter."""
    return {path.name: file_digest(path) for path in (paths.adapter_config, paths.adapter_weights)}


def current_gguf(paths: RunPaths, quantization: str) -> str | None:
    """Return the SHA-256 of the run's GGUF when it is there and was made of the adapter that is there now."""
    file, beside = paths.gguf(quantization), paths.gguf_record(quantization)
    if not (file.is_file() and beside.is_file()):
        return None
    made = read_json(beside)
    if made.get("adapter") != adapter_digests(paths):
        return None
    sha256 = file_digest(file)
    return sha256 if made.get("sha256") == sha256 else None
