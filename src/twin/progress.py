"""How long work tells that it goes on, without knowing whether a terminal, a log or nobody listens."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Protocol


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


def peak_rss_bytes() -> int:
    """Return the largest resident set of this process so far, in bytes (of any finished child, where larger)."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def release_memory() -> None:
    """Give back to the system what a finished step freed: glibc keeps it, and the next step's peak would lie on top."""
    gc.collect()
    with suppress(OSError, AttributeError, TypeError):  # other C libraries have no such call, Windows no such handle
        ctypes.CDLL(None).malloc_trim(0)
