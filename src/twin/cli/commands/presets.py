"""``twin presets``: list, show, copy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twin.cli import options
from twin.cli.console import Output

app = typer.Typer(no_args_is_help=True, help="Presets: a base model and settings that suit it.")


@app.command("list")
def list_presets(json: options.Json = False, quiet: options.Quiet = False, verbose: options.Verbose = False) -> None:
    """List the presets, and whether each can be trained in this version.

    Example: twin presets list
    """
    from twin.presets import load_preset, preset_names
    from twin.templates import family_names

    presets = [load_preset(name) for name in preset_names()]
    ready = set(family_names())
    data = {
        "presets": [
            {
                "name": one.name,
                "summary": one.summary,
                "model": one.model,
                "family": one.family,
                "ready": one.family in ready,
            }
            for one in presets
        ]
    }
    lines = [
        f"{one.name:14} {one.summary}" + ("" if one.family in ready else f" [not yet: no template pair '{one.family}']")
        for one in presets
    ]
    Output(json, quiet, verbose).result(data, lines)


@app.command("show")
def show_preset(
    name: Annotated[str, typer.Argument(help="A preset's name.")],
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Print a preset's file.

    Example: twin presets show phi-3-mini
    """
    from twin.presets import load_preset, preset_text

    Output(json, quiet, verbose).result(load_preset(name).model_dump(), [preset_text(name).rstrip()])


@app.command("copy")
def copy_preset(
    name: Annotated[str, typer.Argument(help="A preset's name.")],
    target: Annotated[
        Path | None, typer.Argument(help="The new file. Default: NAME.toml here", show_default=False)
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    dry_run: options.DryRun = False,
) -> None:
    """Copy a preset to make it yours.

    Example: twin presets copy smollm2-135m mine.toml
    """
    from twin.errors import UsageError
    from twin.files import write_text
    from twin.presets import preset_text

    path = target or Path(f"{name}.toml")
    text = preset_text(name)
    if path.exists():
        raise UsageError(f"'{path}' is there already.", f"Name another file: twin presets copy {name} mine.toml")
    out = Output(json, quiet, verbose)
    if not dry_run:
        write_text(path, text)
    out.result({"path": str(path)}, [str(path), *(["Nothing was written (--dry-run)."] if dry_run else [])])
    if not dry_run:
        out.hint(f"twin train --preset {path}")
