"""The log of steps: each line whole, each step once, whatever a killed process left."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from twin.errors import UsageError
from twin.training import metrics

LOGGED = {"loss": 3.5, "learning_rate": 1e-4, "grad_norm": 0.5, "epoch": 0.1}


def test_a_line() -> None:
    assert metrics.line(7, LOGGED, 0.5, 100, 2_000) == {
        "step": 7, "loss": 3.5, "learning_rate": 1e-4, "grad_norm": 0.5, "seconds": 0.5, "tokens_per_second": 200.0,
        "peak_rss_bytes": 2_000,
    }  # fmt: skip
    assert metrics.line(7, LOGGED, 0.5, 100, 2_000, 30)["peak_gpu_bytes"] == 30
    bare = metrics.line(1, {"loss": math.nan, "grad_norm": None})
    assert json.loads(metrics.dumps([bare])) == {
        "step": 1, "loss": None, "learning_rate": None, "grad_norm": None, "seconds": None,
        "tokens_per_second": None, "peak_rss_bytes": None,
    }  # fmt: skip


def test_lines_are_appended_to_a_file_of_ones_own(isolated: Path) -> None:
    file = isolated / "metrics.jsonl"
    for step in (1, 2):
        metrics.append(file, metrics.line(step, LOGGED))
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2]
    assert file.stat().st_mode & 0o077 == 0
    with pytest.raises(UsageError, match="is a folder"):
        metrics.append(isolated, metrics.line(1, LOGGED))


def test_going_on_keeps_each_step_until_the_checkpoint_once(isolated: Path) -> None:
    file = isolated / "metrics.jsonl"
    lines = [metrics.line(step, LOGGED, 0.5, 100, 2_000) for step in (1, 2, 4, 5, 4)]
    file.write_text(metrics.dumps(lines) + 'no JSON\n[1]\n{"step": "6"}\n{"step": 6, "lo')
    history = [{"step": step, **LOGGED, "loss": 9.0} for step in (1, 2, 3, 4, 5)]
    history += [{"step": 3, "eval_loss": 1.5}, {"step": 9, "eval_loss": 1.0}, {"step": 5, "train_loss": 1.0}]
    kept = metrics.until(4, file, history)
    assert [entry["step"] for entry in kept] == [1, 2, 3, 4]
    assert [entry["seconds"] for entry in kept] == [0.5, 0.5, None, 0.5]
    assert [entry.get("val_loss") for entry in kept] == [None, None, 1.5, None]
    assert [entry["loss"] for entry in kept] == [3.5, 3.5, 9.0, 3.5]  # step 3 is the Trainer's own
    assert metrics.until(0, file, history) == []
    assert [entry["step"] for entry in metrics.until(2, isolated / "none.jsonl", history)] == [1, 2]
    assert [entry["step"] for entry in metrics.until(2, None, history)] == [1, 2]
