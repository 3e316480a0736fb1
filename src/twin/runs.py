"""Every path of a project, and what a run says of itself.

A project is the folder ``twin`` is run in: ``brain/`` in, ``data/`` and ``adapters/NAME/`` out. Nothing else in the
code joins these names.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from platformdirs import user_cache_path

from twin.errors import UsageError, file_errors
from twin.files import file_digest, read_json, write_json

# What later steps read of run.json.
_RECORD_KEYS = ("base_model", "base_hub_id", "family", "system_prompt", "result", "plan")
_PLAN_KEYS = ("license", "max_length", "num_ctx", "temperature")
_PLAN_NUMBERS, _MOST = ("max_length", "num_ctx"), 1 << 24  # tokens
_RECORD_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("base_model", "base_hub_id", "family", "system_prompt", "license"), str),
    **dict.fromkeys(("max_length", "num_ctx"), int),
    "temperature": (int, float), "plan": dict, "result": dict,
}  # fmt: skip
METRICS = "metrics.jsonl"  # in the folder of checkpoints while it grows, then in the run's
_CHECKPOINT_JOB = "job.json"
_CHECKPOINT_DIGESTS = "digests.json"  # of a checkpoint's files: what makes it whole
_BEGUN = "begun_with"
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
    def learned(self) -> Path:
        """Digests of the rows that were learned."""
        return self.root / "learned.json"

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
    def adapter_gguf(self) -> Path:
        """The adapter alone, for llama.cpp to add to a base model."""
        return self.root / "adapter.gguf"

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


def seal_checkpoint(folder: Path) -> None:
    """Write down the digests of a checkpoint's files, and wait until all of it is on the disk: now it is whole."""
    digests = {}
    for file in sorted(folder.iterdir()):
        with file_errors(file, "write"), file.open("rb+") as handle:
            os.fsync(handle.fileno())
        digests[file.name] = file_digest(file)
    write_json(folder / _CHECKPOINT_DIGESTS, digests)


def _not_whole(folder: Path) -> str | None:
    """Return the name of a file of a checkpoint that is not as it was written; None: all are."""
    sealed = folder / _CHECKPOINT_DIGESTS
    if not sealed.is_file():
        return sealed.name
    for name, digest in read_json(sealed).items():
        if not (folder / name).is_file() or file_digest(folder / name) != digest:
            return name
    return None


def newest_checkpoint(checkpoints: Path) -> Path | None:
    """Return the newest whole checkpoint in a folder of them, or None."""
    folders = [folder for folder in checkpoints.glob("checkpoint-*") if checkpoint_step(folder) is not None]
    newest_first = sorted(folders, key=lambda folder: checkpoint_step(folder) or 0, reverse=True)
    return next((folder for folder in newest_first if _not_whole(folder) is None), None)


def checkpoint_step(folder: Path) -> int | None:
    """Return the optimizer step that a folder ``checkpoint-N`` is of; None where its name is another."""
    found = re.fullmatch(r"checkpoint-(\d+)", folder.name, re.ASCII)
    return int(found[1]) if found else None


def is_checkpoint(folder: Path) -> bool:
    """Say whether a folder is a checkpoint of a training of twin's."""
    return (folder.parent / _CHECKPOINT_JOB).is_file() or (folder / _CHECKPOINT_DIGESTS).is_file()


def find_checkpoint(resume_from: str | None, paths: RunPaths) -> Path | None:
    """Return the checkpoint to go on from; None to start.

    Args:
        resume_from: a checkpoint folder, ``auto`` for the run's newest whole one, or None.
        paths: of the run.

    Raises:
        UsageError: there is none, or it is not as it was written.
    """
    if resume_from is None:
        return None
    if resume_from != "auto":
        folder = Path(resume_from)
        wrong = _not_whole(folder)
        if wrong == _CHECKPOINT_DIGESTS:
            raise UsageError(
                f"'{resume_from}' is no checkpoint.", "Name a folder checkpoint-N, or use --resume-from auto."
            )
        if wrong:
            raise UsageError(
                f"'{resume_from}' is no whole checkpoint: its '{wrong}' is not as it was written.",
                "Use --resume-from auto, which takes the newest whole one, or leave it out to start again.",
            )
        return folder
    newest = newest_checkpoint(paths.checkpoints)
    if newest is None:
        raise UsageError(
            f"There is no checkpoint in '{paths.checkpoints}' to resume from.", "Leave --resume-from out to start."
        )
    return newest


def bind_checkpoints(
    paths: RunPaths, checkpoint: Path | None, job: Mapping[str, Any], begin: Callable[[], Mapping[str, Any]]
) -> dict[str, Any]:
    """Say in the run's checkpoint folder what they are of; all others go, but for the one that is gone on from.

    Args:
        paths: of the run.
        checkpoint: what to go on from, or None.
        job: what the weights hang on: settings, base model, digests of the rows.
        begin: called where a run begins: what it is begun with (dtype, threads), kept for all that go on from it.

    Returns:
        What the run was begun with.

    Raises:
        UsageError: the checkpoint is of something else, which is named, or of another program.
    """
    begun: Any = None
    if checkpoint is not None:
        beside = checkpoint.parent / _CHECKPOINT_JOB
        made = read_json(beside) if beside.exists() else {}
        begun = made.get(_BEGUN)
        if not isinstance(begun, dict):
            raise UsageError(
                f"There is no '{beside}', so nothing says what '{checkpoint}' was made of.",
                "Name a checkpoint where twin wrote it, or leave --resume-from out to start again.",
            )
        for key in job:
            if made.get(key) != job[key]:
                values = (made.get(key), job[key])
                shown = all(isinstance(value, str | int | float) for value in values)
                raise UsageError(
                    f"The checkpoint '{checkpoint}' was made with another {key.replace('_', ' ')}"
                    + (f" ({values[0]}, and here {values[1]})." if shown else "."),
                    "Use the settings and rows that it was made with, or leave --resume-from out to start again.",
                )
    begun = begin() if begun is None else begun  # it may refuse, and then nothing has gone
    with file_errors(paths.checkpoints, "write"):
        paths.checkpoints.mkdir(parents=True, exist_ok=True, mode=0o700)  # they hold the person's weights
        # Half-written ones of killed processes too, and nothing else: the folder may be a link from elsewhere.
        for other in [*paths.checkpoints.glob("checkpoint-*"), *paths.checkpoints.glob(".checkpoint.*.partial")]:
            if other.is_dir() and not (checkpoint and other.samefile(checkpoint)):
                shutil.rmtree(other)
    write_json(paths.checkpoints / _CHECKPOINT_JOB, {**job, _BEGUN: begun})
    return dict(begun)


def begun_backend(paths: RunPaths, checkpoint: Path | None, go_on: bool) -> str | None:
    """Return the backend that a run was begun with, as its ``job.json`` says; None where nothing does.

    Args:
        paths: of the run.
        checkpoint: what to go on from, where it was named.
        go_on: take up the run's own newest checkpoint otherwise.
    """
    if not (checkpoint or go_on):
        return None
    beside = (checkpoint.parent if checkpoint else paths.checkpoints) / _CHECKPOINT_JOB
    begun = read_json(beside).get(_BEGUN) if beside.is_file() else None
    name = begun.get("backend") if isinstance(begun, dict) else None
    return name if isinstance(name, str) else None


def matching_checkpoint(paths: RunPaths, job: Mapping[str, Any]) -> Path | None:
    """Return the run's newest checkpoint if it is of this very ``job`` (see ``bind_checkpoints``), else None."""
    beside = paths.checkpoints / _CHECKPOINT_JOB
    made = read_json(beside) if beside.exists() else {}
    return newest_checkpoint(paths.checkpoints) if {key: made[key] for key in made if key != _BEGUN} == job else None


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
            value = table[key]
            fits = isinstance(value, _RECORD_TYPES.get(key, object))
            if not fits or (key in _PLAN_NUMBERS and (value is True or not 0 < value < _MOST)):
                raise UsageError(f"'{paths.record}' has an odd '{key}'.", "Train again: twin train")
    return record


def val_change(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the change of the held-out loss that a run measured; None where it measured none, or says so oddly."""
    result = record.get("result")
    change = result.get("val_change") if isinstance(result, dict) else None
    if not isinstance(change, dict):
        return None
    told = [change.get(key) for key in ("before", "after", "change", "conversations", "replies")]
    ends = [change.get("low"), change.get("high")]
    told += [] if ends == [None, None] else ends
    return change if all(isinstance(value, int | float) for value in told) else None


def knows_rows(record: Mapping[str, Any], part: str, file: Path) -> bool:
    """Say whether a file of rows, ``train`` or ``val``, is the one that a run knew."""
    told = _rows_told(record, part).get("sha256")
    return os.path.isfile(file) and file_digest(file) == told  # noqa: PTH113 - its name may be anything


def _rows_told(record: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Return what a run's record says of one of its files of rows; {} where it says nothing."""
    dataset = record.get("dataset")
    known = dataset.get(part) if isinstance(dataset, dict) else None
    return known if isinstance(known, dict) else {}


def rows_file(record: Mapping[str, Any], part: str, here: Path | None) -> Path | None:
    """Return the file of rows that a run knew, where it still is as it was; None where it is not.

    Args:
        record: the run's ``run.json``. A path in it is followed inside the project alone: it may come from elsewhere.
        part: ``train`` or ``val``.
        here: where the settings have it.
    """
    told = _rows_told(record, part).get("path")
    recorded = PurePosixPath(told) if isinstance(told, str) and not Path(told).anchor else None
    inside = recorded and not recorded.anchor and ".." not in recorded.parts
    for path in (here, Path(recorded) if recorded and inside else None):
        if path and knows_rows(record, part, path):
            return path
    return None


def portable(path: Path) -> str:
    """Return a path as ``run.json`` has it: relative to the project where it lies inside, with slashes."""
    try:
        return path.absolute().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return str(path)


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
