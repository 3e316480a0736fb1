"""What a run leaves beside its adapter: run.json, the log of its steps, the loss plot, the model card.

Imported late: torch comes in through ``backend_hf``.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, islice
from pathlib import Path
from typing import Any

from twin import __version__
from twin import learned as learned_rows
from twin.basemodel import BaseModel
from twin.errors import file_errors
from twin.files import atomic_write, file_digest, write_json, write_text
from twin.learned import Learned
from twin.presets import TrainPlan
from twin.progress import peak_rss_bytes
from twin.records import Example, Sample
from twin.runs import RunPaths, adapter_digests, portable
from twin.templates import Family
from twin.training import execution, hardware, metrics
from twin.training.backend_hf import Trained
from twin.training.explain import Account, account, systems
from twin.training.passes import plan_passes, plan_steps
from twin.training.samples import Samples
from twin.training.start import Begun

_VERSIONS = (
    "torch", "transformers", "peft", "accelerate", "unsloth", "unsloth_zoo", "bitsandbytes", "tokenizers",
    "safetensors", "numpy", "jinja2", "llama-cpp-python", "gguf",
)  # fmt: skip

_CARD = """---
base_model: {base}
library_name: peft
license: other
tags: [lora, twin]
---

# {name}

A LoRA adapter trained with twin {version} on one person's own words. It speaks as that person: share it only if they
agree, and only under terms that the base model's license ({license}) allows.

| | |
|---|---|
| Base model | `{base}` |
| Rows | {rows_train} to learn from, {rows_val} held out |
| Optimizer steps | {steps}, {batch_size} replies each; the adapter is of step {best_step} |
| LoRA | rank {lora_r}, alpha {lora_alpha}, on {targets} |
| Held-out loss (nats a token) | {val_loss_base} before, {val_loss} after |
| Chat template | family `{family}`, in `chat_template.jinja` |

Load it with plain PEFT: `PeftModel.from_pretrained(base_model, "this folder")`. Every setting, version and figure is in
`run.json`.
"""


def _file(path: Path | None, rows: int) -> dict[str, Any] | None:
    return None if path is None else {"path": portable(path), "sha256": file_digest(path), "rows": rows}


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def describe(
    paths: RunPaths,
    base: BaseModel,
    base_weights: str,
    family: Family,
    plan: TrainPlan,
    system: tuple[str, int],
    files: tuple[tuple[Path, int], tuple[Path | None, int]],
    built: Samples,
) -> dict[str, Any]:
    """Return what is known of a run before it starts.

    Args:
        paths: of the run.
        base: the base model.
        base_weights: the digest of its weights.
        family: its template pair.
        plan: every setting.
        system: the system prompt and its length in tokens.
        files: the file to learn from and the one held out, each with its number of rows.
        built: the samples.
    """
    return {
        "twin": __version__,
        "name": paths.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "base_model": base.name,
        "base_hub_id": base.hub_id,
        "base_weights": base_weights,
        "family": family.name,
        "pair": family.model_dump(),
        "system_prompt": system[0],
        "system_prompt_tokens": system[1],
        "plan": plan.model_dump(),
        "dataset": {
            "train": _file(*files[0]),
            "val": _file(*files[1]),
            "samples": len(built.samples),
            "shortened": built.shortened,
            "too_long": built.too_long,
        },
        "versions": _versions(),
        "hardware": hardware.describe(),
    }


def foreseen(
    plan: TrainPlan,
    folder: Path,
    samples: Sequence[Sample],
    begun: Begun,
    explain: tuple[Sequence[Example], Callable[[str], int]] | None = None,
) -> dict[str, Any]:
    """Return what a dry run knows: device, optimizer steps, tokens with and without what they share.

    Args:
        plan: every setting.
        folder: the base model's checkpoint, of which the configuration is read.
        samples: what is learned.
        begun: what it would be begun with.
        explain: the rows that the samples were made of and what counts a text's tokens: then ``explain`` tells what
            rows share, what each costs, and how it is computed and why.
    """
    chosen = execution.foresee(folder, begun.token_budget)
    told = account(samples, plan_passes(samples, plan), begun.token_budget) if explain else None
    if told and isinstance(chosen, execution.PrefixTree):  # its trees are those that would be computed
        steps, tokens, unique = told.steps, told.tokens, told.unique_tokens
        supervised = sum(cost.times * sample.supervised for cost, sample in zip(told.costs, samples, strict=True))
    else:
        planned = plan_steps(samples, plan, chosen)
        works = [piece.work for step in planned for piece in step]
        steps, tokens, unique = len(planned), sum(work.whole for work in works), sum(work.computed for work in works)
        supervised = sum(int(work.weights.sum()) for work in works)
    return {
        "backend": begun.backend,
        "backend_reason": begun.backend_why,
        "device": begun.device,
        "four_bit": begun.four_bit,
        "gradient_checkpointing": begun.checkpointing,
        "memory_reason": begun.memory_why,
        "predicted_gpu_bytes": begun.predicted_gpu_bytes or None,
        "execution": chosen.name,
        "execution_reason": chosen.why,
        "steps": steps,
        "tokens": tokens,
        "unique_tokens": unique,
        "supervised_tokens": supervised,
        "peak_rss_bytes": peak_rss_bytes(),
        **({"explain": _explained(plan, chosen, samples, *explain, begun, told)} if explain and told else {}),
    }


def _explained(
    plan: TrainPlan,
    chosen: execution.Execution,
    samples: Sequence[Sample],
    rows: Sequence[Example],
    count: Callable[[str], int],
    begun: Begun,
    told: Account,
) -> dict[str, Any]:
    """Return what ``--explain`` tells."""
    alone = isinstance(chosen, execution.LengthGrouped)
    saved = told.shared_system + told.shared_history
    shared = (
        f"rows share {saved / told.tokens:.0%} of their tokens with others of their step, and padded "
        f"batches of the same rows would compute {told.padded_tokens / told.unique_tokens:.1f} times as many"
    )
    return {
        **asdict(told),
        "systems": [asdict(one) for one in systems(rows, samples, count)],
        "execution": {
            "name": chosen.name,
            "reason": f"{chosen.why}; all above is what a tree would compute, and is not" if alone else shared,
            "device": begun.device,
            "device_reason": "asked for" if plan.device != "auto" else "the first of cuda, mps and cpu that is here",
            "dtype": begun.dtype,
            "dtype_reason": begun.why,
            "memory_reason": begun.memory_why,
        },
    }


def result(
    outcome: Trained, change: dict[str, Any] | None, seconds: float, since: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return what training measured, as ``run.json`` and ``--json`` have it.

    Args:
        outcome: what the backend returned.
        change: of the held-out loss, with its interval; None where nothing was held out.
        seconds: of the whole step, those up to the checkpoint that was gone on from included.
        since: the change from the earlier adapter, where one was trained on from.
    """
    return {
        "backend": outcome.begun.backend,
        "backend_reason": outcome.begun.backend_why,
        "device": outcome.begun.device,
        "dtype": outcome.begun.dtype,
        "dtype_reason": outcome.begun.why,
        "threads": outcome.begun.threads,
        "processes": outcome.processes,
        "execution": outcome.execution,
        "execution_reason": outcome.execution_why,
        "steps": outcome.steps,
        "planned_steps": outcome.planned_steps,
        "best_step": outcome.best_step,
        "best_step_reason": outcome.best_why,
        "train_loss": outcome.train_loss,
        "val_loss": change["after"] if change else None,
        "val_loss_base": change["before"] if change else None,
        "val_change": change,
        **({"val_loss_earlier": since["before"], "val_change_earlier": since} if since else {}),
        "tokens": outcome.tokens,
        "unique_tokens": outcome.unique_tokens,
        "supervised_tokens": outcome.supervised_tokens,
        "token_budget": outcome.token_budget,
        "four_bit": outcome.begun.four_bit,
        "gradient_checkpointing": outcome.checkpointing,
        "memory_reason": outcome.begun.memory_why,
        "predicted_gpu_bytes": outcome.begun.predicted_gpu_bytes or None,
        "packs": outcome.packs,
        "largest_pack": outcome.largest_pack,
        "optimizer": outcome.optimizer,
        "tokens_per_second": _tokens_per_second(outcome),
        "seconds": round(seconds, 3),
        "peak_rss_bytes": peak_rss_bytes(),
        "peak_gpu_bytes": outcome.peak_gpu_bytes,
    }


def _tokens_per_second(outcome: Trained) -> float | None:
    """Return the speed of the steps that this process did; None where it did none."""
    if not outcome.done_steps:
        return None
    return round(outcome.tokens * outcome.done_steps / outcome.steps / outcome.seconds, 1)


def learned_from(plan: TrainPlan, built: Samples, best_step: int) -> Learned:
    """Return the rows that the weights of ``best_step`` have learned."""
    steps = chain.from_iterable(plan_passes(built.samples, plan))
    seen = {sample.id for step in islice(steps, best_step) for sample in step}
    pairs = zip(built.samples, built.origins, strict=True)
    return Learned.of({id(origin.row): origin.row for sample, origin in pairs if sample.id in seen}.values())


def install(
    paths: RunPaths,
    finished: Path,
    family: Family,
    facts: Mapping[str, Any],
    outcome: Trained,
    learned: Learned,
) -> None:
    """Move a finished adapter into place; run.json goes first and comes last, so no half run looks whole.

    Args:
        paths: of the run.
        finished: the folder with the adapter's two files.
        family: whose Jinja goes with it.
        facts: what ``run.json`` says; the files' digests are added.
        outcome: with the log of the steps.
        learned: the rows.
    """
    with file_errors(paths.root, "write"):
        paths.record.unlink(missing_ok=True)
        for target in (paths.adapter_config, paths.adapter_weights):
            made = finished / target.name
            made.chmod(0o600)
            made.replace(target)
    write_text(paths.chat_template, family.jinja)
    write_text(paths.metrics, metrics.dumps(outcome.logs))
    measured = facts["result"]
    steps = [int(entry["step"] or 0) for entry in outcome.logs]
    losses = [entry["loss"] or 0.0 for entry in outcome.logs]
    held_out = [
        (int(entry["step"] or 0), float(entry["val_loss"] or 0.0)) for entry in outcome.logs if "val_loss" in entry
    ]
    whole = (measured["val_loss_base"], measured["val_loss"])
    write_loss_plot(paths, steps, losses, whole, measured["best_step"], held_out)
    write_card(paths, facts)
    learned_rows.write(learned, paths)
    digests = adapter_digests(paths) | {paths.learned.name: file_digest(paths.learned)}
    write_json(paths.record, {**facts, "files": digests})
    shutil.rmtree(paths.checkpoints, ignore_errors=True)  # all is written: they have done their work


def write_loss_plot(
    paths: RunPaths,
    steps: Sequence[int],
    losses: Sequence[float],
    held_out: tuple[float | None, float | None],
    best_step: int,
    measured: Sequence[tuple[int, float]] = (),
) -> None:
    """Draw training loss (nats a token) over optimizer steps, and the held-out loss.

    Args:
        paths: of the run.
        steps: optimizer steps.
        losses: of each step.
        held_out: loss of all held-out replies before training and of the adapter.
        best_step: the step that the adapter is of.
        measured: steps in between, and the loss of some held-out replies there.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, label="training", linewidth=1)
    before, after = held_out
    if before is not None and after is not None and steps:
        axes.plot([0, best_step], [before, after], "o--", label="held out, before and the adapter")
    if measured:
        axes.plot(*zip(*measured, strict=True), "x:", label="held out, some replies")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss, nats a token")
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    with atomic_write(paths.loss_plot) as handle:
        handle.write(buffer.getvalue())


def write_card(paths: RunPaths, facts: Mapping[str, Any]) -> None:
    """Write the model card of a run."""

    def loss(value: float | None) -> str:
        return "not measured" if value is None else f"{value:.3f}"

    plan, data, measured = facts["plan"], facts["dataset"], facts["result"]
    card = _CARD.format(
        base=facts["base_hub_id"],
        name=paths.name,
        version=facts["twin"],
        license=plan["license"],
        rows_train=data["train"]["rows"],
        rows_val=data["val"]["rows"] if data["val"] else 0,
        steps=measured["steps"],
        best_step=measured["best_step"],
        batch_size=plan["batch_size"],
        lora_r=plan["lora_r"],
        lora_alpha=plan["lora_alpha"],
        targets=", ".join(plan["target_modules"]),
        val_loss_base=loss(measured["val_loss_base"]),
        val_loss=loss(measured["val_loss"]),
        family=facts["family"],
    )
    write_text(paths.card, card)
