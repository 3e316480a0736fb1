"""``twin export``: what a person reads of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from twin.cli.commands import export
from twin.results import Exported
from twin.runs import DatasetPaths

DONE = Exported(
    "Ada", DatasetPaths(Path("data")), 900, 100, {}, {"chat": 1000}, {}, 0, 0.8125, ("a:1-1", "b:2-2"), (), 1.0
)


def test_the_closest_pair_is_shown() -> None:
    lines = export._lines(DONE, dry_run=False)
    assert lines[1:4] == ["  closest pair across the split: 0.81 alike (1 is the same)", "    a:1-1", "    b:2-2"]


def test_no_more_is_claimed_of_the_split_than_was_looked_for() -> None:
    none = replace(DONE, closest=None, closest_rows=())
    assert export._lines(none, dry_run=False)[1] == "  closest pair across the split: none found alike"


def test_what_nobody_compared_is_not_spoken_of() -> None:
    apps = replace(DONE, kinds={}, closest=None, closest_rows=())
    assert not [line for line in export._lines(apps, dry_run=False, compared=False) if "across the split" in line]
