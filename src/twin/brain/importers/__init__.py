"""One file a layout. To add one, add a file here with ``LAYOUT``, ``HOLDS``, ``sniff`` and ``read``; nothing else."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module
from typing import Protocol, cast

from twin.brain.document import Document
from twin.dropped import Dropped
from twin.records import Conversation, JournalEntry, Memory, Personality

Item = Conversation | Memory | JournalEntry | Personality


class Importer(Protocol):
    """What each file here offers."""

    LAYOUT: str
    HOLDS: tuple[type, ...]

    def sniff(self, document: Document, head: bytes) -> bool:
        """Say whether a document, which begins with ``head`` (64 KiB at most), has this layout."""

    def read(self, document: Document, dropped: Dropped) -> Iterator[Item]:
        """Yield what it holds, item by item; ``document.name`` leads row ids back to it.

        Count what is left out in ``dropped``, with its text. A UsageError after some items keeps those items.
        """


def _discover() -> tuple[Importer, ...]:
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return tuple(cast(Importer, import_module(f"{__name__}.{name}")) for name in names)


IMPORTERS = _discover()


def pick(document: Document, head: bytes) -> Importer | None:
    """Return the importer that knows a document's layout, or None."""
    return next((importer for importer in IMPORTERS if importer.sniff(document, head)), None)
