"""Files and folders of a person's own words → one Brain. Each layout is a file in ``importers/``, by discovery.

Conversations stay in their files and are read when they are needed, piece by piece; what is small (memories, journals,
the profile) is read at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from twin.brain.document import Document
from twin.brain.forgotten import NOTHING, REASON, Forgotten
from twin.brain.identity import Identity
from twin.brain.importers import IMPORTERS, Importer
from twin.brain.sources import find
from twin.brain.speakers import Speakers, whose
from twin.dropped import Dropped
from twin.errors import UsageError, file_errors
from twin.records import ME, Brain, Conversation, JournalEntry, Memory, Message, Personality


@dataclass(frozen=True)
class FileChats:
    """The conversations of one document, read when they are needed; it travels to other processes.

    Args:
        document: the file.
        importer: the name of its importer's module.
        person: who speaks where the layout says "me".
        people: the aliases of each speaker.
        forgotten: what is hidden.
    """

    document: Document
    importer: str
    person: str = ME
    people: Mapping[str, Sequence[str]] = field(default_factory=dict)
    forgotten: Forgotten = NOTHING

    @property
    def name(self) -> str:
        """What row ids call the document."""
        return self.document.name

    @property
    def size(self) -> int:
        """The document's bytes, unpacked."""
        return self.document.size

    def read(self, dropped: Dropped) -> Iterator[Conversation]:
        """Yield the conversations with each speaker's one name; a broken file ends with a problem in ``dropped``."""
        identity = Identity(self.people)
        name_of = {ME: self.person}
        for item in _read(_importer(self.importer), self.document, dropped):
            if not isinstance(item, Conversation):
                continue
            for speaker in {message.speaker for message in item.messages} - name_of.keys():
                name_of[speaker] = identity.resolve(speaker)
            if any(called != speaker for speaker, called in name_of.items()):
                renamed = tuple(
                    [
                        one if name_of[one.speaker] is one.speaker else Message(name_of[one.speaker], one.text, one.at)
                        for one in item.messages
                    ]
                )
                item = Conversation(item.id, renamed, item.start)  # noqa: PLW2901 - the same conversation
            yield from self.forgotten.visible(item, self.document.name, identity, dropped, self.document.place)


def _importer(name: str) -> Importer:
    return next(importer for importer in IMPORTERS if importer.__name__ == name)  # type: ignore[attr-defined]


def _read(importer: Importer, document: Document, dropped: Dropped) -> Iterator[object]:
    try:
        with file_errors(document.file, "read"):
            yield from importer.read(document, dropped)
    except UsageError as error:
        dropped.problem(error.message, error.hint)


def load(
    sources: Sequence[Path],
    person: str | None = None,
    people: Mapping[str, Sequence[str]] | None = None,
    forgotten: Forgotten = NOTHING,
    columns: Mapping[str, str] | None = None,
    watch: str | None = None,
) -> Brain:
    """Return all that ``sources`` hold of one person; their conversations are read when they are needed.

    Args:
        sources: files and folders, in any mix.
        person: a speaker's exact name or alias; else the app profile's, else the one speaker whom all chats share.
        people: names and their aliases, handles and phone numbers.
        forgotten: what is hidden.
        columns: our names of a table's columns, and the table's own.
        watch: the reason whose texts are listed in the brain's ``dropped``.

    Raises:
        UsageError: missing or unknown files or columns, nothing readable, an unclear or silent person.
    """
    identity = Identity(people)
    dropped = Dropped(watch)
    documents = []
    places = {}
    for document, importer in find(sources, dropped, columns):
        places[document.name] = document.place
        if forgotten.hides_document(document.name, document.place):
            dropped.add(REASON, where=document.name)
        else:
            documents.append((document, importer))
    if not documents:
        raise _nothing(sources, dropped)
    memories, journals, personality = _told(documents, forgotten, dropped)
    chats = [
        FileChats(document, importer.__name__, people=dict(people or {}), forgotten=forgotten)  # type: ignore[attr-defined]
        for document, importer in documents
        if Conversation in importer.HOLDS
    ]
    named = identity.resolve(person) if person is not None else None
    writes = bool(journals) or bool(personality.response_examples)
    who = whose(named, identity.resolve(personality.name), Speakers(chats), writes, dropped)
    return Brain(
        who, tuple(replace(one, person=who) for one in chats), memories, journals, personality, dropped, places
    )


def _told(
    documents: Sequence[tuple[Document, Importer]], forgotten: Forgotten, dropped: Dropped
) -> tuple[tuple[Memory, ...], tuple[JournalEntry, ...], Personality]:
    """Return what is no conversation: it is little, and is read at once."""
    memories: list[Memory] = []
    journals: list[JournalEntry] = []
    personality = Personality()
    for document, importer in documents:
        if (Conversation,) == importer.HOLDS:
            continue
        # What also holds conversations is read again for them, and counted then.
        counts = Dropped() if Conversation in importer.HOLDS else dropped
        for item in _read(importer, document, counts):
            if isinstance(item, Personality):
                personality = replace(item, source=document.name)
            elif isinstance(item, Memory | JournalEntry) and forgotten.hides(item, document.name, document.place):
                dropped.add(REASON, item.text, document.name)
            elif isinstance(item, Memory):
                memories.append(item)
            elif isinstance(item, JournalEntry):
                journals.append(item)
        for message, hint in counts.problems.items():
            dropped.problem(message, hint)
    return tuple(memories), tuple(journals), personality


def _nothing(sources: Sequence[Path], dropped: Dropped) -> UsageError:
    if dropped.problems:
        return UsageError(*next(iter(dropped.problems.items())))
    known = "; ".join(importer.LAYOUT for importer in IMPORTERS)
    where = ", ".join(f"'{source}'" for source in sources)
    return UsageError(f"Nothing in {where} is a layout that twin reads.", f"It reads: {known}.")
