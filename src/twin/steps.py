"""Which steps of a run were done, on what: each is done again only when something that it reads or wrote changed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from twin import __version__, files
from twin.errors import StepError
from twin.progress import Reporter
from twin.runs import RunPaths


class Steps:
    """The memory of ``twin run``, kept in the run's folder.

    Args:
        paths: of the run.
        reporter: told of each step that is skipped.
    """

    def __init__(self, paths: RunPaths, reporter: Reporter) -> None:
        self.path = paths.steps
        self.reporter = reporter
        self.done: dict[str, Any] = files.read_json(self.path) if self.path.exists() else {}
        self.seconds: dict[str, float | None] = {}

    def do(
        self, name: str, settings: Mapping[str, Any], reads: Sequence[Path], work: Callable[[], Sequence[Path]]
    ) -> None:
        """Do ``work`` unless what it reads and wrote is as it was.

        Args:
            name: the step's name.
            settings: what else its result hangs on; twin's version is added.
            reads: files and folders it reads.
            work: does the step and returns the files it wrote.
        """
        facts = {"twin": __version__, **settings}
        inputs = files.fingerprint(facts, reads)
        before = self.done.get(name)
        if isinstance(before, dict) and before.get("inputs") == inputs and _intact(before.get("outputs")):
            self.reporter.say(f"{name}: skipped, nothing it reads has changed")
            self.seconds[name] = None
            return
        started = time.perf_counter()
        written = work()
        self.seconds[name] = round(time.perf_counter() - started, 1)
        if files.fingerprint(facts, reads) != inputs:  # what was read may be neither the old files nor the new ones
            raise StepError(
                f"What the step '{name}' reads was changed while it ran.",
                "Let one thing at a time write there; run again.",
            )
        self.done[name] = {"inputs": inputs, "outputs": {str(path): files.file_digest(path) for path in written}}
        files.write_json(self.path, self.done)


def _intact(outputs: Any) -> bool:
    """Say whether the files are there as they were written; a record that somebody edited says nothing of them."""
    return isinstance(outputs, dict) and all(
        os.path.isfile(path) and files.file_digest(Path(path)) == digest  # noqa: PTH113 - any text may stand there
        for path, digest in outputs.items()
    )
