"""Progress while it runs: what a terminal shows at the end, at every width; the lines of a log."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.cli.screen import drawn
from twin.cli import live
from twin.cli.console import ConsoleReporter
from twin.progress import Figures

HELD_OUT = Figures(val_loss=4.651)


def figures(number: int) -> Figures:
    return Figures(
        loss=5 - number / 10, tokens_per_second=5321.2, seconds_left=3600.0 - 60 * number, peak_rss_bytes=2_500_000_000
    )


@pytest.fixture
def shown() -> Callable[..., str]:
    """Run work under a reporter of a terminal; return what stands on it at the end."""

    def show(
        work: Callable[[ConsoleReporter], None], width: int = 80, encoding: str = "utf-8", **options: object
    ) -> str:
        out = io.TextIOWrapper(io.BytesIO(), encoding, newline="")
        reporter = ConsoleReporter()
        settings = {"force_terminal": True, "width": width, "height": 24, "_environ": {"TERM": "xterm"}} | options
        reporter.console = Console(file=out, highlight=False, soft_wrap=True, emoji=False, **settings)
        work(reporter)
        out.flush()
        return out.buffer.getvalue().decode(encoding).replace("\n", "\r\n")  # as the terminal itself does

    return show


def training(steps: int = 20, stop_at: int = -1) -> Callable[[ConsoleReporter], None]:
    def work(reporter: ConsoleReporter) -> None:
        with reporter.task("Training", steps) as task:
            reporter.measured(HELD_OUT)
            for number in range(steps):
                if number == stop_at:
                    raise KeyboardInterrupt
                task.advance(1)
                reporter.measured(figures(number))
                if number == 3:
                    reporter.say("a line said [meanwhile]")

    return work


def test_the_last_state_stays(shown: Callable[..., str]) -> None:
    raw = shown(training())
    said, bar, losses, costs, *rest = drawn(raw).split("\n")
    assert said == "a line said [meanwhile]"
    assert bar.startswith("Training ━")
    assert "20/20" in bar
    assert bar.endswith("0:41:00")
    assert losses == "loss ██▇▇▇▆▆▅▅▅▄▄▄▃▃▂▂▂▁▁ 3.100, held out 4.651"
    assert costs == "5,321 tokens/s, peak memory 2.5 GB"
    assert rest == [""]
    assert raw.endswith("\x1b[?25h")  # the cursor is there again


@pytest.mark.parametrize("width", [10, 20, 34, 50, 80, 200])
def test_each_line_fits(shown: Callable[..., str], width: int) -> None:
    _, *lines = drawn(shown(training(), width)).split("\n")  # what was said is the terminal's to wrap
    assert max(map(len, lines)) <= width
    assert len(lines) == 4


def test_ctrl_c_leaves_what_was_reached(shown: Callable[..., str]) -> None:
    kept: list[str] = []

    def work(reporter: ConsoleReporter) -> None:
        with pytest.raises(KeyboardInterrupt):
            training(stop_at=7)(reporter)
        reporter.say("then")

    kept = drawn(shown(work)).split("\n")
    assert "7/20" in kept[1]
    assert kept[2].endswith(" 4.400, held out 4.651")
    assert kept[4] == "then"


def test_without_colour_and_without_blocks(shown: Callable[..., str]) -> None:
    assert "\x1b[3" not in shown(training(), no_color=True)
    ascii_only = drawn(shown(training(), encoding="ascii"))
    assert "\nloss 3.100, held out 4.651\n" in ascii_only
    assert ascii_only.isascii()


def test_a_task_without_figures_leaves_nothing_but_its_time(shown: Callable[..., str]) -> None:
    def work(reporter: ConsoleReporter) -> None:
        reporter.measured(HELD_OUT)  # no task runs
        reporter.verbose = True
        with reporter.task("Counting [b]", 3) as task:
            task.advance(2, "a [b]note")
        with reporter.task("Looking"):
            pass

    assert drawn(shown(work)) == "Counting [b]: 0.0 s\nLooking: 0.0 s\n"


def test_a_loss_that_is_no_number_is_told_and_not_drawn(shown: Callable[..., str]) -> None:
    def work(reporter: ConsoleReporter) -> None:
        with reporter.task("Training", 2):
            for loss in (3.0, math.nan, math.inf, 2.0, math.nan):
                reporter.measured(Figures(loss=loss, peak_gpu_bytes=10**9))

    assert drawn(shown(work)).split("\n")[1:] == ["loss █▁ nan", "GPU 1.0 GB", ""]


def test_a_log_has_a_line_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: now[0]))
    out = io.StringIO()
    console = Console(file=out, width=40, soft_wrap=True, highlight=False)
    with live.Lines(console, "Training [x]", 20) as task:
        task.measured(HELD_OUT)
        now[0] = 10.0
        task.measured(HELD_OUT)  # nothing is done yet
        for number in range(20):
            now[0] += 4.0
            task.advance(1)
            task.measured(figures(number))
    with live.Lines(console, "Counting", 4) as task:
        now[0] += 30
        task.advance(3, "a note")
    with live.Lines(console, "Reading", None) as task:
        now[0] += 30
        task.advance(3)
    lines = out.getvalue().split("\n")
    assert lines[0] == "Training [x]: 1/20, 266 s left, held out 4.651"
    assert lines[1] == (
        "Training [x]: 4/20, 3480 s left, loss 4.800, held out 4.651, 5,321 tokens/s, peak memory 2.5 GB"
    )
    assert [line.split(",")[0] for line in lines[2:-2]] == [f"Training [x]: {done}/20" for done in (7, 10, 13, 16, 19)]
    assert lines[-2:] == ["Counting: 3/4, 10 s left, a note", ""]


@given(st.lists(st.floats(-1e6, 1e6), max_size=300), st.integers(1, 60))
def test_a_curve_is_as_wide_as_its_room_and_goes_from_lowest_to_highest(values: list[float], width: int) -> None:
    drawing = live.curve(values, width)
    assert len(drawing) == min(len(values), width)
    assert set(drawing) <= set(live._BARS)
    if len(values) <= width and values and max(values) > min(values):
        assert drawing[values.index(max(values))] == "█"
        assert drawing[values.index(min(values))] == "▁"


@given(st.builds(Figures, loss=st.none() | st.floats(0, 9)), st.builds(Figures, loss=st.none() | st.floats(0, 9)))
def test_no_news_of_a_figure_keeps_it(old: Figures, new: Figures) -> None:
    assert live.newer(old, new).loss == (old.loss if new.loss is None else new.loss)
