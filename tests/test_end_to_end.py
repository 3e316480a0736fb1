"""The whole road with the real things, as typed: sample brain → adapter → GGUF → a real Ollama → an answer."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from twin.ollama.client import OllamaClient
from twin.progress import Silent
from twin.records import Turn
from twin.templates import load_family, render
from twin.training.samples import prompt_ids

pytestmark = [pytest.mark.slow]
ASKED = "are you coming to the harbour on sunday?"


def twin(*arguments, cwd: Path, host: str, check: bool = True) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, "-m", "twin", *arguments],
        cwd=cwd,
        env={**os.environ, "OLLAMA_HOST": host},
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
    )
    if check:
        assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def demo(tmp_path_factory, ollama):
    """The demo, once, against a real server: its folder and its one JSON object."""
    folder = tmp_path_factory.mktemp("demo")
    done = twin("demo", "--json", "--output", "demo", cwd=folder, host=ollama)
    return folder / "demo", json.loads(done.stdout)


@pytest.mark.ollama
def test_demo_moves_the_loss_of_adapter_and_gguf(demo):
    _, result = demo
    assert set(result["steps"]) == {"export", "train", "gguf", "evaluate", "register"}
    likelihood = result["likelihood"]
    assert likelihood["adapter"]["conversations"] >= 20
    assert likelihood["adapter"]["high"] < 0
    assert likelihood["gguf"]["high"] < 0
    assert len(likelihood["samples"]) == 3
    assert result["registered"] is True


@pytest.mark.ollama
def test_the_served_prompt_is_the_trained_one(demo, ollama, tokenizer):
    folder, _ = demo
    record = json.loads((folder / "adapters/wren/run.json").read_text("utf-8"))
    family = load_family(record["family"])
    turns = [Turn("system", record["system_prompt"]), Turn("user", ASKED)]
    done = twin("chat", "wren", "--message", ASKED, "--json", cwd=folder, host=ollama)
    answer = json.loads(done.stdout)
    assert answer["reply"]
    assert answer["prompt_tokens"] == len(prompt_ids(tokenizer, family, turns))
    assert OllamaClient(ollama).render("wren", turns[1:]) == render(family, turns)


@pytest.mark.ollama
def test_a_second_run_skips_every_step(demo, ollama):
    folder, _ = demo
    again = twin("run", "wren", "--json", cwd=folder, host=ollama)
    assert set(json.loads(again.stdout)["steps"].values()) == {None}
    assert again.stderr.count("skipped, nothing it reads has changed") == 5


@pytest.mark.ollama
def test_a_model_that_is_not_ours_any_more_stays(demo, ollama):
    folder, _ = demo
    with OllamaClient(ollama) as client:
        own = client.show("wren")["system"]
        client.create("wren", {"from": "wren", "system": "somebody else's"}, Silent())
        refused = twin("run", "wren", cwd=folder, host=ollama, check=False)
        assert refused.returncode == 2
        assert "has a model 'wren' already" in refused.stderr
        assert client.show("wren")["system"] == "somebody else's"
        twin("run", "wren", "--force", "--json", cwd=folder, host=ollama)
        assert client.show("wren")["system"] == own


def test_chat_from_the_gguf_alone(demo, tokenizer):
    folder, _ = demo
    file = "adapters/wren/model-q4_k_m.gguf"
    done = twin("chat", "wren", "--gguf", file, "--message", ASKED, "--json", cwd=folder, host="127.0.0.1:9")
    record = json.loads((folder / "adapters/wren/run.json").read_text("utf-8"))
    turns = [Turn("system", record["system_prompt"]), Turn("user", ASKED)]
    answer = json.loads(done.stdout)
    assert answer["reply"]
    assert answer["prompt_tokens"] == len(prompt_ids(tokenizer, load_family("chatml"), turns))


@pytest.mark.ollama
def test_the_three_lines_as_typed(tmp_path, sample_brain, ollama):
    shutil.copytree(sample_brain, tmp_path / "brain")
    twin("export", "--format", "chatml", cwd=tmp_path, host=ollama)
    twin("train", "--preset", "smollm2-135m", "--epochs", "0.05", cwd=tmp_path, host=ollama)
    registered = twin("register", "chirag-v1", cwd=tmp_path, host=ollama)
    assert "Using the run in adapters/smollm2-135m" in registered.stderr.splitlines()[0]
    assert (tmp_path / "adapters/smollm2-135m/model-q4_k_m.gguf").stat().st_size > 50_000_000
    assert (tmp_path / "adapters/smollm2-135m/Modelfile").is_file()
    reply = twin("chat", "chirag-v1", "--message", ASKED, cwd=tmp_path, host=ollama)
    assert reply.stdout.strip()
    refused = twin("register", "chirag-v1", cwd=tmp_path, host=ollama, check=False)
    assert refused.returncode == 2
    assert "has a model 'chirag-v1' already" in refused.stderr
