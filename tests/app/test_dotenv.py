"""The app's ``.env``: what is set and what stays, byte by byte, with python-dotenv as the reader that decides."""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from dotenv import dotenv_values
from dotenv.parser import parse_stream
from hypothesis import given, settings
from hypothesis import strategies as st

from twin.app.dotenv import MAX_BYTES, app_values, assign, foresee, write
from twin.errors import MachineError, TwinError, UsageError
from twin.results import AppEnv

MODEL, URL = "chirag-v1", "http://127.0.0.1:11434"
VALUES = app_values(MODEL, URL)
KEYS = tuple(VALUES)
HERE = Path(".env")
ONE = {"OLLAMA_MODEL": MODEL}


def read(content: bytes) -> dict[str, str | None]:
    """What an app reads that lets python-dotenv open the file."""
    Path("read").write_bytes(content)
    return dotenv_values("read", interpolate=False, encoding="utf-8")


# --- bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"OLLAMA_MODEL=llama3\n", b"OLLAMA_MODEL=chirag-v1\n"),
        (b"A=1\nOLLAMA_MODEL=llama3\nB=2", b"A=1\nOLLAMA_MODEL=chirag-v1\nB=2"),
        (b"OLLAMA_MODEL=llama3", b"OLLAMA_MODEL=chirag-v1"),
        (b"export OLLAMA_MODEL=llama3\n", b"export OLLAMA_MODEL=chirag-v1\n"),
        (b" \t export\t OLLAMA_MODEL =  llama3 \n", b" \t export\t OLLAMA_MODEL =  chirag-v1 \n"),
        (b"OLLAMA_MODEL='a b'\n", b"OLLAMA_MODEL='chirag-v1'\n"),
        (b'OLLAMA_MODEL="a \\" b"  # c\n', b'OLLAMA_MODEL="chirag-v1"  # c\n'),
        (b"OLLAMA_MODEL='it\\'s'\n", b"OLLAMA_MODEL='chirag-v1'\n"),
        (b'OLLAMA_MODEL=""\n', b'OLLAMA_MODEL="chirag-v1"\n'),
        (b"OLLAMA_MODEL='two\nlines'#c\n", b"OLLAMA_MODEL='chirag-v1'#c\n"),
        (b"OLLAMA_MODEL=llama3 # the big one\n", b"OLLAMA_MODEL=chirag-v1 # the big one\n"),
        (b"OLLAMA_MODEL=a#b\t#c # d\n", b"OLLAMA_MODEL=chirag-v1\t#c # d\n"),
        (b"OLLAMA_MODEL=#no comment\n", b"OLLAMA_MODEL=chirag-v1\n"),
        (b"OLLAMA_MODEL= # nothing\n", b"OLLAMA_MODEL=chirag-v1 # nothing\n"),
        (b"OLLAMA_MODEL=\nB=2\n", b"OLLAMA_MODEL=chirag-v1\nB=2\n"),
        (b"OLLAMA_MODEL =   \nB=2\n", b"OLLAMA_MODEL =   chirag-v1\nB=2\n"),
        (b"OLLAMA_MODEL\nB=2\n", b"OLLAMA_MODEL=chirag-v1\nB=2\n"),
        (b"export OLLAMA_MODEL # c\n", b"export OLLAMA_MODEL=chirag-v1 # c\n"),
        (b"OLLAMA_MODEL#c\n", b"OLLAMA_MODEL=chirag-v1 #c\n"),
        (b"'OLLAMA_MODEL'=llama3\n", b"'OLLAMA_MODEL'=chirag-v1\n"),
        (b"A=1\r\nOLLAMA_MODEL=x\r\n\r\nB=2\r\n", b"A=1\r\nOLLAMA_MODEL=chirag-v1\r\n\r\nB=2\r\n"),
        (b"A=1\rOLLAMA_MODEL=x\rB=2\r", b"A=1\rOLLAMA_MODEL=chirag-v1\rB=2\r"),
        (b"\xef\xbb\xbfOLLAMA_MODEL=x\n", b"\xef\xbb\xbfOLLAMA_MODEL=chirag-v1\n"),
        (b"OLLAMA_MODEL=a\nB=2\nOLLAMA_MODEL=b\n", b"OLLAMA_MODEL=a\nB=2\nOLLAMA_MODEL=chirag-v1\n"),
        # What is none of ours stays, and a key that is missing comes at the end.
        (b"", b"OLLAMA_MODEL=chirag-v1\n"),
        (b"A=1", b"A=1\nOLLAMA_MODEL=chirag-v1\n"),
        (b"A=1\r\nB=2", b"A=1\r\nB=2\r\nOLLAMA_MODEL=chirag-v1\r\n"),
        (b"# OLLAMA_MODEL=x\n", b"# OLLAMA_MODEL=x\nOLLAMA_MODEL=chirag-v1\n"),
        (b"MY_OLLAMA_MODEL=x\n", b"MY_OLLAMA_MODEL=x\nOLLAMA_MODEL=chirag-v1\n"),
        (b"A='1\nOLLAMA_MODEL=x\n'\n", b"A='1\nOLLAMA_MODEL=x\n'\nOLLAMA_MODEL=chirag-v1\n"),
        (b"A=${OLLAMA_MODEL}\n", b"A=${OLLAMA_MODEL}\nOLLAMA_MODEL=chirag-v1\n"),
        (b"some words\n", b"some words\nOLLAMA_MODEL=chirag-v1\n"),
        (b'KEY="half\n', b'KEY="half\nOLLAMA_MODEL=chirag-v1\n'),
    ],
)
def test_the_value_alone_is_replaced(before: bytes, after: bytes) -> None:
    edited = assign(before, ONE, HERE)
    assert edited.content == after
    assert edited.changed == ("OLLAMA_MODEL",)
    assert read(after) == {**read(before), **ONE}
    again = assign(after, ONE, HERE)
    assert (again.content, again.changed) == (after, ())


def test_all_three_in_the_order_of_the_app() -> None:
    edited = assign(b"OLLAMA_MODEL=chirag-v1\nKEY=secret\nLLM_PROVIDER=gemini # or ollama\n", VALUES, HERE)
    assert edited.content == (
        b"OLLAMA_MODEL=chirag-v1\nKEY=secret\nLLM_PROVIDER=ollama # or ollama\nOLLAMA_BASE_URL=http://127.0.0.1:11434\n"
    )
    assert edited.changed == ("LLM_PROVIDER", "OLLAMA_BASE_URL")
    assert edited.repeated == ()


def test_of_two_lines_the_last_is_set_and_told() -> None:
    edited = assign(b"OLLAMA_MODEL=chirag-v1\nOLLAMA_MODEL=x\n", ONE, HERE)
    assert edited.content == b"OLLAMA_MODEL=chirag-v1\nOLLAMA_MODEL=chirag-v1\n"
    assert edited.repeated == ("OLLAMA_MODEL",)
    # The control: the last says so already, so the first, which nothing reads, stays.
    kept = assign(b"OLLAMA_MODEL=x\nOLLAMA_MODEL=chirag-v1\n", ONE, HERE)
    assert (kept.changed, kept.repeated) == ((), ("OLLAMA_MODEL",))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"A=1\n\n OLLAMA_MODEL: secret\n", 3),
        (b"OLLAMA_MODEL='secret\n", 1),
        (b'A=1\r\nOLLAMA_MODEL="secret" words\r\n', 2),
        (b'KEY="secret\nOLLAMA_MODEL="x"\n', 1),  # the quote of KEY ends behind OLLAMA_MODEL=
    ],
)
def test_a_line_that_readers_may_take_in_two_ways_is_refused(content: bytes, line: int) -> None:
    with pytest.raises(UsageError) as caught:
        assign(content, ONE, HERE)
    assert caught.value.message == (
        f"Line {line} of '.env' can't be read as KEY=value, and OLLAMA_MODEL is in it or in what follows."
    )
    assert caught.value.hint == "Write it as OLLAMA_MODEL=value there, and see that each quote has its pair."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"KEY=caf\xe9\n", "'.env' is not UTF-8 text (byte 7 can't be decoded)."),
        ("KEY=secret\n".encode("utf-16"), "'.env' is not UTF-8 text (byte 0 can't be decoded)."),
        ("KEY=secret\n".encode("utf-16-le"), "'.env' is no text: it holds NUL bytes."),
    ],
)
def test_what_is_no_text_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        assign(content, VALUES, HERE)
    assert caught.value.message == message
    assert "UTF-8" in caught.value.hint


@pytest.mark.parametrize(
    "url", ["http://box/$HOME", "http://box/it's", 'http://box/"', "http://box/`id`", "a\nB=1", ""]
)
def test_a_value_that_needs_quotes_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match=r"can't stand in an \.env as OLLAMA_BASE_URL"):
        assign(b"", app_values(MODEL, url), HERE)
    assert assign(b"", app_values("me/wren:v2", "http://[::1]:9/a_b/~c"), HERE).changed == KEYS


BLANKS = st.sampled_from(["", " ", "  ", "\t", "\x0b", "\u00a0"])
NAMES = st.sampled_from([*KEYS, "SECRET", "MY_OLLAMA_MODEL", "ollama_model", "É"])
COMMENTS = st.sampled_from(["", " # a comment", "\t#'\"", "#tight", " #"])
BARE = st.text(st.characters(exclude_characters="\r\n'\"#\0", exclude_categories=["Cs"]), max_size=8)
INNER = st.lists(
    st.sampled_from(["a", " ", "#", "\n", "\r\n", "OLLAMA_MODEL=x", "\\\\", "\\n", "${SECRET}", "é", "="]), max_size=6
).map("".join)
QUOTED = st.builds(lambda mark, inner: f"{mark}{inner}{mark}", st.sampled_from(["'", '"']), INNER)
ASSIGNED = st.builds(
    lambda lead, export, key, before, after, value, comment: f"{lead}{export}{key}{before}={after}{value}{comment}",
    BLANKS, st.sampled_from(["", "export "]), NAMES, BLANKS, BLANKS, BARE | QUOTED, COMMENTS,
)  # fmt: skip
OTHER = st.builds("{}{}".format, NAMES, COMMENTS) | st.builds("# {}".format, BARE) | BLANKS | BARE
ENDS = st.sampled_from(["\n", "\r\n", "\r", "\n\n"])
FILES = st.builds(
    lambda bom, lines, tail: (bom + "".join(line + end for line, end in lines) + tail).encode(),
    st.sampled_from(["", "\ufeff"]),
    st.lists(st.tuples(ASSIGNED | OTHER, ENDS), max_size=8),
    ASSIGNED | OTHER,
)
WILD = st.lists(
    st.sampled_from([*KEYS, "K", "=", "'", '"', "#", "\\", " ", "\n", "\r", "export ", "x", "\u2028", "\x0b"]),
    max_size=24,
).map(lambda parts: "".join(parts).encode())


def others(content: bytes) -> list[str]:
    """The statements that are none of ours; blanks before one count to it, and another may stand there now."""
    text = content.decode("utf-8-sig")
    found = (one.original.string.strip() for one in parse_stream(io.StringIO(text, newline="")) if one.key not in KEYS)
    return [one for one in found if one]


@settings(max_examples=300)
@given(FILES | WILD)
def test_an_app_reads_the_three_values_and_all_else_as_before(content: bytes) -> None:
    try:
        edited = assign(content, VALUES, HERE)
    except UsageError as error:
        assert re.match(r"Line \d+ of '\.env' can't be read as KEY=value", error.message)
        return
    assert read(edited.content) == {**read(content), **VALUES}
    assert edited.changed == tuple(key for key in KEYS if read(content).get(key) != VALUES[key])
    assert others(edited.content) == others(content)
    assert edited.content.startswith(content) or read(content).keys() & set(KEYS)
    assert assign(edited.content, VALUES, HERE).content == edited.content


@settings(max_examples=300)
@given(FILES)
def test_the_old_values_bring_back_the_old_bytes(content: bytes) -> None:
    """Whatever else an edit changed, another edit would not undo it."""
    everything = b"".join(f"{key}=old\n".encode() for key in KEYS) + content
    before = read(everything)
    plain = {key: value for key in KEYS if (value := before[key]) and re.fullmatch("[A-Za-z0-9_]+", value)}
    try:
        edited = assign(everything, {key: VALUES[key] for key in plain}, HERE)
    except UsageError:
        return
    assert assign(edited.content, plain, HERE).content == everything


# --- files -----------------------------------------------------------------------------------------------------------


def env(content: bytes = b"KEY=secret\n", mode: int = 0o640, name: str = ".env") -> Path:
    path = Path(name)
    path.write_bytes(content)
    path.chmod(mode)
    return path


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o200, 0o777])
def test_mode_is_kept_and_the_copy_has_it_too(mode: int) -> None:
    path = env(mode=mode)
    foreseen = foresee(path, MODEL, URL)
    assert foreseen == AppEnv(str(path.absolute()), KEYS, (), None)
    assert [one.name for one in Path().iterdir()] == [".env"]
    done = write(path, MODEL, URL)
    assert done == AppEnv(str(path.absolute()), KEYS, (), str(path.absolute()) + ".bak")
    assert (mode_of(path), mode_of(Path(".env.bak"))) == (mode, mode)
    assert Path(".env.bak").read_bytes() == b"KEY=secret\n"
    assert read(path.read_bytes()) == {"KEY": "secret", **VALUES}


def test_the_second_time_nothing_is_written() -> None:
    path = env()
    write(path, MODEL, URL)
    before = path.stat()
    assert write(path, MODEL, URL) == AppEnv(str(path.absolute()), (), (), None)
    assert path.stat() == before
    assert sorted(one.name for one in Path().iterdir()) == [".env", ".env.bak"]


def test_an_older_copy_stays() -> None:
    path = env()
    for number in (1, 2, 3):
        write(path, f"wren-v{number}", URL)
    assert Path(".env.bak").read_bytes() == b"KEY=secret\n"
    assert b"wren-v1" in Path(".env.2.bak").read_bytes()
    assert b"wren-v2" in Path(".env.3.bak").read_bytes()
    Path(".env.4.bak").symlink_to("nowhere")  # a name that is taken all the same
    assert write(path, MODEL, URL).backup == str(Path(".env.5.bak").absolute())


def test_a_link_stays_and_its_target_is_written() -> None:
    Path("secrets").mkdir()
    target = env(name="secrets/app.env")
    Path("one").symlink_to("secrets/app.env")
    Path(".env").symlink_to("one")
    done = write(Path(".env"), MODEL, URL)
    assert done.file == str(target.absolute())
    assert done.backup == str(target.absolute()) + ".bak"
    assert (os.readlink(".env"), os.readlink("one")) == ("one", "secrets/app.env")  # noqa: PTH115
    assert read(target.read_bytes()) == {"KEY": "secret", **VALUES}


def refused(path: Path, message: str, hint: str) -> None:
    """Assert that both say exactly this, and that no byte, name, mode or time changes."""

    def state() -> dict[str, tuple[int, int, int]]:
        found = {str(one): one.lstat() for one in sorted(Path().rglob("*"))}
        return {name: (one.st_mode, one.st_size, one.st_mtime_ns) for name, one in found.items()}

    before = state()
    for act in (foresee, write):
        with pytest.raises(UsageError) as caught:
            act(path, MODEL, URL)
        assert (caught.value.message, caught.value.hint) == (message, hint)
    assert state() == before


def test_what_is_not_there() -> None:
    refused(Path(".env"), "'.env' does not exist.", "Check the path.")
    Path("link").symlink_to("nowhere")
    refused(Path("link"), "'link' does not exist.", "Check the path.")


def test_a_link_to_itself() -> None:
    Path(".env").symlink_to(".env")
    with pytest.raises(MachineError, match=r"Could not read '\.env': Too many levels of symbolic links"):
        write(Path(".env"), MODEL, URL)


def test_a_folder_and_a_pipe() -> None:
    Path("folder").mkdir()
    refused(Path("folder"), "'folder' is a folder where a file was expected.", "Name a file inside it.")
    os.mkfifo("pipe")
    refused(Path("pipe"), "'pipe' is no regular file.", "Name the app's .env.")


def test_a_read_only_file() -> None:
    path = env(mode=0o444)
    refused(path, "'.env' is read-only.", f"Let its owner write it: chmod u+w '{path.absolute()}'")


def test_a_huge_file() -> None:
    path = env(b"#" * (MAX_BYTES + 1))
    refused(path, "'.env' has 262,145 bytes; an .env has 262,144 at most.", "Name the app's .env.")
    assert foresee(env(b"#" * MAX_BYTES), MODEL, URL).changed == KEYS


def test_a_file_of_two_names() -> None:
    path = env()
    Path("other").hardlink_to(path)
    refused(
        path,
        "'.env' has 2 names (hard links), and a new file can take only one of them.",
        "Make the others symbolic links, or set the values by hand.",
    )


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Work as a user who owns nothing here."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    groups = os.getgroups()
    os.setgroups([])
    os.setresgid(65534, 65534, 0)
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups(groups)


@pytest.fixture
def common(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that every user reaches."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o777)
        monkeypatch.chdir(folder)
        yield folder


def test_no_permission_on_the_folder(common: Path) -> None:
    path = env()
    os.chown(path, 65534, 65534)
    common.chmod(0o755)
    with as_nobody():
        refused(path, f"No permission to write in '{common}'.", f"See its owner and mode: ls -l '{common}'")
    common.chmod(0o777)  # the control
    with as_nobody():
        assert write(path, MODEL, URL).changed == KEYS


def test_no_permission_on_the_file(common: Path) -> None:
    path = env(mode=0o644)
    with as_nobody():
        refused(path, "No permission to write '.env'.", "See its owner and mode: ls -l '.env'")
        path_hidden = Path(".env")
    path.chmod(0o600)
    with as_nobody():
        refused(path_hidden, "No permission to read '.env'.", "See its owner and mode: ls -l '.env'")


def test_somebody_elses_file(common: Path) -> None:
    path = env(mode=0o666)
    with as_nobody():
        refused(
            path,
            "'.env' belongs to another user or group, who would lose it.",
            "Run twin as the user who owns it.",
        )


def test_root_leaves_the_file_to_its_owner(common: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    path = env(mode=0o600)
    os.chown(path, 65534, 65533)
    write(path, MODEL, URL)
    for one in (path, Path(".env.bak")):
        assert (one.stat().st_uid, one.stat().st_gid, mode_of(one)) == (65534, 65533, 0o600)


def test_a_full_disk_leaves_the_file_and_no_copy() -> None:
    disk = Path("small")
    disk.mkdir()
    with contextlib.suppress(OSError):
        command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            try:
                content = b"KEY=secret\n" + b"#" * 30_000
                path = env(content, name="small/.env")
                foresee(path, MODEL, URL)
                with pytest.raises(MachineError) as caught:
                    write(path, MODEL, URL)
                assert caught.value.message == f"The disk is full: could not write '{path.absolute()}'."
                assert path.read_bytes() == content
                assert [one.name for one in disk.iterdir()] == [".env"]
            finally:
                subprocess.run(["umount", str(disk)], check=True)
            return
    pytest.skip("no file system can be mounted here")


@pytest.mark.parametrize("content", [b"KEY=hunter2\n\xff", b"KEY=hunter2\nOLLAMA_MODEL: hunter2\n", b"hunter2\0"])
def test_no_message_shows_what_the_file_holds(content: bytes) -> None:
    with pytest.raises(TwinError) as caught:
        write(env(content), MODEL, URL)
    assert "hunter2" not in f"{caught.value.message} {caught.value.hint}"
