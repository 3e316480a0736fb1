"""The app's export API on a local brain: the same calls, for the app's own scripts and for ``twin export`` elsewhere.

Not obvious: nothing here reads files of its own or builds rows. The pipeline hands in a ``BrainSource``, so this module
knows records and HTTP alone. A brain is streamed, exchange by exchange; what goes wrong inside is told on the server's
terminal and not to the caller, because such messages name paths.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi_offline import FastAPIOffline
from pydantic import SecretStr

from twin import __version__
from twin.app import models
from twin.app.contract import FORMATS, ROLES, ExportAsk
from twin.app.exchanges import Exchange, exchanges
from twin.app.source import BrainSource, ExportedFiles
from twin.app.tokens import NotValidError, key_of, mint_token, role_of
from twin.app.whole import PIECE_BYTES, analysis, brain_json, in_pieces
from twin.errors import MachineError, TwinError, UsageError
from twin.foreign import is_loopback
from twin.progress import Reporter

__all__ = ["BrainSource", "ExportedFiles", "create_app", "mint_token", "serve"]

MAX_BODY_BYTES = 64 << 10
_PRIVATE = {"Cache-Control": "no-store"}
_BEARER = HTTPBearer(auto_error=False, bearerFormat="JWT", description="twin serve --token prints one")
_REFUSED: dict[int | str, dict[str, Any]] = {
    401: {"model": models.Problem, "description": "No token, or one that has run out or is not valid"},
    403: {"model": models.Problem, "description": "A token of another role"},
    413: {  # Starlette answers for itself when the length says so beforehand
        "model": models.Problem,
        "content": {"text/plain": {"schema": {"type": "string"}}},
        "description": "A body over 64 KiB",
    },
    500: {"model": models.Problem, "description": "The server's terminal says why"},
}
_UNREAD: dict[int | str, dict[str, Any]] = {400: {"model": models.Problem, "description": "A body that is no UTF-8"}}
_HANDED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}},
    404: {"model": models.Problem, "description": "Nothing is exported yet, or not in parts"},
}
_log = logging.getLogger("twin.app")


class JsonStream(StreamingResponse):
    """JSON that is made while it is sent."""

    media_type = "application/json"


class RowStream(StreamingResponse):
    """JSON, an object a line."""

    media_type = "application/x-ndjson"


@dataclass(slots=True)
class _Exports:
    """The files of the last export by part, and who may make another."""

    files: Mapping[str, Path] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


def _guard(secret: SecretStr) -> Callable[..., None]:
    """Return the dependency that lets an admin or the owner pass."""
    key = key_of(secret)

    def admin(
        response: Response, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)] = None
    ) -> None:
        try:
            if credentials is None:
                raise NotValidError("There is no bearer token.")
            role = role_of(credentials.credentials, key)
        except NotValidError as error:
            raise HTTPException(401, str(error), {"WWW-Authenticate": "Bearer"}) from None
        if role not in ROLES:
            raise HTTPException(403, f"This takes the role {' or '.join(ROLES)}.")
        response.headers.update(_PRIVATE)

    return admin


# ---------------------------------------------------------------- the app


def create_app(source: BrainSource, secret: SecretStr) -> FastAPI:
    """Return the API on ``source``.

    Args:
        source: the brain.
        secret: signs the tokens, at least 32 bytes.

    Raises:
        UsageError: too short a secret.
    """
    app: FastAPI = FastAPIOffline(  # its page at /docs loads nothing from elsewhere: a token is typed there
        title="twin",
        version=__version__,
        description="The export API of the Chirag Clone app, on a local brain.",
        docs_url="/docs",
        redoc_url=None,
        max_body_size=MAX_BODY_BYTES,
        # Its logs would hold messages of exceptions, which quote chats, wherever a provider sends them.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    router = APIRouter(dependencies=[Depends(_guard(secret))], responses=_REFUSED)
    _add_export(router, source)
    _add_looks(router, source)
    _add_brain(router, source)
    app.include_router(router)

    @app.exception_handler(RequestValidationError)
    def bad_field(request: Request, error: RequestValidationError) -> JSONResponse:
        # FastAPI's own repeats what was sent, and fails on a NaN in it.
        problems = [{key: problem[key] for key in ("type", "loc", "msg")} for problem in error.errors()]
        return JSONResponse({"detail": problems}, 422)

    @app.exception_handler(Exception)
    def broken(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": "The server failed; its terminal says why."}, 500)

    return app


def _failed(error: TwinError) -> HTTPException:
    _log.error("%s %s", error.message, error.hint)
    return HTTPException(500, "The server could not do that; its terminal says why.")


def _add_export(router: APIRouter, source: BrainSource) -> None:
    exports = _Exports()

    @router.post("/api/finetune/export", responses=_UNREAD)
    def export(body: models.ExportBody) -> models.SplitExport | models.WholeExport | models.NoExport:
        """Write a dataset, which the downloads then hand over."""
        with exports.lock:
            try:
                files = source.export(ExportAsk(**body.model_dump()))
            except TwinError as error:
                raise _failed(error) from None
            parts = {"train": files.train, "val": files.val} if body.validation_split else {}
            exports.files = {"full": files.full, **parts} if files.train_examples + files.val_examples else {}
        return _answer(body, files)

    @router.get("/api/finetune/download", response_class=Response, responses=_HANDED)
    def download() -> RowStream:
        """Return all rows of the last export."""
        return _rows(exports.files.get("full"))

    @router.get("/api/finetune/download/train", response_class=Response, responses=_HANDED)
    def download_train() -> RowStream:
        """Return the rows to learn from."""
        return _rows(exports.files.get("train"))

    @router.get("/api/finetune/download/val", response_class=Response, responses=_HANDED)
    def download_val() -> RowStream:
        """Return the held-out rows."""
        return _rows(exports.files.get("val"))


def _add_looks(router: APIRouter, source: BrainSource) -> None:
    @router.get("/api/finetune/formats")
    def formats() -> models.Formats:
        """List the formats."""
        return models.Formats(
            formats=[models.FormatInfo(name=name, description=about) for name, about in FORMATS.items()]
        )

    @router.post("/api/finetune/preview", responses=_UNREAD)
    def preview(body: models.PreviewBody) -> models.Preview:
        """Return the first rows, without writing any."""
        try:
            rows = source.preview(body.format, body.limit)
        except TwinError as error:
            raise _failed(error) from None
        return models.Preview(format=body.format, examples=[dict(row) for row in rows[: body.limit]])

    @router.get("/api/finetune/stats")
    def stats() -> models.Stats:
        """Count what the brain holds; it is read for that."""
        found = Counter(pair.source for pair in _exchanges(source))
        return models.Stats(
            person=source.person,
            conversations=len(found),
            exchanges=found.total(),
            memories=len(source.memories),
            memories_by_category=Counter(memory.category for memory in source.memories),
        )

    @router.get("/api/finetune/analyze")
    def analyze() -> models.Analysis:
        """Measure the exchanges; the brain is read for that."""
        return analysis(_exchanges(source))


def _add_brain(router: APIRouter, source: BrainSource) -> None:
    @router.get("/api/training/export", response_class=Response, responses={200: {"model": models.BrainExport}})
    def brain() -> JsonStream:
        """Return the whole brain; it is read while it is sent."""
        pieces = in_pieces(brain_json(source))
        try:
            first = next(pieces)  # so that a brain that can't be read is a 500 and no broken stream
        except TwinError as error:
            raise _failed(error) from None
        return JsonStream(chain([first], pieces), headers=_PRIVATE)

    @router.get("/api/cognitive/core-memories")
    def core_memories(query: Annotated[models.MemoriesQuery, Query()]) -> models.CoreMemories:
        """Return the most important memories."""
        numbered = sorted(enumerate(source.memories, start=1), key=lambda pair: -pair[1].importance)
        memories = [
            models.CoreMemory(
                id=number,
                memory=memory.text,
                category=memory.category,
                importance=memory.importance,
                created_at=memory.at.isoformat() if memory.at else None,
            )
            for number, memory in numbered[: query.limit]
        ]
        by_category = Counter(memory.category for memory in source.memories)
        return models.CoreMemories(
            memories=memories, stats=models.MemoryStats(total=len(source.memories), by_category=by_category)
        )


# ---------------------------------------------------------------- answers


def _answer(body: models.ExportBody, files: ExportedFiles) -> models.SplitExport | models.WholeExport | models.NoExport:
    total = files.train_examples + files.val_examples
    if not total:
        return models.NoExport(format=body.format, error="no row is left, see the reasons in the server's dataset.json")
    if not body.validation_split:
        return models.WholeExport(format=body.format, total_examples=total, path=files.full.name)
    return models.SplitExport(
        format=body.format,
        total_examples=total,
        train_examples=files.train_examples,
        val_examples=files.val_examples,
        train_path=files.train.name,
        val_path=files.val.name,
        full_path=files.full.name,
    )


def _rows(path: Path | None) -> RowStream:
    """Return a file as it is now: an export that replaces it meanwhile does not touch what is open."""
    if path is None:
        raise HTTPException(404, "Nothing of that is exported yet: POST /api/finetune/export")
    try:
        handle = path.open("rb")
    except OSError as error:
        _log.error("Could not read '%s': %s", path, error.strerror)
        raise HTTPException(404, "What was exported is gone: POST /api/finetune/export") from None

    def pieces() -> Iterator[bytes]:
        with handle:
            while piece := handle.read(PIECE_BYTES):
                yield piece

    size = os.fstat(handle.fileno()).st_size
    headers = {"Content-Length": str(size), "Content-Disposition": f'attachment; filename="{path.name}"'}
    return RowStream(pieces(), headers=headers | _PRIVATE)


def _exchanges(source: BrainSource) -> Iterator[Exchange]:
    """Yield the exchanges; a brain that can't be read is a 500."""
    try:
        yield from exchanges(source.conversations(), source.person)
    except TwinError as error:
        raise _failed(error) from None


# ---------------------------------------------------------------- serving


def serve(
    source: BrainSource, secret: SecretStr, host: str, port: int, reporter: Reporter, ready: Callable[[str], None]
) -> None:
    """Serve until Ctrl-C.

    Args:
        source: the brain.
        secret: signs the tokens, at least 32 bytes.
        host: the address to listen on.
        port: its port; 0 takes a free one.
        reporter: warned when others than this machine can reach it.
        ready: called with the URL once it listens.

    Raises:
        UsageError: no such address, or too short a secret.
        MachineError: the port is taken.
    """
    app = create_app(source, secret)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, proxy_headers=False, lifespan="off",
        timeout_graceful_shutdown=5,
    )  # fmt: skip
    with _listen(host, port) as listener:
        shown = f"[{host}]" if ":" in host else host
        if not is_loopback(host):
            reporter.say(
                f"Warning: others can reach {shown}; without a TLS proxy before it tokens and chats travel unencrypted."
            )
        ready(f"http://{shown}:{listener.getsockname()[1]}")
        with suppress(KeyboardInterrupt):  # how a server ends
            uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    try:
        if not host:
            raise UnicodeError("an empty host would be every address")
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family)
    except (socket.gaierror, UnicodeError, OverflowError):
        raise UsageError(
            f"'{host}' port {port} is no address to listen on.", "Leave --host out for 127.0.0.1."
        ) from None
    except OSError as error:
        raise MachineError(
            f"Can't listen on port {port} of {host}: {error.strerror or 'no reason given'}.",
            "Another program has it, or it takes an administrator. Try: twin serve --port 8001",
        ) from None
