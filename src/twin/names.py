"""What two spellings of a name share, and the digests that stand for names where the names themselves should not."""

from __future__ import annotations

import re

from twin.files import name_digest

_NUMBER = re.compile(r"\+?[\d\s().\-/]{7,}")


def key(name: str) -> str:
    """Return what two spellings of one name share: case and spaces do not count, in a phone number its digits alone."""
    flat = " ".join(name.replace("\u00a0", " ").split()).casefold()
    if _NUMBER.fullmatch(flat):
        return "".join(digit for digit in flat if digit.isdigit()).lstrip("0") or flat
    return flat


def person_digest(name: str) -> str:
    """Return one digest for all spellings of a person's name."""
    return name_digest(key(name))
