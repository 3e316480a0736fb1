"""``twin train`` as torchrun and ``accelerate launch`` start it, in two processes; what each of them says."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import NOBODY, Twin
from tests.tiny import save_model
from twin.cli import main as entry

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "twin")
ACCELERATE = (
    "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0", "-m", "twin",
)  # fmt: skip
SECONDS = 200
OPTIONS = ("--epochs", "2", "--batch-size", "4", "--lora-r", "4", "--device", "cpu", "--seed", "1")


def launch(launcher: tuple[str, ...], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *launcher, *arguments],
        env={**os.environ, "OLLAMA_HOST": NOBODY, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def logs(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_torchrun_is_stopped_accelerate_goes_on_and_it_is_as_one_process(
    twin: Twin, brain: Callable[..., Path], tmp_path: Path, smollm2: Path
) -> None:
    base = save_model(tmp_path / "tiny-llama", smollm2)
    brain(messages=64)
    assert twin("export", "--person", "Ada", "--validation-split", "0.25", "--quiet").returncode == 0
    shutil.rmtree("brain")
    train = ("train", "--model", str(base), *OPTIONS)

    stopped = launch(TORCHRUN, *train, "--name", "two")
    growing = Path("adapters/two/checkpoints/metrics.jsonl")
    begun = time.monotonic()
    while not growing.exists() or growing.read_bytes().count(b"\n") < 3:
        assert stopped.poll() is None and time.monotonic() - begun < SECONDS, stopped.kill() or stopped.communicate()
        time.sleep(0.01)
    stopped.send_signal(signal.SIGTERM)
    out, said = stopped.communicate(timeout=SECONDS)
    assert out == ""
    assert said.count("Training ends after this step, with a checkpoint.") == 1
    assert said.count("Interrupted: Training stopped after step ") == 1
    assert said.count("Hint: Go on: twin train ") == 1
    assert len(list(Path("adapters/two/checkpoints").glob("checkpoint-*"))) == 1

    done = launch(ACCELERATE, *train, "--name", "two", "--resume-from", "auto", "--json")
    out, said = done.communicate(timeout=SECONDS)
    assert done.returncode == 0, said
    result = json.loads(out)  # one object, of one process
    assert said.count("Traceback") == 0
    record = json.loads(Path("adapters/two/run.json").read_text())
    assert result["processes"] == record["result"]["processes"] == 2

    assert twin(*train, "--name", "one").returncode == 0
    one, two = logs(Path("adapters/one")), logs(Path("adapters/two"))
    assert [entry["step"] for entry in two] == list(range(1, result["steps"] + 1))
    assert [entry["loss"] for entry in two] == pytest.approx([entry["loss"] for entry in one], rel=1e-3)
    assert sorted(file.name for file in Path("adapters/one").iterdir()) == sorted(
        file.name for file in Path("adapters/two").iterdir()
    )


# ---------------------------------------------------------------- who speaks


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Make this process one of four on two machines."""
    monkeypatch.setattr(entry, "_LAST_WORDS_SECONDS", 0)

    def place(rank: int, local_rank: int) -> None:
        for name, value in (("RANK", rank), ("LOCAL_RANK", local_rank), ("WORLD_SIZE", 4), ("MASTER_ADDR", "a")):
            monkeypatch.setenv(name, str(value))

    return place


def test_other_commands_run_in_one_process_and_one_of_each_machine_says_so(twin: Twin, placed) -> None:
    said = (
        "Error: 'twin export' runs in one process.\n"
        "Hint: Launch twin train alone in several: torchrun --nproc-per-node 2 -m twin train\n"
    )
    for rank, local_rank, told in ((0, 0, said), (1, 1, ""), (2, 0, said), (3, 1, "")):
        placed(rank, local_rank)
        done = twin("export", "--person", "Ada")
        assert (done.returncode, done.stdout, done.stderr) == (2, "", told)


def test_results_are_told_by_the_first_alone(twin: Twin, placed, brain: Callable[..., Path], tmp_path: Path) -> None:
    placed(0, 0)
    first = twin("train", "--dataset", "nothing.jsonl", "--dry-run", "--json")
    assert json.loads(first.stdout)["exit_code"] == first.returncode == 2
    placed(2, 0)
    another = twin("train", "--dataset", "nothing.jsonl", "--dry-run", "--json")
    assert (another.returncode, another.stdout) == (2, "")
    assert another.stderr.startswith("Error: ")


def test_without_a_launcher_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from twin.processes import Place, place

    assert place() == Place(0, 1, 0)
    told = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert place() == Place()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert place() == Place(0, 2, 0)
    for name, odd in (("RANK", "x"), ("LOCAL_RANK", ""), ("WORLD_SIZE", "-2")):
        with monkeypatch.context() as patch:
            patch.setenv(name, odd)
            assert place() == Place()
    monkeypatch.delenv("MASTER_ADDR")  # left over in a shell, from no launcher
    assert place() == Place()
