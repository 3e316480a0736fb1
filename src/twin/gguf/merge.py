"""Base + adapter → one checkpoint, by PEFT, in the base's own unquantized float16.

The interface stays when the merge becomes lazy: a folder in, a folder that the converter reads out. Imported late:
torch, transformers and peft are at the top.
"""

from __future__ import annotations

from pathlib import Path

import peft
import torch
import transformers

from twin.errors import GateError, UsageError
from twin.files import read_json, write_json
from twin.gguf.vocabulary import copy_tokenizer
from twin.templates import Family


def merge(base: Path, adapter: Path | None, family: Family, target: Path) -> None:
    """Write the merged checkpoint into the folder ``target``, with the base's own tokenizer files and our template.

    Args:
        base: checkpoint folder.
        adapter: PEFT folder, or None for the base alone (to measure against).
        family: whose Jinja the GGUF shall carry.
        target: an existing empty folder.

    Raises:
        UsageError: the adapter is not one for this base.
        GateError: the adapter changes nothing.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    )
    if adapter is not None:
        try:
            wrapped = peft.PeftModel.from_pretrained(model, str(adapter), autocast_adapter_dtype=False)
        except (RuntimeError, ValueError, KeyError) as error:
            raise UsageError(
                f"The adapter in '{adapter}' does not fit the base model: {str(error).splitlines()[0]}",
                "Name its base: --base",
            ) from None
        if not any(bool(weight.any()) for name, weight in wrapped.named_parameters() if "lora_B" in name):
            raise GateError(
                f"The adapter in '{adapter}' changes nothing: all of it is zero.", "Train again: twin train"
            )
        model = wrapped.merge_and_unload(safe_merge=True)
    model.to(torch.float16).save_pretrained(target, safe_serialization=True)
    copy_tokenizer(base, target)
    # A template may stand in the configuration or in a file: the converter takes the first, and others the second.
    config = target / "tokenizer_config.json"
    if config.is_file():
        write_json(config, read_json(config) | {"chat_template": family.jinja})
    (target / "chat_template.jinja").write_text(family.jinja, "utf-8")
