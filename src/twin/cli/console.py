"""What a person sees: results on stdout, everything else on stderr; bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unicodedata import category

from twin.errors import MachineError, StoppedError, TwinError
from twin.processes import place
from twin.progress import Figures, Silent, Task

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from twin.cli.live import Shown
    from twin.results import AppEnv

_FEW = 10  # the bootstrap resamples conversations, so fewer make an interval look surer than it is
_SLOW_SECONDS = 1.0


def printable(text: str) -> str:
    """Return ``text`` without what would move a cursor or colour a terminal: names and replies come from anywhere."""
    return "".join(char if char in "\n\t" or category(char) not in ("Cc", "Cs") else "\ufffd" for char in text)


def few(conversations: int) -> list[str]:
    """Return what to say of a loss measured on so many held-out conversations: nothing, or that it says little."""
    return [f"Only {conversations} held-out conversations: these losses say little."] if conversations < _FEW else []


def env_lines(env: AppEnv, dry_run: bool = False) -> list[str]:
    """Return what to say of the app's ``.env``; nothing of what it holds."""
    keys = ", ".join(env.changed)
    if not keys:
        lines = [f"{env.file} says so already"]
    elif dry_run:
        lines = [f"{env.file} would get other values of {keys}"]
    else:
        lines = [f"{env.file} has new values of {keys}", f"  as it was, secrets too: {env.backup}"]
    return [*lines, *(f"  {key} stands there more than once: the last one counts" for key in env.repeated)]


def env_hint(env: AppEnv) -> str:
    """Return what is left to do for the app."""
    return f"restart the app's backend: it reads {env.file} only when it starts"


def table_lines(table: Table) -> list[str]:
    """Return a table as plain lines, as wide as the terminal."""
    from rich.console import Console

    console = Console(no_color=True, highlight=False, emoji=False)
    with console.capture() as held:
        console.print(table)
    return [line.rstrip() for line in held.get().rstrip().split("\n")]


def stderr_console() -> Console:
    """Return a console on stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)  # names are not ours to change


class ConsoleReporter:
    """Shows progress on stderr."""

    def __init__(self, verbose: bool = False) -> None:
        self.console = stderr_console()
        self.verbose = verbose
        self._shown: Shown | None = None

    def say(self, text: str) -> None:
        """Show one line."""
        self.console.print(printable(text), markup=False)

    @contextmanager
    def task(self, title: str, total: float | None = None) -> Iterator[Task]:
        """Show a panel (a terminal) or lines, and how long it took when that was over a second."""
        from twin.cli.live import Lines, Panel

        started = time.monotonic()
        kind: type[Shown] = Panel if self.console.is_interactive else Lines
        around = self._shown
        with kind(self.console, title, total) as shown:
            self._shown = shown
            try:
                yield shown
            finally:
                self._shown = around
        seconds = time.monotonic() - started
        if not shown.stays and (seconds > _SLOW_SECONDS or self.verbose):
            self.console.print(f"{title}: {seconds:.1f} s", markup=False)

    def measured(self, figures: Figures) -> None:
        """Show figures of the task that runs."""
        if self._shown is not None:
            self._shown.measured(figures)


def few_reasons(dropped: dict[str, int], most: int = 20) -> list[tuple[str, int]]:
    """Return the most frequent reasons for leaving something out, in the order of their names, and one for the rest."""
    ranked = sorted(dropped.items(), key=lambda item: -item[1])
    shown = sorted(ranked[:most])
    rest = sum(count for _, count in ranked[most:])
    return [*shown, *([(f"{len(ranked) - most} other reasons, in dataset.json", rest)] if rest else [])]


@dataclass(frozen=True, slots=True)
class Output:
    """How one command talks.

    Args:
        json: one JSON object on stdout, and nothing else there.
        quiet: no progress.
        verbose: every step, and its time.
    """

    json: bool = False
    quiet: bool = False
    verbose: bool = False

    def reporter(self) -> Any:
        """Return where progress goes."""
        return Silent() if self.quiet or not place().speaks else ConsoleReporter(self.verbose)

    def result(self, data: dict[str, Any], lines: list[str]) -> None:
        """Print a command's result: the object, or lines for people."""
        if self.json:
            self._json(data)
        else:
            self._write("".join(f"{printable(line)}\n" for line in lines).encode("utf-8"))

    def piece(self, text: str) -> None:
        """Print a piece of a text that is still being written, at once."""
        self._write(printable(text).encode("utf-8"))

    def styled(self, parts: Sequence[tuple[str, str]]) -> None:
        """Print texts, each in a style of rich's where stdout is a terminal that takes colour."""
        from rich.console import Console
        from rich.text import Text

        console = Console(highlight=False, soft_wrap=True, emoji=False)
        plain = console.no_color or not console.is_terminal
        with console.capture() as captured:
            for text, style in parts:
                console.print(Text(printable(text), style="" if plain else style), end="")
        self._write(captured.get().encode("utf-8", "replace"))

    def hint(self, text: str) -> None:
        """Print what to type next, on stderr."""
        if place().speaks and not (self.quiet or self.json):
            stderr_console().print(printable(f"Next: {text}"), markup=False)

    def error(self, error: TwinError) -> None:
        """Print what went wrong: a sentence and a hint, or the object."""
        if not place().complains:
            return
        if self.json and place().speaks:
            said = {"error": error.message, "hint": error.hint}  # a file's name in it may be no Unicode
            whole = {key: text.encode("utf-8", "replace").decode() for key, text in said.items()}
            self._json({**whole, "exit_code": error.exit_code})
            return
        console = stderr_console()
        stopped = isinstance(error, StoppedError)
        label, style = ("Interrupted", "bold") if stopped else ("Error", "bold red")
        console.print(printable(f"{label}: {error.message}"), markup=False, style=style)
        if error.hint:
            console.print(printable(f"Hint: {error.hint}"), markup=False)

    def interrupted(self, exit_code: int) -> None:
        """Print that Ctrl-C, or another program, ended the command."""
        if not place().complains:
            return
        kept = "What was finished is kept. twin run goes on from there; twin train does with --resume-from auto."
        sys.stderr.write(f"\nInterrupted. {kept}\n")
        if self.json:
            self._json({"error": "Interrupted.", "hint": kept, "exit_code": exit_code})

    @classmethod
    def _json(cls, data: dict[str, Any]) -> None:
        import orjson

        cls._write(orjson.dumps(data) + b"\n")

    @staticmethod
    def _write(data: bytes) -> None:
        if not place().speaks:
            return
        sys.stdout.flush()
        try:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        except OSError as error:
            # Python flushes stdout once more at its end, and would complain again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if isinstance(error, BrokenPipeError):  # the reader went away (| head): not an error of ours
                return
            reason = error.strerror or type(error).__name__
            raise MachineError(f"Could not write the result to stdout: {reason}.", "Check where it goes.") from None
