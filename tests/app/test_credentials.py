"""Where the token and the secret come from, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.app.conftest import TOKEN
from twin.app.address import check_url
from twin.app.credentials import find_secret, find_token
from twin.errors import UsageError

LONG = "x" * 32


def owned(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text, "utf-8")
    path.chmod(mode)
    return path


def never(prompt: str) -> str:
    raise AssertionError("it asked")


def test_the_environment_comes_before_the_file_before_the_prompt(tmp_path: Path) -> None:
    file = owned(tmp_path / "token", " from-file \n")
    assert find_token({"TWIN_APP_TOKEN": " from-env\n"}, file, never).get_secret_value() == "from-env"
    assert find_token({}, file, never).get_secret_value() == "from-file"
    assert find_token({"TWIN_APP_TOKEN": " "}, file, never).get_secret_value() == "from-file"
    asked: list[str] = []
    typed = find_token({}, None, lambda prompt: asked.append(prompt) or "Bearer typed ")
    assert typed.get_secret_value() == "typed"
    assert asked == ["The app's admin token (it is not shown): "]


def test_a_token_does_not_show_itself() -> None:
    token = find_token({"TWIN_APP_TOKEN": TOKEN}, None, None)
    assert TOKEN not in f"{token} {token!r} {[token]}"
    assert token.get_secret_value() == TOKEN  # the control


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o620])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    file = owned(tmp_path / "token", TOKEN, mode)
    with pytest.raises(UsageError) as caught:
        find_token({}, file, never)
    assert caught.value.message == f"Others than you can read or write '{file}' (mode {mode:o})."
    assert caught.value.hint == f"Make it yours alone: chmod 600 '{file}'"
    file.chmod(0o600)
    assert find_token({}, file, never).get_secret_value() == TOKEN


@pytest.mark.parametrize("find", [lambda path: find_token({}, path, never), lambda path: find_secret({}, path)])
def test_a_file_that_is_not_there_is_not_named_for_it_may_be_the_token_itself(find: Callable[[Path], object]) -> None:
    with pytest.raises(UsageError, match="There is no file of the name that token_file or secret_file gives") as caught:
        find(Path(TOKEN))
    assert TOKEN not in caught.value.message + caught.value.hint


@pytest.mark.parametrize("given", ["a\r\nX-Admin: yes", "a\nb", "a b", "é", "a\x00b", "a\x7f", "x" * 17_000])
def test_what_could_break_a_header_is_refused_and_not_repeated(tmp_path: Path, given: str) -> None:
    file = owned(tmp_path / "token", given)
    for ask in (
        lambda: find_token({"TWIN_APP_TOKEN": given}, None, None),
        lambda: find_token({}, file, None),
        lambda: find_token({}, None, lambda prompt: given),
    ):
        with pytest.raises(UsageError, match="holds no token") as caught:
            ask()
        assert given.strip() not in caught.value.message + caught.value.hint


def test_no_token_at_all() -> None:
    def end_of_file(prompt: str) -> str:
        raise EOFError

    for ask in (None, lambda prompt: " ", end_of_file):
        with pytest.raises(UsageError, match="there is none") as caught:
            find_token({}, None, ask)
        assert "TWIN_APP_TOKEN" in caught.value.hint


def test_the_secret_has_no_default_and_32_bytes(tmp_path: Path) -> None:
    assert find_secret({"TWIN_SERVE_SECRET": f" {LONG} "}, None) == SecretStr(LONG)
    assert find_secret({}, owned(tmp_path / "secret", f"{LONG}\n")) == SecretStr(LONG)
    assert find_secret({"TWIN_SERVE_SECRET": "é" * 16}, None) == SecretStr("é" * 16)
    for environ in ({}, {"TWIN_SERVE_SECRET": ""}):
        with pytest.raises(UsageError, match="there is none"):
            find_secret(environ, None)
    with pytest.raises(UsageError, match="has 31 bytes; it needs 32") as caught:
        find_secret({"TWIN_SERVE_SECRET": LONG[1:]}, None)
    assert LONG[1:] not in caught.value.message + caught.value.hint
    with pytest.raises(UsageError, match="Others than you"):
        find_secret({}, owned(tmp_path / "open", LONG, 0o644))


# --- addresses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://localhost:8000", "http://localhost:8000"),
        (" http://localhost:8000/ ", "http://localhost:8000"),
        ("HTTPS://App.Example/chirag/", "https://app.example/chirag"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_an_address_is_read(given: str, url: str) -> None:
    assert check_url(given) == url


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("localhost:8000", "not an http"),
        ("localhost", "not an http"),
        ("", "not an http"),
        ("file:///etc/passwd", "not an http"),
        ("ftp://host", "not an http"),
        ("http://", "not an http"),
        ("http://host:99999", "is no address"),
        ("http://me:hunter2@host", "has a login"),
        ("http://@host", "has a login"),
        ("http://host?token=hunter2", "after a ?"),
        ("http://host#hunter2", "after a ?"),
        ("http://host/?", "after a ?"),
        ("http://ho\x1bst", "no address has"),
    ],
)
def test_what_is_no_address_is_refused(given: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        check_url(given)
    assert "hunter2" not in caught.value.message + caught.value.hint
    assert caught.value.hint
