"""Real servers on loopback: ours under uvicorn, and sockets that speak HTTP as badly as a test needs."""

from __future__ import annotations

import io
import os
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
import uvicorn
from pydantic import SecretStr

from tests.ollama.conftest import Recorder
from twin.app import wire
from twin.app.server import BrainSource, ExportedFiles, create_app
from twin.records import Conversation, Memory, Message, Personality

# Of the shape of a real one, so that what looks for tokens finds it.
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoiYWRtaW4ifQ.c2VjcmV0LXNlY3JldC1zZWNyZXQ"
SECRET = SecretStr("0123456789abcdef0123456789abcdef")
NOON = datetime(2024, 3, 1, 12)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow one another in hundredths of a second, and what hangs does so for seconds."""
    monkeypatch.setattr(wire, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(wire, "READ_SECONDS", 5.0)
    monkeypatch.setattr(wire, "WHOLE_SECONDS", 10.0)


@pytest.fixture
def recorder() -> Recorder:
    """A Reporter to look into afterwards."""
    return Recorder()


@pytest.fixture
def into(tmp_path: Path) -> Path:
    """An empty folder for what is fetched."""
    folder = tmp_path / "into"
    folder.mkdir()
    return folder


def nobody() -> str:
    """Return a URL at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@contextmanager
def serving(source: BrainSource, secret: SecretStr = SECRET) -> Iterator[str]:
    """Run the API on ``source`` under uvicorn; yields the base URL."""
    config = uvicorn.Config(create_app(source, secret), log_config=None, lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))  # closed by uvicorn when it is told to end, a moment later
    threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True).start()
    deadline = time.monotonic() + 10
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True


@dataclass
class Brain:
    """A small brain to serve; ``asked`` keeps what exports were asked for."""

    folder: Path
    conversations: list[Conversation] = field(default_factory=list)
    memories: list[Memory] = field(default_factory=list)
    rows: int = 10
    fails: Exception | None = None
    asked: list[Any] = field(default_factory=list)

    def _read(self) -> Iterator[Conversation]:
        if self.fails:
            raise self.fails
        yield from self.conversations

    def _export(self, ask: Any) -> ExportedFiles:
        self.asked.append(ask)
        if self.fails:
            raise self.fails
        held_out = round(self.rows * ask.validation_split)
        files = [self.folder / name for name in ("finetune_dataset.jsonl", "train.jsonl", "val.jsonl")]
        rows = [orjson.dumps(self.row(number)) + b"\n" for number in range(self.rows)]
        for path, part in zip(files, (rows, rows[held_out:], rows[:held_out]), strict=True):
            path.write_bytes(b"".join(part))
        return ExportedFiles(self.rows - held_out, held_out, *files)

    def row(self, number: int) -> dict[str, Any]:
        """One row."""
        return {"messages": [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": f"a{number}"}]}

    def _preview(self, format_name: str, limit: int) -> list[dict[str, Any]]:
        if self.fails:
            raise self.fails
        return [self.row(number) | {"format": format_name} for number in range(self.rows)]

    def source(self) -> BrainSource:
        """As the pipeline hands it in."""
        personality = Personality(
            "Ada", ("ok so",), ("🦆",), ("no capitals",), ("dry",), ("fixes clocks",), (("a", "b"),)
        )
        return BrainSource("Ada", personality, self.memories, self._read, self._export, self._preview)


def chat(name: str, *said: tuple[str, str], start: int = 0, minutes: int = 1) -> Conversation:
    """A conversation with a message each minute."""
    messages = tuple(
        Message(who, text, NOON + timedelta(minutes=minutes * place)) for place, (who, text) in enumerate(said)
    )
    return Conversation(name, messages, start)


@pytest.fixture
def brain(tmp_path: Path) -> Brain:
    """Two chats and two memories."""
    folder = tmp_path / "served"
    folder.mkdir()
    return Brain(
        folder,
        [
            chat(
                "friends/Bea: 100%.txt",
                ("Bea", "are you coming?"),
                ("Bea", "at 8"),
                ("Ada", "on my way"),
                ("Bea", "ok"),
            ),
            chat("Tobi.txt", ("Ada", "hello"), ("Tobi", "who is this"), ("Ada", "me"), ("Ada", "ada")),
        ],
        [Memory("m#1", "Drinks tea", "preferences", 0.4, NOON), Memory("m#2", "Fixes clocks", "facts", 0.9)],
    )


def everything_said(error: BaseException, frames: bool = True) -> str:
    """Return all that an error could show: its chain, their attributes, and tracebacks, with the frames' locals too."""
    seen: list[BaseException] = []
    queue: list[BaseException | None] = [error]
    out = io.StringIO()
    while queue:
        one = queue.pop()
        if one is None or one in seen:
            continue
        seen.append(one)
        queue += [one.__cause__, one.__context__]
        out.write(f"{one} {one!r} {one.args!r} {vars(one)!r}\n")
        request = getattr(one, "_request", None)
        if request is not None:  # httpx's: its headers' repr hides what they hold
            out.write(str(request.headers.raw))
        trace = traceback.TracebackException.from_exception(one, capture_locals=frames)
        out.write("".join(line for line in trace.format() if os.sep + "tests" + os.sep not in line))
    return out.getvalue()
