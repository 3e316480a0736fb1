"""The road from a base model and an adapter to checked files; only a file that passed gets its name.

Imported late: torch, transformers, peft and llama_cpp come in through the modules it calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from twin.errors import file_errors
from twin.files import scratch_dir
from twin.gguf import converter
from twin.gguf.check import check
from twin.gguf.merge import merge
from twin.gguf.quantize import quantize
from twin.progress import Reporter
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
        base: the base model's checkpoint folder.
        adapter: PEFT folder, or None for the base alone.
        family: whose Jinja the files shall carry.
        targets: quantization names and where each file goes.
        prompts: names and turns that each file must read as the ids of training; the first is answered too.
        training_ids: the ids of training for turns' prompt.
        llama_cpp: a checkout of the user's, for its converter.
        reporter: told of progress.

    Returns:
        For each file its path (``gguf``), ``quantization``, ``bytes`` and ``checks``.

    Raises:
        TwinError: what ``merge``, ``convert``, ``quantize`` or ``check`` refuse.
    """
    script = converter.find_converter(llama_cpp, reporter)
    done = []
    first = next(iter(targets.values()))
    with scratch_dir(first) as scratch:
        merged, plain = scratch / "merged", scratch / "f16.gguf"
        merged.mkdir()
        with file_errors(scratch, "write"):
            with reporter.task("Merging the adapter" if adapter else "Preparing the base model"):
                merge(base, adapter, family, merged)
            converter.convert(script, merged, plain, reporter, family.gguf_name)
            for name, target in targets.items():
                made = plain
                if name != "f16":
                    made = scratch / f"{name}.gguf"
                    with reporter.task(f"Quantizing to {name}"):
                        quantize(plain, made, name)
                with reporter.task(f"Checking {target.name}"):
                    checks = check(made, family, prompts, training_ids)
                target.parent.mkdir(parents=True, exist_ok=True)
                made.chmod(0o600)
                made.replace(target)
                plain = target if made is plain else plain  # what comes after float16 is made of it too
                size = target.stat().st_size
                done.append({"gguf": str(target), "quantization": name, "bytes": size, "checks": checks})
    return done
