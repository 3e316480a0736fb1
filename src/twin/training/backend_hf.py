"""Training with transformers' Trainer and PEFT, on packs of prefix trees.

Not obvious: a Trainer "example" here is one whole optimizer step (its packs), because packs differ in size and the
loss is a mean over the step's supervised tokens, whatever pack they lie in. Imported late: torch, transformers and
peft are at the top.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers

from twin import files
from twin.errors import GateError, MachineError
from twin.presets import TrainPlan
from twin.progress import Figures, Reporter, Task, peak_rss_bytes
from twin.records import Sample, Scored
from twin.runs import METRICS, RunPaths
from twin.training import attention, metrics, trackers
from twin.training.optimizer import MasterAdamW
from twin.training.prefix_tree import Pack, batches, pack_within, unique_tokens, whole_tokens

# Of a pack, in tokens: activations of SmolLM2-135M take about 1.5 MB a token, and a longer step is cut into packs.
TOKEN_BUDGET = 896
# Packs differ in length, and oneDNN keeps a compiled kernel for each shape: 1,024 of them, and PyTorch as many again,
# which is a gigabyte. These hold one pack's. Read at the first product, so setting them at import is early enough.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
os.environ.setdefault("LRU_CACHE_CAPACITY", "128")
_EVAL_BATCH = 16
_MOST_PRODUCTS, _MEASURED_SECONDS = 30, 0.05  # of each dtype, on a CPU


@dataclass(frozen=True, slots=True)
class Trained:
    """What training measured.

    ``logs`` has one entry an optimizer step, losses in nats a supervised token. ``seconds`` and ``done_steps`` are of
    this process alone, where it went on from a checkpoint. ``optimizer`` is its settings; ``largest_pack`` in tokens.
    """

    device: str
    dtype: str
    why: str
    steps: int
    train_loss: float
    before: tuple[Scored, ...]
    after: tuple[Scored, ...]
    tokens: int
    unique_tokens: int
    supervised_tokens: int
    seconds: float
    done_steps: int
    logs: tuple[metrics.Line, ...]
    optimizer: dict[str, Any]
    packs: int
    largest_pack: int
    peak_gpu_bytes: int | None


def choose_device(wanted: str) -> str:
    """Return where to train.

    Raises:
        MachineError: a device that was asked for and is not there.
    """
    have = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if have[name])
    if not have[wanted]:
        raise MachineError(
            f"PyTorch finds no device '{wanted}' here.", "Use --device cpu, or install the right PyTorch."
        )
    return wanted


def choose_dtype(device: str) -> tuple[torch.dtype, str]:
    """Return the base model's dtype on ``device`` and why; a CPU is measured, which takes a tenth of a second.

    Without instructions for bfloat16 a single product may take half a second: then it is the only one.
    """
    if device == "cuda":
        good = torch.cuda.is_bf16_supported()
        return (torch.bfloat16, "the GPU has bfloat16") if good else (torch.float32, "the GPU has no bfloat16")
    if device == "mps":
        return torch.float32, "bfloat16 was not tried on MPS"
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.ones(512, 768, dtype=dtype), torch.ones(768, 768, dtype=dtype)
        begun = time.perf_counter()
        fastest = math.inf  # of many: other work on the machine makes a product slower, never faster
        for number in range(_MOST_PRODUCTS):
            start = time.perf_counter()
            left @ right
            end = time.perf_counter()
            fastest = min(fastest, end - start)
            if end - begun > _MEASURED_SECONDS * (1 if number else 5):  # the first one also sets up
                break
        rates[dtype] = 2 * 512 * 768 * 768 / fastest / 1e9
    ratio = rates[torch.bfloat16] / rates[torch.float32]
    why = f"bfloat16 products run at {ratio:.1f}x the rate of float32 here ({rates[torch.bfloat16]:.0f} GFLOP/s)"
    return (torch.bfloat16 if ratio > 1.2 else torch.float32), why


def _peak_gpu_bytes(device: str) -> int | None:
    return torch.cuda.max_memory_allocated() if device == "cuda" else None


def pair_losses(model: torch.nn.Module, pack: Pack, dtype: torch.dtype) -> torch.Tensor:
    """Return [P], the negative log-likelihood of each of a pack's pairs in nats, each counted once."""
    device = next(model.parameters()).device

    def on_device(array: Any) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    predictors, inverse = np.unique(pack.predictors, return_inverse=True)
    blocks = attention.prepared(pack, dtype, device)
    output = model(
        input_ids=on_device(pack.input_ids)[None],
        position_ids=on_device(pack.position_ids)[None],
        prefix_tree=blocks,
        logits_to_keep=on_device(predictors),  # logits where something is learned, nowhere else
        use_cache=False,
    )
    logits = output.logits[0]
    if len(predictors) < len(pack.predictors):  # a node with several targets; else a copy of [P, vocabulary] is saved
        logits = logits[on_device(inverse)]
    return torch.nn.functional.cross_entropy(logits.float(), on_device(pack.targets), reduction="none")


class TreeTrainer(transformers.Trainer):
    """A Trainer whose batch is the packs of one optimizer step."""

    tree_dtype: torch.dtype
    masters: MasterAdamW

    def training_step(self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Add up the gradients of a step's packs; return the mean loss over its supervised tokens."""
        model.train()
        packs: list[Pack] = inputs["packs"]
        supervised = sum(int(pack.weights.sum()) for pack in packs)
        total = torch.zeros(())
        for pack in packs:
            losses = pair_losses(model, pack, self.tree_dtype)
            loss = (losses * torch.from_numpy(pack.weights).to(losses.device)).sum() / supervised
            self.accelerator.backward(loss)
            total += loss.detach().cpu()
        return total.to(self.args.device)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the adapter; PEFT makes new float32 weights of it, so give them their dtype and the optimizer them."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        for weight in trained:
            weight.data = weight.data.to(self.tree_dtype)
        self.masters.working = trained

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Keep the order that was planned: shuffling was done by conversations, from the seed."""
        return torch.utils.data.SequentialSampler(self.train_dataset)


class _Log(transformers.TrainerCallback):
    """Tells of each step, and appends its line to ``metrics.jsonl``.

    Args:
        task: the task that training is.
        reporter: told the figures.
        steps: the packs of each step.
        file: the file that grows.
        before: that of the training which is gone on from.
    """

    def __init__(
        self, task: Task, reporter: Reporter, steps: Sequence[Sequence[Pack]], file: Path, before: Path | None
    ) -> None:
        self.task, self.reporter, self.file, self.before = task, reporter, file, before
        self.tokens = [sum(whole_tokens(pack) for pack in step) for step in steps]
        self.computed = [unique_tokens(step) for step in steps]
        self.lines: list[metrics.Line] = []
        self.done_steps, self.done_seconds, self.done_computed = 0, 0.0, 0  # of this process
        self.begun = time.perf_counter()
        self.optimizer: dict[str, Any] = {}

    def on_train_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, lr_scheduler: Any = None, **kwargs: Any
    ) -> None:
        inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
        self.optimizer = {
            "name": type(inner).__name__,
            **{key: value for key, value in inner.defaults.items() if key in ("betas", "eps", "weight_decay")},
            "max_grad_norm": args.max_grad_norm,
        }
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
        gpu = _peak_gpu_bytes(args.device.type)
        entry = metrics.line(state.global_step, logs, seconds, self.tokens[place], peak_rss_bytes(), gpu)
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
                peak_rss_bytes=peak_rss_bytes(),
                peak_gpu_bytes=gpu,
            )
        )
        self.task.advance(1)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        self.lines[-1]["val_loss"] = float(metrics["eval_loss"])
        self.reporter.measured(Figures(val_loss=self.lines[-1]["val_loss"]))
        self._write(state)

    def _write(self, state: Any) -> None:
        if state.is_world_process_zero:
            metrics.append(self.file, self.lines[-1])


def load_model(folder: Path, device: str, dtype: torch.dtype, max_length: int) -> Any:
    """Return the base model of ``folder`` with prefix-tree attention.

    Args:
        folder: the checkpoint.
        device: where it goes.
        dtype: of its weights.
        max_length: most tokens of a sample; a sliding window that is no shorter hides nothing of it.

    Raises:
        GateError: an architecture whose attention is not the plain causal one that the tree computes.
    """
    attention.register()
    config = transformers.AutoConfig.from_pretrained(folder)
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True) and window < max_length:
        raise GateError(
            f"'{config.model_type}' attends through a window of {window} tokens, and samples of up to {max_length} are "
            "longer, which prefix packing does not compute yet.",
            f"Use --max-length {window}, or another base model: twin presets list",
        )
    if getattr(config, "attn_logit_softcapping", None):
        raise GateError(
            f"'{config.model_type}' caps its attention scores, which prefix packing does not compute yet.",
            "Use another base model: twin presets list",
        )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=attention.NAME, use_safetensors=True, trust_remote_code=False
    )
    return model.to(device)


def add_lora(model: Any, plan: TrainPlan) -> Any:
    """Return ``model`` with fresh LoRA weights on every target module.

    Raises:
        GateError: a target module that the loaded model does not have.
    """
    present = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    missing = sorted(set(plan.target_modules) - present)
    if missing:
        raise GateError(
            f"The base model has no module {', '.join(missing)}.",
            "Mend target_modules in a preset of your own: twin presets copy " + plan.preset,
        )
    torch.manual_seed(plan.seed)
    config = peft.LoraConfig(
        r=plan.lora_r,
        lora_alpha=plan.lora_alpha,
        lora_dropout=plan.lora_dropout,
        target_modules=list(plan.target_modules),
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, config, autocast_adapter_dtype=False)


def plan_passes(samples: Sequence[Sample], plan: TrainPlan) -> list[list[list[Sample]]]:
    """Return of each pass its optimizer steps' samples; a fraction of an epoch takes that share of its batches."""
    passes: list[list[list[Sample]]] = []
    for epoch in range(math.ceil(plan.epochs)):
        one = batches(samples, plan.batch_size, plan.seed + epoch)
        share = plan.epochs - epoch
        passes.append(one if share >= 1 else one[: max(1, round(len(one) * share))])
    return passes


def plan_steps(samples: Sequence[Sample], plan: TrainPlan) -> list[list[Pack]]:
    """Return the packs of each optimizer step."""
    return [pack_within(batch, TOKEN_BUDGET) for one in plan_passes(samples, plan) for batch in one]


def held_out(model: Any, samples: Sequence[Sample], dtype: torch.dtype, tick: Callable[[int], None]) -> list[Scored]:
    """Return the negative log-likelihood of each sample's reply and end token."""
    scores: list[Scored] = []
    model.eval()
    with torch.no_grad():
        for start in range(0, len(samples), _EVAL_BATCH):
            group = list(samples[start : start + _EVAL_BATCH])
            for pack in pack_within(group, TOKEN_BUDGET):
                losses = pair_losses(model, pack, dtype).double().cpu().numpy()
                for pairs in pack.of_sample:
                    one = samples[len(scores)]
                    scores.append(Scored(one.id, one.conversation_id, float(losses[pairs].sum()), len(pairs)))
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
        checkpoint: a folder to go on from, or None to start.
        report_to: trackers that are told (see ``trackers``).
    """

    base: Path
    base_name: str
    plan: TrainPlan
    train: Sequence[Sample]
    held_out: Sequence[Sample]
    checkpoints: Path
    save_to: Path
    checkpoint: Path | None = None
    report_to: tuple[str, ...] = ()


def train(job: Job, reporter: Reporter) -> Trained:
    """Train a LoRA adapter and save it, in safetensors, to ``job.save_to``.

    Raises:
        GateError, MachineError, UsageError: see ``load_model``, ``choose_device`` and ``add_lora``.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    plan = job.plan
    job.checkpoints.mkdir(parents=True, exist_ok=True, mode=0o700)
    device = choose_device(plan.device)
    dtype, why = choose_dtype(device)
    with reporter.task("Loading the base model"):
        model = add_lora(load_model(job.base, device, dtype, plan.max_length), plan)
    steps = plan_steps(job.train, plan)
    with reporter.task("Held-out loss before", len(job.held_out)) as task:
        before = held_out(model, job.held_out, dtype, task.advance)
    told = trackers.told(job.report_to, RunPaths(job.checkpoints.parent))
    with reporter.task("Training", len(steps)) as task, told:
        before_loss = sum(score.nll for score in before) / max(1, sum(score.tokens for score in before))
        reporter.measured(Figures(val_loss=before_loss if before else None))
        earlier = job.checkpoint.parent / METRICS if job.checkpoint else None
        log = _Log(task, reporter, steps, job.checkpoints / METRICS, earlier)
        trainer = _trainer(model, steps, plan, device, dtype, job.checkpoints, log, job.report_to)
        started = time.perf_counter()
        trainer.train(resume_from_checkpoint=str(job.checkpoint) if job.checkpoint else None)
        seconds = time.perf_counter() - started
    with reporter.task("Held-out loss after", len(job.held_out)) as task:
        after = held_out(model, job.held_out, dtype, task.advance)
    model.save_pretrained(job.save_to, safe_serialization=True)
    # Only now: with a hub id in it, each save would ask the hub whether the vocabulary grew.
    config = files.read_json(job.save_to / "adapter_config.json")
    files.write_json(job.save_to / "adapter_config.json", config | {"base_model_name_or_path": job.base_name})
    packs = [pack for step in steps for pack in step]
    return Trained(
        device=device,
        dtype=str(dtype).removeprefix("torch."),
        why=why,
        steps=len(steps),
        train_loss=statistics.fmean(entry["loss"] or 0.0 for entry in log.lines),
        before=tuple(before),
        after=tuple(after),
        tokens=round(sum(len(sample.input_ids) for sample in job.train) * plan.epochs),
        unique_tokens=unique_tokens(packs),
        supervised_tokens=sum(int(pack.weights.sum()) for pack in packs),
        seconds=seconds,
        done_steps=log.done_steps,
        logs=tuple(log.lines),
        optimizer=log.optimizer,
        packs=len(packs),
        largest_pack=max(len(pack.input_ids) for pack in packs),
        peak_gpu_bytes=_peak_gpu_bytes(device),
    )


def _trainer(
    model: Any,
    steps: Sequence[Sequence[Pack]],
    plan: TrainPlan,
    device: str,
    dtype: torch.dtype,
    checkpoints: Path,
    log: _Log,
    report_to: Sequence[str] = (),
) -> TreeTrainer:
    """Return the Trainer of ``steps``, with its optimizer and schedule."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = MasterAdamW(weights, lr=plan.learning_rate, weight_decay=0.0)
    warmup = len(steps) // 20  # none in a short run: the first warm step has a learning rate of 0
    arguments = transformers.TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=len(steps),
        per_device_train_batch_size=1,
        max_grad_norm=1.0,
        logging_steps=1,
        logging_strategy="steps",
        save_strategy="steps",
        save_steps=max(10, len(steps) // 10),
        save_total_limit=1,
        report_to=list(report_to),
        run_name=checkpoints.parent.name,
        project=trackers.PROJECT,
        disable_tqdm=True,
        use_cpu=device == "cpu",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        seed=plan.seed,
    )
    trainer = TreeTrainer(
        model=model,
        args=arguments,
        train_dataset=steps,
        data_collator=lambda items: {"packs": items[0]},
        optimizers=(optimizer, transformers.get_cosine_schedule_with_warmup(optimizer, warmup, len(steps))),
        callbacks=[log],
    )
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    trainer.tree_dtype, trainer.masters = dtype, optimizer
    return trainer
