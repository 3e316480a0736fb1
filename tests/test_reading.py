"""What is asked of another process is what this one reads."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import small
from tests.tiny import save_model
from twin import prove, reading
from twin.basemodel import BaseModel
from twin.errors import GateError, StepError, UsageError
from twin.gguf.converter import find_converter
from twin.gguf.hired import hire
from twin.progress import Silent
from twin.records import Turn
from twin.templates import gate, load_family


@pytest.fixture(scope="module")
def base(tmp_path_factory, smollm2):
    return save_model(tmp_path_factory.mktemp("models") / "tiny", smollm2)


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    with hire(find_converter(None, Silent()), Silent(), reading.__name__) as worker:
        yield worker


def test_prompts_are_read_as_training_does(worker, base):
    family, model = load_family("chatml"), BaseModel("tiny", "tiny", base)
    prompts = [[Turn("user", "Hello there.")], *(turns for _, turns in gate.cases(family))]
    here, there = prove.training_ids(model, family), prove.asked_ids(model, family, reading.asked_of(worker), prompts)
    assert len(prompts) > 10
    assert [there(turns) for turns in prompts] == [here(turns) for turns in prompts]
    with pytest.raises(KeyError):
        there([Turn("user", "What nobody asked.")])


def test_what_is_refused_there_is_refused_here(worker, base, tmp_path):
    with pytest.raises(UsageError, match=r"There is no adapter_config\.json"):
        reading.asked_of(worker)("adapter", where=str(tmp_path), scratch=str(tmp_path))
    lora = small.save_adapter(base, tmp_path / "lora", target_modules=["q_proj"])
    about = {"where": str(lora), "scratch": str(tmp_path)}
    assert reading.asked_of(worker)("adapter", **about) == reading.answer("adapter", **about)
    weights = lora / "adapter_model.safetensors"
    save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(weights).items()}, weights)
    with pytest.raises(GateError, match="changes nothing"):
        reading.asked_of(worker)("adapter", **about)


def test_a_worker_that_fails_says_of_what(base):
    with hire(find_converter(None, Silent()), Silent(), reading.__name__) as worker, pytest.raises(StepError) as told:
        reading.asked_of(worker)(
            "prompt_ids", base=str(base), family=load_family("chatml").model_dump(), prompts=[["?"]]
        )
    assert told.value.message.endswith("missing 1 required positional argument: 'content'.")


@pytest.mark.slow
def test_the_process_that_makes_a_gguf_has_none_of_the_heavy_libraries(base, tmp_path, isolated):
    lora = small.save_adapter(base, tmp_path / "lora", target_modules=["q_proj"])
    (lora / "chat_template.jinja").write_text(load_family("chatml").jinja)
    script = (
        "import sys; from twin.cli.main import main; code = main(sys.argv[1:]); "
        "print(code, sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    )
    command = ["gguf", str(lora), "--base", str(base), "-q", "f16", "--quiet"]
    done = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True, check=False)
    assert (done.stdout.splitlines()[-1:], done.stderr) == (["0 []"], "")
