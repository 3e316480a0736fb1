"""``twin train``: dataset → LoRA adapter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twin.cli import options
from twin.cli.console import Output, few
from twin.foreign import one_line

if TYPE_CHECKING:
    from twin.results import Masked

NAME = "train"
HELP = """Train a LoRA adapter on a dataset, on this machine.

Examples:

  twin train --preset smollm2-135m

  twin train --preset qwen2.5-0.5b --name chirag-v1 --epochs 3 --lora-r 32

  twin train --preset smollm2-135m --resume-from auto

  twin train --show-mask 3 --dry-run
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
    resume_from: Annotated[str | None, typer.Option(help="A checkpoint folder, or auto for the newest.")] = None,
    backend: Annotated[str | None, typer.Option(help="auto or hf.")] = None,
    device: options.Device = None,
    seed: options.Seed = None,
    show_mask: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Show N samples: what is learned of each.")
    ] = None,
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
        }
    )  # fmt: skip
    done = pipeline.train(
        settings, out.reporter(), output, dry_run, show_mask=show_mask or 0, see=lambda shown: _show(shown, out)
    )
    result = done.record["result"]
    if dry_run:
        lines = [
            _samples(done.record),
            f"{result['steps']} optimizer steps, {result['unique_tokens']} tokens computed for {result['tokens']}",
        ]
        out.result(done.as_json(), [*lines, "Nothing was written (--dry-run)."])
        return
    lines = [f"Adapter: {done.paths.root}", _samples(done.record)]
    if result["val_loss"] is not None:
        lines.append(
            f"Held-out loss, nats a token: {result['val_loss_base']:.3f} before, {result['val_loss']:.3f} after"
        )
        lines += few(result["val_change"]["conversations"])
    lines.append(
        f"{result['steps']} steps, {result['seconds']:.0f} s, peak memory {result['peak_rss_bytes'] / 1e9:.1f} GB"
    )
    out.result(done.as_json(), lines)
    out.hint(f"twin gguf {done.paths.root} -q q4_k_m")


def _samples(record: dict[str, Any]) -> str:
    """Return what was learned, in numbers."""
    data, proved = record["dataset"], record["mask"]
    return (
        f"{proved['samples']} samples, {proved['supervised_tokens']} tokens to learn, each checked with "
        f"{proved['read_by']}; {data['shortened']} lost their oldest turns, {data['too_long']} were too long"
    )


def _show(shown: Sequence[Masked], out: Output) -> None:
    """Print samples: what is learned stands behind '>', in colour on a terminal; line ends are seen."""
    if out.json:
        return
    parts: list[tuple[str, str]] = []
    for one in shown:
        cut = f", {one.turns_cut} older turns cut" if one.turns_cut else ""
        about = f"{one.context_tokens} tokens of context, {one.learned_tokens} learned{cut}"
        parts.append((f"--- {one.kind}, {one_line(one.id)}: {about}\n", "bold"))
        for text, mark, style in ((one.context, "  ", "dim"), (one.learned, "> ", "bold green")):
            lines = text.replace("\r", "\u240d").split("\n")
            ends = ["\u21b5"] * (len(lines) - 1) + [""]
            parts += [(f"{mark}{line}{end}\n", style) for line, end in zip(lines, ends, strict=True) if line or end]
    out.styled(parts)
