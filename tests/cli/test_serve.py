"""``twin serve``: what it hands to the curate, and what it prints."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import typer

from twin import curate
from twin.cli.commands import serve
from twin.cli.main import main

TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoiYWRtaW4ifQ.c2VjcmV0"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """``twin`` with ``serve``; the curate's part keeps what it was asked, says that it listens, and ends."""
    app = typer.Typer(name="twin", pretty_exceptions_enable=False, add_completion=False)
    app.callback()(lambda: None)
    app.command(name=serve.NAME, help=serve.HELP)(serve.command)
    monkeypatch.setattr("twin.cli.app.app", app)
    found: list[dict[str, Any]] = []

    def served(
        sources: list[Path], settings: Any, host: str, port: int, reporter: Any, ready: Callable[[str], None]
    ) -> None:
        found.append({"sources": sources, "person": settings.export.person, "host": host, "port": port})
        ready(f"http://{host}:{port}")

    monkeypatch.setattr(curate, "serve", served, raising=False)
    monkeypatch.setattr(curate, "serve_token", lambda settings: TOKEN, raising=False)
    return found


def test_it_listens_on_this_machine_unless_told_otherwise(
    asked: list[dict[str, Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve"]) == 0
    assert asked == [{"sources": [], "person": None, "host": "127.0.0.1", "port": 8000}]
    assert capfd.readouterr() == ("Serving at http://127.0.0.1:8000, Ctrl-C stops.\n", "")


def test_everything_is_handed_on(asked: list[dict[str, Any]], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "a", "b", "--person", "Ada", "--host", "0.0.0.0", "--port", "0", "--json"]) == 0  # noqa: S104
    assert asked == [{"sources": [Path("a"), Path("b")], "person": "Ada", "host": "0.0.0.0", "port": 0}]  # noqa: S104
    out, err = capfd.readouterr()
    assert (orjson.loads(out), err) == ({"url": "http://0.0.0.0:0"}, "")


def test_a_token_is_printed_alone(asked: list[dict[str, Any]], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--token"]) == 0
    assert capfd.readouterr() == (f"{TOKEN}\n", "")
    assert main(["serve", "--token", "--json"]) == 0
    out, err = capfd.readouterr()
    assert (orjson.loads(out), err) == ({"token": TOKEN}, "")
    assert asked == []


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_a_port_that_is_none(asked: list[dict[str, Any]], capfd: pytest.CaptureFixture[str], port: str) -> None:
    assert main(["serve", "--port", port]) == 2
    assert "--port" in capfd.readouterr().err
    assert asked == []


def test_no_option_takes_a_secret() -> None:
    app = typer.Typer(add_completion=False)
    app.command()(serve.command)
    options = {name: one.is_flag for one in typer.main.get_command(app).params for name in one.opts if name[:2] == "--"}
    assert set(options) == {"--person", "--host", "--port", "--token", "--json", "--quiet", "--verbose"}
    assert options["--token"] is True


def test_the_command_imports_nothing_heavy() -> None:
    code = (
        "import sys, twin.cli.commands.serve; print(sorted({'fastapi', 'uvicorn', 'httpx', 'jwt'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
