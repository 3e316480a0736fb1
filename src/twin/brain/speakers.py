"""Whose brain it is: who was asked for, else the app profile's name, else the one who speaks in every chat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from twin.dropped import Dropped
from twin.errors import UsageError, nearest
from twin.records import ME, Chats

_LISTED = 12


class Speakers:
    """Who speaks in chats, read no further than a question needs."""

    def __init__(self, chats: Sequence[Chats]) -> None:
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


def whose(person: str | None, profile: str, speakers: Speakers, writes: bool, dropped: Dropped) -> str:
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


def _raise_if_broken(speakers: Speakers, counts: Counter[str], dropped: Dropped) -> None:
    problems = dropped.problems | speakers.dropped.problems
    if not counts and problems:
        raise UsageError(*next(iter(problems.items())))
