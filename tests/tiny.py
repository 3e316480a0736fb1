"""A model that trains in a second: SmolLM2's tokenizer and shape in small, with random weights from a seed."""

import shutil
from pathlib import Path

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def save_model(folder: Path, smollm2: Path) -> Path:
    """Save a 2-layer Llama in float16 with SmolLM2's tokenizer into ``folder``, which is returned."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(smollm2)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            rope_parameters=config.rope_parameters,
            tie_word_embeddings=False,  # tied random weights would repeat the last token, a line end
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
        )
    )
    model.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    for name in TOKENIZER_FILES:
        shutil.copyfile(smollm2 / name, folder / name)
    return folder
