"""Trackers that are told a training's figures, when asked for: TensorBoard, Trackio, Weights & Biases.

transformers' callbacks speak to them: a step's loss, learning rate and gradient norm, the settings, the base model's
shape and the run's name. No row and no weight is among that; what Weights & Biases would send of weights, console, code
and git is turned off, whatever the environment says. TensorBoard and Weights & Biases write into the run's folder.
Trackio stays on this machine unless ``TRACKIO_SPACE_ID`` names a Space, a private one; Weights & Biases sends to where
it is logged in. The settings hold the folder of the checkpoints.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from importlib.util import find_spec

from twin.errors import MachineError, StepError, first_line
from twin.runs import RunPaths

PROJECT = "twin"
_OFF = {
    "WANDB_LOG_MODEL": "false", "WANDB_WATCH": "false", "WANDB_CONSOLE": "off", "WANDB_DISABLE_CODE": "true",
    "WANDB_DISABLE_GIT": "true", "WANDB_X_DISABLE_META": "true",
}  # fmt: skip


def need(names: Sequence[str]) -> None:
    """Stop before training where a tracker that was asked for is not installed.

    Raises:
        MachineError: with the command that installs it.
    """
    for name in names:
        if find_spec(name) is None:
            raise MachineError(
                f"To report to {name} the package {name} has to be installed, and it is not.", f"pip install {name}"
            )


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Keep stdout for the result: trackers print, some to a stdout that they keep, or out of a process of theirs."""
    out = sys.stdout
    out.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        out.flush()
        if sys.__stdout__ is not None:
            sys.__stdout__.flush()
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def told(names: Sequence[str], paths: RunPaths, prints: bool = False) -> Iterator[None]:
    """Let training in the block tell ``names``: where they write is set, and what they print goes to stderr.

    Args:
        names: of the trackers; none changes nothing.
        paths: of the run.
        prints: something else in the block prints as well.

    Raises:
        StepError: a tracker's own complaint, e.g. that nobody is logged in.
    """
    if not names:
        with stdout_to_stderr() if prints else nullcontext():
            yield
        return
    ours = {
        **_OFF,
        "WANDB_DIR": os.environ.get("WANDB_DIR", str(paths.root)),
        "WANDB_PROJECT": os.environ.get("WANDB_PROJECT", PROJECT),
        "TENSORBOARD_LOGGING_DIR": str(paths.tensorboard),
    }
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        with stdout_to_stderr():
            yield
    except Exception as error:
        name = type(error).__module__.partition(".")[0]
        if name not in names:
            raise
        reason = first_line(error)
        raise StepError(
            f"{name} could not be told: {reason}.", f"Set it up by itself first, or leave --report-to {name} out."
        ) from error
    finally:
        for variable, value in before.items():
            if value is None:
                os.environ.pop(variable, None)
            else:
                os.environ[variable] = value
