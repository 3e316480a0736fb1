"""Adapters of other tools as they lie on disk: PEFT's (Unsloth's, LLaMA-Factory's, axolotl's), mlx-lm's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests import small
from tests.gguf.test_mlx import save_mlx
from tests.listener import Listener
from tests.tiny import save_model
from twin import foreign_adapter, pipeline
from twin.cli.main import main
from twin.errors import GateError, UsageError
from twin.llama import open_gguf
from twin.progress import Silent
from twin.settings import load_settings
from twin.templates import load_family

IDS = [1, 4093, 198, 5195, 314, 7023, 47, 2, 198, 1, 520, 9531, 198, 59, 2]


@pytest.fixture(scope="module")
def base(tmp_path_factory, smollm2):
    folder = save_model(tmp_path_factory.mktemp("models") / "tiny", smollm2)
    set_json(folder / "tokenizer_config.json", chat_template=load_family("chatml").jinja)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory, base):
    """An adapter as PEFT saves it, which names its base's folder."""
    return small.save_adapter(base, tmp_path_factory.mktemp("made") / "lora", target_modules=["q_proj", "down_proj"])


@pytest.fixture
def adapter(tmp_path, made):
    return shutil.copytree(made, tmp_path / "lora")


def set_json(path, **values):
    config = json.loads(path.read_text()) if path.is_file() else {}
    config |= values
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def opened(where, base=None, reporter=None):
    settings = load_settings(gguf={"base": str(base) if base else None, "quantization": ["f16"]})
    return foreign_adapter.source(where, settings, reporter or Silent())


def refused(where, match, base=None, kind=UsageError):
    with pytest.raises(kind, match=match) as told, opened(where, base):
        pass
    assert "\n" not in told.value.message
    return told.value.hint


def test_what_a_foreign_adapter_leads_to(adapter, base):
    listener = Listener()
    with opened(adapter, reporter=listener) as source:
        assert (source.folder, source.base.folder, source.is_run) == (adapter, base, False)
        assert source.family.jinja == load_family("chatml").jinja
        asked = source.prompts()
    assert listener.said[0] == f"{adapter} says that it was trained on {base}"
    assert asked[0][0] == "a greeting"
    assert len(asked) > 10
    assert [turn.role for turn in asked[0][1]] == ["user"]


def holds(file, wanted, bare):
    """Check that a GGUF answers as was wanted, and that this is not the base's answer."""
    with open_gguf(file, num_ctx=64) as model:
        found = model.logits(IDS, 0)
    moved = np.abs(wanted - bare).max()
    assert np.abs(found - wanted).max() < 0.02 * moved


@pytest.mark.slow
def test_the_whole_road_for_pefts(adapter, base):
    settings = load_settings(gguf={"quantization": ["f16"]})
    before = {path.name for path in adapter.iterdir()}
    done = pipeline.gguf(adapter, settings, Silent())
    assert done.files[0]["checks"]["answer"] is not None
    bare, wanted = small.logits_of_peft(base, None, IDS), small.logits_of_peft(base, adapter, IDS)
    holds(adapter / "model-f16.gguf", wanted, bare)
    alone = pipeline.gguf(adapter, settings, Silent(), lora=True)
    assert alone.files[0]["checks"]["opened"] == "on model-f16.gguf"
    left = {path.name for path in adapter.iterdir() if not path.name.startswith(".twin-")}
    assert left - before == {"model-f16.gguf", "adapter.gguf"}
    dry = pipeline.gguf(adapter, settings, Silent(), lora=True, dry_run=True)
    assert dry.files == ({"gguf": str(adapter / "adapter.gguf"), "quantization": "f32"},)


@pytest.mark.slow
def test_the_whole_road_for_mlx_lms(tmp_path, base):
    from safetensors.torch import save_file

    fused = save_mlx(base, tmp_path / "mlx", scale=4.0)
    settings = load_settings(gguf={"quantization": ["f16"], "base": str(base)})
    pipeline.gguf(tmp_path / "mlx", settings, Silent())
    whole = tmp_path / "fused"
    whole.mkdir()
    shutil.copyfile(base / "config.json", whole / "config.json")
    save_file(fused, whole / "model.safetensors", {"format": "pt"})
    holds(
        tmp_path / "mlx" / "model-f16.gguf",
        small.logits_of_peft(whole, None, IDS),
        small.logits_of_peft(base, None, IDS),
    )
    pipeline.gguf(tmp_path / "mlx", settings, Silent(), lora=True)
    assert (tmp_path / "mlx" / "adapter.gguf").is_file()
    assert not list(tmp_path.glob(".*partial"))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("unsloth/llama-3-8b-Instruct-bnb-4bit", "--base unsloth/llama-3-8b-Instruct"),
        ("unsloth/Qwen2.5-7B-unsloth-bnb-4bit", "--base unsloth/Qwen2.5-7B"),
        ("unsloth/Qwen2.5-7B-unsloth-bnb-4bit/", "--base unsloth/Qwen2.5-7B"),
        ("/root/model-bnb-4bit", "--base ID-OR-DIR"),
        ("mlx-community/Llama-3.2-1B-Instruct-4bit", "--base ID-OR-DIR"),
        ("owner/model-GPTQ-Int4", "--base ID-OR-DIR"),
        ("owner/model-AWQ", "--base ID-OR-DIR"),
        ("owner/`rm`-bnb-4bit", "--base ID-OR-DIR"),
    ],
)
def test_a_base_that_is_quantized_by_its_name(adapter, name, hint, base):
    set_json(adapter / "adapter_config.json", base_model_name_or_path=name)
    assert refused(adapter, "whose weights are quantized").endswith(hint)
    with opened(adapter, base) as source:
        assert source.base.folder == base


def test_a_base_that_is_quantized(tmp_path, adapter, base):
    whole = shutil.copytree(base, tmp_path / "base")
    for key in ("quantization_config", "quantization"):
        set_json(whole / "config.json", quantization_config=None, quantization=None)
        set_json(whole / "config.json", **{key: {"quant_method": "bitsandbytes"}})
        assert "unquantized" in refused(adapter, f"are quantized \\({key} in its config.json", whole)


def test_a_base_that_is_not_told_or_not_here(adapter):
    set_json(adapter / "adapter_config.json", base_model_name_or_path=None)
    assert refused(adapter, "does not say which model").endswith("--base ID-OR-DIR")
    set_json(adapter / "adapter_config.json", base_model_name_or_path="/root/LLaMA/\x1b[2Jmodel")
    assert refused(adapter, "There is no model folder").endswith("--base ID-OR-DIR")


OWN = (
    "{% for m in messages %}<|im_start|>{{ {'user': 'human', 'assistant': 'bot', 'system': 'rules'}[m['role']] }}\n"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>bot\n{% endif %}"
)


def test_a_template_of_the_adapters_own(tmp_path, adapter, base):
    """LLaMA-Factory and Unsloth save the template they trained with beside the adapter: it is the one that counts."""
    (adapter / "chat_template.jinja").write_text(OWN)
    with opened(adapter) as source:
        assert source.family.name == "derived"
        assert "<|im_start|>bot" in source.family.jinja
    (adapter / "chat_template.jinja").unlink()
    for told in (OWN, [{"name": "tool", "template": "x"}, {"name": "default", "template": OWN}]):
        set_json(adapter / "tokenizer_config.json", chat_template=told)
        with opened(adapter) as source:
            assert source.family.name == "derived"
    set_json(adapter / "tokenizer_config.json", chat_template=3)
    with opened(adapter) as source:
        assert source.family.name == "chatml"
    (adapter / "chat_template.jinja").write_text(load_family("zephyr").jinja)
    refused(adapter, "which is no control token", kind=GateError)
    (adapter / "chat_template.jinja").write_bytes(b"\xff\xfe")
    refused(adapter, "is not UTF-8 text")


def test_no_template_anywhere(tmp_path, adapter, base):
    plain = shutil.copytree(base, tmp_path / "words-alone")
    set_json(plain / "tokenizer_config.json", chat_template=None)
    assert "chat_template.jinja" in refused(adapter, "has a chat template", plain, kind=GateError)
    (adapter / "chat_template.jinja").write_text(load_family("chatml").jinja)
    with opened(adapter, plain) as source:
        assert source.family.name == "chatml"


def test_folders_that_are_no_adapter(tmp_path, adapter, made):
    refused(tmp_path / "nothing", "There is no adapter folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no adapter: adapter_config.json is missing")
    shutil.copytree(made, tmp_path / "out" / "checkpoint-12")
    shutil.copytree(made, tmp_path / "out" / "checkpoint-8")
    assert "checkpoint-12" in refused(tmp_path / "out", "There is no adapter_config.json")
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(b"\x80\x04.")
    refused(adapter, "as a pickle, which is not loaded")


def test_a_form_is_refused_before_the_base_is_looked_for(adapter):
    set_json(adapter / "adapter_config.json", peft_type="IA3", base_model_name_or_path="/nowhere")
    refused(adapter, "of the kind 'IA3'")
    set_json(adapter / "adapter_config.json", peft_type="LORA", use_qalora=True)
    refused(adapter, "sets use_qalora")


@pytest.mark.slow
def test_another_base_is_refused_before_anything_is_written(tmp_path, adapter, smollm2):
    other = small.save_small(tmp_path / "other", "llama", tokenizer=smollm2)
    set_json(other / "tokenizer_config.json", chat_template=load_family("chatml").jinja)
    settings = load_settings(gguf={"quantization": ["f16"], "base": str(other)})
    for lora in (False, True):
        for dry_run in (True, False):
            with pytest.raises(UsageError, match=r"which is \["):
                pipeline.gguf(adapter, settings, Silent(), dry_run=dry_run, lora=lora)
    assert not list(adapter.glob("*.gguf"))


def test_the_command_line(adapter, capsys):
    assert main(["gguf", str(adapter), "--lora", "-q", "q8_0", "--json"]) == 2
    assert "-q quantizes a whole model" in json.loads(capsys.readouterr().out)["error"]
    assert main(["gguf", str(adapter), "--lora", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == [
        {"gguf": str(adapter / "adapter.gguf"), "quantization": "f32"}
    ]
    assert not list(adapter.glob("*.gguf"))


@pytest.mark.parametrize("where", [None, Path("adapters/mine")])
def test_what_is_not_there_is_told_before_anything_is_fetched(where, isolated, monkeypatch):
    monkeypatch.setenv("TWIN_CACHE", str(isolated / "cache"))
    with pytest.raises(UsageError, match=r"There is no (finished run|adapter folder)"):
        pipeline.gguf(where, load_settings(), Silent())
    assert list(isolated.iterdir()) == []
