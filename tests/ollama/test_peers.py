"""Modelfiles as others write them for a ChatML model, made with the real command: what the model is asked instead."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from twin.errors import GateError
from twin.ollama.client import OllamaClient
from twin.ollama.register import Meant, check_prompts, check_settings
from twin.progress import Silent
from twin.records import Turn
from twin.templates import load_family, render

FAMILY = load_family("chatml")
START, END = "<|im_start|>", "<|im_end|>"
PEERS = {
    "a TEMPLATE of one exchange": (
        f'FROM ./model.gguf\nTEMPLATE """{{{{ if .System }}}}{START}system\n{{{{ .System }}}}{END}\n{{{{ end }}}}'
        f"{{{{ if .Prompt }}}}{START}user\n{{{{ .Prompt }}}}{END}\n{{{{ end }}}}"
        f'{START}assistant\n{{{{ .Response }}}}{END}"""\nPARAMETER stop "{END}"\nPARAMETER temperature 0.7\n',
        "For several turns",
    ),
    "trim markers": (
        f'FROM ./model.gguf\nTEMPLATE """{{{{- range .Messages }}}}{START}{{{{ .Role }}}}\n{{{{ .Content }}}}{END}\n'
        f'{{{{- end }}}}\n{START}assistant\n"""\nPARAMETER stop "{END}"\nPARAMETER temperature 0.7\n',
        "For a system prompt of the request",
    ),
}


@pytest.fixture
def made(ollama: str, ollama_binary: str, gguf: Path, tmp_path: Path) -> Callable[[str], None]:
    """Make ``peer`` with ``ollama create -f`` of a Modelfile."""

    def create(modelfile: str) -> None:
        (tmp_path / "model.gguf").symlink_to(gguf)
        (tmp_path / "Modelfile").write_text(modelfile, "utf-8")
        environ = {**os.environ, "OLLAMA_HOST": ollama, "HOME": str(tmp_path)}
        command = [ollama_binary, "create", "peer", "-f", str(tmp_path / "Modelfile")]
        subprocess.run(command, env=environ, check=True, capture_output=True)

    return create


@pytest.mark.ollama
@pytest.mark.parametrize("what", PEERS)
def test_what_a_peers_modelfile_asks_is_named(
    made: Callable[[str], None], ollama: str, tokenizer: Any, what: str
) -> None:
    modelfile, words = PEERS[what]
    made(modelfile)

    def count(turns: Sequence[Turn]) -> int:
        return len(tokenizer.encode(render(FAMILY, turns), add_special_tokens=False))

    meant = Meant(FAMILY, "", {"temperature": 0.7, "num_ctx": 2048}, count, ())
    with OllamaClient(ollama) as client:
        with pytest.raises(GateError, match=f"^{words} Ollama would not send what was trained") as caught:
            check_prompts(client, "peer", meant, Silent())
        readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
        assert " ".join(caught.value.message.split()) in readme
        with pytest.raises(GateError, match="uses another one"):
            check_settings(client.show("peer"), meant)
        client.delete("peer")
