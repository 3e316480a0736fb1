"""A Trainer that can be walked away from: it ends after the step in hand, and goes on to the same bits when killed.

Not obvious: a checkpoint is written beside its place and renamed into it, because transformers writes it in place, file
by file; the weights with the lowest held-out loss travel inside each checkpoint, so that one folder is the whole state.
Imported late: torch and transformers are at the top.
"""

from __future__ import annotations

import math
import random
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from twin import files, runs
from twin.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, MachineError, StoppedError
from twin.records import Sample
from twin.training import many
from twin.training.optimizer import MasterAdamW

_SAVE_SECONDS = 300.0  # at most so much work is lost to a kill, however long a step takes
_ONE_PRESS_SECONDS = 0.5  # timeout(1) sends a signal twice
_ENDS = "Training ends after this step, with a checkpoint. Ctrl-C once more ends it at once."
_BEST = "best.safetensors"
_STATE = "trainer_state.json"
_SPENT = "spent.json"  # the seconds that a checkpoint took, loading and measuring included

MEASUREMENTS = 4  # of the held-out loss, an epoch
_SHARE = 0.03  # of the training's work that they may take together
_LEAST_STEPS, _LEAST_REPLIES = 10, 8
_BACKWARD = 3  # a step costs about three times what a measurement of the same tokens does


def plan_measuring(
    learned: Sequence[Sample], held_out: Sequence[Sample], steps: int, epochs: float, seed: int
) -> tuple[int, list[Sample]]:
    """Return (every how many steps to measure the held-out loss, on which replies); (0, []) where it is no use.

    The replies are drawn once, from the seed, so that what is compared differs in the weights alone; there are as many
    as cost 3 % of the training, and 8 at least. A training too short for two measurements has none: nothing could be
    chosen by them.

    Args:
        learned: what is trained on, once an epoch.
        held_out: what may be measured.
        steps: optimizer steps of the whole training.
        epochs: how many passes these are.
        seed: of the draw.
    """
    every = max(_LEAST_STEPS, math.ceil(steps / epochs / MEASUREMENTS))
    points = math.ceil(steps / every)  # the last one is at the end
    if not held_out or points < 2:
        return 0, []
    tokens = _SHARE * _BACKWARD * epochs * sum(len(sample.input_ids) for sample in learned) / points
    drawn: list[Sample] = []
    for sample in random.Random(seed).sample(list(held_out), len(held_out)):  # noqa: S311 - reproducible, no secret
        tokens -= len(sample.input_ids)
        if tokens < 0 and len(drawn) >= _LEAST_REPLIES:
            break
        drawn.append(sample)
    return every, sorted(drawn, key=lambda sample: sample.input_ids)  # neighbours share the most


class Stop(transformers.TrainerCallback):
    """Ends training after the step in hand, with a checkpoint, once SIGINT or SIGTERM asks for it.

    A second Ctrl-C ends it at once; a signal that is ignored (``nohup``, a shell's ``&``) stays ignored.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.world = say, many.world()
        self.signal: int | None = None
        self._heard = self._saved = time.monotonic()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take both signals inside the block, in the main thread: elsewhere Python lets nobody take them."""
        before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    before[number] = signal.signal(number, self._hear)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._heard = number, now
            # Not from here: the line in hand may hold the lock of what is drawn, and would never get on.
            threading.Thread(target=self.say, args=(_ENDS,), daemon=True).start()
        elif number == signal.SIGINT and now - self._heard > _ONE_PRESS_SECONDS:
            raise KeyboardInterrupt

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint where it is time for one, and for the end where a signal came."""
        if self.world.share(lambda: time.monotonic() - self._saved > _SAVE_SECONDS):
            control.should_save = True
        self._end(control)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for the end where a signal came while the step was told."""
        self._end(control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for the end where a signal came while it was measured."""
        self._end(control)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note when; a signal that came while it was written needs no further step."""
        self._saved = time.monotonic()
        if self.asked():
            control.should_training_stop = True

    def asked(self) -> bool:
        """Say whether a signal came, to any process: all end after the same step."""
        heard = max(self.world.exchange(self.signal or 0))
        if heard and self.signal is None:
            self.signal, self._heard = heard, time.monotonic()
            self.say(_ENDS)
        return bool(heard)

    def _end(self, control: Any) -> None:
        if self.asked():
            control.should_save = control.should_training_stop = True


class NotFiniteError(Exception):
    """A loss or a gradient is infinite or no number; the weights are those of the step before."""


def _last(step: int | None) -> str:
    return f"the last whole checkpoint is of step {step}" if step else "there is no whole checkpoint"


def _is_over(state: Any) -> bool:
    """Say whether a checkpoint is of a training's last step, or of one that had ended early: then no step is left."""
    kept = state.stateful_callbacks.get("EarlyStoppingCallback")
    early = kept and kept["attributes"]["early_stopping_patience_counter"] >= kept["args"]["early_stopping_patience"]
    return bool(state.global_step >= state.max_steps or early)


def seconds_until(checkpoint: Path | None) -> float:
    """Return how long a training took until ``checkpoint``, by all processes that it was stopped in; 0: not known."""
    if checkpoint is None or not (checkpoint / _SPENT).is_file():
        return 0.0
    seconds = files.read_json(checkpoint / _SPENT).get("seconds")
    return float(seconds) if isinstance(seconds, int | float) and math.isfinite(seconds) else 0.0


class CheckpointTrainer(transformers.Trainer):
    """A Trainer with whole checkpoints, the best weights kept, and an orderly end.

    ``masters``, the optimizer, and ``spent``, which tells the seconds that the training took, are set after it is made.

    Args:
        say: told of what a person should know.
        measure: returns the held-out loss, in nats a token.
        named: as for a Trainer.
    """

    masters: MasterAdamW
    control: Any
    spent: Callable[[], float] = staticmethod(lambda: 0.0)

    def __init__(
        self, say: Callable[[str], None] = lambda _: None, measure: Callable[[], float] = lambda: math.nan, **named: Any
    ) -> None:
        super().__init__(**named)
        self.say, self.measure, self.stop, self.world = say, measure, Stop(say), many.world()
        self.add_callback(self.stop)  # behind the library's own, whose wishes it may add to
        self._best: dict[str, torch.Tensor] = {}
        self._writing: Path | None = None

    # ------------------------------------------------------------ from the first step to the last

    def run(self, checkpoint: Path | None) -> None:
        """Train from ``checkpoint``, or from the start, to the end.

        Raises:
            StoppedError: a signal asked for the end; says which step is kept.
            NotFiniteError: see there; a checkpoint of the step before was tried.
        """
        if checkpoint is not None and _is_over(state := transformers.TrainerState.load_from_json(checkpoint / _STATE)):
            self._load_from_checkpoint(str(checkpoint))
            self.state = state
            return
        with self.stop.listening():
            try:
                self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            except NotFiniteError:
                self.control.should_training_stop = True
                if self.state.global_step not in (0, self.world.share(self.kept_step)):
                    self._save_checkpoint(self.model, None)
                raise
        if self.stop.asked():
            raise self._stopped()

    def _stopped(self) -> StoppedError:
        done, whole = self.state.global_step, self.world.share(self.kept_step)
        kept = "is kept" if whole == done else f"could not be kept: {_last(whole)}"
        code = EXIT_TERMINATED if self.stop.signal == signal.SIGTERM else EXIT_INTERRUPTED
        again = "Go on with --resume-from auto." if whole else "Free some space and train again."
        said = f"Training stopped after step {done} of {self.state.max_steps}, which {kept}."
        return StoppedError(said, again, code, kept=whole is not None)

    def kept_step(self) -> int | None:
        """Return the step of the newest whole checkpoint."""
        newest = runs.newest_checkpoint(Path(self.args.output_dir))
        return runs.checkpoint_step(newest) if newest else None

    def check_finite(self, loss: torch.Tensor) -> None:
        """Refuse a step before it reaches the weights.

        Raises:
            NotFiniteError: its loss or a gradient is infinite or no number.
        """
        gradients = [weight.grad for weight in self.model.parameters() if weight.grad is not None]
        for what, value in (("loss", loss), ("gradient", torch.nn.utils.get_total_norm(gradients))):
            if not math.isfinite(float(value)):
                raise NotFiniteError(f"The {what} became {float(value)} at step {self.state.global_step + 1}")

    # ------------------------------------------------------------ held-out loss

    def evaluate(self, *arguments: Any, **named: Any) -> dict[str, float]:
        """Measure the held-out loss; keep the weights where it is lower than ever."""
        loss = self.measure()
        if loss < (math.inf if self.state.best_metric is None else self.state.best_metric):
            trained = self.model.named_parameters()
            self._best = {name: weight.detach().cpu().clone() for name, weight in trained if weight.requires_grad}
        metrics = {"eval_loss": loss}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.control.should_save |= self.control.should_training_stop  # what follows may take minutes, and be killed
        return metrics

    def take_best(self) -> int:
        """Put the weights with the lowest held-out loss into the model; return the step they are of."""
        if self.state.best_global_step in (None, self.state.global_step):
            return int(self.state.global_step)
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                if weight.requires_grad:
                    weight.copy_(self._best[name])
        return int(self.state.best_global_step)

    # ------------------------------------------------------------ checkpoints

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._writing or self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint whole or not at all, then delete all others; a full disk is told and training goes on."""
        random_states = self._random_states()
        if not self.world.first:
            return
        target = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        try:
            with files.scratch_dir(target.with_name("checkpoint")) as self._writing:
                with self._waiting_for_nobody():
                    super()._save_checkpoint(model, trial)
                made = self._writing / target.name
                for name, state in random_states.items():
                    (made / name).write_bytes(state)
                files.write_json(made / _SPENT, {"seconds": round(self.spent(), 3)})
                if self._best:
                    save_file(self._best, made / _BEST)
                runs.seal_checkpoint(made)
                if target.exists():  # not whole, or it would have been gone on from
                    shutil.rmtree(target)
                made.replace(target)
        except (OSError, SafetensorError, MachineError, RuntimeError) as error:
            if type(error) is RuntimeError and "inline_container" not in str(error):  # PyTorch's writer of archives
                raise
            reason = "PyTorch could not write it all" if type(error) is RuntimeError else str(error).rstrip(".")
            goes_on = "" if self.control.should_training_stop else ". Training goes on"
            self.say(
                f"The checkpoint of step {self.state.global_step} could not be written ({reason}); is the disk full? "
                f"{_last(self.kept_step()).capitalize()}{goes_on}."
            )
            return
        finally:
            self._writing = None
            self.state.best_model_checkpoint = None  # it would name the folder that was renamed
        for other in target.parent.glob("checkpoint-*"):
            if other != target:
                shutil.rmtree(other, ignore_errors=True)

    def _random_states(self) -> dict[str, bytes]:
        """Return the files that keep each process's random numbers, which dropout takes; none for one process alone."""
        if self.world.size == 1:
            return {}  # transformers writes it
        with tempfile.TemporaryDirectory() as folder:
            self._save_rng_state(folder)
            own = {file.name: file.read_bytes() for file in Path(folder).iterdir()}
        return {name: state for states in self.world.exchange(own) for name, state in states.items()}

    @contextmanager
    def _waiting_for_nobody(self) -> Iterator[None]:
        """Let transformers write in this process alone: in several, it waits for all at the ``best_global_step``."""
        strategy, self.args.save_strategy = self.args.save_strategy, "no"
        try:
            yield
        finally:
            self.args.save_strategy = strategy

    def store_flos(self) -> None:
        """Count no operations: of a step's pieces transformers knows none, and in several processes it would wait."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the adapter; PEFT makes new float32 weights of it, so give them their dtype and the optimizer them."""
        dtypes = [weight.dtype for weight in self.masters.working]
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        for weight, dtype in zip(trained, dtypes, strict=True):
            weight.data = weight.data.to(dtype)
        self.masters.working = trained
        best = Path(resume_from_checkpoint) / _BEST
        self._best = load_file(best) if best.exists() else {}

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load both; in several processes transformers would load them to a "cpu:0" that PyTorch does not know."""
        if checkpoint is not None:
            for name, holder in ((OPTIMIZER_NAME, self.optimizer), (SCHEDULER_NAME, self.lr_scheduler)):
                holder.load_state_dict(torch.load(Path(checkpoint) / name, map_location="cpu", weights_only=True))
