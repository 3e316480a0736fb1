"""Progress of one task while it runs: a panel that is drawn anew on a terminal, lines now and then elsewhere.

    Training ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━   34/289 0:00:21 0:02:37
    loss ▇█▇▆▆▅▆▅▄▄▃▄▃▃▂▂▁▂▁▁ 3.912, held out 4.651
    5,321 tokens/s, peak memory 2.5 GB

A task that measures nothing is its first line, which goes when it is done; figures stay, as they were last.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import timedelta
from itertools import pairwise
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from twin.progress import Figures

_LINE_EVERY_SECONDS = 10.0
_BARS = "▁▂▃▄▅▆▇█"
_CURVE = 40  # characters at most
_CURVE_AT_LEAST = 5
_REST_OF_THE_BAR = 45  # what stands beside it, in characters


class Shown(Protocol):
    """A task as it is shown."""

    def __init__(self, console: Console, title: str, total: float | None) -> None:
        """Show ``title`` on ``console``, of ``total`` units where they are known."""

    @property
    def stays(self) -> bool:
        """Say whether it leaves its figures behind."""

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Say that ``amount`` more units are done."""

    def measured(self, figures: Figures) -> None:
        """Show figures; None leaves one as it was."""

    def __enter__(self) -> Self:
        """Begin to show it."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave a tidy last state."""


def newer(old: Figures, new: Figures) -> Figures:
    """Return ``new``, with what it says nothing of from ``old``."""
    known = {one.name: getattr(new, one.name) for one in fields(new)}
    return replace(old, **{name: value for name, value in known.items() if value is not None})


def curve(values: Sequence[float], width: int) -> str:
    """Return ``values`` as one line of at most ``width`` bars, each the mean of its part, from lowest to highest."""
    count = min(width, len(values))
    cuts = [place * len(values) // count for place in range(count + 1)] if count else []
    means = [sum(values[start:stop]) / (stop - start) for start, stop in pairwise(cuts)]
    if not means:
        return ""
    low, high = min(means), max(means)
    top = len(_BARS) - 1
    return "".join(_BARS[round(top * (mean - low) / (high - low)) if high > low else top // 2] for mean in means)


def costs(figures: Figures) -> list[str]:
    """Return speed and memory, as far as they are known."""
    parts = []
    if figures.tokens_per_second is not None:
        parts.append(f"{figures.tokens_per_second:,.0f} tokens/s")
    if figures.peak_rss_bytes is not None:
        parts.append(f"peak memory {figures.peak_rss_bytes / 1e9:.1f} GB")
    if figures.peak_gpu_bytes is not None:
        parts.append(f"GPU {figures.peak_gpu_bytes / 1e9:.1f} GB")
    return parts


class Lines:
    """Progress where there is no terminal: a line every ten seconds, with the time left."""

    stays = False

    def __init__(self, console: Console, title: str, total: float | None) -> None:
        """Show ``title`` on ``console``, of ``total`` units where they are known."""
        self._console, self._title, self._total = console, title, total
        self._done, self._note, self._figures = 0.0, "", Figures()
        self._started = self._told = time.monotonic()

    def __enter__(self) -> Self:
        """Begin; nothing is printed yet."""
        return self

    def __exit__(self, *error: object) -> None:
        """End; nothing is left to tidy."""

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Count, and print a line where the last one is old."""
        self._done += amount
        self._note = note or self._note
        self._tell()

    def measured(self, figures: Figures) -> None:
        """Keep figures for the next line."""
        self._figures = newer(self._figures, figures)
        self._tell()

    def _tell(self) -> None:
        now = time.monotonic()
        if not self._total or not self._done or now - self._told < _LINE_EVERY_SECONDS:
            return
        self._told = now
        left = self._figures.seconds_left
        if left is None:
            left = (now - self._started) / self._done * (self._total - self._done)
        parts = [f"{left:.0f} s left", self._note]
        if self._figures.loss is not None:
            parts.append(f"loss {self._figures.loss:.3f}")
        if self._figures.val_loss is not None:
            parts.append(f"held out {self._figures.val_loss:.3f}")
        parts += costs(self._figures)
        said = ", ".join(part for part in parts if part)
        self._console.print(f"{self._title}: {self._done:.0f}/{self._total:.0f}, {said}", markup=False)


class _Left(ProgressColumn):
    """The time left: what the task itself says, else what its speed gives."""

    max_refresh = 0.5

    def __init__(self) -> None:
        super().__init__()
        self._by_speed = TimeRemainingColumn()

    def render(self, task: Task) -> Text:
        left = task.fields["left"]
        if left is None:
            return self._by_speed.render(task)
        return Text(str(timedelta(seconds=round(left))), style="progress.remaining")


class Panel:
    """Progress on a terminal."""

    def __init__(self, console: Console, title: str, total: float | None) -> None:
        """Show ``title`` on ``console``, of ``total`` units where they are known."""
        self._console = console
        self._figures = Figures()
        self._losses: list[float] = []
        self._bar = BarColumn()
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            self._bar,
            MofNCompleteColumn() if total else TextColumn(""),
            TimeElapsedColumn(),
            _Left() if total else TextColumn(""),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            auto_refresh=False,
        )
        self._task = self._progress.add_task(title, total=total, note="", left=None)
        self._live = Live(self, console=console, transient=True, refresh_per_second=8)

    @property
    def stays(self) -> bool:
        """Say whether there is something worth leaving on the screen."""
        return self._figures != Figures()

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Draw it once more as it is, or take it away."""
        self._progress.stop_task(self._task)
        self._live.transient = not self.stays
        self._live.stop()

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Count."""
        self._progress.advance(self._task, amount)
        if note:
            self._progress.update(self._task, note=note)

    def measured(self, figures: Figures) -> None:
        """Show figures at the next drawing."""
        self._figures = newer(self._figures, figures)
        if figures.loss is not None and math.isfinite(figures.loss):
            self._losses.append(figures.loss)
        if figures.seconds_left is not None:
            self._progress.update(self._task, left=figures.seconds_left)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the bar and, where there are figures, two lines of them, as wide as the terminal is now."""
        self._bar.bar_width = max(4, min(40, options.max_width - _REST_OF_THE_BAR))
        lines = [Text(line, no_wrap=True, overflow="ellipsis") for line in self._lines(options)]
        yield Group(self._progress.get_renderable(), *lines)

    def _lines(self, options: ConsoleOptions) -> list[str]:
        if not self.stays:
            return []
        shown = self._figures
        held_out = [] if shown.val_loss is None else [f"held out {shown.val_loss:.3f}"]
        losses = held_out
        if shown.loss is not None:
            room = options.max_width - len(f"loss  {shown.loss:.3f}") - sum(len(part) + 2 for part in held_out)
            drawn = room >= _CURVE_AT_LEAST and not options.ascii_only
            bars = f"{curve(self._losses, min(room, _CURVE))} " if drawn else ""
            losses = [f"loss {bars}{shown.loss:.3f}", *held_out]
        return [", ".join(parts) for parts in (losses, costs(shown)) if parts]
