"""The base model and its LoRA weights from Unsloth's FastLanguageModel, for the training of ``backend_hf``.

Read against unsloth and unsloth_zoo 2026.10.9. Not obvious:

- Its forward passes take ``logits_to_keep`` as a number alone and give logits of every token where it is a tensor
  (``CausalLM_fast_forward`` in unsloth/models/llama.py). So the layers are called by themselves, and the head is
  applied where something is learned.
- Its way to share prompts in GRPO goes by ``prefix_seg_info``: attention by FlexAttention over the tokens of one row
  (unsloth/utils/attention_dispatch.py). Its mask knows one prefix and the replies behind it. The kernel takes any
  mask, so a whole prefix tree goes through it with a mask of twin's.
- In training it leaves ``attention_mask`` out (``LlamaModel_fast_forward``): right of a sample nothing is looked at
  anyway.

None of this is believed but tried on the model that is loaded, as ``execution`` does.
Imported late: unsloth comes first, then torch, transformers and PEFT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import unsloth  # isort: split

import numpy as np
import torch

from twin.errors import MachineError, StepError, first_line
from twin.records import Sample
from twin.training import execution
from twin.training.backend_hf import Job
from twin.training.execution import Execution, LengthGrouped, PrefixTree, losses_of_each, on
from twin.training.model import check_targets
from twin.training.padded import Padded
from twin.training.prefix_tree import Pack, subtree_ends
from twin.training.trackers import stdout_to_stderr

_MULTIPLE = 128  # its kernel's backward pass takes rows of such a length alone (prefix_grouper_kernel.py)
# What a library of many versions may answer a call with that it does not take.
_FAILS = (AssertionError, AttributeError, ImportError, NotImplementedError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class UnslothTree(PrefixTree):
    """What samples share is computed once, by Unsloth's layers and its FlexAttention."""

    name: ClassVar[str] = PrefixTree.name

    def losses(self, model: torch.nn.Module, work: Pack, dtype: torch.dtype) -> torch.Tensor:
        """Return [P]."""
        device = next(model.parameters()).device
        predictors, inverse = np.unique(work.predictors, return_inverse=True)
        hidden = _hidden(
            model,
            input_ids=on(device, work.input_ids)[None],
            position_ids=on(device, work.position_ids)[None],
            prefix_seg_info=Tree.of(work, device),
        )
        logits = _logits(model, hidden[0, on(device, predictors)])[on(device, inverse)]
        return torch.nn.functional.cross_entropy(logits.float(), on(device, work.targets), reduction="none")


@dataclass(frozen=True, slots=True)
class UnslothPadded(LengthGrouped):
    """Each sample by itself, in padded batches of like lengths, by Unsloth's layers."""

    name: ClassVar[str] = LengthGrouped.name

    def losses(self, model: torch.nn.Module, work: Padded, dtype: torch.dtype) -> torch.Tensor:
        """Return [P]."""
        device = next(model.parameters()).device
        mask = on(device, work.attention_mask)
        hidden = _hidden(model, input_ids=on(device, work.input_ids), attention_mask=mask)
        kept = on(device, work.kept[work.columns])
        logits = _logits(model, hidden[on(device, work.rows), kept])
        return torch.nn.functional.cross_entropy(logits.float(), on(device, work.targets), reduction="none")


@dataclass(frozen=True, slots=True)
class Tree:
    """A pack as Unsloth's attention is told of it, in the place of its ``PrefixSegInfo``.

    Args:
        T: tokens of the pack.
        T_pad: with those that fill it up, which see nothing and are seen by nothing.
        block_mask: which token looks at which, [T_pad, T_pad].
    """

    T: int
    T_pad: int
    block_mask: Any

    @classmethod
    def of(cls, pack: Pack, device: torch.device) -> Tree:
        """Return the tree of ``pack`` on ``device``."""
        from torch.nn.attention.flex_attention import create_block_mask

        size = -(-len(pack.input_ids) // _MULTIPLE) * _MULTIPLE
        ends = torch.zeros(size, dtype=torch.int64)
        ends[: len(pack.input_ids)] = torch.from_numpy(subtree_ends(pack.parents))
        ends = ends.to(device)

        def seen(batch: Any, head: Any, query: Any, key: Any) -> Any:
            return (key <= query) & (query < ends[key])

        return cls(len(pack.input_ids), size, create_block_mask(seen, None, None, size, size, device=device))


def _hidden(model: Any, **inputs: Any) -> torch.Tensor:
    """Return [B, T, hidden], what the last layer gives."""
    layers = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden: torch.Tensor = layers.model(use_cache=False, **inputs)[0]
    return hidden


def _logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Return [N, vocabulary] of [N, hidden], with what some families do to their logits."""
    head, config = model.get_output_embeddings(), model.config
    logits: torch.Tensor = head(hidden.to(head.weight.dtype))
    if factor := getattr(config, "logit_scale", None):  # Cohere
        logits = logits * factor
    if divisor := getattr(config, "logits_scaling", None):  # Granite
        logits = logits / divisor
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma 2
        logits = cap * torch.tanh(logits / cap)
    return logits


def _attend_along_trees() -> None:
    """Let Unsloth's attention take a ``Tree``; its own ``PrefixSegInfo`` goes the way it went.

    Raises:
        AttributeError: another version of Unsloth, without that way.
    """
    from unsloth.utils import attention_dispatch, prefix_grouper_kernel

    own = prefix_grouper_kernel.flex_shared_prefix_attention
    if hasattr(own, "trees"):
        return

    def attend(query: Any, key: Any, value: Any, told: Any, **named: Any) -> Any:
        mask = told.block_mask if isinstance(told, Tree) else None
        return own(query, key, value, told, block_mask=mask, **named)

    attend.trees = True  # type: ignore[attr-defined]
    # One is asked for at each call where the other, filled at import, is None.
    if not hasattr(attention_dispatch, "_flex_shared_prefix_attention"):
        raise AttributeError("its attention takes no shared prefix")
    attention_dispatch._flex_shared_prefix_attention = attend
    prefix_grouper_kernel.flex_shared_prefix_attention = attend


def load(job: Job) -> tuple[Any, Execution]:
    """Return the base model of a job with fresh LoRA weights, and how samples are computed with it.

    Nothing is fetched: the folder is taken as it is, and not the quantized repository that Unsloth may know for it.

    Raises:
        GateError: a target module that the loaded model does not have.
        MachineError: Unsloth can't load it.
        StepError: it gives other losses in batches than for one sample alone.
    """
    plan, dtype = job.plan, job.begun.torch_dtype
    again = "unsloth" if job.begun.checkpointing else False  # its own way: what layers are given waits in main memory
    try:
        with stdout_to_stderr():  # it prints
            base, _ = unsloth.FastLanguageModel.from_pretrained(
                model_name=str(job.base.absolute()),
                max_seq_length=plan.max_length,
                dtype=dtype,  # not None: then a GPU without bfloat16 gets float16, which needs its losses scaled
                load_in_4bit=job.begun.four_bit,
                use_gradient_checkpointing=again,
                use_exact_model_name=True,
                local_files_only=True,
                trust_remote_code=False,
                token=False,
            )
            check_targets(base, plan)
            base.config._name_or_path = job.base_name
            model = unsloth.FastLanguageModel.get_peft_model(
                base,
                r=plan.lora_r,
                target_modules=list(plan.target_modules),
                lora_alpha=plan.lora_alpha,
                lora_dropout=plan.lora_dropout,
                bias="none",
                use_gradient_checkpointing=again,
                random_state=plan.seed,
            )
    except _FAILS as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = first_line(error)
        raise MachineError(f"Unsloth can't load '{job.base_name}': {reason}.", "Use --backend hf.") from None
    for weight in model.parameters():
        if weight.requires_grad:  # float32; the optimizer keeps that, see ``MasterAdamW``
            weight.data = weight.data.to(dtype)
    return model, choose(model, job.train, dtype, job.begun.token_budget)


def choose(model: Any, samples: Sequence[Sample], dtype: torch.dtype, token_budget: int) -> Execution:
    """Return how to compute ``samples``: along trees where that gives the losses of one sample alone, else in batches.

    Args:
        model: with LoRA weights that change nothing yet.
        samples: some that are trained.
        dtype: that is computed in.
        token_budget: most tokens of a piece.

    Raises:
        StepError: batches give other losses too.
    """
    probe = execution.probe_of(samples, getattr(model.config, "sliding_window", None))
    model.eval()
    with torch.no_grad():
        truth = [_alone(model, sample) for sample in probe]
    reason = _why_not(UnslothTree(""), model, probe, truth, dtype)
    if reason is None:
        return UnslothTree("a probe along Unsloth's FlexAttention gave the losses of one sample alone", token_budget)
    why = f"Unsloth's layers take no tree of '{model.config.model_type}': {reason}"
    wrong = _why_not(UnslothPadded(""), model, probe, truth, dtype)
    if wrong is not None:
        raise StepError(
            f"Unsloth computes batches of '{model.config.model_type}' wrongly: {wrong}.", "Use --backend hf."
        )
    return UnslothPadded(why, token_budget)


def _alone(model: Any, sample: Sample) -> np.ndarray:
    """Return the losses of a sample's supervised tokens, as the whole model gives them for its ids alone."""
    ids = torch.tensor(sample.input_ids, device=next(model.parameters()).device)[None]
    logits = model(input_ids=ids, use_cache=False).logits[0, sample.prompt_length - 1 : -1]
    losses = torch.nn.functional.cross_entropy(logits.float(), ids[0, sample.prompt_length :], reduction="none")
    found: np.ndarray = losses.cpu().double().numpy()
    return found


def _why_not(
    way: Execution, model: Any, probe: Sequence[Sample], truth: Sequence[np.ndarray], dtype: torch.dtype
) -> str | None:
    """Return why a way to compute is no use, losses and gradients; None: it is."""
    try:
        if isinstance(way, UnslothTree):
            _attend_along_trees()
        model.eval()
        with torch.no_grad():
            found = losses_of_each(way, model, probe, dtype)
        off = max(float(np.abs(one - other).mean()) for one, other in zip(truth, found, strict=True))
        if not off <= execution.SAME[dtype]:
            return f"its losses are off by {off:.2g} nats a token"
        model.train()
        for work, _ in way.cut(probe):  # into ``grad``: layers that are computed again take no ``autograd.grad``
            way.losses(model, work, dtype).sum().backward()
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        if not gradients or not all(bool(one.isfinite().all()) for one in gradients):
            return "its gradient is no number"
    except torch.OutOfMemoryError:
        raise
    except _FAILS as error:
        return first_line(error)
    finally:
        model.zero_grad(set_to_none=True)
        model.eval()
    return None
