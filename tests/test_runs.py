"""Paths of a run, and what a run says of itself."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin import runs
from twin.errors import UsageError
from twin.files import file_digest, write_json
from twin.runs import (
    DatasetPaths,
    RunPaths,
    adapter_digests,
    bind_checkpoints,
    cache_dir,
    current_gguf,
    find_adapter,
    find_checkpoint,
    matching_checkpoint,
    newest_adapter,
    run_paths,
)


def finished(name, when):
    paths = run_paths(name)
    paths.root.mkdir(parents=True)
    paths.adapter_config.write_text("{}")
    paths.adapter_weights.write_bytes(b"w")
    paths.record.write_text("{}")
    os.utime(paths.record, (when, when))
    return paths


def test_the_contracts_paths():
    data = DatasetPaths(Path("data"))
    assert [str(path) for path in (data.full, data.train, data.val, data.report)] == [
        "data/finetune_dataset.jsonl",
        "data/train.jsonl",
        "data/val.jsonl",
        "data/dataset.json",
    ]
    run = run_paths("chirag-v1")
    assert str(run.gguf("q4_k_m")) == "adapters/chirag-v1/model-q4_k_m.gguf"
    assert run.modelfile == Path("adapters/chirag-v1/Modelfile")
    assert run.name == "chirag-v1"
    files = [value.fget(run) for value in vars(RunPaths).values() if isinstance(value, property)]
    inside = [path for path in files if isinstance(path, Path)]
    assert len({path.name for path in inside}) == len(inside)
    assert {path.parent for path in inside} == {run.root}


@pytest.mark.parametrize(
    "name", ["", "../x", "a/b", "a\\b", ".hidden", "-rf", "a b", "naïve", "x\n", "a" * 81, "con:1", "a\0b"]
)
def test_a_name_that_is_no_name(name):
    with pytest.raises(UsageError) as caught:
        run_paths(name)
    assert caught.value.message == f"'{name}' can't be a model's name."
    assert caught.value.hint == "Use letters, digits, '-', '_' and '.', 80 at most."


@given(st.from_regex(runs.NAME, fullmatch=True))
def test_a_good_name_stays_inside(name):
    assert run_paths(name).root.parent == Path("adapters")


def test_the_cache_moves_with_its_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("TWIN_CACHE", "/somewhere/else")
    assert cache_dir() == Path("/somewhere/else")
    monkeypatch.delenv("TWIN_CACHE")
    assert cache_dir().is_relative_to(tmp_path)


def test_find_adapter_says_what_is_missing():
    with pytest.raises(UsageError) as caught:
        find_adapter(Path("adapters/x"))
    assert caught.value.message == "There is no adapter folder 'adapters/x'."
    Path("adapters/x").mkdir(parents=True)
    with pytest.raises(UsageError) as caught:
        find_adapter(Path("adapters/x"))
    assert caught.value.message == "'adapters/x' holds no adapter: adapter_config.json is missing."
    Path("adapters/x/adapter_config.json").write_text("{}")
    with pytest.raises(UsageError) as caught:
        find_adapter(Path("adapters/x"))
    assert caught.value.message == "'adapters/x' holds no adapter: adapter_model.safetensors is missing."


def test_newest_adapter_is_the_one_that_finished_last():
    with pytest.raises(UsageError) as caught:
        newest_adapter()
    assert (caught.value.message, caught.value.hint) == (
        "There is no finished run in 'adapters'.",
        "Train one: twin train --preset smollm2-135m",
    )
    finished("b", 2000)
    finished("a", 3000)
    finished("c", 1000)
    run_paths("unfinished").root.mkdir()
    assert newest_adapter().name == "a"


def test_all_runs_are_those_that_have_learned():
    finished("b", 2000)
    write_json(run_paths("c").record, {})
    (run_paths("a").checkpoints / "checkpoint-5").mkdir(parents=True)
    bind_checkpoints(run_paths("at-once"), None, {})  # stopped before the first checkpoint
    run_paths("empty").root.mkdir()
    assert [paths.name for paths in runs.all_runs()] == ["a", "b", "c"]
    assert [runs.has_checkpoints(paths) for paths in runs.all_runs()] == [True, False, False]


def test_the_newest_whole_checkpoint_is_found_and_a_wrong_one_refused():
    paths = run_paths("mine")
    assert find_checkpoint(None, paths) is None
    with pytest.raises(UsageError, match="There is no checkpoint in 'adapters/mine/checkpoints' to resume from"):
        find_checkpoint("auto", paths)
    for number in (9, 10, 11):
        (paths.checkpoints / f"checkpoint-{number}").mkdir(parents=True)
    for number in (9, 10):  # 11 was being written
        (paths.checkpoints / f"checkpoint-{number}" / "trainer_state.json").write_text("{}")
    assert find_checkpoint("auto", paths) == paths.checkpoints / "checkpoint-10"
    assert find_checkpoint(str(paths.checkpoints / "checkpoint-9"), paths) == paths.checkpoints / "checkpoint-9"
    with pytest.raises(UsageError, match="'nowhere' is no checkpoint"):
        find_checkpoint("nowhere", paths)


def test_a_checkpoint_of_something_else_is_refused_by_name():
    paths = run_paths("mine")
    job = {"lora_r": 4, "learned_file": {"sha256": "a"}}
    bind_checkpoints(paths, None, job)
    assert os.name == "nt" or paths.checkpoints.stat().st_mode & 0o777 == 0o700
    checkpoint = paths.checkpoints / "checkpoint-3"
    checkpoint.mkdir()
    bind_checkpoints(paths, checkpoint, job)
    with pytest.raises(UsageError, match=r"'adapters/mine/checkpoints/checkpoint-3' was made with another lora r\."):
        bind_checkpoints(paths, checkpoint, job | {"lora_r": 8})
    with pytest.raises(UsageError, match="was made with another learned file"):
        bind_checkpoints(paths, checkpoint, job | {"learned_file": {"sha256": "b"}})
    assert matching_checkpoint(paths, job) is None  # none is whole
    (checkpoint / "trainer_state.json").write_text("{}")
    assert matching_checkpoint(paths, job) == checkpoint
    assert matching_checkpoint(paths, job | {"lora_r": 8}) is None
    bind_checkpoints(paths, None, job)
    assert not checkpoint.exists()


def test_a_gguf_is_current_only_as_it_was_made():
    paths = finished("mine", 1000)
    file = paths.gguf("q8_0")
    file.write_bytes(b"new model")
    made = {"adapter": adapter_digests(paths), "sha256": file_digest(file)}
    write_json(paths.gguf_record("q8_0"), made)
    assert current_gguf(paths, "q8_0") == file_digest(paths.gguf("q8_0"))
    file.write_bytes(b"old model")  # as long as the other, as all of one base are
    assert current_gguf(paths, "q8_0") is None
    file.write_bytes(b"new model")
    paths.adapter_weights.write_bytes(b"x")
    assert current_gguf(paths, "q8_0") is None


@pytest.mark.parametrize("models", [5, "mine", [5], [{"model": "mine"}], [{"model": 1, "host": "h"}]])
def test_a_list_of_models_that_is_none(models):
    paths = runs.run_paths("mine")
    write_json(paths.models, {"models": models})
    with pytest.raises(UsageError, match=r"^'adapters/mine/models\.json' is no list of models\.$"):
        runs.registered_models(paths)
