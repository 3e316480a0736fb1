"""``twin gguf``: adapter → GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twin.cli import options
from twin.cli.console import Output

NAME = "gguf"
HELP = """Merge, convert and quantize an adapter, and check the file before it gets its name.

Examples:

  twin gguf

  twin gguf adapters/chirag-v1 -q q4_k_m -q q8_0
"""


def command(
    adapter: Annotated[
        Path | None, typer.Argument(help="A run's folder. Default: the newest in adapters/", show_default=False)
    ] = None,
    quantization: options.Quantization = None,
    output: Annotated[
        Path | None, typer.Option(help="The file. Default: model-QUANTIZATION.gguf in the folder")
    ] = None,
    base: options.Base = None,
    llama_cpp: options.LlamaCpp = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    dry_run: options.DryRun = False,
) -> None:
    """Make a GGUF."""
    from twin import pipeline
    from twin.settings import load_settings

    out = Output(json, quiet, verbose)
    settings = load_settings(gguf={"quantization": quantization, "base": base, "llama_cpp": llama_cpp})
    done = pipeline.gguf(adapter, settings, out.reporter(), output, dry_run)
    state = "would be written" if dry_run else "checked"
    lines = [f"{file['gguf']} ({file['bytes'] / 1e6:,.1f} MB, {state})" for file in done.files]
    if done.foreseen_seconds is not None:
        lines += [f"About {done.foreseen_seconds:,.0f} s on this machine.", "Nothing was written (--dry-run)."]
    out.result(done.as_json(), lines)
    if not dry_run:
        out.hint(f"twin register {done.paths.name}")
