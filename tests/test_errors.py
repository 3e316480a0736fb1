"""Exit codes, nearest names, and the file system's complaints as sentences."""

import errno
import os
import pickle
import signal
from pathlib import Path

import pytest

from twin import errors
from twin.errors import (
    GateError,
    MachineError,
    StepError,
    StoppedError,
    TwinError,
    UsageError,
    file_errors,
    first_line,
    nearest,
)


def test_exit_codes_are_the_contract():
    codes = {kind.__name__: kind.exit_code for kind in (UsageError, MachineError, StepError, GateError)}
    assert codes == {"UsageError": 2, "MachineError": 3, "StepError": 4, "GateError": 5}
    assert (errors.EXIT_OK, errors.EXIT_BUG, errors.EXIT_INTERRUPTED) == (0, 1, 130)
    assert errors.EXIT_TERMINATED == 128 + signal.SIGTERM


def test_an_error_is_a_sentence_and_a_hint():
    error = TwinError("It broke.", "Mend it.")
    assert (str(error), error.message, error.hint, TwinError("x").hint) == ("It broke.", "It broke.", "Mend it.", "")


def test_a_stopped_step_travels_with_its_exit_code():
    stopped = pickle.loads(pickle.dumps(StoppedError("Done so far.", "Go on.", errors.EXIT_TERMINATED)))  # noqa: S301
    assert (stopped.message, stopped.hint, stopped.exit_code) == ("Done so far.", "Go on.", 143)
    assert StoppedError("x").exit_code == 130


def test_nearest_names_look_alikes_else_lists_all():
    assert nearest("phi3-mini", ["phi-3-mini", "gemma-2b"]) == "Did you mean 'phi-3-mini'?"
    assert nearest("seeds", ["seed", "speed", "zebra"]) == "Did you mean 'seed' or 'speed'?"
    assert nearest("zzz", ["b", "a"]) == "Known: a, b."
    assert nearest("sam", ["Jo", "Sam Lee"]) == "Did you mean 'Sam Lee'?"


def test_the_first_line_of_an_error_is_a_sentence_without_its_stop():
    assert first_line(ValueError("\n no such layer.\n  in file x\n")) == "no such layer"
    assert first_line(ValueError(b"lexical error: \xff.\n  {here}")) == "lexical error: \ufffd"
    assert first_line(OSError(2, "No such file")) == "[Errno 2] No such file"
    assert [first_line(error) for error in (ValueError(), ValueError(" \n"), ValueError(b""))] == ["ValueError"] * 3


@pytest.mark.parametrize(
    ("raised", "kind", "message", "hint"),
    [
        (FileNotFoundError(), UsageError, "'a b.txt' does not exist.", "Check the path."),
        (
            IsADirectoryError(),
            UsageError,
            "'a b.txt' is a folder where a file was expected.",
            "Name a file inside it.",
        ),
        (
            NotADirectoryError(),
            UsageError,
            "'a b.txt' can't be used: a file stands where a folder is needed.",
            "Move it away.",
        ),
        (PermissionError(), UsageError, "No permission to read 'a b.txt'.", "See its owner and mode: ls -l 'a b.txt'"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            MachineError,
            "The disk is full: could not read 'a b.txt'.",
            "Free some space and run the same command again.",
        ),
        (
            OSError(errno.EIO, "Input/output error"),
            MachineError,
            "Could not read 'a b.txt': Input/output error.",
            "Check the disk and the path.",
        ),
        (
            UnicodeDecodeError("utf-8", b"caf\xe9", 3, 4, "unexpected end of data"),
            UsageError,
            "'a b.txt' is not UTF-8 text (byte 3 can't be decoded).",
            "Save it again as UTF-8; in most editors: Save as, Encoding, UTF-8.",
        ),
    ],
)
def test_file_errors_become_sentences(raised, kind, message, hint):
    with pytest.raises(kind) as caught, file_errors(Path("a b.txt"), "read"):
        raise raised
    assert (caught.value.message, caught.value.hint) == (message, hint)
    assert caught.value.__suppress_context__


def test_file_errors_leaves_bugs_and_own_errors_alone():
    with pytest.raises(ZeroDivisionError), file_errors(Path("x"), "read"):
        raise ZeroDivisionError
    own = StepError("mine")
    with pytest.raises(StepError) as caught, file_errors(Path("x"), "read"):
        raise own
    assert caught.value is own


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_really_full_disk():
    full = Path("/dev/full")
    with pytest.raises(MachineError) as caught, file_errors(full, "write"), full.open("wb", buffering=0) as handle:
        handle.write(b"x")
    assert caught.value.message == "The disk is full: could not write '/dev/full'."


def test_real_missing_folder_and_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="does not exist"), file_errors(tmp_path / "no", "read"):
        os.stat(tmp_path / "no")  # noqa: PTH116 - the plain call is the point
    with pytest.raises(UsageError, match="a file stands where a folder is needed"), file_errors(tmp_path, "write"):
        (tmp_path / "file" / "below").mkdir()
