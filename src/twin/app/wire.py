"""One request to the app: bounded in bytes and in time, tried again where that helps, every failure a sentence.

Not obvious: time-outs between two bytes do not bound a server that dribbles them, and a server may send "103 Early
Hints" for ever, which a blocking client reads for ever. So a request runs in an event loop of its own under one time
limit. And an exception of httpx carries its request with the token, so none of them ends up in a chain of exceptions.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import orjson
import tenacity
from pydantic import SecretStr

from twin.app.address import check_url
from twin.errors import MachineError, StepError, TwinError
from twin.foreign import bounded, is_loopback, one_line
from twin.progress import Reporter

CONNECT_SECONDS = 10.0
READ_SECONDS = 300.0  # without a byte: the app builds its dataset before it answers
WHOLE_SECONDS = 7200.0  # a request from its first byte to the last of its answer
TRIES = 4
FIRST_WAIT_SECONDS = 0.5  # then twice as long each time
MAX_WAIT_SECONDS = 60.0
MAX_ERROR_BYTES = 64 << 10
MAX_ERROR_CHARS = 300

_AGAIN = {429, 502, 503, 504}
_JWT = re.compile(r"\beyJ[\w-]+\.[\w-]+(\.[\w-]*)?")
_HINTS = {
    401: "It may have run out. Log in to the app as its owner or an admin, copy a new token and set TWIN_APP_TOKEN.",
    403: "Use the token of an admin or of the owner: set TWIN_APP_TOKEN.",
    404: "See that the address is the app's, and that its version has this call: --url URL",
    413: "The app, or a proxy before it, takes no request of this size: see its settings.",
    422: "Its version may know other fields; read the brain instead: twin export --via brain",
    429: "It was asked too often: wait a little and run the same command again.",
    500: "The app's own log says more.",
    502: "A proxy answers, the app behind it does not: start it, then run the same command again.",
    503: "It is starting or overloaded: wait a little and run the same command again.",
    504: "A proxy answers, the app behind it is too slow: run the same command again.",
}


class RefusedError(StepError):
    """The app answered, and not with what was asked for.

    Args:
        code: the HTTP status.
    """

    def __init__(self, message: str, hint: str, code: int) -> None:
        super().__init__(message, hint)
        self.code = code


class _TryAgainError(Exception):
    """What may be over in a moment; ``failure`` is what it is when it is not."""

    def __init__(self, failure: TwinError, wait_seconds: float | None = None) -> None:
        super().__init__("the app should be asked again")
        self.failure = failure
        self.wait_seconds = wait_seconds


class _Bearer(httpx.Auth):
    def __init__(self, token: SecretStr) -> None:
        self._token = token

    def auth_flow(self, request: httpx.Request) -> Any:
        request.headers["Authorization"] = f"Bearer {self._token.get_secret_value()}"
        yield request


@dataclass(frozen=True, slots=True)
class Ask:
    """One request.

    Args:
        method: GET or POST.
        path: below the base URL, query included.
        doing: the verb phrase of every complaint, e.g. ``"export its brain"``.
        media: content types that are taken.
        most_bytes: of the answer's body.
        json: the body.
        hints: by status, where the usual hint does not fit.
    """

    method: str
    path: str
    doing: str
    media: frozenset[str]
    most_bytes: int
    json: Mapping[str, Any] | None = None
    hints: Mapping[int, str] | None = None


class App:
    """One app.

    Args:
        url: its base URL.
        token: the bearer token.
        reporter: told when a request is tried again, and once when the token travels unencrypted.

    Raises:
        UsageError: not an address.
    """

    def __init__(self, url: str, token: SecretStr, reporter: Reporter) -> None:
        self.url = check_url(url)
        self._token = token
        self._reporter = reporter
        parsed = httpx.URL(self.url)
        self._here = is_loopback(parsed.host)
        if parsed.scheme == "http" and not self._here:
            reporter.say(
                f"Warning: {self.url} is not https, so the token and your chats travel where others can read them."
            )

    def request(self, ask: Ask, take: Callable[[bytes], object]) -> None:
        """Send a request and hand its answer's body to ``take``, piece by piece.

        Args:
            ask: the request.
            take: called with each piece; not called at all unless the answer is one that was asked for.

        Raises:
            RefusedError: another status than 200.
            MachineError: nothing answers there.
            StepError: a body of another type, too long, cut or too slow.
        """
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_TryAgainError),
            stop=tenacity.stop_after_attempt(TRIES),
            wait=self._wait,
            before_sleep=self._tell,
            reraise=True,
        )
        failure: TwinError
        try:
            retrying(self._attempt, ask, take)
            return
        except _TryAgainError as again:
            failure = again.failure
        raise failure  # here, so that no chain leads to the exceptions before

    @staticmethod
    def _wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, _TryAgainError) and error.wait_seconds is not None:
            return error.wait_seconds
        return float(
            tenacity.wait_exponential_jitter(FIRST_WAIT_SECONDS, MAX_WAIT_SECONDS, 2, FIRST_WAIT_SECONDS)(state)
        )

    def _tell(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, _TryAgainError) and state.next_action:
            self._reporter.say(f"{error.failure.message} Trying again in {state.next_action.sleep:.1f} s.")

    def _attempt(self, ask: Ask, take: Callable[[bytes], object]) -> None:
        failure: Exception
        try:
            _run(self._bounded, ask, take)
            return
        except httpx.HTTPError as error:
            failure = self._broken(error, ask)
        except httpx.InvalidURL:  # ours was checked, and httpx reads where a redirect leads though it does not go there
            failure = self.garbage(ask.doing, "a redirect to what is no address")
        raise failure

    async def _bounded(self, ask: Ask, take: Callable[[bytes], object]) -> None:
        clock = asyncio.timeout(WHOLE_SECONDS)
        try:
            async with clock:
                await self._exchange(ask, take)
                return
        except TimeoutError:
            if not clock.expired():  # the disk's, say
                raise
        raise StepError(
            f"{self.url} had not finished after {WHOLE_SECONDS:g} s when asked to {ask.doing}.",
            "See the app's log and the connection; then run the same command again.",
        )

    async def _exchange(self, ask: Ask, take: Callable[[bytes], object]) -> None:
        async with (
            httpx.AsyncClient(
                auth=_Bearer(self._token),
                timeout=httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
                follow_redirects=False,  # the token is for this host alone
                # What is read is then what is counted against the bounds.
                headers={"Accept-Encoding": "identity", "Accept": ", ".join(sorted(ask.media))},
                # httpx would send even 127.0.0.1 through HTTP_PROXY. Elsewhere a company's proxy may be the only way.
                trust_env=not self._here,
            ) as client,
            client.stream(ask.method, f"{self.url}{ask.path}", json=ask.json) as response,
        ):
            if response.status_code != 200:
                await self._refuse(response, ask)
            self._check_head(response, ask)
            total = 0
            async for piece in response.aiter_raw():
                total += len(piece)
                if total > ask.most_bytes:
                    raise self._too_long(ask)
                take(piece)

    def _check_head(self, response: httpx.Response, ask: Ask) -> None:
        coding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if coding != "identity":
            raise self.garbage(ask.doing, f"compressed ({self.clean(coding, 40)}), though it was asked not to be")
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind not in ask.media:
            what = f"of the type '{self.clean(kind, 60)}'" if kind else "of no type"
            raise self.garbage(ask.doing, f"{'a web page' if kind == 'text/html' else what}, not JSON")
        length = response.headers.get("Content-Length", "")
        if length.isascii() and length.isdigit() and int(length) > ask.most_bytes:  # h11 lets 20 digits pass
            raise self._too_long(ask)

    async def _refuse(self, response: httpx.Response, ask: Ask) -> None:
        code = response.status_code
        if 300 <= code < 400:
            target = self.clean(response.headers.get("Location", "nowhere"), 200)
            raise RefusedError(
                f"{self.url} sends on to '{target}' ({code}) when asked to {ask.doing}; the token is not taken there.",
                "If that is the app, name its address: --url URL",
                code,
            )
        raw = b""
        async for piece in response.aiter_raw():
            raw += piece
            if len(raw) >= MAX_ERROR_BYTES:
                break
        text = self.clean(_detail(raw[:MAX_ERROR_BYTES]))
        hint = (ask.hints or {}).get(code) or _HINTS.get(code) or "The app's own log says more."
        said = f": {text.rstrip('.')}" if text else ""
        failure = RefusedError(f"{self.url} refused to {ask.doing} ({code}{said}).", hint, code)
        if code not in _AGAIN:
            raise failure
        wait = _retry_after(response.headers.get("Retry-After", ""))
        if wait is not None and wait > MAX_WAIT_SECONDS:
            failure.hint = f"It asks to wait: run the same command again in {wait / 60:.0f} minutes."
            raise failure
        raise _TryAgainError(failure, wait)

    def _broken(self, error: httpx.HTTPError, ask: Ask) -> Exception:
        if isinstance(error, httpx.ConnectError) and "CERTIFICATE" in str(error).upper():
            return MachineError(
                f"The certificate of {self.url} is not one that this machine trusts.",
                "Check the address. For a certificate of your own: export SSL_CERT_FILE=FILE",
            )
        if isinstance(error, httpx.ConnectError) and "SSL" in str(error).upper():
            return MachineError(
                f"What listens at {self.url} does not speak https.", "Check the port, or try it with http://"
            )
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.ProxyError):
            return _TryAgainError(
                MachineError(
                    f"No app answers at {self.url}.", "Start it, or name its address: --url URL (TWIN_APP_URL)"
                )
            )
        if isinstance(error, httpx.TimeoutException):
            return StepError(
                f"{self.url} sent nothing for {READ_SECONDS:g} s when asked to {ask.doing}.",
                "See the app's log; then run the same command again.",
            )
        return self._cut(type(error).__name__, ask)

    def _cut(self, what: str, ask: Ask) -> StepError:
        return StepError(
            f"The connection to {self.url} broke before the end of its answer when asked to {ask.doing} ({what}).",
            "See the app's log; then run the same command again.",
        )

    def _too_long(self, ask: Ask) -> StepError:
        return StepError(
            f"{self.url} answers with more than {ask.most_bytes:,} bytes when asked to {ask.doing}.",
            "That is more than twin takes from an app. Check that the address is the app's: --url URL",
        )

    def garbage(self, doing: str, what: str) -> StepError:
        """Return the error for an answer that is not the app's.

        Args:
            doing: the verb phrase of what was asked.
            what: what the answer is.
        """
        return StepError(
            f"What {self.url} answered when asked to {doing} is not the app's: it is {what}.",
            "Check that the address is the app's, without a path of its web pages: --url http://localhost:8000",
        )

    def clean(self, text: str, most: int = MAX_ERROR_CHARS) -> str:
        """Return a server's text fit for a terminal: one line, nothing that moves a cursor, no token, bounded."""
        line = one_line(text).replace(self._token.get_secret_value(), "[the token]")
        return bounded(_JWT.sub("[a token]", line), most)


def _run(work: Callable[..., Any], *arguments: Any) -> None:
    """Run a coroutine function in an event loop of its own, in a notebook's cell too, where one runs already."""
    try:
        asyncio.get_running_loop()
        nested = True
    except RuntimeError:
        nested = False
    if not nested:
        asyncio.run(work(*arguments))
        return
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: asyncio.run(work(*arguments))).result()


def _detail(raw: bytes) -> str:
    """Return what an error's body says: FastAPI's ``detail`` and its like, without the values that it quotes."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return ""  # a proxy's page
    if not isinstance(body, dict):
        return ""
    for key in ("detail", "error", "message", "reason"):
        found = body.get(key)
        if isinstance(found, list):
            found = "; ".join(_field(item) for item in found if isinstance(item, dict))
        if isinstance(found, str) and found.strip():
            return found
    return ""


def _field(item: Mapping[str, Any]) -> str:
    place = item.get("loc")
    where = ".".join(str(part) for part in place if part != "body") if isinstance(place, list) else ""
    said = item.get("msg")
    return ": ".join(part for part in (where, said if isinstance(said, str) else "") if part)


def _retry_after(value: str) -> float | None:
    """Return the seconds that a ``Retry-After`` asks for (RFC 9110, section 10.2.3), or None."""
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())
