"""One file a layout. To add one, add a file here with ``LAYOUT``, ``sniff`` and ``read``; nothing else changes."""

from __future__ import annotations

import pkgutil
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from twin.records import Conversation, JournalEntry, Memory, Personality

Item = Conversation | Memory | JournalEntry | Personality


class Importer(Protocol):
    """What each file here offers."""

    LAYOUT: str

    def sniff(self, path: Path, head: bytes) -> bool:
        """Say whether ``path``, which begins with ``head`` (64 KiB at most), has this layout."""

    def read(self, path: Path, name: str, skipped: Counter[str]) -> Iterator[Item]:
        """Yield what ``path`` holds; ``name`` leads row ids back to it; count what is left out in ``skipped``."""


def _discover() -> tuple[Importer, ...]:
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return tuple(cast(Importer, import_module(f"{__name__}.{name}")) for name in names)


IMPORTERS = _discover()


def pick(path: Path, head: bytes) -> Importer | None:
    """Return the importer that knows ``path``'s layout, or None."""
    return next((importer for importer in IMPORTERS if importer.sniff(path, head)), None)
