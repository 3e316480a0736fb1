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
    seal_checkpoint,
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
    bind_checkpoints(run_paths("at-once"), None, {}, dict)  # stopped before the first checkpoint
    run_paths("empty").root.mkdir()
    assert [paths.name for paths in runs.all_runs()] == ["a", "b", "c"]
    assert [runs.has_checkpoints(paths) for paths in runs.all_runs()] == [True, False, False]


def checkpoint_of(paths, step):
    folder = paths.checkpoints / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in ("optimizer.pt", "trainer_state.json"):
        (folder / name).write_text("{}")
    return folder


def test_the_newest_whole_checkpoint_is_found_and_a_wrong_one_refused():
    paths = run_paths("mine")
    assert find_checkpoint(None, paths) is None
    with pytest.raises(UsageError, match="There is no checkpoint in 'adapters/mine/checkpoints' to resume from"):
        find_checkpoint("auto", paths)
    nine, ten, _eleven = (checkpoint_of(paths, step) for step in (9, 10, 11))  # 11 was being written
    (paths.checkpoints / "checkpoint-x").mkdir()
    for folder in (nine, ten):
        seal_checkpoint(folder)
    assert find_checkpoint("auto", paths) == ten
    assert find_checkpoint(str(nine), paths) == nine
    with pytest.raises(UsageError, match="'nowhere' is no checkpoint"):
        find_checkpoint("nowhere", paths)
    (ten / "optimizer.pt").write_text("[]")
    assert find_checkpoint("auto", paths) == nine
    with pytest.raises(UsageError, match=r"checkpoint-10' is no whole checkpoint: its 'optimizer\.pt' is not as"):
        find_checkpoint(str(ten), paths)
    (nine / "trainer_state.json").unlink()
    with pytest.raises(UsageError, match="There is no checkpoint in"):
        find_checkpoint("auto", paths)


def test_a_checkpoint_of_something_else_is_refused_by_name():
    paths = run_paths("mine")
    job = {"preset": "p", "lora_r": 4, "learned_file": {"sha256": "a"}}
    begun = {"threads": 2}
    assert bind_checkpoints(paths, None, job, lambda: begun) == begun
    assert os.name == "nt" or paths.checkpoints.stat().st_mode & 0o777 == 0o700
    checkpoint = checkpoint_of(paths, 3)
    assert bind_checkpoints(paths, checkpoint, job, dict) == begun  # of the run that was begun, not of today
    for key, value, said in (
        ("preset", "q", r"another preset \(p, and here q\)\."),
        ("lora_r", 8, r"another lora r \(4, and here 8\)\."),
        ("learned_file", {"sha256": "b"}, r"another learned file\."),
    ):
        with pytest.raises(UsageError, match=rf"'adapters/mine/checkpoints/checkpoint-3' was made with {said}"):
            bind_checkpoints(paths, checkpoint, job | {key: value}, dict)
    assert matching_checkpoint(paths, job) is None  # none is whole
    seal_checkpoint(checkpoint)
    assert matching_checkpoint(paths, job) == checkpoint
    assert matching_checkpoint(paths, job | {"lora_r": 8}) is None
    bind_checkpoints(paths, None, job, dict)
    assert not checkpoint.exists()


def test_only_what_is_gone_on_from_stays():
    paths, other = run_paths("mine"), run_paths("other")
    for run, job in ((paths, {"lora_r": 4}), (other, {"lora_r": 8})):
        bind_checkpoints(run, None, job, dict)
    checkpoint = checkpoint_of(paths, 3)
    later = checkpoint_of(paths, 4)
    half = paths.checkpoints / ".checkpoint.1.x.partial"
    half.mkdir()
    bind_checkpoints(paths, checkpoint, {"lora_r": 4}, dict)
    assert checkpoint.exists()
    assert not later.exists()
    assert not half.exists()
    # Another run's: what lay here is of something else, and would pass for it.
    bind_checkpoints(paths, checkpoint_of(other, 2), {"lora_r": 8}, dict)
    assert not checkpoint.exists()
    with pytest.raises(UsageError, match="so nothing says what 'elsewhere/checkpoint-2' was made of"):
        bind_checkpoints(paths, Path("elsewhere/checkpoint-2"), {}, dict)


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
