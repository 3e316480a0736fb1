"""The machine as ``run.json`` tells it: what a figure was measured on, and nothing that says whose it is.

Imported late: torch is at the top.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import torch

from twin.errors import first_line

_CPUINFO = Path("/proc/cpuinfo")
_DRIVER_SECONDS = 20


def describe() -> dict[str, Any]:
    """Return system, CPU, memory in bytes, and each GPU that PyTorch sees with its driver."""
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "cpu_cores": psutil.cpu_count(logical=False),
        "cpu_threads": psutil.cpu_count(),
        "cpu_threads_allowed": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "torch_threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": gpus(),
    }


def cpu_name() -> str:
    """Return the CPU's name as its maker writes it; empty where the system does not tell."""
    if sys.platform == "darwin":
        return _says("sysctl", "-n", "machdep.cpu.brand_string")
    try:
        lines = _CPUINFO.read_text("utf-8", "replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def gpus() -> list[dict[str, Any]]:
    """Return each GPU's name, memory in bytes and, where it has one, its driver; Apple's has no memory of its own."""
    if torch.cuda.is_available():
        driver = _says("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0]
        found = (torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count()))
        about = {"driver": driver or None, "cuda": torch.version.cuda}
        return [{"name": one.name, "memory_bytes": one.total_memory, **about} for one in found]
    return [{"name": "Apple GPU (MPS)"}] if torch.backends.mps.is_available() else []


def why_no_cuda() -> str | None:
    """Return why PyTorch can't use the NVIDIA GPU that is here; None: it can, or there is none."""
    if torch.cuda.is_available() or not _says("nvidia-smi", "-L").startswith("GPU"):
        return None
    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError) as error:
        return first_line(error)
    return "PyTorch does not say why"


def _says(*command: str) -> str:
    """Return what a program prints; empty where it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_DRIVER_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
