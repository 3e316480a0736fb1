"""A file of a brain, on disk or inside a zip: read in place, in bounded pieces, and never unpacked to disk.

Not obvious: a zip is untrusted. Its names become no path, a member with a password or of a size that no text has is
refused before a byte of it is unpacked, and what is read of it never passes the size it declares.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import IO

from twin.dropped import Dropped
from twin.errors import UsageError, file_errors

HEAD_BYTES = 64 * 1024
MAX_LINE_BYTES = 4 << 20  # a line longer than this is no chat's
_BLOCK = 1 << 20
MAX_MEMBER_BYTES = 16 << 30
MAX_RATIO = 200  # of a text to its packed size: text packs to a fifth, a bomb to a thousandth
MAX_MEMBERS = 1_000_000
# What zipfile raises for bytes that are no zip.
BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, RuntimeError, struct.error)
_BOMS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


@dataclass(frozen=True)
class Document:
    """One file as importers see it.

    Args:
        file: the file on disk; a zip where ``member`` is set.
        name: what row ids call it.
        member: its name inside the zip.
        size: its bytes, unpacked.
        columns: our names of a table's columns and the table's own.
    """

    file: Path
    name: str
    member: str = ""
    size: int = 0
    columns: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        place = f"'{self.member}' in '{self.file}'" if self.member else f"'{self.file}'"
        return "".join(letter if letter.isprintable() else "?" for letter in place)

    @property
    def path(self) -> PurePosixPath:
        """Its path inside the zip, or its own: for names and suffixes."""
        return PurePosixPath(self.member) if self.member else PurePosixPath(self.file.as_posix())

    @cached_property  # every importer asks for it of every file
    def suffix(self) -> str:
        """The suffix in small letters, with its dot."""
        return self.path.suffix.lower()

    @cached_property
    def place(self) -> str:
        """Where it is, whatever was named on the command line to find it: its resolved path, and its name in a zip."""
        file = os.fsencode(self.file.resolve()).decode("utf-8", "replace")  # a name that is no Unicode can't be kept
        return f"{file}/{self.member}" if self.member else file

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Open it for reading.

        Raises:
            UsageError: unreadable; a member with a password, a broken one, or one of a size that no text has.
        """
        if not self.member:
            with file_errors(self.file, "read"), self.file.open("rb") as handle:
                yield handle
            return
        archive = _archive(self.file, self.file.stat().st_mtime_ns)
        member = _checked(archive.getinfo(self.member), self)
        try:
            with archive.open(member) as packed:
                yield packed
        except (*BROKEN_ZIP, OSError) as error:
            if isinstance(error, OSError) and error.errno != errno.EINVAL:  # a place before the file's beginning
                raise
            if isinstance(error, UnicodeError):
                raise
            raise UsageError(f"{self} can't be unpacked: {error}.", "Export or download it again.") from None

    def head(self) -> bytes:
        """Return its first 64 KiB, or less."""
        with self.open() as handle:
            return handle.read(HEAD_BYTES)

    def sibling(self, relative: str) -> Document | None:
        """Return the document at ``relative`` to this one's folder, in the same folder or zip; None if there is none.

        Names with ``..`` are followed inside a zip and inside a folder alike, but never an absolute one.
        """
        if PurePosixPath(relative).is_absolute():
            return None
        if not self.member:
            file = self.file.parent / relative
            if not file.is_file():
                return None
            return replace(self, file=file, name=f"{self.name}+{relative}", size=file.stat().st_size)
        wanted = os.path.normpath(self.path.parent / relative).replace(os.sep, "/")
        with suppress(KeyError):
            found = _archive(self.file, self.file.stat().st_mtime_ns).getinfo(wanted)
            return replace(self, name=f"{self.name}+{relative}", member=found.filename, size=found.file_size)
        return None

    def byte_lines(self) -> Iterator[tuple[int, bytes | None]]:
        """Yield each line's number, from 1, and its bytes without the line end; None for one of over 4 MiB."""
        number, held, too_long = 0, b"", False
        with self.open() as handle:
            while block := handle.read(_BLOCK):
                *whole, held = (held + block).split(b"\n")
                for line in whole:
                    number += 1
                    yield number, None if too_long or len(line) > MAX_LINE_BYTES else line.rstrip(b"\r")
                    too_long = False
                if len(held) > MAX_LINE_BYTES:
                    held, too_long = b"", True
        if held or too_long:
            yield number + 1, None if too_long else held.rstrip(b"\r")

    def lines(self, dropped: Dropped | None = None) -> Iterator[str]:
        """Yield its lines as text, without their ends; a line of over 4 MiB characters is cut there.

        UTF-8, or UTF-16 with its byte order mark. NUL characters are left out.

        Args:
            dropped: counts the lines that are cut.

        Raises:
            UsageError: bytes that are neither.
        """
        with self.open() as handle:
            encoding = _encoding(handle.peek(3))  # type: ignore[attr-defined]  # a file has it, and a zip's member
            with io.TextIOWrapper(handle, encoding, newline="\n") as text:
                try:
                    while line := text.readline(MAX_LINE_BYTES):
                        cut = len(line) == MAX_LINE_BYTES and not line.endswith("\n") and _skip_line(text)
                        if cut and dropped is not None:
                            dropped.add("rest of a line of over 4 MiB", where=self.name)
                        yield line.rstrip("\r\n").replace("\0", "")
                except UnicodeDecodeError:
                    raise self.not_text(encoding) from None

    def not_text(self, encoding: str, after: str = "") -> UsageError:
        """Return what to say of bytes in it that its encoding does not have.

        Args:
            encoding: Python's name of it.
            after: what could be read before them, e.g. ``"after 3 items"``.
        """
        where = f" {after}" if after else ""
        return UsageError(
            f"{self} is not UTF-8 text{where} (byte {self._first_bad_byte(encoding)} can't be decoded).",
            "Save it again as UTF-8; in most editors: Save as, Encoding, UTF-8.",
        )

    def _first_bad_byte(self, encoding: str) -> int:
        """Return where decoding fails, counted from the beginning: an error's own count begins at its last chunk."""
        decoder, before = codecs.getincrementaldecoder(encoding)(), 0
        with self.open() as handle:
            while True:
                data, held = handle.read(1 << 20), len(decoder.getstate()[0])
                try:
                    decoder.decode(data, final=not data)
                except UnicodeDecodeError as error:
                    return before - held + error.start
                before += len(data)
                if not data:
                    return before

    def text(self, dropped: Dropped | None = None) -> str:
        """Return all of it, with a line feed between lines.

        Args:
            dropped: counts the lines that are cut.

        Raises:
            UsageError: not text, or over 64 MiB.
        """
        if self.size > 64 << 20:
            raise UsageError(f"{self} is {self.size:,} bytes, more than a text is.", "Take it out of the folder.")
        return "\n".join(self.lines(dropped))


def _encoding(start: bytes) -> str:
    """Return the encoding that a byte order mark tells; UTF-8 without one."""
    return next((name for mark, name in _BOMS if start.startswith(mark)), "utf-8")


def as_text(head: bytes) -> str:
    """Return the beginning of a document as text, for sniffing: whatever can't be decoded is left out."""
    return head.decode(_encoding(head), "ignore").replace("\0", "")


def _skip_line(text: io.TextIOWrapper) -> bool:
    """Pass over the rest of a line, and say whether there was more than its end."""
    found = False
    while rest := text.readline(MAX_LINE_BYTES):
        found = found or bool(rest.strip("\r\n"))
        if rest.endswith("\n"):
            break
    return found


@lru_cache(maxsize=4)
def _archive(file: Path, modified: int) -> zipfile.ZipFile:
    """Return the open zip; its directory is read once, not once a member."""
    with file_errors(file, "read"):
        return zipfile.ZipFile(file)


def _checked(member: zipfile.ZipInfo, document: Document) -> zipfile.ZipInfo:
    if member.flag_bits & 1:
        raise UsageError(f"{document} has a password.", "Unpack it, and name the folder or file.")
    if member.file_size > min(MAX_MEMBER_BYTES, MAX_RATIO * max(member.compress_size, 64)):
        raise UsageError(
            f"{document} would unpack to {member.file_size:,} bytes from {member.compress_size:,}, as no text does.",
            "Unpack it yourself if you trust it, and name the folder.",
        )
    return member


def _is_file(member: zipfile.ZipInfo) -> bool:
    return bool(member.filename) and not member.is_dir()


def members(file: Document) -> list[Document]:
    """Return the files inside a zip, in the order of their names; of several with one name the last.

    Raises:
        UsageError: a broken zip, or one of more than a million files.
    """
    try:
        found = _archive(file.file, file.file.stat().st_mtime_ns).infolist()
    except (*BROKEN_ZIP, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise UsageError(f"{file} is a broken zip: {error}.", "Export or download it again.") from None
    if len(found) > MAX_MEMBERS:
        raise UsageError(f"{file} holds {len(found):,} files.", "Unpack it yourself if you trust it.")
    own = {member.filename: member for member in found if _is_file(member)}
    return [
        Document(file.file, f"{file.name}/{inner}", inner, own[inner].file_size, file.columns) for inner in sorted(own)
    ]


def repeated(file: Document) -> list[str]:
    """Return the names that stand more than once in a zip, once for each that ``members`` leaves out."""
    archive = _archive(file.file, file.file.stat().st_mtime_ns)
    times = Counter(member.filename for member in archive.infolist() if _is_file(member))
    return list((times - Counter(times.keys())).elements())
