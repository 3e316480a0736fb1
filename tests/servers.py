"""A real Ollama of a test's own: an empty model folder, a free port, ended at the end of the block."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx


class NoServerError(Exception):
    """It did not start."""


@dataclass(frozen=True)
class Server:
    """A running Ollama.

    Args:
        url: where it answers.
        process: itself, for tests that end it.
        models: its model folder.
    """

    url: str
    process: subprocess.Popen[bytes]
    models: Path


@contextmanager
def ollama_server(
    binary: str, home: Path, preexec: Callable[[], None] | None = None, wait_seconds: float = 60
) -> Iterator[Server]:
    """Start ``ollama serve`` with its files in ``home``; ``preexec`` runs in its process first, e.g. to set limits."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environ = {key: value for key, value in os.environ.items() if not key.upper().startswith("OLLAMA_")}
    environ |= {"OLLAMA_HOST": address, "OLLAMA_MODELS": str(home / "models"), "HOME": str(home)}
    home.mkdir(parents=True, exist_ok=True)
    log = home / "log"
    with log.open("wb") as handle:
        process = subprocess.Popen(
            [binary, "serve"],
            env=environ,
            stdout=handle,
            stderr=subprocess.STDOUT,
            preexec_fn=preexec,  # noqa: PLW1509 - it sets a limit and takes no lock
        )
    try:
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                httpx.get(f"http://{address}/api/version", trust_env=False).raise_for_status()
                break
            except httpx.HTTPError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise NoServerError(
                        f"ollama serve did not start: {log.read_text('utf-8', 'replace')[-500:]}"
                    ) from None
                time.sleep(0.1)
        yield Server(f"http://{address}", process, home / "models")
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
