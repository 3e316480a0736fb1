"""An adapter as what it does to each tensor of its base's checkpoint, so that a merge needs one tensor at a time.

Not obvious: a child process imports this quickly, so there is torch and safetensors here and no PEFT.
What PEFT does with an adapter at run time is the measure: the tests hold each form against its ``merge_and_unload``.
Everything read is untrusted: nothing is unpickled, each tensor is used exactly once or refused by name.
Imported late: torch is at the top.

Forms: LoRA (https://arxiv.org/abs/2106.09685), rsLoRA (https://arxiv.org/abs/2312.03732), DoRA
(https://arxiv.org/abs/2402.09353), and PEFT's own: https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

from __future__ import annotations

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
from twin.files import read_json
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
    r"(?P<module>.+?)(?:\.token_adapter)?(?:\.base_layer)?\."
    r"(?:(?P<low>lora_[AB])(?:\.default)?\.(?P<of>weight|bias)"
    r"|(?P<embedding>lora_embedding_[AB])(?:\.default)?"
    r"|(?P<magnitude>lora_magnitude_vector)(?:\.default)?(?:\.weight)?"
    r"|(?P<tokens>trainable_tokens_delta)(?:\.default)?"
    r"|(?:modules_to_save\.(?:default\.)?)?(?P<whole>weight|bias))"
)


def shown(text: object) -> str:
    """Return a name out of an adapter fit for a sentence."""
    return bounded(one_line(str(text)), 160)


Step = Callable[[Tensor, int, int], Tensor]


@dataclass(frozen=True, slots=True)
class Product:
    """The two halves of a LoRA on one tensor.

    Args:
        a: the name of A, ``[rank, in]``, in the adapter's file.
        b: the name of B, ``[out, rank]``.
        scale: what B·A is multiplied by.
        turned: the weight stands ``[in, out]``.
        embedding: the weight is an embedding, ``[vocabulary, width]``: A is ``[rank, vocabulary]``.
    """

    a: str
    b: str
    scale: float
    turned: bool
    embedding: bool


@dataclass(frozen=True, slots=True)
class Merged:
    """What an adapter makes of one tensor.

    Args:
        steps: each takes float32 rows and where they begin and end, and returns new ones.
        rowwise: rows may be asked for in blocks; otherwise all at once (``start`` 0, ``stop`` the number of rows).
        shape: the tensor's.
        parts: what it is made of, by form (``LoRA``, ``DoRA``, ``trained weights``): names of tensors in the adapter.
        product: the LoRA among them, if any.
    """

    steps: tuple[Step, ...]
    rowwise: bool
    shape: tuple[int, ...]
    parts: Mapping[str, str] = field(default_factory=dict)
    product: Product | None = None

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
            tied: the output layer is the embedding (see ``base_shapes``); so it is, whatever is said, where the
                checkpoint has none. Older configurations leave ``tie_word_embeddings`` out where it is the default.

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


def base_shapes(folder: Path) -> tuple[dict[str, tuple[int, ...]], bool]:
    """Return names and shapes of a checkpoint's tensors, and whether its output layer is its embedding.

    Two that are stored apart are one all the same where they are equal and the configuration does not say otherwise:
    transformers ties them then, and llama.cpp reads one of them for some architectures.

    Raises:
        UsageError: its files are not whole.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    places: dict[str, Path] = {}
    for path in sorted(folder.glob("model*.safetensors")):  # those that the converter reads
        try:
            with file_errors(path, "read"), safe_open(path, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - it is no mapping
                    shapes[name], places[name] = tuple(tensors.get_slice(name).get_shape()), path
        except SafetensorError:
            raise UsageError(f"'{path}' is no whole safetensors file.", "Fetch or copy the base model again.") from None

    def load(name: str) -> Tensor:
        with safe_open(places[name], framework="pt") as tensors:
            return tensors.get_tensor(name)

    heads = [name for name in shapes if _is_head(name)]
    inputs = [name for name in shapes if is_embedding(name)]
    if not heads or not inputs:
        return shapes, not heads
    told = read_json(folder / "config.json").get("tie_word_embeddings")
    same = shapes[heads[0]] == shapes[inputs[0]] and told is not False
    return shapes, same and bool(torch.equal(load(heads[0]), load(inputs[0])))


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if folder.is_dir() and not path.is_file():
        below = [other.parent for other in folder.glob(f"*/{CONFIG}")]
        if below:  # a trainer's checkpoints, or PEFT's folder for an adapter with a name
            last = max(below, key=lambda path: (int(re.sub(r"[^0-9]", "", path.name)[-18:] or 0), path.name))
            raise UsageError(f"There is no {CONFIG} in '{folder}'.", f"There is one in '{last}': name that.")
        raise UsageError(f"There is no {CONFIG} in '{folder}'.", "Name the folder that a training wrote it to.")
    return read_json(path)


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
    if not any(_acts(adapter, parts.names) for parts in adapter.modules.values()):
        raise GateError(f"The adapter in '{adapter.folder}' changes nothing: all of it is zero.", "Train again.")


def _acts(adapter: Adapter, names: Mapping[str, str]) -> bool:
    """Say whether a module's tensors may change the base: a product of which one half is zero does not."""
    if names.keys() & {"weight", "bias", "lora_magnitude_vector", "trainable_tokens_delta"}:
        return True
    if not adapter.config["lora_alpha"] and not adapter.config.get("alpha_pattern"):
        return False
    for together in (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B"), ("lora_B.bias",)):
        here = [names[part] for part in together if part in names]
        if here and (len(here) < len(together) or all(bool(adapter.tensors.get_tensor(name).any()) for name in here)):
            return True
    return False


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
        self.adapter, self.shapes = adapter, {name: tuple(shape) for name, shape in shapes.items()}
        self.tied = tied or not any(map(_is_head, shapes))  # a checkpoint without an output layer has it tied
        self.ends: dict[str, list[str]] = {}
        for name in shapes:
            self.ends.setdefault(_end(name), []).append(name)
        self.transposed = _has_conv1d(self.shapes)

    def all(self) -> dict[str, Merged]:
        modules = {module: parts.names for module, parts in self.adapter.modules.items()}
        copies = self.untie(modules) if self.tied else []
        found: dict[str, Merged] = {}
        for module, parts in modules.items():
            for name, merged in self.module(module, dict(parts)):
                for each in [name, *(copies if is_embedding(name) else [])]:
                    if each in found:
                        raise UsageError(
                            f"Two modules of the adapter in '{self.adapter.folder}' are '{shown(each)}' of the base.",
                            _OTHER_BASE,
                        )
                    found[each] = merged
        return found

    def module(self, module: str, left: dict[str, str]) -> list[tuple[str, Merged]]:
        """Return what a module's tensors make of the base's weight and bias; each of them is taken out of ``left``."""
        lora = self.lora(module, left)
        done = []
        for part in ("weight", "bias"):
            name, more = lora.get(part, ("", Merged((), True, ())))
            steps, rowwise, parts = list(more.steps), more.rowwise, dict(more.parts)
            if whole := left.pop(part, None):
                name = self.place(f"{module}.{part}", whole)
                steps.insert(0, self.whole(name, whole))
                parts["trained weights"] = whole
            if part == "weight" and (tokens := left.pop("trainable_tokens_delta", None)):
                if lora:
                    raise UsageError(f"'{shown(tokens)}' is for a module that has a LoRA too.", _BY_PEFT)
                name = self.place(f"{module}.weight", tokens)
                steps.append(self.tokens(module, name, tokens))
                parts["trained tokens"] = tokens
            if steps:
                done.append((name, Merged(tuple(steps), rowwise, self.shapes[name], parts, more.product)))
        if left:
            raise UsageError(f"'{shown(next(iter(left.values())))}' belongs to nothing in the adapter.", _COPY_AGAIN)
        return done

    def lora(self, module: str, left: dict[str, str]) -> dict[str, tuple[str, Merged]]:
        """Return what a module's LoRA makes of its weight and its bias, with the base's names of these."""
        config = self.adapter.config
        bias, magnitude = left.pop("lora_B.bias", None), left.pop("lora_magnitude_vector", None)
        halves = [part for part in left if part.startswith("lora_")]
        if not halves:
            if odd := bias or magnitude:
                raise UsageError(f"'{shown(odd)}' belongs to nothing in the adapter.", _COPY_AGAIN)
            return {}
        for key, tensor in (("lora_bias", bias), ("use_dora", magnitude)):
            if bool(config.get(key)) != (tensor is not None):
                odd = tensor or left[halves[0]]
                has = "has not" if tensor is None else "has"
                raise UsageError(
                    f"'{shown(odd)}' {has} what {key} = {bool(config.get(key))} in {CONFIG} says.", _COPY_AGAIN
                )
        embedding = halves[0].startswith("lora_embedding")
        kind = "lora_embedding_{}" if embedding else "lora_{}.weight"
        a, b = (left.pop(kind.format(half), None) for half in "AB")
        name = self.place(f"{module}.weight", a or b or left[halves[0]])
        product = self.product(module, name, a, b, embedding)
        steps, parts = [self.low_rank(product)], {"LoRA": product.a}
        if magnitude:
            steps.append(self.magnitude(name, magnitude, product.turned))
            parts["DoRA"] = magnitude
        rowwise = not (magnitude and product.turned)
        done = {"weight": (name, Merged(tuple(steps), rowwise, self.shapes[name], parts, product))}
        if bias:
            done["bias"] = self.lora_bias(module, bias)
        return done

    def whole(self, name: str, tensor: str) -> Step:
        """Weights that were trained themselves take the place of the base's."""
        shape, base = self.shape_of(tensor), self.shapes[name]
        if shape != base:
            if shape[1:] == base[1:] and (_is_head(name) or is_embedding(name)):
                raise UsageError(
                    f"The adapter in '{self.adapter.folder}' was trained on a vocabulary of {shape[0]} tokens, and "
                    f"the base model's '{shown(name)}' has {base[0]}.",
                    "Name the base with the very vocabulary of the training: --base",
                )
            raise self.wrong(tensor, name)
        take = self.adapter.tensors.get_slice
        return lambda rows, start, stop: take(tensor)[start:stop].float()

    def tokens(self, module: str, name: str, tensor: str) -> Step:
        """Rows of an embedding that were trained themselves."""
        told = self.adapter.config.get("trainable_token_indices")
        if isinstance(told, dict):
            told = next((told[key] for key in told if _ends(module, key)), None)
        shape, base = self.shape_of(tensor), self.shapes[name]
        if not isinstance(told, list) or not all(type(one) is int and 0 <= one < base[0] for one in told):
            raise UsageError(f"The trainable_token_indices of '{shown(tensor)}' are no rows of the base.", _OTHER_BASE)
        if len(set(told)) != len(told) or shape != (len(told), *base[1:]):
            raise UsageError(
                f"'{shown(tensor)}' is {list(shape)} and not {len(told)} rows of '{shown(name)}'.", _COPY_AGAIN
            )
        indices, load = torch.tensor(told, dtype=torch.long), self.adapter.tensors.get_tensor

        def step(rows: Tensor, start: int, stop: int) -> Tensor:
            inside = (indices >= start) & (indices < stop)
            return rows.index_copy(0, indices[inside] - start, load(tensor)[inside].float())

        return step

    def magnitude(self, name: str, tensor: str, turned: bool) -> Step:
        """DoRA: each output's weights (each column, where they stand turned) get the length that was learned."""
        shape, length = self.shape_of(tensor), self.shapes[name][1 if turned else 0]
        if math.prod(shape) != length:
            raise self.wrong(tensor, name)
        load = self.adapter.tensors.get_tensor
        if turned:
            return lambda rows, start, stop: (load(tensor).float().view(1, -1) / rows.norm(dim=0, keepdim=True)) * rows
        return lambda rows, start, stop: (
            (load(tensor).float().view(-1, 1)[start:stop] / rows.norm(dim=1, keepdim=True)) * rows
        )

    def lora_bias(self, module: str, tensor: str) -> tuple[str, Merged]:
        """The bias of B, which is added to the layer's own."""
        name = self.find(f"{module}.bias", tensor)
        if name is None:
            raise UsageError(f"'{shown(tensor)}' adds to a bias, and '{shown(module)}' of the base has none.", _BY_PEFT)
        if self.shape_of(tensor) != self.shapes[name]:
            raise self.wrong(tensor, name)
        (_, scale), load = self.scale(module), self.adapter.tensors.get_tensor
        step: Step = lambda rows, start, stop: rows + scale * load(tensor)[start:stop].float()  # noqa: E731
        return name, Merged((step,), True, self.shapes[name], {"the bias of B": tensor})

    def untie(self, modules: dict[str, dict[str, str]]) -> list[str]:
        """Take the output layer out of ``modules`` where the base has one tensor for it and the embedding.

        PEFT adapts each of the two by itself: what changes one of them alone needs two tensors, and a merged model of
        one would answer otherwise than the adapter did.

        Returns:
            Tensors that the checkpoint holds of the output layer all the same; they get what the embedding gets.

        Raises:
            UsageError: the two are not changed alike.
        """
        heads = [name for name in modules if _is_head(f"{name}.weight")]
        inputs = [name for name in modules if is_embedding(f"{name}.weight")]
        above = dict(modules[heads[0]]) if heads else {}
        below = dict(modules[inputs[0]]) if inputs else {}
        ensured = bool(self.adapter.config.get("ensure_weight_tying"))
        for name in heads:
            modules.pop(name)
        if len(heads) > 1 or len(inputs) > 1:
            raise UsageError(f"The adapter in '{self.adapter.folder}' has several embeddings.", _BY_PEFT)
        replaced = any(_ends(inputs[0], one) for one in self.saved()) if inputs else False
        alike = (
            (above.keys() == below.keys() == {"weight"} and self.same(above["weight"], below["weight"]))
            or (not above and below.keys() <= {"trainable_tokens_delta"})
            or (not above and below.keys() == {"weight"} and not replaced)
            or (ensured and self.tied_alike(above, below))
        )
        if not alike:
            raise UsageError(
                f"The adapter changes '{shown((inputs or heads)[0])}' by itself, and this base has one tensor for "
                "embedding and output layer.",
                "Save the base once with tie_word_embeddings=False and its output layer, and name that: --base DIR",
            )
        return [name for name in self.shapes if _is_head(name)]

    def tied_alike(self, above: Mapping[str, str], below: Mapping[str, str]) -> bool:
        """Say whether the output layer's tensors are the embedding's, as ``ensure_weight_tying`` writes them."""
        pairs = {"lora_A.weight": "lora_embedding_B", "lora_B.weight": "lora_embedding_A", "weight": "weight"}
        if not below or {pairs.get(part) for part in above} - below.keys():
            return False
        return all(self.same(above[part], below[pairs[part]], turned=part.startswith("lora")) for part in above)

    def saved(self) -> list[str]:
        names = self.adapter.config.get("modules_to_save") or []
        return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []

    def same(self, one: str, other: str, turned: bool = False) -> bool:
        first, second = (self.adapter.tensors.get_tensor(name) for name in (one, other))
        return bool(torch.equal(first, second.T if turned else second))

    def find(self, wanted: str, tensor: str) -> str | None:
        """Return the checkpoint's own name of a tensor: the same, or one that differs in the wrapping alone.

        Raises:
            UsageError: there are several.
        """
        if wanted in self.shapes:
            return wanted
        names = self.ends.get(_end(wanted), [])
        if len(names) > 1:
            raise UsageError(
                f"'{shown(tensor)}' could be '{shown(names[0])}' or '{shown(names[1])}' of the base.", _OTHER_BASE
            )
        return names[0] if names else None

    def place(self, wanted: str, tensor: str) -> str:
        """Return what ``find`` finds.

        Raises:
            UsageError: nothing.
        """
        name = self.find(wanted, tensor)
        if name is None:
            raise UsageError(
                f"'{shown(tensor)}' has no place in the base model, which has no '{shown(wanted)}'.", _OTHER_BASE
            )
        return name

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

    def product(self, module: str, name: str, a: str | None, b: str | None, embedding: bool) -> Product:
        """Return the halves of a LoRA once they fit each other, the rank that is told, and the base's weight."""
        if a is None or b is None:
            raise UsageError(f"'{shown(a or b)}' has no other half in the adapter.", _COPY_AGAIN)
        rank, scale = self.scale(module)
        (a_shape, b_shape), shape = (self.shape_of(a), self.shape_of(b)), self.shapes[name]
        for tensor, at, one in ((a, 0, a_shape), (b, 1, b_shape)):
            if len(one) != 2 or one[at] != rank:
                raise UsageError(f"'{shown(tensor)}' is {list(one)}, which is no weight of rank {rank}.", _COPY_AGAIN)
        plain = shape == (b_shape[0], a_shape[1]) and not embedding
        turned = shape == (a_shape[1], b_shape[0])
        if not plain and not turned:
            raise self.wrong(a if a_shape[1] not in shape else b, name)
        return Product(a, b, scale, not plain or (turned and self.transposed), embedding)

    def low_rank(self, product: Product) -> Step:
        """B·A, and its transpose where the weight stands turned."""
        load, a, b, scale = self.adapter.tensors.get_tensor, product.a, product.b, product.scale

        def step(rows: Tensor, start: int, stop: int) -> Tensor:
            if product.turned:
                change = load(a)[:, start:stop].float().T @ load(b).float().T
            else:
                change = load(b)[start:stop].float() @ load(a).float()
            return change.mul_(scale).add_(rows)  # as PEFT rounds it, in place: a block is megabytes

        return step


def _last(tensor: str) -> str:
    """Return the name of the module that a tensor belongs to."""
    return tensor.split(".")[-2] if "." in tensor else ""


def is_embedding(tensor: str) -> bool:
    """Say whether a tensor is an input embedding's weight."""
    return _last(tensor) in _EMBEDDINGS and tensor.endswith(".weight")


def _is_head(tensor: str) -> bool:
    """Say whether a tensor is the output layer's weight."""
    return _end(tensor) in {f"{name}.weight" for name in _HEADS}


def _ends(module: str, wanted: object) -> bool:
    return module == wanted or module.endswith(f".{wanted}")


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
