"""A conversation with a twin, through Ollama or straight from its GGUF; either way the prompt is the trained one.

Not obvious: what leaves a prompt that grew too long is decided here, for both, and not by whoever answers. Ollama left
to itself cuts single messages, and so begins a prompt with a reply, which no training row does.
"""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import orjson

from twin.errors import StepError, UsageError
from twin.prompt import estimate_tokens
from twin.records import Turn
from twin.templates import Family, render
from twin.templates.served import merged

if TYPE_CHECKING:
    from twin.llama import Gguf
    from twin.ollama.client import OllamaClient

MAX_REPLY_TOKENS = 512
# Ollama's smallest default; its own default grows with the machine's memory, so a model that says nothing gets this.
_NUM_CTX = 4096
_TURN_TOKENS = 8  # the role, control tokens and line ends around a turn's text: at most that many in every family
_MARGIN = 1.1
Pieces = Generator[str, None, None]


def reply_room(num_ctx: int) -> int:
    """Return how many tokens of a context are kept free for the reply."""
    return min(MAX_REPLY_TOKENS, num_ctx // 4)


@dataclass(slots=True)
class Counts:
    """Tokens of the last exchange; 0 where they are not known, because the reply was stopped."""

    prompt_tokens: int = 0
    reply_tokens: int = 0


class Backend(Protocol):
    """Whoever answers."""

    @property
    def system(self) -> str:
        """The twin's own system prompt; empty for none."""

    @property
    def num_ctx(self) -> int:
        """Length of the context, in tokens."""

    def stream(self, turns: Sequence[Turn], counts: Counts) -> Pieces:
        """Yield pieces of the reply to ``turns``, of at most ``reply_room`` tokens; fill ``counts`` by the end."""


@dataclass(frozen=True, slots=True)
class OllamaBackend:
    """Answers through a registered model. Use ``of``.

    Args:
        client: the server.
        model: the model's name there.
        system: the model's own system prompt; empty for none.
        num_ctx: context length in tokens.
    """

    client: OllamaClient
    model: str
    system: str
    num_ctx: int

    @classmethod
    def of(cls, client: OllamaClient, model: str) -> OllamaBackend:
        """Return the backend of a model, with what the server says of it.

        Raises:
            TwinError: see ``twin.ollama.client``.
        """
        shown = client.show(model)
        found = re.search(r"^num_ctx +(\d+)$", str(shown.get("parameters") or ""), re.MULTILINE)
        return cls(client, model, str(shown.get("system") or ""), int(found[1]) if found else _NUM_CTX)

    def options(self) -> dict[str, int]:
        """Return the options of every request, beside the model's own parameters."""
        # num_keep: a reply that outgrows the context forgets its own beginning then, and never the prompt.
        return {"num_predict": reply_room(self.num_ctx), "num_ctx": self.num_ctx, "num_keep": -1}

    def stream(self, turns: Sequence[Turn], counts: Counts) -> Pieces:
        """Yield pieces of the reply."""
        try:
            with closing(self.client.chat(self.model, turns, self.options(), truncate=False)) as chunks:
                for chunk in chunks:
                    if chunk["done"]:
                        counts.prompt_tokens = chunk["prompt_eval_count"] or 0
                        counts.reply_tokens = chunk["eval_count"] or 0
                    if chunk["text"]:
                        yield chunk["text"]
        except StepError as error:
            if "exceeds the" not in error.message or "context" not in error.message:
                raise
            raise UsageError(
                f"The prompt is longer than the {self.num_ctx} tokens that the model holds.",
                "Say it in fewer words, or send it in parts.",
            ) from None


@dataclass(frozen=True, slots=True)
class GgufBackend:
    """Answers from an open GGUF.

    Args:
        model: the file, opened.
        family: its template pair.
        system: the system prompt of training; empty for none.
        temperature: of sampling.
        num_ctx: context length in tokens.
    """

    model: Gguf
    family: Family
    system: str
    temperature: float
    num_ctx: int

    def prompt_ids(self, turns: Sequence[Turn]) -> list[int]:
        """Return the ids of the prompt that Ollama would make of ``turns``."""
        return self.model.ids(render(self.family, merged(turns)))

    def stream(self, turns: Sequence[Turn], counts: Counts) -> Pieces:
        """Yield pieces of the reply."""
        ids = self.prompt_ids(turns)
        counts.prompt_tokens = len(ids)
        most = reply_room(self.num_ctx)
        generated = self.model.generate(
            ids,
            temperature=self.temperature,
            max_tokens=most,
            seed=secrets.randbits(31),  # as Ollama's: asked the same again, a twin may say something else
            stops=self.family.stops,
        )

        def counted() -> Iterator[int]:
            for token in generated:
                counts.reply_tokens += 1
                yield token
            if counts.reply_tokens < most:
                counts.reply_tokens += 1  # the end token, which Ollama counts too

        yield from until_stop(self.model.texts(counted()), self.family.stops)


def until_stop(pieces: Iterable[str], stops: Sequence[str]) -> Pieces:
    """Yield text up to the first stop; what may be the beginning of one is held back until it is clear."""
    held = ""
    for piece in pieces:
        held += piece
        found = [at for stop in stops if (at := held.find(stop)) >= 0]
        if found:
            held = held[: min(found)]
            break
        beginnings = (size for stop in stops for size in range(1, len(stop)) if held.endswith(stop[:size]))
        clear = len(held) - max(beginnings, default=0)
        if clear:
            yield held[:clear]
        held = held[clear:]
    if held:
        yield held


@dataclass(slots=True)
class Chat:
    """What was said so far.

    Args:
        backend: who answers.
        system: the system prompt of this conversation; None for the twin's own.
        turns: whole exchanges, a user's turn and its reply each, the oldest first.
        counts: tokens of the last exchange.
        left_out: how many of ``turns``, from the oldest on, no longer fit into the prompt.
    """

    backend: Backend
    system: str | None = None
    turns: list[Turn] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    left_out: int = 0
    _scale: float = 1.0  # tokens that were counted for each one that was estimated

    @property
    def system_prompt(self) -> str:
        """The system prompt in force; empty for none."""
        return self.backend.system if self.system is None else self.system

    def prompt(self, text: str) -> list[Turn]:
        """Return the turns to send for ``text``: the system prompt, what fits of the history, and ``text``."""
        return [*self._head(), *self.turns[self._cut(text) :], Turn("user", text)]

    def say(self, text: str) -> Pieces:
        """Yield pieces of the reply to ``text``.

        Both enter the history once the reply is whole or was stopped (Ctrl-C, or the generator closed); neither does
        when nothing was said, or whoever answers failed.

        Raises:
            TwinError: whoever answers failed.
        """
        cut, sent = self._cut(text), self.prompt(text)
        self.counts = Counts()
        said = ""
        try:
            with closing(self.backend.stream(sent, self.counts)) as pieces:
                for piece in pieces:
                    said += piece
                    yield piece
        except (KeyboardInterrupt, GeneratorExit):
            self._remember(cut, text, said)
            raise
        self._remember(cut, text, said)
        if self.counts.prompt_tokens:
            self._scale = self.counts.prompt_tokens / _estimate(sent)

    def _remember(self, cut: int, text: str, said: str) -> None:
        if said.strip():  # an empty reply in the history would teach the next one to be empty too
            self.turns += [Turn("user", text), Turn("assistant", said.strip())]
            self.left_out = cut

    def _head(self) -> list[Turn]:
        return [Turn("system", self.system_prompt)] if self.system_prompt else []

    def _cut(self, text: str) -> int:
        """Return how many of the oldest turns leave, so that what stays, ``text`` and a reply fit into the context.

        Whole exchanges leave, and stay out: a prompt that begins as the last one did is not computed again.
        """
        # Ollama counts tokens only after it answered, so what is sent can't be counted before. What was in the last
        # prompt is estimated and scaled by how that estimate was off; new text is estimated cautiously. Both backends
        # count the same ids, so both cut at the same place. What stays is another text than what was counted, hence the
        # margin; an estimate that is off by more costs the reply some of its room.
        room = self.backend.num_ctx - reply_room(self.backend.num_ctx)
        room -= math.ceil(_estimate([Turn("user", text)]) * max(1.0, self._scale))
        cut = self.left_out
        while cut < len(self.turns) and _estimate([*self._head(), *self.turns[cut:]]) * self._scale * _MARGIN > room:
            cut += 2
        return cut

    def reset(self) -> None:
        """Forget what was said; the system prompt stays."""
        self.turns.clear()
        self.left_out = 0

    def row(self) -> bytes:
        """Return the whole conversation as one ``chatml`` row, line end included."""
        return orjson.dumps({"messages": [turn._asdict() for turn in [*self._head(), *self.turns]]}) + b"\n"


def _estimate(turns: Sequence[Turn]) -> int:
    return sum(estimate_tokens(turn.content) + _TURN_TOKENS for turn in turns)
