"""Training with transformers' Trainer and PEFT.

Not obvious: a Trainer "example" here is one whole optimizer step, by its number, because its pieces differ in size and
the loss is a mean over the step's supervised tokens, whatever piece they lie in. Imported late: torch, transformers and
peft are at the top.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from twin import files
from twin.errors import MachineError, StepError, StoppedError, TwinError, UsageError
from twin.presets import TrainPlan
from twin.progress import Figures, Reporter, Task, peak_rss_bytes
from twin.records import Sample, Scored
from twin.runs import METRICS, RunPaths
from twin.training import (
    backends,
    execution,
    many,
    metrics,
    trackers,
)
from twin.training.backends import UNSLOTH
from twin.training.checkpoints import CheckpointTrainer, NotFiniteError, plan_measuring, seconds_until
from twin.training.earlier import take_up
from twin.training.execution import Execution, Piece, losses_of_each
from twin.training.model import add_lora, compute_again, load_model
from twin.training.optimizer import MasterAdamW
from twin.training.passes import plan_passes, plan_steps
from twin.training.start import Begun

_EVAL_BATCH = 32  # nothing is kept for a way back, and more replies share more
_AUTOCAST = "ACCELERATE_MIXED_PRECISION"


@dataclass(frozen=True, slots=True)
class Trained:
    """What training measured.

    ``logs`` has one entry an optimizer step, losses in nats a supervised token. ``seconds`` and ``done_steps`` are of
    this process alone, where it went on from a checkpoint. ``planned_steps`` are more than ``steps`` where training
    ended early; the adapter is of ``best_step``. ``optimizer`` is its settings; ``largest_pack`` and ``token_budget``
    in tokens, and whether layers are computed again, as they were at the end; ``processes`` are those that trained
    together; ``earlier`` are the held-out losses with the adapter that is trained on from.
    ``seconds_before`` were spent by the processes before, until the checkpoint that was gone on from.
    """

    begun: Begun
    execution: str
    execution_why: str
    steps: int
    planned_steps: int
    best_step: int
    best_why: str
    train_loss: float
    before: tuple[Scored, ...]
    earlier: tuple[Scored, ...]
    after: tuple[Scored, ...]
    tokens: int
    unique_tokens: int
    supervised_tokens: int
    seconds: float
    seconds_before: float
    done_steps: int
    logs: tuple[metrics.Line, ...]
    optimizer: dict[str, Any]
    packs: int
    largest_pack: int
    token_budget: int
    checkpointing: bool
    peak_gpu_bytes: int | None
    processes: int


def _peak_gpu_bytes(device: str) -> int | None:
    return torch.cuda.max_memory_allocated() if device == "cuda" else None


class StepTrainer(CheckpointTrainer):
    """A Trainer whose batch is one optimizer step, by its number.

    ``steps`` and ``samples`` are the pieces and the samples of each step; a step that is more than memory holds is cut
    into smaller pieces.
    """

    execution: Execution
    model_dtype: torch.dtype
    steps: list[list[Piece]]
    samples: Sequence[Sequence[Sample]]

    def training_step(self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Add up the gradients of a step's pieces; return the mean loss over its supervised tokens.

        Of several processes each computes its share of the pieces; their gradients are averaged once, behind the last.
        """
        model.train()
        number = inputs["step"]
        while True:
            pieces = self.steps[number]
            try:
                total = self._add_up(model, pieces)
                break
            except torch.OutOfMemoryError:
                if self.world.size > 1:  # the others are ahead: no step is done again
                    raise MachineError(
                        "The GPU's memory is full.", "Take a lower --max-length, a smaller preset or --four-bit."
                    ) from None
            # Behind the block, whose frames hold what is to be freed.
            self.masters.zero_grad()
            torch.cuda.empty_cache()
            self._halve(model, number, max(piece.work.computed for piece in pieces))
        total = sum(self.world.exchange(total), torch.zeros(()))
        self.check_finite(total)
        return total.to(self.args.device)

    def _add_up(self, model: torch.nn.Module, step: Sequence[Piece]) -> torch.Tensor:
        supervised = sum(int(work.weights.sum()) for work, _ in step)
        pieces = many.share(step)
        total = torch.zeros(())
        for place, (work, _) in enumerate(pieces, 1):
            with nullcontext() if place == len(pieces) else self.accelerator.no_sync(model):
                losses = self.execution.losses(model, work, self.model_dtype)
                loss = (losses * torch.from_numpy(work.weights).to(losses.device)).sum() / supervised
                self.accelerator.backward(loss * self.world.size)
            total += loss.detach().cpu()
        return total

    def _halve(self, model: Any, number: int, tokens: int) -> None:
        """Cut this step and all that follow into pieces of half the size; where one sample is too large, save less.

        Args:
            model: with its adapter.
            number: of the step.
            tokens: of the piece that did not fit, or of a larger one beside it.

        Raises:
            MachineError: a single sample does not fit, each layer computed again.
        """
        smaller = self.execution.within(max(1, tokens // 2))
        cut = smaller.cut(self.samples[number])
        if max(piece.work.computed for piece in cut) < tokens:
            self.execution = smaller
            for later in range(number, len(self.steps)):
                if any(piece.work.computed > smaller.token_budget for piece in self.steps[later]):
                    self.steps[later] = smaller.cut(self.samples[later])
            self.say(f"The GPU's memory is full: packs of at most {tokens // 2} tokens from here on.")
        elif not model.is_gradient_checkpointing:
            compute_again(model)
            self.say("The GPU's memory is full: each layer is computed again in the backward pass from here on.")
        else:
            longest = max(self.samples[number], key=lambda one: len(one.input_ids))
            raise MachineError(
                f"The GPU's memory does not hold row '{longest.id}' of {len(longest.input_ids)} tokens.",
                "Close what else uses the GPU, or take a lower --max-length or a smaller preset.",
            )

    def get_train_dataloader(self) -> Any:
        """Give every process every step, in the order that was planned."""
        return torch.utils.data.DataLoader(self.train_dataset, collate_fn=self.data_collator)


class _Log(transformers.TrainerCallback):
    """Tells of each step, and appends its line to ``metrics.jsonl``.

    Args:
        task: the task that training is.
        reporter: told the figures.
        steps: the pieces of each step.
        file: the file that grows.
        before: that of the training which is gone on from.
    """

    def __init__(
        self, task: Task, reporter: Reporter, steps: Sequence[Sequence[Piece]], file: Path, before: Path | None
    ) -> None:
        self.task, self.reporter, self.file, self.before = task, reporter, file, before
        self.tokens = [sum(piece.work.whole for piece in step) for step in steps]
        self.computed = [sum(piece.work.computed for piece in step) for step in steps]
        self.lines: list[metrics.Line] = []
        self.behind = False  # the file lacks lines
        self.done_steps, self.done_seconds, self.done_computed = 0, 0.0, 0  # of this process
        self.begun = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.task.advance(state.global_step)  # of a run gone on from
        self.lines = metrics.until(state.global_step, self.before, state.log_history)
        if state.is_world_process_zero:
            files.write_text(self.file, metrics.dumps(self.lines))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begun = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        seconds = time.perf_counter() - self.begun
        place = state.global_step - 1
        rss, gpu = peak_rss_bytes(), _peak_gpu_bytes(args.device.type)
        entry = metrics.line(state.global_step, logs, seconds, self.tokens[place], rss, gpu)
        self.lines.append(entry)
        if not control.should_evaluate:  # else the line waits for the held-out loss
            self._write(state)
        self.done_steps += 1
        self.done_seconds += seconds
        self.done_computed += self.computed[place]
        self.reporter.measured(
            Figures(
                loss=entry["loss"],
                tokens_per_second=entry["tokens_per_second"],
                seconds_left=self.done_seconds / self.done_computed * sum(self.computed[place + 1 :]),
                peak_rss_bytes=rss,
                peak_gpu_bytes=gpu,
            )
        )
        self.task.advance(1)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        self.lines[-1]["val_loss"] = float(metrics["eval_loss"])
        self.reporter.measured(Figures(val_loss=self.lines[-1]["val_loss"]))
        self._write(state)

    def _write(self, state: Any) -> None:
        """Add the last line; a disk that is full for a while costs nothing, for all lines are in memory."""
        if not state.is_world_process_zero:
            return
        try:
            if self.behind:
                files.write_text(self.file, metrics.dumps(self.lines))
            else:
                metrics.append(self.file, self.lines[-1])
            self.behind = False
        except TwinError as error:
            if not self.behind:
                self.reporter.say(f"{error.message} Training goes on, and writes it once there is room.")
            self.behind = True


def held_out(
    model: Any, samples: Sequence[Sample], execution: Execution, dtype: torch.dtype, tick: Callable[[int], None]
) -> list[Scored]:
    """Return the negative log-likelihood of each sample's reply and end token."""
    scores: list[Scored] = []
    model.eval()
    with torch.no_grad():
        for start in range(0, len(samples), _EVAL_BATCH):
            group = samples[start : start + _EVAL_BATCH]
            each = losses_of_each(execution, model, group, dtype)
            for one, losses in zip(group, each, strict=True):
                scores.append(Scored(one.id, one.conversation_id, float(losses.sum()), len(losses)))
            tick(len(group))
    return scores


@dataclass(frozen=True, slots=True)
class Job:
    """What to train.

    Args:
        base: the base model's checkpoint folder.
        base_name: what the adapter says its base is.
        plan: every setting.
        train: what is learned.
        held_out: what is measured before and after, never learned.
        checkpoints: folder for checkpoints.
        save_to: an existing folder for the adapter.
        begun: dtype and threads, of the run that is begun or gone on with.
        checkpoint: a folder to go on from, or None to start.
        report_to: trackers that are told (see ``trackers``).
        earlier: weights of an adapter to train on from, or None to train from nothing.
        seconds: that the step has taken already.
    """

    base: Path
    base_name: str
    plan: TrainPlan
    train: Sequence[Sample]
    held_out: Sequence[Sample]
    checkpoints: Path
    save_to: Path
    begun: Begun
    checkpoint: Path | None = None
    report_to: tuple[str, ...] = ()
    earlier: Path | None = None
    seconds: float = 0.0


def load(job: Job) -> tuple[Any, Execution]:
    """Return a job's base model with fresh LoRA weights, and how samples are computed with it; in all processes alike.

    Raises:
        GateError: see ``check_targets``.
        UsageError: weights of 4 bits are to be sharded.
        MachineError: there are more processes than GPUs.
    """
    world, begun = many.world(), job.begun
    with world.together():
        if world.sharded and begun.four_bit:
            raise UsageError("Weights of 4 bits can't be sharded (FSDP).", "Launch with DDP, or use --no-four-bit.")
        many.take_device(begun.device)
        where = "cpu" if world.sharded else begun.device
        base = load_model(job.base, where, begun.torch_dtype, begun.four_bit)
        chosen = execution.choose(base, job.train, begun.torch_dtype, begun.token_budget)
    many.same_weights(base)
    chosen = many.same_execution(base, chosen)
    if world.sharded:
        many.shard(base, begun.device)
    base.config._name_or_path = job.base_name  # trackers are told of it: no folder of this machine
    model = add_lora(base, job.plan)
    if world.sharded:
        many.keep_sharded(model)
    if begun.checkpointing:
        compute_again(model)
    return model, chosen


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train(job: Job, reporter: Reporter) -> Trained:
    """Train a LoRA adapter and save it, in safetensors, to ``job.save_to``.

    SIGINT and SIGTERM end it after the step in hand, with a checkpoint. The adapter is of the step with the lowest
    held-out loss that was measured, the last one included.

    Raises:
        GateError, MachineError: see ``add_lora``; the disk does not hold two checkpoints, or the adapter.
        StoppedError: a signal came; what is kept is said.
        StepError: a loss or a gradient is no number; the step and its rows are named, the weights before it are kept.
    """
    with _threads(job.begun.threads):
        try:
            return _train(job, reporter)
        except torch.OutOfMemoryError:  # a step's own is met there: this is loading, measuring, or the optimizer
            raise MachineError(
                "The GPU's memory is full.", "Close what else uses the GPU, or take --four-bit or a smaller preset."
            ) from None


def _train(job: Job, reporter: Reporter) -> Trained:
    _quiet()
    plan, world = job.plan, many.world()
    began, spent = time.perf_counter() - job.seconds, seconds_until(job.checkpoint)
    if world.first:
        job.checkpoints.mkdir(parents=True, exist_ok=True, mode=0o700)
    device, dtype = job.begun.device, job.begun.torch_dtype
    with reporter.task("Loading the base model"):
        model, chosen = backends.loader(job.begun.backend)(job)
    if isinstance(chosen, execution.LengthGrouped):
        reporter.say(f"Nothing is shared between samples: {chosen.why}")
    with world.together():
        if world.first:
            _need_disk(job, model)
    steps = plan_steps(job.train, plan, chosen)
    measured = job.held_out if plan.early_stopping_patience else ()
    every, drawn = plan_measuring(job.train, measured, len(steps), plan.epochs, plan.seed)

    def score(samples: Sequence[Sample], tick: Callable[[int], None], way: Execution = chosen) -> list[Scored]:
        return world.spread(samples, lambda group: held_out(model, group, way, dtype, tick), _EVAL_BATCH)

    with reporter.task("Held-out loss before", world.share_of(len(job.held_out))) as task:
        before = score(job.held_out, task.advance)
    if before and not math.isfinite(_mean(before)):
        rows = _named(_broken(model, job.held_out, chosen, dtype))
        raise StepError(
            f"The base model's own loss is no number for the held-out {rows}.",
            "Its weights may be broken: fetch them again, or use another base model.",
        )
    earlier: list[Scored] = []  # with the adapter that is trained on from
    if job.earlier:
        take_up(model, job.earlier)
        with reporter.task("Held-out loss of the earlier adapter", world.share_of(len(job.held_out))) as task:
            earlier = score(job.held_out, task.advance)
    # What Unsloth puts into the Trainer prints, as trackers do.
    told = trackers.told(job.report_to, RunPaths(job.checkpoints.parent), prints=job.begun.backend == UNSLOTH)
    with reporter.task("Training", len(steps)) as task, told:
        of = {one.id for one in drawn}  # what is shown next is of these
        shown = [score for score in earlier or before if score.id in of] or earlier or before
        reporter.measured(Figures(val_loss=_mean(shown) if shown else None))
        lines_before = job.checkpoint.parent / METRICS if job.checkpoint else None
        log = _Log(task, reporter, steps, job.checkpoints / METRICS, lines_before)
        trainer = _trainer(
            model, steps, chosen, job, dtype, log, every,
            lambda: _mean(score(drawn, lambda _: None, trainer.execution)), reporter.say,
        )  # fmt: skip
        trainer.spent, started = lambda: spent + time.perf_counter() - began, time.perf_counter()
        try:
            with world.stepping(NotFiniteError, StoppedError):
                trainer.run(job.checkpoint)
        except NotFiniteError as error:
            raise _why_no_number(error, trainer, job) from None
        seconds = time.perf_counter() - started
    best_step, best_why = trainer.take_best(), _why_best(trainer, len(drawn), len(job.held_out))
    with reporter.task("Held-out loss after", world.share_of(len(job.held_out))) as task:
        after = score(job.held_out, task.advance, trainer.execution)
    if world.first:
        _save(model, job)
    done = trainer.state.global_step
    works = [piece.work for step in trainer.steps[:done] for piece in step]
    lines = log.lines or metrics.until(done, lines_before, trainer.state.log_history)  # no step was left to do
    return Trained(
        begun=job.begun,
        execution=chosen.name,
        execution_why=chosen.why,
        steps=done,
        planned_steps=len(steps),
        best_step=best_step,
        best_why=best_why,
        train_loss=statistics.fmean(entry["loss"] or 0.0 for entry in lines),
        before=tuple(before),
        earlier=tuple(earlier),
        after=tuple(after),
        tokens=sum(work.whole for work in works),
        unique_tokens=sum(work.computed for work in works),
        supervised_tokens=sum(int(work.weights.sum()) for work in works),
        seconds=seconds,
        seconds_before=spent,
        done_steps=log.done_steps,
        logs=tuple(lines),
        optimizer=_optimizer_settings(trainer),
        packs=len(works),
        largest_pack=max(work.computed for work in works),
        token_budget=trainer.execution.token_budget,
        checkpointing=model.is_gradient_checkpointing,
        peak_gpu_bytes=_peak_gpu_bytes(device),
        processes=world.size,
    )


def _quiet() -> None:
    """Let transformers tell of errors alone."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _save(model: Any, job: Job) -> None:
    """Write the adapter's two files.

    Raises:
        MachineError: the disk is full.
    """
    try:
        model.save_pretrained(job.save_to, safe_serialization=True)
        # Only now: with a hub id in it, each save would ask the hub whether the vocabulary grew.
        config = files.read_json(job.save_to / "adapter_config.json")
        files.write_json(job.save_to / "adapter_config.json", config | {"base_model_name_or_path": job.base_name})
    except (OSError, SafetensorError, MachineError) as error:
        raise MachineError(
            f"The adapter could not be written: {str(error).rstrip('.')}.",
            "Free some space and go on with --resume-from auto.",
        ) from None


def _need_disk(job: Job, model: Any) -> None:
    """Stop before anything long where the disk does not hold two checkpoints, the best weights and the adapter.

    A checkpoint has each trained weight once in the model's dtype, once more as the best one, and as float32 with
    AdamW's two moments.
    """
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    a_checkpoint = sum(weight.numel() * (2 * weight.element_size() + 12) for weight in trained)
    files.need_disk(job.checkpoints, 2 * a_checkpoint + sum(weight.nbytes for weight in trained), "Training")


def _mean(scores: Sequence[Scored]) -> float:
    """Return the loss of ``scores`` in nats a token."""
    return sum(score.nll for score in scores) / sum(score.tokens for score in scores)


def _named(ids: Sequence[str]) -> str:
    """Return a few row ids for a sentence."""
    more = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
    return ("row " if len(ids) == 1 else "rows ") + ", ".join(f"'{name}'" for name in ids[:3]) + more


def _broken(model: Any, rows: Sequence[Sample], execution: Execution, dtype: torch.dtype) -> list[str]:
    """Return which rows have no loss, each measured alone: beside others, one that is no number spoils them."""
    alone = [held_out(model, [row], execution, dtype, lambda _: None)[0] for row in rows]
    return [score.id for score in alone if not math.isfinite(score.nll)]


def _why_no_number(error: NotFiniteError, trainer: StepTrainer, job: Job) -> StepError:
    """Return what to say of a step whose loss or gradient is no number: its rows, and which weights are kept."""
    rows = list(chain.from_iterable(plan_passes(job.train, job.plan)))[trainer.state.global_step]
    broken = _broken(trainer.model, rows, trainer.execution, trainer.model_dtype)
    kept = trainer.world.share(trainer.kept_step)
    weights = f"The weights of step {kept} are in {job.checkpoints / f'checkpoint-{kept}'}. " if kept else ""
    change = f"Take {_named(broken)} out" if broken else f"Lower --learning-rate {job.plan.learning_rate:g}"
    return StepError(
        f"{error}, in {_named(broken or [row.id for row in rows])}.", f"{weights}{change} and train again."
    )


def _optimizer_settings(trainer: StepTrainer) -> dict[str, Any]:
    """Return what ``run.json`` says of the optimizer."""
    known = {key: trainer.masters.defaults[key] for key in ("betas", "eps", "weight_decay")}
    return {"name": type(trainer.masters).__name__, **known, "max_grad_norm": trainer.args.max_grad_norm}


def _why_best(trainer: CheckpointTrainer, replies: int, held_out_replies: int) -> str:
    """Return why the adapter is of the step it is of."""
    if trainer.state.best_global_step is None:
        return "the last step: the held-out loss was not measured in between"
    measured = sum("eval_loss" in entry for entry in trainer.state.log_history)
    return (
        f"the lowest held-out loss of {measured} measurements, {trainer.state.best_metric:.3f} nats a token "
        f"on {replies} of {held_out_replies} replies"
    )


def _one_step(items: Sequence[int]) -> dict[str, int]:
    """Return the only step of a batch, by its number."""
    (number,) = items
    return {"step": number}


@contextmanager
def _no_autocast() -> Iterator[None]:
    """Let accelerate take no dtype of its own, which its launcher's settings may name: the weights have theirs."""
    before = os.environ.get(_AUTOCAST)
    os.environ[_AUTOCAST] = "no"
    try:
        yield
    finally:
        os.environ.pop(_AUTOCAST)
        if before is not None:
            os.environ[_AUTOCAST] = before


@_no_autocast()
def _trainer(
    model: Any,
    steps: list[list[Piece]],
    chosen: Execution,
    job: Job,
    dtype: torch.dtype,
    log: _Log,
    every: int,
    measure: Callable[[], float],
    say: Callable[[str], None],
) -> StepTrainer:
    """Return the Trainer of ``steps``, with its optimizer and schedule.

    ``measure`` gives the held-out loss, asked for each ``every`` steps; 0: never.
    """
    plan = job.plan
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = MasterAdamW(weights, lr=plan.learning_rate, weight_decay=0.0)
    warmup = len(steps) // 20  # none in a short run: the first warm step has a learning rate of 0
    arguments = transformers.TrainingArguments(
        output_dir=str(job.checkpoints),
        max_steps=len(steps),
        per_device_train_batch_size=1,
        max_grad_norm=1.0,
        logging_steps=1,
        logging_strategy="steps",
        save_strategy="steps",
        save_steps=max(10, len(steps) // 10),
        eval_strategy="steps" if every else "no",
        eval_steps=every or None,
        metric_for_best_model="loss" if every else None,
        restore_callback_states_from_checkpoint=True,
        report_to=list(job.report_to),
        run_name=job.checkpoints.parent.name,
        project=trackers.PROJECT,
        hub_private_repo=True,  # a Space of Trackio's
        disable_tqdm=True,
        use_cpu=job.begun.device == "cpu",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        seed=plan.seed + many.world().rank,  # of dropout alone: processes that dropped the same would add noise up
        ddp_find_unused_parameters=False,
        log_level_replica="error",  # of the other processes, as of this one
    )
    arguments._n_gpu = 1  # else transformers would put a step for each GPU into one batch
    trainer = StepTrainer(
        say=say,
        measure=measure,
        model=model,
        args=arguments,
        train_dataset=range(len(steps)),
        eval_dataset=[] if every else None,  # what is measured is ``measure``'s affair
        data_collator=_one_step,
        optimizers=(optimizer, transformers.get_cosine_schedule_with_warmup(optimizer, warmup, len(steps))),
        callbacks=[log, *([transformers.EarlyStoppingCallback(plan.early_stopping_patience)] if every else [])],
    )
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    trainer.execution, trainer.model_dtype, trainer.masters = chosen, dtype, optimizer
    trainer.steps, trainer.samples = steps, list(chain.from_iterable(plan_passes(job.train, plan)))
    return trainer
