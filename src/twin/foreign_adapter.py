"""What ``twin gguf`` makes a file of: a run of twin's, or an adapter that another tool trained.

A run says in ``run.json`` which base, template and system prompt it was trained with. Elsewhere ``adapter_config.json``
names the base at most, and the template is the adapter folder's own where a tool saved it there, else the base's. Both
roads fill one ``Source``, so nothing behind it asks where an adapter came from. Heavy imports stand inside functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twin import adapter, prove, reading, runs
from twin.errors import GateError, UsageError, file_errors
from twin.files import read_json, scratch_dir
from twin.foreign import bounded, one_line
from twin.progress import Reporter
from twin.prove import Ids
from twin.reading import Ask
from twin.records import Turn
from twin.runs import RunPaths
from twin.settings import Settings
from twin.templates import Family, gate

if TYPE_CHECKING:
    from twin.basemodel import BaseModel

_NAME_BASE = "Name the model that it was trained on, unquantized: --base ID-OR-DIR"
_HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
# bitsandbytes' 4 bits are made of a repository of the same name without the ending; the others' names do not lead back.
_FOUR_BIT = re.compile(r"(-unsloth)?-bnb-4bit$", re.IGNORECASE)
_QUANTIZED = re.compile(r"-(bnb-)?[2-8]-?bit$|-gptq(-.*)?$|-awq(-.*)?$|-gguf$|-fp8$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Source:
    """An adapter with all that a GGUF of it needs.

    Args:
        paths: the folder that was named; files go there.
        folder: the adapter in PEFT's layout, perhaps for as long as the block lasts.
        base: its base model, with unquantized weights.
        family: the pair it was trained with; its gate was passed.
        prompts: gives names and turns that a file must read as the ids of training, the first to be answered too.
        ids: gives, for turns of prompts, what gives the ids of training for each of them; asked in one go.
        rows: gives ids of what it learned from, for an importance matrix; none where they are not here.
        is_run: twin trained it.
    """

    paths: RunPaths
    folder: Path
    base: BaseModel
    family: Family
    prompts: Callable[[], list[tuple[str, list[Turn]]]]
    ids: Callable[[Iterable[Sequence[Turn]]], Ids]
    rows: Callable[[], list[list[int]]]
    is_run: bool


def folder(where: Path | None) -> Path:
    """Return the folder that is meant, the newest run's where none is named: told before anything is fetched or begun.

    Raises:
        UsageError: there is none.
    """
    if where is None:
        return runs.newest_adapter().root
    if not where.is_dir():
        runs.find_adapter(where)  # which says what is missing
    return where


@contextmanager
def source(where: Path | None, settings: Settings, reporter: Reporter, ask: Ask = reading.answer) -> Iterator[Source]:
    """Yield what is in a folder, checked.

    Args:
        where: a run's folder or an adapter's; None: the newest run.
        settings: its ``gguf`` section.
        reporter: told of progress.
        ask: who reads what takes heavy libraries.

    Raises:
        UsageError: no adapter there, or one of a form that no merged model holds; no base that can be merged into.
        GateError: nothing says how it was asked in training; what ``prove.base_of`` refuses.
    """
    where = folder(where)
    if _is_run(RunPaths(where)):
        yield _run(runs.find_adapter(where), settings, reporter, ask)
        return
    if runs.is_checkpoint(where):
        raise UsageError(
            f"'{where}' is a checkpoint of a training of twin's that did not end, so nothing tells its system prompt.",
            "Let it end: twin train --resume-from auto",
        )
    with scratch_dir(where.absolute()) as scratch:
        yield _foreign(where, scratch, settings, reporter, ask)


def _is_run(paths: RunPaths) -> bool:
    """Say whether twin trained here; where it did not end there is no ``run.json``, which is told, not guessed."""
    return any(path.exists() for path in (paths.record, paths.learned, paths.checkpoints))


def _run(paths: RunPaths, settings: Settings, reporter: Reporter, ask: Ask) -> Source:
    record = runs.read_record(paths)
    adapter.check(paths, record)
    family = prove.family_of(record)
    gate.check(family)  # its Jinja goes into the file
    base = prove.base_of(record, settings, reporter, whole=True)
    _check_unquantized(base)

    def prompts() -> list[tuple[str, list[Turn]]]:
        return prove.file_prompts(record, family, prove.prompts_of(record, settings))

    ids = partial(prove.asked_ids, base, family, ask)
    rows = partial(prove.learned_ids, record, base, family, settings, ask)
    return Source(paths, paths.root, base, family, prompts, ids, rows, True)


def _foreign(where: Path, scratch: Path, settings: Settings, reporter: Reporter, ask: Ask) -> Source:
    from twin import basemodel

    paths = RunPaths(where)
    folder, told = _adapter(paths, scratch, ask)
    name = _base_name(where, told, settings)
    if not settings.gguf.base:
        reporter.say(f"{where} says that it was trained on {name}")
    try:
        base = basemodel.resolve(name, reporter)
    except UsageError as error:
        raise UsageError(error.message, error.hint if settings.gguf.base else _NAME_BASE) from None
    _check_unquantized(base)
    family = _family(where, base, ask)
    reporter.say(f"Its template: family {family.name}; without a system prompt")

    def prompts() -> list[tuple[str, list[Turn]]]:
        return prove.file_prompts({"system_prompt": ""}, family, [])

    ids = partial(prove.asked_ids, base, family, ask)
    return Source(paths, folder, base, family, prompts, ids, list, False)


def _adapter(paths: RunPaths, scratch: Path, ask: Ask) -> tuple[Path, str | None]:
    """Return the adapter's folder in PEFT's layout, and what it calls its base."""
    where = paths.root
    if not paths.adapter_config.is_file() and not any(where.glob(f"*/{paths.adapter_config.name}")):
        runs.find_adapter(where)  # which says what is missing
    told = ask("adapter", where=str(where), scratch=str(scratch))
    return Path(told["folder"]), told["base_model"]


def _base_name(where: Path, told: str | None, settings: Settings) -> str:
    """Return the name of the base: the one of the settings, else the one that the adapter tells, if it is unquantized.

    Raises:
        UsageError: there is none, or its weights are quantized by its name.
    """
    if settings.gguf.base:
        return settings.gguf.base
    if told is None:
        raise UsageError(f"'{where}' does not say which model it was trained on.", _NAME_BASE)
    name = bounded(one_line(told), 200)
    if _QUANTIZED.search(told.rstrip("/")):
        plain = _FOUR_BIT.sub("", told.rstrip("/"))
        known = plain != told.rstrip("/") and _HUB_ID.fullmatch(plain)
        raise UsageError(
            f"'{where}' was trained on '{name}', whose weights are quantized, and a merge needs whole ones.",
            f"Name the model that was quantized: --base {plain}" if known else _NAME_BASE,
        )
    return told


def _check_unquantized(base: BaseModel) -> None:
    """Refuse weights that were quantized: merged into them, most of what was learned would round away.

    Raises:
        UsageError: the base's configuration says so.
    """
    config = read_json(base.folder / "config.json")
    for key in ("quantization_config", "quantization"):  # mlx writes the second
        if config.get(key):
            raise UsageError(f"The weights of '{base.name}' are quantized ({key} in its config.json).", _NAME_BASE)


def _family(where: Path, base: BaseModel, ask: Ask) -> Family:
    """Return the pair that fits the template an adapter was trained with.

    Raises:
        GateError: no pair does, or there is no template.
    """
    told = ask("family", base=str(base.folder), name=base.hub_id, jinja=_own_template(where))["family"]
    if told is None:
        raise GateError(
            f"Neither '{where}' nor its base model has a chat template, so nothing says how it was asked in training.",
            f"Save the Jinja that it was trained with as '{where / 'chat_template.jinja'}'.",
        )
    family = Family.model_validate(told)
    gate.check(family)
    return family


def _own_template(where: Path) -> str | None:
    """Return the Jinja that a tool saved beside its adapter: untrusted, and rendered in a sandbox alone."""
    jinja, config = where / "chat_template.jinja", where / "tokenizer_config.json"
    if jinja.is_file():
        with file_errors(jinja, "read"):
            return jinja.read_text("utf-8")
    told: Any = read_json(config).get("chat_template") if config.is_file() else None
    if isinstance(told, list):  # several by name
        told = next(
            (one.get("template") for one in told if isinstance(one, dict) and one.get("name") == "default"), None
        )
    return told if isinstance(told, str) else None
