"""The served API under a real uvicorn: who may ask, what is answered, and what a caller never learns."""

from __future__ import annotations

import base64
import logging
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import jwt
import orjson
import pytest
from pydantic import SecretStr

from tests.app.conftest import NOON, SECRET, Brain, chat, serving
from tests.ollama.conftest import Recorder
from twin.app import server as server_module
from twin.app.client import ExportAsk, fetch_brain, fetch_rows
from twin.app.server import create_app, mint_token, serve
from twin.errors import MachineError, StepError, UsageError
from twin.progress import Silent

CALLS = [
    ("POST", "/api/finetune/export"), ("GET", "/api/finetune/download"), ("GET", "/api/finetune/download/train"),
    ("GET", "/api/finetune/download/val"), ("GET", "/api/finetune/stats"), ("GET", "/api/finetune/analyze"),
    ("GET", "/api/finetune/formats"), ("POST", "/api/finetune/preview"), ("GET", "/api/training/export"),
    ("GET", "/api/cognitive/core-memories"),
]  # fmt: skip


@pytest.fixture
def url(brain: Brain) -> Iterator[str]:
    with serving(brain.source()) as found:
        yield found


@pytest.fixture
def admin(url: str) -> Iterator[httpx.Client]:
    """A client with an admin's token."""
    with httpx.Client(base_url=url, headers=bearer(mint_token(SECRET).get_secret_value()), trust_env=False) as client:
        yield client


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def signed(key: bytes | None = SECRET.get_secret_value().encode(), algorithm: str = "HS256", **claims: Any) -> str:
    whole = {"role": "admin", "exp": datetime.now(UTC) + timedelta(hours=1)} | claims
    return jwt.encode({key: value for key, value in whole.items() if value is not None}, key, algorithm)


# --- who may ask ----------------------------------------------------------------------------------------------------


def test_these_are_the_calls(brain: Brain) -> None:
    paths = create_app(brain.source(), SECRET).openapi()["paths"]
    assert sorted((method.upper(), path) for path, item in paths.items() for method in item) == sorted(CALLS)


def deep_header() -> str:
    """A token whose header is lists in lists in lists."""
    return f"{base64.urlsafe_b64encode(b'[' * 20_000).decode().rstrip('=')}.e30.c2ln"


BAD_TOKENS = {
    "none": None,
    "garbage": "x.y.z",
    "other key": signed(b"another key, also of thirty-two bytes"),
    "other algorithm": signed(algorithm="HS512"),
    "unsigned": signed(None, "none"),
    "run out": signed(exp=datetime.now(UTC) - timedelta(seconds=1)),
    "no end": signed(exp=None),
    "not yet": signed(nbf=datetime.now(UTC) + timedelta(hours=1)),
    "odd end": signed(exp="tomorrow"),
    "for others": signed(aud="somebody"),
    "deep": deep_header(),
    "cut": signed()[:-1],
    "not ASCII": "é",
}


@pytest.mark.parametrize("name", sorted(BAD_TOKENS))
def test_without_a_valid_token_nobody_is_let_in(url: str, name: str) -> None:
    token = BAD_TOKENS[name]
    headers = {} if token is None else {"Authorization": f"Bearer {token}".encode("latin-1")}
    for method, path in CALLS:
        answer = httpx.request(
            method, url + path, headers=headers, json={} if method == "POST" else None, trust_env=False
        )
        assert answer.status_code == 401, path
        assert set(answer.json()) == {"detail"}
        assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_another_scheme_is_no_token(url: str) -> None:
    for given in (f"Basic {signed()}", signed(), "Bearer", ""):
        answer = httpx.get(f"{url}/api/finetune/formats", headers={"Authorization": given}, trust_env=False)
        assert (answer.status_code, answer.json()["detail"]) == (401, "There is no bearer token.")


@pytest.mark.parametrize("role", ["user", "Admin", "", "administrator", None, ["admin"], {"admin": 1}, 1])
def test_another_role_is_forbidden(url: str, role: Any) -> None:
    for method, path in CALLS:
        body = {} if method == "POST" else None
        answer = httpx.request(method, url + path, headers=bearer(signed(role=role)), json=body, trust_env=False)
        assert (answer.status_code, answer.json()) == (403, {"detail": "This takes the role admin or owner."})


@pytest.mark.parametrize("role", ["admin", "owner"])
def test_admin_and_owner_are_let_in(url: str, role: str) -> None:
    for token in (signed(role=role), mint_token(SECRET, role, 0.1).get_secret_value()):
        assert httpx.get(f"{url}/api/finetune/formats", headers=bearer(token), trust_env=False).status_code == 200


def test_a_minted_token_runs_out_when_it_says() -> None:
    before = datetime.now(UTC)
    claims = jwt.decode(mint_token(SECRET, "owner", 2).get_secret_value(), SECRET.get_secret_value(), ["HS256"])
    assert claims["role"] == "owner"
    assert abs(datetime.fromtimestamp(claims["exp"], UTC) - before - timedelta(hours=2)) < timedelta(seconds=5)


@pytest.mark.parametrize(
    ("role", "hours", "words"),
    [("user", 1, "no role"), ("admin", 0, "0 hours"), ("admin", -1, "-1 hours"), ("admin", 1e9, "1e\\+09 hours"),
     ("admin", float("nan"), "nan hours")],
)  # fmt: skip
def test_what_is_not_minted(role: str, hours: float, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        mint_token(SECRET, role, hours)


def test_a_short_secret_is_refused(brain: Brain) -> None:
    for make in (lambda: create_app(brain.source(), SecretStr("x" * 31)), lambda: mint_token(SecretStr(""))):
        with pytest.raises(UsageError, match="it needs 32"):
            make()


def test_no_page_of_another_site_may_read_it(url: str) -> None:
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "GET"}
    for method in ("OPTIONS", "GET"):
        answer = httpx.request(method, f"{url}/api/finetune/formats", headers=headers, trust_env=False)
        assert answer.status_code == (405 if method == "OPTIONS" else 401)
        assert [name for name in answer.headers if name.lower().startswith("access-control")] == []


def test_no_page_loads_scripts_from_elsewhere(url: str) -> None:
    page = httpx.get(url + "/docs", trust_env=False)
    assert (page.status_code, httpx.get(url + "/redoc", trust_env=False).status_code) == (200, 404)
    # A token is typed into that page: nothing of it may come from elsewhere.
    loaded = re.findall(r"""(?:src|href)=["']([^"']+)""", page.text)
    assert len(loaded) >= 2
    assert all(place.startswith("/") and not place.startswith("//") for place in loaded)
    assert {httpx.get(url + place, trust_env=False).status_code for place in loaded} == {200}
    assert httpx.get(f"{url}/openapi.json", trust_env=False).status_code == 200


# --- datasets -------------------------------------------------------------------------------------------------------


def test_a_split_export_and_its_downloads(admin: httpx.Client, brain: Brain) -> None:
    body = {"format": "alpaca", "include_system": False, "validation_split": 0.2, "shuffle": False}
    assert admin.post("/api/finetune/export", json=body).json() == {
        "success": True, "format": "alpaca", "total_examples": 10, "train_examples": 8, "val_examples": 2,
        "train_path": "train.jsonl", "val_path": "val.jsonl", "full_path": "finetune_dataset.jsonl",
    }  # fmt: skip
    assert brain.asked == [ExportAsk("alpaca", False, True, True, 0.2, False)]
    for part, name in (("", "finetune_dataset"), ("/train", "train"), ("/val", "val")):
        got = admin.get(f"/api/finetune/download{part}")
        assert got.content == (brain.folder / f"{name}.jsonl").read_bytes()
        assert got.headers["Content-Type"] == "application/x-ndjson"
        assert got.headers["Content-Length"] == str(len(got.content))
        assert got.headers["Content-Disposition"] == f'attachment; filename="{name}.jsonl"'
        assert got.headers["Cache-Control"] == "no-store"


def test_an_unsplit_export_has_no_parts(admin: httpx.Client) -> None:
    admin.post("/api/finetune/export", json={"validation_split": 0.5})
    assert admin.post("/api/finetune/export", json={"validation_split": 0}).json() == {
        "success": True, "format": "chatml", "total_examples": 10, "path": "finetune_dataset.jsonl"
    }  # fmt: skip
    codes = [admin.get(f"/api/finetune/download{part}").status_code for part in ("", "/train", "/val")]
    assert codes == [200, 404, 404]


def test_an_export_without_rows_is_no_success(admin: httpx.Client, brain: Brain) -> None:
    admin.post("/api/finetune/export", json={})
    brain.rows = 0
    answer = admin.post("/api/finetune/export", json={}).json()
    assert (answer["success"], answer["total_examples"]) == (False, 0)
    assert answer["error"].startswith("no row is left")
    assert admin.get("/api/finetune/download").status_code == 404


def test_nothing_exported_yet(admin: httpx.Client) -> None:
    for part in ("", "/train", "/val"):
        answer = admin.get(f"/api/finetune/download{part}")
        assert answer.status_code == 404
        assert answer.json() == {"detail": "Nothing of that is exported yet: POST /api/finetune/export"}


def test_what_was_exported_is_gone(admin: httpx.Client, brain: Brain, caplog: pytest.LogCaptureFixture) -> None:
    admin.post("/api/finetune/export", json={})
    (brain.folder / "train.jsonl").unlink()
    answer = admin.get("/api/finetune/download/train")
    assert (answer.status_code, answer.json()["detail"][:25]) == (404, "What was exported is gone")
    assert str(brain.folder) in caplog.text


def test_a_download_is_not_torn_by_the_next_export(brain: Brain) -> None:
    brain.rows = 60_000
    with serving(brain.source()) as url:
        headers = bearer(mint_token(SECRET).get_secret_value())
        with httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=30) as client:
            client.post("/api/finetune/export", json={})
            first = (brain.folder / "finetune_dataset.jsonl").read_bytes()
            with client.stream("GET", "/api/finetune/download") as response:
                pieces = response.iter_raw()
                got = next(pieces)
                file = brain.folder / "new"
                file.write_bytes(b"other")
                file.replace(brain.folder / "finetune_dataset.jsonl")  # as an atomic write does
                got += b"".join(pieces)
            assert len(first) > 4 << 20
            assert got == first
            assert client.get("/api/finetune/download").content == b"other"


def test_exports_wait_for_one_another(brain: Brain) -> None:
    running: list[int] = []
    most: list[int] = []
    source = brain.source()

    def slow(ask: ExportAsk) -> Any:
        running.append(1)
        most.append(len(running))
        time.sleep(0.1)
        running.pop()
        return source.export(ask)

    slowed = type(source)(source.person, source.personality, (), source.conversations, slow, source.preview)
    with serving(slowed) as url:
        headers = bearer(mint_token(SECRET).get_secret_value())
        ask = {"headers": headers, "json": {}, "trust_env": False, "timeout": 30}
        threads = [
            threading.Thread(target=httpx.post, args=(f"{url}/api/finetune/export",), kwargs=ask) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most == [1, 1, 1]


BAD_BODIES = [
    {"format": "csv"}, {"format": 1}, {"format": None}, {"validation_split": 0.51}, {"validation_split": -0.01},
    {"validation_split": "0.1"}, {"validation_split": True}, {"shuffle": "yes"}, {"shuffle": 1},
    {"deduplicate": None}, {"include_system": []}, {"unknown": 1}, [], "x", None, 3,
]  # fmt: skip


@pytest.mark.parametrize("body", BAD_BODIES)
def test_a_bad_field_is_refused(admin: httpx.Client, brain: Brain, body: Any) -> None:
    answer = admin.post("/api/finetune/export", json=body)
    assert answer.status_code == 422
    assert all(set(problem) == {"type", "loc", "msg"} for problem in answer.json()["detail"])
    assert answer.json()["detail"]
    assert brain.asked == []


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"validation_split": NaN}', b'{"validation_split": 1e999}'])
def test_what_is_no_json_is_refused(admin: httpx.Client, brain: Brain, body: bytes) -> None:
    answer = admin.post("/api/finetune/export", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert brain.asked == []


@pytest.mark.parametrize("split", [0, 0.5, 0.0001])
def test_a_good_split_is_taken(admin: httpx.Client, split: float) -> None:
    assert admin.post("/api/finetune/export", json={"validation_split": split}).status_code == 200


@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_over_64_kib_is_refused(url: str, chunked: bool) -> None:
    for size, code in ((65 << 10, 413), (63 << 10, 401)):
        body = orjson.dumps({"format": "x" * size})
        headers = {"Content-Type": "application/json"}
        answer = httpx.post(
            f"{url}/api/finetune/export", content=iter([body]) if chunked else body, headers=headers, trust_env=False
        )
        assert answer.status_code == code


def test_a_body_too_large_is_answered_as_the_page_says(url: str) -> None:
    promised = httpx.get(f"{url}/openapi.json", trust_env=False).json()["paths"]["/api/finetune/export"]["post"]
    assert sorted(promised["responses"]["413"]["content"]) == ["application/json", "text/plain"]
    body = b'"' + b"x" * 70_000 + b'"'
    for content, kind in ((body, "text/plain"), (iter([body]), "application/json")):
        headers = {"Content-Type": "application/json"}
        answer = httpx.post(f"{url}/api/finetune/export", content=content, headers=headers, trust_env=False)
        assert (answer.status_code, answer.headers["Content-Type"].partition(";")[0]) == (413, kind)


def test_a_preview(admin: httpx.Client, brain: Brain) -> None:
    answer = admin.post("/api/finetune/preview", json={"format": "raw", "limit": 3}).json()
    assert answer == {"format": "raw", "examples": [brain.row(number) | {"format": "raw"} for number in range(3)]}
    assert len(admin.post("/api/finetune/preview", json={}).json()["examples"]) == 5
    for limit in (0, 21, "3", 2.5, None):
        assert admin.post("/api/finetune/preview", json={"limit": limit}).status_code == 422
    for limit in (1, 20):
        assert admin.post("/api/finetune/preview", json={"limit": limit}).status_code == 200


def test_stats_analysis_and_formats(admin: httpx.Client) -> None:
    assert admin.get("/api/finetune/stats").json() == {
        "person": "Ada", "conversations": 2, "exchanges": 3, "memories": 2,
        "memories_by_category": {"preferences": 1, "facts": 1},
    }  # fmt: skip
    assert admin.get("/api/finetune/analyze").json() == {
        "exchanges": 3, "without_context": 1, "mean_context_characters": (20 + 11) / 2,
        "mean_response_characters": (9 + 5 + 6) / 3, "longest_response_characters": 9,
        "first": "2024-03-01T12:00:00", "last": "2024-03-01T12:02:00",
    }  # fmt: skip
    names = [one["name"] for one in admin.get("/api/finetune/formats").json()["formats"]]
    assert names == ["chatml", "alpaca", "sharegpt", "raw"]


def test_an_empty_brain_can_be_measured(brain: Brain) -> None:
    brain.conversations.clear()
    with serving(brain.source()) as url:
        headers = bearer(mint_token(SECRET).get_secret_value())
        answer = httpx.get(f"{url}/api/finetune/analyze", headers=headers, trust_env=False).json()
    assert answer == {
        "exchanges": 0, "without_context": 0, "mean_context_characters": 0, "mean_response_characters": 0,
        "longest_response_characters": 0, "first": None, "last": None,
    }  # fmt: skip


# --- the brain ------------------------------------------------------------------------------------------------------


def test_the_brain(admin: httpx.Client) -> None:
    answer = admin.get("/api/training/export")
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "no-store"
    whole = answer.json()
    assert whole["format_version"] == "1.0"
    assert whole["personality_profile"] == {
        "name": "Ada", "common_phrases": ["ok so"], "emoji_patterns": ["🦆"], "vocabulary": [],
        "avg_message_length": None, "typing_quirks": ["no capitals"], "tone_markers": ["dry"],
        "facts": ["fixes clocks"], "response_examples": [{"context": "a", "response": "b"}],
    }  # fmt: skip
    assert whole["training_examples"][0] == {
        "context": "are you coming?\nat 8", "response": "on my way", "source": "1 Bea%3A 100%25.txt:Bea",
        "timestamp": "2024-03-01T12:02:00",
    }  # fmt: skip
    assert len(whole["training_examples"]) == 3


def test_memories_come_by_importance(admin: httpx.Client) -> None:
    tea = {
        "id": 1,
        "memory": "Drinks tea",
        "category": "preferences",
        "importance": 0.4,
        "created_at": NOON.isoformat(),
    }
    clocks = {"id": 2, "memory": "Fixes clocks", "category": "facts", "importance": 0.9, "created_at": None}
    stats = {"total": 2, "by_category": {"preferences": 1, "facts": 1}}
    assert admin.get("/api/cognitive/core-memories").json() == {"memories": [clocks, tea], "stats": stats}
    assert admin.get("/api/cognitive/core-memories?limit=1").json() == {"memories": [clocks], "stats": stats}
    for limit in ("0", "-1", "100001", "x", ""):
        assert admin.get(f"/api/cognitive/core-memories?limit={limit}").status_code == 422


def test_the_brain_is_sent_while_it_is_read(brain: Brain) -> None:
    """A server that read it all first would wait here for ever."""
    go_on = threading.Event()
    source = brain.source()

    def slowly() -> Iterator[Any]:
        for number in range(5000):
            yield chat(f"c{number}", ("Bea", "x" * 100), ("Ada", "y" * 100))
        assert go_on.wait(10)
        yield chat("last", ("Ada", "the end"))

    slow = type(source)(source.person, source.personality, (), slowly, source.export, source.preview)
    with serving(slow) as url:
        headers = bearer(mint_token(SECRET).get_secret_value())
        with httpx.stream(
            "GET", f"{url}/api/training/export", headers=headers, trust_env=False, timeout=20
        ) as response:
            pieces = response.iter_raw()
            got = next(pieces)
            assert not go_on.is_set()
            go_on.set()
            got += b"".join(pieces)
    assert orjson.loads(got)["training_examples"][-1]["response"] == "the end"


# --- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/api/finetune/export"), ("POST", "/api/finetune/preview"), ("GET", "/api/finetune/stats"),
     ("GET", "/api/finetune/analyze"), ("GET", "/api/training/export")],
)  # fmt: skip
@pytest.mark.parametrize(
    "error", [StepError("'/home/ada/brain' is broken.", "Mend it."), RuntimeError("/home/ada/brain")]
)
def test_a_failure_tells_the_terminal_and_not_the_caller(
    admin: httpx.Client, brain: Brain, caplog: pytest.LogCaptureFixture, method: str, path: str, error: Exception
) -> None:
    brain.fails = error
    answer = admin.request(method, path, json={} if method == "POST" else None)
    assert answer.status_code == 500
    assert list(answer.json()) == ["detail"]
    assert "terminal says why" in answer.json()["detail"]
    assert "ada" not in answer.text
    deadline = time.monotonic() + 5
    while "/home/ada/brain" not in caplog.text and time.monotonic() < deadline:  # uvicorn logs after it answered
        time.sleep(0.01)
    assert "/home/ada/brain" in caplog.text


def test_a_failure_in_the_middle_breaks_the_answer_off(brain: Brain, tmp_path: Path) -> None:
    source = brain.source()

    def breaks() -> Iterator[Any]:
        for number in range(5000):
            yield chat(f"c{number}", ("Bea", "x" * 100), ("Ada", "y" * 100))
        raise StepError("'/home/ada/brain' is broken.", "Mend it.")

    broken = type(source)(source.person, source.personality, (), breaks, source.export, source.preview)
    (tmp_path / "into").mkdir()
    with serving(broken) as url, pytest.raises(StepError, match="broke before the end of its answer"):
        fetch_brain(url, mint_token(SECRET), tmp_path / "into", Silent())
    assert list((tmp_path / "into").iterdir()) == []


@pytest.mark.parametrize(
    "path", ["/", "/api", "/api/finetune/download/test", "/api/finetune/download/..%2f..%2fetc", "//etc"]
)
def test_there_is_nothing_else(admin: httpx.Client, path: str) -> None:
    assert admin.get(path).status_code == 404


# --- both ends ------------------------------------------------------------------------------------------------------


def test_our_client_reads_our_server(url: str, brain: Brain, into: Path, recorder: Recorder) -> None:
    token = mint_token(SECRET, "owner")
    got = fetch_rows(url, token, ExportAsk(validation_split=0.2), into, recorder)
    assert (got.train_rows, got.val_rows, got.dropped) == (8, 2, {})
    assert got.train.read_bytes() == (brain.folder / "train.jsonl").read_bytes()
    unsplit = fetch_rows(url, token, ExportAsk(validation_split=0), into, recorder)
    assert (unsplit.train_rows, unsplit.val) == (10, None)
    paths = fetch_brain(url, token, into, recorder)
    assert len(orjson.loads(paths[0].read_bytes())["training_examples"]) == 3
    assert len(orjson.loads(paths[1].read_bytes())["memories"]) == 2
    assert recorder.said == []
    brain.rows = 0
    with pytest.raises(StepError, match="made no dataset: no row is left"):
        fetch_rows(url, token, ExportAsk(), into, recorder)
    with pytest.raises(StepError, match=r"\(401: The token is not valid here\)"):
        fetch_brain(url, SecretStr("x"), into, recorder)
    with pytest.raises(StepError, match=r"\(403: This takes the role admin or owner\)"):
        fetch_brain(url, SecretStr(signed(role="user")), into, recorder)


# --- listening ------------------------------------------------------------------------------------------------------


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keeps what uvicorn would listen on, instead of listening until Ctrl-C."""
    found: list[str] = []

    def run(self: object, sockets: list[socket.socket]) -> None:
        found.append("{}:{}".format(*sockets[0].getsockname()[:2]))
        raise KeyboardInterrupt

    monkeypatch.setattr(server_module.uvicorn.Server, "run", run)
    return found


def test_it_listens_on_this_machine_and_ends_with_ctrl_c(brain: Brain, recorder: Recorder, runs: list[str]) -> None:
    ready: list[str] = []
    serve(brain.source(), SECRET, "127.0.0.1", 0, recorder, ready.append)
    assert recorder.said == []
    assert ready == [f"http://{runs[0]}"]
    assert runs[0].startswith("127.0.0.1:")


@pytest.mark.parametrize("host", ["0.0.0.0"])  # noqa: S104 - nothing is accepted: the server's run is replaced
def test_others_can_reach_it_with_one_warning(brain: Brain, recorder: Recorder, runs: list[str], host: str) -> None:
    serve(brain.source(), SECRET, host, 0, recorder, lambda url: None)
    assert recorder.said == [
        f"Warning: others can reach {host}; without a TLS proxy before it tokens and chats travel unencrypted."
    ]
    assert len(runs) == 1


SCRIPT = """
import sys
from pydantic import SecretStr
from twin.app.server import BrainSource, serve
from twin.progress import Silent
from twin.records import Personality

source = BrainSource("Ada", Personality(), (), lambda: (), None, None)
serve(source, SecretStr(sys.argv[1]), "127.0.0.1", 0, Silent(), lambda url: print(url, flush=True))
print("ended")
"""


def test_a_real_process_serves_until_ctrl_c() -> None:
    arguments = [sys.executable, "-c", SCRIPT, SECRET.get_secret_value()]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        headers = bearer(mint_token(SECRET).get_secret_value())
        assert httpx.get(f"{url}/api/finetune/stats", headers=headers, trust_env=False).json()["exchanges"] == 0
        assert httpx.get(f"{url}/api/finetune/stats", trust_env=False).status_code == 401
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "ended\n", "")


def test_a_port_that_is_taken(brain: Brain, recorder: Recorder, runs: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(MachineError, match=f"Can't listen on port {port} of 127.0.0.1: ") as caught:
            serve(brain.source(), SECRET, "127.0.0.1", port, recorder, lambda url: None)
    assert "--port 8001" in caught.value.hint
    assert runs == []


@pytest.mark.parametrize("host", ["", "no such host", "a" * 300, "::g"])
def test_a_host_that_is_none(brain: Brain, recorder: Recorder, runs: list[str], host: str) -> None:
    with pytest.raises(UsageError, match="is no address to listen on"):
        serve(brain.source(), SECRET, host, 0, recorder, lambda url: None)
    assert runs == []


def test_requests_are_not_logged(admin: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    admin.get("/api/finetune/formats")
    theirs = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    assert [record.getMessage() for record in theirs if "eyJ" in record.getMessage()] == []
