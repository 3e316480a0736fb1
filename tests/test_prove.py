"""The gate put together: the pair of a run, the gate before training, and files of every family in real servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import vocabularies
from twin import prove
from twin.basemodel import BaseModel
from twin.errors import GateError
from twin.gguf.server import find_server, serve
from twin.ollama.client import OllamaClient
from twin.ollama.register import Meant, register
from twin.progress import Silent
from twin.records import Turn
from twin.templates import gate, load_family

SERVED = [name for name in vocabularies.MODELS if name not in ("zephyr-7b-beta", "Qwen3-0.6B")]  # tokenizers of others


@pytest.fixture(scope="module", params=SERVED)
def made(request, tmp_path_factory):
    """A GGUF of random weights with a model's real tokenizer, made as twin makes them: the file, family and ids."""
    from twin.gguf.make import make

    folder = tmp_path_factory.mktemp("model")
    checkpoint = vocabularies.tiny(request.param, folder / "checkpoint")
    family = load_family(vocabularies.MODELS[request.param].family)
    ids = prove.training_ids(BaseModel(request.param, request.param, checkpoint), family)
    target = folder / "model-q8_0.gguf"
    prompts = [("a greeting", [Turn("user", "Hello there.")]), *gate.cases(family)]
    make(checkpoint, None, family, {"q8_0": target}, prompts, ids, None, Silent())
    return target, family, ids


@pytest.fixture(scope="session")
def llama_server(ollama_binary):
    found = find_server(Path(ollama_binary).resolve().parent.parent / "lib" / "ollama")
    assert found
    return found


@pytest.mark.ollama
def test_llama_server_and_ollama_ask_what_was_trained(made, llama_server, ollama, tmp_path):
    """Point C with the ids of the server itself, then registration with its live check, for each family."""
    file, family, ids = made
    with serve(llama_server, file) as server:
        prompts = list(gate.cases(family))
        assert gate.check_server(family, prompts, server.apply_template) == len(prompts)
        gate.check_ids(family, prompts[::5], ids, server.ids, server.piece)
        other = load_family("llama3" if family.name != "llama3" else "chatml")
        with pytest.raises(
            GateError, match=f"llama-server renders family '{other.name}' in another way for a user's turn"
        ):
            gate.check_server(other, prompts, server.apply_template)
    meant = Meant(family, "Be Ana.", {"temperature": 0.7, "num_ctx": 2048}, lambda turns: len(ids(turns)), ())
    with OllamaClient(ollama) as client:
        done = register(client, "tiny", file, meant, license_text="", force=True, reporter=Silent())
        assert done.checks["template"] == f"the {family.name} template is the one in use"
        assert done.checks["rendering"].endswith("byte for byte")
        client.delete("tiny")
