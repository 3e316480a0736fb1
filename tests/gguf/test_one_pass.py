"""The one pass against the long way: PEFT's merge, llama.cpp's converter and its quantizer, byte for byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import CACHE
from tests.gguf import one_pass
from twin.gguf import converter, make, quantize
from twin.progress import Silent

KINDS = tuple(one_pass.TARGETS)
TEMPLATE = "{{ messages[0].content }}"
FAMILY = SimpleNamespace(gguf_name="tiny", jinja=TEMPLATE)
PLAIN = [name for name in quantize.TYPES if name not in quantize.NEEDS_IMATRIX]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """llama.cpp's converter; what else is cached is of this test alone."""
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "packages").symlink_to(CACHE / "packages")
    monkeypatch.setenv("TWIN_CACHE", str(cache))
    return converter.find_converter(None, Silent())


def run(base: Path, adapter: Path | None, folder: Path, names: list[str], dry_run: bool = False) -> dict[str, object]:
    """Make the files ``ours-NAME.gguf`` in ``folder``."""
    files = {name: folder / f"ours-{name}.gguf" for name in names}
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    try:
        return make.one_pass(base, adapter, FAMILY, files, None, scratch, Silent(), dry_run)
    finally:
        shutil.rmtree(scratch)


def compare(script: Path, base: Path, adapter: Path | None, folder: Path, names: list[str]) -> list[str]:
    """Return which of the quantizations are not the very files that llama.cpp makes of PEFT's merge."""
    f16 = one_pass.long_way(script, base, adapter, folder, FAMILY.gguf_name, TEMPLATE)
    run(base, adapter, folder, names)
    differ = []
    for name in names:
        theirs = one_pass.quantized_by_llama_cpp(f16, folder / "theirs.gguf", quantize.TYPES[name])
        ours = folder / f"ours-{name}.gguf"
        assert one_pass.metadata(ours) == one_pass.metadata(theirs)
        if list(one_pass.tensors(ours).items()) != list(one_pass.tensors(theirs).items()):
            differ.append(name)
    return differ


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_type_of_every_architecture_is_llama_cpps_own(tmp_path, script, kind):
    base = one_pass.save_base(tmp_path / "base", kind)
    adapter = one_pass.save_adapter(base, tmp_path / "adapter", kind)
    assert compare(script, base, adapter, tmp_path, PLAIN) == []


def test_a_shared_pass_makes_llama_cpps_files_and_sees_a_wrong_scale(tmp_path, script):
    base = one_pass.save_base(tmp_path / "base", "llama")
    adapter = one_pass.save_adapter(base, tmp_path / "adapter", "llama", use_dora=True)
    (tmp_path / "right").mkdir()
    assert compare(script, base, adapter, tmp_path / "right", ["q4_k_m", "q8_0"]) == []
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": config["lora_alpha"] * 1.02}))
    run(base, adapter, tmp_path / "right", ["q8_0"])
    theirs = one_pass.tensors(tmp_path / "right" / "theirs.gguf")
    ours = one_pass.tensors(tmp_path / "right" / "ours-q8_0.gguf")
    assert [name for name in ours if ours[name] != theirs[name]]
