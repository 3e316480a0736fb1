"""Adapter → a GGUF of the adapter alone, for a base model that is served already: ``twin gguf --lora``.

llama.cpp's converter writes it and llama.cpp multiplies by alpha / rank of each tensor and by nothing else, so first a
plain LoRA is written that says the same so: any other factor goes into B, and the halves stand as the checkpoint's
weights do, which the converter may turn. What is no B·A can't be in such a file and is refused by name. Not obvious:
the converter leaves out without a word what it has no place for, hence the check. Imported late: torch is at the top.

Source: src/llama-adapter.cpp and convert_lora_to_gguf.py of https://github.com/ggml-org/llama.cpp
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from gguf import MODEL_ARCH_NAMES, GGUFReader, get_tensor_name_map
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from twin.errors import GateError, UsageError, file_errors
from twin.files import scratch_dir, write_json
from twin.gguf import converter
from twin.gguf.delta import CONFIG, WEIGHTS, Adapter, Merged, Product, base_shapes, shown
from twin.gguf.lora import lora_gguf
from twin.gguf.reader import open_reader
from twin.llama import open_gguf
from twin.progress import Reporter

DTYPE = "f32"
_WHOLE = "Make the whole model instead: twin gguf"
_MOST_BLOCKS = 1024


def make_adapter(
    base: Path, adapter: Adapter, target: Path, llama_cpp: Path | None, opener: Path | None, reporter: Reporter
) -> dict[str, Any]:
    """Write one adapter as a GGUF.

    Args:
        base: the base model's checkpoint folder.
        adapter: see ``delta.open_adapter``.
        target: the file to write.
        llama_cpp: a checkout of the user's, for its converters.
        opener: a GGUF of the same model, base or merged, to open it on; None where there is none.
        reporter: told of progress.

    Returns:
        ``gguf``, ``quantization``, ``bytes`` and ``checks``.

    Raises:
        UsageError: such a file can't hold it; the form is named.
        GateError: the file does not hold it.
    """
    script = converter.find_converter(llama_cpp, reporter)
    with scratch_dir(target) as scratch:
        plain, made = scratch / "plain", scratch / "adapter.gguf"
        with file_errors(target, "write"):
            plain.mkdir()
            added = write_plain(base, adapter, plain)
            lora_gguf(script, base, plain, made, reporter)
            with reporter.task(f"Checking {target.name}"):
                checks = check(made, added, opener)
            target.parent.mkdir(parents=True, exist_ok=True)
            made.chmod(0o600)
            made.replace(target)
    return {"gguf": str(target), "quantization": DTYPE, "bytes": target.stat().st_size, "checks": checks}


def products(base: Path, adapter: Adapter) -> dict[str, Product]:
    """Return what an adapter adds to which tensors of a base.

    Raises:
        UsageError: a form that is no B·A, named; or the adapter is for another base.
    """
    shapes, tied = base_shapes(base)
    changes = adapter.bind(shapes, tied)
    _refuse_forms(adapter, base, changes, tied)
    return {name: change.product for name, change in changes.items() if change.product}


def write_plain(base: Path, adapter: Adapter, folder: Path) -> dict[str, float]:
    """Write an adapter as a plain LoRA under the checkpoint's own names into ``folder``.

    Args:
        base: the base model's checkpoint folder.
        adapter: the adapter.
        folder: an existing empty folder.

    Returns:
        For each tensor that changes, the sum of the squares of what is added to it.

    Raises:
        UsageError: see ``products``.
    """
    alpha = float(adapter.config["lora_alpha"]) or 1.0
    tensors: dict[str, Tensor] = {}
    sums: dict[str, float] = {}
    for name, product in products(base, adapter).items():
        a, b = (adapter.tensors.get_tensor(half).float() for half in (product.a, product.b))
        factor = product.scale * a.shape[0] / alpha
        b = b if factor == 1 else b * factor
        module = f"base_model.model.{name.removesuffix('.weight')}"
        if product.embedding:
            tensors |= {f"{module}.lora_embedding_A": a, f"{module}.lora_embedding_B": b}
        else:
            a, b = (b.T, a.T) if product.turned else (a, b)
            tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
        sums[name] = _squares(a, b) * (alpha / a.shape[0]) ** 2
    write_json(folder / CONFIG, {"peft_type": "LORA", "r": adapter.config["r"], "lora_alpha": alpha})
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS, {"format": "pt"})
    return sums


def _refuse_forms(adapter: Adapter, base: Path, changes: Mapping[str, Merged], tied: bool) -> None:
    """Refuse what such a file can't hold.

    Weights that were saved beside a LoRA as they are in the base are no change.

    Raises:
        UsageError: the first form, with a tensor of it.
    """
    for name, change in changes.items():
        for form, tensor in change.parts.items():
            if tied and change.product and change.product.embedding:
                raise UsageError(
                    f"The adapter in '{adapter.folder}' has a LoRA for embedding and output layer in one "
                    f"('{shown(tensor)}'), which llama.cpp can't add.",
                    _WHOLE,
                )
            if form == "LoRA":
                continue
            if form == "trained weights" and change.product and _is_base(adapter, base, tensor, name):
                continue
            raise UsageError(
                f"The adapter in '{adapter.folder}' has {form} ('{shown(tensor)}'), and a LoRA file holds B·A alone.",
                _WHOLE,
            )


def _is_base(adapter: Adapter, base: Path, tensor: str, name: str) -> bool:
    for path in sorted(base.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118 - it is no mapping
                ours, theirs = adapter.tensors.get_tensor(tensor), tensors.get_tensor(name)
                return bool(torch.equal(ours.float(), theirs.float()))
    return False


def _squares(a: Tensor, b: Tensor) -> float:
    """Return the sum of the squares of B·A without making it: the trace of (B'B)(AA')."""
    a, b = a.double(), b.double()
    return float(((b.T @ b) * (a @ a.T)).sum())


def check(path: Path, added: Mapping[str, float], opener: Path | None) -> dict[str, str]:
    """Return what was verified of an adapter's GGUF, by name.

    Args:
        path: the file.
        added: see ``write_plain``.
        opener: a GGUF of the same model to open it on.

    Raises:
        GateError: a module is missing, or what is added is not what the adapter adds.
        StepError: llama.cpp does not open it on ``opener``.
    """
    reader = open_reader(path)
    alpha, halves = _contents(reader)
    found = 0.0
    for name, (a, b) in halves.items():
        if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
            raise GateError(f"'{name}' of '{path.name}' has values that are not finite.", _WHOLE)
        found += _squares(a.T if name == "token_embd.weight" else a, b) * (alpha / b.shape[-1]) ** 2
    if not math.isclose(found, sum(added.values()), rel_tol=1e-4):
        for wanted, theirs in _places(reader, added):
            if theirs not in halves:
                raise GateError(f"'{shown(wanted)}' of the adapter is not in '{path.name}'.", _WHOLE)
        raise GateError(
            f"'{path.name}' adds something else than the adapter does: {found:.6g} and not "
            f"{sum(added.values()):.6g}, as sums of squares.",
            _WHOLE,
        )
    opened = "not tried: no GGUF of the model is beside it"
    if opener is not None:
        with open_gguf(opener, num_ctx=64) as model, model.adapted(path):
            opened = f"on {opener.name}"
    return {"added": f"to {len(added)} tensors, all that the adapter adds", "opened": opened}


def _contents(reader: GGUFReader) -> tuple[float, dict[str, tuple[Tensor, Tensor]]]:
    """Return alpha and the halves by the base's tensor name; an embedding's A is ``[vocabulary, rank]``."""
    tensors = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    field = reader.get_field("adapter.lora.alpha")
    alpha = float(field.contents()) if field else 0.0
    names = [name.removesuffix(".lora_a") for name in tensors if name.endswith(".lora_a")]
    return alpha, {name: (tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]) for name in names}


def _places(reader: GGUFReader, added: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Yield the names of tensors and where gguf's own table puts them; those that it does not know are left out."""
    field = reader.get_field("general.architecture")
    arch = next((arch for arch, name in MODEL_ARCH_NAMES.items() if field and name == field.contents()), None)
    if arch is not None:
        table = get_tensor_name_map(arch, _MOST_BLOCKS)
        for name in added:
            if place := table.get_name(name, try_suffixes=(".weight",)):
                yield name, place
