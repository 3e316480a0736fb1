"""Files and folders of a person's own words → one Brain. Each layout is a file in ``importers/``, by discovery.

Conversations stay in their files and are read when they are needed, piece by piece; what is small (memories, journals,
the profile) is read at once.
"""

from __future__ import annotations

import errno
import os
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from twin.brain.document import Document, members, repeated
from twin.brain.forgotten import NOTHING, REASON, Forgotten
from twin.brain.identity import Identity
from twin.brain.importers import IMPORTERS, Importer, pick
from twin.brain.importers.table import NAMES
from twin.dropped import Dropped
from twin.errors import UsageError, file_errors, nearest
from twin.records import ME, Brain, Conversation, JournalEntry, Memory, Message, Personality

_TABLES = {".csv", ".tsv", ".jsonl", ".ndjson"}
_MAY_BE_CHATS = {".txt", ".md", ".markdown", ".json", ".html", ".mbox", ".db", ".zip"} | _TABLES
_LISTED = 12


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
            yield from self.forgotten.visible(item, self.document.name, identity, dropped)


def _importer(name: str) -> Importer:
    return next(importer for importer in IMPORTERS if importer.__name__ == name)  # type: ignore[attr-defined]


def _read(importer: Importer, document: Document, dropped: Dropped) -> Iterator[object]:
    try:
        with file_errors(document.file, "read"):
            yield from importer.read(document, dropped)
    except UsageError as error:
        dropped.problem(error.message, error.hint)


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
    for document, importer in find(sources, dropped, columns):
        if forgotten.hides_document(document.name):
            dropped.add(REASON, where=document.name)
        else:
            documents.append((document, importer))
    if not documents:
        raise _nothing(sources, dropped)
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
                personality = item
            elif isinstance(item, Memory | JournalEntry) and forgotten.hides(item, document.name):
                dropped.add(REASON, item.text, document.name)
            elif isinstance(item, Memory):
                memories.append(item)
            elif isinstance(item, JournalEntry):
                journals.append(item)
        for message, hint in counts.problems.items():
            dropped.problem(message, hint)
    chats = [
        FileChats(document, importer.__name__, people=dict(people or {}), forgotten=forgotten)  # type: ignore[attr-defined]
        for document, importer in documents
        if Conversation in importer.HOLDS
    ]
    speakers = _Speakers(chats)
    named = identity.resolve(person) if person is not None else None
    writes = bool(journals) or bool(personality.response_examples)
    who = _who(named, identity.resolve(personality.name), speakers, writes, dropped)
    return Brain(
        who,
        tuple(replace(one, person=who) for one in chats),
        tuple(memories),
        tuple(journals),
        personality,
        dropped,
    )


def _nothing(sources: Sequence[Path], dropped: Dropped) -> UsageError:
    if dropped.problems:
        return UsageError(*next(iter(dropped.problems.items())))
    known = "; ".join(importer.LAYOUT for importer in IMPORTERS)
    where = ", ".join(f"'{source}'" for source in sources)
    return UsageError(f"Nothing in {where} is a layout that twin reads.", f"It reads: {known}.")


class _Speakers:
    """Who speaks in chats, read no further than a question needs."""

    def __init__(self, chats: Sequence[FileChats]) -> None:
        self._chats = chats
        self.dropped = Dropped()
        self._counted: tuple[Counter[str], set[str] | None] | None = None

    def has(self, person: str) -> bool:
        """Say whether somebody of that name, or a nameless "me", speaks."""
        return any(
            message.speaker in (person, ME)
            for one in self._chats
            for conversation in one.read(self.dropped)
            for message in conversation.messages
        )

    def counted(self) -> tuple[Counter[str], set[str] | None]:
        """Return the messages of each speaker, and who speaks in every conversation that names both sides."""
        if self._counted is None:
            counts: Counter[str] = Counter()
            in_chat: dict[str, set[str]] = {}
            for one in self._chats:
                for conversation in one.read(self.dropped):
                    own = Counter(message.speaker for message in conversation.messages)
                    counts.update(own)
                    in_chat.setdefault(conversation.id, set()).update(own)
            # Where one side alone speaks, nothing tells whose export it is.
            named = [names for names in in_chat.values() if ME not in names and len(names) > 1]
            named = named or [names for names in in_chat.values() if ME not in names]
            self._counted = counts, set.intersection(*named) if named else None
        return self._counted

    def listing(self, dropped: Dropped) -> str:
        """Return the speakers with their counts, and what could not be read."""
        most = self.counted()[0].most_common(_LISTED)
        named = ", ".join(f"{'me' if name == ME else name} ({count})" for name, count in most) or "nobody"
        broken = [f" Left out: {message}" for message in dropped.problems | self.dropped.problems]
        return f"Speakers: {named}.{''.join(broken[:3])}"


def _who(person: str | None, profile: str, speakers: _Speakers, writes: bool, dropped: Dropped) -> str:
    """Return whose twin this is: who was asked for, else the app profile's name, else who speaks in every chat."""
    asked = person or profile
    if asked:
        if writes or speakers.has(asked):
            return asked
        counts, _ = speakers.counted()
        _raise_if_broken(speakers, counts, dropped)
        hint = f"{nearest(asked, counts or ['nobody'])} " if person and person != profile else ""
        hint = hint or "Say who is meant with --person NAME. "
        raise UsageError(f"'{asked}' never speaks in this brain.", hint + speakers.listing(dropped))
    counts, common = speakers.counted()
    _raise_if_broken(speakers, counts, dropped)
    if common is not None and len(common) == 1:
        return common.pop()
    if common is None and ME in counts:
        raise UsageError(
            "These exports call their owner 'me', and nothing says who that is.", "Say it with --person NAME."
        )
    raise UsageError(
        "It is not clear whose twin this should be.",
        "Say so with --person NAME. " + speakers.listing(dropped),
    )


def _raise_if_broken(speakers: _Speakers, counts: Counter[str], dropped: Dropped) -> None:
    problems = dropped.problems | speakers.dropped.problems
    if not counts and problems:
        raise UsageError(*next(iter(problems.items())))
