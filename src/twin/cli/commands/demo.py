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
    from twin import pipeline
    from twin.errors import file_errors
    from twin.settings import load_settings

    out = Output(json, quiet, verbose)
    reporter = out.reporter()
    folder = pipeline.demo(output, reporter)
    with file_errors(folder, "enter"):
        os.chdir(folder)
    done = pipeline.run(pipeline.DEMO_NAME, [], load_settings(ollama={"host": host}), reporter)
    show(done, out)
    name = pipeline.DEMO_NAME
    if done.registered:
        out.hint(f"twin chat {name}")
    else:
        out.hint(
            f"cd {folder} && twin chat {name} --gguf adapters/{name}/model-q4_k_m.gguf "
            f"(no Ollama answered; with one: twin register {name})"
        )
