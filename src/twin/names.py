"""What two spellings of a name share, and the digests that stand for names where the names themselves should not."""

from __future__ import annotations

import hashlib
import re

_DIGEST = re.compile(r"[0-9a-f]{16}")
_NUMBER = re.compile(r"\+?[\d\s().\-/]{7,}")


def key(name: str) -> str:
    """Return what two spellings of one name share: case and spaces do not count, in a phone number its digits alone."""
    flat = " ".join(name.replace("\u00a0", " ").split()).casefold()
    if _NUMBER.fullmatch(flat):
        return "".join(digit for digit in flat if digit.isdigit()).lstrip("0") or flat
    return flat


def name_digest(name: str) -> str:
    """Return what stands for a name where the name itself should not, in hexadecimal."""
    return hashlib.sha256(b"twin\0" + " ".join(name.split()).casefold().encode("utf-8", "ignore")).hexdigest()[:16]


def person_digest(name: str) -> str:
    """Return one digest for all spellings of a person's name."""
    return name_digest(key(name))


def is_digest(name: str) -> bool:
    """Say whether a name is a digest of one."""
    return bool(_DIGEST.fullmatch(name))


def source_digest(name: str) -> str:
    """Return what stands for a document, folder or zip; unlike people's, their names are the same to the letter."""
    return hashlib.sha256(b"twin\0source\0" + name.encode("utf-8", "ignore")).hexdigest()[:16]


def source_digests(name: str) -> list[str]:
    """Return the digests of a document's name and of the folders and the zip above it, the innermost first."""
    above = [name[:place] for place, letter in enumerate(name) if letter == "/"]
    return [source_digest(one) for one in (name, *reversed(above))]
