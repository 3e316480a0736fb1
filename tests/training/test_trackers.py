"""Trackers are told when asked for alone; what is missing is one sentence; weights stay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from twin.errors import MachineError, StepError
from twin.runs import RunPaths
from twin.training import trackers

PATHS = RunPaths(Path("adapters/tiny"))


def test_a_missing_one_is_a_sentence_and_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    trackers.need([])
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == "wandb" else object())
    trackers.need(["tensorboard", "trackio"])
    with pytest.raises(MachineError) as caught:
        trackers.need(["tensorboard", "wandb"])
    assert caught.value.message == "To report to wandb the package wandb has to be installed, and it is not."
    assert caught.value.hint == "pip install wandb"


def test_the_environment_is_set_for_the_block_alone(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_LOG_MODEL", "checkpoint")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    before = dict(os.environ)
    with trackers.told([], PATHS):
        print("ours")
        assert dict(os.environ) == before
    with trackers.told(["wandb", "tensorboard"], PATHS):
        print("theirs")
        subprocess.run(["echo", "their program's"], check=True)
        assert (os.environ["WANDB_LOG_MODEL"], os.environ["WANDB_WATCH"]) == ("false", "false")
        assert os.environ["WANDB_PROJECT"] == "mine"
        assert os.environ["TENSORBOARD_LOGGING_DIR"] == str(PATHS.tensorboard)
    assert dict(os.environ) == before
    subprocess.run(["echo", "ours"], check=True)
    assert capfd.readouterr() == ("ours\nours\n", "theirs\ntheir program's\n")


def test_a_trackers_complaint_is_a_sentence_and_a_bug_stays_one() -> None:
    class ComplaintError(Exception):
        pass

    ComplaintError.__module__ = "wandb.errors"
    with pytest.raises(StepError) as caught, trackers.told(["wandb"], PATHS):
        raise ComplaintError("api_key not configured (no-tty).\n more")
    assert caught.value.message == "wandb could not be told: api_key not configured (no-tty)."
    assert caught.value.hint == "Set it up by itself first, or leave --report-to wandb out."
    with pytest.raises(ComplaintError), trackers.told(["tensorboard"], PATHS):
        raise ComplaintError
    with pytest.raises(ZeroDivisionError), trackers.told(["wandb"], PATHS):
        sys.stdout.write(str(1 / 0))
