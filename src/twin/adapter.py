"""What is checked of an adapter before anything loads it: it may have been trained elsewhere, by somebody else's hand.

Nothing here needs torch, and nothing is unpickled: digests, PEFT's JSON, the header of a safetensors file.
"""

from __future__ import annotations

import re
from typing import Any

from twin.errors import UsageError, file_errors
from twin.files import file_digest, read_json
from twin.runs import RunPaths

_AGAIN = "Copy the run's folder again from where it was trained, or train again."
_LORA = re.compile(r"(?:.+\.)?([^.]+)\.lora_([AB])\.weight")
# What a run of twin's sets. Anything else may make PEFT do more than add B·A to the target modules, or import code.
_USED = {
    "peft_type", "peft_version", "task_type", "base_model_name_or_path", "inference_mode", "r", "lora_alpha",
    "lora_dropout", "target_modules", "bias", "init_lora_weights", "megatron_core",
    "qalora_group_size",
}  # fmt: skip


def check(paths: RunPaths, record: dict[str, Any]) -> None:
    """Refuse an adapter that is not whole, or not the plain LoRA that its ``run.json`` tells of.

    Args:
        paths: of the run.
        record: its ``run.json``.

    Raises:
        UsageError: the first thing that is not so.
    """
    _check_whole(paths, record)
    plan = record["plan"]
    config = read_json(paths.adapter_config)
    if config.get("peft_type") != "LORA":
        raise UsageError(f"'{paths.adapter_config}' is of no LoRA adapter.", _AGAIN)
    odd = [key for key, value in config.items() if value and key not in _USED]
    odd += ["bias"] * (config.get("bias", "none") != "none")
    odd += ["init_lora_weights"] * (config.get("init_lora_weights", True) is not True)
    if odd:
        raise UsageError(f"'{paths.adapter_config}' sets {odd[0]}, which twin never does.", _AGAIN)
    targets = config.get("target_modules")
    told = {"r": "lora_r", "lora_alpha": "lora_alpha", "target_modules": "target_modules"}
    for key, ours in told.items():
        here, there = config.get(key), plan.get(ours)
        if isinstance(here, list) and isinstance(there, list) and all(isinstance(one, str) for one in here + there):
            here, there = sorted(here), sorted(there)
        if here != there:
            raise UsageError(f"The {key} in '{paths.adapter_config}' is not that of run.json.", _AGAIN)
    _check_weights(paths, config["r"], set(targets if isinstance(targets, list) else ()))


def _check_whole(paths: RunPaths, record: dict[str, Any]) -> None:
    """Compare the run's files with the digests in its record; an older one has none."""
    digests = record.get("files")
    if digests is None:
        return
    for path in (paths.adapter_config, paths.adapter_weights, paths.learned):
        told = digests.get(path.name) if isinstance(digests, dict) else path.name
        if told is None and path == paths.learned:
            continue
        if not path.is_file() or file_digest(path) != told:
            raise UsageError(f"'{path}' is not as it was written.", _AGAIN)


def _check_weights(paths: RunPaths, rank: Any, targets: set[str]) -> None:
    """Read the names and shapes of the tensors, which must be A and B of each target module and nothing else."""
    from safetensors import SafetensorError, safe_open

    found: set[str] = set()
    try:
        with file_errors(paths.adapter_weights, "read"), safe_open(paths.adapter_weights, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no mapping
                shape = tensors.get_slice(name).get_shape()
                part = _LORA.fullmatch(name)
                if not part or len(shape) != 2 or shape[0 if part[2] == "A" else 1] != rank:
                    raise UsageError(
                        f"'{name[:200]}' in '{paths.adapter_weights}' is no weight of rank {rank}.", _AGAIN
                    )
                found.add(part[1])
    except SafetensorError:
        raise UsageError(
            f"'{paths.adapter_weights}' is no safetensors file, and nothing else is loaded.", _AGAIN
        ) from None
    if found != targets:
        raise UsageError(f"'{paths.adapter_weights}' has weights for other modules than run.json names.", _AGAIN)
