"""A conversation with a twin, through Ollama or straight from its GGUF; either way the prompt is the trained one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from twin.records import Turn
from twin.templates import Family, render

if TYPE_CHECKING:
    from twin.llama import Gguf
    from twin.ollama.client import OllamaClient

MAX_REPLY_TOKENS = 512


@dataclass(slots=True)
class Counts:
    """Tokens of the last exchange."""

    prompt_tokens: int = 0
    reply_tokens: int = 0


class Backend(Protocol):
    """Whoever answers."""

    def stream(self, turns: Sequence[Turn], counts: Counts) -> Iterator[str]:
        """Yield pieces of the reply to ``turns``; fill ``counts`` by the end."""


@dataclass(frozen=True, slots=True)
class OllamaBackend:
    """Answers through a registered model; its system prompt and parameters are the model's own."""

    client: OllamaClient
    model: str

    def stream(self, turns: Sequence[Turn], counts: Counts) -> Iterator[str]:
        """Yield pieces of the reply."""
        for chunk in self.client.chat(self.model, turns, {"num_predict": MAX_REPLY_TOKENS}):
            if chunk["done"]:
                counts.prompt_tokens = chunk["prompt_eval_count"] or 0
                counts.reply_tokens = chunk["eval_count"] or 0
            if chunk["text"]:
                yield chunk["text"]


@dataclass(frozen=True, slots=True)
class GgufBackend:
    """Answers from an open GGUF.

    Args:
        model: the file, opened.
        family: its template pair.
        system: the system prompt of training; empty for none.
        temperature: of sampling.
        num_ctx: context length in tokens; the oldest turns leave first, never the system prompt.
    """

    model: Gguf
    family: Family
    system: str
    temperature: float
    num_ctx: int

    def prompt_ids(self, turns: Sequence[Turn]) -> list[int]:
        """Return the ids of the prompt, with as much history as fits beside a reply."""
        head = [Turn("system", self.system)] if self.system else []
        rest = list(turns)
        while True:
            ids = self.model.ids(render(self.family, [*head, *rest]))
            if len(ids) + MAX_REPLY_TOKENS <= self.num_ctx or len(rest) <= 1:
                return ids
            del rest[: 2 if len(rest) > 2 else 1]

    def stream(self, turns: Sequence[Turn], counts: Counts) -> Iterator[str]:
        """Yield pieces of the reply."""
        ids = self.prompt_ids(turns)
        counts.prompt_tokens = len(ids)
        text = ""
        for piece in self.model.reply(ids, temperature=self.temperature, max_tokens=MAX_REPLY_TOKENS):
            text += piece
            yield piece
        counts.reply_tokens = len(self.model.ids(text)) if text else 0


@dataclass(slots=True)
class Chat:
    """What was said so far."""

    backend: Backend
    turns: list[Turn] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)

    def say(self, text: str) -> Iterator[str]:
        """Yield pieces of the reply to ``text``; both enter the history once the reply is whole or was stopped."""
        asked = Turn("user", text)
        said = ""
        try:
            for piece in self.backend.stream([*self.turns, asked], self.counts):
                said += piece
                yield piece
        finally:
            if said:
                self.turns += [asked, Turn("assistant", said.strip())]
