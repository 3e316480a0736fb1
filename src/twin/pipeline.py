"""The steps, each a call: export, train, gguf, evaluate, register. ``run`` does them in order, each when it is due.

    brain ──export──▶ data/ ──train──▶ adapters/NAME ──gguf──▶ model-q4_k_m.gguf ──register──▶ Ollama

A step leads to its folder: ``brain`` and ``dataset`` for export, ``training``, ``gguf``, ``evaluate``, ``ollama``.
What two features need of one another is put together here and nowhere else. Heavy imports stand inside the functions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twin import files, foreign_adapter, further, prompt, prove, reading, runs
from twin.adapter import check as check_adapter
from twin.curate import export, find_sources, need
from twin.errors import GateError, MachineError, StepError, TwinError, UsageError, nearest
from twin.foreign_adapter import Source
from twin.measure import chat_samples, check_measured, evaluate, survival_of
from twin.presets import TrainPlan, load_preset, plan_training
from twin.processes import place
from twin.progress import Reporter, Silent, release_memory
from twin.results import (
    AppEnv,
    Foreseen,
    Made,
    Masked,
    Registered,
    Survival,
    TrainedRun,
    Whole,
)
from twin.runs import DatasetPaths, RunPaths
from twin.settings import Settings
from twin.steps import Steps
from twin.templates import Family, gate

if TYPE_CHECKING:
    from twin.chat import Backend
    from twin.dataset.rows import Rows
    from twin.gguf.hired import Worker
    from twin.ollama.client import OllamaClient
    from twin.ollama.register import Meant

# ---------------------------------------------------------------- before anything long


def preflight(settings: Settings, plan: TrainPlan, where: Path, reporter: Reporter) -> None:
    """Find what would fail later before anything long starts: packages, template pair, names, converter, disk.

    Raises:
        MachineError, GateError, UsageError: the first thing that is missing or wrong.
    """
    from twin.training import backends, trackers

    preset = load_preset(settings.train.preset)
    prove.preset_family(preset, plan)
    need("train", "torch", "transformers", "peft", "accelerate")
    backends.choose_backend(backends.facts_of(plan))
    trackers.need(settings.train.report_to)
    parameters = preset.parameters_billions * 1e9
    files.need_disk(where, int(parameters * 0.05 + 50e6), "Training")
    if find_spec("llama_cpp"):
        from twin.gguf.converter import find_converter
        from twin.gguf.quantize import check_names

        check_names(settings.gguf.quantization)
        find_converter(settings.gguf.llama_cpp, reporter)
    else:
        reporter.say(
            "llama-cpp-python is not installed: training works, the GGUF step needs pip install 'twin-llm[gguf]'"
        )


# ---------------------------------------------------------------- train


def _load_rows(settings: Settings, reporter: Reporter) -> Rows:
    from twin.dataset import rows as dataset_rows

    rows = dataset_rows.load(settings)
    if rows.left_out:
        reporter.say(f"{rows.left_out} rows of {rows.train_path} are held out, so they are not learned")
    return rows


def _system_tokens(rows: Rows, count: Callable[[str], int]) -> int:
    """Return the length of the system prompt; one that an export of ours made must keep its bound for this model too.

    Raises:
        StepError: it does not.
    """
    tokens = count(rows.system)
    if rows.owned and tokens > prompt.MAX_TOKENS:
        raise StepError(
            f"The system prompt is {tokens} tokens for this model; at most {prompt.MAX_TOKENS} are allowed.",
            f"Set prompt_tokens = {prompt.MAX_TOKENS**2 // tokens} in [export] of twin.toml and export again.",
        )
    return tokens


def _checkpoint(paths: RunPaths, job_facts: dict[str, Any], go_on: bool, reporter: Reporter) -> Path | None:
    """Return what a run goes on from by itself, and say so; say too that checkpoints are deleted, where they are."""
    if go_on and (found := runs.matching_checkpoint(paths, job_facts)):
        reporter.say(f"Training goes on from {found}")
        return found
    if runs.has_checkpoints(paths):
        which = "are of other rows or settings, or not whole"
        if not go_on and runs.newest_checkpoint(paths.checkpoints):
            which = "--resume-from auto would go on from"
        reporter.say(f"Training begins anew and deletes the checkpoints in {paths.checkpoints}, which {which}")
    return None


def train(
    settings: Settings,
    reporter: Reporter,
    output: Path | None = None,
    dry_run: bool = False,
    go_on: bool = False,
    explain: bool = False,
    show_mask: int = 0,
    see: Callable[[Sequence[Masked]], None] = lambda shown: None,
) -> TrainedRun:
    """Dataset → LoRA adapter in ``adapters/NAME``.

    Args:
        settings: its ``train`` section over the preset.
        reporter: told of progress.
        output: the run's folder, where not ``adapters/NAME``.
        dry_run: resolve and count everything, train nothing.
        go_on: take up the run's newest checkpoint where it is of the same settings and rows.
        explain: a dry run that also tells, under ``explain``, what rows share and what each costs.
        show_mask: how many samples to return as text.
        see: given those before the first step.

    Raises:
        StoppedError: Ctrl-C or SIGTERM ended it after a step, which a checkpoint keeps.
        StepError: a loss is no number; its row is named.
        UsageError: a checkpoint of something else, which is named; and what the other parts say of settings and files.
        MachineError, GateError: see ``preflight``.
    """
    if place().size == 1 or dry_run or explain:
        return _train(settings, reporter, output, dry_run, go_on, explain, show_mask, see)
    from twin.training import many

    with many.joined() as world:
        if not world.first:
            _help_train()
        return world.share(lambda: _train(settings, reporter, output, False, go_on, False, show_mask, see))


def _help_train() -> None:
    """Train beside the first process, which says what; nothing but the base model is read on this machine."""
    from twin import basemodel
    from twin.training import backend_hf, many

    with many.follow(lambda name: basemodel.resolve(name, Silent()).folder) as job:
        backend_hf.train(job, Silent())


def _say_of_an_idle_gpu(plan: TrainPlan, reporter: Reporter) -> None:
    """Say so where a GPU is here that PyTorch can't use, which would train on the CPU without a word."""
    from twin.training import hardware, start

    if plan.device == "auto" and (reason := hardware.why_no_cuda()):
        reporter.say(f"The GPU that is here is not used: {reason}. {start.GPU_HINT}.")


def _train(
    settings: Settings,
    reporter: Reporter,
    output: Path | None,
    dry_run: bool,
    go_on: bool,
    explain: bool,
    show_mask: int,
    see: Callable[[Sequence[Masked]], None],
) -> TrainedRun:
    """Train as ``train`` says; in the first of several processes, which the others help."""
    from twin import basemodel
    from twin.dataset import rows as dataset_rows
    from twin.training import backends
    from twin.training.trackers import stdout_to_stderr

    started = time.perf_counter()
    plan = plan_training(settings.train, load_preset(settings.train.preset))
    paths = runs.run_paths(output.name, output.parent) if output else runs.run_paths(settings.train.name or plan.preset)
    dataset_rows.paths_of(settings)  # a missing dataset is told before anything is fetched
    preflight(settings, plan, paths.root, reporter)
    earlier = further.find(settings, paths)
    rows = _load_rows(settings, reporter)
    checkpoint = runs.find_checkpoint(settings.train.resume_from, paths)
    base = basemodel.resolve(plan.model, reporter)
    # transformers prints at its import where W&B is offline, and Unsloth always.
    with reporter.task("Loading the training libraries"), stdout_to_stderr():
        begun_by = runs.begun_backend(paths, checkpoint, go_on)
        backend = backends.ready(plan, base.folder, not (dry_run or explain), begun_by)  # Unsloth has to be first
        from twin.evaluate.likelihood import compare
        from twin.training import backend_hf, many, record, start
        from twin.training.samples import build_samples
        from twin.training.tokenizer import load_tokenizer
    _say_of_an_idle_gpu(plan, reporter)
    tokenizer = load_tokenizer(base.folder)
    family = prove.family_for(load_preset(settings.train.preset), plan, base, tokenizer)
    base_weights = basemodel.weights_digest(base, reporter)
    rows, about = further.choose(earlier, rows, plan, base_weights, family, settings, reporter)
    # What the GGUF is asked later; what is learned is proved below.
    prove.before_training(base, family, tokenizer, [list(row.turns[:-1]) for row in rows.val], settings, reporter)

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    system_tokens = _system_tokens(rows, count)
    with reporter.task("Reading rows"):
        built = build_samples(rows.train, tokenizer, family, plan.max_length)
        held_out = chat_samples(rows.val, tokenizer, family, plan.max_length)
    proved, shown, built, held_out = prove.mask(
        base, family, tokenizer, built, held_out, plan.max_length, settings, reporter, show_mask
    )  # fmt: skip
    see(shown)
    read = ((rows.train_path, len(rows.train)), (rows.val_path, len(rows.val)))
    facts = {
        **record.describe(paths, base, base_weights, family, plan, (rows.system, system_tokens), read, built),
        "mask": proved, "provenance": rows.provenance, "report_to": list(settings.train.report_to), **about,
    }  # fmt: skip
    if dry_run or explain:
        would = start.begin(plan, base.folder, built.samples, backend)
        facts["result"] = record.foreseen(
            plan, base.folder, built.samples, would, (rows.train, count) if explain else None
        ) | {"seconds": round(time.perf_counter() - started, 3)}
        return TrainedRun(paths, facts, mask=shown)
    job_facts = {
        **plan.model_dump(),
        **further.job(earlier),
        "learned_file": facts["dataset"]["train"],
        "held_out_file": facts["dataset"]["val"],
        **basemodel.state(plan.model),
    }
    with files.exclusive(paths.root), files.scratch_dir(paths.root) as scratch:
        checkpoint = checkpoint or _checkpoint(paths, job_facts, go_on, reporter)
        begun = runs.bind_checkpoints(
            paths, checkpoint, job_facts, lambda: asdict(start.begin(plan, base.folder, built.samples, backend))
        )
        job = backend_hf.Job(
            base.folder, base.hub_id, plan, built.samples, held_out.samples if held_out else (), paths.checkpoints,
            scratch, start.begun_with(begun), checkpoint, tuple(settings.train.report_to),
            earlier.paths.adapter_weights if earlier else None, time.perf_counter() - started,
        )  # fmt: skip
        outcome = backend_hf.train(many.lead(job), reporter)
        change = asdict(compare(outcome.before, outcome.after)) if held_out else None
        since = asdict(compare(outcome.earlier, outcome.after)) if outcome.earlier else None
        facts["result"] = record.result(outcome, change, outcome.seconds_before + time.perf_counter() - started, since)
        record.install(
            paths, scratch, family, facts, outcome,
            further.learned_by(earlier) | record.learned_from(plan, built, outcome.best_step),
        )  # fmt: skip
    release_memory()
    return TrainedRun(paths, facts, outcome.logs, shown)


# ---------------------------------------------------------------- gguf


def gguf(
    adapter: Path | None,
    settings: Settings,
    reporter: Reporter,
    output: Path | None = None,
    dry_run: bool = False,
    lora: bool = False,
) -> Made:
    """Adapter → checked GGUF files beside it.

    Args:
        adapter: a run's folder, or one with an adapter of another tool; None: the newest run.
        settings: its ``gguf`` section.
        reporter: told of progress.
        output: where the file goes, with one quantization alone.
        dry_run: check everything that can be checked before and foresee sizes and time; write nothing.
        lora: write the adapter alone, for a base model that is served already.
    """
    need("gguf", "llama_cpp", "torch", "transformers", "gguf")
    from twin.gguf.converter import find_converter
    from twin.gguf.hired import hire
    from twin.gguf.quantize import check_names

    names = check_names(settings.gguf.quantization)
    if output is not None and len(names) > 1 and not lora:
        raise UsageError("--output names one file and there are several quantizations.", "Leave --output out.")
    if output is not None and output.exists():
        raise UsageError(f"'{output}' is there already.", "Name another file with --output, or move it away.")
    adapter = foreign_adapter.folder(adapter)
    started = time.perf_counter()
    if lora:
        with foreign_adapter.source(adapter, settings, reporter) as source:
            made = _gguf_lora(source, settings, reporter, output, dry_run)
    else:
        script = find_converter(settings.gguf.llama_cpp, reporter)
        with (
            hire(script, reporter, reading.__name__) as worker,
            foreign_adapter.source(adapter, settings, reporter, reading.asked_of(worker)) as source,
            closing(worker),  # before the source's scratch folder goes: Windows removes no file that is mapped
        ):
            made = _gguf(worker, source, settings, reporter, output, dry_run)
    release_memory()
    return replace(made, seconds=time.perf_counter() - started)


def _gguf(
    worker: Worker, source: Source, settings: Settings, reporter: Reporter, output: Path | None, dry_run: bool
) -> Made:
    """Merge and quantize."""
    from twin.gguf.make import foresee, make

    paths, base, family = source.paths, source.base, source.family
    targets = {name.lower(): output or paths.gguf(name.lower()) for name in settings.gguf.quantization}
    if dry_run:
        own = settings.gguf
        would = foresee(worker, base.folder, source.folder, family, targets, own.llama_cpp, reporter, own.imatrix)
        return Made(paths, tuple(would["files"]), 0.0, would["seconds"])
    with files.exclusive(paths.root):
        prompts = source.prompts()
        ids = source.ids([turns for _, turns in prompts])
        made = make(
            worker, base.folder, source.folder, family, targets, prompts, ids,
            settings.gguf.llama_cpp, reporter, source.rows, settings.gguf.imatrix,
        )  # fmt: skip
        if output is None and source.is_run:
            for file in made:
                about = file | {"adapter": runs.adapter_digests(paths)}
                files.write_json(paths.gguf_record(file["quantization"]), about)
    return Made(paths, tuple(made), 0.0)


def _gguf_lora(source: Source, settings: Settings, reporter: Reporter, output: Path | None, dry_run: bool) -> Made:
    """Write the adapter alone."""
    from twin.gguf import adapter_file
    from twin.gguf.delta import open_adapter

    paths, opened = source.paths, open_adapter(source.folder)
    target = output or paths.adapter_gguf
    if dry_run:
        adapter_file.products(source.base.folder, opened)
        return Made(paths, ({"gguf": str(target), "quantization": adapter_file.DTYPE},), 0.0)
    with files.exclusive(paths.root):
        of_the_model = next(iter(sorted(paths.root.glob("model-*.gguf"))), None)
        made = adapter_file.make_adapter(
            source.base.folder, opened, target, settings.gguf.llama_cpp, of_the_model, reporter
        )
    return Made(paths, (made,), 0.0)


# ---------------------------------------------------------------- register


def pick_run(name: str, adapter: Path | None, reporter: Reporter) -> RunPaths:
    """Return the run to serve as ``name``: ``adapter``, else ``adapters/NAME``, else the newest; says which."""
    if adapter is not None:
        paths = runs.find_adapter(adapter)
    else:
        own = runs.run_paths(name) if runs.NAME.fullmatch(name) else None  # Ollama's names may be no folder's
        if own and own.checkpoints.exists() and not own.record.exists():
            raise UsageError(
                f"The training of '{own.root}' did not finish.",
                f"Finish it: twin train --name {name} --resume-from auto, or name another run with --adapter.",
            )
        paths = runs.find_adapter(own.root) if own and own.record.exists() else runs.newest_adapter()
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
    env: Path | None = None,
    replace_own: bool = False,
) -> Registered:
    """GGUF → a model in Ollama whose prompts are proved to be those of training.

    Args:
        name: the model's name in Ollama.
        settings: its ``ollama`` section, and the first quantization of ``gguf``.
        reporter: told of progress.
        adapter: the run to use, where not ``adapters/NAME`` or the newest.
        gguf_file: the file to use, where not the run's first quantization.
        force: replace a model of that name, and serve a twin that was refused when it was measured.
        dry_run: check the server and the run, change nothing.
        env: the app's ``.env``, which is made to name this model; checked first, written last.
        replace_own: the model of that name is, as it stands, the one that was registered from this run.

    Raises:
        GateError: the twin was refused when it was measured; or the served prompts are not those of training.
    """
    from twin.app import dotenv
    from twin.ollama.client import OllamaClient
    from twin.ollama.modelfile import model_name, modelfile
    from twin.ollama.register import check_free
    from twin.ollama.register import register as register_live

    model_name(name)
    paths = pick_run(name, adapter, reporter)
    record = runs.read_record(paths)
    client = OllamaClient(settings.ollama.host)
    foreseen = dotenv.foresee(env, name, client.url) if env else None
    client.version()
    check_free(client, name, force or replace_own)  # told before a GGUF is made for it
    family = prove.family_of(record)
    gate.check(family)
    file, sha256 = file_to_serve(paths, gguf_file, settings, reporter, dry_run)
    check_measured(paths, file, sha256, force, reporter)
    parameters = serving_parameters(settings, record["plan"])
    if dry_run:
        return Registered(name, client.url, False, str(paths.root), str(file), {}, foreseen)
    meant, license_text = _as_meant(record, family, parameters, settings, reporter)
    with files.exclusive(paths.root):
        source = file.name if file.parent == paths.root else str(file.absolute())
        files.write_text(paths.modelfile, modelfile(source, family, meant.system, parameters, license_text))
        done = register_live(
            client, name, file, meant, license_text=license_text, force=force or replace_own, reporter=reporter,
            sha256=sha256,
        )  # fmt: skip
        runs.remember_model(paths, done.model, done.host)
    told = _tell_app(env, name, client.url) if env else None
    return Registered(done.model, done.host, done.created, str(paths.root), str(file), dict(done.checks), told)


def _as_meant(
    record: dict[str, Any], family: Family, parameters: dict[str, Any], settings: Settings, reporter: Reporter
) -> tuple[Meant, str]:
    """Return what a run's model must be as it is served, and the license that goes with it."""
    need("gguf", "transformers")
    from twin import basemodel
    from twin.ollama.register import Meant
    from twin.training.samples import prompt_ids
    from twin.training.tokenizer import load_tokenizer

    base = prove.base_of(record, settings, reporter)
    tokenizer = load_tokenizer(base.folder)
    license_text = f"{record['plan']['license']} (base model {record['base_hub_id']})\n"
    if text := basemodel.license_text(base, reporter):
        license_text += f"\n{text}"
    meant = Meant(
        family, record["system_prompt"], parameters,
        prompt_ids=lambda turns: len(prompt_ids(tokenizer, family, turns)),
        vocabulary=tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))),
    )  # fmt: skip
    return meant, license_text


def file_to_serve(
    paths: RunPaths, gguf_file: Path | None, settings: Settings, reporter: Reporter, dry_run: bool
) -> tuple[Path, str | None]:
    """Return the GGUF to serve, and its SHA-256 where it had to be read: the one that was named, else the run's.

    The run's own is made where it is missing or of an older adapter.

    Raises:
        UsageError: the one that was named is not there.
    """
    quantization = settings.gguf.quantization[0].lower()
    file = gguf_file or paths.gguf(quantization)
    if gguf_file is not None and not file.exists():
        raise UsageError(f"There is no GGUF '{file}'.", f"Make one: twin gguf {paths.root}")
    if gguf_file is not None:
        reporter.say(f"{gguf_file} is taken as it is: nothing shows that it was made of this adapter")
        _open_once(file)
    sha256 = None
    if gguf_file is None and not dry_run:
        with reporter.task(f"Hashing {file.name}"):
            sha256 = runs.current_gguf(paths, quantization)
        if sha256 is None:
            if file.exists():
                reporter.say(f"{file} was not made of this adapter: it is made again")
            gguf(paths.root, settings, reporter)
            sha256 = files.read_json(paths.gguf_record(quantization))["sha256"]
    return file, sha256


def _tell_app(env: Path, name: str, url: str) -> AppEnv:
    """Set the app's ``.env``, once the model passed; what fails now leaves a registered model, and says so."""
    from twin.app import dotenv

    try:
        return dotenv.write(env, name, url)
    except TwinError as error:
        raise type(error)(
            f"'{name}' is registered and the app does not know it: {error.message}",
            f"{error.hint} Then: twin register {name} --force --env '{env}'",
        ) from None


def serving_parameters(settings: Settings, plan: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of the served model besides its stops; both are always explicit."""
    given = settings.ollama
    num_ctx = given.num_ctx or plan["num_ctx"]
    if num_ctx < plan["max_length"]:
        raise GateError(
            f"num_ctx {num_ctx} is shorter than the {plan['max_length']} tokens of training: the prompt would be cut.",
            f"Use --num-ctx {plan['max_length']} or more.",
        )
    return {
        "temperature": plan["temperature"] if given.temperature is None else given.temperature,
        "num_ctx": num_ctx,
    }


def _open_once(file: Path) -> None:
    """Refuse what is no whole GGUF before gigabytes of it are sent."""
    need("gguf", "llama_cpp")
    from twin.llama import open_gguf

    try:
        with open_gguf(file, vocab_only=True):
            pass
    except StepError:
        raise UsageError(
            f"'{file}' is no whole GGUF.", "It may be cut short: copy it again, or make it anew: twin gguf"
        ) from None


# ---------------------------------------------------------------- chat


@contextmanager
def gguf_backend(file: Path, settings: Settings) -> Iterator[Backend]:
    """Open a run's GGUF for a conversation with the prompt it was trained with.

    Args:
        file: the GGUF, in its run's folder.
        settings: its ``ollama`` section: the same context and temperature as those of the registered model.

    Raises:
        UsageError: no such file, or no run.json beside it.
    """
    need("gguf", "llama_cpp")
    if not file.is_file():
        raise UsageError(f"There is no GGUF '{file}'.", "Make one: twin gguf")
    record = runs.read_record(RunPaths(file.parent))
    from twin.chat import GgufBackend
    from twin.llama import open_gguf

    parameters = serving_parameters(settings, record["plan"])
    with open_gguf(file, num_ctx=parameters["num_ctx"]) as model:
        family = prove.family_of(record)
        gate.check(family)
        yield GgufBackend(model, family, record["system_prompt"], **parameters)


# ---------------------------------------------------------------- run

STEPS = ("export", "train", "gguf", "evaluate", "register")


def steps_between(first: str, last: str) -> tuple[str, ...]:
    """Return the steps of a run from ``first`` to ``last``, both included.

    Raises:
        UsageError: there is no such step, or none between them.
    """
    for option, step in (("--from", first), ("--until", last)):
        if step not in STEPS:
            raise UsageError(f"There is no step '{step}' ({option}).", nearest(step, STEPS))
    chosen = STEPS[STEPS.index(first) : STEPS.index(last) + 1]
    if not chosen:
        raise UsageError(f"The step '{last}' comes before '{first}'.", f"The order: {', '.join(STEPS)}.")
    return chosen


def _before_run(
    chosen: Sequence[str], sources: Sequence[Path], settings: Settings, paths: RunPaths, reporter: Reporter,
    env: Path | None,
) -> list[Path]:  # fmt: skip
    """Check what the chosen steps need, and the run that is there where training is not among them.

    Returns:
        What the export reads.

    Raises:
        UsageError, MachineError, GateError: the first thing that is missing or wrong.
    """
    if sources and chosen[0] != "export":
        raise UsageError(f"The export reads {sources[0]}, and --from {chosen[0]} leaves it out.", "Leave one out.")
    if env and "register" not in chosen:
        raise UsageError(f"--env is for the registered model, and --until {chosen[-1]} ends before.", "Leave one out.")
    found = find_sources(sources) if "export" in chosen else []
    if "train" in chosen:
        preflight(settings, plan_training(settings.train, load_preset(settings.train.preset)), paths.root, reporter)
        further.find(settings, paths)
    elif "export" not in chosen:
        _check_brought_back(paths, settings, reporter, measured="evaluate" in chosen)
    if {"gguf", "evaluate", "register"} & set(chosen):
        need("gguf", "llama_cpp", "gguf")
    return found


def _check_brought_back(paths: RunPaths, settings: Settings, reporter: Reporter, measured: bool) -> None:
    """Check a run whose training is left out: it may have been trained elsewhere.

    Args:
        paths: of the run.
        settings: where the rows are.
        reporter: told of what nothing shows.
        measured: its held-out rows are needed.

    Raises:
        UsageError: there is none, it is not whole, or holds what no run does.
        GateError: it was trained on other rows than those that are here, or on another base model.
    """
    from twin.dataset import rows

    runs.find_adapter(paths.root)
    record = runs.read_record(paths)
    for path in paths.root.iterdir():
        if path.is_symlink():
            raise UsageError(f"'{path}' is a link, and a run has none.", "Copy the files themselves: rsync -rt")
    check_adapter(paths, record)
    learned_file = settings.train.dataset or DatasetPaths(settings.export.output).train
    for part, here in (("train", learned_file), ("val", rows.held_out_path(settings))):
        if here.is_file() and not runs.knows_rows(record, part, here):
            raise GateError(
                f"'{paths.root}' was not trained with the rows in '{here}'.",
                f"Bring the dataset back that it was trained with, or train again: twin run {paths.name}",
            )
    if measured and runs.val_change(record) and runs.rows_file(record, "val", rows.held_out_path(settings)) is None:
        raise UsageError(
            f"The held-out rows of '{paths.root}' are not here, so the twin can't be measured.",
            f"Bring the dataset back, or go on without: twin register {paths.name}",
        )
    if not learned_file.is_file():
        reporter.say(f"There is no '{learned_file}', so nothing shows that it was trained with your rows")
    reporter.say(f"Using the run in {paths.root}, trained on {record['base_model']}")


def foresee(
    name: str,
    sources: Sequence[Path],
    settings: Settings,
    reporter: Reporter,
    env: Path | None = None,
    chosen: Sequence[str] = STEPS,
) -> Foreseen:
    """Check what ``run`` needs and count its rows, without writing into the project."""
    from twin.app import dotenv
    from twin.ollama.client import resolve_host

    paths = runs.run_paths(name)
    found = _before_run(chosen, sources, settings, paths, reporter, env)
    told = dotenv.foresee(env, name, resolve_host(settings.ollama.host)) if env else None
    exported = export(found, settings, reporter, dry_run=True) if "export" in chosen else None
    return Foreseen(exported, tuple(Steps(paths, reporter).done), told, tuple(chosen))


def run(
    name: str,
    sources: Sequence[Path],
    settings: Settings,
    reporter: Reporter,
    force: bool = False,
    env: Path | None = None,
    chosen: Sequence[str] = STEPS,
) -> Whole:
    """Do the steps of the run ``name``; each is skipped when what it reads did not change.

    A server that does not answer ends the run after the GGUF: ``registered`` is False and ``note`` says what to type.

    Args:
        name: the run's and the model's name.
        sources: files and folders; empty: ``./brain``.
        settings: of all steps.
        reporter: told of progress.
        force: replace a model of that name that is not, as it stands, the one this run registered.
        env: the app's ``.env``, which is made to name this model; checked first, written last.
        chosen: the steps to do, in order (see ``steps_between``); what those before them made has to be there.
    """
    paths = runs.run_paths(name)
    settings = settings.model_copy(update={"train": settings.train.model_copy(update={"name": name})})
    if "train" not in chosen and settings.train.model:  # where the base model is on this machine
        settings = settings.model_copy(update={"gguf": settings.gguf.model_copy(update={"base": settings.train.model})})
    found = _before_run(chosen, sources, settings, paths, reporter, env)
    client, note = _reach(name, settings, reporter, env) if "register" in chosen else (None, "")
    data = DatasetPaths(settings.export.output)
    told = None
    with files.exclusive(paths.root, "run"), ExitStack() as held:
        if "export" in chosen or data.root.is_dir():
            held.enter_context(files.exclusive(data.root, "run"))
        steps = Steps(paths, reporter)
        if "export" in chosen:
            _export_once(steps, found, settings, reporter)
        if "train" in chosen:
            _train_once(steps, paths, settings, reporter)
        if "gguf" in chosen:
            _gguf_once(steps, paths, settings, reporter)
        measured = _evaluate_once(steps, paths, settings, reporter, force) if "evaluate" in chosen else None
        if client and not note:
            _register_once(steps, paths, client, settings, reporter, force)
            told = _tell_app(env, name, client.url) if env else None
    return Whole(name, paths, steps.seconds, measured, bool(client and not note), note, told)


def _reach(name: str, settings: Settings, reporter: Reporter, env: Path | None) -> tuple[OllamaClient, str]:
    """Return the server, and what to type later where none answers; the app's ``.env`` is checked."""
    from twin.app import dotenv
    from twin.ollama.client import OllamaClient

    client = OllamaClient(settings.ollama.host)
    if env:
        dotenv.foresee(env, name, client.url)
    try:
        client.version()
    except MachineError as error:
        reporter.say(f"{error.message} The run will end with the GGUF.")
        return client, f"{error.message} {error.hint}. Then: twin register {name}" + (f" --env '{env}'" if env else "")
    return client, ""


def _export_once(steps: Steps, found: Sequence[Path], settings: Settings, reporter: Reporter) -> None:
    def do_export() -> list[Path]:
        export(found, settings, reporter)
        data = DatasetPaths(settings.export.output)
        return [data.full, data.train, data.val, data.report]

    steps.do("export", settings.export.model_dump(mode="json"), found, do_export)


def _train_once(steps: Steps, paths: RunPaths, settings: Settings, reporter: Reporter) -> None:
    from twin import basemodel
    from twin.dataset import rows as dataset_rows

    plan = plan_training(settings.train, load_preset(settings.train.preset))
    learned_file, held_out = dataset_rows.paths_of(settings)
    earlier = further.find(settings, paths)
    facts = plan.model_dump() | basemodel.state(plan.model) | (earlier.job() if earlier else {})

    def do_train() -> list[Path]:
        train(settings, reporter, output=paths.root, go_on=True)
        return [paths.adapter_config, paths.adapter_weights, paths.record]

    steps.do("train", facts, [learned_file, *([held_out] if held_out else [])], do_train)


def _gguf_once(steps: Steps, paths: RunPaths, settings: Settings, reporter: Reporter) -> None:
    from twin import basemodel

    def do_gguf() -> list[Path]:
        made = gguf(paths.root, settings, reporter)
        return [path for file in made.files for path in (Path(file["gguf"]), paths.gguf_record(file["quantization"]))]

    base = basemodel.state(settings.gguf.base or runs.read_record(paths)["base_model"])
    reads = [paths.adapter_config, paths.adapter_weights]
    steps.do("gguf", settings.gguf.model_dump(mode="json") | base, reads, do_gguf)


def _evaluate_once(
    steps: Steps, paths: RunPaths, settings: Settings, reporter: Reporter, force: bool
) -> Survival | None:
    """Measure the twin; None where nothing is held out. A refusal ends the run, and is not remembered as done."""
    from twin.dataset.rows import held_out_path

    record = runs.read_record(paths)
    if runs.val_change(record) is None:
        reporter.say("No conversation is held out, so the twin is not measured.")
        return None
    here = held_out_path(settings)
    held_out = runs.rows_file(record, "val", here) or here
    quantization = settings.gguf.quantization[0].lower()
    before = survival_of(paths)
    if before is None or (before.refused and not force):  # an older twin's, edited, or let through by --force
        steps.done.pop("evaluate", None)

    def do_evaluate() -> list[Path]:
        evaluate(paths, quantization, settings, reporter, force=force)
        return [paths.likelihood]

    reads = [paths.gguf(quantization), paths.adapter_config, paths.adapter_weights, held_out, paths.record]
    steps.do("evaluate", {}, reads, do_evaluate)
    return survival_of(paths)


def _register_once(
    steps: Steps, paths: RunPaths, client: OllamaClient, settings: Settings, reporter: Reporter, force: bool
) -> None:
    """Register the run unless the server has it as it was; another model of its name needs ``force``."""
    name = paths.name
    before = files.read_json(paths.registered) if paths.registered.exists() else None
    ours = before == {"host": client.url, "digest": client.digest(name)}
    if not ours:  # never registered there, removed, or by now somebody else's model of that name
        steps.done.pop("register", None)

    def do_register() -> list[Path]:
        register(name, settings, reporter, adapter=paths.root, force=force, replace_own=ours)
        files.write_json(paths.registered, {"host": client.url, "digest": client.digest(name)})
        return [paths.modelfile, paths.registered]

    wanted = settings.ollama.model_dump(mode="json") | {"host": client.url}
    file = paths.gguf(settings.gguf.quantization[0].lower())
    steps.do("register", wanted, [file, paths.record], do_register)
