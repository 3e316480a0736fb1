"""Did the tune survive the GGUF? What is measured of a run's twin before it is registered, and what that refuses.

``evaluate.survival`` measures and judges; here it gets what it needs from the other features: the samples of training,
the base model's own GGUF, the adapter as a GGUF. Heavy imports stand inside the functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from twin import __version__, files, learned, prove, runs
from twin.adapter import check as check_adapter
from twin.curate import need
from twin.errors import GateError, StepError, UsageError
from twin.learned import Learned
from twin.progress import Reporter
from twin.records import Example
from twin.results import Change, Survival, read_survival
from twin.runs import RunPaths
from twin.settings import Settings
from twin.templates import Family

if TYPE_CHECKING:
    from twin.basemodel import BaseModel
    from twin.training.samples import Samples


def evaluate(
    paths: RunPaths, quantization: str, settings: Settings, reporter: Reporter, answers: int = 3, force: bool = False
) -> Survival:
    """Score held-out replies under base and twin, and let both answer a few held-out prompts: did the tune survive?

    What there was to survive is measured on the base model before its quantization, with the adapter added to it.

    Args:
        paths: of the run.
        quantization: of the twin's GGUF.
        settings: where base model and rows are.
        reporter: told of progress.
        answers: how many prompts.
        force: go on where the twin is refused.

    Raises:
        GateError: the adapter gains nothing, or the GGUF kept too little of it. ``likelihood.json`` has the figures.
        StepError: the run has no held-out rows any more.
    """
    need("gguf", "llama_cpp", "transformers", "gguf")
    from twin.evaluate import survival
    from twin.gguf.converter import find_converter
    from twin.gguf.lora import lora_gguf
    from twin.training.tokenizer import load_tokenizer

    record = runs.read_record(paths)
    check_adapter(paths, record)
    plan = record["plan"]
    rows = held_out_rows(paths, record, settings)
    family = prove.family_of(record)
    base = prove.base_of(record, settings, reporter)
    chats = chat_samples(rows, load_tokenizer(base.folder), family, plan["max_length"])
    if chats is None:
        raise StepError(
            "There are no held-out conversations to measure on.", "Raise --validation-split and export again."
        )
    asked = survival.prompts_to_show(rows, chats.samples, answers)
    unquantized = _reference(base, reporter)
    if files.read_json(paths.gguf_record(quantization)).get("imatrix"):
        learned_rows = prove.learned_ids(record, base, family, settings)
        made = base_ggufs(base, family, [quantization], settings, reporter, learned_rows)
        made |= base_ggufs(base, family, [unquantized], settings, reporter)
    else:
        made = base_ggufs(base, family, [unquantized, quantization], settings, reporter)
    twin = paths.gguf(quantization)
    with files.scratch_dir(paths.likelihood) as scratch:
        adapter = scratch / "adapter.gguf"
        lora_gguf(find_converter(settings.gguf.llama_cpp, reporter), base.folder, paths.root, adapter, reporter)
        compared = survival.Files(made[unquantized], adapter, made[quantization], twin)
        measured = survival.measure(compared, survival.spread(chats.samples), asked, plan, reporter)
    measured = replace(
        measured, adapter=_as_trained(record), quantization=quantization, unquantized=unquantized,
        gguf_sha256=files.file_digest(twin),
    )  # fmt: skip
    measured = replace(measured, refused=survival.refusal(measured))
    files.write_json(paths.likelihood, measured.as_json())
    if measured.refused and not force:
        raise GateError(measured.refused, _what_to_try(paths, measured))
    return measured


def _as_trained(record: dict[str, Any]) -> Change | None:
    """Return the change that training measured on the adapter; None where nothing was held out."""
    change = runs.val_change(record)
    told: dict[str, Any] = {field.name: (change or {}).get(field.name) for field in fields(Change)}
    return Change(**told) if change else None


def _reference(base: BaseModel, reporter: Reporter) -> str:
    """Return as what the base model is opened to add the adapter to it: at 16 bits, or 8 where memory is short."""
    from twin import basemodel

    needed, free = basemodel.parameters(base) * 2.2, psutil.virtual_memory().available
    if needed < free:
        return "f16"
    reporter.say(
        f"The base model at 16 bits needs {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free, "
        "so the adapter is measured on it at 8 bits"
    )
    return "q8_0"


def _what_to_try(paths: RunPaths, measured: Survival) -> str:
    """Return the hint for a refused twin."""
    if measured.reference.nothing:
        tries = "Train longer (--epochs), or hold more out to be surer (validation_split in twin.toml)."
    elif measured.quantization in ("f16", "q8_0"):  # they lose next to nothing
        tries = (
            f"It is not the quantization: make the file again (twin gguf {paths.root}), or hold more out to be surer."
        )
    else:
        higher = "q5_k_m" if measured.quantization.startswith(("q3", "q4")) else "q8_0"
        tries = (
            f"Try a higher quantization (-q {higher}), an importance matrix (twin gguf --imatrix), "
            "or more rank (--lora-r)."
        )
    return f"{tries} To serve it all the same: twin register {paths.name} --force"


def held_out_rows(paths: RunPaths, record: dict[str, Any], settings: Settings) -> list[Example]:
    """Return the replies in conversations that a run was measured on, as it knew them.

    Raises:
        StepError: they are not here.
    """
    from twin.dataset.formats import read_rows
    from twin.dataset.rows import held_out_path

    file = runs.rows_file(record, "val", held_out_path(settings))
    if file is None:
        raise StepError(
            "The held-out rows that the run knew are not here, so nothing can be measured.",
            "Bring back the dataset that it was trained with (see --dataset), or train again.",
        )
    known = learned.read(paths) if record.get("earlier") else Learned()  # by itself a run learned nothing held out
    return [row for row in read_rows(file) if row.kind == "chat" and not known.spoils(row)]


def base_ggufs(
    base: BaseModel,
    family: Family,
    quantizations: Iterable[str],
    settings: Settings,
    reporter: Reporter,
    rows: Sequence[Sequence[int]] = (),
) -> dict[str, Path]:
    """Return the base model's own GGUF of each quantization, made once into the user's cache, to measure against.

    Args:
        base: the base model.
        family: the twin's pair.
        quantizations: names.
        settings: its ``gguf`` section.
        reporter: told of progress.
        rows: what the twin's importance matrix was gathered from, where it has one; the base gets one of the same rows.
    """
    from twin.gguf.converter import find_converter
    from twin.gguf.hired import hire
    from twin.gguf.make import make

    states = {file.name: file.stat() for file in sorted(base.folder.glob("*.safetensors"))}
    weights = {name: [state.st_size, state.st_mtime_ns] for name, state in states.items()}
    about = {"base": base.name, "weights": weights, "family": family.model_dump(), "twin": __version__}
    key = files.fingerprint(about | ({"rows": rows} if rows else {}), [])
    home = runs.cache_dir() / "base-gguf"
    targets = {name: home / f"{key[:16]}-{name}.gguf" for name in quantizations}
    missing = {name: target for name, target in targets.items() if not target.exists()}
    if missing:
        script = find_converter(settings.gguf.llama_cpp, reporter)
        with hire(script, reporter) as worker:
            make(
                worker, base.folder, None, family, missing, [], lambda _: [], settings.gguf.llama_cpp, reporter,
                lambda: rows, weigh=bool(rows),
            )  # fmt: skip
    return targets


def chat_samples(rows: Sequence[Example], tokenizer: Any, family: Family, max_length: int) -> Samples | None:
    """Return the samples that are measured: replies in conversations; None where there is no conversation."""
    from twin.training.samples import build_samples

    chats = [row for row in rows if row.kind == "chat"]
    return build_samples(chats, tokenizer, family, max_length) if chats else None


def survival_of(paths: RunPaths) -> Survival | None:
    """Return what was measured of a run's twin; None where nothing was, or what is there can't be read."""
    try:
        return read_survival(files.read_json(paths.likelihood)) if paths.likelihood.is_file() else None
    except UsageError:
        return None


def check_measured(paths: RunPaths, file: Path, sha256: str | None, force: bool, reporter: Reporter) -> None:
    """Refuse a GGUF that was refused when it was measured, and say so where it never was.

    Args:
        paths: of the run.
        file: the GGUF.
        sha256: its digest, where it is known.
        force: go on all the same, and say so.
        reporter: told.

    Raises:
        GateError: it was refused.
    """
    if runs.val_change(runs.read_record(paths)) is None:
        return  # nothing is held out to measure it with
    measured = survival_of(paths)
    if measured is None or (sha256 and measured.gguf_sha256 != sha256):
        measuring = f"twin run {paths.name} --from evaluate --until evaluate"
        reporter.say(f"{file} was not measured on held-out replies; that does: {measuring}")
    elif measured.refused and file.is_file() and measured.gguf_sha256 == (sha256 or files.file_digest(file)):
        if not force:
            raise GateError(measured.refused, _what_to_try(paths, measured))
        reporter.say(f"{measured.refused} It is served all the same.")
