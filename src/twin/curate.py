"""What is done with a brain before anything is trained: export, look, forget, serve.

``export`` is the pipeline's first step; the others show or change what it would find. As in ``pipeline``, what two
features need of one another is put together here, and heavy imports stand inside the functions.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from twin import __version__, files, prompt, runs
from twin.dropped import Dropped
from twin.errors import MachineError, NothingLeftError, StepError, TwinError, UsageError, nearest
from twin.names import is_digest, key, name_digest, person_digest, source_digest
from twin.progress import Reporter
from twin.prompt import SystemPrompt
from twin.records import Brain, JournalEntry, Memory
from twin.results import Exported, Forgot, Previewed, Seen
from twin.runs import DatasetPaths
from twin.settings import Settings

if TYPE_CHECKING:
    from twin.app.contract import ExportAsk, RowFormat
    from twin.app.source import BrainSource, ExportedFiles
    from twin.brain.forgotten import Tombstone
    from twin.dataset import Dataset

DEFAULT_SOURCE = Path("brain")
Ask = Callable[[str], str]


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


# ---------------------------------------------------------------- reading


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


def app_is_meant(sources: Sequence[Path]) -> bool:
    """Say whether the app is the source: nothing else is named or there, and the environment names the app."""
    named = os.environ.get("TWIN_APP_URL") or os.environ.get("TWIN_APP_TOKEN")
    return not sources and not DEFAULT_SOURCE.exists() and bool(named)


def read_brain(sources: Sequence[Path], settings: Settings, reporter: Reporter, watch: str | None = None) -> Brain:
    """Return what the sources hold of one person, without what is forgotten.

    Args:
        sources: files and folders; empty: ``./brain``.
        settings: the person, who is who, and the columns of tables.
        reporter: told of progress.
        watch: the reason for leaving out whose texts are listed.
    """
    from twin import brain
    from twin.brain import forgotten

    stones = forgotten.read(runs.forgotten_file())
    found = find_sources(sources)
    with reporter.task("Looking through the brain"):
        return brain.load(found, settings.export.person, settings.people, stones, settings.columns, watch)


@contextmanager
def built_dataset(
    person: Brain, settings: Settings, reporter: Reporter, beside: Path | None, watch: str | None = None
) -> Iterator[tuple[Dataset, SystemPrompt, tuple[Memory, ...]]]:
    """Yield a brain's dataset, its system prompt and its reserved memories; rows can be read inside the block.

    Args:
        person: the brain.
        settings: its ``export`` section.
        reporter: told of progress.
        beside: rows stand in a folder beside this one until they are written; None: in the system's own place.
        watch: the reason for leaving out whose texts are listed.
    """
    from twin import dataset
    from twin.dataset.private import Private

    own = settings.export
    names = dataset.other_names(person, settings.people) if own.pseudonyms else {}
    private = Private(person.person, own, names)
    known = private.clean(person, watch)
    system = prompt.build(known, own.prompt_tokens)
    scratch = files.scratch_dir(beside) if beside else _temporary()
    with scratch as folder:
        if not beside:
            own = own.model_copy(update={"output": Path(folder)})  # what a full disk is told of
        with reporter.task("Building rows") as task:
            built = dataset.build(known, system, own, Path(folder), private, task.advance, watch)
        try:
            yield built, system, private.reserved
        finally:
            built.close()


def _temporary() -> tempfile.TemporaryDirectory[str]:
    """Return a folder in the system's own place for what is temporary.

    Raises:
        MachineError: none can be written.
    """
    try:
        return tempfile.TemporaryDirectory(prefix="twin-")
    except OSError:
        raise MachineError(
            "There is no folder for temporary files that can be written.",
            "Free some space, or set TMPDIR to a folder on another disk.",
        ) from None


# ---------------------------------------------------------------- export


def export(
    sources: Sequence[Path],
    settings: Settings,
    reporter: Reporter,
    dry_run: bool = False,
    via: Literal["brain", "app"] | None = None,
    ask: Ask | None = None,
) -> Exported:
    """Brain → dataset.

    Args:
        sources: files and folders; empty: ``./brain``, else the app where the environment names it.
        settings: its ``export`` section, who is who, the columns of tables, and where the app is.
        reporter: told of progress.
        dry_run: count, write nothing.
        via: read the app: its ``brain``, of which the dataset is made here, or the rows that the ``app`` made itself.
        ask: prompts for the app's token where nothing holds one.
    """
    with files.no_empty_parents(settings.export.output):
        if via == "app":
            return _export_from_app(settings, reporter, ask)
        if via == "brain" or app_is_meant(sources):
            from twin.app.client import fetch_brain, find_token

            token = find_token(os.environ, settings.app.token_file, ask)
            with files.scratch_dir(settings.export.output) as folder:
                fetched = fetch_brain(settings.app.url, token, folder, reporter)
                return _export(
                    [*sources, *fetched], [*map(str, sources), settings.app.url], settings, reporter, dry_run
                )
        found = find_sources(sources)
        return _export(found, list(map(str, found)), settings, reporter, dry_run)


def _export(
    found: Sequence[Path], called: Sequence[str], settings: Settings, reporter: Reporter, dry_run: bool
) -> Exported:
    from twin.dataset import rows

    started = time.perf_counter()
    for name in called:
        if not name.isascii() and name.encode("utf-8", "ignore").decode() != name:
            raise UsageError(f"'{name}' is no name in UTF-8, so dataset.json can't tell of it.", "Rename it.")
    own = settings.export
    paths = DatasetPaths(own.output)
    person = read_brain(found, settings, reporter)
    with built_dataset(person, settings, reporter, None if dry_run else paths.root) as (built, system, reserved):
        for message, hint in built.dropped.problems.items():
            reporter.say(f"Left out: {message} {hint}")
        done = Exported(
            person=person.person,
            paths=paths,
            train=len(built.train),
            val=len(built.val),
            dropped=dict(built.dropped.counts),
            kinds=built.kinds,
            redacted=built.redacted,
            reserved=len(reserved),
            closest=round(built.closest.similarity, 3) if built.closest else None,
            closest_rows=built.closest_ids(),
            problems=tuple(built.dropped.problems),
            seconds=time.perf_counter() - started,
        )
        if not dry_run:
            carried = own.include_system and own.format != "raw"  # raw rows are words alone
            report = done.as_json() | {
                "twin": __version__,
                "format": own.format,
                "system_prompt": system.text if carried else "",
                "memories_in_prompt": len(system.memory_ids),
                "sources": list(called),
                "provenance": _provenance(person, built),
                "settings": own.model_dump(mode="json"),
            }
            with reporter.task("Writing rows"):
                rows.write(built, reserved, paths, own.format, person.person, report)
    return replace(done, seconds=time.perf_counter() - started)


def _provenance(person: Brain, built: Dataset) -> dict[str, Any]:
    """Return of each document who speaks in it and when; in one of memories or journals alone nobody does."""
    from twin.dataset.shard import Source

    found = dict(built.sources)
    told: list[Memory | JournalEntry] = [*person.memories, *person.journals]
    for item in told:
        found.setdefault(person.source_of(item), Source()).date([item.at])
    if person.personality.source:
        found.setdefault(person.personality.source, Source())
    places = {name: source_digest(person.documents.get(name, name)) for name in found}
    return {name: source.as_json() | {"place": places[name]} for name, source in found.items()}


def _export_from_app(settings: Settings, reporter: Reporter, ask: Ask | None) -> Exported:
    """Let the app make the rows, and fetch them."""
    from twin.app.client import ExportAsk, fetch_rows, find_token
    from twin.dataset import rows

    started = time.perf_counter()
    own, paths = settings.export, DatasetPaths(settings.export.output)
    token = find_token(os.environ, settings.app.token_file, ask)
    wanted = ExportAsk(own.format, own.include_system, own.deduplicate, own.quality_filter, own.validation_split)
    with files.scratch_dir(paths.root) as folder:
        got = fetch_rows(settings.app.url, token, wanted, folder, reporter)
        done = Exported(
            own.person or "", paths, got.train_rows, got.val_rows, dict(got.dropped), {}, {}, 0, None, (), (),
            time.perf_counter() - started,
        )  # fmt: skip
        about = {"twin": __version__, "format": own.format, "sources": [settings.app.url], "via": "app"}
        train, val = (files.blocks(part) if part else () for part in (got.train, got.val))
        rows.write_lines(train, val, paths, done.as_json() | about)
    return done


# ---------------------------------------------------------------- looking


def stats(sources: Sequence[Path], settings: Settings, reporter: Reporter) -> Seen:
    """Return what the brain holds, and what an export would make of it.

    Args:
        sources: files and folders; empty: ``./brain``.
        settings: its ``export`` section.
        reporter: told of progress.
    """
    from twin.dataset.stats import Counts

    person = read_brain(sources, settings, reporter)
    counts = Counts(person.person)
    with reporter.task("Counting messages") as task:
        for conversation in person.conversations():
            counts.hear(conversation)
            task.advance(len(conversation.messages))
    with built_dataset(person, settings, reporter, None) as (built, _, reserved):
        return Seen(
            person=person.person,
            counts=counts.as_json(),
            memories=len(person.memories),
            journals=len(person.journals),
            train=len(built.train),
            val=len(built.val),
            kinds=built.kinds,
            dropped=dict(built.dropped.counts),
            redacted=built.redacted,
            reserved=len(reserved),
            problems=tuple(built.dropped.problems),
        )


def preview(
    sources: Sequence[Path], settings: Settings, reporter: Reporter, most: int, dropped: str | None = None
) -> Previewed:
    """Return some rows as an export would write them, or what was left out for one reason.

    Args:
        sources: files and folders; empty: ``./brain``.
        settings: its ``export`` section.
        reporter: told of progress.
        most: how many.
        dropped: the reason.

    Raises:
        UsageError: nothing was left out for that reason.
    """
    person = read_brain(sources, settings, reporter, dropped)
    with built_dataset(person, settings, reporter, None, dropped) as (built, _, _):
        counts = dict(built.dropped.counts)
        if dropped is None:
            return Previewed(person.person, tuple(built.train[:most]), (), counts)
        if dropped not in counts:
            raise UsageError(f"Nothing was left out for '{dropped}'.", nearest(dropped, counts or ["nothing"]))
        return Previewed(person.person, (), tuple(built.dropped.listed[:most]), counts)


# ---------------------------------------------------------------- forgetting


def forget(
    settings: Settings,
    reporter: Reporter,
    person: str = "",
    source: str = "",
    before: datetime | None = None,
    dry_run: bool = False,
) -> Forgot:
    """Hide what is named, export again, and name everything that was made from it.

    Args:
        settings: its ``export.output`` is the dataset that is exported again, with the settings it was made with.
        reporter: told of progress.
        person: whose messages to hide; of what is named, all must hold.
        source: the file or folder of the brain to hide.
        before: hide what is dated earlier.
        dry_run: say what it would do.

    Raises:
        UsageError: nothing is named, or what is named is not there, or is the twin's own person.
    """
    from twin.brain import forgotten
    from twin.brain.identity import Identity

    if not (person or source or before):
        raise UsageError("Nothing is named.", "Say what to forget: twin forget PERSON, --source NAME or --before DATE")
    report = DatasetPaths(settings.export.output).report
    last = files.read_json(report) if report.exists() else {}
    sources = _sources_of(last, report)
    settings = _as_exported(settings, last, reporter)
    named = Identity(settings.people).resolve(person) if person else ""
    stone = forgotten.Tombstone(named, source, before)
    file = runs.forgotten_file()
    known = forgotten.read(file)
    old = next((one for one in known.stones if one == stone), None)
    again = bool(last) and old is not None  # another dataset, or forgetting was stopped halfway
    try:
        brain = read_brain(sources, settings, reporter)
    except UsageError as error:
        if not again or dry_run:
            raise
        raise _nothing_left(stone, settings, error) from None
    if key(named) == key(brain.person):
        raise UsageError(f"'{named}' is whose twin this is.", "Name somebody else, a --source or a --before date.")
    hidden = _hidden(brain, stone)
    hit = [place for name, place in brain.documents.items() if source and stone.hits_source(name)]
    stone = replace(stone, paths=frozenset(hit).union(old.paths if old else ()))
    told = brain.personality.source
    profile = bool(source and told) and stone.hits_source(told) and not (named or before)
    if not (hidden["messages"] or hidden["others"] or profile or again):
        speakers = {message.speaker for one in brain.conversations() for message in one.messages} - {brain.person}
        known_names = set(brain.documents) if source else speakers
        raise UsageError(f"Nothing here is of {stone}.", nearest(source or named, known_names or {"nobody"}))
    made = _made_from(stone, {person, named, *settings.people.get(named, ())})
    dataset = report.parent if last else None
    if dry_run:
        return Forgot(str(stone), hidden["messages"], hidden["others"], dataset, None, made)
    if old is None or stone.paths != old.paths:
        forgotten.write(known.with_stone(stone), file)
    _sweep(DatasetPaths(settings.export.output))
    try:
        exported = export(sources, settings, reporter) if last else None
    except (NothingLeftError, UsageError) as error:  # the same brain could be read a moment ago
        raise _nothing_left(stone, settings, error) from None
    return Forgot(str(stone), hidden["messages"], hidden["others"], dataset, exported, made)


def _sources_of(last: dict[str, Any], report: Path) -> list[Path]:
    """Return what the last export read.

    Raises:
        UsageError: the app's brain, or a report that was edited.
    """
    called = last.get("sources", [])
    if not (isinstance(called, list) and all(isinstance(one, str) and "\0" not in one for one in called)):
        raise UsageError(f"'sources' in '{report}' is no list of paths.", "Make it again: twin export")
    if any("://" in one for one in called):
        raise UsageError("The last export came from the app, which keeps its own brain.", "Forget it in the app.")
    return [Path(one) for one in called]


def _nothing_left(stone: Tombstone, settings: Settings, error: TwinError) -> StepError:
    """Remove a dataset of which nothing may stay, and return what to say of it."""
    paths = DatasetPaths(settings.export.output)
    with files.exclusive(paths.root):
        for path in paths.files:
            path.unlink(missing_ok=True)
    _sweep(paths)
    return StepError(
        f"{stone} is hidden, and no row is left: the old dataset was removed.", f"{error.message} {error.hint}"
    )


def _sweep(paths: DatasetPaths) -> None:
    """Take away the rows that killed exports left half-written: they hold the old words."""
    for path in (paths.root, *paths.files):
        files.sweep(path)


def _as_exported(settings: Settings, last: dict[str, Any], reporter: Reporter) -> Settings:
    """Return the settings with the export section of the last export, whose flags would be forgotten else."""
    own, output = last.get("settings"), settings.export.output  # where the dataset is now, wherever it was written
    if own is None:
        return settings
    try:
        made = type(settings.export).model_validate(own).model_copy(update={"output": output})
    except ValueError:
        report = DatasetPaths(output).report
        reporter.say(f"'settings' in '{report}' are none of this version's: what is in force now is taken instead.")
        return settings
    return settings.model_copy(update={"export": made})


def _hidden(brain: Brain, stone: Tombstone) -> dict[str, int]:
    """Count what a tombstone hides of a brain."""
    messages = sum(
        stone.hits_time(message.at) and (not stone.person or key(message.speaker) == key(stone.person))
        for chats in brain.chats
        if stone.hits_source(chats.name)
        for conversation in chats.read(Dropped())  # read again: what the brain left out is counted already
        for message in conversation.messages
    )
    others: list[Memory | JournalEntry] = [] if stone.person else [*brain.memories, *brain.journals]
    return {
        "messages": messages,
        "others": sum(stone.hits_time(one.at) and stone.hits_source(brain.source_of(one)) for one in others),
    }


def _made_from(stone: Tombstone, called: set[str]) -> tuple[dict[str, Any], ...]:
    """Return every run that learned something of what is gone, with its GGUFs and models.

    Args:
        stone: what is gone.
        called: all that its person is called now; a run may know them by any of it.
    """
    found = []
    for paths in runs.all_runs():
        learned = _told(files.read_json(paths.record) if paths.record.exists() else {}, stone, called)
        if runs.has_checkpoints(paths):
            learned.append(None)
        if any(one is not False for one in learned):
            found.append(
                {
                    "adapter": str(paths.root),
                    "gguf": [str(path) for path in sorted(paths.root.glob("*.gguf"))],
                    "models": runs.registered_models(paths),
                    "certain": True in learned,
                }
            )
    return tuple(found)


def _told(record: dict[str, Any], stone: Tombstone, called: set[str]) -> list[bool | None]:
    """Say of each source that a run learned from whether it holds something of what is gone; see ``_learned``."""
    sources = record.get("provenance")
    return [_learned(stone, called, *one) for one in sources.items()] if isinstance(sources, dict) else [None]


def still_learned(record: dict[str, Any], settings: Settings) -> list[tuple[str, bool]]:
    """Return what of the forgotten a run has learned, in words; False beside it where its record does not tell.

    Args:
        record: the run's ``run.json``.
        settings: who is who.
    """
    from twin.brain import forgotten

    found = []
    for stone in forgotten.read(runs.forgotten_file()).stones:
        told = _told(record, stone, {stone.person, *settings.people.get(stone.person, ())})
        if any(one is not False for one in told):
            found.append((str(stone), True in told))
    return found


def _learned(stone: Tombstone, called: set[str], name: str, about: Any) -> bool | None:
    """Say whether a source that a run learned from holds something of what is gone; None: the record doesn't tell."""
    if not (meant := _is_meant(stone, name, about)):
        return meant
    try:
        people = about["people"]
        first = datetime.fromisoformat(about["first"]).replace(tzinfo=None) if about.get("first") else None
        if not isinstance(people, list):
            raise TypeError
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    early = stone.before is None or first is None or first < stone.before
    if not early or not stone.person:
        return early
    if any(digest(one) in people for one in called for digest in (person_digest, name_digest)):
        return True
    # An older record has digests of phone numbers as they were spelled.
    return None if "within" not in about and any(key(one).isdigit() for one in called) else False


def _is_meant(stone: Tombstone, name: str, about: Any) -> bool | None:
    """Say whether a tombstone is of a source that a run's record has; None: the record doesn't tell."""
    within = about.get("within") if isinstance(about, dict) else None
    if isinstance(within, list):
        meant = [source_digest(one) for one in (stone.source.rstrip("/"), *stone.paths)]
        return not stone.source or any(one in within for one in meant)
    return None if is_digest(name) else stone.hits_source(name)  # an older record has the name itself


# ---------------------------------------------------------------- serving


def serve(
    sources: Sequence[Path],
    settings: Settings,
    host: str,
    port: int,
    reporter: Reporter,
    ready: Callable[[str], None],
) -> None:
    """Serve the app's export API on a brain, until interrupted.

    Args:
        sources: files and folders; empty: ``./brain``.
        settings: its ``export`` and ``serve`` sections.
        host: the address to listen on.
        port: the port to listen on; 0: a free one.
        reporter: told of progress and warnings.
        ready: called with the URL once it listens.
    """
    need("serve", "fastapi", "uvicorn", "jwt")
    from twin.app import server
    from twin.app.credentials import find_secret

    secret = find_secret(os.environ, settings.serve.secret_file)  # before the brain is read
    server.serve(app_source(sources, settings, reporter), secret, host, port, reporter, ready)


def serve_token(settings: Settings) -> str:
    """Return a new admin token of ``serve``."""
    need("serve", "jwt")
    from twin.app.credentials import find_secret
    from twin.app.tokens import mint_token

    return mint_token(find_secret(os.environ, settings.serve.secret_file)).get_secret_value()


def app_source(sources: Sequence[Path], settings: Settings, reporter: Reporter) -> BrainSource:
    """Return a brain as the server wants it.

    Rows, memories and the profile are without secrets and private values, as in an export. Conversations are as they
    were said: ``twin export --via brain`` at the other end filters and redacts them by its own settings, and counts
    what it leaves out; neither would work on words that were taken out here.

    Args:
        sources: files and folders; empty: ``./brain``.
        settings: its ``export`` section.
        reporter: told of progress.
    """
    from twin.app.source import BrainSource, ExportedFiles
    from twin.dataset.formats import WRITERS
    from twin.dataset.private import Private

    def changed(**values: Any) -> Settings:
        return settings.model_copy(update={"export": settings.export.model_copy(update=values)})

    settings = changed(processes=1)  # rows are built in a thread of the server: no processes from there
    whole = read_brain(sources, settings, reporter)
    shown = Private(whole.person, settings.export.model_copy(update={"reserve": 0.0})).clean(whole)

    def export_for(ask: ExportAsk) -> ExportedFiles:
        own = changed(
            format=ask.format, include_system=ask.include_system, deduplicate=ask.deduplicate,
            quality_filter=ask.quality_filter, validation_split=ask.validation_split,
        )  # fmt: skip
        done = export(sources, own, reporter)
        return ExportedFiles(done.train, done.val, done.paths.full, done.paths.train, done.paths.val)

    def look(format_name: RowFormat, limit: int) -> list[dict[str, Any]]:
        with built_dataset(whole, settings, reporter, None) as (built, _, _):
            return [WRITERS[format_name](row, whole.person) for row in built.train[:limit]]

    return BrainSource(whole.person, shown.personality, shown.memories, whole.conversations, export_for, look)
