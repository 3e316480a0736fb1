"""The road from a base model and an adapter to checked files; only a file that passed gets its name.

The work is done in one pass by a process of its own (``worker``: ``lazy``, ``delta``, ``onepass``, ``quantize``); what
it wrote is checked here. Imported late: llama_cpp comes in through ``check``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from twin.errors import UsageError, file_errors
from twin.files import scratch_dir
from twin.gguf import quantize
from twin.gguf.hired import Worker
from twin.gguf.vocabulary import copy_checkpoint, vocabulary
from twin.progress import Reporter
from twin.records import Turn
from twin.templates import Family


def make(
    worker: Worker,
    base: Path,
    adapter: Path | None,
    family: Family,
    targets: Mapping[str, Path],
    prompts: Sequence[tuple[str, Sequence[Turn]]],
    training_ids: Callable[[Sequence[Turn]], Sequence[int]],
    llama_cpp: Path | None,
    reporter: Reporter,
    rows: Callable[[], Sequence[Sequence[int]]] = list,
    weigh: bool = False,
) -> list[dict[str, Any]]:
    """Write one GGUF a quantization.

    Args:
        worker: see ``hired.hire``; it is ended before the files are checked, so that only one model is in memory.
        base: the base model's checkpoint folder, unquantized.
        adapter: PEFT folder, or None for the base alone.
        family: whose Jinja the files shall carry.
        targets: quantization names and where each file goes; the first one's folder is where they are worked on.
        prompts: names and turns that each file must read as the ids of training; the first is answered too.
        training_ids: the ids of training for turns' prompt.
        llama_cpp: a checkout of the user's, for its converter.
        reporter: told of progress.
        rows: gives ids of the person's rows, for an importance matrix.
        weigh: every quantization has an importance matrix, not only those that need one.

    Returns:
        For each file its path (``gguf``), ``quantization``, ``bytes``, ``sha256``, ``imatrix`` (it has one) and
        ``checks``.

    Raises:
        TwinError: what the worker or ``check`` refuse.
    """
    done = []
    with scratch_dir(next(iter(targets.values()))) as scratch:
        files = {name: scratch / f"{name}.gguf" for name in targets}
        ask = partial(one_pass, worker, base, adapter, family, llama_cpp=llama_cpp, scratch=scratch, reporter=reporter)
        weighed, plain = _apart(files, weigh)
        made = [ask(plain)] if plain else []
        if weighed:
            made.append(ask(weighed, imatrix=_imatrix(ask, scratch, rows(), reporter)))
        worker.close()
        written = {about["quantization"]: about for part in made for about in part["files"]}
        from twin.gguf.check import check  # llama_cpp is loaded while nothing else waits for it

        for name, target in targets.items():
            about, file = written[name] | {"imatrix": name in weighed}, files[name]
            tensors = about.pop("tensors")
            with reporter.task(f"Checking {target.name}"):
                checks = check(file, family, prompts, training_ids, expected=tensors, vocabulary=made[0]["vocabulary"])
            with file_errors(target, "write"):
                target.parent.mkdir(parents=True, exist_ok=True)
                file.chmod(0o600)
                file.replace(target)
            done.append({"gguf": str(target), **about, "checks": checks})
    return done


def _imatrix(ask: Callable[..., Any], scratch: Path, rows: Sequence[Sequence[int]], reporter: Reporter) -> Path:
    """Return an importance matrix of the model, gathered on it at 8 bits."""
    from twin.gguf import imatrix

    if not rows:
        raise UsageError(
            "An importance matrix is made of the rows that the twin learned, and they are not here.",
            "Bring the dataset back that it was trained with, or choose another quantization: -q q3_k_m",
        )
    model, target = scratch / "weighed.gguf", scratch / "imatrix.gguf"
    ask({"q8_0": model})
    imatrix.write(target, imatrix.gather(model, rows, reporter), sum(map(len, rows)))
    model.unlink()
    return target


def foresee(
    worker: Worker,
    base: Path,
    adapter: Path | None,
    family: Family,
    targets: Mapping[str, Path],
    llama_cpp: Path | None,
    reporter: Reporter,
    weigh: bool = False,
) -> dict[str, Any]:
    """Return the exact ``bytes`` of each of the ``files``, and the ``seconds`` that making them will take here.

    Everything but the writing is done as ``make`` does it, and refused as there. The time does not count what an
    importance matrix takes.
    """
    with scratch_dir(next(iter(targets.values()))) as scratch:
        ask = partial(one_pass, worker, base, adapter, family, llama_cpp=llama_cpp, scratch=scratch, reporter=reporter)
        weighed, plain = _apart(targets, weigh)
        parts = [ask(files, dry_run=True, weigh=files is weighed) for files in (plain, weighed) if files]
    found = {about["quantization"]: about for part in parts for about in part["files"]}
    made = [found[name] | {"gguf": str(target)} for name, target in targets.items()]
    return {"files": made, "seconds": sum(part["seconds"] for part in parts)}


def _apart(files: Mapping[str, Path], weigh: bool) -> tuple[dict[str, Path], dict[str, Path]]:
    """Return the files that have an importance matrix, and the others."""
    weighed = {name: file for name, file in files.items() if weigh or name in quantize.NEEDS_IMATRIX}
    return weighed, {name: file for name, file in files.items() if name not in weighed}


def one_pass(
    worker: Worker,
    base: Path,
    adapter: Path | None,
    family: Family,
    files: Mapping[str, Path],
    llama_cpp: Path | None,
    scratch: Path,
    reporter: Reporter,
    dry_run: bool = False,
    imatrix: Path | None = None,
    weigh: bool = False,
) -> dict[str, Any]:
    """Let the worker do it in ``scratch``, and return its result; see ``worker.work``."""
    known = vocabulary(base, family.gguf_name, llama_cpp, reporter, worker)
    checkpoint = scratch / "checkpoint"
    with file_errors(scratch, "write"):
        checkpoint.mkdir(exist_ok=True)
        copy_checkpoint(base, checkpoint)
    job = {
        "what": "make", "checkpoint": str(checkpoint), "base": str(base), "adapter": str(adapter) if adapter else None,
        "scratch": str(scratch), "vocabulary": str(known), "name": family.gguf_name, "chat_template": family.jinja,
        "files": [[name, str(path)] for name, path in files.items()], "threads": os.cpu_count() or 1,
        "imatrix": str(imatrix) if imatrix else None, "weigh": weigh, "dry_run": dry_run,
    }  # fmt: skip
    what = "Merging and quantizing" if adapter else "Quantizing the base model"
    return worker.do(job, "Reading the model", f"{what}: {', '.join(files)}") | {"vocabulary": known}
