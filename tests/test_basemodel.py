"""What is refused of a base model before anything reads its weights."""

import json
from pathlib import Path

import pytest

from twin import basemodel
from twin.errors import UsageError
from twin.progress import Silent


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    names = [f"model-{number:05}-of-00002.safetensors" for number in (1, 2)]
    for name in names:
        (folder / name).touch()
    index = {"weight_map": dict(zip(["a", "b"], names, strict=True))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_a_whole_one_is_taken(sharded: Path) -> None:
    assert basemodel.resolve(str(sharded), Silent()).folder == sharded


def test_a_missing_shard_is_named(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UsageError) as caught:
        basemodel.resolve(str(sharded), Silent())
    assert caught.value.message == f"'{sharded}' is not whole: 'model-00002-of-00002.safetensors' is missing."


def test_an_index_that_leads_elsewhere_is_refused(sharded: Path) -> None:
    index = {"weight_map": {"a": "../base/config.json"}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match="is not whole"):
        basemodel.resolve(str(sharded), Silent())


def test_a_pickle_alone_is_refused(sharded: Path) -> None:
    for file in sharded.glob("*.safetensors"):
        file.rename(sharded / "pytorch_model.bin")
    with pytest.raises(UsageError) as caught:
        basemodel.resolve(str(sharded), Silent())
    assert "no safetensors weights" in caught.value.message
    assert "save_pretrained()" in caught.value.hint
