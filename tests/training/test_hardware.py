"""What run.json says of the machine: enough to compare figures, nothing of whose it is."""

from __future__ import annotations

import getpass
import json
import os
import platform
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from twin.errors import MachineError
from twin.training import hardware
from twin.training.start import choose_device


def test_the_machine_is_told_and_nobody_is_named() -> None:
    told = hardware.describe()
    assert told["cpu_threads"] >= told["torch_threads"] >= 1
    assert told["cpu_threads"] >= (told["cpu_cores"] or 1) >= 1
    assert told["memory_bytes"] > 10**9
    if sys.platform == "linux" and platform.machine() == "x86_64":
        assert told["cpu"]
    text = json.dumps(told)
    assert platform.node() not in text
    assert str(Path.home()) not in text
    assert getpass.getuser() not in text or os.geteuid() == 0


def test_a_system_that_tells_no_name(monkeypatch: pytest.MonkeyPatch, isolated: Path) -> None:
    monkeypatch.setattr(hardware, "_CPUINFO", isolated / "cpuinfo")
    assert isinstance(hardware.cpu_name(), str)
    (isolated / "cpuinfo").write_text("processor\t: 0\nBogoMIPS\t: 48.00\n")  # an ARM's
    assert hardware.cpu_name() == ""
    (isolated / "cpuinfo").write_text("processor\t: 0\nmodel name\t: A CPU @ 2 GHz\nmodel name\t: another\n")
    assert hardware.cpu_name() == "A CPU @ 2 GHz"
    assert hardware._says("no-such-program-here") == hardware._says("false") == ""


def test_gpus_with_and_without_a_driver_that_tells(monkeypatch: pytest.MonkeyPatch, isolated: Path) -> None:
    """A GPU's part, where none is: PyTorch's two calls are replaced, nvidia-smi is a program on PATH."""
    one = SimpleNamespace(name="NVIDIA Test", total_memory=8 * 2**30)
    monkeypatch.setattr(hardware.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(hardware.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(hardware.torch.cuda, "get_device_properties", lambda number: one)
    monkeypatch.setenv("PATH", str(isolated))
    assert [gpu["driver"] for gpu in hardware.gpus()] == [None, None]
    program = isolated / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 550.54.15\necho 550.54.15\n")
    program.chmod(0o755)
    assert hardware.gpus()[1]["driver"] == "550.54.15"
    assert hardware.gpus()[0]["memory_bytes"] == 8 * 2**30


def test_a_gpu_that_pytorch_cannot_use_is_told_with_the_reason(monkeypatch: pytest.MonkeyPatch, isolated: Path) -> None:
    """A driver's program is on PATH, and PyTorch itself says what is wrong: here that there is no driver."""
    if hardware.torch.cuda.is_available():
        pytest.skip("PyTorch can use the GPU")
    monkeypatch.setenv("PATH", str(isolated))
    assert hardware.why_no_cuda() is None
    assert choose_device("auto") in ("cpu", "mps")
    with pytest.raises(MachineError, match="PyTorch finds no device 'cuda' here"):
        choose_device("cuda")
    program = isolated / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA Test (UUID: x)'\n")
    program.chmod(0o755)
    reason = hardware.why_no_cuda()
    assert reason
    assert "\n" not in reason
    with pytest.raises(MachineError) as caught:
        choose_device("cuda")
    assert caught.value.message == f"PyTorch can't use the GPU that is here: {reason}."
    assert "driver" in caught.value.hint
