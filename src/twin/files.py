"""How files come to be: whole or not at all, one writer a folder, known by their digests."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import orjson
import psutil
from filelock import FileLock, Timeout

from twin.errors import MachineError, StepError, UsageError, file_errors

_PARTIAL = ".partial"


def sweep(path: Path) -> None:
    """Take away what killed processes left unfinished beside ``path``: half of a file, or a folder to work in.

    Raises:
        UsageError, MachineError: what the file system says, as a sentence.
    """
    whole_name = re.compile(re.escape(f".{path.name}.") + r"(\d+)\.[^.]+" + re.escape(_PARTIAL))
    with file_errors(path, "write"):
        for left in path.parent.glob(f".{glob.escape(path.name)}.*{_PARTIAL}"):
            owner = whole_name.fullmatch(left.name)  # '.a.*' also finds what belongs to 'a.2024'
            if owner and not psutil.pid_exists(int(owner[1])):
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def _partial_prefix(path: Path) -> str:
    """Return how names of what is unfinished beside ``path`` begin; what a killed process left there is taken away."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path)
    return f".{path.name}.{os.getpid()}."


def _take_after(like: Path, path: Path) -> None:
    """Give ``path`` the owner, mode and attributes of ``like``, and the time of now."""
    state = like.stat()
    if hasattr(os, "chown"):  # not on Windows
        os.chown(path, state.st_uid, state.st_gid)
    shutil.copystat(like, path)
    os.utime(path)  # what watches a file for changes looks at its time


@contextmanager
def atomic_write(path: Path, like: Path | None = None) -> Iterator[IO[bytes]]:
    """Open a temporary file beside ``path`` and rename it there when the block ends well; else leave no trace.

    Args:
        path: the file.
        like: a file whose owner, mode and attributes it gets; without one it is for its owner alone.

    Raises:
        UsageError, MachineError: what the file system says, as a sentence.
    """
    with file_errors(path, "write"):
        prefix = _partial_prefix(path)
        handle = tempfile.NamedTemporaryFile(  # noqa: SIM115 - it outlives a with block: renamed, not closed and gone
            dir=path.parent, prefix=prefix, suffix=_PARTIAL, delete=False
        )
        partial = Path(handle.name)
        try:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
            handle.close()
            if like is None:
                partial.chmod(0o600)
            else:
                _take_after(like, partial)
            partial.replace(path)
        except BaseException:
            with suppress(OSError):  # on a full disk closing fails too, for what is still in its buffer
                handle.close()
            partial.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    with atomic_write(path) as handle:
        handle.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS) + b"\n")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 with its own line ends, atomically."""
    with atomic_write(path) as handle:
        handle.write(text.encode("utf-8"))


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in ``path``.

    Raises:
        UsageError: unreadable, or not a JSON object.
    """
    with file_errors(path, "read"):
        data = path.read_bytes()
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise UsageError(f"'{path}' is not JSON: {error}.", "Make it again, or restore it from a backup.") from None
    if not isinstance(value, dict):
        raise UsageError(f"'{path}' should hold a JSON object.", "Make it again, or restore it from a backup.")
    return value


@contextmanager
def scratch_dir(beside: Path) -> Iterator[Path]:
    """Yield an empty folder next to ``beside`` (same disk), removed at the end whatever happens."""
    with file_errors(beside, "write"):
        prefix = _partial_prefix(beside)
        folder = Path(tempfile.mkdtemp(dir=beside.parent, prefix=prefix, suffix=_PARTIAL))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def no_empty_parents(path: Path) -> Iterator[None]:
    """Remove the folders above ``path`` that the block made and left empty: it failed, or wrote nothing."""
    missing = [folder for folder in path.parents if not os.path.lexists(folder)]  # the innermost first
    try:
        yield
    finally:
        for folder in missing:
            with suppress(OSError):  # not made, or not empty
                folder.rmdir()


@contextmanager
def exclusive(folder: Path, what: str = "step") -> Iterator[None]:
    """Hold ``folder`` for this process, so that two never write the same files.

    Args:
        folder: made where it is missing, for its owner alone.
        what: a ``run`` holds it beside its own steps.

    Raises:
        StepError: another process has it.
    """
    with file_errors(folder, "write"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = FileLock(folder / f".twin-{what}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise StepError(
                f"Another twin is working in '{folder}'.", "Wait for it, or choose another name or --output."
            ) from None
    try:
        yield
    finally:
        lock.release()  # The file stays: removing it would let a third process lock another file of that name.


def blocks(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a file, a megabyte at a time."""
    with file_errors(path, "read"), path.open("rb") as handle:
        while block := handle.read(1 << 20):
            yield block


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with file_errors(path, "read"), path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def fingerprint(settings: Mapping[str, Any], files: Iterable[Path]) -> str:
    """Return one SHA-256 over settings and the names and contents of files (folders: all files below)."""
    digest = hashlib.sha256(orjson.dumps(dict(settings), option=orjson.OPT_SORT_KEYS, default=str))
    for path in sorted(files):
        below = sorted(child for child in path.rglob("*") if child.is_file()) if path.is_dir() else [path]
        for file in below:
            # A file's name may be no Unicode, so its own bytes count.
            digest.update(b"\0" + os.fsencode(file.relative_to(path.parent)) + b"\0" + file_digest(file).encode())
    return digest.hexdigest()


def need_disk(folder: Path, needed_bytes: int, what: str) -> None:
    """Stop before a long step that would fill the disk.

    Raises:
        MachineError: less than ``needed_bytes`` free where ``folder`` will be.
    """
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed_bytes:
        raise MachineError(
            f"{what} needs {needed_bytes / 1e9:.1f} GB of disk and '{place}' has {free / 1e9:.1f} GB free.",
            "Free some space, or use another folder with --output.",
        )
