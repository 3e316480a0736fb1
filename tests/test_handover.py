"""A twin for llama-server and LM Studio: checked in the one, told of the other."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import httpx
import pytest

from tests.gguf_variants import TEMPLATE, write_variant
from twin import basemodel, handover, runs
from twin.errors import GateError, MachineError, UsageError
from twin.gguf.server import LlamaServer, find_server, serve
from twin.llama import open_gguf
from twin.progress import Silent
from twin.records import Turn
from twin.settings import load_settings
from twin.templates import load_family, render

PLAN = {"license": "Apache-2.0", "max_length": 512, "num_ctx": 2048, "temperature": 0.7}


@pytest.fixture
def run(isolated):
    """A finished run without a GGUF of its own; its system prompt has a blank line."""
    paths = runs.run_paths("wren")
    paths.root.mkdir(parents=True)
    paths.adapter_config.write_text("{}")
    paths.adapter_weights.write_bytes(b"x")
    record = {
        "base_model": basemodel.SMOLLM2, "base_hub_id": "x/y", "family": "chatml", "result": {}, "plan": PLAN,
        "system_prompt": "You are Wren.\n\nBe brief.",
    }  # fmt: skip
    paths.record.write_text(json.dumps(record))
    return paths


@pytest.fixture(scope="session")
def ours(smollm2_gguf, tmp_path_factory):
    """SmolLM2 with our template, as ``twin gguf`` would leave it."""
    file = tmp_path_factory.mktemp("gguf") / "model file.gguf"
    return write_variant(smollm2_gguf, file, {TEMPLATE: load_family("chatml").jinja})


def hand_over(to, file, **options):
    return handover.hand_over("wren", to, load_settings(), Silent(), gguf_file=file, **options)


def test_lm_studio_is_told_of(run, ours):
    done = hand_over("lmstudio", ours)
    assert done.checks == {}
    assert done.todo == (
        "LM Studio was not tried: this is what its documentation says.",
        f"Bring it there: lms import '{ours}'",
        "Set for the model: temperature 0.7, context 2048, stop <|im_end|>; the prompt template stays the file's own.",
        "Send adapters/wren/system.txt as the first message, role system.",
    )
    assert run.system_prompt.read_text() == "You are Wren.\n\nBe brief."
    assert json.loads(json.dumps(done.as_json()))["system"] == "You are Wren.\n\nBe brief."


def test_a_dry_run_writes_and_starts_nothing(run, ours):
    done = hand_over("llama-server", ours, dry_run=True)
    assert done.checks == {}
    command = shlex.split(done.todo[0].removeprefix("Run it: "))
    assert command == ["llama-server", "-m", str(ours), "--alias", "wren", "-c", "2048", "--temp", "0.7"]
    assert not run.system_prompt.exists()


def test_no_llama_server_is_said(run, ours, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert "It was not checked: no llama-server was found." in hand_over("llama-server", ours).todo[1]


def test_a_server_that_does_not_answer(run, ours):
    with pytest.raises(MachineError, match=r"No llama-server answers at http://127\.0\.0\.1:9"):
        hand_over("llama-server", ours, host="http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("answer", "status"), [('{"prompt": 3}', 200), ("<html>", 200), ("[]", 200), ('{"error": "no"}', 500), ("", 404)]
)
def test_something_else_than_a_llama_server(httpserver, answer, status):
    from twin.errors import StepError

    httpserver.expect_request("/apply-template").respond_with_data(answer, status=status)
    server = LlamaServer(httpserver.url_for(""))
    with pytest.raises(StepError, match=r"llama-server at http://localhost:\d+ (broke off at|refused) /apply-template"):
        server.apply_template([Turn("user", "x")])
    server.close()


def test_a_server_of_another_file(run, ours, httpserver):
    httpserver.expect_request("/health").respond_with_json({"status": "ok"})
    httpserver.expect_request("/props").respond_with_json({"model_path": "/somewhere/other.gguf"})
    with pytest.raises(GateError, match=r"has the file 'other\.gguf' and not 'model file\.gguf'"):
        hand_over("llama-server", ours, host=f"{httpserver.host}:{httpserver.port}")


def test_a_login_in_an_address_is_not_shown(run, ours):
    for host in ("http://u:s3cret@127.0.0.1:1", "http://[::1"):
        with pytest.raises(UsageError) as caught:
            hand_over("llama-server", ours, host=host)
        assert "is not an address of a llama-server" in caught.value.message
        assert "s3cret" not in caught.value.message


@pytest.mark.ollama
def test_a_llama_server_asks_what_was_trained_or_is_refused(run, ours, smollm2_gguf, ollama_binary, monkeypatch):
    folder = Path(ollama_binary).resolve().parent.parent / "lib" / "ollama"
    monkeypatch.setenv("PATH", str(folder))
    assert find_server(None) == folder / "llama-server"
    done = hand_over("llama-server", ours)
    assert done.checks == {
        "rendering": "120 prompts as in training, byte for byte",
        "prompt ids": "120 prompts, the ids of training",
    }
    # And it answers as the file itself does, asked here.
    asked = {"messages": [{"role": "user", "content": "What is tea?"}], "max_tokens": 16, "temperature": 0, "top_k": 1}
    with serve(folder / "llama-server", ours) as server:
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=asked, timeout=60, trust_env=False).json()
    with open_gguf(ours, num_ctx=2048) as model:
        ids = model.ids(render(load_family("chatml"), [Turn("user", "What is tea?")]))
        assert answer["choices"][0]["message"]["content"] == "".join(model.reply(ids, temperature=0.0, max_tokens=16))
    with pytest.raises(
        GateError, match="llama-server renders family 'chatml' in another way for a user's turn with plain"
    ):
        hand_over("llama-server", smollm2_gguf)  # its Jinja puts in a system prompt of its own
