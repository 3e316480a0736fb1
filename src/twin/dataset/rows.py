"""The dataset's files: written by an export, read back for training with what is held out kept apart."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Self

import orjson

from twin import files
from twin.dataset import Dataset
from twin.dataset.formats import read_rows, to_line
from twin.dataset.table import Rows as TableRows
from twin.errors import UsageError, file_errors
from twin.names import is_digest, person_digest, source_digests
from twin.records import Example, Memory
from twin.runs import DatasetPaths
from twin.settings import Settings

_BATCH = 2000  # rows written at once
_WAITING_BATCHES = 4
_FLUSH_BYTES = 16 << 20


def write(
    built: Dataset,
    reserved: Sequence[Memory],
    paths: DatasetPaths,
    format_name: str,
    person: str,
    report: Mapping[str, Any],
) -> None:
    """Write all rows, the two parts, the reserved memories and the report, each whole or not at all.

    Args:
        built: the rows.
        reserved: the memories that no row tells.
        paths: where they go.
        format_name: ``chatml``, ``alpaca``, ``sharegpt`` or ``raw``.
        person: whose replies they are.
        report: what ``dataset.json`` says; the files' digests are added.
    """

    def batches(rows: TableRows) -> Iterator[bytes]:
        return rows.chatml() if format_name == "chatml" else _batches(rows, format_name, person)

    write_lines(batches(built.train), batches(built.val), paths, report, reserved)


def write_lines(
    train: Iterable[bytes],
    val: Iterable[bytes],
    paths: DatasetPaths,
    report: Mapping[str, Any],
    reserved: Sequence[Memory] | None = None,
) -> None:
    """Write lines of rows into the file of all and into their part's, then the report.

    Args:
        train: lines to learn from, some at a time.
        val: held-out lines, some at a time.
        paths: where they go.
        report: what ``dataset.json`` says; the files' SHA-256 are added.
        reserved: the memories that no row tells; None: nobody knows of any, and an earlier export's are of other rows.
    """
    with files.exclusive(paths.root):
        with ExitStack() as stack:
            full, train_file, val_file = (
                stack.enter_context(files.atomic_write(path)) for path in (paths.full, paths.train, paths.val)
            )
            whole, held_out = hashlib.sha256(), hashlib.sha256()
            with _Behind() as behind:
                for batch in train:
                    behind.write(batch, (train_file, full), (whole,))
            digests = {paths.train.name: whole.hexdigest()}  # so far the two files are the same
            with _Behind() as behind:
                for batch in val:
                    behind.write(batch, (val_file, full), (whole, held_out))
            digests |= {paths.val.name: held_out.hexdigest(), paths.full.name: whole.hexdigest()}
        if reserved is None:
            with file_errors(paths.reserved, "write"):
                paths.reserved.unlink(missing_ok=True)
        else:
            _write_reserved(reserved, paths)
        files.write_json(paths.report, {**report, "files": digests})


class _Behind:
    """Writes, hashes and flushes in threads of its own, while the next rows are made; at the end all is written.

    Raises:
        OSError: of an earlier write or flush.
    """

    def __init__(self) -> None:
        self._writer, self._flusher = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._writes: deque[Future[None]] = deque()
        self._flush: Future[None] | None = None
        self._unflushed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._writer.shutdown(cancel_futures=kind is not None)
        self._flusher.shutdown()
        if kind is None:
            for one in (*self._writes, *filter(None, (self._flush,))):
                one.result()

    def write(self, batch: bytes, handles: Sequence[IO[bytes]], digests: Sequence[Any]) -> None:
        """Add lines to each file and to each hash."""
        if len(self._writes) >= _WAITING_BATCHES:
            self._writes.popleft().result()
        self._writes.append(self._writer.submit(self._write, batch, handles, digests))

    def _write(self, batch: bytes, handles: Sequence[IO[bytes]], digests: Sequence[Any]) -> None:
        for handle in handles:
            handle.write(batch)
        for digest in digests:
            digest.update(batch)
        self._unflushed += len(batch)
        if self._unflushed > _FLUSH_BYTES and (self._flush is None or self._flush.done()):
            if self._flush:
                self._flush.result()
            self._flush = self._flusher.submit(_sync, [handle.fileno() for handle in handles])
            self._unflushed = 0


def _sync(handles: Sequence[int]) -> None:
    for handle in handles:
        os.fsync(handle)


def _write_reserved(memories: Sequence[Memory], paths: DatasetPaths) -> None:
    """Write the memories that no row tells, one JSON object a line."""
    with files.atomic_write(paths.reserved) as handle:
        for one in memories:
            row = {"id": one.id, "memory": one.text, "category": one.category, "importance": one.importance}
            handle.write(orjson.dumps(row) + b"\n")


def _batches(rows: TableRows, format_name: str, person: str) -> Iterator[bytes]:
    lines = (to_line(row, format_name, person) for row in rows)
    while batch := b"".join(islice(lines, _BATCH)):
        yield batch


@dataclass(frozen=True, slots=True)
class Rows:
    """What training reads.

    Args:
        train: rows to learn from; none of them is held out.
        val: held-out rows.
        train_path: the file of the first.
        val_path: the file of the second, where there is one.
        system: the system prompt the rows were made with, which is served later; empty for none.
        owned: an export of twin's own, whose prompt must keep its bound.
        left_out: how many rows of the first file are held out.
        provenance: of each source, by a digest of its name, digests of its speakers' names and of what it lies in
            (``within``), and its span of time; None for another tool's rows.
    """

    train: list[Example]
    val: list[Example]
    train_path: Path
    val_path: Path | None
    system: str
    owned: bool
    left_out: int
    provenance: dict[str, Any] | None = None


def paths_of(settings: Settings) -> tuple[Path, Path | None]:
    """Return the files to learn from and to hold out, as ``settings`` name them.

    Raises:
        UsageError: no dataset.
    """
    train_path = settings.train.dataset or DatasetPaths(settings.export.output).train
    if not train_path.exists():
        raise UsageError(f"There is no dataset '{train_path}'.", "Make one first: twin export")
    held_out = held_out_path(settings)
    return train_path, held_out if settings.train.validation or held_out.exists() else None


def held_out_path(settings: Settings) -> Path:
    """Return the file of held-out rows as ``settings`` name it, whether it is there or not."""
    beside = settings.train.dataset.parent if settings.train.dataset else settings.export.output
    return settings.train.validation or DatasetPaths(beside).val


def load(settings: Settings) -> Rows:
    """Read the dataset that ``settings`` name; rows that the validation file holds are never trained on.

    Raises:
        UsageError: no dataset, a broken line, or nothing to learn.
    """
    train_path, val_path = paths_of(settings)
    val = list(read_rows(val_path)) if val_path else []
    ids = {row.id for row in val if not row.every_reply}  # ids of other tools' rows are line numbers of their file
    words = {row.said for row in val}
    found = list(read_rows(train_path))
    train_rows = [row for row in found if row.said not in words and (row.every_reply or row.id not in ids)]
    if not train_rows:
        raise UsageError(f"'{train_path}' has no rows to learn from.", "Make it again: twin export")
    # What most rows were made with is what is served: a tenth of an export's rows carry another prompt, or none.
    prompts = Counter(row.turns[0].content if row.turns[0].role == "system" else "" for row in train_rows)
    system = prompts.most_common(1)[0][0]
    report = DatasetPaths(train_path.parent).report
    about = files.read_json(report) if report.exists() else {}
    owned = about.get("system_prompt") == system
    digests = about.get("files")
    ours = isinstance(digests, dict) and digests.get(train_path.name) == files.file_digest(train_path)
    provenance = _hashed(about.get("provenance")) if ours else None
    return Rows(train_rows, val, train_path, val_path, system, owned, len(found) - len(train_rows), provenance)


def _hashed(provenance: Any) -> dict[str, Any] | None:
    """Return where rows come from without names: an adapter may be given away, its record with it.

    None: a report that somebody edited does not tell.
    """
    if not isinstance(provenance, dict):
        return None
    found = {}
    for name, about in provenance.items():
        people = about.get("people") if isinstance(about, dict) else None
        if not isinstance(people, dict):
            return None
        within = source_digests(name) + ([about["place"]] if isinstance(about.get("place"), str) else [])
        found[within[0]] = {
            # An older report has names.
            "people": sorted({one if is_digest(one) else person_digest(one) for one in people}),
            "first": about.get("first"),
            "last": about.get("last"),
            "within": within,
        }
    return found
