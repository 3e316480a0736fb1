"""What the person wants gone: tombstones hide people, sources and times; the sources themselves stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from twin.brain.identity import Identity
from twin.dropped import Dropped
from twin.errors import UsageError
from twin.files import read_json, write_json
from twin.names import key
from twin.records import Conversation, JournalEntry, Memory

REASON = "forgotten"


@dataclass(frozen=True, slots=True)
class Tombstone:
    """One thing to hide; of several fields all must hold.

    Args:
        person: a speaker's messages, in every chat.
        source: a file or folder of the brain, as row ids call it.
        before: whatever is dated earlier.
        paths: the files that the source was when it was hidden (``Document.place``): what row ids call a file depends
            on the folder that is named.
    """

    person: str = ""
    source: str = ""
    before: datetime | None = None
    paths: frozenset[str] = field(default=frozenset(), compare=False)

    def __str__(self) -> str:
        """Say it as a person reads it."""
        parts = [self.person, f"source {self.source}" if self.source else ""]
        return ", ".join(part for part in [*parts, f"before {self.before:%Y-%m-%d}" if self.before else ""] if part)

    def hits_source(self, name: str, place: str = "") -> bool:
        """Say whether a document is meant: by its name, that of a folder or zip above it, or its place."""
        named = not self.source or name == self.source or name.startswith(self.source.rstrip("/") + "/")
        return named or place in self.paths

    def hits_time(self, at: datetime | None) -> bool:
        """Say whether a time is early enough; what has no date is not."""
        return self.before is None or (at is not None and at < self.before)


@dataclass(frozen=True, slots=True)
class Forgotten:
    """All tombstones of a project."""

    stones: tuple[Tombstone, ...] = ()

    def with_stone(self, stone: Tombstone) -> Forgotten:
        """Return the list with one more, or with one in place of the same one (of other paths)."""
        if stone not in self.stones:
            return Forgotten((*self.stones, stone))
        return Forgotten(tuple(stone if one == stone else one for one in self.stones))

    def hides_document(self, name: str, place: str = "") -> bool:
        """Say whether all of a document is hidden."""
        whole = (one for one in self.stones if one.source and not one.person and not one.before)
        return any(one.hits_source(name, place) for one in whole)

    def hides(self, item: Memory | JournalEntry, source: str, place: str = "") -> bool:
        """Say whether a memory or journal entry is hidden."""
        return any(not one.person and one.hits_source(source, place) and one.hits_time(item.at) for one in self.stones)

    def visible(
        self, conversation: Conversation, source: str, identity: Identity, dropped: Dropped, place: str = ""
    ) -> Iterator[Conversation]:
        """Yield the runs of messages that are not hidden, each with the number of its first message."""
        stones = [one for one in self.stones if one.hits_source(source, place)]
        if not stones:
            yield conversation
            return
        names = [(one, key(identity.resolve(one.person)) if one.person else "") for one in stones]
        start, messages = 0, conversation.messages
        for number, message in enumerate(messages):
            who = key(message.speaker)
            if any(one.hits_time(message.at) and (not one.person or who == name) for one, name in names):
                dropped.add(REASON, message.text, conversation.id)
                if number > start:
                    yield Conversation(conversation.id, messages[start:number], conversation.start + start)
                start = number + 1
        if start < len(messages):
            yield Conversation(conversation.id, messages[start:], conversation.start + start)


NOTHING = Forgotten()


def read(file: Path) -> Forgotten:
    """Return a project's tombstones; none where there is no file.

    Raises:
        UsageError: a file that is no list of tombstones.
    """
    if not file.exists():
        return NOTHING
    stones = []
    rows = read_json(file).get("forgotten")
    for row in rows if isinstance(rows, list) else [None]:
        try:
            if not isinstance(row, dict) or set(row) - {"person", "source", "before", "paths"}:
                raise TypeError
            paths = row.get("paths", [])
            if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
                raise TypeError
            if not any(row.get(name) for name in (("source",) if paths else ("person", "source", "before"))):
                raise TypeError
            before = datetime.fromisoformat(row["before"]).replace(tzinfo=None) if row.get("before") else None
            stones.append(
                Tombstone(str(row.get("person") or ""), str(row.get("source") or ""), before, frozenset(paths))
            )
        except (TypeError, ValueError, AttributeError, KeyError):
            raise UsageError(
                f"'{file}' is no list of what is forgotten.", "Mend it: without it, what you hid would be seen again."
            ) from None
    return Forgotten(tuple(stones))


def write(forgotten: Forgotten, file: Path) -> None:
    """Write a project's tombstones."""
    rows = [
        {"person": one.person, "source": one.source, "before": one.before.isoformat() if one.before else None}
        | ({"paths": sorted(one.paths)} if one.paths else {})
        for one in forgotten.stones
    ]
    write_json(file, {"forgotten": rows})
