"""Paths of a run, atomic files, fingerprints, locks."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin import runs
from twin.errors import MachineError, StepError, UsageError
from twin.runs import (
    DatasetPaths,
    RunPaths,
    adapter_digests,
    atomic_write,
    bind_checkpoints,
    cache_dir,
    exclusive,
    file_digest,
    find_adapter,
    find_checkpoint,
    fingerprint,
    gguf_is_current,
    need_disk,
    newest_adapter,
    read_json,
    run_paths,
    scratch_dir,
    write_json,
    write_text,
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


def test_a_written_file_is_whole_private_and_alone():
    write_text(Path("deep/er/file.txt"), "zwei\r\nZeilen é\n")
    target = Path("deep/er/file.txt")
    assert target.read_bytes() == "zwei\r\nZeilen é\n".encode()
    assert target.stat().st_mode & 0o777 == 0o600
    assert list(target.parent.iterdir()) == [target]


def test_a_failed_write_leaves_the_old_file_and_no_trace():
    target = Path("file.txt")
    write_text(target, "old")
    with pytest.raises(KeyboardInterrupt), atomic_write(target) as handle:
        handle.write(b"half")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert list(Path().iterdir()) == [target]


def test_writing_over_a_folder_or_below_a_file():
    Path("folder").mkdir()
    with pytest.raises(UsageError, match="'folder' is a folder where a file was expected"):
        write_text(Path("folder"), "x")
    Path("file").write_text("x")
    with pytest.raises(UsageError, match="a file stands where a folder is needed"):
        write_text(Path("file/below"), "x")
    assert sorted(path.name for path in Path().iterdir()) == ["file", "folder"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_writing_without_permission():
    Path("locked").mkdir()
    Path("locked").chmod(0o500)
    with pytest.raises(UsageError, match="No permission to write 'locked/x'"):
        write_text(Path("locked/x"), "x")


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_json_comes_back(value):
    write_json(Path("value.json"), value)
    assert read_json(Path("value.json")) == value


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "'x.json' is not JSON: Input is a zero-length, empty document: line 1 column 1 (char 0)."),
        (b'{"a": ', "'x.json' is not JSON: unexpected end of data: line 1 column 7 (char 6)."),
        (b"[1]", "'x.json' should hold a JSON object."),
        (
            b'{"a": "caf\xe9"}',
            "'x.json' is not JSON: str is not valid UTF-8: surrogates not allowed: line 1 column 1 (char 0).",
        ),
    ],
)
def test_a_broken_json(data, message):
    Path("x.json").write_bytes(data)
    with pytest.raises(UsageError) as caught:
        read_json(Path("x.json"))
    assert (caught.value.message, caught.value.hint) == (message, "Make it again, or restore it from a backup.")


def test_a_missing_json():
    with pytest.raises(UsageError, match=r"'x\.json' does not exist\."):
        read_json(Path("x.json"))


def test_scratch_is_gone_whatever_happens():
    with pytest.raises(ZeroDivisionError), scratch_dir(Path("out/run")) as scratch:
        assert scratch.parent == Path("out")
        (scratch / "file").write_text("x")
        raise ZeroDivisionError
    assert list(Path("out").iterdir()) == []


def test_two_processes_never_hold_one_folder():
    other = "import sys; from pathlib import Path; from twin.runs import exclusive\nwith exclusive(Path('run')): pass"

    def attempt():
        return subprocess.run([sys.executable, "-c", other], capture_output=True, text=True, check=False)

    with exclusive(Path("run")):
        refused = attempt()
    assert refused.returncode == 1
    assert "StepError: Another twin is working in 'run'." in refused.stderr
    assert attempt().returncode == 0
    with pytest.raises(ZeroDivisionError), exclusive(Path("run")):
        raise ZeroDivisionError
    assert attempt().returncode == 0


def test_exclusive_within_one_process():
    with exclusive(Path("run")), pytest.raises(StepError) as caught, exclusive(Path("run")):
        pass
    assert caught.value.hint == "Wait for it, or choose another name or --output."


def test_file_digest():
    Path("x").write_bytes(b"abc" * 100_000)
    assert file_digest(Path("x")) == hashlib.sha256(b"abc" * 100_000).hexdigest()
    with pytest.raises(UsageError, match="'no' does not exist"):
        file_digest(Path("no"))


def test_fingerprint_depends_on_all_and_on_nothing_else():
    Path("brain/sub").mkdir(parents=True)
    Path("brain/sub/a.txt").write_text("a")
    Path("one.txt").write_text("1")
    files = [Path("brain"), Path("one.txt")]
    first = fingerprint({"x": 1, "path": Path("p")}, files)
    assert fingerprint({"path": Path("p"), "x": 1}, reversed(files)) == first
    os.utime("one.txt", (1, 1))
    assert fingerprint({"x": 1, "path": Path("p")}, files) == first
    others = {fingerprint({"x": 2, "path": Path("p")}, files), fingerprint({"x": 1, "path": Path("p")}, files[:1])}
    Path("brain/sub/a.txt").write_text("b")
    others.add(fingerprint({"x": 1, "path": Path("p")}, files))
    Path("brain/sub/a.txt").rename("brain/sub/b.txt")
    others.add(fingerprint({"x": 1, "path": Path("p")}, files))
    assert len(others | {first}) == 5


def test_too_little_disk_is_said_before_the_work():
    need_disk(Path("not/yet/there"), 1, "A test")
    with pytest.raises(MachineError) as caught:
        need_disk(Path("not/yet/there"), 10**18, "A test")
    assert caught.value.message.startswith("A test needs 1000000000.0 GB of disk and '")
    assert caught.value.hint == "Free some space, or use another folder with --output."


def test_what_a_killed_process_left_is_taken_away_and_a_living_ones_stays():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead, living = Path(f".a.json.{gone.pid}.x.partial"), Path(f".a.json.{os.getppid()}.x.partial")
    dead_folder, other = Path(f".run.{gone.pid}.y.partial"), Path(f".a.json.{gone.pid}.{os.getppid()}.x.partial")
    for file in (dead, living, other):  # the last one is of a file whose name goes on with a number
        file.write_text("half")
    (dead_folder / "deep").mkdir(parents=True)
    write_json(Path("a.json"), {})
    with scratch_dir(Path("run")):
        assert sorted(path.name for path in Path().glob(".run.*")) != [dead_folder.name]
        assert not dead_folder.exists()
    assert (dead.exists(), living.exists(), other.exists()) == (False, True, True)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_killed_writer_leaves_the_old_file_and_the_next_takes_its_half_away():
    write_text(Path("a.txt"), "old")
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom twin.runs import atomic_write\n"
        "with atomic_write(Path('a.txt')) as handle:\n"
        "    handle.write(b'new'); handle.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert Path("a.txt").read_text() == "old"
    assert len(list(Path().glob(".a.txt.*.partial"))) == 1
    write_text(Path("a.txt"), "newer")
    assert [path.name for path in Path().iterdir()] == ["a.txt"]


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
    checkpoint = paths.checkpoints / "checkpoint-3"
    checkpoint.mkdir()
    bind_checkpoints(paths, checkpoint, job)
    with pytest.raises(UsageError, match=r"'adapters/mine/checkpoints/checkpoint-3' was made with another lora r\."):
        bind_checkpoints(paths, checkpoint, job | {"lora_r": 8})
    with pytest.raises(UsageError, match="was made with another learned file"):
        bind_checkpoints(paths, checkpoint, job | {"learned_file": {"sha256": "b"}})
    bind_checkpoints(paths, None, job)
    assert not checkpoint.exists()


def test_a_gguf_is_current_only_as_it_was_made():
    paths = finished("mine", 1000)
    file = paths.gguf("q8_0")
    file.write_bytes(b"new model")
    made = {"adapter": adapter_digests(paths), "sha256": file_digest(file)}
    write_json(paths.gguf_record("q8_0"), made)
    assert gguf_is_current(paths, "q8_0")
    file.write_bytes(b"old model")  # as long as the other, as all of one base are
    assert not gguf_is_current(paths, "q8_0")
    file.write_bytes(b"new model")
    paths.adapter_weights.write_bytes(b"x")
    assert not gguf_is_current(paths, "q8_0")
