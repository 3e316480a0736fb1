"""The client against servers that misbehave on the wire, and against a real Ollama."""

from __future__ import annotations

import hashlib
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from tests.ollama.conftest import Recorder
from tests.servers import ollama_server
from tests.sockets import sockets
from twin.errors import MachineError, StepError, TwinError, UsageError
from twin.ollama import client as client_module
from twin.ollama.client import OllamaClient, resolve_host
from twin.progress import Silent
from twin.records import Turn

HI = [Turn("user", "hi")]
CALLS: dict[str, Callable[[OllamaClient], object]] = {
    "version": lambda client: client.version(),
    "create": lambda client: client.create("me", {}, Silent()),
    "show": lambda client: client.show("me"),
    "exists": lambda client: client.exists("me"),
    "copy": lambda client: client.copy("me", "you"),
    "delete": lambda client: client.delete("me"),
    "unload": lambda client: client.unload("me"),
    "render": lambda client: client.render("me", HI),
    "chat": lambda client: list(client.chat("me", HI)),
    "has_blob": lambda client: client.has_blob("sha256:00"),
}
READING = sorted(CALLS.keys() - {"copy", "delete", "has_blob"})


@pytest.fixture
def client(httpserver: HTTPServer) -> Iterator[OllamaClient]:
    with OllamaClient(httpserver.url_for(""), timeout=5) as made:
        yield made


def answer_all(server: HTTPServer, body: bytes, status: int = 200) -> None:
    server.expect_request(re.compile(".*")).respond_with_data(body, status=status)


def ndjson(*lines: object) -> bytes:
    return b"".join(orjson.dumps(line) + b"\n" for line in lines)


@contextmanager
def raw_server(answer: bytes, read: int = 65536, reset: bool = False) -> Iterator[str]:
    """A socket that answers every connection with ``answer`` and closes it, whatever HTTP says about its length."""

    def talk(connection: socket.socket, _: bytes) -> None:
        connection.sendall(answer)
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with sockets(talk, read) as url:
        yield url.removeprefix("http://")


# --- addresses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:11434"),
        ("box:8080", "http://box:8080"),
        ("my_box.lan", "http://my_box.lan:11434"),
        (":8080", "http://127.0.0.1:8080"),
        ("box:", "http://box:11434"),
        ("http://box", "http://box:80"),
        ("HTTPS://box", "https://box:443"),
        ("https://box:1234/", "https://box:1234"),
        ("https://box/behind/a/proxy/", "https://box:443/behind/a/proxy"),
        ("0.0.0.0", "http://127.0.0.1:11434"),  # noqa: S104
        ("0.0.0.0:9", "http://127.0.0.1:9"),
        ("http://0.0.0.0", "http://127.0.0.1:80"),
        ("::1", "http://[::1]:11434"),
        ("[::]:9", "http://[::1]:9"),
        ("[fe80::2]", "http://[fe80::2]:11434"),
        (' "box" ', "http://box:11434"),
    ],
)
def test_an_address_is_read_as_ollama_reads_it(given: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_host(given) == url
    monkeypatch.setenv("OLLAMA_HOST", given)
    assert resolve_host(None) == url


def test_the_flag_wins_over_the_environment_over_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_host() == "http://127.0.0.1:11434"
    monkeypatch.setenv("OLLAMA_HOST", "env:1")
    assert resolve_host() == "http://env:1"
    assert resolve_host("") == "http://env:1"
    assert resolve_host("flag:2") == "http://flag:2"


@pytest.mark.parametrize(
    "given",
    [
        "ftp://box",
        "box:port",
        "box:70000",
        "box:0",
        "user:secret@box",
        "http://a b",
        "box:1:2",
        "-box",
        "[::1",
        "a?b",
        "[::1]x",
        "box:١٢",
        "https://box/#x",
        "é",
    ],
)
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(UsageError, match="is not an address"):
        resolve_host(given)


def test_a_wrong_environment_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "box:port")
    with pytest.raises(UsageError, match="OLLAMA_HOST"):
        resolve_host()


def test_this_machine_is_never_asked_through_a_proxy(httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    httpserver.expect_request("/api/version").respond_with_json({"version": "1"})
    with OllamaClient(httpserver.url_for("")) as client:
        assert client.version() == "1"


def test_a_path_before_the_api_is_kept(httpserver: HTTPServer) -> None:
    httpserver.expect_request("/proxy/api/version").respond_with_json({"version": "1"})
    with OllamaClient(httpserver.url_for("/proxy/")) as client:
        assert client.version() == "1"


# --- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", sorted(CALLS))
def test_no_server(call: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        with OllamaClient(address) as client, pytest.raises(MachineError) as caught:
            CALLS[call](client)
    assert caught.value.exit_code == 3
    assert caught.value.message == f"No Ollama answers at http://{address}."
    assert caught.value.hint == "Start it: ollama serve (or install it from https://ollama.com/download)"


@pytest.mark.parametrize("code", [400, 401, 403, 404, 500, 503])
@pytest.mark.parametrize("call", sorted(CALLS.keys() - {"exists", "has_blob"}))
def test_a_refusal_carries_the_servers_words(
    httpserver: HTTPServer, client: OllamaClient, call: str, code: int
) -> None:
    answer_all(httpserver, b'{"error":"the disk\\u001b[31m is\\nred"}', code)
    with pytest.raises(StepError) as caught:
        CALLS[call](client)
    assert caught.value.message.endswith(f"({code}): the disk [31m is red")
    assert caught.value.hint


def test_refusals_have_their_own_hints(httpserver: HTTPServer, client: OllamaClient) -> None:
    for code, words in ((401, "login"), (403, "login"), (404, "ollama list"), (500, "log")):
        httpserver.clear()
        answer_all(httpserver, b"", code)
        with pytest.raises(StepError) as caught:
            client.show("me")
        assert words in caught.value.hint


@pytest.mark.parametrize("call", sorted(CALLS))
def test_a_server_that_sends_on(httpserver: HTTPServer, client: OllamaClient, call: str) -> None:
    there = Response(status=307, headers={"Location": "https://ollama.example.org/api\u001b"})
    httpserver.expect_request(re.compile(".*")).respond_with_response(there)
    with pytest.raises(StepError) as caught:
        CALLS[call](client)
    assert "sends on to 'https://ollama.example.org/api" in caught.value.message
    assert caught.value.message.endswith("; nothing is sent there.")
    assert caught.value.hint == "If that is your Ollama, name its address with --host."
    assert len(httpserver.log) == 1


@pytest.mark.parametrize(
    "words",
    [
        "write /models/blobs/sha256-1: no space left on device",
        "write C:\\models: There is not enough space on the disk.",
        "disk quota exceeded",
        "write /models/blobs/sha256-1: file too large",
    ],
)
@pytest.mark.parametrize("code", [500, 200])
def test_a_full_disk_of_the_server(httpserver: HTTPServer, client: OllamaClient, words: str, code: int) -> None:
    answer_all(httpserver, ndjson({"error": words}), code)
    with pytest.raises(MachineError) as caught:
        client.create("me", {}, Silent())
    assert caught.value.message.endswith(f": {words}")
    assert caught.value.hint.startswith("Free some space where Ollama keeps its models (OLLAMA_MODELS)")


@pytest.fixture
def certificate(tmp_path: Path) -> Iterator[ssl.SSLContext]:
    """A certificate that nobody signed."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout",
         "key.pem", "-out", "cert.pem", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    yield context


def test_a_certificate_that_nobody_signed(
    certificate: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HTTPServer(host="localhost", ssl_context=certificate) as server:
        url = server.url_for("").rstrip("/")
        server.expect_request("/api/version").respond_with_json({"version": "0.33.0"})
        with OllamaClient(url) as client, pytest.raises(MachineError) as caught:
            client.version()
        assert caught.value.message == f"The certificate of {url} is not one that this machine trusts."
        assert caught.value.hint == "Check the address. For a certificate of your own: export SSL_CERT_FILE=FILE"
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        with OllamaClient(url) as client:
            assert client.version() == "0.33.0"


def test_https_where_none_is_spoken(httpserver: HTTPServer) -> None:
    url = httpserver.url_for("").rstrip("/").replace("http://", "https://")
    with OllamaClient(url) as client, pytest.raises(MachineError) as caught:
        client.version()
    assert caught.value.message == f"What listens at {url} does not speak https."
    assert caught.value.hint == "Check the port, or try it with http://"


@pytest.mark.parametrize("version", ["0.0.0", "0.11.5", "0.33.0-rc1", "1.2.3", "my own"])
def test_versions_that_are_asked_more(httpserver: HTTPServer, client: OllamaClient, version: str) -> None:
    answer_all(httpserver, orjson.dumps({"version": version}))
    assert client.version() == version


@pytest.mark.parametrize("version", ["0.11.4", "0.3.12", "0.1.0-rc2"])
def test_a_version_that_shows_no_prompts(httpserver: HTTPServer, client: OllamaClient, version: str) -> None:
    answer_all(httpserver, orjson.dumps({"version": version}))
    with pytest.raises(MachineError) as caught:
        client.version()
    assert caught.value.message == (
        f"Ollama at {client.url} is {version}: it does not show the prompts that it renders, so they can't be checked."
    )
    assert caught.value.hint == "Update Ollama to 0.11.5 or newer: https://ollama.com/download"


def test_a_long_refusal_is_cut(httpserver: HTTPServer, client: OllamaClient) -> None:
    answer_all(httpserver, orjson.dumps({"error": "x" * 5000}), 500)
    with pytest.raises(StepError) as caught:
        client.show("me")
    assert caught.value.message.count("x") == client_module.MAX_ERROR_CHARS - 1


def test_a_refusal_that_is_no_json_is_shown_as_it_is(httpserver: HTTPServer, client: OllamaClient) -> None:
    answer_all(httpserver, b"<html>Bad\xff Gateway</html>" + b"y" * 10**6, 502)
    with pytest.raises(StepError, match=r"\(502\): <html>Bad. Gateway</html>y+…$"):
        client.show("me")


@pytest.mark.parametrize("body", [b"<html>hello</html>", b"[1]", b"\xff\x00", b"{"])
@pytest.mark.parametrize("call", READING)
def test_garbage(httpserver: HTTPServer, client: OllamaClient, call: str, body: bytes) -> None:
    answer_all(httpserver, body)
    with pytest.raises(StepError, match="is not Ollama's"):
        CALLS[call](client)


@pytest.mark.parametrize("call", READING)
def test_an_empty_answer(httpserver: HTTPServer, client: OllamaClient, call: str) -> None:
    answer_all(httpserver, b"")
    with pytest.raises(StepError):
        CALLS[call](client)


@pytest.mark.parametrize(
    ("call", "body"),
    [
        ("version", b'{"version": 3}'),
        ("chat", b'{"message": {"content": 7}}'),
        ("chat", b'{"message": "hi"}'),
    ],
)
def test_json_of_another_shape(httpserver: HTTPServer, client: OllamaClient, call: str, body: bytes) -> None:
    answer_all(httpserver, body)
    with pytest.raises(StepError):
        CALLS[call](client)


@pytest.mark.parametrize("call", sorted(CALLS))
@pytest.mark.parametrize("reset", [False, True])
def test_a_connection_cut_before_the_answer(call: str, reset: bool) -> None:
    with (
        raw_server(b"", reset=reset) as address,
        OllamaClient(address, timeout=5) as client,
        pytest.raises(StepError, match="broke while asked to"),
    ):
        CALLS[call](client)


@pytest.mark.parametrize("call", READING)
def test_an_answer_cut_in_its_middle(call: str) -> None:
    answer = b'HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n{"message": {"content": "a"}, "status": "success"}\n'
    with (
        raw_server(answer) as address,
        OllamaClient(address, timeout=5) as client,
        pytest.raises(StepError, match="broke while asked to"),
    ):
        CALLS[call](client)


def test_what_is_not_http() -> None:
    with (
        raw_server(b"220 mail ready\r\n") as address,
        OllamaClient(address) as client,
        pytest.raises(StepError, match="broke while"),
    ):
        client.version()


def test_a_silent_server_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "VERSION_SECONDS", 0.2)
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        OllamaClient(f"127.0.0.1:{listener.getsockname()[1]}", timeout=0.2) as client,
    ):
        for call in CALLS.values():
            with pytest.raises(StepError, match=r"sent nothing for 0\.2 s"):
                call(client)


def test_endless_answers_are_bounded(
    httpserver: HTTPServer, client: OllamaClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for bound in ("MAX_BODY_BYTES", "MAX_LINE_BYTES", "MAX_STREAM_BYTES"):
        monkeypatch.setattr(client_module, bound, 100_000)
    answer_all(httpserver, b" " * 1_000_000)
    for call in READING:
        with pytest.raises(StepError, match="more than"):
            CALLS[call](client)


def test_text_that_no_json_can_hold(client: OllamaClient) -> None:
    with pytest.raises(UsageError, match="can't be written as JSON"):
        client.render("me", [Turn("user", "half \ud83d")])


# --- create ---------------------------------------------------------------------------------------------------------


def test_create_sends_the_model_and_shows_progress(
    httpserver: HTTPServer, client: OllamaClient, recorder: Recorder
) -> None:
    asked = {"model": "me", "template": "{{ .Prompt }}", "stream": True}
    httpserver.expect_ordered_request("/api/create", method="POST", json=asked).respond_with_data(
        ndjson({"status": "parsing"}, {"status": "success"})
    )
    client.create("me", {"template": "{{ .Prompt }}"}, recorder)
    assert list(recorder.totals) == ["Creating me in Ollama"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([{"status": "parsing"}], "last word was 'parsing'"),
        ([{"status": "success"}, {"status": "more"}], "last word was 'more'"),
        ([{"status": "parsing"}, {"error": "bad template", "status": 400}], "could not create 'me': bad template"),
        ([{"status": "success"}, {"error": "too late"}], "too late"),
        ([], "last word was 'nothing'"),
    ],
)
def test_create_needs_success_last(
    httpserver: HTTPServer, client: OllamaClient, lines: list[object], words: str
) -> None:
    answer_all(httpserver, ndjson(*lines))
    with pytest.raises(StepError, match=words):
        client.create("me", {}, Silent())


# --- chat -----------------------------------------------------------------------------------------------------------


def test_chat_yields_pieces_and_counts(httpserver: HTTPServer, client: OllamaClient) -> None:
    asked = {
        "model": "me",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "options": {"num_predict": 2},
    }
    httpserver.expect_ordered_request("/api/chat", json=asked).respond_with_data(
        ndjson(
            {"message": {"content": "hé"}, "done": False},
            {"message": {"content": "!"}, "done": True, "prompt_eval_count": 7, "eval_count": True},
        )
    )
    assert list(client.chat("me", HI, {"num_predict": 2})) == [
        {"text": "hé", "prompt_eval_count": None, "eval_count": None, "done": False},
        {"text": "!", "prompt_eval_count": 7, "eval_count": None, "done": True},
    ]


@pytest.mark.parametrize(
    ("last", "words"),
    [
        ([], "in the middle of a reply"),
        ([{"error": "out of memory"}], "could not answer as 'me': out of memory"),
        ([{"error": {"message": "deep"}}], "deep"),
    ],
)
def test_a_reply_that_breaks_off(httpserver: HTTPServer, client: OllamaClient, last: list[object], words: str) -> None:
    answer_all(httpserver, ndjson({"message": {"content": "half a"}, "done": False}, *last))
    pieces = client.chat("me", HI)
    assert next(pieces)["text"] == "half a"
    with pytest.raises(StepError, match=words):
        next(pieces)


# --- exists, render -------------------------------------------------------------------------------------------------


def test_exists(httpserver: HTTPServer, client: OllamaClient) -> None:
    answer_all(httpserver, b"{}")
    assert client.exists("me")
    httpserver.clear()
    answer_all(httpserver, b'{"error":"model \'me\' not found"}', 404)
    assert not client.exists("me")


@pytest.mark.parametrize(("code", "body"), [(404, b"no such page"), (400, b'{"error":"not found"}'), (500, b"")])
def test_a_name_is_free_only_when_ollama_says_so(
    httpserver: HTTPServer, client: OllamaClient, code: int, body: bytes
) -> None:
    answer_all(httpserver, body, code)
    with pytest.raises(StepError):
        client.exists("me")


@pytest.mark.parametrize("body", [b'{"message": {"content": "a reply"}, "done": true}', b'{"_debug_info": []}'])
def test_a_server_that_shows_no_prompts(httpserver: HTTPServer, client: OllamaClient, body: bytes) -> None:
    answer_all(httpserver, body)
    with pytest.raises(MachineError, match="does not show the prompts") as caught:
        client.render("me", HI)
    assert "0.11.5 or newer" in caught.value.hint


# --- blobs ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    path = tmp_path / "model-q8_0.gguf"
    path.write_bytes(b"\x00\xff" * 1_500_000)
    return path


def test_a_blob_that_is_there_is_not_sent(
    httpserver: HTTPServer, client: OllamaClient, blob: Path, recorder: Recorder
) -> None:
    httpserver.expect_ordered_request("/api/blobs/sha256:00", method="HEAD").respond_with_data(b"")
    client.upload_blob(blob, "sha256:00", recorder)
    assert recorder.said == ["Ollama has model-q8_0.gguf already."]
    httpserver.check()


def test_a_blob_is_sent_whole_with_its_length(
    httpserver: HTTPServer, client: OllamaClient, blob: Path, recorder: Recorder
) -> None:
    got = {}

    def take(request: Request) -> Response:
        got.update(length=request.headers["Content-Length"], data=request.get_data())
        return Response(status=201)

    httpserver.expect_ordered_request("/api/blobs/sha256:00", method="HEAD").respond_with_data(b"", status=404)
    httpserver.expect_ordered_request("/api/blobs/sha256:00", method="POST").respond_with_handler(take)
    client.upload_blob(blob, "sha256:00", recorder)
    assert got == {"length": "3000000", "data": blob.read_bytes()}
    title = "Uploading model-q8_0.gguf to Ollama"
    assert (recorder.done[title], recorder.totals[title]) == (3_000_000, 3_000_000)


def test_a_blob_with_another_digest_is_refused(httpserver: HTTPServer, client: OllamaClient, blob: Path) -> None:
    httpserver.expect_request("/api/blobs/sha256:00", method="HEAD").respond_with_data(b"", status=404)
    httpserver.expect_request("/api/blobs/sha256:00", method="POST").respond_with_data(
        b'{"error":"digest mismatch"}', status=400
    )
    with pytest.raises(StepError, match=r"could not take model-q8_0.gguf \(400\): digest mismatch"):
        client.upload_blob(blob, "sha256:00", Silent())


@contextmanager
def resetting_server(heads: list[bytes]) -> Iterator[str]:
    """Answers HEADs in turn with the given status lines, and resets the connection in the middle of a POST's body."""

    def talk(connection: socket.socket, request: bytes) -> None:
        while request:
            if not request.startswith(b"HEAD"):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                break
            connection.sendall(b"HTTP/1.1 " + heads.pop(0) + b"\r\nContent-Length: 0\r\n\r\n")
            request = connection.recv(4096)

    with sockets(talk, 4096) as url:
        yield url.removeprefix("http://")


def test_a_reset_upload_counts_when_the_blob_is_there_afterwards(blob: Path) -> None:
    heads = [b"404 Not Found", b"200 OK"]
    with resetting_server(heads) as address, OllamaClient(address) as client:
        client.upload_blob(blob, "sha256:00", Silent())
    assert heads == []


def test_a_reset_upload_fails_when_the_blob_is_not_there(blob: Path) -> None:
    heads = [b"404 Not Found", b"404 Not Found"]
    with (
        resetting_server(heads) as address,
        OllamaClient(address) as client,
        pytest.raises(StepError, match=r"broke while asked to take model-q8_0\.gguf"),
    ):
        client.upload_blob(blob, "sha256:00", Silent())
    assert heads == []


def test_a_server_that_is_gone_after_a_cut_upload(blob: Path) -> None:
    heads = [b"404 Not Found"]
    with (
        resetting_server(heads) as address,  # a second HEAD finds nothing to pop, and so no answer
        OllamaClient(address) as client,
        pytest.raises(StepError, match=r"broke while asked to take model-q8_0\.gguf"),
    ):
        client.upload_blob(blob, "sha256:00", Silent())


def test_a_file_that_is_not_there(httpserver: HTTPServer, client: OllamaClient, tmp_path: Path) -> None:
    answer_all(httpserver, b"", 404)
    with pytest.raises(UsageError, match="does not exist"):
        client.upload_blob(tmp_path / "none.gguf", "sha256:00", Silent())


# --- a real one -----------------------------------------------------------------------------------------------------


@pytest.mark.ollama
def test_a_real_server_takes_a_blob_once_and_refuses_a_wrong_digest(
    ollama: str, blob: Path, recorder: Recorder
) -> None:
    digest = "sha256:" + hashlib.sha256(blob.read_bytes()).hexdigest()
    with OllamaClient(ollama) as client:
        assert client.version()
        assert not client.has_blob(digest)
        client.upload_blob(blob, digest, Silent())
        assert client.has_blob(digest)
        client.upload_blob(blob, digest, recorder)
        assert recorder.said == ["Ollama has model-q8_0.gguf already."]
        with pytest.raises(StepError, match="digest mismatch"):
            client.upload_blob(blob, "sha256:" + "0" * 64, Silent())


@pytest.mark.ollama
def test_a_real_server_that_came_by_the_blob_meanwhile(
    ollama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = tmp_path / "big.gguf"
    big.write_bytes(b"\x01" * 20_000_000)
    digest = "sha256:" + hashlib.sha256(big.read_bytes()).hexdigest()
    with OllamaClient(ollama) as client:
        client.upload_blob(big, digest, Silent())
        # As if another process had brought it between our HEAD and our POST. Whether the server's early answer or a
        # reset reaches us is the system's timing; the socket tests above force the reset.
        answers = iter([False])
        asked: list[str] = []
        ask, send = client.has_blob, client._request
        monkeypatch.setattr(client, "has_blob", lambda name: next(answers, None) is None and ask(name))
        monkeypatch.setattr(
            client, "_request", lambda method, *rest, **more: asked.append(method) or send(method, *rest, **more)
        )
        client.upload_blob(big, digest, Silent())
        assert asked[0] == "POST"
        assert next(answers, None) is None
        assert ask(digest)


@pytest.mark.ollama
def test_a_real_server_that_dies_in_the_middle_of_an_upload(ollama_binary: str, tmp_path: Path) -> None:
    big = tmp_path / "big.gguf"
    big.write_bytes(b"\x01" * 50_000_000)
    digest = "sha256:" + hashlib.sha256(big.read_bytes()).hexdigest()

    class Killer(Recorder):
        """Ends the server when a part of the file is sent."""

        def task(self, title: str, total: float | None = None) -> Any:
            task = super().task(title, total)
            tell = task.advance

            def advance(amount: float = 1, note: str = "") -> None:
                tell(amount, note)
                if self.done[title] > 5_000_000:
                    server.process.kill()
                    server.process.wait()

            task.advance = advance
            return task

    with ollama_server(ollama_binary, tmp_path / "server") as server:
        with (
            OllamaClient(server.url) as client,
            pytest.raises(StepError, match=r"broke while asked to take big\.gguf") as caught,
        ):
            client.upload_blob(big, digest, Killer())
        assert "run the same command again" in caught.value.hint
    with ollama_server(ollama_binary, tmp_path / "server") as server, OllamaClient(server.url) as client:
        assert not client.has_blob(digest)
        client.upload_blob(big, digest, Silent())
        assert client.has_blob(digest)


@pytest.mark.ollama
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
def test_a_real_server_whose_disk_is_full(ollama_binary: str, tmp_path: Path) -> None:
    import resource

    big = tmp_path / "big.gguf"
    big.write_bytes(b"\x01" * 20_000_000)
    digest = "sha256:" + hashlib.sha256(big.read_bytes()).hexdigest()

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000))

    with ollama_server(ollama_binary, tmp_path / "server", limit) as server, OllamaClient(server.url) as client:
        with pytest.raises(MachineError, match=r"could not take big\.gguf \(500\): .*file too large") as caught:
            client.upload_blob(big, digest, Silent())
        assert "OLLAMA_MODELS" in caught.value.hint
        assert not client.has_blob(digest)


@pytest.mark.ollama
@pytest.mark.parametrize("call", ["show", "copy", "delete", "render", "chat"])
def test_a_real_server_and_a_model_that_is_not_there(ollama: str, call: str) -> None:
    with OllamaClient(ollama) as client:
        assert not client.exists("me")
        with pytest.raises(TwinError, match=r"\(404\): model .me(:latest)?. not found"):
            CALLS[call](client)


@pytest.mark.ollama
def test_a_real_server_and_a_file_that_is_no_model(ollama: str, blob: Path) -> None:
    digest = "sha256:" + hashlib.sha256(blob.read_bytes()).hexdigest()
    with OllamaClient(ollama) as client:
        client.upload_blob(blob, digest, Silent())
        with pytest.raises(StepError, match="could not create 'me'"):
            client.create("me", {"files": {"model.gguf": digest}}, Silent())
        assert not client.exists("me")
