"""An adapter of mlx-lm's in PEFT's layout, so that all that follows reads one layout.

mlx-lm keeps ``lora_a`` as ``[in, rank]`` and ``lora_b`` as ``[rank, out]``, and adds ``scale * lora_b.T @ lora_a.T``:
PEFT's halves transposed, with a factor that is no alpha / rank. Not obvious: a JSON with ``alpha`` besides ``scale``
means two things. Versions before ``fine_tune_type`` multiplied by ``scale * alpha / rank``; later ones wrote ``alpha``
and did not read it (https://github.com/ml-explore/mlx-lm/pull/65).

Source: mlx_lm/tuner/lora.py, dora.py and utils.py of https://github.com/ml-explore/mlx-lm. Imported late: torch is at
the top.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from twin.errors import UsageError, file_errors
from twin.files import read_json, write_json
from twin.gguf.delta import CONFIG, WEIGHTS, is_embedding, shown

MLX_WEIGHTS = "adapters.safetensors"
_FUSE = "Fuse it with mlx-lm itself (mlx_lm.fuse --dequantize), and name that folder as a base model."
_PARTS = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}


def is_mlx(folder: Path) -> bool:
    """Say whether a folder holds an adapter as mlx-lm saves it."""
    return (folder / MLX_WEIGHTS).is_file() and not (folder / WEIGHTS).is_file()


def base_model(config: dict[str, Any]) -> str | None:
    """Return what an mlx adapter's JSON calls its base: untrusted."""
    name = config.get("model")
    return name if isinstance(name, str) and name else None


def to_peft(folder: Path, target: Path) -> None:
    """Write an mlx adapter into ``target`` as PEFT would have saved it.

    Args:
        folder: ``adapter_config.json`` and ``adapters.safetensors``.
        target: an existing empty folder.

    Raises:
        UsageError: it is not whole, or PEFT's layout can't say what it does; the part is named.
    """
    config = read_json(folder / CONFIG)
    path = folder / MLX_WEIGHTS
    try:
        with file_errors(path, "read"):
            tensors = load_file(path)
    except SafetensorError:
        raise UsageError(f"'{path}' is no whole safetensors file.", "Copy the adapter's folder again.") from None
    kind = config.get("fine_tune_type", "dora" if config.get("use_dora") else "lora")
    if kind not in ("lora", "dora", "full"):
        raise UsageError(f"'{folder / CONFIG}' has the fine_tune_type '{shown(kind)}'.", _FUSE)
    rank, scale = (1, 1.0) if kind == "full" else _rank_and_scale(folder / CONFIG, config)
    made = dict(_rename(name, tensor, kind, path) for name, tensor in tensors.items())
    write_json(
        target / CONFIG,
        {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_model(config),
            "r": rank, "lora_alpha": scale * rank, "use_dora": kind == "dora", "target_modules": [],
            "ensure_weight_tying": True,  # mlx's output layer is the adapted embedding itself
        },
    )  # fmt: skip
    save_file({name: tensor.contiguous() for name, tensor in made.items()}, target / WEIGHTS, {"format": "pt"})


def _rank_and_scale(path: Path, config: dict[str, Any]) -> tuple[int, float]:
    told = config.get("lora_parameters")
    told = told if isinstance(told, dict) else {}
    rank, scale, alpha = told.get("rank"), told.get("scale"), told.get("alpha")
    if type(rank) is not int or rank < 1:
        raise UsageError(f"'{path}' has an odd rank in lora_parameters.", "Copy the adapter's folder again.")
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise UsageError(f"'{path}' has no scale in lora_parameters.", "Write the one it was trained with there.")
    if "fine_tune_type" not in config and alpha is not None and alpha != rank:
        raise UsageError(
            f"'{path}' has scale {scale} and alpha {shown(alpha)}, and which mlx-lm wrote it is not told: versions "
            "before fine_tune_type used both, later ones scale alone.",
            'Take alpha out of lora_parameters and set scale to the factor that was used, or "fine_tune_type": "lora".',
        )
    return rank, float(scale)


def _rename(name: str, tensor: torch.Tensor, kind: str, path: Path) -> tuple[str, torch.Tensor]:
    """Return PEFT's name and layout of one tensor.

    Raises:
        UsageError: there is none.
    """
    module, _, part = name.rpartition(".")
    prefix = f"base_model.model.{module}"
    if kind == "full":
        if part not in ("weight", "bias"):
            raise UsageError(f"'{shown(name)}' in '{path}' is of quantized weights.", _FUSE)
        return f"{prefix}.{part}", tensor
    if part not in _PARTS or (part == "m" and kind != "dora"):
        raise UsageError(f"'{shown(name)}' in '{path}' is no part of a {kind} adapter that twin knows.", _FUSE)
    embedding = is_embedding(f"{module}.weight")
    if tensor.dim() != (1 if part == "m" else 2) or (embedding and kind == "dora"):
        what = "experts" if tensor.dim() == 3 else "an embedding with DoRA" if embedding else "no layer"
        raise UsageError(f"'{shown(name)}' in '{path}' is of {what}, which PEFT's layout can't hold.", _FUSE)
    if part == "m":
        return f"{prefix}.{_PARTS[part]}", tensor
    if embedding:
        return f"{prefix}.lora_embedding_{part[-1].upper()}", tensor.T
    return f"{prefix}.{_PARTS[part]}", tensor.T
