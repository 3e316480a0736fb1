"""The base model, and the fresh LoRA weights that are put on it.

Imported late: torch, transformers and peft are at the top.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from twin.errors import GateError
from twin.presets import TrainPlan
from twin.training import lora_products


def load_model(folder: Path, device: str, dtype: torch.dtype, four_bit: bool = False) -> Any:
    """Return the base model of ``folder`` on ``device``, its weights in ``dtype``.

    Args:
        folder: a checkpoint.
        device: where to.
        dtype: that it is computed in.
        four_bit: keep the matrices of its layers in 4 bits (NF4, its scales in 8: Dettmers et al. 2023, "QLoRA",
            arXiv 2305.14314, section 3).
    """
    packed = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=False,
        quantization_config=packed if four_bit else None,
        device_map={"": torch.cuda.current_device()} if device == "cuda" else None,  # straight there, tensor by tensor
    )
    return model if device == "cuda" else model.to(device)


def compute_again(model: Any) -> None:
    """Let each layer be computed again in the backward pass, so that it saves nothing but what it is given.

    Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174.
    """
    model.gradient_checkpointing_enable({"use_reentrant": False})


def check_targets(model: Any, plan: TrainPlan) -> None:
    """Refuse target modules that the loaded model does not have: LoRA would leave them out without a word.

    Raises:
        GateError: with their names.
    """
    present = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    missing = sorted(set(plan.target_modules) - present)
    if missing:
        raise GateError(
            f"The base model has no module {', '.join(missing)}.",
            "Mend target_modules in a preset of your own: twin presets copy " + plan.preset,
        )


def add_lora(model: Any, plan: TrainPlan) -> Any:
    """Return ``model`` with fresh LoRA weights on every target module.

    Raises:
        GateError: see ``check_targets``.
    """
    check_targets(model, plan)
    torch.manual_seed(plan.seed)
    config = peft.LoraConfig(
        r=plan.lora_r,
        lora_alpha=plan.lora_alpha,
        lora_dropout=plan.lora_dropout,
        target_modules=list(plan.target_modules),
        task_type="CAUSAL_LM",
    )
    adapted = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    for weight in adapted.parameters():
        if weight.requires_grad:  # on weights of 4 bits PEFT makes them in float32, and converts at each call
            weight.data = weight.data.to(model.dtype)
    lora_products.install(adapted)
    return adapted
