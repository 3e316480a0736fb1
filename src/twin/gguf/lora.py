"""A PEFT adapter as a GGUF of its own, which llama.cpp adds to a base model when it runs. Nothing is merged.

llama.cpp's own converter does it, so this road shares no code with the merge (``delta``): what one of them gets wrong,
the other shows. The scale that it is applied with is ``lora_alpha`` / rank, times what the caller gives.
"""

from __future__ import annotations

from pathlib import Path

from twin.errors import UsageError
from twin.gguf import converter
from twin.progress import Reporter


def lora_gguf(script: Path, base_folder: Path, adapter_folder: Path, target: Path, reporter: Reporter) -> None:
    """Write a plain LoRA of PEFT's as a GGUF adapter, in float32.

    Args:
        script: see ``converter.find_converter``; the one for adapters lies beside it.
        base_folder: the base model's checkpoint, of which ``config.json`` is read.
        adapter_folder: ``adapter_config.json`` and ``adapter_model.safetensors``; nothing else is loaded.
        target: the file to write, in a folder to work in: a converter that is killed leaves half of it.
        reporter: told of progress.

    Raises:
        UsageError: a llama.cpp checkout without that converter, or no safetensors.
        StepError: the converter refused; its last line is in the sentence.
    """
    own = script.with_name(converter.LORA_SCRIPT)
    if not own.is_file():
        raise UsageError(f"'{script.parent}' has no {own.name}.", "Name a whole llama.cpp checkout: --llama-cpp DIR")
    if not (adapter_folder / "adapter_model.safetensors").is_file():  # the converter would unpickle a .bin
        raise UsageError(
            f"'{adapter_folder}' has no adapter_model.safetensors, and nothing else is loaded.",
            "Name a folder that PEFT or twin saved an adapter into.",
        )
    with reporter.task("Converting the adapter to GGUF"):
        complaint = converter.run(own, [str(adapter_folder), "--base", str(base_folder), "--outtype", "f32"], target)
    if complaint:
        raise converter.refused("adapter", complaint)
