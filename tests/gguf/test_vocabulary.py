"""The vocabulary without weights: a worker's is that of the converter as a program, byte for byte."""

from __future__ import annotations

import pytest

from tests.gguf.one_pass import save_base
from tests.tiny import save_model
from twin.files import file_digest
from twin.gguf.converter import find_converter
from twin.gguf.hired import hire
from twin.gguf.vocabulary import vocabulary
from twin.progress import Silent


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "phi3", "smollm2"])
def test_a_worker_writes_what_the_program_writes(tmp_path, monkeypatch, smollm2, kind):
    base = save_model(tmp_path / "base", smollm2) if kind == "smollm2" else save_base(tmp_path / "base", kind)
    digests = set()
    with hire(find_converter(None, Silent()), Silent()) as worker:
        for cache, by in (("one", None), ("other", worker)):
            monkeypatch.setattr("twin.gguf.vocabulary.cache_dir", lambda cache=cache: tmp_path / cache)
            made = vocabulary(base, "phi-3" if kind == "phi3" else "tiny", None, Silent(), by)
            assert made.is_relative_to(tmp_path / cache)
            digests.add(file_digest(made))
    assert len(digests) == 1
