"""The entry point: the one place where errors become text and exit codes.

Not obvious: Typer carries its own copy of Click or uses Click's, by version, so its exceptions are taken from the bases
of ``typer.BadParameter``, which is public in both.
"""

from __future__ import annotations

import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from twin.cli.console import Output
from twin.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_USAGE,
    StoppedError,
    TwinError,
    UsageError,
    nearest,
)
from twin.processes import place

_ONE_REQUEST_SECONDS = 1.0
_LAST_WORDS_SECONDS = 1.0  # a launcher ends all processes once one has failed: the first one speaks before that


# A terminal that is closed sends SIGHUP; Windows has none.
_ENDS = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


class _TerminatedError(BaseException):
    """SIGTERM or SIGHUP, on its way up through whatever has to be tidied; like KeyboardInterrupt nothing may catch it.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number  # as a shell tells of it: EXIT_TERMINATED


def main(arguments: list[str] | None = None) -> int:
    """Run ``twin`` and return its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    output = Output(json="--json" in given)
    try:
        with _ends_raise():
            code = _run(given, output)
            if code and not place().speaks:
                time.sleep(_LAST_WORDS_SECONDS)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except _TerminatedError as error:
        code = error.exit_code
    else:
        return code
    with suppress(OSError):  # the terminal may be gone
        output.interrupted(code)
    return code


@contextmanager
def _ends_raise() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C would, so that nothing half-written and no process stays behind.

    One that is ignored (``nohup``) stays so.
    """
    in_main = threading.current_thread() is threading.main_thread()
    taken = [number for number in _ENDS if in_main and signal.getsignal(number) == signal.SIG_DFL]
    last = -_ONE_REQUEST_SECONDS

    def terminate(number: int, frame: object) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _ONE_REQUEST_SECONDS:  # timeout(1) sends it twice: the second must not stop the tidying up
            last = now
            raise _TerminatedError(number)

    for number in taken:
        signal.signal(number, terminate)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _run(given: list[str], output: Output) -> int:
    import typer

    from twin.cli.app import app

    if refused := _refused(given):
        output.error(refused)
        return refused.exit_code
    usage_error: type[Exception] = typer.BadParameter.__bases__[0]
    try:
        code = app(args=given, prog_name="twin", standalone_mode=False)
    except StoppedError as error:
        output.error(StoppedError(error.message, _again(given) if error.kept else error.hint, error.exit_code))
        return error.exit_code
    except TwinError as error:
        output.error(error)
        return error.exit_code
    except usage_error as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            return EXIT_USAGE  # the help was printed
        output.error(_usage(error))
        return EXIT_USAGE
    except typer.Abort:
        raise KeyboardInterrupt from None
    if code == EXIT_INTERRUPTED:  # Typer returns it for Ctrl-C inside a command, and says nothing
        raise KeyboardInterrupt
    return int(code or EXIT_OK)


def _refused(given: list[str]) -> UsageError | None:
    """Return what to say where a launcher started several processes of a command that is one's."""
    command = next((word for word in given if word[:1] != "-"), "train")
    if place().size == 1 or command == "train":
        return None
    alone = "Launch twin train alone in several: torchrun --nproc-per-node 2 -m twin train"
    return UsageError(f"'twin {command}' runs in one process.", alone)


def _again(given: list[str]) -> str:
    """Return what to type to go on with a training that was stopped."""
    words = list(given)
    if words[:1] == ["train"]:  # twin run goes on by itself
        for place in reversed(range(len(words))):
            if words[place].startswith("--resume-from"):
                del words[place : place + (1 if "=" in words[place] else 2)]
        words += ["--resume-from", "auto"]
    return f"Go on: {shlex.join(['twin', *words])}"


def _usage(error: Any) -> UsageError:
    """Return Typer's complaint as ours: one sentence, one hint."""
    context = error.ctx
    message = error.format_message().splitlines()[0]
    if option := getattr(error, "option_name", None):
        known = [name for parameter in context.command.params for name in parameter.opts] if context else []
        return UsageError(f"There is no option '{option}'.", nearest(option, known))
    if found := re.match(r"No such command '(.*?)'", message):
        return UsageError(f"There is no command '{found[1]}'.", nearest(found[1], context.command.commands))
    return UsageError(f"{message.rstrip('.')}.", f"See: {context.command_path if context else 'twin'} --help")


if __name__ == "__main__":
    sys.exit(main())
