"""llama.cpp's own server: what it renders of the Jinja in a GGUF, and the ids it reads.

It is found on PATH, in a checkout of the user's, or beside Ollama, which runs it; twin never fetches it.
API: tools/server/README.md of https://github.com/ggml-org/llama.cpp
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from twin.errors import MachineError, StepError
from twin.foreign import bounded, is_loopback, one_line
from twin.records import Turn

START_SECONDS = 120.0
_SECONDS = 60.0
_MOST_BYTES = 8 << 20
_NAME = "llama-server"


def find_server(llama_cpp: Path | None) -> Path | None:
    """Return the path of a llama-server, or None.

    Args:
        llama_cpp: a llama.cpp checkout of the user's, looked into first.
    """
    ollama = shutil.which("ollama")
    folders = [llama_cpp / "build" / "bin", llama_cpp] if llama_cpp else []
    places = [shutil.which(_NAME, path=str(folder)) for folder in folders] + [shutil.which(_NAME)]
    if ollama:
        places.append(shutil.which(_NAME, path=str(Path(ollama).resolve().parent.parent / "lib" / "ollama")))
    return next((Path(place) for place in places if place), None)


class LlamaServer:
    """A server that answers at ``url``.

    Args:
        url: its address.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.url, timeout=_SECONDS, trust_env=not is_loopback(httpx.URL(self.url).host or "")
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ready(self) -> bool:
        """Say whether it has loaded its model.

        Raises:
            MachineError: nothing answers there.
        """
        try:
            return self._http.get("/health").status_code == 200
        except httpx.HTTPError:
            raise MachineError(f"No llama-server answers at {self.url}.", "Start it, or name it: --host URL") from None

    def file_name(self) -> str:
        """Return the name of the file that it has loaded.

        Raises:
            StepError: it is no llama-server.
        """
        return Path(str(self._ask("/props", None, "model_path", str))).name

    def apply_template(self, turns: Sequence[Turn]) -> str:
        """Return the prompt that it renders for turns.

        Raises:
            StepError: it refuses, or it is no llama-server.
        """
        asked = {"messages": [turn._asdict() for turn in turns]}
        return str(self._ask("/apply-template", asked, "prompt", str))

    def ids(self, text: str) -> list[int]:
        """Return the ids that it reads of a text, BOS included where the vocabulary adds it.

        Raises:
            StepError: it refuses, or it is no llama-server.
        """
        asked = {"content": text, "add_special": True, "parse_special": True}
        return list(self._ask("/tokenize", asked, "tokens", list))

    def piece(self, token: int) -> bytes:
        """Return the bytes of an id.

        Raises:
            StepError: it refuses, or it is no llama-server.
        """
        return str(self._ask("/detokenize", {"tokens": [token]}, "content", str)).encode()

    def _ask(self, path: str, body: dict[str, Any] | None, key: str, kind: type) -> Any:
        try:
            with self._http.stream("POST" if body else "GET", path, json=body) as answer:
                raw = b""
                for piece in answer.iter_bytes():
                    raw += piece
                    if len(raw) > _MOST_BYTES:
                        break
                told = httpx.Response(answer.status_code, content=raw)
            value = told.json()[key] if told.status_code == 200 else None
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise StepError(
                f"llama-server at {self.url} broke off at {path} ({type(error).__name__}).", "See what it prints."
            ) from None
        if not isinstance(value, kind):
            said = bounded(one_line(told.text), 200)
            raise StepError(
                f"llama-server at {self.url} refused {path} ({told.status_code}): {said}", "See its output."
            )
        return value


@contextmanager
def serve(binary: Path, file: Path, num_ctx: int = 2048) -> Iterator[LlamaServer]:
    """Run a server for a GGUF on this machine alone, and end it.

    Args:
        binary: see ``find_server``.
        file: the GGUF.
        num_ctx: context length in tokens.

    Raises:
        StepError: it ends or does not answer in time; its last line is in the sentence.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(binary), "-m", str(file), "--host", "127.0.0.1", "--port", str(port), "-c", str(num_ctx), "-np", "1"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([*command, "--offline"], stdout=log, stderr=subprocess.STDOUT)
        server = LlamaServer(f"http://127.0.0.1:{port}")
        try:
            _wait(process, server, log, file)
            yield server
        finally:
            server.close()
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], server: LlamaServer, log: Any, file: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if server.ready():
                return
        except MachineError:
            pass
        time.sleep(0.1)
    log.seek(0)
    lines = [line for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
    last = bounded(one_line(lines[-1]), 200) if lines else "nothing"
    raise StepError(f"llama-server did not open '{file}': its last word was '{last}'.", "Make it again: twin gguf")
