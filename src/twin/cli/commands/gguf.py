"""``twin gguf``: adapter → GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twin.cli import options
from twin.cli.console import Output
from twin.errors import UsageError

NAME = "gguf"
HELP = """Merge, convert and quantize an adapter, and check the file before it gets its name.

The adapter may be another tool's: PEFT, Unsloth, LLaMA-Factory, axolotl, mlx-lm.

Examples:

  twin gguf

  twin gguf adapters/chirag-v1 -q q4_k_m -q q8_0

  twin gguf ~/lora-of-another-tool --base owner/model

  twin gguf adapters/chirag-v1 --lora
"""


def command(
    adapter: Annotated[
        Path | None,
        typer.Argument(
            help="A run's folder, or another tool's adapter. Default: the newest in adapters/", show_default=False
        ),
    ] = None,
    quantization: options.Quantization = None,
    output: Annotated[
        Path | None, typer.Option(help="The file. Default: model-QUANTIZATION.gguf in the folder")
    ] = None,
    base: options.Base = None,
    lora: Annotated[
        bool, typer.Option("--lora", help="Write adapter.gguf, the adapter alone, for a base model served already.")
    ] = False,
    imatrix: options.Imatrix = None,
    llama_cpp: options.LlamaCpp = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    dry_run: options.DryRun = False,
) -> None:
    """Make a GGUF."""
    from twin import pipeline
    from twin.settings import load_settings

    if lora and quantization:
        raise UsageError("--lora writes the adapter in float32, and -q quantizes a whole model.", "Leave one out.")
    out = Output(json, quiet, verbose)
    settings = load_settings(
        gguf={"quantization": quantization, "base": base, "imatrix": imatrix, "llama_cpp": llama_cpp}
    )
    done = pipeline.gguf(adapter, settings, out.reporter(), output, dry_run, lora)
    state = "would be written" if dry_run else "checked"
    sizes = [f"{file['bytes'] / 1e6:,.1f} MB, " if "bytes" in file else "" for file in done.files]
    lines = [f"{file['gguf']} ({size}{state})" for file, size in zip(done.files, sizes, strict=True)]
    if done.foreseen_seconds is not None:
        lines.append(f"About {done.foreseen_seconds:,.0f} s on this machine.")
    if dry_run:
        lines.append("Nothing was written (--dry-run).")
    out.result(done.as_json(), lines)
    if not dry_run:
        made = done.files[0]["gguf"]
        if lora:
            out.hint(f"llama-server -m BASE.gguf --lora '{made}'")
        else:
            out.hint(f"twin register {done.paths.name}" if done.paths.record.exists() else f"twin check '{made}'")
