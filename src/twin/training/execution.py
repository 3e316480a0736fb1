"""How samples are computed, and why that way: as prefix trees, or padded, one beside the other.

One interface: ``cut`` an optimizer step's samples into pieces of bounded size, and give a piece's ``losses``. Not
obvious: that a model takes a tree is not believed but tried, on the model that is loaded. Imported late: torch and
transformers are at the top.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
import transformers

from twin.errors import first_line
from twin.records import Sample
from twin.training import attention, flex
from twin.training.padded import Padded, length_groups, padded
from twin.training.prefix_tree import Pack, pack_within

# Of a piece, in tokens, where memory is not known to hold more (see ``budget``): a longer step is cut into pieces.
TOKEN_BUDGET = 896
_TREE_LAYERS = {"full_attention", "sliding_attention"}
TRUTH = "eager"  # the model's own code; PyTorch's kernels leave the cap of scores out without a word
_PROBED = 48  # tokens of each of two samples, put together anew
# The mean difference of a token's loss, in nats; a model that saw siblings or a wrong place differs by tenths.
SAME = {torch.float32: 1e-3, torch.bfloat16: 0.1}


class Piece(NamedTuple):
    """What is computed at once.

    Args:
        work: the arrays.
        samples: the numbers of its samples among those that were cut, in the order of ``work.of_sample``.
    """

    work: Pack | Padded
    samples: Sequence[int]


class Execution(Protocol):
    """A way to compute samples."""

    name: ClassVar[str]

    @property
    def why(self) -> str:
        """The reason for it, in words."""

    @property
    def token_budget(self) -> int:
        """Most tokens of a piece."""

    def within(self, token_budget: int) -> Execution:
        """Return the same with pieces of another size."""

    def cut(self, samples: Sequence[Sample]) -> list[Piece]:
        """Return the pieces of some samples, each within the token budget where a sample alone is."""

    def losses(self, model: torch.nn.Module, work: Any, dtype: torch.dtype) -> torch.Tensor:
        """Return [P], the negative log-likelihood of each pair of a piece in nats, each counted once."""


_ATTENDS = {one.NAME: one for one in (attention, flex)}


@dataclass(frozen=True, slots=True)
class PrefixTree:
    """What samples share is computed once.

    Args:
        why: the reason for it.
        token_budget: most tokens of a pack.
        attends: the name of the attention that the model is set to, of ``attention`` or of ``flex``.
    """

    name: ClassVar[str] = "prefix tree"
    why: str
    token_budget: int = TOKEN_BUDGET
    attends: str = attention.NAME

    def within(self, token_budget: int) -> Execution:
        """Return the same with packs of another size."""
        return replace(self, token_budget=token_budget)

    def cut(self, samples: Sequence[Sample]) -> list[Piece]:
        """Return packs, in the samples' order."""
        pieces, first = [], 0
        for one in pack_within(samples, self.token_budget):
            stop = first + len(one.of_sample)
            pieces.append(Piece(one, range(first, stop)))
            first = stop
        return pieces

    def losses(self, model: torch.nn.Module, work: Pack, dtype: torch.dtype) -> torch.Tensor:
        """Return [P]; the model's attention is ``attends``."""
        device = next(model.parameters()).device
        attends = _ATTENDS[self.attends]
        work = work.filled(attends.LEAST_TOKENS)
        predictors, inverse = np.unique(work.predictors, return_inverse=True)
        output = model(
            input_ids=on(device, work.input_ids)[None],
            position_ids=on(device, work.position_ids)[None],
            attention_mask=on(device, np.ones_like(work.input_ids))[None],  # else it looks for several texts in one
            prefix_tree=attends.prepared(work, dtype, device),
            logits_to_keep=on(device, predictors),  # logits where something is learned, nowhere else
            use_cache=False,
        )
        logits = output.logits[0]
        if len(predictors) < len(work.predictors):  # a node with several targets; else [P, vocabulary] is saved again
            logits = logits[on(device, inverse)]
        return torch.nn.functional.cross_entropy(logits.float(), on(device, work.targets), reduction="none")


@dataclass(frozen=True, slots=True)
class LengthGrouped:
    """Each sample by itself, in padded batches of like lengths, with the model's own attention."""

    name: ClassVar[str] = "length-grouped batches"
    why: str
    token_budget: int = TOKEN_BUDGET

    def within(self, token_budget: int) -> Execution:
        """Return the same with batches of another size."""
        return replace(self, token_budget=token_budget)

    def cut(self, samples: Sequence[Sample]) -> list[Piece]:
        """Return batches, from the shortest samples to the longest."""
        groups = length_groups(samples, self.token_budget)
        return [Piece(padded([samples[number] for number in group]), group) for group in groups]

    def losses(self, model: torch.nn.Module, work: Padded, dtype: torch.dtype) -> torch.Tensor:
        """Return [P]."""
        device = next(model.parameters()).device
        output = model(
            input_ids=on(device, work.input_ids),
            attention_mask=on(device, work.attention_mask),
            logits_to_keep=on(device, work.kept),
            use_cache=False,
        )
        logits = output.logits[on(device, work.rows), on(device, work.columns)]
        return torch.nn.functional.cross_entropy(logits.float(), on(device, work.targets), reduction="none")


def on(device: torch.device, array: np.ndarray) -> torch.Tensor:
    """Return an array as a tensor on ``device``."""
    return torch.from_numpy(array).to(device)


def why_no_tree(config: Any) -> str | None:
    """Return why a model of this configuration can't take a prefix tree, as far as its code tells; None: it may."""
    kind = getattr(config, "model_type", "model")
    model_class = transformers.AutoModelForCausalLM._model_mapping.get(type(config), None)
    if isinstance(model_class, (list, tuple)):
        model_class = model_class[0]
    if model_class is not None and model_class._is_stateful:
        return f"'{kind}' carries a state from token to token"
    if model_class is None or not model_class._supports_attention_backend:
        return f"the attention of '{kind}' can't be replaced"
    text = config.get_text_config()  # its own, but for models that see too
    other = sorted(set(getattr(text, "layer_types", None) or ()) - _TREE_LAYERS)
    if other or getattr(text, "attention_chunk_size", None):
        return f"'{kind}' has layers of {', '.join(other) or 'chunked attention'}"
    return None


def foresee(folder: Path, token_budget: int = TOKEN_BUDGET) -> Execution:
    """Return how samples will be computed with the model in ``folder``, of which the configuration alone is read."""
    if reason := why_no_tree(transformers.AutoConfig.from_pretrained(folder)):
        return LengthGrouped(reason, token_budget)
    return PrefixTree("its attention can be replaced; tried once it is loaded", token_budget)


def choose(model: Any, samples: Sequence[Sample], dtype: torch.dtype, token_budget: int = TOKEN_BUDGET) -> Execution:
    """Return how to compute ``samples`` with a loaded model, which is made ready for it.

    Where its code allows a tree, parts of two samples are computed both ways, and the losses must agree; so must those
    of a sample that is longer than the model's sliding window, where there is one. On a GPU FlexAttention is tried
    first, backward too, and then what a CPU does.

    Args:
        model: the base model, with its own attention.
        samples: some that are trained.
        dtype: of the model's weights.
        token_budget: most tokens of a piece.
    """
    if reason := why_no_tree(model.config):
        if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
            model.set_attn_implementation(TRUTH)
        return LengthGrouped(reason, token_budget)
    probe = probe_of(samples, getattr(model.config.get_text_config(), "sliding_window", None))
    model.eval()
    model.set_attn_implementation(TRUTH)
    with torch.no_grad():
        plain = losses_of_each(LengthGrouped(""), model, probe, dtype)
    reasons: list[str] = []
    on_gpu = next(model.parameters()).device.type == "cuda"
    for how, attends in ((" with FlexAttention", flex), (", block by block", attention))[0 if on_gpu else 1 :]:
        told = how if on_gpu else ""
        attends.register()
        model.set_attn_implementation(attends.NAME)
        difference, reason = _try(PrefixTree("", attends=attends.NAME), model, probe, plain, dtype)
        if not reason:
            same = f"a probe gave the losses of the model's own attention (to {difference:.1g} nats a token){told}"
            return PrefixTree("; ".join([same, *reasons]), token_budget, attends.NAME)
        reasons.append(reason + told)
    model.set_attn_implementation(TRUTH)
    return LengthGrouped("; ".join(reasons), token_budget)


def _try(
    tree: PrefixTree, model: Any, probe: Sequence[Sample], plain: Sequence[np.ndarray], dtype: torch.dtype
) -> tuple[float, str]:
    """Return by how many nats a token a tree is off in the worst sample, and why it is no use; empty: it is.

    Args:
        tree: how to compute.
        model: its attention is that of the tree.
        probe: some samples.
        plain: their losses, as the model by itself gives them.
        dtype: of the model's weights.
    """
    try:
        with torch.no_grad():
            found = losses_of_each(tree, model, probe, dtype)
        difference = max(float(np.abs(one - other).mean()) for one, other in zip(plain, found, strict=True))
        if not difference <= SAME[dtype]:
            return difference, f"a tree gave other losses than the model by itself (by {difference:.2g} nats a token)"
        if tree.attends == flex.NAME:
            _go_back(tree, model, probe, dtype)
    except torch.OutOfMemoryError:
        raise
    except (NotImplementedError, TypeError, ValueError, RuntimeError) as error:
        return math.nan, f"'{model.config.model_type}' has no tree: {first_line(error)}"
    return difference, ""


def _go_back(tree: PrefixTree, model: Any, probe: Sequence[Sample], dtype: torch.dtype) -> None:
    """Compute a gradient through all layers, with respect to the embedded tokens: the kernel for it is another one.

    Raises:
        RuntimeError: it can't be compiled here, or the gradient is no number.
    """
    kept: list[torch.Tensor] = []

    def leaf(module: Any, given: Any, output: torch.Tensor) -> torch.Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1]

    handle = model.get_input_embeddings().register_forward_hook(leaf)
    try:
        for work, _ in tree.cut(probe):
            losses = tree.losses(model, work, dtype)  # type: ignore[arg-type]
            (gradient,) = torch.autograd.grad(losses.sum(), kept[-1])
            if not bool(gradient.isfinite().all()):
                raise RuntimeError("its gradient is no number")
    finally:
        handle.remove()


def probe_of(samples: Sequence[Sample], window: int | None) -> list[Sample]:
    """Return samples that part at two depths, so that there are siblings inside a branch as well; all of it counts.

    Args:
        samples: of whose ids they are made.
        window: how many tokens the model looks back; None: to the beginning.
    """
    ids, other = samples[0].input_ids[:_PROBED], samples[-1].input_ids[-_PROBED:]
    third = max(1, len(ids) // 3)
    branch = ids[:third] + other[:third]
    paths = (ids, branch + ids[third:], branch + other[third:])
    probe = [Sample(str(number), "", "chat", path, 1) for number, path in enumerate(paths) if len(path) > 1]
    longest = max((sample.input_ids for sample in samples), key=len)
    if window and len(longest) > window:  # whether each layer keeps to it shows in nothing shorter
        probe.append(Sample("long", "", "chat", longest[: window + _PROBED], 1))
    return probe


def losses_of_each(execution: Execution, model: Any, samples: Sequence[Sample], dtype: torch.dtype) -> list[np.ndarray]:
    """Return of each sample the negative log-likelihoods of its supervised tokens, in nats."""
    found: dict[int, np.ndarray] = {}
    for work, numbers in execution.cut(samples):
        losses = execution.losses(model, work, dtype).cpu().double().numpy()
        found |= {number: losses[pairs] for number, pairs in zip(numbers, work.of_sample, strict=True)}
    return [found[number] for number in range(len(samples))]
