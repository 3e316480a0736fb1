"""The app's token and the server's secret: from the environment, an owner-only file, or a hidden prompt.

Both come as pydantic's ``SecretStr``: printed, logged or shown in a traceback's locals it is a row of stars.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import SecretStr

from twin.errors import UsageError, file_errors

TOKEN_VARIABLE = "TWIN_APP_TOKEN"  # noqa: S105 - the variable's name
SECRET_VARIABLE = "TWIN_SERVE_SECRET"  # noqa: S105 - the variable's name
MIN_SECRET_BYTES = 32  # as RFC 7518, section 3.2, asks of HS256
_MAX_BYTES = 16 << 10
_VISIBLE = re.compile(r"[!-~]+")  # nothing that could end a header's line and begin another


def find_token(environ: Mapping[str, str], token_file: Path | None, ask: Callable[[str], str] | None) -> SecretStr:
    """Return the app's bearer token: ``TWIN_APP_TOKEN``, else the file's, else what is typed.

    Args:
        environ: the environment.
        token_file: a file that its owner alone can read.
        ask: shows its argument and returns what is typed, unseen (``getpass.getpass``); None without a terminal.

    Raises:
        UsageError: no token, a file that others can read, or characters that no token has.
    """
    if given := environ.get(TOKEN_VARIABLE, "").strip():
        return _token(given, TOKEN_VARIABLE)
    if token_file is not None:
        return _token(_owner_only(token_file), f"'{token_file}'")
    if ask is not None:
        try:
            typed = ask("The app's admin token (it is not shown): ")
        except EOFError:
            typed = ""
        if typed.strip():
            return _token(typed, "What was typed")
    raise UsageError(
        "The app wants the token of an admin, and there is none.",
        f"Set {TOKEN_VARIABLE}, or write it into a file of mode 600 and name that as token_file in [app] of twin.toml.",
    )


def find_secret(environ: Mapping[str, str], secret_file: Path | None) -> SecretStr:
    """Return the secret that signs the server's tokens: ``TWIN_SERVE_SECRET``, else the file's. There is no default.

    Args:
        environ: the environment.
        secret_file: a file that its owner alone can read.

    Raises:
        UsageError: no secret, one below 32 bytes, or a file that others can read.
    """
    if given := environ.get(SECRET_VARIABLE, "").strip():
        return check_secret(SecretStr(given))
    if secret_file is not None:
        return check_secret(SecretStr(_owner_only(secret_file).strip()))
    raise UsageError(
        "The server needs a secret to sign its tokens with, and there is none.",
        f'Make one: export {SECRET_VARIABLE}="$(python -c "import secrets; print(secrets.token_urlsafe(48))")"',
    )


def check_secret(secret: SecretStr) -> SecretStr:
    """Return ``secret``.

    Raises:
        UsageError: below 32 bytes.
    """
    length = len(secret.get_secret_value().encode("utf-8", "surrogateescape"))
    if length < MIN_SECRET_BYTES:
        raise UsageError(
            f"The server's secret has {length} bytes; it needs {MIN_SECRET_BYTES} or it can be guessed.",
            f'Make one: export {SECRET_VARIABLE}="$(python -c "import secrets; print(secrets.token_urlsafe(48))")"',
        )
    return secret


def _token(given: str, where: str) -> SecretStr:
    text = given.strip().removeprefix("Bearer ").strip()
    if not _VISIBLE.fullmatch(text) or len(text) > _MAX_BYTES:
        raise UsageError(
            f"{where} holds no token: one is a single word of ASCII, at most {_MAX_BYTES:,} bytes.",
            "Copy it from the app again.",
        )
    return SecretStr(text)


def _owner_only(path: Path) -> str:
    """Return the text of a file that its owner alone can read; one that is too long is cut, and then is no token."""
    if not path.exists():  # its name is not shown: it may be the token itself, put into the wrong place
        raise UsageError(
            "There is no file of the name that token_file or secret_file gives in twin.toml or the environment.",
            "Write the token or secret into a file of mode 600, and give the file's name.",
        )
    with file_errors(path, "read"), path.open("rb") as handle:
        mode = os.fstat(handle.fileno()).st_mode
        if os.name != "nt" and mode & 0o077:
            raise UsageError(
                f"Others than you can read or write '{path}' (mode {mode & 0o777:o}).",
                f"Make it yours alone: chmod 600 '{path}'",
            )
        return handle.read(_MAX_BYTES + 1).decode("utf-8", "replace")
