"""What importers share: JSON read item by item, dates that may be none, text that is text, chats in pieces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import IO, Any

import orjson

from twin.brain.document import Document
from twin.errors import UsageError, first_line
from twin.records import Conversation, Message

WHOLE_BYTES = 64 << 20  # JSON up to this size is parsed at once: six times as fast, and ten times its size in memory
MAX_DEPTH = 64  # of JSON read item by item; no export needs a quarter of it
PIECE = 4096  # messages of a conversation that are held at a time
PIECE_CHARACTERS = 4 << 20
_BOM = b"\xef\xbb\xbf"
_BETWEEN_BRACKETS = ord("\\")  # [ is one less, ] one more


def starts_as_json(document: Document, head: bytes, opening: bytes = b"{") -> bool:
    """Say whether a ``.json`` begins with ``opening``; a byte order mark is no error."""
    return document.suffix == ".json" and head.removeprefix(_BOM).lstrip().startswith(opening)


def json_value(document: Document, most: int = 256 << 20) -> Any:
    """Return what a JSON document holds.

    Raises:
        UsageError: JSON that does not parse (a truncated download, say), or over ``most`` bytes.
    """
    if document.size > most:
        raise UsageError(f"{document} is {document.size:,} bytes, more than twin reads at once.", "Export less of it.")
    with document.open() as handle:
        data = handle.read(most + 1)
    try:
        return orjson.loads(data.removeprefix(_BOM))
    except orjson.JSONDecodeError as error:
        if "UTF-8" in error.msg:  # its place is the first line always
            raise document.not_text("utf-8") from None
        raise UsageError(
            f"{document} is broken JSON: {error.msg} at line {error.lineno}.", "It may be cut short: export it again."
        ) from None


def json_object(document: Document) -> dict[str, Any]:
    """Return the JSON object in a document.

    Raises:
        UsageError: JSON that does not parse, or no object.
    """
    data = json_value(document)
    if not isinstance(data, dict):
        raise UsageError(f"{document} should hold a JSON object.", "Export it again.")
    return data


def json_items(document: Document, *path: str) -> Iterator[Any]:
    """Yield the items of the list at ``path``, one at a time: a document of any size costs the memory of one item.

    Args:
        document: the file.
        path: keys that lead to the list, none for a list at the top; ``"*"`` stands for each item of a list.

    Raises:
        UsageError: broken JSON, after the items before the break.
    """
    done = 0
    if document.size <= WHOLE_BYTES:
        with document.open() as handle:
            data = handle.read(WHOLE_BYTES + 1)
        try:
            value = orjson.loads(data.removeprefix(_BOM))
        except orjson.JSONDecodeError:
            pass  # the items before the break are read below, and the break gets its sentence there
        else:
            yield from _at(value, path)
            return
    import ijson  # late: files this large are rare

    prefix = ".".join([*("item" if key == "*" else key for key in path), "item"])
    with document.open() as handle:
        if handle.read(3) != _BOM:
            handle.seek(0)
        try:
            for item in ijson.items(_Shallow(handle), prefix, use_float=True):
                done += 1
                yield item
        except (ijson.JSONError, UnicodeDecodeError, RecursionError) as error:
            reason = first_line(error)
            if "UTF8" in reason or isinstance(error, UnicodeDecodeError):
                raise document.not_text("utf-8", f"after {done} items") from None
            hint = "Export it again." if isinstance(error, RecursionError) else "It may be cut short: export it again."
            raise UsageError(f"{document} is broken JSON after {done} items: {reason}.", hint) from None


class _Shallow:
    """A file of JSON that ends with a RecursionError before a value nested too deep.

    Not obvious: ijson keeps the path of each level that it is in, so a value nested 100,000 deep takes all memory.
    """

    _BRACKETS = bytes.maketrans(b"{}", b"[]")
    _NO_MARKS = bytes(byte for byte in range(256) if byte not in b'[]{}"')
    _STEP = 64

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        self._state = (0, False, False)  # how deep the next byte stands, whether in a string, whether behind a \\
        self._is_over = False

    def read(self, size: int) -> bytes:
        """Return the next bytes."""
        data, good, before = b"", 0, self._state
        if not self._is_over:
            data = self._handle.read(size)
            if not self._goes_too_deep(data):
                return data
            self._state = before
            while good < len(data) and not self._goes_too_deep(data[good : good + self._STEP]):
                good += self._STEP
            self._is_over = good < len(data)
        if self._is_over and not good:
            raise RecursionError(f"nested more than {MAX_DEPTH} deep")
        return data[:good]

    def _goes_too_deep(self, data: bytes) -> bool:
        """Move on by ``data``; what is kept of it, brackets and quotes, is a tenth."""
        import numpy as np  # late: files this large are rare

        depth, in_string, escaped = self._state
        data = b"\\" * escaped + data
        escaped = False
        if b"\\" in data:
            data = data.replace(b"\\\\", b"")
            escaped = data.endswith(b"\\")
            data = data.replace(b'\\"', b"")
        marks = data.translate(self._BRACKETS, self._NO_MARKS).replace(b'""', b"").split(b'"')
        brackets = np.frombuffer(b"".join(marks[in_string::2]), np.uint8)
        depths = depth + np.cumsum(_BETWEEN_BRACKETS - brackets.astype(np.int64))
        self._state = (int(depths[-1]) if len(depths) else depth, in_string != (len(marks) % 2 == 0), escaped)
        return bool(len(depths)) and int(depths.max()) > MAX_DEPTH


def _at(value: Any, path: tuple[str, ...]) -> Iterator[Any]:
    if not path:
        yield from value if isinstance(value, list) else ()
    elif path[0] == "*":
        for item in value if isinstance(value, list) else ():
            yield from _at(item, path[1:])
    elif isinstance(value, dict):
        yield from _at(value.get(path[0]), path[1:])


def iso_time(value: Any) -> datetime | None:
    """Return a date in ISO 8601 as wall-clock time, or None for anything else."""
    try:
        return datetime.fromisoformat(value).replace(tzinfo=None) if isinstance(value, str) else None
    except ValueError:
        return None


@lru_cache(maxsize=1 << 12)
def day_of(parts: tuple[str, str, str], order: str) -> date | None:
    """Return the day that three numbers name in an order (``"dmy"``, say), or None where there is no such day.

    A year of one or two figures is one of this century.
    """
    units = {unit: int(part) for unit, part in zip(order, parts, strict=True)}
    try:
        return date(units["y"] + 2000 if units["y"] < 100 else units["y"], units["m"], units["d"])
    except ValueError:
        return None


def epoch_time(value: Any, per_second: float = 1) -> datetime | None:
    """Return the UTC time of a number of ticks since 1970, ``per_second`` of them a second; None for anything else."""
    try:
        seconds = float(value) / per_second if isinstance(value, int | float | str) else None
        return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None) if seconds is not None else None
    except (ValueError, OverflowError, OSError):
        return None


def clean(value: Any) -> str:
    """Return a string without edge spaces, NULs and halves of characters (lone surrogates); of anything else ``""``."""
    if not isinstance(value, str):
        return ""
    return value.encode("utf-8", "ignore").decode("utf-8").replace("\0", "").strip()


def pieces(conversation_id: str, messages: Iterable[Message]) -> Iterator[Conversation]:
    """Yield a conversation in pieces of at most 4,096 messages, fewer long ones, each with the number of its first.

    Where ``messages`` ends with an error, what came before it is yielded first.
    """
    start, characters, held = 0, 0, list[Message]()
    try:
        for message in messages:
            held.append(message)
            characters += len(message.text)
            if len(held) == PIECE or characters > PIECE_CHARACTERS:
                yield Conversation(conversation_id, tuple(held), start)
                start, characters, held = start + len(held), 0, []
    except UsageError:
        if held:
            yield Conversation(conversation_id, tuple(held), start)
        raise
    if held:
        yield Conversation(conversation_id, tuple(held), start)
