"""Ollama's HTTP API, as far as twin uses it; whatever goes wrong on the way comes out as a TwinError.

Not obvious: an answer that begins with 200 can still fail. Errors after the first streamed line arrive inside the
stream, and a stream that is cut looks like one that ended, so each stream must end in the line that says it is done.
API: https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict

import httpx
import orjson

from twin.errors import MachineError, StepError, TwinError, UsageError, file_errors
from twin.foreign import bounded, is_loopback, one_line
from twin.progress import Reporter
from twin.records import Turn

DEFAULT_HOST = "127.0.0.1:11434"
OLDEST = (0, 11, 5)  # the first that shows the prompt which it renders (``_debug_render_only`` in its api/types.go)
CONNECT_SECONDS = 5.0
VERSION_SECONDS = 10.0
MAX_BODY_BYTES = 32 << 20
MAX_LINE_BYTES = 4 << 20
MAX_STREAM_BYTES = 256 << 20
MAX_ERROR_BYTES = 64 << 10
MAX_ERROR_CHARS = 300
CHUNK_BYTES = 1 << 20

# What Linux, macOS and Windows call a disk without room, a quota and a file that grew too large, as Go prints them.
_NO_SPACE = ("no space left", "not enough space", "quota exceeded", "file too large")
_PORTS = {"http": 80, "https": 443}
_HOST_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252})")


class Chunk(TypedDict):
    """A piece of a reply. The counts, in ids, come with the last piece (``done``); None where the server gave none."""

    text: str
    prompt_eval_count: int | None
    eval_count: int | None
    done: bool


def resolve_host(value: str | None = None, of: str = "an Ollama") -> str:
    """Return the URL of the Ollama to talk to, read as Ollama itself reads ``OLLAMA_HOST``.

    Args:
        value: the flag's value; without one ``OLLAMA_HOST`` counts, then ``127.0.0.1:11434``.
        of: what messages call the server.

    Returns:
        ``scheme://host:port`` and a path where one was given, with a host that a client can connect to.

    Raises:
        UsageError: not a host. Ollama would quietly take its default in its place.
    """
    given = value or os.environ.get("OLLAMA_HOST") or DEFAULT_HOST
    text = given.strip().strip("\"'")
    shown = re.sub(r"[^/\s]*@", "…@", given)  # a login would stand in terminals and logs
    wrong = UsageError(
        f"'{shown}' is not an address of {of}{'' if value else ' (OLLAMA_HOST)'}.",
        "Write host:port or a URL, e.g. 127.0.0.1:11434 or https://ollama.example.org",
    )
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest, default_port = "http", text, 11434
    elif scheme.lower() in _PORTS:
        scheme = scheme.lower()
        default_port = _PORTS[scheme]
    else:
        raise wrong
    address, _, path = rest.partition("/")
    # A login in the URL would end up in messages and run records; Ollama has none to check it anyway.
    if re.search(r"[\s@?#%\\]", rest):
        raise wrong
    host, port = _host_and_port(address)
    if port is None or host is None:
        raise wrong
    number = int(port) if port else default_port
    if not 0 < number < 65536:
        raise wrong
    return f"{scheme}://{host}:{number}" + (f"/{path.strip('/')}" if path.strip("/") else "")


def _host_and_port(address: str) -> tuple[str | None, str | None]:
    """Split ``address``; the port is empty where there is none, and a part is None where it is no host or port."""
    if address.startswith("["):
        host, closed, after = address[1:].partition("]")
        port = after.removeprefix(":") if closed and after[:1] in ("", ":") else "?"
    elif address.count(":") == 1:
        host, _, port = address.partition(":")
    else:
        host, port = address, ""
    if port and not (port.isascii() and port.isdigit() and len(port) <= 5):
        return host, None
    try:
        number = ipaddress.ip_address(host)
    except ValueError:
        # Go dials an empty host as this machine.
        return ("127.0.0.1" if not host else host if _HOST_NAME.fullmatch(host) else None), port
    # 0.0.0.0 and :: are addresses to listen on, which not every system lets a client connect to.
    if number.version == 6:
        return ("[::1]" if number.is_unspecified else f"[{number}]"), port
    return ("127.0.0.1" if number.is_unspecified else str(number)), port


def _clean(text: str) -> str:
    """Return a server's text fit for a terminal and for a sentence."""
    return bounded(one_line(text), MAX_ERROR_CHARS)


def _error_text(value: Any) -> str | None:
    """Return the error in one of Ollama's answers, or None when it holds none."""
    if not isinstance(value, dict) or not value.get("error"):
        return None
    error = value["error"]
    if isinstance(error, dict):
        error = error.get("message", error)
    return _clean(str(error))


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _time(value: Any) -> datetime | None:
    try:
        at = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    return [turn._asdict() for turn in turns]


class OllamaClient:
    """One Ollama server. Close it, or use it as a context manager.

    Args:
        host: address or URL; None for ``OLLAMA_HOST`` or the default.
        timeout: seconds without a byte from the server. Long, because loading a model sends none.

    Raises:
        UsageError: not an address.
    """

    def __init__(self, host: str | None = None, timeout: float = 600.0) -> None:
        self.url = resolve_host(host)
        self._timeout = httpx.Timeout(timeout, connect=CONNECT_SECONDS)
        self._http = httpx.Client(
            base_url=self.url,
            timeout=self._timeout,
            headers={"Accept-Encoding": "identity"},  # what is read is then what is counted against the bounds
            # httpx would send even 127.0.0.1 through HTTP_PROXY; Ollama's own client does not.
            trust_env=not is_loopback(httpx.URL(self.url).host),
            verify=httpx.create_ssl_context(),  # SSL_CERT_FILE counts for this machine too
        )

    def __enter__(self) -> Self:
        """Return the client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # --- wire -------------------------------------------------------------------------------------------------------

    @contextmanager
    def _request(
        self,
        method: str,
        path: str,
        doing: str,
        *,
        json: Mapping[str, Any] | None = None,
        content: Iterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        accept: tuple[int, ...] = (200,),
        timeout: httpx.Timeout | None = None,
    ) -> Iterator[httpx.Response]:
        """Send one request and yield its answer, body unread; ``doing`` is the verb phrase of every complaint."""
        body: bytes | Iterator[bytes] | None = content
        sent = dict(headers or {})
        if json is not None:
            try:
                body = orjson.dumps(dict(json))
            except TypeError as error:
                raise UsageError(
                    f"Could not {doing}: the request can't be written as JSON ({_clean(str(error))}).",
                    "Half a surrogate pair, perhaps: save the text again as UTF-8.",
                ) from None
            sent["Content-Type"] = "application/json"
        try:
            with self._http.stream(
                method, path, content=body, headers=sent, timeout=timeout or self._timeout
            ) as response:
                if response.status_code not in accept:
                    raise self._refusal(response, doing)
                yield response
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            if "CERTIFICATE" in str(error).upper():
                raise MachineError(
                    f"The certificate of {self.url} is not one that this machine trusts.",
                    "Check the address. For a certificate of your own: export SSL_CERT_FILE=FILE",
                ) from None
            if "SSL" in str(error).upper():
                raise MachineError(
                    f"What listens at {self.url} does not speak https.", "Check the port, or try it with http://"
                ) from None
            raise MachineError(
                f"No Ollama answers at {self.url}.",
                "Start it: ollama serve (or install it from https://ollama.com/download)",
            ) from None
        except httpx.TimeoutException:
            limit = (timeout or self._timeout).read
            raise StepError(
                f"Ollama at {self.url} sent nothing for {limit:g} s while asked to {doing}.",
                "See what it does: ollama ps, and its log. Then run the same command again.",
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise StepError(
                f"The connection to Ollama at {self.url} broke while asked to {doing} ({type(error).__name__}).",
                "See Ollama's log; it may have run out of memory or disk. Then run the same command again.",
            ) from None

    def _refusal(self, response: httpx.Response, doing: str) -> TwinError:
        code = response.status_code
        raw = b""
        for piece in response.iter_raw():
            raw += piece
            if len(raw) >= MAX_ERROR_BYTES:
                break
        try:
            text = _error_text(orjson.loads(raw))
        except orjson.JSONDecodeError:
            text = None
        text = text or _clean(raw[:MAX_ERROR_BYTES].decode("utf-8", "replace")) or response.reason_phrase
        if 300 <= code < 400:
            target = _clean(response.headers.get("Location", "nowhere"))
            return StepError(
                f"{self.url} sends on to '{target}' ({code}) when asked to {doing}; nothing is sent there.",
                "If that is your Ollama, name its address with --host.",
            )
        return self._failed(doing, text, code)

    def _failed(self, doing: str, text: str, code: int = 200) -> TwinError:
        """Return the error for what the server itself says went wrong."""
        said = f"Ollama at {self.url} could not {doing}{'' if code == 200 else f' ({code})'}: {text}"
        if any(words in text.lower() for words in _NO_SPACE):
            return MachineError(
                said, "Free some space where Ollama keeps its models (OLLAMA_MODELS), then run the same command again."
            )
        hint = "See Ollama's log; it says more."
        if code in (401, 403, 407):
            hint = "A proxy before Ollama wants a login, or forbids this: see its settings, or choose another --host."
        elif code == 404:
            hint = "See which models it has: ollama list"
        return StepError(said, hint)

    def _garbage(self, doing: str, what: str) -> StepError:
        return StepError(
            f"What {self.url} answered to '{doing}' is not Ollama's: {what}.",
            "Check that Ollama, and nothing else, listens there: ollama --version",
        )

    def _object(self, raw: bytes, doing: str) -> dict[str, Any]:
        try:
            value = orjson.loads(raw)
        except orjson.JSONDecodeError:
            raise self._garbage(doing, f"not JSON, '{_clean(raw[:80].decode('utf-8', 'replace'))}'") from None
        if not isinstance(value, dict):
            raise self._garbage(doing, "JSON, but no object")
        if text := _error_text(value):
            raise self._failed(doing, text)
        return value

    def _whole(self, response: httpx.Response, doing: str) -> dict[str, Any]:
        """Return a bounded answer that is one JSON object."""
        raw = bytearray()
        for piece in response.iter_raw():
            raw += piece
            if len(raw) > MAX_BODY_BYTES:
                raise self._garbage(doing, f"more than {MAX_BODY_BYTES >> 20} MiB")
        return self._object(bytes(raw), doing)

    def _lines(self, response: httpx.Response, doing: str) -> Iterator[dict[str, Any]]:
        """Yield the JSON objects of a streamed answer, one a line."""
        rest = b""
        total = 0
        for piece in response.iter_raw():
            total += len(piece)
            *lines, rest = (rest + piece).split(b"\n")
            if len(rest) > MAX_LINE_BYTES or total > MAX_STREAM_BYTES:
                raise self._garbage(doing, "more than a reply can be")
            for line in lines:
                if line.strip():
                    yield self._object(line, doing)
        if rest.strip():
            yield self._object(rest, doing)

    # --- server and blobs -------------------------------------------------------------------------------------------

    def version(self) -> str:
        """Return the server's version (``0.0.0`` where it was built without one; then ``render`` judges it).

        Raises:
            MachineError: nothing listens there, or a release that can't be checked.
            StepError: something listens and is no Ollama.
        """
        doing = "say its version"
        with self._request("GET", "/api/version", doing, timeout=httpx.Timeout(VERSION_SECONDS)) as response:
            version = self._whole(response, doing).get("version")
        if not isinstance(version, str):
            raise self._garbage(doing, "no 'version'")
        version = _clean(version)[:40]
        found = re.match(r"(\d{1,6})\.(\d{1,6})\.(\d{1,6})", version)
        if found and (0, 0, 0) < tuple(map(int, found.groups())) < OLDEST:
            raise self._too_old(f" is {version}:")
        return version

    def _too_old(self, which: str) -> MachineError:
        needed = ".".join(map(str, OLDEST))
        return MachineError(
            f"Ollama at {self.url}{which} it does not show the prompts that it renders, so they can't be checked.",
            f"Update Ollama to {needed} or newer: https://ollama.com/download",
        )

    def has_blob(self, digest: str) -> bool:
        """Return whether the server holds the blob ``sha256:<hex>``.

        Raises:
            TwinError: see the module.
        """
        with self._request("HEAD", f"/api/blobs/{digest}", "look for a file", accept=(200, 404)) as response:
            return response.status_code == 200

    def upload_blob(self, path: Path, digest: str, reporter: Reporter) -> None:
        """Bring a file to the server unless it is there; there is no partial upload, so a cut one starts over.

        Args:
            path: the file.
            digest: ``sha256:<hex>`` of it, which the server checks.
            reporter: told of each MiB.

        Raises:
            TwinError: see the module.
        """
        if self.has_blob(digest):
            reporter.say(f"Ollama has {path.name} already.")
            return
        with file_errors(path, "read"):
            size = path.stat().st_size
        with reporter.task(f"Uploading {path.name} to Ollama", total=size) as task:

            def pieces() -> Iterator[bytes]:
                with file_errors(path, "read"), path.open("rb") as handle:
                    while piece := handle.read(CHUNK_BYTES):
                        yield piece
                        task.advance(len(piece))

            try:
                with self._request(
                    "POST",
                    f"/api/blobs/{digest}",
                    f"take {path.name}",
                    content=pieces(),
                    headers={"Content-Length": str(size), "Content-Type": "application/octet-stream"},
                    accept=(200, 201),
                ):
                    pass
            except StepError:
                # A server that came by the same blob meanwhile answers before it reads and resets the connection.
                with suppress(TwinError):  # by now it may be gone; what broke first is the news
                    if self.has_blob(digest):
                        return
                raise

    # --- models -----------------------------------------------------------------------------------------------------

    def create(self, name: str, payload: Mapping[str, Any], reporter: Reporter) -> None:
        """Create the model ``name``, over one of that name.

        Args:
            name: the model.
            payload: ``files``, ``template``, ``system``, ``parameters``, ``license`` as the API has them.
            reporter: told of each status line.

        Raises:
            StepError: the stream holds an error, or does not end in ``success``.
            TwinError: see the module.
        """
        doing = f"create '{name}'"
        last = "nothing"
        with (
            reporter.task(f"Creating {name} in Ollama") as task,
            self._request("POST", "/api/create", doing, json={"model": name, **payload, "stream": True}) as response,
        ):
            for line in self._lines(response, doing):
                last = _clean(str(line.get("status", "")))
                task.advance(0, last)
        if last != "success":
            raise StepError(
                f"Ollama at {self.url} did not finish creating '{name}': its last word was '{last}'.",
                "See Ollama's log. Then run the same command again.",
            )

    def show(self, name: str, whole: bool = False) -> dict[str, Any]:
        """Return what ``/api/show`` says of a model; its ``template`` is the one in use, whatever was asked for.

        Args:
            name: the model.
            whole: with the lists of its metadata, the vocabulary among them.

        Raises:
            StepError: no such model.
            TwinError: see the module.
        """
        doing = f"show '{name}'"
        with self._request("POST", "/api/show", doing, json={"model": name, "verbose": whole}) as response:
            return self._whole(response, doing)

    def exists(self, name: str) -> bool:
        """Return whether the server has a model of that name.

        Raises:
            TwinError: see the module.
        """
        doing = f"look for '{name}'"
        with self._request("POST", "/api/show", doing, json={"model": name}, accept=(200, 404)) as response:
            if response.status_code == 200:
                self._whole(response, doing)
                return True
            refusal = self._refusal(response, doing)
        # A 404 of some other server, which has no such path at all, must not read as 'the name is free'.
        if "not found" in refusal.message:
            return False
        raise refusal

    def models(self) -> dict[str, tuple[str, datetime | None]]:
        """Return the server's models: name with its tag → digest of its manifest, and when it was changed.

        Raises:
            TwinError: see the module.
        """
        doing = "list its models"
        with self._request("GET", "/api/tags", doing) as response:
            listed = self._whole(response, doing).get("models")
        found: dict[str, tuple[str, datetime | None]] = {}
        for one in listed if isinstance(listed, list) else []:
            if isinstance(one, dict) and isinstance(one.get("name"), str) and isinstance(one.get("digest"), str):
                found[one["name"]] = (one["digest"], _time(one.get("modified_at")))
        return found

    def digest(self, name: str) -> str | None:
        """Return what tells one state of the model ``name`` from another; None when there is no such model.

        Raises:
            TwinError: see the module.
        """
        tagged = name if ":" in name.rpartition("/")[2] else f"{name}:latest"
        return self.models().get(tagged, (None, None))[0]

    def copy(self, source: str, destination: str) -> None:
        """Make ``destination`` the same model as ``source``, over one of that name.

        Raises:
            TwinError: see the module.
        """
        with self._request(
            "POST", "/api/copy", f"copy '{source}'", json={"source": source, "destination": destination}
        ):
            pass

    def delete(self, name: str) -> None:
        """Delete a model.

        Raises:
            StepError: no such model.
            TwinError: see the module.
        """
        with self._request("DELETE", "/api/delete", f"delete '{name}'", json={"model": name}):
            pass

    def unload(self, name: str) -> None:
        """Take a model out of memory; Windows can't delete the file of one that is loaded.

        Raises:
            TwinError: see the module.
        """
        doing = f"unload '{name}'"
        asked = {"model": name, "messages": [], "keep_alive": 0, "stream": False}
        with self._request("POST", "/api/chat", doing, json=asked) as response:
            self._whole(response, doing)

    # --- replies ----------------------------------------------------------------------------------------------------

    def render(self, name: str, messages: Sequence[Turn], options: Mapping[str, Any] | None = None) -> str:
        """Return the prompt that the server would give to the model for ``messages``, without generating.

        Args:
            name: the model.
            messages: what the request would hold; the model's own system prompt is put first unless one leads them.
            options: as in ``chat``. They must equal a real call's, or the model is loaded twice.

        Raises:
            MachineError: the server is too old to say.
            TwinError: see the module.
        """
        doing = f"render a prompt with '{name}'"
        asked = {"model": name, "messages": _messages(messages), "stream": False, "_debug_render_only": True}
        if options:
            asked["options"] = dict(options)
        with self._request("POST", "/api/chat", doing, json=asked) as response:
            info = self._whole(response, doing).get("_debug_info")
        text = info.get("rendered_template") if isinstance(info, dict) else None
        if not isinstance(text, str):
            raise self._too_old(" is too old:")
        return text

    def chat(
        self,
        name: str,
        messages: Sequence[Turn],
        options: Mapping[str, Any] | None = None,
        stream: bool = True,
        truncate: bool = True,
    ) -> Generator[Chunk, None, None]:
        """Yield the reply to ``messages`` piece by piece; the last piece is ``done`` and has the counts.

        Nothing is asked before the first piece is taken. Closing the iterator stops the server's work.

        Args:
            name: the model.
            messages: the conversation, oldest first.
            options: e.g. ``temperature``, ``num_predict``; what is not named is the model's own.
            stream: False for one piece with the whole reply.
            truncate: False to refuse a prompt that is longer than the context, which the server otherwise cuts.

        Raises:
            StepError: an error in the stream, or a stream cut before its end.
            TwinError: see the module.
        """
        doing = f"answer as '{name}'"
        asked = {"model": name, "messages": _messages(messages), "stream": stream}
        asked |= {} if truncate else {"truncate": False}
        if options:
            asked["options"] = dict(options)
        with self._request("POST", "/api/chat", doing, json=asked) as response:
            for line in self._lines(response, doing):
                message = line.get("message")
                text = message.get("content", "") if isinstance(message, dict) else None
                if not isinstance(text, str):
                    raise self._garbage(doing, "no message")
                done = line.get("done") is True
                yield Chunk(
                    text=text,
                    prompt_eval_count=_count(line.get("prompt_eval_count")),
                    eval_count=_count(line.get("eval_count")),
                    done=done,
                )
                if done:
                    return
        raise StepError(
            f"Ollama at {self.url} stopped in the middle of a reply of '{name}'.",
            "See Ollama's log; it may have run out of memory.",
        )
