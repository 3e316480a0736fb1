"""Which documents a brain has: files and folders, what is inside zips, and the importer that knows each."""

from __future__ import annotations

import errno
import os
import stat
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from twin.brain.document import Document, members, repeated
from twin.brain.importers import Importer, pick
from twin.brain.importers.table import NAMES
from twin.dropped import Dropped
from twin.errors import UsageError, file_errors, nearest
from twin.records import Conversation, JournalEntry

_TABLES = {".csv", ".tsv", ".jsonl", ".ndjson"}
_MAY_BE_CHATS = {".txt", ".md", ".markdown", ".json", ".html", ".mbox", ".db", ".zip"} | _TABLES


def find(
    sources: Sequence[Path], dropped: Dropped, columns: Mapping[str, str] | None = None
) -> list[tuple[Document, Importer]]:
    """Return the documents below ``sources`` that an importer knows, those inside zips included.

    Args:
        sources: files and folders.
        columns: our names of a table's columns, and the table's own.
        dropped: told of files that are empty, broken or of an unknown layout.

    Raises:
        UsageError: a source that does not exist; a column that twin has no such name for.
    """
    for ours in columns or {}:
        if ours not in NAMES:
            raise UsageError(f"'twin.toml' has an unknown key '{ours}' in [columns].", nearest(ours, NAMES))
    known: list[tuple[Document, Importer]] = []
    for found in _files(sources, dropped):
        file = replace(found, columns=tuple((columns or {}).items()))
        try:
            zipped = file.suffix == ".zip"
            with file_errors(file.file, "read"):
                if zipped and file.size and not _is_zip(file):
                    dropped.problem(f"{file} is a broken zip.", "Export or download it again.")
                    continue
            inside = _inside(file, dropped) if zipped and file.size else _known(file, dropped)
        except UsageError as error:
            dropped.problem(error.message, error.hint)
            continue
        known += inside
    return known


def _files(sources: Sequence[Path], dropped: Dropped) -> Iterator[Document]:
    """Yield each file below the sources with the name it has in row ids, in a stable order."""
    used: set[str] = set()
    walk = _Walk(dropped)
    for source in sources:
        with file_errors(source, "read"):
            there = source.exists()
        if not there:
            raise UsageError(
                f"There is nothing at '{source}'.",
                "Put your exports into a folder named brain, or name another: twin export FOLDER",
            )
        if source.is_dir():
            for path, size in walk.files(source):
                yield Document(path, _unused(path.relative_to(source).as_posix(), source.name, used), size=size)
        elif not source.is_file():
            raise UsageError(f"'{source}' is neither a file nor a folder.", "Name the export itself.")
        else:
            yield Document(source, _unused(source.name, source.parent.name, used), size=source.stat().st_size)
    walk.say_links()


class _Walk:
    """The files below folders. Names that begin with a point are passed over, what can't be read is a problem.

    Links to files are followed, links to folders are not: they may lead round in a circle, or to all of a disk.
    """

    def __init__(self, dropped: Dropped) -> None:
        self._dropped = dropped
        self._links: list[Path] = []
        self._seen: set[Path] = set()

    def files(self, source: Path) -> list[tuple[Path, int]]:
        """Return the files below a folder with their sizes, in a stable order.

        Raises:
            UsageError: the folder itself can't be read.
        """
        found: list[tuple[Path, int]] = []

        def closed(error: OSError) -> None:
            if Path(error.filename) == source:
                raise error
            self._say(Path(error.filename), error)

        with file_errors(source, "read"):
            for folder, below, names in os.walk(source, onerror=closed):
                self._seen.add(Path(folder).resolve())
                below[:] = [name for name in below if not name.startswith(".")]
                self._links += [path for name in below if _is_link(path := Path(folder, name))]
                for path in (Path(folder, name) for name in names if not name.startswith(".")):
                    try:
                        status = path.stat()
                    except OSError as error:
                        if error.errno not in (errno.ENOENT, errno.ELOOP):  # a link that leads nowhere
                            self._say(path if _is_link(path) else path.parent, error)
                    else:
                        if stat.S_ISREG(status.st_mode):
                            found.append((path, status.st_size))
        return sorted(found)

    def say_links(self) -> None:
        """Say which links lead to a folder that was read under no other name."""
        for link in sorted(self._links):
            if (target := link.resolve()) not in self._seen:
                self._dropped.problem(
                    f"{Document(link, '')} is a link to a folder, which twin does not follow.",
                    f"Name the folder itself beside the others: {Document(target, '')}",
                )

    def _say(self, path: Path, error: OSError) -> None:
        try:
            with file_errors(path, "read"):
                raise error
        except UsageError as told:
            self._dropped.problem(told.message, told.hint)


def _is_link(path: Path) -> bool:
    return os.path.islink(path)  # noqa: PTH114 - Path's own raises where a folder may not be entered


def _unused(name: str, folder: str, used: set[str]) -> str:
    """Return ``name``, or one that no other file has: row ids must lead to one place."""
    # A name that is no Unicode (out of an old zip, say) can't go into JSON as it is.
    name, folder = (os.fsencode(part).decode("utf-8", "replace") for part in (name, folder))
    choice, number = name, 1
    while choice in used:
        choice = f"{folder}/{name}" if number == 1 and folder else f"{name}~{number}"
        number += 1
    used.add(choice)
    return choice


def _is_zip(file: Document) -> bool:
    with file.open() as handle:  # by its name, zipfile calls one that can't be opened no zip
        return zipfile.is_zipfile(handle)


def _known(document: Document, dropped: Dropped) -> list[tuple[Document, Importer]]:
    with file_errors(document.file, "read"):
        head = document.head()
    if not head.strip():
        dropped.problem(f"{document} is empty.", "Export it again, or take it out of the folder.")
        return []
    importer = pick(document, head)
    if importer is None:
        dropped.add(_unknown(document), where=document.name)
        return []
    return [(document, importer)]


def _inside(file: Document, dropped: Dropped) -> list[tuple[Document, Importer]]:
    """Return what is known in a zip; files that can't be chats (its media) are counted and not opened."""
    found = []
    inner = members(file)
    if not inner:
        dropped.problem(f"{file} is empty.", "Export it again, or take it out of the folder.")
    for name in repeated(file):
        dropped.add("file in a zip with a later one of its name", where=file.name)
        earlier = Document(file.file, file.name, name)
        if _may_be_chat(earlier):
            dropped.problem(
                f"{earlier} is there more than once, and the last alone is read.",
                "Unpack it with a program that keeps both, and name the folder.",
            )
    for document in inner:
        if not _may_be_chat(document):
            dropped.add(f"file in a zip ({document.suffix or 'no suffix'})", where=document.name)
            continue
        try:
            head = document.head()
        except UsageError as error:
            dropped.problem(error.message, error.hint)
            continue
        importer = pick(document, head) if head.strip() else None
        if importer is None:
            dropped.add(f"file in a zip ({document.suffix})", where=document.name)
        else:
            found.append((document, importer))
    if any(Conversation in importer.HOLDS for _, importer in found):  # a text sent in a chat is nobody's journal
        for document, importer in found:
            if (JournalEntry,) == importer.HOLDS:
                dropped.add(f"file in a zip ({document.suffix})", where=document.name)
        found = [(document, importer) for document, importer in found if (JournalEntry,) != importer.HOLDS]
    if inner and not found and not dropped.problems:
        dropped.add(f"unknown file: {file.name} (no chat that twin knows)", where=file.name)
    return found


def _may_be_chat(member: Document) -> bool:
    return member.suffix in _MAY_BE_CHATS - {".zip"} | {""}  # a mailbox may have no suffix


def _unknown(document: Document) -> str:
    """Return the reason that counts an unread file: by name where it may well be a chat, else by its suffix."""
    if document.suffix in _TABLES:
        return f"unknown file: {document.path.name} (no column that twin knows: name them in [columns] of twin.toml)"
    if document.suffix in _MAY_BE_CHATS:
        return f"unknown file: {document.path.name}"
    return f"unknown file ({document.suffix or 'no suffix'})"
