"""An adapter from elsewhere: what is refused before anything loads it."""

import json
import pickle

import numpy as np
import pytest

from twin import adapter, learned, runs
from twin.errors import UsageError
from twin.files import file_digest
from twin.runs import RunPaths

pytest.importorskip("safetensors")
TARGETS = ["q_proj", "v_proj"]
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": TARGETS[::-1], "bias": "none"}


def tensors(rank=4, targets=TARGETS):
    names = [f"base_model.model.model.layers.0.self_attn.{target}" for target in targets]
    return {f"{name}.lora_A.weight": np.ones((rank, 8), np.float32) for name in names} | {
        f"{name}.lora_B.weight": np.ones((8, rank), np.float32) for name in names
    }


@pytest.fixture
def run(tmp_path):
    """Make a run's folder, which says of itself what it is."""

    def make(config=CONFIG, weights=None, **record):
        from safetensors.numpy import save_file

        paths = RunPaths(tmp_path / "run")
        paths.root.mkdir(exist_ok=True)
        paths.adapter_config.write_text(json.dumps(config))
        if isinstance(weights, bytes):
            paths.adapter_weights.write_bytes(weights)
        else:
            save_file(weights or tensors(), paths.adapter_weights)
        learned.write(learned.Learned(), paths)
        digests = {**runs.adapter_digests(paths), paths.learned.name: file_digest(paths.learned)}
        plan = {"lora_r": 4, "lora_alpha": 8, "target_modules": TARGETS}
        return paths, {"plan": plan, "files": digests} | record

    return make


def test_a_plain_whole_adapter_passes(run):
    adapter.check(*run())
    paths, record = run()
    del record["files"]  # an older run
    adapter.check(paths, record)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "learned.json"])
def test_a_file_that_is_not_as_it_was_written(run, name):
    paths, record = run()
    file = paths.root / name
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UsageError, match=f"{name}' is not as it was written"):
        adapter.check(paths, record)
    file.unlink()
    with pytest.raises(UsageError, match=f"{name}' is not as it was written"):
        adapter.check(paths, record)


def test_digests_that_are_none_are_refused(run):
    for odd in ([], "x", {}, {"adapter_config.json": 3}):
        with pytest.raises(UsageError, match="is not as it was written"):
            adapter.check(*run(files=odd))


def test_paths_among_the_digests_are_not_followed(run):
    paths, record = run()
    adapter.check(paths, record | {"files": record["files"] | {"../../etc/passwd": "0", "\0": "1", "x" * 9999: "2"}})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "ADALORA"}, "is of no LoRA adapter"),
        ({"modules_to_save": ["lm_head"]}, "sets modules_to_save, which twin never does"),
        ({"kasa_config": {"beta": 1.0, "gamma": 1.0}}, "sets kasa_config"),
        ({"alora_invocation_tokens": [1, 2]}, "sets alora_invocation_tokens"),
        ({"megatron_config": {"a": 1}, "megatron_core": "os"}, "sets megatron_config"),
        ({"layer_replication": [[0, 4]]}, "sets layer_replication"),
        ({"rank_pattern": {"q_proj": 9}}, "sets rank_pattern"),
        ({"use_dora": True}, "sets use_dora"),
        ({"bias": "all"}, "sets bias"),
        ({"init_lora_weights": "pissa"}, "sets init_lora_weights"),
        ({"r": 8}, "The r in "),
        ({"lora_alpha": 64}, "The lora_alpha in "),
        ({"target_modules": ["q_proj"]}, "The target_modules in "),
        ({"target_modules": "all-linear"}, "The target_modules in "),
        ({"target_modules": [{}]}, "The target_modules in "),
    ],
)
def test_a_configuration_of_something_else(run, change, said):
    with pytest.raises(UsageError, match=said):
        adapter.check(*run(CONFIG | change))


class Harm:
    def __reduce__(self):
        return pytest.fail, ("it was unpickled",)


def test_nothing_pickled_is_loaded(run):
    harmful = pickle.dumps(Harm())
    paths, record = run(weights=harmful)
    with pytest.raises(UsageError, match="is no safetensors file, and nothing else is loaded"):
        adapter.check(paths, record)
    paths.adapter_weights.rename(paths.root / "adapter_model.bin")
    with pytest.raises(UsageError, match=r"adapter_model\.safetensors is missing"):
        runs.find_adapter(paths.root)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (tensors(rank=8), "is no weight of rank 4"),
        (tensors() | {"base_model.model.lm_head.weight": np.ones((4, 4), np.float32)}, "lm_head.weight' in "),
        (tensors(targets=["q_proj"]), "has weights for other modules"),
        (tensors(targets=[*TARGETS, "o_proj"]), "has weights for other modules"),
    ],
)  # fmt: skip
def test_weights_of_something_else(run, weights, said):
    with pytest.raises(UsageError, match=said):
        adapter.check(*run(weights=weights))
