"""Is what is served what was trained? The pair of a run, the gate before training, and the gate alone (``twin check``).

``templates.gate`` holds the checks themselves; here they get what they need from the features: the tokenizer of
training, llama.cpp's vocabulary, its server. Heavy imports stand inside the functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from twin import reading, runs
from twin.curate import need
from twin.errors import GateError, UsageError
from twin.presets import Preset, TrainPlan
from twin.progress import Reporter
from twin.reading import Ask
from twin.records import Turn
from twin.results import Checked, Masked
from twin.runs import DatasetPaths, RunPaths
from twin.settings import Settings
from twin.templates import Family, derive, gate, load_family

if TYPE_CHECKING:
    from twin.basemodel import BaseModel
    from twin.training.mask import Reader
    from twin.training.samples import Samples

# Asked of every GGUF, besides the gate's own cases: scripts, digits, emoji joined by ZWJ, marks of three grammars.
_MAKE = "Make a GGUF whose template twin owns: twin gguf"
_GREETING = Turn("user", "Hello there.")

Ids = Callable[[Sequence[Turn]], list[int]]


def preset_family(preset: Preset, plan: TrainPlan) -> Family | None:
    """Return the family that the plan's preset names; None where another model than the preset's is trained.

    Raises:
        GateError: its pair does not exist, or does not pass its gate.
    """
    if plan.model != preset.model:
        return None
    family = load_family(plan.family)
    gate.check(family)
    return family


def family_for(preset: Preset, plan: TrainPlan, base: BaseModel, tokenizer: Any) -> Family:
    """Return the pair to train with: the preset's for its own model, else one that fits the model, by name or template.

    Raises:
        GateError: no pair fits, or it does not pass its gate.
    """
    family = preset_family(preset, plan)
    if family is None:
        family = derive.choose(base.hub_id, *derive.facts_of(tokenizer)) or load_family(plan.family)
        gate.check(family)
    return family


def family_of(record: dict[str, Any]) -> Family:
    """Return the pair that a run was trained with, as its run.json holds it.

    Raises:
        UsageError: what it holds is no pair.
        GateError: an older run, whose family this version does not have.
    """
    if "pair" not in record:
        return load_family(record["family"])
    try:
        return Family.model_validate(record["pair"])
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise UsageError(f"The template pair in run.json can't be read: {where}.", "Train again: twin train") from None


def base_of(record: dict[str, Any], settings: Settings, reporter: Reporter, whole: bool = False) -> BaseModel:
    """Return the base model of a run: the one that ``gguf.base`` names, else the one in its run.json.

    Args:
        record: the run's.
        settings: its ``gguf`` section.
        reporter: told of progress.
        whole: its weights are needed too, and must be those that the adapter was trained on.

    Raises:
        UsageError: it is not on this machine.
        GateError: its weights are others.
    """
    from twin import basemodel

    name = settings.gguf.base or record["base_model"]
    try:
        base = basemodel.resolve(name, reporter)
    except UsageError as error:
        if settings.gguf.base:
            raise
        raise UsageError(error.message, "Name the same model as it is called on this machine: --base") from None
    trained = record.get("base_weights")
    if whole and trained is not None and basemodel.weights_digest(base, reporter) != trained:
        raise GateError(
            f"The adapter was trained on other weights than those of '{name}'.",
            "Name the very model that it was trained on: --base",
        )
    return base


def training_ids(base: BaseModel, family: Family) -> Ids:
    """Return a function that gives the ids of training for turns' prompt."""
    from twin.training.samples import prompt_ids
    from twin.training.tokenizer import load_tokenizer

    return partial(prompt_ids, load_tokenizer(base.folder), family)


def prompts_of(record: dict[str, Any], settings: Settings) -> list[list[Turn]]:
    """Return the held-out prompts of a run, where its rows are still those that it knew."""
    from twin.dataset.formats import read_rows
    from twin.dataset.rows import held_out_path

    path = runs.rows_file(record, "val", held_out_path(settings))
    return [list(row.turns[:-1]) for row in read_rows(path)] if path else []


def asked_ids(base: BaseModel, family: Family, ask: Ask, prompts: Iterable[Sequence[Turn]]) -> Ids:
    """Return what ``training_ids`` returns, for these prompts alone and asked in one go."""
    known = list(map(tuple, prompts))
    told = ask("prompt_ids", base=str(base.folder), family=family.model_dump(), prompts=known)["ids"]
    ids = dict(zip(known, told, strict=True))
    return lambda turns: ids[tuple(turns)]


def learned_ids(
    record: dict[str, Any], base: BaseModel, family: Family, settings: Settings, ask: Ask = reading.answer
) -> list[list[int]]:
    """Return ids of samples that a run learned, as many as an importance matrix asks for; none where they are gone."""
    here = settings.train.dataset or DatasetPaths(settings.export.output).train
    path = runs.rows_file(record, "train", here)
    if path is None:
        return []
    about = {"rows": str(path), "base": str(base.folder), "max_length": record["plan"]["max_length"]}
    ids: list[list[int]] = ask("row_ids", **about, family=family.model_dump())["ids"]
    return ids


def file_prompts(
    record: dict[str, Any], family: Family, prompts: Iterable[Sequence[Turn]]
) -> list[tuple[str, list[Turn]]]:
    """Return what a run's GGUF is asked, the first of it for an answer too: names and turns.

    Args:
        record: the run's.
        family: its pair.
        prompts: of the user's own rows.
    """
    head = [Turn("system", record["system_prompt"])] if record["system_prompt"] else []
    # The first is answered, so it is a short one: a system prompt would take longer to read than all else takes.
    under = [("a greeting under its system prompt", [*head, _GREETING])] if head else []
    return [("a greeting", [_GREETING]), *under, *gate.cases(family, prompts)]


def vocabulary_ids(
    base: BaseModel,
    family: Family,
    ids: Ids,
    prompts: Iterable[Sequence[Turn]],
    llama_cpp: Path | None,
    reporter: Reporter,
) -> str:
    """Check, before there is a GGUF, that llama.cpp will read prompts as the ids of training.

    Args:
        base: the base model.
        family: its pair.
        ids: of training.
        prompts: of the user's own rows.
        llama_cpp: a checkout of the user's, for its converter.
        reporter: told of progress.

    Returns:
        What was compared, in words.

    Raises:
        GateError: the first difference.
    """
    from twin.gguf.vocabulary import vocabulary
    from twin.llama import open_gguf

    with open_gguf(vocabulary(base.folder, family.gguf_name, llama_cpp, reporter), vocab_only=True) as model:
        gate.check_end(family, model.plain_ids, model.ends_generation)
        count = gate.check_ids(family, gate.cases(family, prompts), ids, model.ids, model.piece)
    return f"{count} prompts, the same in llama.cpp"


def before_training(
    base: BaseModel, family: Family, tokenizer: Any, prompts: list[list[Turn]], settings: Settings, reporter: Reporter
) -> None:
    """Refuse, before anything long, a pair or a tokenizer whose prompts the server would read in another way.

    Raises:
        GateError: the first thing that is wrong; see ``gate``.
    """
    from twin.training.samples import check_vocabulary, prompt_ids

    gate.check_rendering(family, prompts)
    check_vocabulary(tokenizer, family)
    if find_spec("llama_cpp"):  # without it training was chosen alone, and the file is checked where it is made
        ids = partial(prompt_ids, tokenizer, family)
        vocabulary_ids(base, family, ids, prompts, settings.gguf.llama_cpp, reporter)


@contextmanager
def _reader(
    base: BaseModel, family: Family, tokenizer: Any, llama_cpp: Path | None, reporter: Reporter
) -> Iterator[tuple[Reader, str]]:
    """Open what reads texts as a server does, and its name: llama.cpp, or the tokenizer where that is missing."""
    if find_spec("llama_cpp"):
        from twin.gguf.vocabulary import vocabulary
        from twin.llama import open_gguf

        with open_gguf(vocabulary(base.folder, family.gguf_name, llama_cpp, reporter), vocab_only=True) as model:
            yield model, "llama.cpp"
    else:
        from twin.training.mask import TokenizerReader

        reporter.say(
            "llama-cpp-python is not installed: that the server reads these ids is not checked before training, "
            "only that the Go template's text is learned, reply and end token alone."
        )
        yield TokenizerReader(tokenizer), "the tokenizer"


def mask(
    base: BaseModel,
    family: Family,
    tokenizer: Any,
    learned: Samples,
    held_out: Samples | None,
    max_length: int,
    settings: Settings,
    reporter: Reporter,
    show: int = 0,
) -> tuple[dict[str, Any], tuple[Masked, ...], Samples, Samples | None]:
    """Check every sample: its ids are those that a server reads of its row, and reply and end token are what it learns.

    A sample whose reply the vocabulary can't write is left out, aloud.

    Args:
        base: the base model.
        family: its pair.
        tokenizer: of training.
        learned: all samples that are trained.
        held_out: those that are measured, if any.
        max_length: most tokens of a sample.
        settings: its ``gguf`` section.
        reporter: told of progress.
        show: how many samples to return as text.

    Returns:
        What was proved, for ``run.json``; the samples to show; and those to learn and to measure.

    Raises:
        GateError: the first difference, with its row; see ``training.mask``.
    """
    from twin.training import mask as proof

    total = len(learned.samples) + (len(held_out.samples) if held_out else 0)
    with _reader(base, family, tokenizer, settings.gguf.llama_cpp, reporter) as (reader, name):
        with reporter.task("Checking what each sample learns", total=total) as task:
            done = proof.check(learned, reader, family, max_length, name, task.advance)
            measured = proof.check(held_out, reader, family, max_length, name, task.advance) if held_out else None
        shown = tuple(proof.show(done.kept, reader, show))
    unwritable = (*done.unwritable, *(measured.unwritable if measured else ()))
    if unwritable:
        reporter.say(f"{len(unwritable)} replies are left out, for the vocabulary can't write them. {unwritable[0]}")
    facts = {
        "proved": "each prompt is the Go template's, and what is learned is the reply and its end token",
        "read_by": name,
        "samples": done.samples,
        "supervised_tokens": done.supervised,
        "held_out": measured.samples if measured else 0,
        "replies_read_by_themselves": done.by_itself,
        "unwritable": len(unwritable),
    }
    return facts, shown, done.kept, measured.kept if measured else None


# ---------------------------------------------------------------- twin check


def check(target: Path | None, settings: Settings, reporter: Reporter, modelfile: Path | None = None) -> Checked:
    """Run the gate alone, on a run and its GGUF files, or on any GGUF.

    Args:
        target: a run's folder, or a GGUF; None: the newest run.
        settings: its ``gguf`` section.
        reporter: told of progress.
        modelfile: judge this Modelfile's template and stops in place of ours, for ``target``'s own Jinja.

    Raises:
        GateError: the first thing that is wrong.
        UsageError: no such run or file.
    """
    if target is not None and target.is_file():
        paths = RunPaths(target.parent)
        if modelfile is None and paths.record.is_file():
            return _check_run(paths, target, settings, reporter)
        return _check_foreign(target, modelfile)
    if modelfile is not None:
        raise UsageError("--modelfile judges a Modelfile for a GGUF.", "Name the GGUF: twin check MODEL.gguf")
    if target is not None and not target.exists():
        raise UsageError(f"There is nothing at '{target}'.", "Name a run's folder or a GGUF: twin check adapters/NAME")
    return _check_run(runs.find_adapter(target) if target else runs.newest_adapter(), None, settings, reporter)


def _check_run(paths: RunPaths, file: Path | None, settings: Settings, reporter: Reporter) -> Checked:
    """Check one file of a run, or its adapter and each of its GGUF files."""
    record = runs.read_record(paths)
    family, prompts = family_of(record), prompts_of(record, settings)
    reporter.say(f"Checking the run in {paths.root}")
    rendered = gate.check(family, prompts)
    made = [file] if file else sorted(paths.root.glob("model-*.gguf"))
    if made:
        need("gguf", "llama_cpp", "transformers", "gguf")
    elif not (find_spec("llama_cpp") and find_spec("transformers")):
        without = {"ids": "not compared: pip install 'twin-llm[gguf]'"}
        return Checked(str(paths.root), family.name, {"adapter": rendered | without})
    base = base_of(record, settings, reporter)
    ids = training_ids(base, family)
    passed = {}
    if file is None:
        read = vocabulary_ids(base, family, ids, prompts, settings.gguf.llama_cpp, reporter)
        passed["adapter"] = rendered | {"ids": read}
    asked = file_prompts(record, family, prompts)
    for one in made:
        passed[one.name] = _check_own(one, family, asked, ids, settings, reporter)
    return Checked(str(file or paths.root), family.name, passed)


def _check_own(
    file: Path,
    family: Family,
    asked: Sequence[tuple[str, Sequence[Turn]]],
    ids: Ids,
    settings: Settings,
    reporter: Reporter,
) -> dict[str, str]:
    """Check a run's GGUF: its template, ids and end, and what llama.cpp's own server makes of it where one is found."""
    from twin.gguf.check import check as check_file
    from twin.gguf.server import find_server, serve

    paths = RunPaths(file.parent)
    quantization = file.stem.removeprefix("model-")
    if file == paths.gguf(quantization) and runs.current_gguf(paths, quantization) is None:
        raise GateError(
            f"'{file}' was not made of the adapter that is there now.", f"Make it again: twin gguf {paths.root}"
        )
    with reporter.task(f"Checking {file.name}"):
        passed = check_file(file, family, asked, ids)
    binary = find_server(settings.gguf.llama_cpp)
    if binary is None:
        return passed | {"llama-server": "not asked: there is none on PATH or beside Ollama"}
    with reporter.task("Asking llama.cpp's own server"), serve(binary, file) as server:
        count = gate.check_server(family, asked[1:], server.apply_template)
    return passed | {"llama-server": f"{count} prompts rendered, byte for byte"}


def _check_foreign(file: Path, modelfile: Path | None) -> Checked:
    """Check a GGUF that no run of twin made: its own Jinja against the Go template that would serve it."""
    need("gguf", "llama_cpp", "gguf")
    from twin.gguf.reader import chat_template, open_reader
    from twin.llama import open_gguf

    jinja = chat_template(open_reader(file))
    if not jinja:
        raise GateError(f"'{file.name}' has no chat template: nothing says how it was trained.", _MAKE)
    gate.check_words(jinja, f"'{file.name}'", _MAKE)
    with open_gguf(file, vocab_only=True) as model:
        own = derive.own_template(jinja, *model.bos_and_eos())
        family = derive.fitting(own, model.control_tokens())
        if modelfile is not None:
            family, count = _judged(modelfile, family, own)
        gate.check_end(family, model.plain_ids, model.ends_generation)
    like = "its Jinja gives a pair that passed" if family.name == derive.NAME else f"its Jinja is {family.name}'s"
    passed = {"template": like, "end_token": family.end_token}
    if modelfile is not None:
        passed |= {"modelfile": f"{count} prompts, byte for byte", "stops": ", ".join(family.stops) or "none"}
    return Checked(str(file), family.name, {file.name: passed})


def _judged(modelfile: Path, family: Family, own: derive.Render) -> tuple[Family, int]:
    """Return the family with a Modelfile's template and stops, and how many prompts it renders as the model's Jinja."""
    from twin.ollama.modelfile import read_modelfile

    said = read_modelfile(modelfile)
    for command in ("renderer", "parser", "message", "adapter"):
        if command in said.commands:
            raise GateError(
                f"'{modelfile}' has {command.upper()}, so what is asked is not its TEMPLATE and the file alone.",
                f"Take {command.upper()} out. For a model of yours: twin register",
            )
    plain = [text for texts in gate.CONTENTS.values() for text in texts]
    for stop in said.stops:
        if not stop or any(stop in text for text in plain):
            raise GateError(
                f"'{modelfile}' stops at {stop!r}, which stands in ordinary text: replies would be cut.",
                f"Stop at {family.end_token!r}.",
            )
    if said.template is None:
        raise GateError(
            f"'{modelfile}' has no TEMPLATE: Ollama would pick one that looks like the model's, and stops with it.",
            f"Write one: twin register writes the pair of the family {family.name}.",
        )
    return family.model_copy(update={"go": said.template, "stops": said.stops}), derive.check_template(
        said.template, own, f"'{modelfile}'"
    )
