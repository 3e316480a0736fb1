"""Who is who: one name for a person's aliases, handles and phone numbers. Names match whole, never by substring.

``[people]`` of ``twin.toml`` says it: ``"Chirag" = ["chirag_p", "+91 98765 43210"]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from twin.errors import UsageError
from twin.names import key


class Identity:
    """The one name of each speaker.

    Args:
        people: a name and its aliases, handles and phone numbers.

    Raises:
        UsageError: an alias that two people claim.
    """

    def __init__(self, people: Mapping[str, Sequence[str]] | None = None) -> None:
        self._names: dict[str, str] = {}
        for name, aliases in (people or {}).items():
            for alias in (name, *aliases):
                taken = self._names.setdefault(key(alias), name)
                if taken != name:
                    raise UsageError(
                        f"[people] gives '{alias}' to both '{taken}' and '{name}'.", "Take it out of one in twin.toml."
                    )
        self._resolved: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self._names)

    def resolve(self, name: str) -> str:
        """Return the one name of ``name``, itself where nothing is said of it."""
        found = self._resolved.get(name)
        if found is None:
            found = self._resolved[name] = self._names.get(key(name), name)
        return found
