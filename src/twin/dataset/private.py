"""What is private in a brain's memories, journals and profile: out, before anything is made of them.

The system prompt, its rows and the Modelfile are made of what is left here; chats go through the same rules in
``shard``, and the placeholders of both count on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from twin.dataset.clean import tidy
from twin.dataset.dedup import jaccard, shingles
from twin.dataset.redact import Redactor
from twin.dataset.secrets import kind_of_secret
from twin.dropped import Dropped
from twin.records import Brain, JournalEntry, Memory, Personality
from twin.settings import ExportSettings

_LONGEST = 100_000  # characters of a journal entry or memory
_SAID_ELSEWHERE = 0.6  # a fact this similar to a reserved memory would tell it


class Private:
    """Cleans a brain, once.

    Args:
        person: whose brain it is.
        settings: whether to redact, and how much to reserve.
        names: people to be called by a pseudonym.
    """

    def __init__(self, person: str, settings: ExportSettings, names: Sequence[str] = ()) -> None:
        self.names = tuple(name for name in names if name != person)
        self.redactor = Redactor(settings.regions, self.names, settings.redact)
        self.dropped = Dropped()
        self.reserved: tuple[Memory, ...] = ()
        self._settings = settings

    def clean(self, brain: Brain, watch: str | None = None) -> Brain:
        """Return the brain without secrets, private values and reserved memories (those are in ``reserved``)."""
        self.dropped = Dropped(watch)
        memories = [replace(one, text=text) for one in brain.memories if (text := self._text(one.text, one.id))]
        reserved = set(self._reserve(memories))
        self.reserved = tuple(one for one in memories if one.id in reserved)
        held = [shingles(one.text) for one in self.reserved]
        kept = []
        for one in memories:
            if one.id in reserved or self._tells(one.text, held):
                self.dropped.add("reserved for evaluation", one.text, one.id)
            else:
                kept.append(one)
        journals = [
            JournalEntry(one.id, text, self._text(one.title, one.id), one.at)
            for one in brain.journals
            if (text := self._text(one.text, one.id))
        ]
        return replace(brain, memories=tuple(kept), journals=tuple(journals), personality=self._profile(brain, held))

    def _profile(self, brain: Brain, held: Sequence[frozenset[str]]) -> Personality:
        who = brain.personality
        facts = [text for fact in who.facts if (text := self._text(fact, "profile"))]
        told = [fact for fact in facts if self._tells(fact, held)]
        for fact in told:
            self.dropped.add("reserved for evaluation", fact, "profile")
        pairs = []
        for context, response in who.response_examples:
            both = self._text(context, "profile"), self._text(response, "profile")
            if all(both) or not (tidy(context) and tidy(response)):
                pairs.append(both)
        return replace(
            who,
            common_phrases=tuple(text for one in who.common_phrases if (text := self._text(one, "profile"))),
            typing_quirks=tuple(text for one in who.typing_quirks if (text := self._text(one, "profile"))),
            tone=tuple(text for one in who.tone if (text := self._text(one, "profile"))),
            facts=tuple(fact for fact in facts if fact not in told),
            response_examples=tuple(pairs),
        )

    def _text(self, text: str, where: str) -> str:
        """Return a text without private values; of one that gives a secret away nothing."""
        own = tidy(text)
        if len(own) > _LONGEST:
            self.dropped.add("over-long", own[:200], where)
            return ""
        if secret := kind_of_secret(own):
            self.dropped.add(f"secret ({secret})", "…", where)
            return ""
        return self._redacted(own)

    def _redacted(self, text: str) -> str:
        return self.redactor.redact(text) if text else text

    def _reserve(self, memories: Sequence[Memory]) -> list[str]:
        """Return the ids of the memories that are kept for evaluation: a stable choice of the seed's."""
        count = round(len(memories) * self._settings.reserve)
        seed = self._settings.seed

        def number(one: Memory) -> bytes:
            return hashlib.sha256(f"{seed}\0reserve\0{one.text}".encode()).digest()

        return [one.id for one in sorted(memories, key=number)[:count]]

    def _tells(self, text: str, held: Sequence[frozenset[str]]) -> bool:
        own = shingles(text)
        return any(jaccard(own, other) >= _SAID_ELSEWHERE for other in held)
