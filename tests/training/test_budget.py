"""The token budget is what memory holds, by what the model keeps a token."""

import pytest
import torch
import transformers

from tests.training.test_execution import SAMPLES, SMALL
from twin.presets import load_preset, plan_training
from twin.settings import TrainSettings
from twin.training import attention, budget, execution
from twin.training.model import add_lora
from twin.training.start import begin

GIGABYTE = 1 << 30


@pytest.fixture
def plan():
    return plan_training(TrainSettings(batch_size=5, lora_r=4, device="cpu"), load_preset("smollm2-135m"))


def with_lora(plan, device):
    attention.register()
    config = transformers.LlamaConfig(**SMALL)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention.NAME)
        return add_lora(model, plan)


def test_a_model_without_weights_tells_what_the_real_one_keeps(plan):
    foreseen, real = (budget.bytes_a_token(with_lora(plan, name), SAMPLES, torch.float32) for name in ("meta", "cpu"))
    assert foreseen == pytest.approx(real, rel=0.01)
    assert real > 2 * 4 * (2 * 32 + 3 * 48)  # inputs of the norms and three parts of the feed-forward, in each layer


def test_more_memory_is_more_tokens_between_two_bounds(plan):
    model = with_lora(plan, "meta")
    each = budget.bytes_a_token(model, SAMPLES, torch.float32)
    weights = sum(weight.nbytes for weight in model.parameters())

    def tokens(number):
        return budget.choose(model, SAMPLES, torch.float32, int(weights + GIGABYTE + number * each / 0.6))

    assert tokens(2000) == pytest.approx(2000, abs=1)
    assert tokens(0) == tokens(-5000) == tokens(800) == execution.TOKEN_BUDGET
    assert tokens(10**6) == 4096


def test_a_run_begins_with_a_budget_where_its_model_takes_a_tree(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "free_memory", lambda: 100 * GIGABYTE)
    for name, options, expected in (
        ("Llama", {}, 4096),
        ("Lfm2", {"full_attn_idxs": [1]}, execution.TOKEN_BUDGET),  # no tree by its configuration
        ("GptOss", {"num_local_experts": 2, "num_experts_per_tok": 1}, execution.TOKEN_BUDGET),  # none once it is tried
    ):
        getattr(transformers, f"{name}Config")(**{**SMALL, **options}).save_pretrained(tmp_path / name)
        own = plan.model_copy(update={"target_modules": ["q_proj", "v_proj"]})
        assert begin(own, tmp_path / name, SAMPLES).token_budget == expected, name


def test_a_container_s_memory_is_what_is_left_of_its_limit(tmp_path, monkeypatch):
    limit, used = tmp_path / "max", tmp_path / "current"
    monkeypatch.setattr(budget, "_LIMIT", limit)
    monkeypatch.setattr(budget, "_USED", used)
    machine = budget.free_memory()
    assert machine > 10**8
    used.write_text("400000\n")
    limit.write_text("1000000\n")
    assert budget.free_memory() == 600000
    limit.write_text("max\n")
    assert budget.free_memory() == pytest.approx(machine, rel=0.2)
