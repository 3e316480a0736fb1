"""``twin demo``: all steps on an invented person."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from twin.cli import options
from twin.cli.commands.run import show
from twin.cli.console import Output

NAME = "demo"
HELP = """Make the twin of an invented person on this CPU, from bundled chats, with a 135M model.

Needs no model hub and no GPU. Registers with Ollama when one answers; else it stops at the GGUF and says what to type.

Examples:

  twin demo

  twin demo --output ~/twin-demo
"""


def command(
    output: Annotated[Path, typer.Option(help="Folder for the sample project.")] = Path("demo"),
    host: options.Host = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Run the demo."""
    from twin import pipeline, sample
    from twin.errors import file_errors
    from twin.settings import load_settings

    out = Output(json, quiet, verbose)
    reporter = out.reporter()
    sample.lay(output)
    reporter.say(f"The sample project is in {output}")
    with file_errors(output, "enter"):
        os.chdir(output)
    done = pipeline.run(sample.NAME, [], load_settings(ollama={"host": host}), reporter)
    show(done, out)
    if done.registered:
        out.hint(f"twin chat {sample.NAME}")
    else:
        out.hint(
            f"cd {output} && twin chat {sample.NAME} --gguf adapters/{sample.NAME}/model-q4_k_m.gguf "
            f"(no Ollama answered; with one: twin register {sample.NAME})"
        )
