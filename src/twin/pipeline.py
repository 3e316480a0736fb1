"""The five steps, each a call: export, train, gguf, evaluate, register. ``run`` does them in order, once each.

    brain ──export──▶ data/ ──train──▶ adapters/NAME ──gguf──▶ model-q4_k_m.gguf ──register──▶ Ollama

A step leads to its folder: ``brain`` and ``dataset`` for export, ``training``, ``gguf``, ``evaluate``, ``ollama``.
What two features need of one another is put together here and nowhere else. Heavy imports stand inside the functions.
"""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twin import __version__, prompt, runs
from twin.errors import GateError, MachineError, StepError, UsageError, file_errors
from twin.presets import TrainPlan, load_preset, plan_training
from twin.progress import Reporter, peak_rss_bytes
from twin.records import Example, Turn
from twin.runs import DatasetPaths, RunPaths
from twin.settings import Settings
from twin.templates import Family, load_family, render

if TYPE_CHECKING:
    from twin.basemodel import BaseModel
    from twin.chat import Backend
    from twin.training.samples import Sample

DEFAULT_SOURCE = Path("brain")
_VERSIONS = ("torch", "transformers", "peft", "accelerate", "llama-cpp-python", "gguf")
# Asked of every GGUF, besides rows of the person's own: scripts, digits, emoji joined by ZWJ, marks of three grammars.
_PROBES = (
    "Hello there.",
    "½ of 1234, ٣ and 漢字 के साथ",
    '👩‍👩‍👧 "quoted" {{ .System }} \\n """ café\u00a0bar',
    "line one\nline two\n\n  indented",
)


def need(extra: str, *modules: str) -> None:
    """Stop before a step whose packages are not installed.

    Raises:
        MachineError: with the command that installs them.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise MachineError(
            f"This step needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed.",
            f"Install the extra: pip install 'twin-llm[{extra}]'",
        )


def find_sources(sources: Sequence[Path]) -> list[Path]:
    """Return what to read: the sources given, else ``./brain``.

    Raises:
        UsageError: neither is there.
    """
    if sources:
        return list(sources)
    if DEFAULT_SOURCE.exists():
        return [DEFAULT_SOURCE]
    raise UsageError(
        "There is no folder 'brain' here.", "Put your exports into ./brain, or name them: twin export FOLDER FILE"
    )


# ---------------------------------------------------------------- export


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote."""

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


def export(sources: Sequence[Path], settings: Settings, reporter: Reporter, dry_run: bool = False) -> Exported:
    """Brain → dataset.

    Args:
        sources: files and folders; empty: ``./brain``.
        settings: its ``export`` section.
        reporter: told of progress.
        dry_run: count, write nothing.
    """
    from twin import brain, dataset
    from twin.dataset.formats import to_line

    started = time.perf_counter()
    own = settings.export
    found = find_sources(sources)
    with reporter.task("Reading the brain"):
        person = brain.load(found, own.person)
    system = prompt.build(person, own.prompt_tokens)
    with reporter.task("Building rows") as task:
        built = dataset.build(person, system, own, task.advance)
    paths = DatasetPaths(own.output)
    result = Exported(
        person.person,
        paths,
        len(built.train),
        len(built.val),
        built.dropped,
        built.kinds,
        time.perf_counter() - started,
    )
    if dry_run:
        return result
    with runs.exclusive(paths.root):
        with ExitStack() as files:
            full, train_file, val_file = (
                files.enter_context(runs.atomic_write(path)) for path in (paths.full, paths.train, paths.val)
            )
            for rows, part in ((built.train, train_file), (built.val, val_file)):
                for row in rows:
                    line = to_line(row, own.format, person.person)
                    full.write(line)
                    part.write(line)
        report = result.as_json() | {
            "twin": __version__,
            "format": own.format,
            "system_prompt": system.text if own.include_system else "",
            "memories_in_prompt": len(system.memory_ids),
            "sources": [str(source) for source in found],
            "settings": own.model_dump(mode="json"),
            "files": {path.name: runs.file_digest(path) for path in (paths.full, paths.train, paths.val)},
        }
        runs.write_json(paths.report, report)
    return result


# ---------------------------------------------------------------- train


@dataclass(frozen=True, slots=True)
class Rows:
    """What training reads."""

    train: list[Example]
    val: list[Example]
    train_path: Path
    val_path: Path | None
    system: str
    owned: bool


def load_rows(settings: Settings) -> Rows:
    """Read the dataset that ``settings`` name; rows that the validation file holds are never trained on.

    Raises:
        UsageError: no dataset, a broken line, or nothing to learn.
    """
    from twin.dataset.formats import read_rows

    default = DatasetPaths(settings.export.output)
    train_path = settings.train.dataset or default.train
    if not train_path.exists():
        raise UsageError(f"There is no dataset '{train_path}'.", "Make one first: twin export")
    beside = DatasetPaths(train_path.parent)
    val_path = settings.train.validation or (beside.val if beside.val.exists() else None)
    val = list(read_rows(val_path)) if val_path else []
    held_out = {row.id for row in val}
    train_rows = [row for row in read_rows(train_path) if row.id not in held_out]
    if not train_rows:
        raise UsageError(f"'{train_path}' has no rows to learn from.", "Make it again: twin export")
    owned = beside.report.exists()
    if owned:
        system = str(runs.read_json(beside.report).get("system_prompt", ""))
    else:
        first = next((row.turns[0] for row in train_rows if row.turns[0].role == "system"), None)
        system = first.content if first else ""
    return Rows(train_rows, val, train_path, val_path, system, owned)


def _chat_samples(rows: Sequence[Example], tokenizer: Any, family: Family, max_length: int) -> list[Sample]:
    """Return the samples that are measured: replies in conversations."""
    from twin.training.samples import build_samples

    chats = [row for row in rows if row.kind == "chat"]
    return list(build_samples(chats, tokenizer, family, max_length).samples) if chats else []


def load_tokenizer(base: BaseModel) -> Any:
    """Return the base model's tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base.folder, trust_remote_code=False)


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """A finished run."""

    paths: RunPaths
    record: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return the object of ``--json``."""
        return {"adapter": str(self.paths.root), "base_model": self.record["base_model"], **self.record["result"]}


def resolve_run(settings: Settings, output: Path | None) -> RunPaths:
    """Return where the run goes: ``--output``, else ``adapters/NAME``, else ``adapters/PRESET``."""
    if output is not None:
        return runs.run_paths(output.name, output.parent)
    return runs.run_paths(settings.train.name or Path(settings.train.preset).stem)


def preflight(settings: Settings, plan: TrainPlan, where: Path, reporter: Reporter) -> Family:
    """Find what would fail later before anything long starts: packages, template pair, names, converter, disk.

    Returns:
        The template pair of the plan's family.

    Raises:
        MachineError, GateError, UsageError: the first thing that is missing.
    """
    family = load_family(plan.family)
    need("train", "torch", "transformers", "peft", "accelerate")
    parameters = load_preset(settings.train.preset).parameters_billions * 1e9
    runs.need_disk(where, int(parameters * 0.05 + 50e6), "Training")
    if find_spec("llama_cpp"):
        from twin.gguf.converter import find_converter
        from twin.gguf.quantize import check_names

        check_names(settings.gguf.quantization)
        find_converter(settings.gguf.llama_cpp, reporter)
    else:
        reporter.say(
            "llama-cpp-python is not installed: training works, the GGUF step needs pip install 'twin-llm[gguf]'"
        )
    return family


def train(settings: Settings, reporter: Reporter, output: Path | None = None, dry_run: bool = False) -> TrainedRun:
    """Dataset → LoRA adapter in ``adapters/NAME``.

    Args:
        settings: its ``train`` section over the preset.
        reporter: told of progress.
        output: the run's folder, where not ``adapters/NAME``.
        dry_run: resolve and count everything, train nothing.
    """
    started = time.perf_counter()
    plan = plan_training(settings.train, load_preset(settings.train.preset))
    paths = resolve_run(settings, output)
    rows = load_rows(settings)
    family = preflight(settings, plan, paths.root, reporter)
    from twin import basemodel

    base = basemodel.resolve(plan.model, reporter)
    with reporter.task("Loading the training libraries"):
        from twin.training import backend_hf, record
        from twin.training.samples import build_samples, check_vocabulary
    tokenizer = load_tokenizer(base)
    check_vocabulary(tokenizer, family)
    system_tokens = len(tokenizer(rows.system, add_special_tokens=False)["input_ids"])
    if rows.owned and system_tokens > prompt.MAX_TOKENS:
        raise StepError(
            f"The system prompt is {system_tokens} tokens for this model; at most {prompt.MAX_TOKENS} are allowed.",
            f"Set prompt_tokens = {prompt.MAX_TOKENS**2 // system_tokens} in [export] of twin.toml and export again.",
        )
    built = build_samples(rows.train, tokenizer, family, plan.max_length)
    val_samples = _chat_samples(rows.val, tokenizer, family, plan.max_length)
    steps = backend_hf.plan_steps(built.samples, plan)
    facts: dict[str, Any] = {
        "twin": __version__,
        "name": paths.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "base_model": base.name,
        "base_hub_id": base.hub_id,
        "family": family.name,
        "system_prompt": rows.system,
        "system_prompt_tokens": system_tokens,
        "plan": plan.model_dump(),
        "dataset": {
            "train": {
                "path": str(rows.train_path),
                "sha256": runs.file_digest(rows.train_path),
                "rows": len(rows.train),
            },
            "val": (
                {"path": str(rows.val_path), "sha256": runs.file_digest(rows.val_path), "rows": len(rows.val)}
                if rows.val_path
                else None
            ),
            "samples": len(built.samples),
            "shortened": built.shortened,
            "too_long": built.too_long,
        },
        "versions": _versions(),
        "hardware": {"machine": platform.machine(), "system": platform.system(), "python": platform.python_version()},
    }
    if dry_run:
        once = sum(len(pack.input_ids) for packs in steps for pack in packs)
        facts["result"] = {
            "backend": "hf", "device": backend_hf.choose_device(plan.device), "steps": len(steps),
            "tokens": sum(len(sample.input_ids) for sample in built.samples), "unique_tokens": once,
            "seconds": round(time.perf_counter() - started, 3), "peak_rss_bytes": peak_rss_bytes(),
        }  # fmt: skip
        return TrainedRun(paths, facts)
    with runs.exclusive(paths.root), runs.scratch_dir(paths.root) as scratch:
        outcome = backend_hf.train(
            base.folder,
            base.hub_id,
            plan,
            built.samples,
            val_samples,
            paths.checkpoints,
            scratch,
            settings.train.resume_from,
            reporter,
        )
        change = _change(outcome.before, outcome.after)
        facts["result"] = {
            "backend": "hf",
            "device": outcome.device,
            "dtype": outcome.dtype,
            "dtype_reason": outcome.why,
            "execution": "prefix tree: shared beginnings are computed once a step",
            "steps": outcome.steps,
            "train_loss": outcome.train_loss,
            "val_loss": change["after"] if change else None,
            "val_loss_base": change["before"] if change else None,
            "val_change": change,
            "tokens": outcome.tokens,
            "unique_tokens": outcome.unique_tokens,
            "supervised_tokens": outcome.supervised_tokens,
            "tokens_per_second": round(outcome.tokens / outcome.seconds, 1),
            "seconds": round(time.perf_counter() - started, 3),
            "peak_rss_bytes": peak_rss_bytes(),
        }
        _install(paths, scratch, family, facts, outcome, record)
    return TrainedRun(paths, facts)


def _change(before: Sequence[Any], after: Sequence[Any]) -> dict[str, float] | None:
    """Return the change of held-out loss with its interval, or None without held-out rows."""
    from twin.evaluate.likelihood import Scored, compare

    if not before:
        return None

    def scored(scores: Sequence[Any]) -> list[Scored]:
        return [Scored(one.id, one.conversation_id, one.nll, one.tokens) for one in scores]

    return asdict(compare(scored(before), scored(after)))


def _install(paths: RunPaths, scratch: Path, family: Family, facts: dict[str, Any], outcome: Any, record: Any) -> None:
    """Move a finished adapter into place; run.json goes first and comes last, so no half run looks whole."""
    import orjson

    with file_errors(paths.root, "write"):
        paths.record.unlink(missing_ok=True)
        for name in (paths.adapter_config.name, paths.adapter_weights.name):
            (scratch / name).chmod(0o600)
            (scratch / name).replace(paths.root / name)
        shutil.rmtree(paths.checkpoints, ignore_errors=True)  # the adapter is whole: they have done their work
    runs.write_text(paths.root / "chat_template.jinja", family.jinja)
    runs.write_text(paths.metrics, "".join(orjson.dumps(entry).decode() + "\n" for entry in outcome.logs))
    record.write_loss_plot(
        paths, [entry["step"] for entry in outcome.logs], [entry["loss"] for entry in outcome.logs],
        facts["result"]["val_loss_base"], facts["result"]["val_loss"],
    )  # fmt: skip

    def loss(value: float | None) -> str:
        return "not measured" if value is None else f"{value:.3f}"

    plan = facts["plan"]
    record.write_card(
        paths,
        {
            "base": facts["base_hub_id"], "name": paths.name, "version": __version__,
            "license": load_preset(plan["preset"]).license, "rows_train": facts["dataset"]["train"]["rows"],
            "rows_val": (facts["dataset"]["val"] or {"rows": 0})["rows"], "steps": outcome.steps,
            "batch_size": plan["batch_size"], "lora_r": plan["lora_r"], "lora_alpha": plan["lora_alpha"],
            "targets": ", ".join(plan["target_modules"]), "val_loss_base": loss(facts["result"]["val_loss_base"]),
            "val_loss": loss(facts["result"]["val_loss"]), "family": family.name,
        },
    )  # fmt: skip
    facts["files"] = _adapter_digests(paths)
    runs.write_json(paths.record, facts)


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


# ---------------------------------------------------------------- gguf


def read_record(paths: RunPaths) -> dict[str, Any]:
    """Return a run's record.

    Raises:
        UsageError: no record, or one without what later steps need.
    """
    if not paths.record.exists():
        raise UsageError(f"There is no run.json in '{paths.root}'.", "Train with twin, which writes it: twin train")
    record = runs.read_json(paths.record)
    for key in ("base_model", "family", "system_prompt", "plan"):
        if key not in record:
            raise UsageError(f"'{paths.record}' lacks '{key}'.", "Train again: twin train")
    return record


@dataclass(frozen=True, slots=True)
class Made:
    """GGUF files of a run."""

    paths: RunPaths
    files: tuple[dict[str, Any], ...]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Return the object of ``--json``."""
        return {"files": list(self.files), "seconds": round(self.seconds, 3), "peak_rss_bytes": peak_rss_bytes()}


def gguf(
    adapter: Path | None, settings: Settings, reporter: Reporter, output: Path | None = None, dry_run: bool = False
) -> Made:
    """Adapter → checked GGUF files beside it.

    Args:
        adapter: a run's folder; None: the newest.
        settings: its ``gguf`` section.
        reporter: told of progress.
        output: where the file goes, with one quantization alone.
        dry_run: check everything that can be checked before, write nothing.
    """
    need("gguf", "llama_cpp", "torch", "transformers", "peft", "gguf")
    from twin.gguf.quantize import check_names

    started = time.perf_counter()
    names = check_names(settings.gguf.quantization)
    if output is not None and len(names) > 1:
        raise UsageError("--output names one file and there are several quantizations.", "Leave --output out.")
    paths = runs.find_adapter(adapter) if adapter else runs.newest_adapter()
    record = read_record(paths)
    family = load_family(record["family"])
    targets = {name: output or paths.gguf(name) for name in names}
    from twin import basemodel

    base = basemodel.resolve(settings.gguf.base or record["base_model"], reporter)
    weights = sum(file.stat().st_size for file in base.folder.glob("*.safetensors"))
    runs.need_disk(paths.root, int(weights * 2.8), "The GGUF step")
    if dry_run:
        files = tuple({"gguf": str(path), "quantization": name} for name, path in targets.items())
        return Made(paths, files, time.perf_counter() - started)
    with runs.exclusive(paths.root):
        made = _make_gguf(base, paths.root, family, targets, _probes(base, family, record), settings, reporter)
        for file in made:
            runs.write_json(paths.gguf_record(file["quantization"]), file | {"adapter": _adapter_digests(paths)})
    return Made(paths, tuple(made), time.perf_counter() - started)


def _adapter_digests(paths: RunPaths) -> dict[str, str]:
    return {path.name: runs.file_digest(path) for path in (paths.adapter_config, paths.adapter_weights)}


def is_current(paths: RunPaths, quantization: str) -> bool:
    """Say whether the run's GGUF is there and was made of the adapter that is there now."""
    file, beside = paths.gguf(quantization), paths.gguf_record(quantization)
    if not (file.is_file() and beside.is_file()):
        return False
    made = runs.read_json(beside)
    return made.get("adapter") == _adapter_digests(paths) and made.get("bytes") == file.stat().st_size


def _probes(base: BaseModel, family: Family, record: dict[str, Any]) -> list[tuple[str, list[int]]]:
    """Return prompts and the ids of training for them: fixed ones and, where the rows are still there, the person's."""
    from twin.dataset.formats import read_rows
    from twin.training.samples import prompt_ids

    tokenizer = load_tokenizer(base)
    head = [Turn("system", record["system_prompt"])] if record["system_prompt"] else []
    prompts = [[*head, Turn("user", text)] for text in _PROBES]
    val = (record.get("dataset") or {}).get("val")
    if val and Path(val["path"]).is_file() and runs.file_digest(Path(val["path"])) == val["sha256"]:
        prompts += [list(row.turns[:-1]) for row in read_rows(Path(val["path"]))]
    return [(render(family, turns), prompt_ids(tokenizer, family, turns)) for turns in prompts]


def _make_gguf(
    base: BaseModel,
    adapter: Path | None,
    family: Family,
    targets: dict[str, Path],
    probes: Sequence[tuple[str, Sequence[int]]],
    settings: Settings,
    reporter: Reporter,
) -> list[dict[str, Any]]:
    """Merge, convert, quantize, check; only a file that passed gets its name."""
    from twin.gguf import converter
    from twin.gguf.check import check
    from twin.gguf.merge import merge
    from twin.gguf.quantize import quantize

    script = converter.find_converter(settings.gguf.llama_cpp, reporter)
    done = []
    first = next(iter(targets.values()))
    with runs.scratch_dir(first) as scratch:
        merged, plain = scratch / "merged", scratch / "f16.gguf"
        merged.mkdir()
        with file_errors(scratch, "write"):
            with reporter.task("Merging the adapter" if adapter else "Preparing the base model"):
                merge(base.folder, adapter, family, merged)
            converter.convert(script, merged, plain, reporter)
            for name, target in targets.items():
                made = plain
                if name != "f16":
                    made = scratch / f"{name}.gguf"
                    with reporter.task(f"Quantizing to {name}"):
                        quantize(plain, made, name)
                with reporter.task(f"Checking {target.name}"):
                    checks = check(made, family, probes)
                target.parent.mkdir(parents=True, exist_ok=True)
                made.chmod(0o600)
                made.replace(target)
                done.append(
                    {"gguf": str(target), "quantization": name, "bytes": target.stat().st_size, "checks": checks}
                )
    return done


# ---------------------------------------------------------------- evaluate


@dataclass(frozen=True, slots=True)
class Survival:
    """Held-out loss of the twin's GGUF against the base model's GGUF of the same quantization, and some answers."""

    adapter: dict[str, float] | None
    gguf: dict[str, float | int]
    samples: tuple[dict[str, str], ...]

    def as_json(self) -> dict[str, Any]:
        """Return what ``likelihood.json`` holds."""
        return asdict(self)


def base_gguf(base: BaseModel, family: Family, quantization: str, settings: Settings, reporter: Reporter) -> Path:
    """Return the base model's own GGUF, made once into the user's cache, to measure against."""
    weights = {file.name: file.stat().st_size for file in sorted(base.folder.glob("*.safetensors"))}
    key = runs.fingerprint(
        {"base": base.name, "weights": weights, "family": family.model_dump(), "twin": __version__}, []
    )
    target = runs.cache_dir() / "base-gguf" / f"{key[:16]}-{quantization}.gguf"
    if not target.exists():
        _make_gguf(base, None, family, {quantization: target}, [], settings, reporter)
    return target


def evaluate(paths: RunPaths, quantization: str, settings: Settings, reporter: Reporter, answers: int = 3) -> Survival:
    """Score held-out replies under base and twin, both as GGUF, and let both answer a few held-out prompts.

    Raises:
        StepError: the run has no held-out rows any more.
    """
    need("gguf", "llama_cpp", "transformers")
    from twin import basemodel
    from twin.dataset.formats import read_rows
    from twin.evaluate.likelihood import Scored, compare, score_gguf
    from twin.llama import open_gguf

    record = read_record(paths)
    val = (record.get("dataset") or {}).get("val")
    if not val or not Path(val["path"]).is_file():
        raise StepError("The run's held-out rows are gone, so nothing can be measured.", "Export and train again.")
    family = load_family(record["family"])
    base = basemodel.resolve(record["base_model"], reporter)
    rows = [row for row in read_rows(Path(val["path"])) if row.kind == "chat"]
    plan = record["plan"]
    samples = _chat_samples(rows, load_tokenizer(base), family, plan["max_length"])
    if not samples:
        raise StepError(
            "There are no held-out conversations to measure on.", "Raise --validation-split and export again."
        )
    reference = base_gguf(base, family, quantization, settings, reporter)
    # Every third of the conversations gives one prompt, from its middle: openings are alike in any chat.
    by_conversation: dict[str, list[Example]] = {}
    for row in rows:
        by_conversation.setdefault(row.conversation_id, []).append(row)
    groups = list(by_conversation.values())
    chosen = [groups[number * len(groups) // answers] for number in range(min(answers, len(groups)))]
    asked = [group[len(group) // 2] for group in chosen]
    scores: dict[str, list[Scored]] = {}
    replies: dict[str, list[str]] = {}
    for who, file in (("base", reference), ("twin", paths.gguf(quantization))):
        with open_gguf(file, num_ctx=plan["max_length"]) as model:
            with reporter.task(f"Held-out loss of the {who}'s GGUF", len(samples)) as task:
                pairs = [(one.id, one.conversation_id, one.input_ids, one.prompt_length) for one in samples]
                scores[who] = score_gguf(model, pairs, task.advance)
            with reporter.task(f"Answers of the {who}", len(asked)) as task:
                replies[who] = []
                for row in asked:
                    ids = model.ids(render(family, row.turns[:-1]))
                    parts = model.reply(ids, temperature=plan["temperature"], max_tokens=60)
                    replies[who].append("".join(parts).strip())
                    task.advance()
    change = compare(scores["base"], scores["twin"])
    result = Survival(
        adapter=record["result"]["val_change"],
        gguf=asdict(change),
        samples=tuple(
            {"prompt": row.turns[-2].content, "base": one, "twin": other, "person": row.reply}
            for row, one, other in zip(asked, replies["base"], replies["twin"], strict=True)
        ),
    )
    runs.write_json(paths.likelihood, result.as_json())
    return result


# ---------------------------------------------------------------- register


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


def pick_run(name: str, adapter: Path | None, reporter: Reporter) -> RunPaths:
    """Return the run to serve as ``name``: ``adapter``, else ``adapters/NAME``, else the newest; says which."""
    if adapter is not None:
        paths = runs.find_adapter(adapter)
    else:
        own = runs.run_paths(name)
        paths = runs.find_adapter(own.root) if own.record.exists() else runs.newest_adapter()
    reporter.say(f"Using the run in {paths.root}")
    return paths


def register(
    name: str,
    settings: Settings,
    reporter: Reporter,
    adapter: Path | None = None,
    gguf_file: Path | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> Registered:
    """GGUF → a model in Ollama whose prompts are proved to be those of training.

    Args:
        name: the model's name in Ollama.
        settings: its ``register`` section.
        reporter: told of progress.
        adapter: the run to use, where not ``adapters/NAME`` or the newest.
        gguf_file: the file to use, where not the run's first quantization.
        force: replace a model of that name.
        dry_run: check the server and the run, change nothing.
    """
    from twin.ollama.client import OllamaClient
    from twin.ollama.modelfile import model_name, modelfile
    from twin.ollama.register import register as register_live

    model_name(name)
    paths = pick_run(name, adapter, reporter)
    record = read_record(paths)
    client = OllamaClient(settings.ollama.host)
    client.version()
    family = load_family(record["family"])
    quantization = settings.gguf.quantization[0].lower()
    file = gguf_file or paths.gguf(quantization)
    if gguf_file is not None and not file.exists():
        raise UsageError(f"There is no GGUF '{file}'.", f"Make one: twin gguf {paths.root}")
    if gguf_file is None and not dry_run and not is_current(paths, quantization):
        if file.exists():
            reporter.say(f"{file} was not made of this adapter: it is made again")
        gguf(paths.root, settings, reporter)
    plan = record["plan"]
    given = settings.ollama
    num_ctx = given.num_ctx or plan["num_ctx"]
    if num_ctx < plan["max_length"]:
        raise GateError(
            f"num_ctx {num_ctx} is shorter than the {plan['max_length']} tokens of training: the prompt would be cut.",
            f"Use --num-ctx {plan['max_length']} or more.",
        )
    parameters = {
        "temperature": plan["temperature"] if given.temperature is None else given.temperature,
        "num_ctx": num_ctx,
    }
    license_text = f"{load_preset(plan['preset']).license} (base model {record['base_hub_id']})"
    if dry_run:
        return Registered(name, client.url, False, str(paths.root), str(file), {})
    count = _prompt_counter(record, family, reporter)
    with runs.exclusive(paths.root):
        runs.write_text(
            paths.modelfile, modelfile(file.name, family, record["system_prompt"], parameters, license_text)
        )
        done = register_live(
            client,
            name,
            file,
            family=family,
            system=record["system_prompt"],
            parameters=parameters,
            license_text=license_text,
            prompt_ids=count,
            force=force,
            reporter=reporter,
        )
    return Registered(done.model, done.host, done.created, str(paths.root), str(file), dict(done.checks))


def _prompt_counter(record: dict[str, Any], family: Family, reporter: Reporter) -> Callable[[Sequence[Turn]], int]:
    """Return a function that counts the ids training would use for a prompt."""
    need("gguf", "transformers")
    from twin import basemodel
    from twin.training.samples import prompt_ids

    tokenizer = load_tokenizer(basemodel.resolve(record["base_model"], reporter))
    return lambda turns: len(prompt_ids(tokenizer, family, turns))


# ---------------------------------------------------------------- chat


@contextmanager
def gguf_backend(file: Path) -> Iterator[Backend]:
    """Open a run's GGUF for a conversation with the prompt it was trained with.

    Raises:
        UsageError: no such file, or no run.json beside it.
    """
    need("gguf", "llama_cpp")
    if not file.is_file():
        raise UsageError(f"There is no GGUF '{file}'.", "Make one: twin gguf")
    record = read_record(RunPaths(file.parent))
    from twin.chat import GgufBackend
    from twin.llama import open_gguf

    plan = record["plan"]
    with open_gguf(file, num_ctx=plan["num_ctx"]) as model:
        family = load_family(record["family"])
        yield GgufBackend(model, family, record["system_prompt"], plan["temperature"], plan["num_ctx"])


# ---------------------------------------------------------------- run


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


class _Steps:
    """Remembers what each step read and wrote, so that it is done again only when that changed."""

    def __init__(self, paths: RunPaths, reporter: Reporter) -> None:
        self.path = paths.steps
        self.reporter = reporter
        self.done: dict[str, Any] = runs.read_json(self.path) if self.path.exists() else {}
        self.seconds: dict[str, float | None] = {}

    def do(self, name: str, inputs: str, work: Callable[[], Sequence[Path]]) -> None:
        """Do ``work``, which returns the files it wrote, unless ``inputs`` and those files are as they were."""
        before = self.done.get(name)
        if before and before["inputs"] == inputs and self._intact(before["outputs"]):
            self.reporter.say(f"{name}: skipped, nothing it reads has changed")
            self.seconds[name] = None
            return
        started = time.perf_counter()
        written = work()
        self.seconds[name] = round(time.perf_counter() - started, 1)
        self.done[name] = {"inputs": inputs, "outputs": {str(path): runs.file_digest(path) for path in written}}
        runs.write_json(self.path, self.done)

    @staticmethod
    def _intact(outputs: dict[str, str]) -> bool:
        return all(Path(path).is_file() and runs.file_digest(Path(path)) == digest for path, digest in outputs.items())


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What ``run`` would do: the rows it would learn from, and which steps were done before."""

    exported: Exported
    done_before: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the object of ``--json``."""
        return {"export": self.exported.as_json(), "done_before": list(self.done_before)}


def foresee(name: str, sources: Sequence[Path], settings: Settings, reporter: Reporter) -> Foreseen:
    """Check what ``run`` needs and count its rows, without writing into the project."""
    paths = runs.run_paths(name)
    found = find_sources(sources)
    preflight(settings, plan_training(settings.train, load_preset(settings.train.preset)), paths.root, reporter)
    need("gguf", "llama_cpp", "gguf")
    done = runs.read_json(paths.steps) if paths.steps.exists() else {}
    return Foreseen(export(found, settings, reporter, dry_run=True), tuple(done))


def run(name: str, sources: Sequence[Path], settings: Settings, reporter: Reporter, force: bool = False) -> Whole:
    """Do all steps for the run ``name``; each is skipped when what it reads did not change.

    A server that does not answer ends the run after the GGUF: ``registered`` is False and ``note`` says what to type.

    Args:
        name: the run's and the model's name.
        sources: files and folders; empty: ``./brain``.
        settings: of all steps.
        reporter: told of progress.
        force: replace a model of that name which this run did not register.
    """
    from twin.ollama.client import OllamaClient

    paths = runs.run_paths(name)
    settings = settings.model_copy(update={"train": settings.train.model_copy(update={"name": name})})
    found = find_sources(sources)
    plan = plan_training(settings.train, load_preset(settings.train.preset))
    preflight(settings, plan, paths.root, reporter)
    need("gguf", "llama_cpp", "gguf")
    client = OllamaClient(settings.ollama.host)
    note = ""
    try:
        client.version()
    except MachineError as error:
        note = f"{error.message} {error.hint}. Then: twin register {name}"
        reporter.say(f"{error.message} The run will end with the GGUF.")
    data = DatasetPaths(settings.export.output)
    quantization = settings.gguf.quantization[0].lower()
    with runs.exclusive(paths.root, "run"):
        steps = _Steps(paths, reporter)

        def do_export() -> list[Path]:
            export(found, settings, reporter)
            return [data.full, data.train, data.val, data.report]

        def do_train() -> list[Path]:
            train(settings, reporter, output=paths.root)
            return [paths.adapter_config, paths.adapter_weights, paths.record]

        def do_gguf() -> list[Path]:
            made = gguf(paths.root, settings, reporter)
            return [
                path for file in made.files for path in (Path(file["gguf"]), paths.gguf_record(file["quantization"]))
            ]

        def do_evaluate() -> list[Path]:
            evaluate(paths, quantization, settings, reporter)
            return [paths.likelihood]

        def do_register() -> list[Path]:
            register(name, settings, reporter, adapter=paths.root, force=force or "register" in steps.done)
            return [paths.modelfile]

        steps.do(
            "export",
            runs.fingerprint({"twin": __version__, **settings.export.model_dump(mode="json")}, found),
            do_export,
        )
        steps.do(
            "train", runs.fingerprint({"twin": __version__, **plan.model_dump()}, [data.train, data.val]), do_train
        )
        adapter = [paths.adapter_config, paths.adapter_weights]
        steps.do(
            "gguf", runs.fingerprint({"twin": __version__, **settings.gguf.model_dump(mode="json")}, adapter), do_gguf
        )
        measured = any(row.kind == "chat" for row in load_rows(settings).val)
        if measured:
            read = [paths.gguf(quantization), data.val]
            steps.do("evaluate", runs.fingerprint({"twin": __version__}, read), do_evaluate)
        else:
            reporter.say("No conversation is held out, so the twin is not measured.")
        if not note:
            served = settings.ollama.model_dump(mode="json") | {"host": client.url}
            if "register" in steps.done and not client.exists(name):  # somebody removed it since
                steps.done.pop("register")
            steps.do(
                "register",
                runs.fingerprint({"twin": __version__, **served}, [paths.gguf(quantization)]),
                do_register,
            )
        survival = runs.read_json(paths.likelihood) if measured else {}
        return Whole(name, paths, steps.seconds, survival, not note, note)


# ---------------------------------------------------------------- demo

DEMO_NAME = "wren"


def demo(output: Path, reporter: Reporter) -> Path:
    """Lay the sample project (brain and twin.toml of an invented person) into ``output``; keep what is there.

    Returns:
        The folder, in which ``run`` does the rest.
    """
    from importlib import resources

    sample = resources.files("twin") / "sample"

    def lay(source: Any, target: Path) -> None:
        if source.is_dir():
            for child in source.iterdir():
                lay(child, target / child.name)
        elif not target.exists():
            with runs.atomic_write(target) as handle:
                handle.write(source.read_bytes())

    lay(sample, output)
    reporter.say(f"The sample project is in {output}")
    return output
