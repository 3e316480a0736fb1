"""Which backend trains, and why: the rule on plain facts, what is refused, and what it costs to ask."""

import json
import subprocess
import sys

import pytest

from twin.errors import GateError, MachineError, UsageError
from twin.presets import load_preset, plan_training
from twin.settings import TrainSettings
from twin.training import backends
from twin.training.backends import Chosen, Facts, choose_backend

ABLE = {"device": "auto", "cuda": True, "installed": True}


def plan_of(**settings):
    return plan_training(TrainSettings(**settings), load_preset("smollm2-135m"))


@pytest.mark.parametrize(
    ("facts", "name", "why"),
    [
        (Facts("hf", **ABLE), "hf", "asked for"),
        (Facts("unsloth", **ABLE), "unsloth", "asked for"),
        (Facts("auto", **ABLE), "hf", "what samples share is computed once"),
        (Facts("auto", **ABLE, no_tree="'x' carries a state"), "unsloth", "'x' carries a state"),
        (Facts("auto", "auto", True, False, no_tree="x"), "hf", "Unsloth is not installed"),
        (Facts("auto", "auto", False, True, no_tree="x"), "hf", "PyTorch finds none here"),
        (Facts("auto", "cpu", True, True, no_tree="x"), "hf", "to be trained on cpu"),
        (Facts("auto", **ABLE, processes=2, no_tree="x"), "hf", "there are 2"),
    ],
)
def test_the_rule_gives_a_backend_and_its_reason(facts, name, why):
    chosen = choose_backend(facts)
    assert chosen.name == name
    assert why in chosen.why
    assert not chosen.why.endswith(".")


@pytest.mark.parametrize(
    ("facts", "error", "message", "hint"),
    [
        (Facts("unsloth", "auto", True, False), MachineError, "Unsloth is not installed.", backends.INSTALL),
        (Facts("unsloth", "auto", False, True), MachineError, "PyTorch finds none here.", backends.INSTALL),
        (Facts("unsloth", "mps", True, True), UsageError, "to be trained on mps.", "--backend hf"),
        (Facts("unsloth", **ABLE, processes=4), UsageError, "there are 4.", "--backend hf"),
    ],
)
def test_unsloth_that_can_t_be_had_is_refused_when_it_was_asked_for(facts, error, message, hint):
    with pytest.raises(error) as caught:
        choose_backend(facts)
    assert caught.value.message.endswith(message)
    assert hint in caught.value.hint


@pytest.mark.slow  # three processes that import transformers
def test_a_model_s_tree_is_asked_after_in_another_process(tmp_path):
    import transformers

    transformers.LlamaConfig(num_hidden_layers=1).save_pretrained(tmp_path / "llama")
    transformers.MambaConfig(num_hidden_layers=1).save_pretrained(tmp_path / "mamba")
    assert backends._no_tree(tmp_path / "llama") is None
    assert backends._no_tree(tmp_path / "mamba") == "'mamba' carries a state from token to token"
    assert backends._no_tree(tmp_path / "missing") is None


def test_choosing_hf_imports_nothing_heavy():
    code = (
        "import sys; from twin.training import backends; from twin.presets import *; from twin.settings import *;"
        "plan = plan_training(TrainSettings(backend='hf'), load_preset('smollm2-135m'));"
        "print(backends.ready(plan, None), sorted({'torch', 'transformers', 'unsloth'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "Chosen(name='hf', why='asked for') []\n"


def test_without_the_package_auto_asks_pytorch_nothing(monkeypatch):
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    assert backends.ready(plan_of(), None) == Chosen("hf", "Unsloth is not installed")


def test_a_run_that_unsloth_began_goes_on_with_unsloth_alone(monkeypatch):
    from twin.training import backend_hf

    assert backends.loader("hf") is backend_hf.load
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match="This run was begun with Unsloth, which is not installed"):
        backends.loader("unsloth")


def test_a_package_that_does_not_come_up_is_one_sentence(monkeypatch, tmp_path):
    broken = tmp_path / "unsloth"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise NotImplementedError('it needs an accelerator\\nand more')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "unsloth", raising=False)
    with pytest.raises(MachineError) as caught:
        backends.first_import("unsloth")
    assert caught.value.message == "Unsloth can't be used here: it needs an accelerator."
    assert "--backend hf" in caught.value.hint


def test_the_command_refuses_unsloth_on_a_cpu(isolated):
    (isolated / "rows.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "x"}]}) + "\n")
    command = [sys.executable, "-m", "twin", "train", "--backend", "unsloth", "--device", "cpu"]
    done = subprocess.run([*command, "--dataset", "rows.jsonl"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Unsloth trains on a CUDA GPU, and this is to be trained on cpu." in done.stderr
    assert "Use --backend hf." in done.stderr
    assert "Traceback" not in done.stderr


def test_a_target_module_that_the_model_lacks_is_refused():
    import transformers

    from twin.training.model import check_targets

    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config)
    plan = plan_of()
    check_targets(model, plan)
    with pytest.raises(GateError, match="The base model has no module qkv_proj"):
        check_targets(model, plan.model_copy(update={"target_modules": ["qkv_proj", "o_proj"]}))


def test_a_run_goes_on_with_the_backend_it_was_begun_with(monkeypatch, tmp_path):
    """Unsloth was installed since; the control is a run that is begun now."""
    monkeypatch.setattr(backends, "first_import", lambda name: None)
    able = lambda plan, folder: Facts(plan.backend, **ABLE, no_tree="'x' carries a state")  # noqa: E731
    monkeypatch.setattr(backends, "facts_of", able)
    assert backends.ready(plan_of(), tmp_path).name == "unsloth"
    assert backends.ready(plan_of(), tmp_path, begun="hf").name == "hf"
    assert backends.ready(plan_of(backend="hf"), tmp_path, begun="unsloth").name == "hf"
