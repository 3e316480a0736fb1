"""The nouns: what a person said (a Brain), the rows made of it (Examples), and what a model reads of those (Samples).

Immutable records, nothing else. ``Message`` and ``Turn`` are named tuples: there are millions of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, NamedTuple, Protocol, get_args

from twin.dropped import Dropped

Role = Literal["system", "user", "assistant"]
Kind = Literal["chat", "memory", "fact", "journal", "example"]
KINDS: tuple[Kind, ...] = get_args(Kind)

ME = "\0me"  # the speaker of a person's own messages in exports that do not name them


class Message(NamedTuple):
    """One message as one person sent it. ``at`` is local wall-clock time, without a zone, where the source has none."""

    speaker: str
    text: str
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages of one chat in the order they were sent, or a piece of it.

    Args:
        id: leads to the source, stable across runs.
        messages: they follow one another.
        start: the number of the first one in its chat, where a long chat comes in pieces.
    """

    id: str
    messages: tuple[Message, ...]
    start: int = 0


class Chats(Protocol):
    """Conversations that are read when they are needed, as often as they are needed (a file's, say)."""

    @property
    def name(self) -> str:
        """What row ids call the source."""

    @property
    def size(self) -> int:
        """About how many bytes there are to read."""

    def read(self, dropped: Dropped) -> Iterator[Conversation]:
        """Yield the conversations; count in ``dropped`` what is left out."""


@dataclass(frozen=True, slots=True)
class Held:
    """Conversations that are in memory."""

    conversations: tuple[Conversation, ...]
    name: str = ""
    size: int = 0

    def read(self, dropped: Dropped) -> Iterator[Conversation]:
        """Yield them."""
        yield from self.conversations


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
    """How the person speaks and what is known of them. ``response_examples`` are (context, reply) pairs.

    ``source`` is the document that tells it.
    """

    name: str = ""
    common_phrases: tuple[str, ...] = ()
    emoji: tuple[str, ...] = ()
    typing_quirks: tuple[str, ...] = ()
    tone: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    response_examples: tuple[tuple[str, str], ...] = ()
    source: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Brain:
    """All that is known of one person.

    Args:
        person: whose twin this is: a speaker's name.
        chats: their conversations, one entry a file.
        memories, journals, personality: what else is known.
        dropped: what was left out of the files that hold no conversations.
        documents: the documents it was looked for in: by what row ids call each, the file it is.
    """

    person: str
    chats: tuple[Chats, ...] = ()
    memories: tuple[Memory, ...] = ()
    journals: tuple[JournalEntry, ...] = ()
    personality: Personality = Personality()
    dropped: Dropped = field(default_factory=Dropped, compare=False)
    documents: Mapping[str, str] = field(default_factory=dict, compare=False)

    def source_of(self, item: Memory | JournalEntry) -> str:
        """Return the name of the document that holds a memory or journal entry, whose id begins with it."""
        name = item.id
        while name not in self.documents and "#" in name:  # which may stand in the document's name too
            name = name.rpartition("#")[0]
        return name

    def conversations(self, dropped: Dropped | None = None) -> Iterator[Conversation]:
        """Yield all conversations, file by file."""
        for chats in self.chats:
            yield from chats.read(dropped or Dropped())


class Turn(NamedTuple):
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

    @property
    def said(self) -> tuple[Turn, ...]:
        """What is said, under whatever system prompt."""
        return self.turns[1:] if self.turns[0].role == "system" else self.turns


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
