"""Requests made from the OpenAPI page, valid and invalid ones, with all of schemathesis' checks on the answers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from fastapi import FastAPI
from schemathesis.checks import CHECKS
from schemathesis.core.failures import FailureGroup

from tests.app.conftest import NOON, SECRET, Brain, chat
from twin.app.server import create_app, mint_token
from twin.records import Memory

HEADERS = {"Authorization": f"Bearer {mint_token(SECRET).get_secret_value()}"}
FOLDER = tempfile.TemporaryDirectory()  # as long as the module: cases are made when it is imported


def served(folder: Path) -> FastAPI:
    """The app on a small brain."""
    chats = [chat("friends/Bea.txt", ("Bea", "are you coming?"), ("Ada", "on my way"))]
    brain = Brain(folder, chats, [Memory("m#1", "Drinks tea", "preferences", 0.4, NOON)])
    return create_app(brain.source(), SECRET)


schema = schemathesis.openapi.from_asgi("/openapi.json", served(Path(FOLDER.name)))


@schema.parametrize()
@hypothesis.settings(max_examples=40)
def test_every_answer_is_one_that_the_page_promises(case: schemathesis.Case) -> None:
    case.call_and_validate(headers=HEADERS)


def test_all_checks_are_on() -> None:
    settings = schema.config.checks_config_for(operation=schema["/api/finetune/formats"]["GET"], phase=None)
    names = [check.__name__ for check in CHECKS.get_all() if not isinstance(check, type)]
    assert {"not_a_server_error", "response_schema_conformance", "ignored_auth", "negative_data_rejection"} <= set(
        names
    )
    assert [name for name in names if not settings.get_by_name(name=name).enabled] == []


# --- controls: the checks say no ------------------------------------------------------------------------------------


def changed(kind: str) -> Any:
    """Return the app behind something that breaks one promise."""
    app = served(Path(FOLDER.name))

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] == "/openapi.json":
            await app(scope, receive, send)
            return
        if kind == "open":
            scope = scope | {"headers": [*scope["headers"], (b"authorization", HEADERS["Authorization"].encode())]}

        async def spoil(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [(name, value) for name, value in message["headers"] if name != b"content-length"]
                if kind == "type":
                    headers = [(b"content-type", b"text/plain")]
                status = {"broken": 500, "undocumented": 418}.get(kind, message["status"])
                message = message | {"headers": headers, "status": status}
            elif kind == "shape":
                message = message | {"body": b'{"formats": [{"name": "csv", "description": "x"}]}'}
            await send(message)

        await app(scope, receive, spoil)

    return broken


@pytest.mark.parametrize(
    ("kind", "failure"),
    [("broken", "ServerError"), ("undocumented", "UndefinedStatusCode"), ("type", "UndefinedContentType"),
     ("shape", "JsonSchemaError"), ("open", "IgnoredAuth"), ("as it is", None)],
)  # fmt: skip
def test_a_broken_promise_is_seen(kind: str, failure: str | None) -> None:
    other = schemathesis.openapi.from_asgi("/openapi.json", changed(kind))
    case = other["/api/finetune/formats"]["GET"].Case()
    if failure is None:
        case.call_and_validate(headers=HEADERS)
        return
    with pytest.raises(FailureGroup) as caught:
        case.call_and_validate(headers=HEADERS)
    assert failure in [type(one).__name__ for one in caught.value.exceptions]


def test_an_unchecked_field_is_seen() -> None:
    """An app that takes any split where its page says 0 to 0.5."""
    page = served(Path(FOLDER.name)).openapi()
    app = FastAPI()

    @app.post("/api/finetune/export")
    def export(body: dict[str, Any]) -> dict[str, Any]:
        return {"success": False, "format": "chatml", "total_examples": 0, "error": "x"}

    other = schemathesis.openapi.from_dict(page)
    other.app = app
    operation = other["/api/finetune/export"]["POST"]

    @hypothesis.given(operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE))
    @hypothesis.settings(max_examples=20)
    def every(case: schemathesis.Case) -> None:
        case.call_and_validate(headers=HEADERS)

    with pytest.raises(FailureGroup, match="Schema-violating request accepted"):
        every()
