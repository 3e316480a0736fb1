r"""The app's ``.env``: three values are set in place, and every other byte stays.

    export OLLAMA_MODEL = "llama3"   # the big one
                           ^^^^^^ this alone is replaced

Not obvious: what is one assignment is python-dotenv's word, with which the app reads the file, so a line inside a
quoted value is none. Where a key stands twice the last one counts, there as in a shell: that one is set. The file holds
the app's secrets, so no message shows more of it than the names of our three keys.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from itertools import count
from pathlib import Path

from dotenv.parser import Binding, parse_stream

from twin.errors import UsageError, file_errors
from twin.files import atomic_write
from twin.results import AppEnv

MAX_BYTES = 256 << 10  # python-dotenv takes two seconds for so much
_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(r"\r\n|\n|\r")
_KEY = re.compile(r"\s*(?:export[^\S\r\n]+)?(?:'[^']+'|[^=#\s]+)")
_EQUALS = re.compile(r"[^\S\r\n]*=")
_BLANKS = re.compile(r"[^\S\r\n]*")
_QUOTED = re.compile(r"""(['"])((?:\\.|(?!\1)[^\\])*)\1""", re.DOTALL)
_LINE = re.compile(r"[^\r\n]*")
_COMMENT = re.compile(r"\s+#.*")
# Without quotes it means itself to every reader of such files, a shell too, and inside quotes of either kind as well.
_PLAIN = re.compile(r"[A-Za-z0-9_.:/~\[\]-]+")


@dataclass(frozen=True, slots=True)
class Edited:
    """A file's new content.

    Args:
        content: all of it.
        changed: the keys whose value is new, in the order they were asked for.
        repeated: the keys that stand there more than once.
    """

    content: bytes
    changed: tuple[str, ...]
    repeated: tuple[str, ...]


def app_values(model: str, url: str) -> dict[str, str]:
    """Return what makes the app talk to ``model`` on the Ollama at ``url``."""
    return {"LLM_PROVIDER": "ollama", "OLLAMA_BASE_URL": url, "OLLAMA_MODEL": model}


def assign(content: bytes, values: Mapping[str, str], path: Path) -> Edited:
    """Set ``values`` in the text of an ``.env``; a key that it has not is added at its end.

    Args:
        content: the file's bytes.
        values: key → value.
        path: the file's name, for messages.

    Raises:
        UsageError: not UTF-8 text, a value that would need quotes, or a line that names a key and is no assignment.
    """
    for key, value in values.items():
        if not _PLAIN.fullmatch(value):
            raise UsageError(f"'{value}' can't stand in an .env as {key}.", "Leave --env out, and set it by hand.")
    bom = _BOM if content.startswith(_BOM) else b""
    with file_errors(path, "read"):
        text = content.removeprefix(_BOM).decode("utf-8")
    if "\0" in text:
        raise UsageError(f"'{path}' is no text: it holds NUL bytes.", "Save it again as UTF-8, or name another file.")
    bindings = list(parse_stream(StringIO(text, newline="")))
    _refuse_unclear(bindings, values, path)
    places = {key: [at for at, binding in enumerate(bindings) if binding.key == key] for key in values}
    statements = [binding.original.string for binding in bindings]
    changed = [key for key in values if not places[key] or bindings[places[key][-1]].value != values[key]]
    for key in changed:
        if places[key]:
            last = places[key][-1]
            statements[last] = _with_value(statements[last], values[key])
    text = "".join(statements)
    if new := [key for key in changed if not places[key]]:
        found = _LINE_END.search(text)
        end = found[0] if found else "\n"
        text += end if text and not text.endswith(("\n", "\r")) else ""
        text += "".join(f"{key}={values[key]}{end}" for key in new)
    repeated = tuple(key for key in values if len(places[key]) > 1)
    return Edited(bom + text.encode("utf-8"), tuple(changed), repeated)


def _refuse_unclear(bindings: list[Binding], values: Mapping[str, str], path: Path) -> None:
    """Refuse a statement that python-dotenv leaves out and that names a key: other readers may take it."""
    for binding in bindings:
        statement = binding.original.string
        named = next((key for key in values if binding.error and key in statement), None)
        if named:
            before = statement[: len(statement) - len(statement.lstrip())]
            line = binding.original.line + len(_LINE_END.findall(before))
            raise UsageError(
                f"Line {line} of '{path}' can't be read as KEY=value, and {named} is in it or in what follows.",
                f"Write it as {named}=value there, and see that each quote has its pair.",
            )


def _with_value(statement: str, value: str) -> str:
    """Return one assignment with another value; export, blanks, quotes and comment stay."""
    key = _end(_KEY, statement, 0)
    equals = _end(_EQUALS, statement, key)
    if equals == key:  # a key alone
        gap = " " if statement[key : key + 1] == "#" else ""  # the value would run into the comment
        return f"{statement[:key]}={value}{gap}{statement[key:]}"
    start = _end(_BLANKS, statement, equals)
    if quoted := _QUOTED.match(statement, start):
        return statement[: quoted.start(2)] + value + statement[quoted.end(2) :]
    if start > equals and statement[start : start + 1] == "#":  # a comment, and no value
        return statement[:equals] + value + statement[equals:]
    line = statement[start : _end(_LINE, statement, start)]
    stop = start + len(_COMMENT.sub("", line).rstrip())
    return statement[:start] + value + statement[stop:]


def _end(pattern: re.Pattern[str], text: str, start: int) -> int:
    """Return where ``pattern``, found at ``start``, ends; ``start`` where it is not."""
    found = pattern.match(text, start)
    return found.end() if found else start


def foresee(path: Path, model: str, url: str) -> AppEnv:
    """Say what ``write`` would do, and refuse now whatever it would refuse then; nothing is written.

    Raises:
        UsageError, MachineError: see ``write``.
    """
    target, content = _read(path)
    edited = assign(content, app_values(model, url), path)
    return AppEnv(str(target), edited.changed, edited.repeated, None)


def write(path: Path, model: str, url: str) -> AppEnv:
    """Make the ``.env`` at ``path`` name ``model`` at ``url``, the old file copied beside it; no change, no copy.

    A link stays one: the file that it leads to is written, since an app that reads another way to it has to see it too.

    Raises:
        UsageError: no file, not text, too large, read-only, somebody else's, or one that can't be replaced.
        MachineError: the disk is full or fails. The file is as it was, and no copy is left.
    """
    target, content = _read(path)
    edited = assign(content, app_values(model, url), path)
    if not edited.changed:
        return AppEnv(str(target), (), edited.repeated, None)
    backup = _free_name(target)
    try:
        with atomic_write(backup, like=target) as handle:
            handle.write(content)
        with atomic_write(target, like=target) as handle:
            handle.write(edited.content)
    except BaseException:
        backup.unlink(missing_ok=True)
        raise
    return AppEnv(str(target), edited.changed, edited.repeated, str(backup))


def _read(path: Path) -> tuple[Path, bytes]:
    """Return the file behind ``path`` and its bytes, once it is sure that it may be replaced."""
    with file_errors(path, "read"):
        target = Path(os.path.realpath(path, strict=True))
        state = target.stat()
        if stat.S_ISDIR(state.st_mode):
            raise IsADirectoryError
        if not stat.S_ISREG(state.st_mode):
            raise UsageError(f"'{path}' is no regular file.", "Name the app's .env.")
        if state.st_size > MAX_BYTES:
            raise UsageError(
                f"'{path}' has {state.st_size:,} bytes; an .env has {MAX_BYTES:,} at most.", "Name the app's .env."
            )
        content = target.read_bytes()
    _check_replaceable(path, target, state)
    return target, content


def _check_replaceable(path: Path, target: Path, state: os.stat_result) -> None:
    if not state.st_mode & 0o222:  # root could write it all the same, and it was meant not to be
        raise UsageError(f"'{path}' is read-only.", f"Let its owner write it: chmod u+w '{target}'")
    if not os.access(target, os.W_OK):
        with file_errors(path, "write"):
            raise PermissionError
    if not os.access(target.parent, os.W_OK | os.X_OK):  # the new file and the copy are made there
        with file_errors(target.parent, "write in"):
            raise PermissionError
    if os.name != "nt" and os.geteuid() != 0:
        owned = state.st_uid == os.geteuid() and state.st_gid in {os.getegid(), *os.getgroups()}
        if not owned:  # a new file would be ours, and of mode 600 the app could not read it
            raise UsageError(
                f"'{path}' belongs to another user or group, who would lose it.", "Run twin as the user who owns it."
            )
    if state.st_nlink > 1:
        raise UsageError(
            f"'{path}' has {state.st_nlink} names (hard links), and a new file can take only one of them.",
            "Make the others symbolic links, or set the values by hand.",
        )


def _free_name(target: Path) -> Path:
    """Return the first name of a copy that nothing has: ``.env.bak``, ``.env.2.bak``; most .gitignores cover them."""
    names = (target.with_name(f"{target.name}{'' if number == 1 else f'.{number}'}.bak") for number in count(1))
    return next(name for name in names if not os.path.lexists(name))
