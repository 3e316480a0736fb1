"""How long work tells that it goes on, without knowing whether a terminal, a log or nobody listens."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, slots=True)
class Figures:
    """What work in progress measured last; None is no news of that figure.

    Args:
        loss: of the last optimizer step, in nats a supervised token.
        val_loss: of held-out replies, in nats a supervised token.
        tokens_per_second: of the last step, tokens of its rows as they stand.
        seconds_left: estimate of what the task still takes.
        peak_rss_bytes: the process's memory at its peak.
        peak_gpu_bytes: a GPU's memory at its peak.
    """

    loss: float | None = None
    val_loss: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    peak_rss_bytes: int | None = None
    peak_gpu_bytes: int | None = None


class Task(Protocol):
    """One running piece of work."""

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Say that ``amount`` more units are done; ``note`` is shown beside the bar."""


class Reporter(Protocol):
    """Where progress goes. ``cli.console`` has the one for people."""

    def say(self, text: str) -> None:
        """Show one line."""

    def task(self, title: str, total: float | None = None) -> AbstractContextManager[Task]:
        """Show that ``title`` runs, with ``total`` units where they are known."""

    def measured(self, figures: Figures) -> None:
        """Show figures of the task that runs."""


class _SilentTask:
    def advance(self, amount: float = 1, note: str = "") -> None:
        pass


class Silent:
    """A Reporter for library use and tests: says nothing."""

    def say(self, text: str) -> None:
        """Drop the line."""

    @contextmanager
    def task(self, title: str, total: float | None = None) -> Iterator[Task]:
        """Run silently."""
        yield _SilentTask()

    def measured(self, figures: Figures) -> None:
        """Drop the figures."""


def peak_rss_bytes() -> int:
    """Return the largest resident set of this process so far, in bytes (of any finished child, where larger)."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    own, children = (
        unit * resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return max(_high_water_bytes() or own, children)


def _high_water_bytes() -> int | None:
    """Return what Linux says: there getrusage's figure of a process begins with that of the program that started it."""
    try:
        status = _STATUS.read_text("ascii", "replace")
    except OSError:
        return None
    lines = [line.split() for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0][1]) * 1024 if lines else None


def release_memory() -> None:
    """Give back to the system what a finished step freed: glibc keeps it, and the next step's peak would lie on top."""
    gc.collect()
    with suppress(OSError, AttributeError, TypeError):  # other C libraries have no such call, Windows no such handle
        ctypes.CDLL(None).malloc_trim(0)
