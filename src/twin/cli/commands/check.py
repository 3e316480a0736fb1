"""``twin check``: the gate alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twin.cli import options
from twin.cli.console import Output

NAME = "check"
HELP = """Is what is served what was trained? Check a run and its GGUF files, or any GGUF, without a server of Ollama.

Both templates must render the same bytes, llama.cpp must read the ids of training, a reply must end where it was
learned to, and nothing may make Ollama leave the template aside. The first difference is shown, and ends with exit
code 5.

Examples:

  twin check

  twin check adapters/chirag-v1

  twin check somebody.gguf --modelfile Modelfile
"""


def command(
    target: Annotated[
        Path | None, typer.Argument(help="A run's folder or a GGUF. Default: the newest run", show_default=False)
    ] = None,
    modelfile: Annotated[
        Path | None, typer.Option(help="Judge this Modelfile's TEMPLATE and stops by the GGUF's own Jinja.")
    ] = None,
    base: options.Base = None,
    llama_cpp: options.LlamaCpp = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Check."""
    from twin import prove
    from twin.settings import load_settings

    out = Output(json, quiet, verbose)
    settings = load_settings(gguf={"base": base, "llama_cpp": llama_cpp})
    done = prove.check(target, settings, out.reporter(), modelfile)
    lines = [f"{done.target} passed, as family {done.family}"]
    for part, checks in done.checks.items():
        lines += [f"{part}", *(f"  {check}: {what}" for check, what in checks.items())]
    out.result(done.as_json(), lines)
