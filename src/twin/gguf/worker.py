"""The process in which llama.cpp's converter runs: ``python -m twin.gguf.worker`` with a job on its standard input.

A process of its own, because the converter brings a ``gguf`` of its own, and so that all of its memory goes back. It
reads jobs as lines of JSON and answers in such: ``{"total"}``, ``{"done"}`` while it works, at last ``{"result"}`` or
``{"error"}``. It ends when its standard input ends: with the process that started it, however that ends.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from twin import errors
from twin.errors import TwinError, file_errors
from twin.files import need_disk
from twin.progress import release_memory

_TELL_SECONDS = 0.2


def _say(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def _listen(jobs: queue.SimpleQueue[bytes]) -> None:
    """Take jobs, and end the process at once when nobody is left to give them."""
    for line in sys.stdin.buffer:
        jobs.put(line)
    os._exit(errors.EXIT_INTERRUPTED)


def _prepare() -> float:
    """Import what takes seconds, while the other side finds out what the job is; return how many it took."""
    began = time.monotonic()
    sys.modules["triton"] = None  # type: ignore[assignment]  # a hundred megabytes for GPUs, where torch finds it
    import torch

    torch.set_num_threads(1)  # blocks are computed on threads of our own, each of which calls torch for one
    from transformers import AutoConfig, AutoTokenizer  # noqa: F401 - the second is read with, later

    AutoConfig.for_model("llama")  # what any configuration takes
    for name in ("conversion", "twin.gguf.lazy", "twin.gguf.onepass"):
        import_module(name)
    return time.monotonic() - began


def work(job: dict[str, Any], began: float) -> dict[str, Any]:
    """Do a job of ``make`` and return its result.

    Args:
        job: ``checkpoint``, ``base`` and ``scratch``: folders; ``adapter``: a folder or null; ``vocabulary``: a file;
            ``name`` and ``chat_template``: for the metadata; ``files``: pairs of quantization and path;
            ``imatrix``: a file or null; ``weigh``: there will be one; ``threads``; ``dry_run``.
        began: when, on the monotonic clock, work on it began, imports included.

    Returns:
        ``files``: for each ``quantization``, ``bytes``, ``sha256`` and ``tensors``: the shape, outermost dimension
        first, and ggml's type of each. A dry run has neither digests nor tensors, but ``seconds``.
    """
    import torch

    from twin.gguf import imatrix, lazy, onepass

    checkpoint, base, scratch = (Path(job[key]) for key in ("checkpoint", "base", "scratch"))
    changes: Mapping[str, Any] = {}
    if job["adapter"]:
        from twin.gguf.delta import base_shapes, open_adapter

        changes = open_adapter(Path(job["adapter"])).bind(*base_shapes(base))
    with torch.inference_mode():
        model = lazy.convert(checkpoint, base, changes, Path(job["vocabulary"]), job["name"], job["chat_template"])
        means = imatrix.read(Path(job["imatrix"])) if job["imatrix"] else {}
        if job["dry_run"] and job["weigh"]:
            means = onepass.ones(model)
        names = [name for name, _ in job["files"]]
        with file_errors(scratch, "write"):
            plans = onepass.plan(model, names, scratch, means)
        result = [{"quantization": one.quantization, "bytes": one.size} for one in plans]
        if job["dry_run"]:
            spent = time.monotonic() - began
            return {"files": result, "seconds": spent + onepass.estimate_seconds(model, plans, means, job["threads"])}
        need_disk(scratch, sum(one.size for one in plans), "The GGUF step")
        _say(total=sum(one.count * one.shape[-1] for one in model.sources.values()))
        with file_errors(scratch, "write"):
            digests = onepass.write(
                model, plans, [Path(path) for _, path in job["files"]], means, job["threads"], _ticker()
            )
    for about, digest, planned in zip(result, digests, plans, strict=True):
        about["sha256"], about["tensors"] = digest, onepass.expected(model, planned)
    return {"files": result}


def _ticker() -> Any:
    """Return what tells of progress, a few times a second."""
    done, told = 0, 0.0

    def tick(values: int) -> None:
        nonlocal done, told
        done += values
        if time.monotonic() - told > _TELL_SECONDS:
            told = time.monotonic()
            _say(done=done)

    return tick


def _result(
    what: str, job: dict[str, Any], began: float, answer: Callable[..., dict[str, Any]] | None
) -> dict[str, Any]:
    if what == "make":
        return work(job, began)
    if what == "vocabulary":
        from twin.gguf.lazy import write_vocabulary

        write_vocabulary(Path(job["checkpoint"]), Path(job["target"]), job["name"])
        return {}
    if answer is None:
        raise ValueError(what)
    return answer(what, **job)


def main(answer: Callable[..., dict[str, Any]] | None = None) -> None:
    """Do jobs, one after another, and say what came of each.

    Args:
        answer: called with the ``what`` of a job that is neither ``make`` nor ``vocabulary``, and what else is in it.
    """
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(jobs,), daemon=True).start()
    prepared = _prepare()
    while True:
        job = json.loads(jobs.get())
        began = time.monotonic() - prepared
        what = job.pop("what")
        try:
            _say(result=_result(what, job, began, answer))
        except TwinError as error:
            _say(error={"kind": type(error).__name__, "message": error.message, "hint": error.hint})
        except BaseException:  # the last line of it is what the other side tells
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(errors.EXIT_STEP)  # an end in order would wait for the thread that listens
        release_memory()


if __name__ == "__main__":
    main()
