"""Which rows an adapter learned, as digests: an adapter may be given away, and rows name chats and hold words.

Not obvious: a row is known in two ways. By what is said in it, for ids of other tools' rows are line numbers; and by
the place of its reply in its chat, for the same reply stands under another history where settings changed or a
message before it was forgotten.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import orjson

from twin.errors import UsageError
from twin.files import read_json, write_json
from twin.records import Example
from twin.runs import RunPaths

_CHAT = re.compile(r"(.*):\d+-(\d+)", re.DOTALL)
_DIGEST = re.compile(r"[0-9a-f]{16}")


def _digest(value: Any) -> str:
    return hashlib.sha256(b"twin\0row\0" + orjson.dumps(value)).hexdigest()[:16]


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and bool(_DIGEST.fullmatch(value))


def said_digest(row: Example) -> str:
    """Return what stands for the words of a row, under whatever system prompt."""
    return _digest([list(turn) for turn in row.said])


def place_digest(row: Example) -> str | None:
    """Return what stands for the place of a row's reply in its source; None for rows of other tools."""
    if row.every_reply:
        return None
    chat = _CHAT.fullmatch(row.id)
    return _digest([chat[1], chat[2]] if chat else row.id)


@dataclass(frozen=True, slots=True)
class Learned:
    """The rows that an adapter learned, those of the adapters it was trained on from included."""

    said: frozenset[str] = frozenset()
    places: frozenset[str] = frozenset()

    @classmethod
    def of(cls, rows: Iterable[Example]) -> Learned:
        """Return what stands for ``rows``."""
        kept = list(rows)
        return cls(frozenset(map(said_digest, kept)), frozenset(filter(None, map(place_digest, kept))))

    def __or__(self, other: Learned) -> Learned:
        """Return what either learned."""
        return Learned(self.said | other.said, self.places | other.places)

    def has(self, row: Example) -> bool:
        """Say whether the row was learned as it stands."""
        return said_digest(row) in self.said

    def spoils(self, row: Example) -> bool:
        """Say whether the row can't be held out: it was learned, or its reply was, under another history."""
        return self.has(row) or place_digest(row) in self.places


def write(learned: Learned, paths: RunPaths) -> None:
    """Write down what a run learned; sorted, so that the order tells nothing."""
    write_json(paths.learned, {"said": sorted(learned.said), "places": sorted(learned.places)})


def read(paths: RunPaths) -> Learned:
    """Return what a run learned.

    Raises:
        UsageError: nothing says so: an older run, or a file that was changed.
    """
    if not paths.learned.is_file():
        raise UsageError(
            f"There is no {paths.learned.name} in '{paths.root}', so nothing says which rows it learned.",
            "Train from nothing: leave --from-adapter out.",
        )
    found = read_json(paths.learned)
    lists = [found.get("said"), found.get("places")]
    if not all(isinstance(one, list) and all(map(_is_digest, one)) for one in lists):
        raise UsageError(
            f"'{paths.learned}' is no list of learned rows.", "Copy it again from where the run was trained."
        )
    said, places = lists
    return Learned(frozenset(said or ()), frozenset(places or ()))
