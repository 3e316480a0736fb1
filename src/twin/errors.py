"""What can go wrong, said once: a sentence with the value that was wrong, a hint to type next, an exit code.

Core code raises these; ``twin.cli.main`` alone turns them into text. Anything else that escapes is a bug (exit 1).
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

EXIT_OK = 0
EXIT_BUG = 1
EXIT_USAGE = 2
EXIT_MACHINE = 3
EXIT_STEP = 4
EXIT_GATE = 5
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class TwinError(Exception):
    """Something a user can mend.

    Args:
        message: one sentence that names the value that was wrong.
        hint: the next thing to type or change.
    """

    exit_code = EXIT_STEP

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type[TwinError], tuple[str, str]]:
        """Travel between processes with the hint."""
        return type(self), (self.message, self.hint)


class UsageError(TwinError):
    """Wrong options, settings or input files (exit 2)."""

    exit_code = EXIT_USAGE


class MachineError(TwinError):
    """The machine lacks something: a package, a server, disk or memory (exit 3)."""

    exit_code = EXIT_MACHINE


class StepError(TwinError):
    """A step began and failed (exit 4)."""

    exit_code = EXIT_STEP


class NothingLeftError(StepError):
    """An export of which no row is left."""


class StoppedError(TwinError):
    """A step that was asked to end (Ctrl-C, SIGTERM) and kept what was done.

    Args:
        message: one sentence of what was reached.
        hint: what goes on from there.
        exit_code: ``EXIT_INTERRUPTED`` or ``EXIT_TERMINATED``.
        kept: there is something to go on from.
    """

    def __init__(self, message: str, hint: str = "", exit_code: int = EXIT_INTERRUPTED, kept: bool = True) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code
        self.kept = kept

    def __reduce__(self) -> tuple[type[StoppedError], tuple[str, str, int, bool]]:  # type: ignore[override]
        """Travel between processes with the exit code."""
        return type(self), (self.message, self.hint, self.exit_code, self.kept)


class GateError(TwinError):
    """A check refused what was made (exit 5)."""

    exit_code = EXIT_GATE


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint naming the known words that look most like ``word``."""
    choices = sorted(known)
    close = [name for name in choices if len(word) > 2 and word.casefold() in name.casefold()][:3]
    close = close or get_close_matches(word, choices, n=3, cutoff=0.5)
    if close:
        return "Did you mean " + " or ".join(f"'{name}'" for name in close) + "?"
    return "Known: " + ", ".join(choices) + "."


def first_line(error: BaseException) -> str:
    """Return what another library's error says first, without a full stop; its kind where it says nothing.

    What stands below is a trace, a piece of a file or advice to its own users.
    """
    told = error.args[0] if len(error.args) == 1 else None
    words = (told.decode("utf-8", "replace") if isinstance(told, bytes) else str(error)).strip()
    return words.splitlines()[0].rstrip(".: ") if words else type(error).__name__


@contextmanager
def file_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn the operating system's complaints about ``path`` into a sentence and a hint.

    Args:
        path: the file or folder in hand.
        doing: the verb phrase for the sentence, e.g. ``"read"``.

    Raises:
        UsageError: missing, not a file, not permitted.
        MachineError: no space, read-only or failing disk.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        raise UsageError(
            f"'{path}' is not UTF-8 text (byte {error.start} can't be decoded).",
            "Save it again as UTF-8; in most editors: Save as, Encoding, UTF-8.",
        ) from None
    except FileNotFoundError:
        raise UsageError(f"'{path}' does not exist.", "Check the path.") from None
    except IsADirectoryError:
        raise UsageError(f"'{path}' is a folder where a file was expected.", "Name a file inside it.") from None
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"'{path}' can't be used: a file stands where a folder is needed.", "Move it away.") from None
    except PermissionError:
        raise UsageError(f"No permission to {doing} '{path}'.", f"See its owner and mode: ls -l '{path}'") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise MachineError(
                f"The disk is full: could not {doing} '{path}'.", "Free some space and run the same command again."
            ) from None
        if error.errno == errno.ENAMETOOLONG:
            raise UsageError(f"'{str(path)[:80]}…' is too long a name.", "Check the path.") from None
        reason = error.strerror or type(error).__name__
        raise MachineError(f"Could not {doing} '{path}': {reason}.", "Check the disk and the path.") from None
