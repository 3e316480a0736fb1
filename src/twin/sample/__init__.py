"""An invented person, Wren Halloran: the app's brain JSON, WhatsApp chats, journals, and settings to go with them."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from twin.files import atomic_write

NAME = "wren"
_FILES = ("brain", "twin.toml")


def lay(target: Path) -> None:
    """Lay the sample project into the folder ``target``, where ``twin run`` does the rest; what is there stays."""
    for name in _FILES:
        _copy(resources.files(__name__) / name, target / name)


def _copy(source: Traversable, target: Path) -> None:
    if source.is_dir():
        for child in source.iterdir():
            _copy(child, target / child.name)
    elif not target.exists():
        with atomic_write(target) as handle:
            handle.write(source.read_bytes())
