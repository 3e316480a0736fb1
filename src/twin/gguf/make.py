"""The road from a base model and an adapter to checked files; only a file that passed gets its name.

The work is done in one pass by a process of its own (``worker``: ``lazy``, ``delta``, ``onepass``, ``quantize``); what
it wrote is checked here. Imported late: llama_cpp comes in through ``check``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

from twin import errors
from twin.errors import MachineError, StepError, TwinError, file_errors
from twin.files import scratch_dir
from twin.gguf import converter
from twin.gguf.vocabulary import vocabulary
from twin.progress import Reporter, Task
from twin.records import Turn
from twin.templates import Family


def make(
    base: Path,
    adapter: Path | None,
    family: Family,
    targets: Mapping[str, Path],
    prompts: Sequence[tuple[str, Sequence[Turn]]],
    training_ids: Callable[[Sequence[Turn]], Sequence[int]],
    llama_cpp: Path | None,
    reporter: Reporter,
) -> list[dict[str, Any]]:
    """Write one GGUF a quantization.

    Args:
        base: the base model's checkpoint folder, unquantized.
        adapter: PEFT folder, or None for the base alone.
        family: whose Jinja the files shall carry.
        targets: quantization names and where each file goes; the first one's folder is where they are worked on.
        prompts: names and turns that each file must read as the ids of training; the first is answered too.
        training_ids: the ids of training for turns' prompt.
        llama_cpp: a checkout of the user's, for its converter.
        reporter: told of progress.

    Returns:
        For each file its path (``gguf``), ``quantization``, ``bytes``, ``sha256`` and ``checks``.

    Raises:
        TwinError: what the worker or ``check`` refuse.
    """
    done = []
    with scratch_dir(next(iter(targets.values()))) as scratch:
        files = {name: scratch / f"{name}.gguf" for name in targets}
        made = one_pass(base, adapter, family, files, llama_cpp, scratch, reporter, dry_run=False)
        from twin.gguf.check import check  # llama_cpp is loaded while nothing else waits for it

        for about, target in zip(made["files"], targets.values(), strict=True):
            file = files[about["quantization"]]
            with reporter.task(f"Checking {target.name}"):
                checks = check(file, family, prompts, training_ids)
            with file_errors(target, "write"):
                target.parent.mkdir(parents=True, exist_ok=True)
                file.chmod(0o600)
                file.replace(target)
            done.append({"gguf": str(target), **about, "checks": checks})
    return done


def foresee(
    base: Path,
    adapter: Path | None,
    family: Family,
    targets: Mapping[str, Path],
    llama_cpp: Path | None,
    reporter: Reporter,
) -> dict[str, Any]:
    """Return the exact ``bytes`` of each of the ``files``, and the ``seconds`` that making them will take here.

    Everything but the writing is done as ``make`` does it, and refused as there.
    """
    with scratch_dir(next(iter(targets.values()))) as scratch:
        foreseen = one_pass(base, adapter, family, targets, llama_cpp, scratch, reporter, dry_run=True)
    for about in foreseen["files"]:
        about["gguf"] = str(targets[about["quantization"]])
    return foreseen


def one_pass(
    base: Path,
    adapter: Path | None,
    family: Family,
    files: Mapping[str, Path],
    llama_cpp: Path | None,
    scratch: Path,
    reporter: Reporter,
    dry_run: bool,
) -> dict[str, Any]:
    """Let a worker do it in ``scratch``, and return its result."""
    script = converter.find_converter(llama_cpp, reporter)
    known = vocabulary(base, family.gguf_name, llama_cpp, reporter)
    checkpoint = scratch / "checkpoint"
    with file_errors(scratch, "write"):
        checkpoint.mkdir()
        shutil.copyfile(base / "config.json", checkpoint / "config.json")
    job = {
        "checkpoint": str(checkpoint), "base": str(base), "adapter": str(adapter) if adapter else None,
        "scratch": str(scratch), "vocabulary": str(known), "name": family.gguf_name, "chat_template": family.jinja,
        "files": [[name, str(path)] for name, path in files.items()], "threads": os.cpu_count() or 1,
        "imatrix": None, "dry_run": dry_run,
    }  # fmt: skip
    what = "Merging and quantizing" if adapter else "Quantizing the base model"
    with (scratch / "log").open("w+b") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "twin.gguf.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            env=converter.environment(script),
        )  # fmt: skip
        to, words = cast("IO[bytes]", worker.stdin), cast("IO[bytes]", worker.stdout)
        try:
            with reporter.task("Reading the model"):
                to.write(json.dumps(job).encode() + b"\n")
                to.flush()
                said = _hear(words)
            if "total" in said:
                with reporter.task(f"{what}: {', '.join(files)}", said["total"]) as task:
                    said = _hear(words, task)
        finally:
            worker.kill()
            worker.wait()
        if "result" in said:
            return dict(said["result"])
        if "error" in said:
            raise _error(**said["error"])
        log.seek(0)
        raise _died(worker.returncode, log.read().decode("utf-8", "replace"))


def _hear(lines: Iterable[bytes], task: Task | None = None) -> dict[str, Any]:
    """Return the worker's next word that is no progress; empty where it has ended without one."""
    done = 0
    for line in lines:
        said: dict[str, Any] = json.loads(line)
        if "done" not in said:
            if task:
                task.advance(0)
            return said
        if task:
            task.advance(said["done"] - done)
            done = said["done"]
    return {}


def _error(kind: str, message: str, hint: str) -> TwinError:
    known = getattr(errors, kind, StepError)
    return known(message, hint)


def _died(code: int, log: str) -> TwinError:
    """Return what to say of a worker that ended without a word."""
    if code == -9:
        return MachineError(
            "The system ended the process that makes the GGUF: it had no memory left.",
            "Close other programs, or make one quantization at a time.",
        )
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return StepError(
        f"llama.cpp's converter refused the model: {(lines[-1] if lines else 'it said nothing').rstrip('.')}.",
        "Is its architecture one that llama.cpp knows? A newer checkout may: --llama-cpp DIR",
    )
