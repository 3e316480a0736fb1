"""What is private in a brain's memories, journals and profile: out, before anything is made of them.

The system prompt, its rows and the Modelfile are made of what is left here; chats go through the same rules in
``shard``, and the placeholders of both count on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from twin.dataset.clean import tidy
from twin.dataset.dedup import jaccard, shingles
from twin.dataset.redact import Redactor, find
from twin.dataset.secrets import kind_of_secret
from twin.dropped import Dropped
from twin.errors import UsageError
from twin.records import Brain, JournalEntry, Memory, Personality
from twin.settings import ExportSettings

_LONGEST = 100_000  # characters of a journal entry or memory
_SAID_ELSEWHERE = 0.6  # a fact this similar to a reserved memory would tell it
_SAID_INSIDE = 0.8  # so would a text that holds this share of its 5-grams


class Private:
    """Cleans a brain, once.

    Args:
        person: whose brain it is.
        settings: whether to redact, and how much to reserve.
        names: what people are called who get a pseudonym, and who each is.
    """

    def __init__(self, person: str, settings: ExportSettings, names: Mapping[str, str] | None = None) -> None:
        self.names = {name: who for name, who in (names or {}).items() if name != person}
        self.redactor = Redactor(settings.regions, self.names, settings.redact)
        self.dropped = Dropped()
        self.reserved: tuple[Memory, ...] = ()
        self._settings = settings

    def clean(self, brain: Brain, watch: str | None = None) -> Brain:
        """Return the brain without secrets, private values and reserved memories (those are in ``reserved``)."""
        self.dropped = Dropped(watch)
        called = brain.personality.name or brain.person
        if self._settings.redact and find(called, self._settings.regions):
            raise UsageError(
                f"'{called}' is an address or a number, and would stand in every prompt and row.",
                f'Give the person a name in twin.toml, under [people]: "Your Name" = ["{called}"]',
            )
        memories = [
            replace(one, id=self._redacted(one.id), text=text, category=self._text(one.category, one.id))
            for one in brain.memories
            if (text := self._text(one.text, one.id))
        ]
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
            JournalEntry(self._redacted(one.id), text, self._text(one.title, one.id), one.at)
            for one in brain.journals
            if (text := self._text(one.text, one.id)) and not self._reserves(text, one.id, held)
        ]
        return replace(brain, memories=tuple(kept), journals=tuple(journals), personality=self._profile(brain, held))

    def _profile(self, brain: Brain, held: Sequence[frozenset[str]]) -> Personality:
        who = brain.personality

        def kept(texts: Sequence[str]) -> tuple[str, ...]:
            cleaned = [self._text(one, "profile") for one in texts]
            return tuple(one for one in cleaned if one and not self._reserves(one, "profile", held))

        pairs = []
        for context, response in who.response_examples:
            both = self._text(context, "profile"), self._text(response, "profile")
            if self._reserves("\n".join(both), "profile", held):
                continue
            if all(both) or not (tidy(context) and tidy(response)):
                pairs.append(both)
        return replace(
            who,
            common_phrases=kept(who.common_phrases),
            typing_quirks=kept(who.typing_quirks),
            emoji=kept(who.emoji),
            tone=kept(who.tone),
            facts=kept(who.facts),
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

    def _reserves(self, text: str, where: str, held: Sequence[frozenset[str]]) -> bool:
        """Say whether a text tells a reserved memory; count it then."""
        tells = self._tells(text, held)
        if tells:
            self.dropped.add("reserved for evaluation", text, where)
        return tells

    def _tells(self, text: str, held: Sequence[frozenset[str]]) -> bool:
        own = shingles(text)
        return any(
            jaccard(own, other) >= _SAID_ELSEWHERE or len(own & other) >= _SAID_INSIDE * len(other) for other in held
        )
