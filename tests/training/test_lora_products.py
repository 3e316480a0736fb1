"""LoRA's products give peft's own outputs, losses and gradients, or are left to peft by name."""

import copy
import gc

import peft
import pytest
import torch
from safetensors.torch import load_file

from tests.training.test_attention import assert_same
from tests.training.test_execution import SAMPLES, random_model
from twin.presets import load_preset, plan_training
from twin.settings import TrainSettings
from twin.training import lora_products
from twin.training.model import add_lora, compute_again, load_model

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def with_lora(name="Llama", dtype=torch.float32, targets=NAMES, **options):
    """Return a model with LoRA whose B is not zero, so that every product counts."""
    own = {"attention_bias": True} if name == "Llama" else {}
    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules=targets, task_type="CAUSAL_LM", **options)
    model = peft.get_peft_model(random_model(name, **own).to(dtype), config, autocast_adapter_dtype=False)
    for part, weight in model.named_parameters():
        if "lora_B" in part:
            torch.nn.init.normal_(weight, std=0.1)
    return model.train()


def both(**options):
    """Return one model as peft computes it and the same as it is computed here."""
    theirs = with_lora(**options)
    ours = copy.deepcopy(theirs)
    return theirs, ours, lora_products.install(ours)


def trained(model):
    """Return the loss and the gradients of the samples one by one, of the trained weights alone."""
    model.zero_grad()
    total = torch.zeros((), device=model.device)
    for own in SAMPLES:
        ids = torch.tensor([own.input_ids], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, own.prompt_length - 1 : -1].float()
        total = total + torch.nn.functional.cross_entropy(logits, ids[0, own.prompt_length :], reduction="sum")
    total.backward()
    return total.item(), {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("Llama", NAMES),
        ("Phi3", ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]),
        ("Gemma3Text", ["v_proj", "up_proj"]),
    ],
)
def test_loss_and_gradient_are_those_of_peft(name, targets):
    theirs, ours, left = both(name=name, targets=targets)
    assert left == {}
    assert_same(trained(theirs), trained(ours))
    with torch.no_grad():
        ids = torch.tensor([SAMPLES[0].input_ids])
        torch.testing.assert_close(theirs.eval()(ids).logits, ours.eval()(ids).logits)


def test_a_wrong_scale_would_be_seen():
    """Control of the comparison."""
    theirs, ours, _ = both()
    for module in ours.modules():
        if hasattr(module, "lora_A"):
            module.scaling = {name: 1.01 * scale for name, scale in module.scaling.items()}
    with pytest.raises(AssertionError):
        assert_same(trained(theirs), trained(ours))


def test_bfloat16_is_as_near_as_its_rounding():
    theirs, ours, left = both(dtype=torch.bfloat16)
    assert left == {}
    loss, gradients = trained(theirs)
    ours_loss, ours_gradients = trained(ours)
    assert ours_loss == pytest.approx(loss, rel=0.01)
    one, other = (torch.cat([part.float().flatten() for part in each.values()]) for each in (gradients, ours_gradients))
    assert torch.nn.functional.cosine_similarity(one, other, dim=0) > 0.99


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"lora_dropout": 0.1}, "dropout"),
        ({"use_dora": True}, "another kind of LoRA"),
        ({"lora_bias": True}, "another kind of LoRA"),
    ],
)
def test_another_lora_is_left_to_peft_by_name(options, why):
    theirs, ours, left = both(**options)
    assert set(left.values()) == {why}
    assert len(left) == 2 * len(NAMES)
    torch.manual_seed(0)
    expected = trained(theirs)
    torch.manual_seed(0)
    assert_same(expected, trained(ours))


def test_another_kind_of_module_is_left_to_peft_by_name():
    """Such as those of 4-bit weights: a class of its own, whatever it does."""
    model = with_lora()
    module = model.base_model.model.model.layers[0].self_attn.q_proj
    module.__class__ = type("Linear4bit", (type(module),), {"__module__": "elsewhere"})
    left = lora_products.install(model)
    assert left == {
        "base_model.model.model.layers.0.self_attn.q_proj": "of a kind that is not known: elsewhere.Linear4bit"
    }
    assert "forward" not in vars(module)


def test_an_adapter_that_is_off_or_merged_is_computed_by_peft():
    theirs, ours, _ = both()
    ids = torch.tensor([SAMPLES[0].input_ids])
    with torch.no_grad(), theirs.disable_adapter(), ours.disable_adapter():
        assert torch.equal(theirs(ids).logits, ours(ids).logits)
    theirs.merge_adapter()
    ours.merge_adapter()
    with torch.no_grad():
        assert torch.equal(theirs(ids).logits, ours(ids).logits)


def test_an_input_that_was_changed_in_place_is_another_input():
    _, ours, _ = both()
    attention = ours.base_model.model.model.layers[0].self_attn
    with torch.no_grad():
        x = torch.randn(1, 3, 32)
        attention.q_proj(x)  # computes k and v as well
        x += 1
        torch.testing.assert_close(attention.k_proj(x), attention.k_proj(x.clone()))


def test_what_is_saved_is_an_adapter_of_peft(tmp_path):
    theirs, ours, _ = both()
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("theirs", "ours"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    again = peft.PeftModel.from_pretrained(random_model("Llama", attention_bias=True), str(tmp_path / "ours"))
    ids = torch.tensor([SAMPLES[0].input_ids])
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(ids).logits, ours.eval()(ids).logits)


@pytest.mark.gpu
def test_on_a_gpu_weights_of_4_bits_give_what_peft_gives(cuda, tmp_path, monkeypatch):
    pytest.importorskip("bitsandbytes")
    random_model("Llama", hidden_size=64, head_dim=16, intermediate_size=128).save_pretrained(tmp_path)
    plan = plan_training(TrainSettings(lora_r=4), load_preset("smollm2-135m"))
    found = []
    for install in (lora_products.install, lambda model: None):
        monkeypatch.setattr(lora_products, "install", install)
        model = add_lora(load_model(tmp_path, "cuda", torch.float32, four_bit=True), plan)
        torch.manual_seed(1)
        for part, weight in model.named_parameters():
            if "lora_B" in part:
                torch.nn.init.normal_(weight, std=0.1)
        found.append(trained(model.train()))
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    assert lora_products._is_packed(layer.base_layer)
    assert lora_products._why_not(layer) is None
    loss, gradients = found[0]
    assert loss == pytest.approx(found[1][0], rel=1e-4)
    for name, gradient in gradients.items():
        assert torch.linalg.vector_norm(gradient - found[1][1][name]) < 1e-3 * torch.linalg.vector_norm(gradient), name


def alive():
    """Return the bytes of all tensors that something still holds."""
    gc.collect()
    found = {one.untyped_storage()._cdata: one for one in gc.get_objects() if isinstance(one, torch.Tensor)}
    return sum(one.untyped_storage().nbytes() for one in found.values())


def test_layers_that_are_computed_again_leave_nothing_behind():
    """They end by an exception inside the last product, and what is kept there keeps the graph behind it."""
    theirs, ours, _ = both()
    held = []
    for model in (theirs, ours):
        compute_again(model)
        trained(model)
        model.zero_grad()
        before = alive()
        model(input_ids=torch.tensor([SAMPLES[1].input_ids]), use_cache=False).logits.sum().backward()
        model.zero_grad()
        held.append(alive() - before)
    assert held[1] <= held[0] + 1000


def test_a_product_that_memory_does_not_hold_keeps_nothing():
    _, ours, _ = both()
    ids = torch.tensor([SAMPLES[1].input_ids])
    ours(input_ids=ids, use_cache=False).logits.sum().backward()
    ours.zero_grad()
    before = alive()
    layer = ours.get_base_model().model.layers[1].mlp.down_proj.base_layer

    def full(x):
        raise torch.OutOfMemoryError

    layer.forward = full
    with pytest.raises(torch.OutOfMemoryError):
        ours(input_ids=ids, use_cache=False)
    del layer.forward
    assert alive() <= before + 1000
