"""``twin serve``: the app's export API on a local brain."""

from __future__ import annotations

from typing import Annotated

import typer

from twin.cli import options
from twin.cli.console import Output

NAME = "serve"
HELP = """Serve the app's export API on your own brain, for an admin's token.

It listens on this machine alone unless --host names another address. Its tokens are signed with TWIN_SERVE_SECRET, or
with what stands in an owner-only file (secret_file in [serve] of twin.toml). Ctrl-C stops it.

Rows, memories and the profile are served as an export makes them, without secrets and private values. The brain itself
(/api/training/export) holds your conversations as they were said: whoever has a token can read them.

Examples:

  twin serve --token

  twin serve ~/chats --port 8001
"""


def command(
    sources: options.Sources = None,
    person: options.Person = None,
    host: Annotated[str, typer.Option(help="Address to listen on; anything but this machine is warned of.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    token: Annotated[
        bool, typer.Option("--token", help="Print a new admin token, good for 12 hours, and end.")
    ] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Serve."""
    from twin import curate
    from twin.settings import load_settings

    out = Output(json, quiet, verbose)
    settings = load_settings(export={"person": person})
    if token:
        minted = curate.serve_token(settings)
        out.result({"token": minted}, [minted])
        return

    def ready(url: str) -> None:
        out.result({"url": url}, [f"Serving at {url}, Ctrl-C stops."])

    curate.serve(sources or [], settings, host, port, out.reporter(), ready)
