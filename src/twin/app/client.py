"""What ``twin export`` fetches from the app: its brain, or the rows that the app itself made of it.

Not obvious: the app's own builder exports nothing of what it has not saved, and says ``success`` all the same. So the
brain is the better source, and an answer that holds nothing is an error here, whatever it says of itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
from pydantic import SecretStr

from twin.app.answers import BrokenAnswerError, ObjectCheck
from twin.app.contract import MOST_MEMORIES, ExportAsk
from twin.app.credentials import find_token
from twin.app.rows import RowFilter
from twin.app.wire import App, Ask, RefusedError
from twin.errors import StepError
from twin.files import atomic_write
from twin.progress import Reporter, Task

__all__ = ["ExportAsk", "FetchedRows", "fetch_brain", "fetch_rows", "find_token"]

MAX_BRAIN_BYTES = 4 << 30
MAX_ROWS_BYTES = 4 << 30
MAX_ANSWER_BYTES = 1 << 20

_JSON = frozenset({"application/json"})
_JSONL = _JSON | {
    "application/jsonl", "application/jsonlines", "application/octet-stream", "application/ndjson",
    "application/x-jsonlines", "application/x-ndjson", "text/plain",
}  # fmt: skip
# The call has a limit and no pages. What an app finds too many it says with 422.
_MEMORY_LIMITS = (MOST_MEMORIES, 1_000, 100)
_FROM_THE_BRAIN = "Let twin build the rows from the app's brain: twin export --via brain"


@dataclass(frozen=True, slots=True)
class FetchedRows:
    """The rows that the app made.

    Args:
        train: the rows to learn from, or all of them where the app did not split.
        val: the held-out rows, where it did.
        train_rows, val_rows: how many each file has.
        dropped: lines left out, by reason.
    """

    train: Path
    val: Path | None
    train_rows: int
    val_rows: int
    dropped: Mapping[str, int] = field(default_factory=dict)


def fetch_brain(url: str, token: SecretStr, into: Path, reporter: Reporter) -> list[Path]:
    """Write the app's brain and core memories into two JSON files that ``twin.brain`` reads.

    Args:
        url: the app's base URL.
        token: an admin's or the owner's.
        into: the folder; both files appear in it, whole and for their owner alone, or none does.
        reporter: told of each piece.

    Raises:
        StepError: refused, broken, too much, too slow, or an app that holds nothing.
        MachineError: no app there.
        UsageError: not an address.
    """
    app = App(url, token, reporter)
    paths = [into / "brain.json", into / "core_memories.json"]
    with ExitStack() as files:
        brain_file, memory_file = (files.enter_context(atomic_write(path)) for path in paths)
        with reporter.task("Reading the app's brain") as task:
            doing = "export its brain"
            ask = Ask("GET", "/api/training/export", doing, _JSON, MAX_BRAIN_BYTES)
            brain = _checked(app, ask, brain_file.write, task)
        _promised(app, doing, brain, personality_profile="start_map", training_examples="start_array")
        with reporter.task("Reading the app's memories") as task:
            memories = _memories(app, memory_file.write, task, reporter)
        if not brain.items["training_examples"] + brain.items["personality_profile"] + memories:
            raise StepError(
                f"{app.url} holds nothing to learn from: no examples, no profile, no memories.",
                "Train the clone in the app first, or name another: --url URL",
            )
    return paths


def _checked(app: App, ask: Ask, write: Any, task: Task) -> ObjectCheck:
    """Send ``ask``, write what comes, and return what it holds.

    Raises:
        StepError: not one whole JSON object.
    """
    check = ObjectCheck()

    def take(piece: bytes) -> None:
        check.feed(piece)
        write(piece)
        task.advance(len(piece))

    try:
        app.request(ask, take)
        check.close()
    except BrokenAnswerError as error:
        problem = str(error)
    else:
        return check
    raise app.garbage(ask.doing, problem)


def _promised(app: App, doing: str, check: ObjectCheck, **types: str) -> None:
    """Stop unless the object has one of the keys, and each with its type (or null)."""
    for key, event in types.items():
        if check.types.get(key, event) not in (event, "null"):
            kind = "a list" if event == "start_array" else "an object"
            raise app.garbage(doing, f"JSON whose '{key}' is not {kind}")
    if not any(check.types.get(key) == event for key, event in types.items()):
        raise app.garbage(doing, "JSON without " + " or ".join(f"'{key}'" for key in types))


def _memories(app: App, write: Any, task: Task, reporter: Reporter) -> int:
    """Write the core memories and return how many there are, with the highest limit that the app takes."""
    for limit in _MEMORY_LIMITS:
        doing = f"list its {limit:,} most important memories"
        ask = Ask("GET", f"/api/cognitive/core-memories?limit={limit}", doing, _JSON, MAX_BRAIN_BYTES)
        try:
            check = _checked(app, ask, write, task)
        except RefusedError as refusal:
            if refusal.code == 422 and limit != _MEMORY_LIMITS[-1]:
                continue
            raise
        _promised(app, doing, check, memories="start_array")
        if check.items["memories"] >= limit:
            reporter.say(f"The app gave {limit:,} memories, as many as it gives at once: it may have more.")
        return check.items["memories"]
    raise AssertionError("the last limit returns or raises")


def fetch_rows(url: str, token: SecretStr, ask: ExportAsk, into: Path, reporter: Reporter) -> FetchedRows:
    """Let the app make a dataset and write its rows into ``into``.

    Args:
        url: the app's base URL.
        token: an admin's or the owner's.
        ask: what the rows should be.
        into: the folder for train.jsonl and val.jsonl, or for finetune_dataset.jsonl where the app does not split.
        reporter: told of each piece.

    Raises:
        StepError: refused, broken, too much, too slow, or no rows.
        MachineError: no app there.
        UsageError: not an address.
    """
    app = App(url, token, reporter)
    with reporter.task("The app makes a dataset"):
        answer = _export(app, ask)
    split = "train_examples" in answer
    promised = _count(app, answer, "train_examples" if split else "total_examples")
    held_out = _count(app, answer, "val_examples") if split else 0
    if not promised:
        raise StepError(
            f"{app.url} says that it made a dataset, and it has no rows to learn from"
            f"{_reason(app, answer) or ': everything was filtered, or nothing was saved'}.",
            _FROM_THE_BRAIN,
        )
    dropped: Counter[str] = Counter()
    train = into / ("train.jsonl" if split else "finetune_dataset.jsonl")
    val = into / "val.jsonl" if held_out else None
    with ExitStack() as files:
        fetch = _Fetch(app, dropped, reporter, files)
        train_rows = fetch.rows("/train" if split else "", train, promised)
        val_rows = fetch.rows("/val", val, held_out) if val else 0
    return FetchedRows(train, val, train_rows, val_rows, dict(dropped))


def _export(app: App, ask: ExportAsk) -> dict[str, Any]:
    """Ask for the export and return the answer; the paths in it are the server's own and nobody's business here."""
    doing = "make a dataset"
    body = bytearray()
    asked = Ask("POST", "/api/finetune/export", doing, _JSON, MAX_ANSWER_BYTES, json=asdict(ask))
    app.request(asked, body.extend)
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        answer = None
    if not isinstance(answer, dict) or not isinstance(answer.get("success"), bool):
        raise app.garbage(doing, "no JSON object that says 'success'")
    if not answer["success"]:
        raise StepError(
            f"{app.url} made no dataset{_reason(app, answer) or ', and does not say why'}.", _FROM_THE_BRAIN
        )
    return answer


def _reason(app: App, answer: Mapping[str, Any]) -> str:
    for key in ("error", "message", "detail", "reason"):
        if isinstance(answer.get(key), str) and (text := app.clean(answer[key]).rstrip(".")):
            return f": {text}"
    return ""


def _count(app: App, answer: Mapping[str, Any], key: str) -> int:
    value = answer.get(key)
    if type(value) is not int or value < 0:
        raise app.garbage("make a dataset", f"JSON without a number of '{key}'")
    return value


@dataclass(frozen=True, slots=True)
class _Fetch:
    app: App
    dropped: Counter[str]
    reporter: Reporter
    files: ExitStack

    def rows(self, part: str, path: Path, promised: int) -> int:
        """Write the rows of one download into ``path`` and return their number.

        Raises:
            StepError: there are none.
        """
        doing = f"hand over its {part.removeprefix('/') or 'dataset'} rows"
        nothing = {404: "The app has no such file: nothing is exported there yet. Run the same command again."}
        ask = Ask("GET", f"/api/finetune/download{part}", doing, _JSONL, MAX_ROWS_BYTES, hints=nothing)
        kept = RowFilter(self.files.enter_context(atomic_write(path)), self.dropped)
        with self.reporter.task(f"Reading {path.name}", total=promised) as task:

            def take(piece: bytes) -> None:
                before = kept.lines
                kept.take(piece)
                task.advance(kept.lines - before)

            self.app.request(ask, take)
            kept.close()
        if not kept.rows:
            found = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items())) or "it is empty"
            raise StepError(f"{path.name} of {self.app.url} has no rows: {found}.", _FROM_THE_BRAIN)
        if kept.lines != promised:
            self.reporter.say(f"The app spoke of {promised:,} rows in {path.name} and sent {kept.lines:,}.")
        return kept.rows
