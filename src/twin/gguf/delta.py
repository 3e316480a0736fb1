"""An adapter as what it does to each tensor of its base's checkpoint, so that a merge needs one tensor at a time.

Not obvious: a child process imports this in half a second, so there is torch, numpy and safetensors here and no PEFT.
What PEFT does with an adapter at run time is the measure: the tests hold each form against its ``merge_and_unload``.
Everything read is untrusted: nothing is unpickled, each tensor is used exactly once or refused by name.
Imported late: torch is at the top.

Forms: LoRA (https://arxiv.org/abs/2106.09685), rsLoRA (https://arxiv.org/abs/2312.03732), DoRA
(https://arxiv.org/abs/2402.09353), and PEFT's own: https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from twin.errors import GateError, UsageError, file_errors
from twin.foreign import bounded, one_line

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_COPY_AGAIN = "Copy the adapter's folder again from where it was trained, or train again."
_OTHER_BASE = "Name the model that it was trained on: --base ID-OR-DIR"
_BY_PEFT = "Merge it with the tool that made it, save the whole model, and name that folder as a base model."
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

# What an adapter's JSON may set: it is read here, or changes nothing once training is over.
_KNOWN = {
    "peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode",
    "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "bias", "fan_in_fan_out", "use_rslora",
    "modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
    "megatron_core", "trainable_token_indices", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "use_dora", "qalora_group_size", "runtime_config", "lora_bias", "ensure_weight_tying",
}  # fmt: skip
_REFUSED = {
    "alora_invocation_tokens": "it works from certain tokens on, and merged weights work everywhere",
    "arrow_config": "it is a router over several adapters, chosen anew for each token",
    "kasa_config": "it was trained on a base that it changed and did not save",
    "layer_replication": "it was trained on a model with more layers than its base has",
    "megatron_config": "its layers are split over several processes",
    "monteclora_config": "it draws its weights anew at each call",
    "target_parameters": "it changes experts, whose order a checkpoint keeps in another way",
    "use_bdlora": "its matrices are blocks of a diagonal",
    "use_qalora": "it adds to groups of a quantized base's inputs, which an unquantized base does not have",
}
# Starts that leave the base as it is. Others put a part of it into the adapter: W - B·A is what training then saw.
_PLAIN_STARTS = ("gaussian", "orthogonal", "eva", "mica")
_HEADS = ("lm_head", "embed_out", "output")
_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings")

_TENSOR = re.compile(
    r"(?P<module>.+?)(?:\.base_layer)?\."
    r"(?:(?P<low>lora_[AB])(?:\.default)?\.(?P<of>weight|bias)"
    r"|(?P<embedding>lora_embedding_[AB])(?:\.default)?"
    r"|(?P<magnitude>lora_magnitude_vector)(?:\.default)?(?:\.weight)?"
    r"|(?:token_adapter\.)?(?P<tokens>trainable_tokens_delta)(?:\.default)?"
    r"|(?:modules_to_save\.(?:default\.)?)?(?P<whole>weight|bias))"
)


def shown(text: object) -> str:
    """Return a name out of an adapter fit for a sentence."""
    return bounded(one_line(str(text)), 160)


Step = Callable[[Tensor, int, int], Tensor]


@dataclass(frozen=True, slots=True)
class Merged:
    """What an adapter makes of one tensor.

    Args:
        steps: each takes float32 rows and where they begin and end, and returns new ones.
        rowwise: rows may be asked for in blocks; otherwise all at once (``start`` 0, ``stop`` the number of rows).
        shape: the tensor's.
    """

    steps: tuple[Step, ...]
    rowwise: bool
    shape: tuple[int, ...]

    def rows(self, weight: Tensor, start: int, stop: int) -> Tensor:
        """Return rows of the merged tensor in float32; those that came are left as they are.

        Args:
            weight: the base's rows ``start:stop``, ``[stop - start, ...]`` in any float dtype.
            start: the first of them.
            stop: one past the last.

        Raises:
            ValueError: other rows than those, or a block of what has to be whole.
        """
        if tuple(weight.shape) != (stop - start, *self.shape[1:]) or not 0 <= start < stop <= self.shape[0]:
            raise ValueError(f"rows {start}:{stop} of {self.shape} are not {tuple(weight.shape)}")
        if not self.rowwise and (start, stop) != (0, self.shape[0]):
            raise ValueError("this tensor is merged whole")
        rows = weight.to(torch.float32)
        with torch.inference_mode():
            for step in self.steps:
                rows = step(rows, start, stop)
        return rows


@dataclass(slots=True)
class _Parts:
    """The tensors of an adapter that belong to one module: part (``lora_A.weight``) to the tensor's own name."""

    names: dict[str, str] = field(default_factory=dict)

    def first(self) -> str:
        return next(iter(self.names.values()))


@dataclass(frozen=True)
class Adapter:
    """A validated adapter; its tensors stay in their file until they are asked for.

    Args:
        folder: where it is.
        config: its JSON.
        modules: module names, as PEFT has them below ``base_model.model.``, and their tensors.
        tensors: the open file.
    """

    folder: Path
    config: Mapping[str, Any]
    modules: Mapping[str, _Parts]
    tensors: Any

    @property
    def base_model(self) -> str | None:
        """What the adapter calls its base: untrusted, and perhaps another machine's path."""
        name = self.config.get("base_model_name_or_path")
        return name if isinstance(name, str) and name else None

    def bind(self, shapes: Mapping[str, tuple[int, ...]], tied: bool) -> dict[str, Merged]:
        """Return what the adapter makes of a base's checkpoint, by the names of the tensors that change.

        Args:
            shapes: names and shapes of all tensors of the checkpoint: ``[out, in]``, or ``[in, out]`` where its
                layers are GPT-2's ``Conv1D``.
            tied: the output layer is the embedding (``tie_word_embeddings``).

        Raises:
            UsageError: a tensor of the adapter that has no place in this base; what a merge can't hold.
        """
        return _Binding(self, shapes, tied).all()


def open_adapter(folder: Path) -> Adapter:
    """Read an adapter in PEFT's layout.

    Args:
        folder: holds ``adapter_config.json`` and ``adapter_model.safetensors``.

    Raises:
        UsageError: it is not there, not whole, or of a form that no merged model can hold; the form is named.
        GateError: all of it is zero.
    """
    config = _read_config(folder)
    _check_config(folder / CONFIG, config)
    path = folder / WEIGHTS
    if not path.is_file() and (folder / "adapter_model.bin").is_file():
        raise UsageError(
            f"'{folder}' has its weights as a pickle, which is not loaded.",
            "Load it once with PEFT where you trust it, and save_pretrained() it: that writes safetensors.",
        )
    try:
        with file_errors(path, "read"):
            tensors = safe_open(path, framework="pt")
            names = sorted(tensors.keys())  # type: ignore[no-untyped-call]
    except SafetensorError:
        raise UsageError(f"'{path}' is no whole safetensors file.", _COPY_AGAIN) from None
    modules: dict[str, _Parts] = {}
    for name in names:
        found = _TENSOR.fullmatch(name.removeprefix(_PREFIX))
        if not found:
            raise UsageError(f"'{shown(name)}' in '{path}' is no tensor of a LoRA adapter that twin knows.", _BY_PEFT)
        part = f"{found['low']}.{found['of']}" if found["low"] else next(
            found[kind] for kind in ("embedding", "magnitude", "tokens", "whole") if found[kind]
        )  # fmt: skip
        parts = modules.setdefault(found["module"], _Parts()).names
        if part in parts:
            raise UsageError(f"'{shown(name)}' and '{shown(parts[part])}' in '{path}' are the same.", _COPY_AGAIN)
        parts[part] = name
    adapter = Adapter(folder, config, modules, tensors)
    _check_values(adapter, path, names)
    return adapter


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if folder.is_dir() and not path.is_file():
        below = sorted(other.parent for other in folder.glob(f"*/{CONFIG}"))
        if below:
            raise UsageError(f"There is no {CONFIG} in '{folder}'.", f"There is one in '{below[-1]}': name that.")
        raise UsageError(f"There is no {CONFIG} in '{folder}'.", "Name the folder that a training wrote it to.")
    with file_errors(path, "read"):
        text = path.read_text("utf-8")
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise UsageError(f"'{path}' is no JSON object.", _COPY_AGAIN)
    return config


def _check_config(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse what is no LoRA, or a LoRA that no merged model can hold.

    Raises:
        UsageError: the first such setting, by its name.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        what = f"of the kind '{shown(kind)}'" if kind else "without a peft_type"
        raise UsageError(f"'{path}' is an adapter {what}, and twin merges LoRA.", _BY_PEFT)
    for key, value in config.items():
        if value and key in _REFUSED:
            raise UsageError(f"The adapter in '{path.parent}' sets {key}: {_REFUSED[key]}.", _BY_PEFT)
        if value and key not in _KNOWN:
            raise UsageError(f"The adapter in '{path.parent}' sets {shown(key)}, which twin does not know.", _BY_PEFT)
    start = config.get("init_lora_weights", True)
    if not isinstance(start, bool) and start not in _PLAIN_STARTS:
        raise UsageError(
            f"The adapter in '{path.parent}' began as '{shown(start)}', which takes a part out of the base: "
            "added to the base itself it would be wrong.",
            "Save it in PEFT with path_initial_model_for_weight_conversion, which makes a plain LoRA of it.",
        )
    if config.get("bias", "none") not in ("none", "all", "lora_only"):
        raise UsageError(f"'{path}' has an odd bias.", _COPY_AGAIN)
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(key) or {}
        if not isinstance(patterns, dict):
            raise UsageError(f"'{path}' has an odd {key}.", _COPY_AGAIN)
        for pattern, value in patterns.items():
            _number(path, key, value)
            try:
                re.compile(rf"(.*\.)?({pattern})$")
            except (re.error, OverflowError, RecursionError):
                raise UsageError(f"'{shown(pattern)}' in the {key} of '{path}' is no pattern.", _COPY_AGAIN) from None
    _number(path, "r", config.get("r"))
    _number(path, "lora_alpha", config.get("lora_alpha"))


def _number(path: Path, key: str, value: Any) -> float:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or (key in ("r", "rank_pattern") and (value != int(value) or value < 1)):
        raise UsageError(f"'{path}' has an odd {key}: {shown(value)}.", _COPY_AGAIN)
    return float(value)


def _check_values(adapter: Adapter, path: Path, names: Sequence[str]) -> None:
    """Refuse weights that are no numbers, and an adapter that does nothing.

    Raises:
        UsageError: a tensor that is not finite, or of no float dtype.
        GateError: each product B·A is zero, and there is nothing else.
    """
    for name in names:
        tensor = adapter.tensors.get_tensor(name)
        if tensor.dtype not in _DTYPES:
            raise UsageError(f"'{shown(name)}' in '{path}' is {tensor.dtype}, no floating point.", _BY_PEFT)
        if not torch.isfinite(tensor).all():
            raise UsageError(f"'{shown(name)}' in '{path}' has values that are not finite.", "Train again.")
    moved = any(
        all(bool(adapter.tensors.get_tensor(parts.names[part]).any()) for part in pair)
        for parts in adapter.modules.values()
        for pair in (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B"), ("lora_B.bias",))
        if all(part in parts.names for part in pair)
    )
    other = {"weight", "bias", "lora_magnitude_vector", "trainable_tokens_delta"}
    if not moved and not any(other & parts.names.keys() for parts in adapter.modules.values()):
        raise GateError(f"The adapter in '{adapter.folder}' changes nothing: all of it is zero.", "Train again.")


def pattern_value(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """Return the value of the first pattern that a module's whole name, or its end after a dot, matches.

    The rule is PEFT's: ``peft.utils.other.get_pattern_key``.
    """
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


class _Binding:
    """One adapter on one base."""

    def __init__(self, adapter: Adapter, shapes: Mapping[str, tuple[int, ...]], tied: bool) -> None:
        self.adapter, self.shapes, self.tied = adapter, {name: tuple(shape) for name, shape in shapes.items()}, tied
        self.ends: dict[str, list[str]] = {}
        for name in shapes:
            self.ends.setdefault(_end(name), []).append(name)
        self.transposed = _has_conv1d(self.shapes)

    def all(self) -> dict[str, Merged]:
        found: dict[str, Merged] = {}
        for module, parts in self.adapter.modules.items():
            for name, merged in self.module(module, parts):
                if name in found:
                    raise UsageError(
                        f"Two modules of the adapter in '{self.adapter.folder}' are '{shown(name)}' of the base.",
                        _OTHER_BASE,
                    )
                found[name] = merged
        return found

    def module(self, module: str, parts: _Parts) -> list[tuple[str, Merged]]:
        left = dict(parts.names)
        name = self.place(f"{module}.weight", parts.first())
        steps = [self.low_rank(module, name, left.pop("lora_A.weight", None), left.pop("lora_B.weight", None))]
        if left:
            raise UsageError(f"'{shown(next(iter(left.values())))}' is of a form that twin does not merge.", _BY_PEFT)
        return [(name, Merged(tuple(steps), rowwise=True, shape=self.shapes[name]))]

    def place(self, wanted: str, tensor: str) -> str:
        """Return the checkpoint's own name of a tensor: the same, or one that differs in the wrapping alone."""
        if wanted in self.shapes:
            return wanted
        names = self.ends.get(_end(wanted), [])
        if len(names) == 1:
            return names[0]
        if names:
            raise UsageError(
                f"'{shown(tensor)}' could be '{shown(names[0])}' or '{shown(names[1])}' of the base.", _OTHER_BASE
            )
        raise UsageError(
            f"'{shown(tensor)}' has no place in the base model, which has no '{shown(wanted)}'.", _OTHER_BASE
        )

    def scale(self, module: str) -> tuple[int, float]:
        """Return a module's rank, and what its product is multiplied by."""
        config = self.adapter.config
        rank = int(pattern_value(config.get("rank_pattern"), module, config["r"]))
        alpha = float(pattern_value(config.get("alpha_pattern"), module, config["lora_alpha"]))
        return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)

    def shape_of(self, tensor: str) -> tuple[int, ...]:
        return tuple(self.adapter.tensors.get_slice(tensor).get_shape())

    def wrong(self, tensor: str, name: str) -> UsageError:
        return UsageError(
            f"'{shown(tensor)}' is {list(self.shape_of(tensor))} and does not fit '{shown(name)}' of the base, "
            f"which is {list(self.shapes[name])}.",
            _OTHER_BASE,
        )

    def low_rank(self, module: str, name: str, a: str | None, b: str | None) -> Step:
        if a is None or b is None:
            raise UsageError(f"'{shown(a or b)}' has no other half in the adapter.", _COPY_AGAIN)
        rank, scale = self.scale(module)
        (a_shape, b_shape), shape = (self.shape_of(a), self.shape_of(b)), self.shapes[name]
        for tensor, at, one in ((a, 0, a_shape), (b, 1, b_shape)):
            if len(one) != 2 or one[at] != rank:
                raise UsageError(f"'{shown(tensor)}' is {list(one)}, which is no weight of rank {rank}.", _COPY_AGAIN)
        plain, turned = shape == (b_shape[0], a_shape[1]), shape == (a_shape[1], b_shape[0])
        if not plain and not turned:
            raise self.wrong(a if a_shape[1] not in shape else b, name)
        load = self.adapter.tensors.get_tensor
        if plain and not (turned and self.transposed):
            return lambda rows, start, stop: rows + scale * (load(b)[start:stop].float() @ load(a).float())
        return lambda rows, start, stop: rows + scale * (load(a)[:, start:stop].float().T @ load(b).float().T)


def _end(name: str) -> str:
    """Return a tensor's name without what wraps a language model, which transformers' versions name differently."""
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in ("model", "transformer", "language_model"):
        parts = parts[1:]
    return ".".join(parts)


def _has_conv1d(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Say whether a checkpoint's layers are GPT-2's ``Conv1D``, by one whose bias is as long as its weight is wide."""
    for name, shape in shapes.items():
        bias = shapes.get(f"{name.removesuffix('weight')}bias") if name.endswith(".weight") else None
        if len(shape) == 2 and bias and shape[0] != shape[1] and bias == (shape[1],):
            return True
    return False
