"""The one pass against the long way: PEFT's merge, llama.cpp's converter and its quantizer, byte for byte."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from tests import small
from tests.conftest import CACHE
from tests.gguf import one_pass
from twin import files
from twin.errors import MachineError, StepError, UsageError
from twin.gguf import converter, hired, imatrix, make, quantize
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


def run(base: Path, adapter: Path | None, folder: Path, names: list[str], **more: Any) -> dict[str, Any]:
    """Make the files ``ours-NAME.gguf`` in ``folder``."""
    files = {name: folder / f"ours-{name}.gguf" for name in names}
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    try:
        with hired.hire(converter.find_converter(None, Silent()), Silent()) as worker:
            return make.one_pass(worker, base, adapter, FAMILY, files, None, scratch, Silent(), **more)
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
    f16, names = tmp_path / "f16.gguf", sorted(quantize.NEEDS_IMATRIX)
    weights = tmp_path / "imatrix.gguf"
    imatrix.write(weights, some_matrix(f16), 100)
    run(base, adapter, tmp_path, names, imatrix=weights)
    for name in names:
        theirs = one_pass.quantized_by_llama_cpp(
            f16, tmp_path / "theirs.gguf", quantize.TYPES[name], imatrix.read(weights)
        )
        ours = one_pass.tensors(tmp_path / f"ours-{name}.gguf")
        assert list(ours.items()) == list(one_pass.tensors(theirs).items()), name


def some_matrix(gguf: Path) -> dict[str, Any]:
    """Return an importance matrix for the weights of a model, of random numbers."""
    random = np.random.default_rng(0)
    columns = {name: shape[0] for name, (_, shape, _) in one_pass.tensors(gguf).items() if len(shape) > 1}
    return {name: random.random(size, np.float32) + 0.01 for name, size in columns.items() if name.startswith("blk.")}


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


def test_an_importance_matrix_weighs_as_it_does_in_llama_cpp(tmp_path, script):
    """And is asked for where llama.cpp does; what is foreseen is what is written."""
    base = one_pass.save_base(tmp_path / "base", "llama")
    f16 = one_pass.long_way(script, base, None, tmp_path, FAMILY.gguf_name, TEMPLATE)
    weights = tmp_path / "imatrix.gguf"
    imatrix.write(weights, some_matrix(f16), 100)
    means = imatrix.read(weights)
    names = ["iq2_xxs", "iq3_m", "q4_k_m"]
    with pytest.raises(UsageError, match="quantization iq2_xxs needs an importance matrix"):
        run(base, None, tmp_path, names)
    foreseen = run(base, None, tmp_path, names, dry_run=True, weigh=True)
    made = run(base, None, tmp_path, names, imatrix=weights)
    assert [one["bytes"] for one in foreseen["files"]] == [one["bytes"] for one in made["files"]]
    for name in names:
        theirs = one_pass.quantized_by_llama_cpp(f16, tmp_path / "theirs.gguf", quantize.TYPES[name], means)
        assert one_pass.tensors(tmp_path / f"ours-{name}.gguf") == one_pass.tensors(theirs)
        assert (tmp_path / f"ours-{name}.gguf").stat().st_size == theirs.stat().st_size
    plain = one_pass.quantized_by_llama_cpp(f16, tmp_path / "plain.gguf", quantize.TYPES["q4_k_m"])
    assert one_pass.tensors(tmp_path / "ours-q4_k_m.gguf") != one_pass.tensors(plain)


def test_the_digest_is_the_files_own(tmp_path, script):
    base = one_pass.save_base(tmp_path / "base", "qwen2", "float32")
    made = run(base, None, tmp_path, ["q8_0"])["files"][0]
    assert made["sha256"] == files.file_digest(tmp_path / "ours-q8_0.gguf")
    assert made["bytes"] == (tmp_path / "ours-q8_0.gguf").stat().st_size


def cut(base):
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5000])


def rename(base):
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"architectures": ["TwinForCausalLM"]}))


def burst(base):
    from safetensors.torch import save_file

    tensors = small.load(base)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("harm", "kind", "says"),
    [
        (cut, UsageError, "ends within '"),
        (rename, StepError, "does not know the architecture 'TwinForCausalLM'"),
        (burst, StepError, "'blk.1.ffn_up.weight' has values that are no numbers"),
    ],
)
def test_a_harmed_base_is_told(tmp_path, script, harm, kind, says):
    base = one_pass.save_base(tmp_path / "base", "llama")
    run(base, None, tmp_path, ["q8_0"])  # the vocabulary is there: what is harmed is met where the weights are read
    harm(base)
    with pytest.raises(kind, match=re.escape(says)):
        run(base, None, tmp_path, ["q8_0"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_told(tmp_path, script):
    base = one_pass.save_base(tmp_path / "base", "llama")
    (tmp_path / "ours-q8_0.gguf").symlink_to("/dev/full")
    with pytest.raises(MachineError, match="The disk is full"):
        run(base, None, tmp_path, ["q8_0"])


def test_the_worker_ends_with_the_process_that_started_it(tmp_path, script):
    """Killed at once, so that nothing is told to the worker: its standard input ends."""
    code = f"""
import subprocess, sys
from pathlib import Path
from twin import files
from twin.errors import MachineError, StepError, UsageError
from twin.gguf import converter
worker = subprocess.Popen([sys.executable, "-m", "twin.gguf.worker"], stdin=subprocess.PIPE,
    env=converter.environment(Path({str(script)!r})))
worker.stdin.write(b'{{"checkpoint": "x", "base": "x", "scratch": "/dev/zero", "adapter": null}}\\n')
worker.stdin.flush()
print(worker.pid, flush=True)
import os, signal
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -9
    worker = int(done.stdout)
    with suppress(psutil.NoSuchProcess):
        psutil.Process(worker).wait(60)
    assert not psutil.pid_exists(worker)


def test_a_worker_that_dies_is_told(tmp_path, script, monkeypatch):
    base = one_pass.save_base(tmp_path / "base", "llama")
    monkeypatch.setattr(hired.sys, "executable", "/bin/false" if Path("/bin/false").exists() else sys.executable)
    monkeypatch.setattr(make, "vocabulary", lambda *_: tmp_path)
    with pytest.raises(StepError, match="converter refused the model: it said nothing"):
        run(base, None, tmp_path, ["q8_0"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_float16_has_transformers_logits(tmp_path, script, kind):
    import torch
    import transformers

    from twin.llama import open_gguf

    base = one_pass.save_base(tmp_path / "base", kind, "float32")
    adapter = one_pass.save_adapter(base, tmp_path / "adapter", kind)
    run(base, adapter, tmp_path, ["f16"])
    ids = torch.randint(3, 300, (1, 40), generator=torch.Generator().manual_seed(0))
    merged = tmp_path / "merged"
    small.merge_by_peft(base, adapter, merged)
    expected = {}
    for name, folder in (("merged", merged), ("base", base)):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.inference_mode():
            expected[name] = model(ids).logits[0].numpy()
    with open_gguf(tmp_path / "ours-f16.gguf", num_ctx=64) as model:
        found = model.logits(ids[0].tolist(), 0)[:, : expected["merged"].shape[1]]
    scale = np.abs(expected["merged"]).max()
    assert np.abs(found - expected["merged"]).max() < 0.01 * scale
    assert np.abs(found - expected["base"]).max() > 0.1 * scale
