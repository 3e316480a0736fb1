"""The Typer app: every file of ``commands/`` adds itself, so that a command is one file."""

from __future__ import annotations

from typing import Annotated

import typer

from twin import __version__
from twin.cli.commands import (
    chat,
    check,
    demo,
    export,
    forget,
    gguf,
    presets,
    preview,
    register,
    run,
    serve,
    stats,
    train,
)

app = typer.Typer(
    name="twin",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Turn your own conversations into a local model that answers as you would.\n\n"
    "twin export, twin train, twin gguf, twin register: or all of them with twin run NAME. "
    "Nothing leaves this machine. Try it on an invented person: twin demo",
    epilog="Exit codes: 0 done, 1 a bug, 2 usage or settings, 3 the machine lacks something, 4 the step failed, "
    "5 a check refused, 130 interrupted, 143 ended by SIGTERM.",
)
for module in (demo, run, stats, preview, export, train, gguf, check, register, chat, forget, serve):
    app.command(name=module.NAME, help=module.HELP)(module.command)
app.add_typer(presets.app, name="presets")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"twin {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass
