"""An adapter that llama.cpp adds at run time is the adapter that PEFT adds: same losses, by another road."""

import json
import shutil
import tarfile

import numpy as np
import peft
import pytest
import torch
import transformers

from tests import small
from tests.tiny import save_model
from twin import packages
from twin.errors import StepError, UsageError
from twin.gguf import converter
from twin.gguf.lora import lora_gguf
from twin.llama import open_gguf
from twin.progress import Silent

pytestmark = pytest.mark.slow
IDS = [1, 4093, 198, 5195, 314, 7023, 47, 2, 198, 1, 520, 9531, 198, 59, 2]


@pytest.fixture(scope="module")
def script():
    return converter.find_converter(None, Silent())


@pytest.fixture(scope="module")
def base(tmp_path_factory, smollm2):
    return save_model(tmp_path_factory.mktemp("models") / "tiny", smollm2)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, base):
    """An adapter on every linear module, large enough to be seen."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", init_lora_weights=False)
    )
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                weight.mul_(3)
    wrapped.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory, base, script):
    """The base model as a float16 GGUF."""
    home = tmp_path_factory.mktemp("plain")
    converter.convert(script, base, home / "base.gguf", Silent(), "tiny")
    return home / "base.gguf"


def test_what_llama_cpp_adds_is_what_peft_adds(base, adapter, plain, script, tmp_path):
    target = tmp_path / "adapter.gguf"
    lora_gguf(script, base, adapter, target, Silent())
    without, with_it = small.logits_of_peft(base, None, IDS), small.logits_of_peft(base, adapter, IDS)
    moved = np.abs(with_it - without).max()
    with open_gguf(plain, num_ctx=64) as model:
        bare = model.logits(IDS, 0)
        with model.adapted(target):
            added = model.logits(IDS, 0)
        with model.adapted(target, scale=0.5):
            half = model.logits(IDS, 0)
        again = model.logits(IDS, 0)
    assert np.abs(bare - without).max() < moved / 50
    assert np.abs(added - with_it).max() < moved / 50
    assert np.abs(half - with_it).max() > moved / 5  # the control: a wrong scale shows
    assert np.array_equal(again, bare)


def test_only_safetensors_are_converted(base, adapter, script, tmp_path):
    folder = tmp_path / "pickled"
    folder.mkdir()
    shutil.copyfile(adapter / "adapter_config.json", folder / "adapter_config.json")
    (folder / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(UsageError, match=r"has no adapter_model\.safetensors"):
        lora_gguf(script, base, folder, tmp_path / "a.gguf", Silent())
    with pytest.raises(UsageError, match=r"has no convert_lora_to_gguf\.py"):
        lora_gguf(tmp_path / "convert_hf_to_gguf.py", base, adapter, tmp_path / "a.gguf", Silent())


def test_a_refused_adapter_is_one_sentence(base, adapter, script, tmp_path):
    folder = tmp_path / "odd"
    shutil.copytree(adapter, folder)
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    del config["lora_alpha"]
    (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(StepError, match="converter refused the adapter: KeyError: 'lora_alpha'"):
        lora_gguf(script, base, folder, tmp_path / "a.gguf", Silent())
    assert not (tmp_path / "a.gguf").exists()


def test_an_adapter_for_another_model_is_refused(plain, tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF nothing")
    with (
        open_gguf(plain, num_ctx=64) as model,
        pytest.raises(StepError, match="can't be opened as an adapter"),
        model.adapted(tmp_path / "a.gguf"),
    ):
        pass


def test_a_folder_that_an_older_twin_unpacked_is_filled(script, tmp_path, monkeypatch):
    """The converter for adapters was not among the kept files once."""
    source = converter._SOURCES["0.3.36"]
    archive = tmp_path / "llama_cpp_python-0.3.36.tar.gz"
    with tarfile.open(archive, "w:gz") as made:
        made.add(script.parent, "llama_cpp_python-0.3.36/vendor/llama.cpp")
    monkeypatch.setattr(packages, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(packages, "_download", lambda package, folder: archive)  # the network is not what is tested
    home = packages.fetch(source, Silent())
    (home / "vendor/llama.cpp" / converter.LORA_SCRIPT).unlink()
    assert packages.fetch(source, Silent()) == home
    assert (home / "vendor/llama.cpp" / converter.LORA_SCRIPT).is_file()
    monkeypatch.setattr(packages, "_download", lambda package, folder: pytest.fail("it was whole"))
    assert packages.fetch(source, Silent()) == home
