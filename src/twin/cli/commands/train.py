"""``twin train``: dataset → LoRA adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twin.cli import options
from twin.cli.console import Output, few

NAME = "train"
HELP = """Train a LoRA adapter on a dataset, on this machine.

Examples:

  twin train --preset smollm2-135m

  twin train --preset qwen2.5-0.5b --name chirag-v1 --epochs 3 --lora-r 32

  twin train --preset smollm2-135m --resume-from auto
"""


def command(
    preset: options.Preset = None,
    dataset: Annotated[Path | None, typer.Option(help="JSONL rows. Default: data/train.jsonl")] = None,
    output: Annotated[Path | None, typer.Option(help="The run's folder. Default: adapters/NAME")] = None,
    name: Annotated[str | None, typer.Option(help="The run's name. Default: the preset's")] = None,
    model: options.Model = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    learning_rate: options.LearningRate = None,
    lora_r: options.LoraR = None,
    max_length: options.MaxLength = None,
    early_stopping_patience: options.Patience = None,
    resume_from: Annotated[str | None, typer.Option(help="A checkpoint folder, or auto for the newest.")] = None,
    backend: Annotated[str | None, typer.Option(help="auto or hf.")] = None,
    device: options.Device = None,
    seed: options.Seed = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    dry_run: options.DryRun = False,
) -> None:
    """Train."""
    from twin import pipeline
    from twin.settings import load_settings

    out = Output(json, quiet, verbose)
    settings = load_settings(
        train={
            "preset": preset, "dataset": dataset, "name": name, "model": model, "epochs": epochs,
            "batch_size": batch_size, "learning_rate": learning_rate, "lora_r": lora_r, "max_length": max_length,
            "resume_from": resume_from, "backend": backend, "device": device, "seed": seed,
            "early_stopping_patience": early_stopping_patience,
        }
    )  # fmt: skip
    done = pipeline.train(settings, out.reporter(), output, dry_run)
    result = done.record["result"]
    if dry_run:
        lines = [f"{result['steps']} optimizer steps, {result['unique_tokens']} tokens computed for {result['tokens']}"]
        out.result(done.as_json(), [*lines, "Nothing was written (--dry-run)."])
        return
    lines = [f"Adapter: {done.paths.root}"]
    if result["val_loss"] is not None:
        lines.append(
            f"Held-out loss, nats a token: {result['val_loss_base']:.3f} before, {result['val_loss']:.3f} after"
        )
        lines += few(result["val_change"]["conversations"])
    if result["steps"] < result["planned_steps"]:
        lines.append(f"Ended after {result['steps']} of {result['planned_steps']} steps: no lower held-out loss")
    if result["best_step"] < result["steps"]:
        lines.append(f"The adapter is of step {result['best_step']}: {result['best_step_reason']}")
    lines.append(
        f"{result['steps']} steps, {result['seconds']:.0f} s, peak memory {result['peak_rss_bytes'] / 1e9:.1f} GB"
    )
    out.result(done.as_json(), lines)
    out.hint(f"twin gguf {done.paths.root} -q q4_k_m")
