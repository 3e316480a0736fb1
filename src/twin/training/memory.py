"""How much of a GPU's memory training takes, told before a weight is loaded, and how to train within it.

What a step keeps for its backward pass is not guessed from a formula for each architecture: models of the same
configuration with one and with two layers are run on PyTorch's ``meta`` device, where tensors have shapes and no
memory, and each tensor that autograd saves is counted. The rest is counted from shapes:

    weights + adapter and optimizer + saved for the backward pass + the logits' own + what is in hand for a moment

Imported late: torch, transformers and peft are at the top.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from twin.errors import MachineError
from twin.records import Sample
from twin.training.attention import make_known

MOST_TOKENS = 8192  # of a piece: the mask is made of as many times as many entries
_KEPT_FREE = 0.1  # of the memory that is free: the allocator's gaps, kernels and their workspaces
_STAND_IN = "memory_stand_in"
_OPTIMIZER_BYTES = 26  # of a trained weight: itself, its gradient, in float32 both again and two moments; 6 in passing
_LOGIT_BYTES = 6  # of a logit, beside what is saved: in 16 bits once, its gradient in 32
_FOUR_BITS = 0.5 + 1 / 64 + 4 / 64 / 256  # bytes a weight: nf4, its scale for each 64 in 8 bits, theirs for each 256
_TRACED = (64, 128)  # tokens


@dataclass(frozen=True, slots=True)
class Need:
    """What a model takes, in bytes where nothing else is said.

    Args:
        word: bytes of a weight that is not packed.
        weights: of the base model.
        packed: how many of its weights 4 bits would hold.
        largest: weights of the largest matrix that 4 bits would hold; it is unpacked when it is used.
        trained: weights of the adapter.
        layers: of the model.
        layer_token: what one layer saves for a token.
        other_token: what all else saves for a token: embeddings, the last norm.
        target: what is saved for a supervised token, its logits above all.
        entry_token: what goes from layer to layer for a token.
        vocabulary: logits of a supervised token.
    """

    word: int
    weights: int
    packed: int
    largest: int
    trained: int
    layers: int
    layer_token: float
    other_token: float
    target: float
    entry_token: int
    vocabulary: int

    def bytes(self, tokens: int, targets: int, four_bit: bool, checkpointing: bool) -> int:
        """Return the most that training holds at once.

        Args:
            tokens: of a piece.
            targets: its supervised tokens.
            four_bit: the weights are packed.
            checkpointing: each layer is computed again in the backward pass.
        """
        weights = float(self.weights)
        if four_bit:
            weights += self.packed * (_FOUR_BITS - self.word) + 2 * self.word * self.largest
        saved = self.layers * (self.entry_token if checkpointing else self.layer_token) + self.other_token
        # A layer's gradients, and with checkpointing what it saves when it is computed again.
        in_hand = self.layer_token * (1.5 if checkpointing else 0.5)
        logits = targets * (self.target + _LOGIT_BYTES * self.vocabulary)
        return int(weights + self.trained * _OPTIMIZER_BYTES + tokens * (saved + in_hand) + logits)


def need(folder: Path, add_lora: Callable[[Any], Any], dtype: torch.dtype = torch.bfloat16) -> Need:
    """Count what the model in ``folder`` takes, of which the configuration alone is read.

    Args:
        folder: a checkpoint.
        add_lora: gives a model the adapter that is trained.
        dtype: that it is computed in.
    """
    make_known(_STAND_IN, _stand_in)
    config = transformers.AutoConfig.from_pretrained(folder)
    text = config.get_text_config()  # its own, but for models that see too
    whole = _empty(config, text.num_hidden_layers, dtype)
    head = whole.get_output_embeddings()
    linear = [one for one in whole.modules() if isinstance(one, torch.nn.Linear) and one is not head]
    models = [add_lora(_empty(config, layers, dtype)) for layers in (1, 2)]
    few, many = _TRACED
    # Slopes: what is saved once, whatever the tokens, is small and no token's.
    one, two = ((_saved(model, many, 1) - _saved(model, few, 1)) / (many - few) for model in models)
    trained = [sum(weight.numel() for weight in model.parameters() if weight.requires_grad) for model in models]
    word = dtype.itemsize
    return Need(
        word=word,
        weights=word * sum(weight.numel() for weight in whole.parameters()),
        packed=sum(one.weight.numel() for one in linear),
        largest=max(one.weight.numel() for one in linear),
        trained=trained[0] + (text.num_hidden_layers - 1) * (trained[1] - trained[0]),
        layers=text.num_hidden_layers,
        layer_token=two - one,
        other_token=max(0.0, 2 * one - two),
        target=(_saved(models[0], few, 33) - _saved(models[0], few, 1)) / 32,
        entry_token=word * text.hidden_size,
        vocabulary=text.vocab_size,
    )


@dataclass(frozen=True, slots=True)
class Fit:
    """How to train within a GPU's memory.

    Args:
        four_bit: keep the base model's weights in 4 bits.
        checkpointing: compute each layer again in the backward pass, instead of keeping what it saves.
        token_budget: most tokens of a piece.
        predicted_bytes: the most that will be held at once.
        why: in words.
    """

    four_bit: bool
    checkpointing: bool
    token_budget: int
    predicted_bytes: int
    why: str


@dataclass(frozen=True, slots=True)
class Rows:
    """What is trained, as far as memory goes.

    Args:
        longest: the longest sample: it can't be cut.
        largest_step: tokens that the largest optimizer step computes.
        share: logits that a piece computes, for each of its tokens, at most.
    """

    longest: Sample
    largest_step: int
    share: float


def fit(need: Need, free_bytes: int, rows: Rows, four_bit: bool | None, can_pack: bool) -> Fit:
    """Return the way to train that is nearest to full precision and fits; of these the one that computes least.

    Args:
        need: of the model.
        free_bytes: of the GPU.
        rows: what is trained.
        four_bit: asked for; None: only where 16 bits do not fit.
        can_pack: whether bitsandbytes is installed.

    Raises:
        MachineError: none fits, or 4 bits are asked for and bitsandbytes is missing.
    """
    room = int(free_bytes * (1 - _KEPT_FREE))
    tokens, targets = len(rows.longest.input_ids), rows.longest.supervised
    most = min(MOST_TOKENS, rows.largest_step)
    if four_bit and not can_pack:
        raise MachineError("4-bit weights need bitsandbytes.", "pip install 'twin-llm[cuda]'")
    ways = [
        (packed, again)
        for packed in (False, True)
        for again in (False, True)
        if (four_bit is None or packed == four_bit) and (can_pack or not packed)
    ]
    least = 0
    for packed, again in ways:
        least = need.bytes(tokens, targets, packed, again)
        budget = min(most, _budget(need, room, rows.share, packed, again))
        # Twice the longest sample, so that what is shared is not computed again for each; else layers are, which is
        # a third more work.
        if least > room or (not again and budget < min(most, 2 * tokens)):
            continue
        budget = max(budget, tokens)
        predicted = max(least, need.bytes(budget, int(budget * rows.share), packed, again))
        weights = f"weights in {4 if packed else 8 * need.word} bits"
        layers = "each layer computed again in the backward pass" if again else "nothing computed again"
        why = f"{weights}, {layers}, packs of {budget:,} tokens: at most {predicted / 1e9:.1f} GB of {room / 1e9:.1f}"
        return Fit(packed, again, budget, predicted, why)
    what = "" if can_pack or four_bit is False else " (in 4 bits less: pip install 'twin-llm[cuda]')"
    raise MachineError(
        f"The GPU has {free_bytes / 1e9:.1f} GB free, and row '{rows.longest.id}' of {tokens} tokens takes "
        f"{least / 1e9:.1f}{what}.",
        "Use a smaller preset, a lower --max-length, or --device cpu.",
    )


def _budget(need: Need, room: int, share: float, packed: bool, again: bool) -> int:
    """Return the most tokens that fit, in steps of 64; 0: none."""
    low, high = 0, MOST_TOKENS // 64
    while low < high:
        middle = (low + high + 1) // 2
        if need.bytes(64 * middle, int(64 * middle * share) + 1, packed, again) <= room:
            low = middle
        else:
            high = middle - 1
    return 64 * low


# ---------------------------------------------------------------- a model without memory


def _empty(config: Any, layers: int, dtype: torch.dtype) -> Any:
    """Return a model of ``layers`` layers that has shapes and no memory."""
    text = config.get_text_config()
    number = text.num_hidden_layers
    told = {
        key: value[:layers] if isinstance(value, list) and len(value) == number else value
        for key, value in text.to_dict().items()
    } | {"num_hidden_layers": layers}
    if text is not config:  # nested, as in models that see too
        told = config.to_dict() | {"text_config": told}
    fewer = type(config).from_dict(told)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            fewer, dtype=dtype, attn_implementation=_STAND_IN, trust_remote_code=False
        )
    return model.requires_grad_(False)


class _Attended(torch.autograd.Function):
    """An attention that computes nothing and saves what a fused one saves."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        output = torch.empty(*query.shape[:3], value.shape[3], dtype=query.dtype, device=query.device)
        sums = torch.empty(query.shape[:3], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, output, sums)
        return output


def _stand_in(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **_: Any
) -> tuple[torch.Tensor, None]:
    return _Attended.apply(query, key, value).transpose(1, 2).contiguous(), None


@contextmanager
def counting(model: Any) -> Iterator[list[int]]:
    """Give a list whose only number grows by the bytes that autograd saves in the block, the weights left out."""
    seen: dict[int, Any] = {}
    own = {weight.untyped_storage()._cdata for weight in (*model.parameters(), *model.buffers())}
    counted = [0]

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own and storage._cdata not in seen:
            seen[storage._cdata] = storage  # held, so that no other one gets its address
            counted[0] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield counted


def _saved(model: Any, tokens: int, targets: int) -> int:
    """Return the bytes that a forward pass with its loss saves."""
    model.train()
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    places = torch.zeros(targets, dtype=torch.long, device="meta")
    with counting(model) as counted:
        logits = model(input_ids=ids, attention_mask=ids, logits_to_keep=places, use_cache=False).logits[0]
        torch.nn.functional.cross_entropy(logits.float(), places, reduction="none")
    return counted[0]
