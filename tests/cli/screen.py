"""``twin`` on a terminal, and what stands on it in the end."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Mapping, Sequence


def seen(arguments: Sequence[str], columns: int, environment: Mapping[str, str]) -> tuple[int, str]:
    """Run ``python -m twin`` on a pty of so many columns; return its exit code and what its screen shows at the end."""
    import fcntl
    import pty
    import struct
    import termios

    process, keys = pty.fork()
    if process == 0:
        os.environ.update(environment)
        for name in ("COLUMNS", "LINES"):
            os.environ.pop(name, None)
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        os.execv(sys.executable, [sys.executable, "-m", "twin", *arguments])  # noqa: S606 - the child of a fork
    data = b""
    with contextlib.suppress(OSError):  # how a pty says that nobody is at its other side
        while block := os.read(keys, 65536):
            data += block
    os.close(keys)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), drawn(data.decode("utf-8", "replace"))


def drawn(text: str) -> str:
    """Return what a terminal shows of ``text``: line ends, going up a line and erasing one are obeyed, the rest is not.

    Raises:
        AssertionError: a sequence that is none of those, and no colour or cursor.
    """
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", text):
        if part == "\r":
            column = 0
        elif part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part.startswith("\x1b"):
            if part[-1] == "A":
                row -= int(part[2:-1] or 1)
            elif part == "\x1b[2K":
                lines[row] = ""
            else:
                assert part[-1] in "mhl", part
        else:
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
            column += len(part)
    return "\n".join(line.rstrip() for line in lines)
