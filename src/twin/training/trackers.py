"""Trackers that are told a training's figures, when asked for: TensorBoard, Trackio, Weights & Biases.

transformers' callbacks speak to them: a step's loss, learning rate and gradient norm, the settings, the base model's
shape and the run's name. No row and no weight is among that; ``WANDB_LOG_MODEL`` and ``WANDB_WATCH``, which would send
weights, are set aside. TensorBoard writes into the run's folder. Trackio stays on this machine unless
``TRACKIO_SPACE_ID`` names a Space; Weights & Biases sends, with the machine's name, to where it is logged in.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec

from twin.errors import MachineError, StepError
from twin.runs import RunPaths

PROJECT = "twin"
_WEIGHTS = ("WANDB_LOG_MODEL", "WANDB_WATCH")


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
def told(names: Sequence[str], paths: RunPaths) -> Iterator[None]:
    """Let training in the block tell ``names``: where they write is set, and what they print goes to stderr.

    Args:
        names: of the trackers; none changes nothing.
        paths: of the run.

    Raises:
        StepError: a tracker's own complaint, e.g. that nobody is logged in.
    """
    if not names:
        yield
        return
    ours = {
        **dict.fromkeys(_WEIGHTS, "false"),
        "WANDB_PROJECT": os.environ.get("WANDB_PROJECT", PROJECT),
        "TENSORBOARD_LOGGING_DIR": str(paths.tensorboard),
    }
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        with redirect_stdout(sys.stderr):
            yield
    except Exception as error:
        name = type(error).__module__.partition(".")[0]
        if name not in names:
            raise
        reason = str(error).strip().partition("\n")[0]
        raise StepError(
            f"{name} could not be told: {reason}", f"Set it up by itself first, or leave --report-to {name} out."
        ) from error
    finally:
        for variable, value in before.items():
            if value is None:
                os.environ.pop(variable, None)
            else:
                os.environ[variable] = value
