"""``twin train``: dataset → LoRA adapter."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twin.cli import options, plots
from twin.cli.console import Output, few, printable, table_lines
from twin.foreign import one_line

if TYPE_CHECKING:
    from twin.results import Masked

NAME = "train"
HELP = """Train a LoRA adapter on a dataset, on this machine.

Examples:

  twin train --preset smollm2-135m

  twin train --preset qwen2.5-0.5b --name chirag-v1 --epochs 3 --lora-r 32

  twin train --preset smollm2-135m --resume-from auto

  twin train --preset smollm2-135m --explain

  twin train --show-mask 3 --dry-run

  twin train --from-adapter adapters/chirag-v1 --name chirag-v2
"""

_SHOWN = 3  # rows of each end and of the middle


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
    from_adapter: options.FromAdapter = None,
    replay: options.Replay = None,
    resume_from: Annotated[str | None, typer.Option(help="A checkpoint folder, or auto for the newest.")] = None,
    backend: Annotated[str | None, typer.Option(help="auto, hf or unsloth.")] = None,
    device: options.Device = None,
    four_bit: Annotated[
        bool | None,
        typer.Option(
            "--four-bit/--no-four-bit",
            help="Keep the base model's weights in 4 bits. Default: only where the GPU is too small for 16.",
            show_default=False,
        ),
    ] = None,
    seed: options.Seed = None,
    report_to: Annotated[
        list[str] | None,
        typer.Option(
            help="Also tell tensorboard, trackio or wandb of each step; may be repeated. wandb, and trackio where "
            "TRACKIO_SPACE_ID is set, send loss, settings and the run's folder elsewhere, never rows or weights. "
            "Example: twin train --report-to tensorboard"
        ),
    ] = None,
    show_mask: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Show N samples: what is learned of each.")
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    dry_run: options.DryRun = False,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Train nothing; tell what rows share, how many tokens each costs, and why it is computed so. "
            "Example: twin train --explain",
        ),
    ] = False,
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
            "report_to": report_to, "from_adapter": from_adapter, "replay": replay,
            "early_stopping_patience": early_stopping_patience, "four_bit": four_bit,
        }
    )  # fmt: skip
    done = pipeline.train(
        settings, out.reporter(), output, dry_run, explain=explain, show_mask=show_mask or 0,
        see=lambda shown: _show(shown, out),
    )  # fmt: skip
    result = done.record["result"]
    if explain:
        out.result(done.as_json(), [*explain_lines(result["explain"]), "Nothing was written (--explain)."])
        return
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
        if since := result.get("val_change_earlier"):
            lines.append(
                f"  with the earlier adapter {since['before']:.3f}, so {since['change']:+.3f} by this training"
            )
        lines += few(result["val_change"]["conversations"])
    if result["steps"] < result["planned_steps"]:
        lines.append(f"Ended after {result['steps']} of {result['planned_steps']} steps: no lower held-out loss")
    if result["best_step"] < result["steps"]:
        lines.append(f"The adapter is of step {result['best_step']}: {result['best_step_reason']}")
    lines.append(
        f"{result['steps']} steps, {result['seconds']:.0f} s, peak memory {result['peak_rss_bytes'] / 1e9:.1f} GB"
    )
    if not json:
        ends = (result["val_loss_base"], result["val_loss"])
        lines += plots.loss(done.logs, *ends, result["best_step"], shutil.get_terminal_size().columns)
    out.result(done.as_json(), lines)
    out.hint(f"twin gguf {done.paths.root} -q q4_k_m")


def explain_lines(told: dict[str, Any]) -> list[str]:
    """Return what ``--explain`` tells people."""
    systems = told["systems"]
    prompts = [
        f"  {one['tokens']} tokens, in {one['rows']} rows" if one["tokens"] else f"  none, in {one['rows']} rows"
        for one in systems[:_SHOWN]
    ]
    if rest := systems[_SHOWN:]:
        prompts.append(f"  {len(rest)} others, in {sum(one['rows'] for one in rest)} rows")
    sums = [
        ("rows as they stand", told["tokens"]),
        ("last tokens of replies, learned and never read", -told["last_tokens"]),
        ("shared: system prompt and template, as several conversations have them", -told["shared_system"]),
        ("shared: the history of a conversation", -told["shared_history"]),
        ("computed", told["unique_tokens"]),
        ("if each pass were one tree, in one step (no less is possible)", told["one_tree_tokens"]),
        ("padded batches of the same rows (an estimate)", told["padded_tokens"]),
    ]
    digits = max(len(f"{value:,}") for _, value in sums)
    how = told["execution"]
    left_out = sum(not one["times"] for one in told["costs"])
    return [
        f"{told['rows']} rows; passes: {told['passes']}, optimizer steps: {told['steps']}",
        f"{told['packs'] / told['steps']:.1f} packs a step, the largest of {told['largest_pack']} tokens "
        f"(budget {told['token_budget']})",
        "",
        "System prompts",
        *prompts,
        "",
        "Tokens, all passes",
        *(f"  {value:>{digits},}  {name}" for name, value in sums),
        f"  {told['unique_tokens'] / told['steps']:,.0f} computed a step, of {told['tokens'] / told['steps']:,.0f}",
        "",
        "Tokens a row costs, each time it is learned; what rows share is divided among them",
        *_cost_table([one for one in told["costs"] if one["times"]]),
        *([f"{left_out} rows are not learned: the passes end before them"] if left_out else []),
        "",
        f"Execution: {how['name']}",
        f"  why: {how['reason']}",
        f"  on {how['device']}: {how['device_reason']}",
        f"  in {how['dtype']}: {how['dtype_reason']}",
        *([f"  memory: {how['memory_reason']}"] if how["memory_reason"] else []),
    ]


def _cost_table(costs: list[dict[str, Any]]) -> list[str]:
    """Return a table of the cheapest, the median and the dearest rows."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    ranked = sorted(costs, key=lambda one: one["computed_tokens"] / one["times"])
    middle = max(0, len(ranked) // 2 - _SHOWN // 2)
    shown = {
        place: which
        for which, places in (
            ("median", range(middle, middle + _SHOWN)),
            ("cheapest", range(_SHOWN)),
            ("dearest", range(len(ranked) - _SHOWN, len(ranked))),
        )
        for place in places
        if 0 <= place < len(ranked)
    }
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("", "length", "its own", "cost"):
        table.add_column(column, justify="right" if column else "left")
    table.add_column("row", overflow="fold")
    for place, which in sorted(shown.items()):
        one = ranked[place]
        figures = (one["own_tokens"] / one["times"], one["computed_tokens"] / one["times"])
        row = Text(printable(one["id"]))
        table.add_row(which, str(one["tokens"]), *(f"{value:.1f}" for value in figures), row)
    return table_lines(table)


def _samples(record: dict[str, Any]) -> str:
    """Return what was learned, in numbers."""
    data, proved = record["dataset"], record["mask"]
    unwritable = f", {proved['unwritable']} the vocabulary can't write" if proved["unwritable"] else ""
    return (
        f"{proved['samples']} samples, {proved['supervised_tokens']} tokens to learn, each checked with "
        f"{proved['read_by']}; {data['shortened']} lost their oldest turns, {data['too_long']} were too long"
        f"{unwritable}"
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
