"""A worker, as the process that hires it sees it: begun before there is a job, because its imports take seconds."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

from twin import errors
from twin.errors import MachineError, StepError, TwinError
from twin.gguf import converter
from twin.progress import Reporter, Task

_MODULE = "twin.gguf.worker"
# glibc keeps what each thread freed apart: a hundred megabytes that nobody uses.
_FEW_ARENAS = {"MALLOC_ARENA_MAX": "2"}


class Worker:
    """One process that does one job after another. Use ``hire``."""

    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes], reporter: Reporter) -> None:
        self._process, self._log, self._reporter = process, log, reporter

    def do(self, job: dict[str, Any], first: str, then: str = "") -> dict[str, Any]:
        """Return the result of a job.

        Args:
            job: see ``worker.main``.
            first: the words for all of it, or for what comes before its size is known.
            then: the words for what comes after.

        Raises:
            TwinError: what the worker refuses, or that it died.
        """
        to, words = cast("IO[bytes]", self._process.stdin), cast("IO[bytes]", self._process.stdout)
        with self._reporter.task(first):
            with suppress(BrokenPipeError):  # it died, and says below of what
                to.write(json.dumps(job).encode() + b"\n")
                to.flush()
            said = _hear(words)
        if "total" in said:
            with self._reporter.task(then, said["total"]) as task:
                said = _hear(words, task)
        if "result" in said:
            return dict(said["result"])
        if "error" in said:
            raise _error(**said["error"])
        self._process.wait()
        self._log.seek(0)
        raise _died(self._process.returncode, self._log.read().decode("utf-8", "replace"))

    def close(self) -> None:
        """End it; its memory goes back, and it does nothing any more."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(BrokenPipeError):
                cast("IO[bytes]", pipe).close()


@contextmanager
def hire(script: Path, reporter: Reporter, module: str = _MODULE) -> Iterator[Worker]:
    """Begin a worker, which ends with the block.

    Args:
        script: llama.cpp's converter, whose modules it uses; see ``converter.find_converter``.
        reporter: told of progress.
        module: what is started; one that calls ``worker.main`` with more than it can do by itself.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            env=converter.environment(script) | _FEW_ARENAS,
        )  # fmt: skip
        with closing(Worker(process, log, reporter)) as worker:
            yield worker


def _hear(lines: Iterable[bytes], task: Task | None = None) -> dict[str, Any]:
    """Return the worker's next word that is no progress; empty where it has ended without one."""
    done = 0
    for line in lines:
        said: dict[str, Any] = json.loads(line)
        if "done" not in said:
            return said
        if task:
            task.advance(said["done"] - done)
            done = said["done"]
    return {}


def _error(kind: str, message: str, hint: str) -> TwinError:
    known = getattr(errors, kind, StepError)
    return known(message, hint)


def _died(code: int, log: str) -> TwinError:
    """Return what to say of a worker that ended without a word."""
    if code == -9:
        return MachineError(
            "The system ended the process that makes the GGUF: it had no memory left.",
            "Close other programs, or make one quantization at a time.",
        )
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return converter.refused("model", lines[-1] if lines else "it said nothing")
