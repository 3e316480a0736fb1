"""The entry point: how a command ends that is ended from outside, with processes of its own at work."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from twin.cli.main import main
from twin.errors import StoppedError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

INTERRUPTED = (
    "\nInterrupted. What was finished is kept. twin run goes on from there; twin train does with --resume-from auto.\n"
)
# An export in two processes, which stay for ever where they are told to.
SCRIPT = """
import os, signal, sys, time
from pathlib import Path

def stay(place):
    if place == os.environ["STAY"]:
        Path(f"{place}.{os.getpid()}").touch()
        time.sleep(600)

def work(job, scratch, numbered):
    (scratch / f"part-{numbered[0]}").touch()
    stay("working")

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a test in the background passes on an ignored one
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # so does one under nohup
    from twin import dataset
    from twin.cli.main import main

    dataset._WORTH_PROCESSES, dataset._PART_BYTES, dataset._chat_shard = 0, 1, work
    sys.exit(main(["export", "--person", "Ada", "--quiet"]))
stay("starting")
"""


@pytest.mark.parametrize(
    ("place", "send", "code"),
    [
        ("starting", lambda process: os.killpg(process.pid, signal.SIGINT), 130),  # as a terminal does
        ("working", lambda process: [process.send_signal(signal.SIGTERM) for _ in range(2)], 143),  # as timeout(1) does
        ("working", lambda process: process.send_signal(signal.SIGHUP), 129),  # as a terminal that is closed does
    ],
    ids=["Ctrl-C", "SIGTERM", "SIGHUP"],
)
def test_an_export_in_several_processes_is_ended(
    brain: Callable[..., Path], place: str, send: Callable[[subprocess.Popen[str]], object], code: int
) -> None:
    brain()
    brain(name="other.txt", content="01/02/2024, 10:00 - Cy: hello you\n01/02/2024, 10:01 - Ada: hello\n")
    Path("twin.toml").write_text("[export]\nprocesses = 2\n")
    Path("script.py").write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, "script.py"], env={**os.environ, "STAY": place}, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        while len(workers := list(Path().glob(f"{place}.*"))) < 2:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        send(process)
        out, err = process.communicate(timeout=300)  # until the last process that has its stderr is gone
    finally:
        with contextlib.suppress(ProcessLookupError):  # nobody is left, as it should be
            os.killpg(process.pid, signal.SIGKILL)
    assert (process.returncode, out, err) == (code, "", INTERRUPTED)
    assert not any(psutil.pid_exists(int(worker.suffix[1:])) for worker in workers)
    assert not list(Path().rglob("*.partial")) + list(Path().glob("data*"))


@pytest.mark.parametrize(
    ("typed", "again"),
    [
        (["train"], "twin train --resume-from auto"),
        (["train", "--name", "a b", "--json"], "twin train --name 'a b' --json --resume-from auto"),
        (["train", "--resume-from", "x", "--seed", "1"], "twin train --seed 1 --resume-from auto"),
        (["train", "--resume-from=x"], "twin train --resume-from auto"),
        (["run", "wren"], "twin run wren"),
        (["demo"], "twin demo"),
    ],
    ids=" ".join,
)
def test_what_goes_on_with_a_stopped_training(
    typed: list[str], again: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise StoppedError("Training stopped after step 3 of 9, which is kept.", "", 143)

    monkeypatch.setattr("twin.cli.app.app", stopped)
    assert main(typed) == 143
    said = capfd.readouterr()
    sentence = "Training stopped after step 3 of 9, which is kept."
    if "--json" in typed:
        assert json.loads(said.out) == {"error": sentence, "hint": f"Go on: {again}", "exit_code": 143}
    else:
        assert said.err == f"Interrupted: {sentence}\nHint: Go on: {again}\n"


def test_nothing_goes_on_where_nothing_was_kept(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise StoppedError("Training stopped.", "Free some space and train again.", kept=False)

    monkeypatch.setattr("twin.cli.app.app", stopped)
    assert main(["train"]) == 130
    assert capfd.readouterr().err == "Interrupted: Training stopped.\nHint: Free some space and train again.\n"
