"""Files that are whole or absent, locks, digests, what a killed process left."""

import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.errors import MachineError, StepError, UsageError
from twin.files import (
    atomic_write,
    exclusive,
    file_digest,
    fingerprint,
    need_disk,
    no_empty_parents,
    read_json,
    scratch_dir,
    write_json,
    write_text,
)


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


def test_a_file_that_is_made_after_another_has_its_mode():
    Path("like").write_text("x")
    Path("like").chmod(0o640)
    os.utime("like", (1, 1))
    with atomic_write(Path("new"), like=Path("like")) as handle:
        handle.write(b"y")
        assert stat.S_IMODE(Path(handle.name).stat().st_mode) == 0o600  # nobody else reads it before it is whole
    assert stat.S_IMODE(Path("new").stat().st_mode) == 0o640
    assert Path("new").stat().st_mtime > 1


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


def test_folders_made_for_nothing_are_removed_and_no_others():
    Path("there").mkdir()
    with pytest.raises(ZeroDivisionError), no_empty_parents(Path("there/a/b/run")):
        Path("there/a/b").mkdir(parents=True)
        raise ZeroDivisionError
    assert list(Path("there").iterdir()) == []
    with no_empty_parents(Path("there/a/b/run")):
        Path("there/a/b").mkdir(parents=True)
        Path("there/a/file").touch()
    assert [path.name for path in Path("there/a").iterdir()] == ["file"]


def test_two_processes_never_hold_one_folder():
    other = "import sys; from pathlib import Path; from twin.files import exclusive\nwith exclusive(Path('run')): pass"

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
        "import os, signal\nfrom pathlib import Path\nfrom twin.files import atomic_write\n"
        "with atomic_write(Path('a.txt')) as handle:\n"
        "    handle.write(b'new'); handle.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert Path("a.txt").read_text() == "old"
    assert len(list(Path().glob(".a.txt.*.partial"))) == 1
    write_text(Path("a.txt"), "newer")
    assert [path.name for path in Path().iterdir()] == ["a.txt"]


@pytest.mark.skipif(sys.platform != "linux", reason="file names are Unicode elsewhere")
def test_a_name_that_is_no_unicode_has_a_fingerprint():
    Path("brain").mkdir()
    file = Path("brain") / os.fsdecode(b"caf\xe9.txt")
    file.write_text("x")
    before = fingerprint({}, [Path("brain")])
    file.rename(Path("brain") / os.fsdecode(b"caf\xe8.txt"))
    assert fingerprint({}, [Path("brain")]) != before


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
def test_a_folder_that_is_made_is_its_owners_alone():
    before = os.umask(0)
    try:
        with exclusive(Path("new/data")):
            assert Path("new/data").stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)
