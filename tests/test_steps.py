"""A step is done again when something that it reads or wrote changed, and never recorded on what it did not read."""

from pathlib import Path

import orjson
import pytest

from twin import runs
from twin.errors import StepError
from twin.progress import Silent
from twin.steps import Steps


@pytest.fixture
def paths():
    paths = runs.run_paths("mine")
    paths.root.mkdir(parents=True)
    Path("in").write_text("one")
    return paths


def copy() -> list[Path]:
    Path("out").write_text(Path("in").read_text())
    return [Path("out")]


def do(paths, settings=None, work=copy):
    steps = Steps(paths, Silent())
    steps.do("copy", settings or {}, [Path("in")], work)
    return steps.seconds["copy"] is not None


def test_nothing_changed(paths):
    assert [do(paths), do(paths)] == [True, False]


@pytest.mark.parametrize(
    "change",
    [lambda: Path("in").write_text("two"), lambda: Path("out").write_text("two"), lambda: Path("out").unlink()],
    ids=["what it reads", "what it wrote", "what it wrote is gone"],
)
def test_a_change_is_seen(paths, change):
    do(paths)
    change()
    assert [do(paths), do(paths)] == [True, False]
    assert Path("out").read_text() == Path("in").read_text()


def test_other_settings_are_seen(paths):
    assert [do(paths, {"seed": 1}), do(paths, {"seed": 2}), do(paths, {"seed": 2})] == [True, True, False]


def test_what_changes_under_a_step_is_not_recorded(paths):
    """Somebody else's rows would count as this run's: the next run would skip the step and keep them."""

    def swapped() -> list[Path]:
        Path("in").write_text("somebody else's")
        return copy()

    with pytest.raises(StepError, match="What the step 'copy' reads was changed while it ran"):
        do(paths, work=swapped)
    Path("in").write_text("one")
    assert do(paths)
    assert Path("out").read_text() == "one"


@pytest.mark.parametrize("record", ["3", '{"inputs": 3}', '{"inputs": "%s"}', '{"inputs": "%s", "outputs": ["out"]}'])
def test_a_record_that_was_edited_skips_nothing(paths, record):
    do(paths)
    inputs = orjson.loads(paths.steps.read_bytes())["copy"]["inputs"]
    paths.steps.write_text(f'{{"copy": {record.replace("%s", inputs)}}}')
    assert do(paths)
