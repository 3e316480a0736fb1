"""``twin`` as typed: a process, a folder, what it printed and what it left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from twin.cli.main import main

NOBODY = "127.0.0.1:9"  # the discard port: nothing listens there


@dataclass(frozen=True)
class Twin:
    """Runs ``twin`` in the current folder, in this process: an exception that escapes fails the test by itself."""

    capfd: pytest.CaptureFixture[str]

    def __call__(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run it; with ``options`` of ``subprocess.run``, in a process of its own."""
        if options:
            return self.process(*arguments, **options)
        self.capfd.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OLLAMA_HOST", NOBODY)
            code = main(list(arguments))
        return subprocess.CompletedProcess(arguments, code, *self.capfd.readouterr())

    def process(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run ``python -m twin``."""
        environment = {**os.environ, "OLLAMA_HOST": NOBODY, **options.pop("env", {})}
        return subprocess.run(
            [sys.executable, "-m", "twin", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
            timeout=300,
            **options,
        )

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start it and return at once."""
        return subprocess.Popen(
            [sys.executable, "-m", "twin", *arguments],
            env={**os.environ, "OLLAMA_HOST": NOBODY},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def refuses(self, *arguments: str, exit_code: int, error: str, hint: str, **options: Any) -> None:
        """Assert that a command says exactly this, on stderr alone, and leaves every file as it was."""
        before = listing()
        done = self(*arguments, **options)
        assert done.stderr == f"Error: {error}\nHint: {hint}\n"
        assert (done.returncode, done.stdout) == (exit_code, "")
        assert listing() == before


def listing(folder: Path = Path()) -> dict[str, bytes]:
    """Every file below ``folder``, hidden ones too, with its content; a lock's empty file is no content."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(files)}


@pytest.fixture
def twin(capfd: pytest.CaptureFixture[str]) -> Twin:
    return Twin(capfd)


@pytest.fixture
def brain(isolated: Path) -> Callable[..., Path]:
    """Write ``brain/NAME`` and return its path; without content a WhatsApp chat of Bo and Ada."""

    def write(content: str | bytes | None = None, name: str = "chat.txt", messages: int = 40) -> Path:
        path = Path("brain") / name
        path.parent.mkdir(exist_ok=True)
        if content is None:
            content = "".join(
                f"{number // 8 % 28 + 1:02}/{number // 224 % 12 + 1:02}/{2000 + number // 2688}, 10:{number % 8:02} - "
                f"{'Ada' if number % 2 else 'Bo'}: message {number} of many words, {number * 7919 % 9973}\n"
                for number in range(messages)
            )
        path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        return path

    return write
