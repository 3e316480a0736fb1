"""The client against an app that answers well, against one that refuses, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import socket
import ssl
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import SecretStr
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from tests.app.conftest import TOKEN, everything_said, nobody
from tests.ollama.conftest import Recorder
from tests.sockets import sockets
from twin import brain as brain_feature
from twin.app import answers, client, rows, wire
from twin.app.client import ExportAsk, fetch_brain, fetch_rows
from twin.errors import MachineError, StepError, TwinError, UsageError
from twin.progress import Silent

HOLDER = SecretStr(TOKEN)
BRAIN = {
    "format_version": "1.0",
    "personality_profile": {"name": "Ada", "facts": ["fixes clocks"]},
    "training_examples": [
        {"context": "coming?", "response": "on my way", "source": "chat:Bea", "timestamp": "2024-03-01T12:00:00"},
        {"context": "late?", "response": "never", "source": "chat:Bea", "timestamp": "2024-03-01T13:00:00"},
    ],
}  # fmt: skip
MEMORIES = {"memories": [{"id": 1, "memory": "Drinks tea", "category": "preferences", "importance": 0.5}], "stats": {}}
ROW = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
WHOLE = {"success": True, "format": "chatml", "total_examples": 3, "path": "/srv/app/data/finetune.jsonl"}
SPLIT = {
    "success": True, "format": "chatml", "total_examples": 3, "train_examples": 2, "val_examples": 1,
    "train_path": "/srv/app/train.jsonl", "val_path": "/srv/app/val.jsonl", "full_path": "/srv/app/full.jsonl",
}  # fmt: skip


def answer(server: HTTPServer, path: str, body: object, status: int = 200, kind: str = "application/json") -> None:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    server.expect_request(path).respond_with_data(data, status=status, content_type=kind)


def jsonl(*found: object) -> bytes:
    return b"".join((row if isinstance(row, bytes) else orjson.dumps(row)) + b"\n" for row in found)


@pytest.fixture
def app(httpserver: HTTPServer) -> HTTPServer:
    """An app with a brain, memories, and a split dataset of three rows."""
    answer(httpserver, "/api/training/export", BRAIN)
    answer(httpserver, "/api/cognitive/core-memories", MEMORIES)
    answer(httpserver, "/api/finetune/export", SPLIT)
    answer(httpserver, "/api/finetune/download/train", jsonl(ROW, ROW), kind="application/x-ndjson")
    answer(httpserver, "/api/finetune/download/val", jsonl(ROW), kind="application/x-ndjson")
    answer(httpserver, "/api/finetune/download", jsonl(ROW, ROW, ROW), kind="application/octet-stream")
    return httpserver


def get_brain(url: str, into: Path, reporter: Any = None) -> list[Path]:
    return fetch_brain(url, HOLDER, into, reporter or Silent())


def get_rows(url: str, into: Path, reporter: Any = None, **ask: Any) -> client.FetchedRows:
    return fetch_rows(url, HOLDER, ExportAsk(**ask), into, reporter or Silent())


def refused(
    call: Callable[[], object], into: Path, kind: type[TwinError] = StepError, frames: bool = True
) -> TwinError:
    """Assert that ``call`` fails with a sentence and a hint, leaves no file, and shows the token nowhere."""
    with pytest.raises(kind) as caught:
        call()
    assert caught.value.message
    assert caught.value.hint
    assert "\n" not in caught.value.message
    assert list(into.iterdir()) == []
    assert TOKEN not in everything_said(caught.value, frames)
    assert TOKEN.rpartition(".")[0] not in caught.value.message + caught.value.hint
    return caught.value


# --- the brain ------------------------------------------------------------------------------------------------------


def test_a_brain_becomes_files_that_the_importer_reads(app: HTTPServer, into: Path, recorder: Recorder) -> None:
    paths = get_brain(app.url_for(""), into, recorder)
    assert paths == [into / "brain.json", into / "core_memories.json"]
    assert [orjson.loads(path.read_bytes()) for path in paths] == [BRAIN, MEMORIES]
    assert [stat.S_IMODE(path.stat().st_mode) for path in paths] == [0o600, 0o600]
    assert sorted(into.iterdir()) == paths
    assert recorder.said == []
    assert recorder.done["Reading the app's brain"] == len(orjson.dumps(BRAIN))
    read = brain_feature.load(paths)
    assert read.person == "Ada"
    assert [memory.text for memory in read.memories] == ["Drinks tea"]
    assert [m.text for one in read.conversations() for m in one.messages] == [
        "coming?", "on my way", "late?", "never"
    ]  # fmt: skip


def test_what_is_asked(app: HTTPServer, into: Path) -> None:
    get_brain(app.url_for("/"), into)
    requests = [request for request, _ in app.log]
    assert [(one.method, one.full_path.rstrip("?")) for one in requests] == [
        ("GET", "/api/training/export"), ("GET", "/api/cognitive/core-memories?limit=100000")
    ]  # fmt: skip
    for one in requests:
        assert one.headers["Authorization"] == f"Bearer {TOKEN}"
        assert one.headers["Accept-Encoding"] == "identity"


def test_a_path_before_the_api_is_kept(httpserver: HTTPServer, into: Path) -> None:
    answer(httpserver, "/chirag/api/training/export", BRAIN)
    answer(httpserver, "/chirag/api/cognitive/core-memories", MEMORIES)
    assert len(get_brain(httpserver.url_for("/chirag/"), into)) == 2


@pytest.mark.parametrize(
    ("brain", "memories"),
    [
        ({"training_examples": []}, []),
        ({"personality_profile": None, "training_examples": []}, []),
        ({"personality_profile": {"name": "Ada", "facts": [], "emoji_patterns": {}, "avg_message_length": 0}}, []),
        ({"personality_profile": {}, "training_examples": ["no object", 3]}, []),
    ],
)
def test_an_app_that_holds_nothing_says_so(
    httpserver: HTTPServer, into: Path, brain: object, memories: list[object]
) -> None:
    answer(httpserver, "/api/training/export", brain)
    answer(httpserver, "/api/cognitive/core-memories", {"memories": memories})
    url = httpserver.url_for("").rstrip("/")
    error = refused(lambda: get_brain(url, into), into)
    assert error.message == f"{url} holds nothing to learn from: no examples, no profile, no memories."


@pytest.mark.parametrize(
    ("brain", "memories"),
    [
        ({"training_examples": []}, [{"memory": "x"}]),
        ({"training_examples": [{}]}, []),
        ({"personality_profile": {"facts": ["x"]}}, []),
        ({"personality_profile": {"emoji_patterns": {"🦆": 3}}}, []),
    ],
)
def test_a_little_is_something(httpserver: HTTPServer, into: Path, brain: object, memories: list[object]) -> None:
    answer(httpserver, "/api/training/export", brain)
    answer(httpserver, "/api/cognitive/core-memories", {"memories": memories})
    assert len(get_brain(httpserver.url_for(""), into)) == 2


def test_memories_are_asked_for_with_the_highest_limit_that_the_app_takes(
    httpserver: HTTPServer, into: Path, recorder: Recorder
) -> None:
    def memories(request: Request) -> Response:
        limit = int(request.args["limit"])
        if limit > 100:
            return Response(b'{"detail":[{"loc":["query","limit"],"msg":"at most 100"}]}', 422)
        return Response(orjson.dumps({"memories": [{"memory": "x"}] * limit}), content_type="application/json")

    answer(httpserver, "/api/training/export", BRAIN)
    httpserver.expect_request("/api/cognitive/core-memories").respond_with_handler(memories)
    _, path = get_brain(httpserver.url_for(""), into, recorder)
    assert len(orjson.loads(path.read_bytes())["memories"]) == 100
    assert recorder.said == ["The app gave 100 memories, as many as it gives at once: it may have more."]


def test_an_app_that_takes_no_limit_is_refused(httpserver: HTTPServer, into: Path) -> None:
    answer(httpserver, "/api/training/export", BRAIN)
    answer(httpserver, "/api/cognitive/core-memories", {"detail": "no limit"}, 422)
    error = refused(lambda: get_brain(httpserver.url_for(""), into), into)
    assert "(422: no limit)" in error.message
    assert len(httpserver.log) == 4


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"[1]", "JSON, but no object"),
        (b'"training_examples"', "JSON, but no object"),
        (b"training_examples", "broken JSON"),
        (b"", "cut short"),
        (orjson.dumps(BRAIN)[:-1], "cut short"),
        (orjson.dumps(BRAIN)[:90], "cut short"),
        (orjson.dumps(BRAIN) + b"{}", "broken JSON"),
        (b'{"detail": "hello"}', "JSON without 'personality_profile' or 'training_examples'"),
        (b'{"training_examples": {}}', "JSON whose 'training_examples' is not a list"),
        (b'{"training_examples": [], "personality_profile": "x"}', "JSON whose 'personality_profile' is not an object"),
        (b'{"training_examples": [' + b"[" * 200 + b"]" * 200 + b"]}", "nested over 100 deep"),
        (b'{"training_examples": [{"context": "\xff"}]}', "broken JSON"),
        (b'{"training_examples": [NaN]}', "broken JSON"),
        (b'{"training_examples": [' + b"9" * 5000 + b"]}", "broken JSON"),
    ],
)
def test_a_brain_of_another_shape_is_refused(httpserver: HTTPServer, into: Path, body: bytes, words: str) -> None:
    answer(httpserver, "/api/training/export", body)
    assert words in refused(lambda: get_brain(httpserver.url_for(""), into), into).message


def test_memories_of_another_shape_are_refused_and_nothing_stays(httpserver: HTTPServer, into: Path) -> None:
    answer(httpserver, "/api/training/export", BRAIN)
    answer(httpserver, "/api/cognitive/core-memories", {"memories": {}})
    assert "'memories' is not a list" in refused(lambda: get_brain(httpserver.url_for(""), into), into).message


def test_one_endless_value_is_refused(httpserver: HTTPServer, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MAX_VALUE_BYTES", 100_000)
    answer(httpserver, "/api/training/export", {"training_examples": [{"context": "x" * 400_000}]})
    assert "a value of over 100,000 bytes" in refused(lambda: get_brain(httpserver.url_for(""), into), into).message
    monkeypatch.setattr(answers, "MAX_VALUE_BYTES", 500_000)
    answer(httpserver, "/api/cognitive/core-memories", MEMORIES)
    assert len(get_brain(httpserver.url_for(""), into)) == 2


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_bound_is_refused(
    httpserver: HTTPServer, into: Path, monkeypatch: pytest.MonkeyPatch, chunked: bool
) -> None:
    monkeypatch.setattr(client, "MAX_BRAIN_BYTES", 1000)
    body = orjson.dumps({"training_examples": [{"context": "x", "response": "y"}] * 100})

    def big(request: Request) -> Response:
        pieces = (body[at : at + 100] for at in range(0, len(body), 100))
        return Response(pieces if chunked else body, content_type="application/json")

    httpserver.expect_request("/api/training/export").respond_with_handler(big)
    error = refused(lambda: get_brain(httpserver.url_for(""), into), into)
    assert "answers with more than 1,000 bytes" in error.message


# --- rows -----------------------------------------------------------------------------------------------------------


def test_split_rows_become_two_files(app: HTTPServer, into: Path, recorder: Recorder) -> None:
    got = get_rows(app.url_for(""), into, recorder, format="sharegpt", validation_split=0.25, shuffle=False)
    assert got == client.FetchedRows(into / "train.jsonl", into / "val.jsonl", 2, 1, {})
    assert got.train.read_bytes() == jsonl(ROW, ROW)
    assert got.val is not None and got.val.read_bytes() == jsonl(ROW)
    assert stat.S_IMODE(got.train.stat().st_mode) == 0o600
    assert sorted(path.name for path in into.iterdir()) == ["train.jsonl", "val.jsonl"]
    assert [(one.method, one.path) for one, _ in app.log] == [
        ("POST", "/api/finetune/export"),
        ("GET", "/api/finetune/download/train"),
        ("GET", "/api/finetune/download/val"),
    ]  # fmt: skip
    assert orjson.loads(app.log[0][0].data) == {
        "format": "sharegpt", "include_system": True, "deduplicate": True, "quality_filter": True,
        "validation_split": 0.25, "shuffle": False,
    }  # fmt: skip
    assert all(one.headers["Authorization"] == f"Bearer {TOKEN}" for one, _ in app.log)
    assert recorder.said == []


def test_unsplit_rows_become_one_file(httpserver: HTTPServer, into: Path) -> None:
    answer(httpserver, "/api/finetune/export", WHOLE)
    answer(httpserver, "/api/finetune/download", jsonl(ROW, ROW, ROW), kind="text/plain; charset=utf-8")
    got = get_rows(httpserver.url_for(""), into, validation_split=0)
    assert got == client.FetchedRows(into / "finetune_dataset.jsonl", None, 3, 0, {})
    assert [path.name for path in into.iterdir()] == ["finetune_dataset.jsonl"]


def test_an_empty_part_is_not_asked_for(app: HTTPServer, into: Path) -> None:
    app.clear()
    answer(app, "/api/finetune/export", SPLIT | {"val_examples": 0, "total_examples": 2})
    answer(app, "/api/finetune/download/train", jsonl(ROW, ROW), kind="application/x-ndjson")
    assert get_rows(app.url_for(""), into).val is None
    assert len(app.log) == 2


def test_broken_lines_are_left_out_and_counted(app: HTTPServer, into: Path, recorder: Recorder) -> None:
    app.clear()
    answer(app, "/api/finetune/export", WHOLE | {"total_examples": 9})
    body = b"\xef\xbb\xbf" + jsonl(ROW, b"", b"{", b"[]", {"x": 1}, {"messages": [ROW["messages"][1]]}, ROW) + b'{"cut'
    answer(app, "/api/finetune/download", body, kind="application/jsonl")
    got = get_rows(app.url_for(""), into, recorder)
    assert got.train_rows == 2
    assert got.dropped == {rows.NO_JSON: 2, rows.NO_ROW: 2, rows.NO_REPLY: 1}
    assert got.train.read_bytes() == jsonl(ROW, ROW)
    assert recorder.said == ["The app spoke of 9 rows in finetune_dataset.jsonl and sent 7."]


def test_a_line_over_the_bound_is_left_out_and_counted(
    app: HTTPServer, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MAX_LINE_BYTES", 1000)
    app.clear()
    answer(app, "/api/finetune/export", WHOLE)
    long = {"messages": [{"role": "user", "content": "x" * 300_000}, {"role": "assistant", "content": "y"}]}
    answer(app, "/api/finetune/download", jsonl(ROW, long, ROW), kind="application/jsonl")
    got = get_rows(app.url_for(""), into)
    assert (got.train_rows, got.dropped) == (2, {rows.TOO_LONG: 1})


def test_rows_over_the_bound_are_refused(app: HTTPServer, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_ROWS_BYTES", 100)
    assert "more than 100 bytes" in refused(lambda: get_rows(app.url_for(""), into), into).message


@pytest.mark.parametrize("path", ["/etc/passwd", "../../../etc/passwd", "file:///etc/passwd", "\\\\host\\share", 7])
def test_a_path_in_an_answer_is_nothing_to_us(
    httpserver: HTTPServer, into: Path, recorder: Recorder, path: Any
) -> None:
    paths = {"path": path, "train_path": path, "val_path": path, "full_path": path}
    answer(httpserver, "/api/finetune/export", SPLIT | paths)
    answer(httpserver, "/api/finetune/download/train", jsonl(ROW), kind="application/x-ndjson")
    answer(httpserver, "/api/finetune/download/val", jsonl(ROW), kind="application/x-ndjson")
    got = get_rows(httpserver.url_for(""), into, recorder)
    assert [got.train, got.val] == [into / "train.jsonl", into / "val.jsonl"]
    assert sorted(one.name for one in into.iterdir()) == ["train.jsonl", "val.jsonl"]
    assert recorder.said == ["The app spoke of 2 rows in train.jsonl and sent 1."]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (WHOLE | {"total_examples": 0}, "it has no rows to learn from: everything was filtered, or nothing was saved."),
        (WHOLE | {"total_examples": 0, "message": "no saved\x1b[31m chats"}, "learn from: no saved [31m chats."),
        (SPLIT | {"train_examples": 0}, "it has no rows to learn from"),
        ({"success": False, "error": "nothing is trained."}, "made no dataset: nothing is trained."),
        ({"success": False}, "made no dataset, and does not say why."),
        ({"detail": "hello"}, "no JSON object that says 'success'"),
        ({"success": "yes", "total_examples": 3}, "no JSON object that says 'success'"),
        ([], "no JSON object that says 'success'"),
        (b"{", "no JSON object that says 'success'"),
        ({"success": True}, "without a number of 'total_examples'"),
        (WHOLE | {"total_examples": -1}, "without a number of 'total_examples'"),
        (WHOLE | {"total_examples": True}, "without a number of 'total_examples'"),
        (SPLIT | {"train_examples": "2"}, "without a number of 'train_examples'"),
        (SPLIT | {"val_examples": None}, "without a number of 'val_examples'"),
    ],
)
def test_an_export_without_rows_is_an_error_with_its_reason(
    httpserver: HTTPServer, into: Path, given: object, words: str
) -> None:
    answer(httpserver, "/api/finetune/export", given)
    assert words in refused(lambda: get_rows(httpserver.url_for(""), into), into).message
    assert len(httpserver.log) == 1


@pytest.mark.parametrize(("body", "words"), [(b"", "it is empty"), (b"{}\nx\n", "1 line that is no JSON, 1 row of no")])
def test_a_download_without_rows_is_an_error(httpserver: HTTPServer, into: Path, body: bytes, words: str) -> None:
    answer(httpserver, "/api/finetune/export", SPLIT)
    answer(httpserver, "/api/finetune/download/train", jsonl(ROW, ROW), kind="application/x-ndjson")
    answer(httpserver, "/api/finetune/download/val", body, kind="application/x-ndjson")
    error = refused(lambda: get_rows(httpserver.url_for(""), into), into)
    assert f"val.jsonl of {httpserver.url_for('').rstrip('/')} has no rows: {words}" in error.message
    assert "--via brain" in error.hint


def test_nothing_exported_yet(httpserver: HTTPServer, into: Path) -> None:
    answer(httpserver, "/api/finetune/export", WHOLE)
    answer(httpserver, "/api/finetune/download", {"detail": "Not found"}, 404)
    error = refused(lambda: get_rows(httpserver.url_for(""), into), into)
    assert error.message.endswith("refused to hand over its dataset rows (404: Not found).")
    assert "nothing is exported there yet" in error.hint


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "hint", "tries"),
    [
        (400, "log says more", 1), (401, "copy a new token and set TWIN_APP_TOKEN", 1),
        (403, "token of an admin or of the owner", 1), (404, "the address is the app's", 1),
        (413, "no request of this size", 1), (422, "--via brain", 1), (500, "log says more", 1),
        (429, "asked too often", 4), (502, "the app behind it does not", 4), (503, "starting or overloaded", 4),
        (504, "too slow", 4), (204, "log says more", 1), (418, "log says more", 1),
    ],
)  # fmt: skip
def test_each_status_is_a_sentence_and_a_hint(
    httpserver: HTTPServer, into: Path, recorder: Recorder, code: int, hint: str, tries: int
) -> None:
    answer(httpserver, "/api/finetune/export", {"detail": "the disk\u001b[31m is\nred."}, code)
    url = httpserver.url_for("").rstrip("/")
    error = refused(lambda: get_rows(url, into, recorder), into)
    said = "" if code == 204 else ": the disk [31m is red"
    assert error.message == f"{url} refused to make a dataset ({code}{said})."
    assert hint in error.hint
    assert len(httpserver.log) == tries
    assert len(recorder.said) == tries - 1
    assert all(re.fullmatch(re.escape(error.message) + r" Trying again in \d\.\d s\.", line) for line in recorder.said)


def test_a_422_names_its_fields_and_not_their_values(httpserver: HTTPServer, into: Path) -> None:
    detail = [
        {"type": "x", "loc": ["body", "validation_split"], "msg": "Input should be less than 0.5", "input": "secret"},
        {"loc": ["body", "format"], "msg": "no such format"},
        "odd", {"loc": 3}, {"msg": ["x"]},
    ]  # fmt: skip
    answer(httpserver, "/api/finetune/export", {"detail": detail}, 422)
    error = refused(lambda: get_rows(httpserver.url_for(""), into), into)
    assert "(422: validation_split: Input should be less than 0.5; format: no such format;" in error.message
    assert "secret" not in error.message


@pytest.mark.parametrize(
    "body", [b"<html><h1>Bad</h1></html>", b"", b"[]", b"\xff", b'{"detail": 7}', b'{"detail": " "}']
)
def test_an_error_page_is_not_repeated(httpserver: HTTPServer, into: Path, body: bytes) -> None:
    answer(httpserver, "/api/training/export", body, 500, "text/html")
    url = httpserver.url_for("").rstrip("/")
    error = refused(lambda: get_brain(url, into), into)
    assert error.message == f"{url} refused to export its brain (500)."


def test_a_long_error_is_cut(httpserver: HTTPServer, into: Path) -> None:
    answer(httpserver, "/api/training/export", {"detail": "x" * 5000}, 500)
    assert refused(lambda: get_brain(httpserver.url_for(""), into), into).message.count("x") < wire.MAX_ERROR_CHARS + 5


def test_an_endless_error_is_read_no_further_than_its_bound(into: Path) -> None:
    sent = []

    def talk(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            connection.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
            sent.append(4096)

    with sockets(talk) as url:
        refused(lambda: get_brain(url, into), into)
    assert sum(sent) < 64 << 20  # what the sockets' buffers hold, not what a server likes to send


# --- tries ----------------------------------------------------------------------------------------------------------


def failing_then(app: HTTPServer, *failures: Response) -> None:
    """Let the first answers be ``failures``, and the brain the next."""
    left = list(failures)

    def talk(request: Request) -> Response:
        return left.pop(0) if left else Response(orjson.dumps(BRAIN), content_type="application/json")

    app.expect_request("/api/training/export").respond_with_handler(talk)
    answer(app, "/api/cognitive/core-memories", MEMORIES)


def test_what_is_over_in_a_moment_is_tried_again(httpserver: HTTPServer, into: Path, recorder: Recorder) -> None:
    failing_then(httpserver, Response(b"", 503), Response(b"", 429), Response(b"", 502))
    assert len(get_brain(httpserver.url_for(""), into, recorder)) == 2
    assert [re.search(r"\((\d+)\)", line)[1] for line in recorder.said] == ["503", "429", "502"]
    assert into.joinpath("brain.json").read_bytes() == orjson.dumps(BRAIN)


def test_retry_after_is_kept(httpserver: HTTPServer, into: Path) -> None:
    failing_then(httpserver, Response(b"", 429, {"Retry-After": "1"}))
    began = time.monotonic()
    get_brain(httpserver.url_for(""), into)
    assert 1 <= time.monotonic() - began < 5
    httpserver.clear()
    failing_then(httpserver, Response(b"", 429, {"Retry-After": "soon"}))  # the control: nothing to keep
    began = time.monotonic()
    get_brain(httpserver.url_for(""), into)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    "wait",
    ["3600", "9" * 40, format_datetime(datetime.now(UTC) + timedelta(days=2), usegmt=True)],
    ids=["hours", "for ever", "a date"],
)
def test_a_wait_that_is_too_long_is_left_to_the_person(httpserver: HTTPServer, into: Path, wait: str) -> None:
    failing_then(httpserver, Response(b"", 503, {"Retry-After": wait}))
    error = refused(lambda: get_brain(httpserver.url_for(""), into), into)
    assert re.fullmatch(r"It asks to wait: run the same command again in \d+ minutes\.", error.hint)
    assert len(httpserver.log) == 1


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("5", 5), (" 0 ", 0), ("", None), ("-5", None), ("1.5", None), ("soon", None), ("١", None),
     ("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("Wed, 21 Oct 2015 07:28:00", 0)],
)  # fmt: skip
def test_retry_after_is_read(value: str, seconds: float | None) -> None:
    assert wire._retry_after(value) == seconds


def test_no_app(into: Path, recorder: Recorder) -> None:
    url = nobody()
    error = refused(lambda: get_brain(url, into, recorder), into, MachineError)
    assert error.message == f"No app answers at {url}."
    assert error.hint == "Start it, or name its address: --url URL (TWIN_APP_URL)"
    assert len(recorder.said) == 3


def test_an_app_that_comes_up_meanwhile(into: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "FIRST_WAIT_SECONDS", 0.3)
    url = nobody()
    late = HTTPServer(port=int(url.rpartition(":")[2]))
    answer(late, "/api/training/export", BRAIN)
    answer(late, "/api/cognitive/core-memories", MEMORIES)
    heard = recorder.say

    def start(line: str) -> None:
        heard(line)
        if not late.is_running():
            late.start()

    monkeypatch.setattr(recorder, "say", start)
    try:
        assert len(get_brain(url, into, recorder)) == 2
        assert recorder.said[0].startswith(f"No app answers at {url}. Trying again in ")
    finally:
        late.stop()


# --- the wire -------------------------------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (HEAD + b"Content-Length: 1000\r\n\r\n{}", "broke before the end of its answer"),
        (HEAD + b"Content-Length: 5\r\n\r\n" + orjson.dumps(BRAIN), "is cut short"),
        (HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}", "broke before the end"),
        (HEAD + b"Content-Length: -5\r\n\r\n{}", "broke before the end"),
        (HEAD + b"Content-Length: 4294967297\r\n\r\n{}", "more than 4,294,967,296 bytes"),
        (HEAD + b"Content-Length: 99999999999999999999\r\n\r\n{}", "more than 4,294,967,296 bytes"),
        (HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n{}", "broke before the end"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{", "broke before the end"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{", "broke before the end"),
        (HEAD + b"\r\n" + orjson.dumps(BRAIN)[:-9], "is cut short"),
        (HEAD + b"Content-Encoding: gzip\r\n\r\n\x1f\x8b", "compressed (gzip), though it was asked not to be"),
        (HEAD + b"X: " + b"x" * 200_000, "broke before the end"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "broke before the end"),
        (b"", "broke before the end"),
    ],
)  # fmt: skip
def test_an_answer_that_lies_is_an_error(into: Path, sent: bytes, words: str) -> None:
    with sockets(lambda connection, _: connection.sendall(sent)) as url:
        assert words in refused(lambda: get_brain(url, into), into).message


def test_a_connection_that_is_reset_in_the_middle(into: Path) -> None:
    def talk(connection: socket.socket, _: bytes) -> None:
        connection.sendall(HEAD + b'Content-Length: 1000\r\n\r\n{"training_examples": [')
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with sockets(talk) as url:
        error = refused(lambda: get_brain(url, into), into)
    assert "broke before the end of its answer when asked to export its brain" in error.message


def dribble_body(connection: socket.socket, _: bytes) -> None:
    connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"1\r\n \r\n")
        time.sleep(0.02)


def dribble_head(connection: socket.socket, _: bytes) -> None:
    connection.sendall(HEAD + b"X: ")
    while True:
        connection.sendall(b"x")
        time.sleep(0.02)


def hint_for_ever(connection: socket.socket, _: bytes) -> None:
    while True:
        connection.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100)


def pour_body(connection: socket.socket, _: bytes) -> None:
    connection.sendall(HEAD + b'Transfer-Encoding: chunked\r\n\r\n6\r\n{"a":[\r\n')
    while True:
        connection.sendall(b"10000\r\n" + b"1," * 32768 + b"\r\n")


@pytest.mark.parametrize("talk", [dribble_body, dribble_head, hint_for_ever, pour_body])
def test_a_server_that_never_ends_is_left(
    into: Path, monkeypatch: pytest.MonkeyPatch, talk: Callable[[socket.socket, bytes], None]
) -> None:
    monkeypatch.setattr(wire, "WHOLE_SECONDS", 0.7)
    began = time.monotonic()
    with sockets(talk) as url:
        error = refused(lambda: get_brain(url, into), into)
    assert 0.7 <= time.monotonic() - began < 5
    assert error.message == f"{url} had not finished after 0.7 s when asked to export its brain."


def test_a_silent_server_is_left(into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "READ_SECONDS", 0.3)
    with sockets(lambda connection, _: time.sleep(20)) as url:
        error = refused(lambda: get_brain(url, into), into)
    assert error.message == f"{url} sent nothing for 0.3 s when asked to export its brain."


@pytest.mark.parametrize("call", [get_brain, get_rows])
@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(
    httpserver: HTTPServer, into: Path, code: int, call: Callable[[str, Path], object]
) -> None:
    visits: list[bytes] = []
    with sockets(lambda connection, request: visits.append(request)) as elsewhere:
        target = f"{elsewhere}/api/training/export"
        for path in ("/api/training/export", "/api/finetune/export"):
            httpserver.expect_request(path).respond_with_data(b"", code, {"Location": target})
        url = httpserver.url_for("").rstrip("/")
        error = refused(lambda: call(url, into), into)
    assert error.message.startswith(f"{url} sends on to '{target}' ({code})")
    assert error.message.endswith("the token is not taken there.")
    assert "--url" in error.hint
    assert visits == []
    assert len(httpserver.log) == 1


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("file:///etc/passwd", "sends on to 'file:///etc/passwd' (302)"),
        ("//evil.example", "sends on to '//evil.example' (302)"),
        ("/login", "sends on to '/login' (302)"),
        ("gopher://x", "sends on to 'gopher://x' (302)"),
        ("javascript:x", "is not the app's: it is a redirect to what is no address."),
    ],
)
def test_a_redirect_to_anything_is_a_sentence(into: Path, target: str, words: str) -> None:
    head = f"HTTP/1.1 302 Found\r\nLocation: {target}\r\n\r\n".encode()
    asked: list[bytes] = []
    with sockets(lambda connection, request: asked.append(request) or connection.sendall(head)) as url:
        assert words in refused(lambda: get_brain(url, into), into).message
    assert len(asked) == 1


def test_a_redirect_to_nowhere_is_a_sentence(into: Path) -> None:
    with sockets(lambda connection, _: connection.sendall(b"HTTP/1.1 302 Found\r\n\r\n")) as url:
        assert "sends on to 'nowhere' (302)" in refused(lambda: get_brain(url, into), into).message


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("text/html; charset=utf-8", "it is a web page, not JSON"),
        ("text/HTML", "it is a web page"),
        ("text/csv", "it is of the type 'text/csv'"),
        ("application/x-ndjson", "it is of the type 'application/x-ndjson'"),
    ],
)
def test_another_content_type_is_refused(httpserver: HTTPServer, into: Path, kind: str, words: str) -> None:
    answer(httpserver, "/api/training/export", BRAIN, kind=kind)
    assert words in refused(lambda: get_brain(httpserver.url_for(""), into), into).message


def test_no_content_type_is_refused(into: Path) -> None:
    with sockets(lambda connection, _: connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n{}")) as url:
        assert "it is of no type, not JSON" in refused(lambda: get_brain(url, into), into).message


@pytest.mark.parametrize("path", ["/api/finetune/export", "/api/finetune/download/train"])
def test_a_web_page_in_place_of_rows_is_refused(app: HTTPServer, into: Path, path: str) -> None:
    app.clear()
    kinds = {"/api/finetune/export": "application/json", "/api/finetune/download/train": "application/x-ndjson"}
    for one, body in (("/api/finetune/export", orjson.dumps(SPLIT)), ("/api/finetune/download/train", jsonl(ROW))):
        answer(app, one, body, kind="text/html" if one == path else kinds[one])
    assert "it is a web page" in refused(lambda: get_rows(app.url_for(""), into), into).message


def test_a_full_disk_is_a_sentence(app: HTTPServer) -> None:
    folder = Path("/dev/full")
    with pytest.raises(UsageError, match="a file stands where a folder is needed"):
        get_brain(app.url_for(""), folder)


# --- the token ------------------------------------------------------------------------------------------------------


ECHO = orjson.dumps({"detail": f"Bearer {TOKEN} is not welcome, {TOKEN}, {'x' * 250}{TOKEN}"})
ECHOES = {str(code): (code, {}) for code in (200, 400, 401, 403, 404, 422, 429, 500, 502, 503)} | {
    "location": (302, {"Location": f"https://evil.example/?token={TOKEN}"}),
    "type": (200, {"Content-Type": f"text/{TOKEN}"}),
    "coding": (200, {"Content-Encoding": TOKEN}),
}


@pytest.mark.parametrize("echo", sorted(ECHOES))
@pytest.mark.parametrize("call", [get_brain, get_rows])
def test_a_server_that_repeats_the_token_is_not_repeated(
    httpserver: HTTPServer, into: Path, recorder: Recorder, caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str], echo: str, call: Callable[..., object],
) -> None:  # fmt: skip
    code, headers = ECHOES[echo]
    given = {"Content-Type": "application/json"} | headers
    httpserver.expect_request(re.compile(".*")).respond_with_data(ECHO, code, given)
    caplog.set_level(logging.DEBUG)
    # At DEBUG httpcore logs an answer's headers as they came; twin never asks it to.
    logging.getLogger("httpcore").setLevel(logging.INFO if headers else logging.DEBUG)
    # What the server said lies in the frames' locals, as long as they live.
    error = refused(lambda: call(httpserver.url_for(""), into, recorder), into, frames=False)
    told = [error.message, error.hint, *recorder.said, caplog.text, *capfd.readouterr()]
    signature = TOKEN.rpartition(".")[2]
    assert [text for text in told if TOKEN[:30] in text or signature in text] == []
    assert "HTTP Request: " in caplog.text
    assert httpserver.log[0][0].headers["Authorization"] == f"Bearer {TOKEN}"  # it was there to be repeated


@pytest.mark.parametrize("given", ["opaque-token-of-no-shape", TOKEN])
def test_what_a_server_says_is_cleaned(given: str) -> None:
    app = wire.App("https://app.example", SecretStr(given), Silent())
    other = "eyJhbGciOiJub25lIn0.eyJyb2xlIjoib3duZXIifQ."
    said = app.clean(f"a\u001b[31m\u202e b\n\n{given} c {other}", 60)
    assert said == "a [31m b [the token] c [a token]"
    assert app.clean("x" * 61, 60) == "x" * 59 + "…"
    assert app.clean(f"{'x' * 50}{given}", 60) == "x" * 50 + "[the toke…"  # never the beginning of a token


@pytest.mark.parametrize("answered", [b"", HEAD + b"Content-Length: 9\r\n\r\n{}", b"SSH-2.0\r\n"])
def test_no_exception_of_httpx_stays_in_the_chain(into: Path, answered: bytes) -> None:
    with sockets(lambda connection, _: connection.sendall(answered)) as url:
        error = refused(lambda: get_brain(url, into), into)
    assert error.__cause__ is None
    assert error.__context__ is None


def test_what_looks_for_the_token_would_find_it() -> None:
    """The control of every assertion above: an exception of httpx does carry it."""
    import httpx

    with pytest.raises(httpx.ConnectError) as caught:
        httpx.get(nobody(), headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False)
    assert TOKEN in everything_said(caught.value)
    chained = StepError("x")
    chained.__context__ = caught.value
    assert TOKEN in everything_said(chained)


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("http://app.example", True), ("http://192.168.0.2:8000", True), ("http://0.0.0.0:8000", True),
        ("https://app.example", False), ("http://localhost:8000", False), ("http://127.0.0.1:8000", False),
        ("http://[::1]:8000", False),
    ],
)  # fmt: skip
def test_an_unencrypted_way_is_warned_of_once(recorder: Recorder, url: str, warned: bool) -> None:
    wire.App(url, HOLDER, recorder)
    line = f"Warning: {url} is not https, so the token and your chats travel where others can read them."
    assert recorder.said == ([line] if warned else [])


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host", "http://me:hunter2@host", "localhost:8000"])
@pytest.mark.parametrize("call", [get_brain, get_rows])
def test_what_is_no_address_is_refused_before_anything(into: Path, url: str, call: Callable[..., object]) -> None:
    refused(lambda: call(url, into), into, UsageError)


# --- proxies, certificates, notebooks -------------------------------------------------------------------------------


def test_this_machine_is_never_asked_through_a_proxy(
    app: HTTPServer, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, nobody())
    assert len(get_brain(app.url_for(""), into)) == 2


def test_elsewhere_is_asked_through_the_proxy_of_the_environment(
    app: HTTPServer, into: Path, monkeypatch: pytest.MonkeyPatch, recorder: Recorder
) -> None:
    monkeypatch.setenv("HTTP_PROXY", app.url_for("").rstrip("/"))
    monkeypatch.setenv("http_proxy", app.url_for("").rstrip("/"))
    assert len(get_brain("http://app.invalid", into, recorder)) == 2
    assert {request.host for request, _ in app.log} == {"app.invalid"}


def test_https_to_a_server_that_speaks_http(app: HTTPServer, into: Path) -> None:
    url = app.url_for("").rstrip("/").replace("http:", "https:")
    error = refused(lambda: get_brain(url, into), into, MachineError)
    assert error.message == f"What listens at {url} does not speak https."


@pytest.fixture
def certificate(tmp_path: Path) -> Iterator[ssl.SSLContext]:
    """A certificate that nobody signed."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout",
         "key.pem", "-out", "cert.pem", "-days", "1", "-subj", "/CN=localhost"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    return context


def test_a_certificate_that_nobody_signed(certificate: ssl.SSLContext, into: Path, recorder: Recorder) -> None:
    with HTTPServer(host="localhost", ssl_context=certificate) as server:
        url = server.url_for("").rstrip("/")
        error = refused(lambda: get_brain(url, into, recorder), into, MachineError)
        assert server.log == []
    assert error.message == f"The certificate of {url} is not one that this machine trusts."
    assert recorder.said == []


def test_in_a_notebook_a_loop_runs_already(app: HTTPServer, into: Path) -> None:
    async def cell() -> list[Path]:
        return get_brain(app.url_for(""), into)

    assert len(asyncio.run(cell())) == 2


def test_ctrl_c_leaves_nothing(into: Path) -> None:
    """A stop in the middle of a body: the event loop hands it on, and what is unfinished goes."""
    import signal

    def talk(connection: socket.socket, _: bytes) -> None:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n")
        signal.raise_signal(signal.SIGINT)
        time.sleep(20)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever a test before this one left there
    try:
        with sockets(talk) as url, pytest.raises(KeyboardInterrupt):
            get_brain(url, into)
    finally:
        signal.signal(signal.SIGINT, before)
    assert list(into.iterdir()) == []
