"""The nouns: what a person said (a Brain), the rows made of it (Examples), and what a model reads of those (Samples).

Frozen dataclasses, nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

Role = Literal["system", "user", "assistant"]
Kind = Literal["chat", "memory", "fact", "journal", "example"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message as one person sent it. ``at`` is local wall-clock time, without a zone, where the source has none."""

    speaker: str
    text: str
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages of one chat in the order they were sent. ``id`` is ``source#number``, stable across runs."""

    id: str
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Memory:
    """A short neutral statement about the person. ``importance`` runs from 0 to 1."""

    id: str
    text: str
    category: str = "facts"
    importance: float = 0.5
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """A text the person wrote to themselves."""

    id: str
    text: str
    title: str = ""
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Personality:
    """How the person speaks and what is known of them. ``response_examples`` are (context, reply) pairs."""

    name: str = ""
    common_phrases: tuple[str, ...] = ()
    emoji: tuple[str, ...] = ()
    typing_quirks: tuple[str, ...] = ()
    tone: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    response_examples: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Brain:
    """All that is known of one person. ``skipped`` counts what importers left out, by reason."""

    person: str
    conversations: tuple[Conversation, ...] = ()
    memories: tuple[Memory, ...] = ()
    journals: tuple[JournalEntry, ...] = ()
    personality: Personality = Personality()
    skipped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Turn:
    """One rendered turn: a role of the chat template and its content."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One row of the dataset: a prompt and, as its last turn, the reply that is learned.

    Args:
        id: ``conversation:first-last`` for chats (message numbers, 0-based, inclusive), else the source item's id.
        conversation_id: the unit of the split; rows of one conversation stay on one side.
        kind: where the row comes from.
        turns: the prompt's turns and, last, the assistant's reply.
        other: the other side's name; empty where the turns themselves say who speaks (group chats).
        every_reply: learn each assistant turn, not the last alone (rows from other tools, which carry no id of ours).
    """

    id: str
    conversation_id: str
    kind: Kind
    turns: tuple[Turn, ...]
    other: str = "Someone"
    every_reply: bool = False

    @property
    def reply(self) -> str:
        """The text that is learned."""
        return self.turns[-1].content


@dataclass(frozen=True, slots=True)
class Sample:
    """One reply to learn or to score, in a model's tokens.

    Args:
        id: the row's id.
        conversation_id: the row's conversation, for bootstraps and packing.
        kind: the row's kind.
        input_ids: prompt, reply and end token.
        prompt_length: how many of them are the prompt.
    """

    id: str
    conversation_id: str
    kind: Kind
    input_ids: tuple[int, ...]
    prompt_length: int

    @property
    def supervised(self) -> int:
        """The number of tokens that are learned."""
        return len(self.input_ids) - self.prompt_length


@dataclass(frozen=True, slots=True)
class Scored:
    """A reply under one model.

    Args:
        id: the row's id.
        conversation_id: its conversation.
        nll: negative log-likelihood of reply and end token, in nats, summed.
        tokens: how many tokens that is.
    """

    id: str
    conversation_id: str
    nll: float
    tokens: int
