"""``metrics.jsonl`` while it grows: a line an optimizer step, beside the checkpoints until the adapter is installed.

Each line is appended whole, in one call. What a killed process may leave is a torn last line after a power cut, and
lines of steps that came after its last checkpoint: going on from the checkpoint drops both, so no step stands twice.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from twin.errors import file_errors

Line = dict[str, float | int | None]


def line(
    step: int,
    logged: Mapping[str, Any],
    seconds: float | None = None,
    tokens: int | None = None,
    peak_rss_bytes: int | None = None,
    peak_gpu_bytes: int | None = None,
) -> Line:
    """Return what is kept of one step; None where it was not measured.

    Args:
        step: its number, from 1.
        logged: what the Trainer says of it: ``loss`` (nats a supervised token), ``learning_rate``, ``grad_norm``.
        seconds: how long it took.
        tokens: of its rows as they stand.
        peak_rss_bytes: the process's memory at its peak so far.
        peak_gpu_bytes: the GPU's; left out where there is none.
    """
    gpu: Line = {} if peak_gpu_bytes is None else {"peak_gpu_bytes": peak_gpu_bytes}
    return {
        "step": step,
        **{
            key: None if logged.get(key) is None else float(logged[key])
            for key in ("loss", "learning_rate", "grad_norm")
        },
        "seconds": None if seconds is None else round(seconds, 4),
        "tokens_per_second": None if tokens is None or not seconds else round(tokens / seconds, 1),
        "peak_rss_bytes": peak_rss_bytes,
        **gpu,
    }


def dumps(lines: Iterable[Line]) -> str:
    """Return ``lines`` as JSON, each ended."""
    return "".join(orjson.dumps(one).decode() + "\n" for one in lines)


def append(path: Path, entry: Line) -> None:
    """Add one line, in one call.

    Raises:
        UsageError, MachineError: what the file system says, as a sentence.
    """
    with file_errors(path, "write"):
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
        try:
            whole = dumps([entry]).encode()
            if os.write(handle, whole) < len(whole):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(handle)


def until(step: int, before: Path | None, history: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Return the lines that a training which goes on behind ``step`` begins with, one for each step until then.

    Args:
        step: the last one of the checkpoint; 0 where training starts.
        before: the file of the training that is gone on from, or None.
        history: the Trainer's own, for steps that ``before`` does not hold.
    """
    known = {int(entry["step"]): line(int(entry["step"]), entry) for entry in history if "loss" in entry}
    for entry in history:
        if "eval_loss" in entry and entry["step"] in known:
            known[entry["step"]]["val_loss"] = float(entry["eval_loss"])
    known |= {int(entry["step"] or 0): entry for entry in _read(before)} if before else {}
    return [known[number] for number in sorted(known) if 0 < number <= step]


def _read(path: Path) -> list[Line]:
    """Return the whole lines of a file; none where there is no file."""
    if not path.is_file():
        return []
    with file_errors(path, "read"):
        text = path.read_bytes()
    lines = []
    for part in text.split(b"\n"):
        try:
            entry = orjson.loads(part)
        except orjson.JSONDecodeError:  # the torn one, and what stands behind the last line end
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            lines.append(entry)
    return lines
