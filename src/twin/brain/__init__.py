"""Files and folders of a person's own words → one Brain. Each layout is a file in ``importers/``, by discovery."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from twin.brain.importers import IMPORTERS, Item, pick
from twin.errors import UsageError, file_errors, nearest
from twin.records import Brain, Conversation, JournalEntry, Memory, Personality

_HEAD_BYTES = 64 * 1024
_MAY_BE_CHATS = {".txt", ".md", ".markdown", ".json", ".jsonl", ".csv", ".html", ".mbox", ".db"}


def _files(sources: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Yield each file below the sources with the name it has in row ids, in a stable order."""
    used: set[str] = set()
    for source in sources:
        if not source.exists():
            raise UsageError(
                f"There is nothing at '{source}'.",
                "Put your exports into a folder named brain, or name another: twin export FOLDER",
            )
        if source.is_dir():
            with file_errors(source, "read"):
                found = sorted(path for path in source.rglob("*") if path.is_file())
            for path in found:
                inner = path.relative_to(source)
                if not any(part.startswith(".") for part in inner.parts):
                    yield path, _unused(inner.as_posix(), source.name, used)
        else:
            yield source, _unused(source.name, source.parent.name, used)


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


def _items(sources: Sequence[Path], skipped: Counter[str]) -> Iterator[Item]:
    read_any = False
    for path, name in _files(sources):
        with file_errors(path, "read"), path.open("rb") as handle:
            head = handle.read(_HEAD_BYTES)
        if not head.strip():
            raise UsageError(f"'{path}' is empty.", "Export it again, or take it out of the folder.")
        importer = pick(path, head)
        if importer is None:
            skipped[_unknown(path, name)] += 1
            continue
        read_any = True
        with file_errors(path, "read"):
            yield from importer.read(path, name, skipped)
    if not read_any:
        known = "; ".join(importer.LAYOUT for importer in IMPORTERS)
        where = ", ".join(f"'{source}'" for source in sources)
        raise UsageError(f"Nothing in {where} is a layout that twin reads.", f"It reads: {known}.")


def _unknown(path: Path, name: str) -> str:
    """Return the reason that counts an unread file: by name where it may well be a chat, else by its suffix."""
    if path.suffix.lower() == ".zip":
        return f"unknown file: {name} (no chat that twin knows; unzip it)"
    if path.suffix.lower() in _MAY_BE_CHATS:
        return f"unknown file: {name}"
    return f"unknown file ({path.suffix or 'no suffix'})"


def _speakers(conversations: Sequence[Conversation]) -> Counter[str]:
    return Counter(message.speaker for conversation in conversations for message in conversation.messages)


def _who(person: str | None, profile: str, conversations: Sequence[Conversation], writes: bool) -> str:
    speakers = _speakers(conversations)
    listing = ", ".join(f"{name} ({count})" for name, count in speakers.most_common(12)) or "nobody"
    if person is not None:
        if person not in speakers and person != profile and not writes:
            raise UsageError(
                f"'{person}' never speaks in this brain.",
                f"{nearest(person, speakers or ['nobody'])} Speakers: {listing}.",
            )
        return person
    if profile:
        return profile
    common = set(speakers)
    for conversation in conversations:
        common &= {message.speaker for message in conversation.messages}
    if len(common) == 1:
        return common.pop()
    raise UsageError("It is not clear whose twin this should be.", f"Say so with --person NAME. Speakers: {listing}.")


def load(sources: Sequence[Path], person: str | None = None) -> Brain:
    """Return all that ``sources`` hold of one person.

    Args:
        sources: files and folders, in any mix.
        person: a speaker's exact name; else the app profile's, else the one speaker whom all chats share.

    Raises:
        UsageError: missing, empty, broken or unknown files; an unclear or silent person.
    """
    skipped: Counter[str] = Counter()
    conversations: list[Conversation] = []
    memories: list[Memory] = []
    journals: list[JournalEntry] = []
    personality = Personality()
    for item in _items(sources, skipped):
        match item:
            case Conversation():
                conversations.append(item)
            case Memory():
                memories.append(item)
            case JournalEntry():
                journals.append(item)
            case Personality():
                personality = item
    who = _who(person, personality.name, conversations, bool(journals))
    spoken = _speakers(conversations)[who] + len(journals) + len(personality.response_examples)
    if not spoken:
        listing = ", ".join(f"{name} ({count})" for name, count in _speakers(conversations).most_common(12)) or "nobody"
        raise UsageError(
            f"'{who}' never speaks in this brain.", f"Say who is meant with --person NAME. Speakers: {listing}."
        )
    return Brain(who, tuple(conversations), tuple(memories), tuple(journals), personality, dict(skipped))
