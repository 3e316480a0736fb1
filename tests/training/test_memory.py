"""What training will take of a GPU is counted from the configuration, and the way that fits is chosen."""

from dataclasses import replace

import pytest
import torch
import transformers

from tests.training.test_execution import SMALL
from twin.errors import MachineError
from twin.presets import load_preset, plan_training
from twin.records import Sample
from twin.settings import TrainSettings
from twin.training import memory
from twin.training.model import add_lora

PLAN = plan_training(TrainSettings(lora_r=4), load_preset("smollm2-135m"))
LAYERS = 4
LONG = Sample("long", "", "chat", tuple(range(400)), 300)
ROWS = memory.Rows(LONG, 2000, 0.25)
MODEL = memory.Need(
    word=2,
    weights=1_600_000, packed=700_000, largest=10_000, trained=4_000, layers=32, layer_token=20, other_token=1,
    target=50, entry_token=2, vocabulary=30,
)  # fmt: skip


@pytest.fixture(params=["Llama", "Phi3", "Gemma2", "Qwen3", "SmolLM3", "Gemma3"])
def folder(request, tmp_path):
    small = SMALL | {"num_hidden_layers": LAYERS}
    if request.param == "Gemma3":  # what it is for text is a part of its configuration
        eyes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        small = {"text_config": small, "vision_config": eyes | {"image_size": 28, "patch_size": 14}}
    getattr(transformers, f"{request.param}Config")(**small).save_pretrained(tmp_path)
    return tmp_path


def lora(model):
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    targets = [name for name in (*PLAN.target_modules, "qkv_proj", "gate_up_proj") if name in names]
    return add_lora(model, PLAN.model_copy(update={"target_modules": targets}))


def test_what_is_counted_is_what_a_real_model_saves(folder):
    """A real model of the same shape on this CPU, its saved tensors counted one by one."""
    need = memory.need(folder, lora)
    config = transformers.AutoConfig.from_pretrained(folder)
    real = transformers.AutoModelForCausalLM.from_config(
        config, dtype=torch.bfloat16, attn_implementation=memory._STAND_IN
    )
    real = lora(real.requires_grad_(False))
    trained = sum(weight.numel() for weight in real.parameters() if weight.requires_grad)
    assert need.trained == trained
    assert need.weights == 2 * (sum(weight.numel() for weight in real.parameters()) - trained)
    for tokens, targets in ((100, 7), (90, 60)):
        ids, places = torch.zeros(1, tokens, dtype=torch.long), torch.zeros(targets, dtype=torch.long)
        with memory.counting(real) as counted:
            logits = real(
                input_ids=ids, attention_mask=torch.ones_like(ids), logits_to_keep=places, use_cache=False
            ).logits
            torch.nn.functional.cross_entropy(logits[0].float(), places, reduction="none")
        told = tokens * (LAYERS * need.layer_token + need.other_token) + targets * need.target
        assert told == pytest.approx(counted[0], rel=0.03)


def test_a_model_that_is_counted_takes_no_memory(tmp_path):
    """Eight billion weights, here in a second."""
    transformers.LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, tie_word_embeddings=False,
    ).save_pretrained(tmp_path)  # fmt: skip
    need = memory.need(tmp_path, lora)
    assert need.weights == 16_060_522_496
    assert need.packed * memory._FOUR_BITS == pytest.approx(3.6e9, rel=0.01)


def room_for(tokens, targets, four_bit, checkpointing):
    return int(MODEL.bytes(tokens, targets, four_bit, checkpointing) / (1 - memory._KEPT_FREE)) + 100


@pytest.mark.parametrize("way", [(False, False), (False, True), (True, False), (True, True)])
def test_full_precision_comes_first_then_layers_again_then_four_bits(way):
    """Each way is taken where no earlier one fits, with room for the longest sample, or twice that."""
    tokens = 400 if way[1] else 832
    room = room_for(tokens, 300 if way[1] else 210, *way)
    found = memory.fit(MODEL, room, ROWS, None, True)
    assert (found.four_bit, found.checkpointing) == way
    assert len(LONG.input_ids) <= found.token_budget <= ROWS.largest_step
    assert found.predicted_bytes <= room
    assert ("in 4 bits" in found.why, "computed again in" in found.why) == way


def test_no_more_is_foreseen_than_a_step_has():
    assert memory.fit(MODEL, 10**9, ROWS, None, True).token_budget == 2000
    assert memory.fit(MODEL, 10**9, replace(ROWS, largest_step=10**6), None, True).token_budget == memory.MOST_TOKENS


@pytest.mark.parametrize("four_bit", [True, False])
def test_what_is_asked_for_is_kept_to(four_bit):
    assert memory.fit(MODEL, 10_000_000, ROWS, four_bit, True).four_bit is four_bit


def test_a_gpu_too_small_is_refused_by_the_row_that_does_not_fit():
    with pytest.raises(MachineError, match="row 'long' of 400 tokens") as caught:
        memory.fit(MODEL, 500_000, ROWS, None, True)
    assert "--max-length" in caught.value.hint
    with pytest.raises(MachineError, match=r"pip install 'twin-llm\[cuda\]'"):
        memory.fit(MODEL, 1_000_000, ROWS, None, False)


def test_four_bits_need_bitsandbytes():
    with pytest.raises(MachineError, match="bitsandbytes"):
        memory.fit(MODEL, 10_000_000, ROWS, True, False)


def test_more_of_anything_takes_more():
    least = MODEL.bytes(100, 10, False, False)
    assert MODEL.bytes(101, 10, False, False) > least
    assert MODEL.bytes(100, 11, False, False) > least
    assert replace(MODEL, trained=5_000).bytes(100, 10, False, False) > least
    assert MODEL.bytes(100, 10, False, True) < least
    assert MODEL.bytes(100, 10, True, False) < least
