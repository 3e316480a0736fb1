"""macOS Messages: ``chat.db``, the database in ``~/Library/Messages``, opened read-only where it is.

Layout (https://github.com/ReagentX/imessage-exporter/tree/develop/docs/tables): ``chat`` and ``message`` meet in
``chat_message_join``, a message's sender is in ``handle``; dates count from 2001, in nanoseconds, once in seconds. Not
obvious: newer messages have no ``text``, their words are the first string of the archive in ``attributedBody``; and
one talk is several chats, one for iMessage and one for SMS, which share their ``chat_identifier``. A database is also a
program (views, computed columns), so what somebody else may have made is held to plain tables and to a bound of work.
"""

from __future__ import annotations

import plistlib
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import chain, repeat
from typing import Any

from twin.brain.document import Document
from twin.brain.reading import clean, epoch_time, pieces
from twin.dropped import Dropped
from twin.errors import UsageError
from twin.records import ME, Conversation, Message

LAYOUT = "macOS Messages (chat.db)"
HOLDS = (Conversation,)
MAX_BLOB = 1 << 20
MAX_VALUE = 64 << 20  # of a row and of each of its values: SQLite would make one of a gigabyte
# Steps of SQLite's machine: reading takes two for each byte of the file, rows that meet each other many times no end.
MAX_STEPS, MAX_STEPS_PER_BYTE = 20_000_000, 20
_STEPS_AT_ONCE = 100_000
_MAGIC = b"SQLite format 3\0"
# Read where the database has them: each macOS adds some.
_COLUMNS = (
    *("text", "subject", "attributedBody", "message_summary_info", "date", "is_from_me", "associated_message_type"),
    *("item_type", "balloon_bundle_id", "is_service_message", "is_system_message", "is_auto_reply", "is_spam"),
)
_NEEDED = {
    "message": {"rowid", "handle_id", "date"},
    "handle": {"rowid", "id"},
    "chat": {"rowid", "chat_identifier"},
    "chat_message_join": {"chat_id", "message_id"},
}
_REPEATED = "SELECT message_id FROM chat_message_join GROUP BY message_id HAVING count(*) > 1"
_IN_NO_CHAT = (
    "m.ROWID NOT IN (SELECT j.message_id FROM chat_message_join j JOIN chat c ON c.ROWID = j.chat_id"
    " WHERE j.message_id NOTNULL)"
)
_SINCE_1970 = 978_307_200  # seconds from 1970 to 2001
_LINK = "com.apple.messages.URLBalloonProvider"  # a preview of the link in the text; other balloons are apps
_ADDRESS = re.compile(r"\+?\d|[^@\s]+@")  # a chat of two is named after the other one
_OBJECT = "\ufffc"  # stands in the text for an attachment
# What phones without tapbacks send in their stead, in English; in other languages such texts are read as speech.
_TAPBACK = re.compile(
    r"(?:Loved|Liked|Disliked|Laughed at|Emphasized|Questioned|Reacted \S{1,12} to|Removed an? [\w ]{1,40} from) "
    r"(?:“.*”|an? (?:image|movie|audio message|attachment))",
    re.DOTALL,
)


def sniff(document: Document, head: bytes) -> bool:
    """A SQLite database with the tables of Messages; in a zip by its name or first pages alone."""
    if not head.startswith(_MAGIC):
        return False
    named = document.path.name == "chat.db"
    if document.member:
        return named or b"chat_message_join" in head
    with suppress(UsageError), _opened(document) as database:
        return {row["name"] for row in database.execute("SELECT name FROM sqlite_master")} >= _NEEDED.keys()
    return named


def read(document: Document, dropped: Dropped) -> Iterator[Conversation]:
    """Yield each chat as a conversation.

    What a ``-wal`` file beside the database holds is not read: SQLite would have to write there. ``dropped`` says so.

    Raises:
        UsageError: inside a zip; views or computed columns in place of tables; broken, or more work than a database
            of its size gives, after the chats before the break.
    """
    if document.member:
        raise UsageError(f"{document} is a database, which can't be read inside a zip.", "Unpack it, name the folder.")
    waiting = document.file.with_name(document.file.name + "-wal")
    if waiting.is_file() and waiting.stat().st_size:
        dropped.problem(
            f"The newest messages are not in {document} yet but in '{waiting.name}', which twin does not read.",
            f"To have them too, read a copy made with: sqlite3 '{document.file}' '.backup copy.db'",
        )
    with _opened(document) as database:
        _check_tables(database, document)
        yield from _conversations(database, document.name, dropped)


@contextmanager
def _opened(document: Document) -> Iterator[sqlite3.Connection]:
    """Open a database so that neither it nor a file beside it is written, and nothing in it is run."""
    most = MAX_STEPS + MAX_STEPS_PER_BYTE * document.size
    # No function of Python's is called back: what a Ctrl-C raises inside one is swallowed, and the rest told as broken.
    is_over = chain(repeat(0, most // _STEPS_AT_ONCE), repeat(1)).__next__

    try:
        database = sqlite3.connect(f"{document.file.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
        try:
            database.row_factory = sqlite3.Row
            database.text_factory = lambda data: data.decode("utf-8", "replace")
            database.execute("PRAGMA trusted_schema = OFF")
            database.execute("PRAGMA temp_store = MEMORY")  # sorting puts nothing private into files
            database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE)
            database.set_progress_handler(is_over, _STEPS_AT_ONCE)
            yield database
        finally:
            database.close()
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT:
            raise UsageError(
                f"{document} takes more work than a database of its size should.", "Copy it again from your Mac."
            ) from None
        raise UsageError(
            f"{document} is a broken database: {error}.", "Quit Messages and copy it again, with the files beside it."
        ) from None


def _check_tables(database: sqlite3.Connection, document: Document) -> None:
    """Refuse views and computed columns in place of what Messages stores: they may run without end."""
    types = {row["name"].lower(): row["type"] for row in database.execute("SELECT name, type FROM sqlite_master")}
    for table, needed in _NEEDED.items():
        # Nothing of the file is in this text.
        columns = database.execute(f"PRAGMA table_xinfo({table})")
        computed = {row["name"].lower() for row in columns if row["hidden"]}
        if types.get(table) == "view" or needed & computed:
            raise UsageError(
                f"{document} has a view or a computed column where Messages has the table '{table}'.",
                "Copy it again from your Mac.",
            )


def _conversations(database: sqlite3.Connection, name: str, dropped: Dropped) -> Iterator[Conversation]:
    repeated = {row["message_id"] for row in database.execute(_REPEATED)}
    seen: set[int] = set()
    in_chats = _query(database, "chat_message_join j JOIN message m ON m.ROWID = j.message_id")
    for identifier, chats in _chats(database):
        marks = ", ".join("?" * len(chats))
        rows = database.execute(f"{in_chats} WHERE j.chat_id IN ({marks}) ORDER BY m.date, m.ROWID", chats)
        where = f"{name}/{chats[0]}"
        other = identifier if _ADDRESS.match(identifier) else "Unknown"
        yield from pieces(where, _messages(_once(rows, repeated, seen, where, dropped), other, where, dropped))
    for row in database.execute(f"{_query(database, 'message m')} WHERE {_IN_NO_CHAT}"):
        text, _ = _words(row)
        dropped.add(_reason_by_kind(row, text) or "message of a deleted chat", text, name)


def _query(database: sqlite3.Connection, source: str) -> str:
    there = {row["name"] for row in database.execute("PRAGMA table_info(message)")}
    columns = ", ".join(f"m.{column}" if column in there else f"NULL AS {column}" for column in _COLUMNS)
    # Nothing of the file is in this text.
    return (
        f"SELECT m.ROWID AS row_id, h.id AS handle, {columns} FROM {source} LEFT JOIN handle h ON h.ROWID = m.handle_id"  # noqa: S608
    )


def _chats(database: sqlite3.Connection) -> list[tuple[str, Sequence[int]]]:
    """Return the chats as (identifier, row ids): those with one identifier are one."""
    found: dict[str | int, tuple[str, list[int]]] = {}
    for row in database.execute("SELECT ROWID AS row_id, chat_identifier FROM chat ORDER BY ROWID"):
        identifier = clean(row["chat_identifier"])
        found.setdefault(identifier or row["row_id"], (identifier, []))[1].append(row["row_id"])
    return list(found.values())


def _once(
    rows: sqlite3.Cursor, repeated: set[int], seen: set[int], where: str, dropped: Dropped
) -> Iterator[sqlite3.Row]:
    """Yield the rows without those that stood in an earlier chat."""
    for row in rows:
        if row["row_id"] in repeated:
            if row["row_id"] in seen:
                dropped.add("duplicate", _words(row)[0], where)
                continue
            seen.add(row["row_id"])
        yield row


def _messages(rows: Iterator[sqlite3.Row], other: str, where: str, dropped: Dropped) -> Iterator[Message]:
    for row in rows:
        text, readable = _words(row)
        reason = _reason_by_kind(row, text)
        if not reason and not text:
            reason = _reason_for_silence(row) if readable else "unreadable iMessage text"
        if reason:
            dropped.add(reason, text, where)
        else:
            speaker = ME if row["is_from_me"] == 1 else clean(row["handle"]) or other
            yield Message(speaker, text, _time(row["date"]))


def _reason_by_kind(row: sqlite3.Row, text: str) -> str | None:
    about, balloon = row["associated_message_type"], row["balloon_bundle_id"]
    if row["item_type"] or any(row[flag] for flag in ("is_service_message", "is_system_message", "is_auto_reply")):
        return "iMessage's own message"
    if row["is_spam"]:
        return "spam"
    # 1000: a sticker on a message; 2000 and on: tapbacks; 3000 and on: tapbacks taken back; 4000: a vote.
    if (isinstance(about, int) and about >= 1000) or _TAPBACK.fullmatch(text):
        return "reaction"
    return "media" if balloon and balloon != _LINK else None


def _reason_for_silence(row: sqlite3.Row) -> str:
    """Return why a row has no words: unsent ones leave a list of the parts taken back."""
    return "iMessage's own message" if _summary(row).get("rp") else "media"


def _time(value: Any) -> datetime | None:
    if not isinstance(value, int) or value <= 0:
        return None
    microseconds = value // 1000 if value >= 10**12 else value * 10**6
    return epoch_time(_SINCE_1970 * 10**6 + microseconds, 10**6)


def _words(row: sqlite3.Row) -> tuple[str, bool]:
    """Return what was typed, and whether all of it could be read."""
    text, readable = row["text"], True
    if not isinstance(text, str) or not text.strip():
        text = ""
        for blob in [row["attributedBody"]] if row["attributedBody"] else _edited(row):
            try:
                text = "\n".join(filter(None, (text, attributed_text(blob))))
            except ValueError:
                readable = False
    typed = (clean(part.replace(_OBJECT, "")) for part in (row["subject"], text) if isinstance(part, str))
    return "\n".join(filter(None, typed)), readable


def _edited(row: sqlite3.Row) -> Iterator[Any]:
    """Yield the last version of each part that was edited: macOS 13 keeps the words there alone."""
    history = _summary(row).get("ec")
    for versions in history.values() if isinstance(history, dict) else ():
        last = versions[-1] if isinstance(versions, list) and versions else None
        if isinstance(last, dict) and isinstance(last.get("t"), bytes):
            yield last["t"]


def _summary(row: sqlite3.Row) -> dict[str, Any]:
    blob = row["message_summary_info"]
    if not isinstance(blob, bytes) or len(blob) > MAX_BLOB:
        return {}
    try:
        value = plistlib.loads(blob, fmt=plistlib.FMT_BINARY)
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError, MemoryError):
        return {}
    return value if isinstance(value, dict) else {}


def attributed_text(blob: Any) -> str:
    """Return the text of an archived ``NSAttributedString``, as ``NSArchiver`` writes it.

    The archive (https://github.com/dgelessus/python-typedstream) is a *typedstream*: a header, then values,
    each after its type. Its first object is the attributed string, whose first value is the string. What follows, the
    attributes of its runs, is not read.

    Raises:
        ValueError: anything else, or one that is cut short.
    """
    if not isinstance(blob, bytes) or len(blob) > MAX_BLOB:
        raise ValueError("no archive")
    stream = _Typedstream(blob)
    stream.enter(b"NSAttributedString")
    stream.enter(b"NSString")
    stream.expect_type(b"+")
    return stream.take(stream.number()).decode("utf-8", "ignore")


class _Typedstream:
    """Reads an archive from its beginning; each step stays inside it and moves on."""

    _INT16, _INT32, _NEW = 0x81, 0x82, 0x84
    _FIRST_REFERENCE = 0x92  # bytes below it, from 0x80, are marks

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0
        self._strings: list[bytes] = []  # those written once, which later ones refer to by number
        header = self.take(13)
        if header not in (b"\x04\x0bstreamtyped", b"\x04\x0btypedstream"):
            raise ValueError("no typedstream")
        self._order: Any = "little" if header.endswith(b"streamtyped") else "big"
        self.number()  # the system's version

    def take(self, count: int) -> bytes:
        """Return the next ``count`` bytes."""
        data = self._data[self._at : self._at + count]
        if len(data) < count:
            raise ValueError("cut short")
        self._at += count
        return data

    def number(self, head: int | None = None) -> int:
        """Return a length, a version or a reference: one byte, or a mark and two or four."""
        mark = self.take(1)[0] if head is None else head
        if mark == self._INT16:
            return int.from_bytes(self.take(2), self._order)
        if mark == self._INT32:
            return int.from_bytes(self.take(4), self._order)
        if 0x80 <= mark < self._FIRST_REFERENCE:
            raise ValueError("no number")
        return mark

    def string(self) -> bytes:
        """Return a string that may have been written before."""
        mark = self.take(1)[0]
        if mark == self._NEW:
            self._strings.append(self.take(self.number()))
            return self._strings[-1]
        place = self.number(mark) - self._FIRST_REFERENCE
        if not 0 <= place < len(self._strings):
            raise ValueError("no such string")
        return self._strings[place]

    def expect_type(self, kind: bytes) -> None:
        """Read the type of what follows."""
        if self.string() != kind:
            raise ValueError("another type")

    def enter(self, kind: bytes) -> None:
        """Read the beginning of an object: its class and those above it, one of which is ``kind``."""
        self.expect_type(b"@")
        if self.take(1)[0] != self._NEW:
            raise ValueError("no object")
        names = set()
        while (mark := self.take(1)[0]) == self._NEW:
            names.add(self.string())
            self.number()  # the class's version
        if mark in (self._INT16, self._INT32):  # a class written before, far back
            self.number(mark)
        if kind not in names:
            raise ValueError("another class")
