r"""What is trained: the prompt the server will send, then the reply and its end token; the loss is on those two.

<|im_start|>system ... <|im_start|>assistant\n | tea is fine<|im_end|>
0                                           0 | 1           1
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from twin.errors import GateError, StepError
from twin.records import Example, Sample, Turn
from twin.templates import Family, render


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used here."""

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        """Return ``input_ids`` of ``text``."""

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """Return the id of a token of the vocabulary."""


class Origin(NamedTuple):
    """Where a sample comes from: its row, the place of its reply among the row's turns, and how many turns were cut.

    Cut turns are the oldest; a system prompt is not counted, and always kept.
    """

    row: Example
    place: int
    cut: int

    @property
    def shortened(self) -> bool:
        """Whether a turn was cut for length: those before the other side's first one are never learned from."""
        return self.cut > _first_question(self.row.turns[: self.place])

    def kept(self) -> list[Turn]:
        """Return the prompt's turns."""
        return self._from(self.cut)

    def one_exchange_more(self) -> list[Turn]:
        """Return the prompt's turns with the exchange that was cut last; nothing where none was cut for length."""
        if not self.shortened:
            return []
        head = self.row.turns[0].role == "system"
        return self._from(max(at for at in range(self.cut) if self.row.turns[head + at].role == "user"))

    def _from(self, cut: int) -> list[Turn]:
        turns = self.row.turns[: self.place]
        head = turns[:1] if turns[0].role == "system" else ()
        return [*head, *turns[len(head) + cut :]]


@dataclass(frozen=True, slots=True)
class Samples:
    """All samples, what had to be cut for length, and where each sample comes from."""

    samples: tuple[Sample, ...]
    shortened: int
    too_long: int
    origins: tuple[Origin, ...]


def check_vocabulary(tokenizer: Tokenizer, family: Family) -> None:
    """Refuse a model whose vocabulary lacks the family's control tokens as single ids.

    Raises:
        GateError: with the token.
    """
    for token in family.control_tokens:
        ids = tokenizer(token, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 or tokenizer.convert_tokens_to_ids(token) != ids[0]:
            raise GateError(
                f"The base model's vocabulary has no single token '{token}', which the family '{family.name}' needs.",
                "Use a base model of that family, or another preset: twin presets list",
            )


def prompt_ids(tokenizer: Tokenizer, family: Family, turns: Sequence[Turn]) -> list[int]:
    """Return the ids of the prompt before the reply (BOS included where the vocabulary adds it)."""
    return list(tokenizer(render(family, turns), add_special_tokens=True)["input_ids"])


def reply_ids(tokenizer: Tokenizer, family: Family, reply: str, asked: Turn) -> list[int]:
    """Return the ids of a reply and its end token, as they stand behind the prompt that ends in the turn ``asked``.

    A SentencePiece tokenizer writes a blank before a text behind a control token and none behind plain text, so the
    reply is read behind what the template writes since its last control token.
    """
    prompt = render(family, [asked])
    before = prompt[max(0, *(prompt.rfind(token) for token in family.control_tokens)) :]
    told = family.reply_gap + reply + family.end_token
    head = list(tokenizer(before, add_special_tokens=False)["input_ids"])
    whole = list(tokenizer(before + told, add_special_tokens=False)["input_ids"])
    if whole[: len(head)] == head:
        return whole[len(head) :]
    # The reply's first characters would join the prompt's last ones, which are read before there is a reply.
    return list(tokenizer(told, add_special_tokens=False)["input_ids"])


def fit(
    tokenizer: Tokenizer, family: Family, turns: Sequence[Turn], reply: Sequence[int], max_length: int
) -> tuple[list[int], int] | None:
    """Return (prompt ids, turns cut): the oldest turns go first, never the system prompt, the last turn or the reply.

    None when even that is longer than ``max_length`` tokens.
    """
    head = list(turns[:1]) if turns[0].role == "system" else []
    rest = list(turns[len(head) :])
    for cut in range(len(rest)):
        if rest[cut].role != "user":
            continue
        ids = prompt_ids(tokenizer, family, [*head, *rest[cut:]])
        if len(ids) + len(reply) <= max_length:
            return ids, cut
    return None


def _first_question(turns: Sequence[Turn]) -> int:
    """Return how many turns stand before the first of the other side, the system prompt not counted."""
    rest = turns[1:] if turns[0].role == "system" else turns
    return next((place for place, turn in enumerate(rest) if turn.role == "user"), 0)


def build_samples(rows: Iterable[Example], tokenizer: Tokenizer, family: Family, max_length: int) -> Samples:
    """Return one sample a reply that a row teaches.

    Raises:
        StepError: no row fits into ``max_length`` tokens.
    """
    samples: list[Sample] = []
    origins: list[Origin] = []
    too_long = 0
    for row in rows:
        asked = [place for place, turn in enumerate(row.turns) if turn.role == "user"]
        places = [
            place
            for place, turn in enumerate(row.turns)
            if turn.role == "assistant" and place > min(asked, default=place)
        ]
        for place in places if row.every_reply else places[-1:]:
            reply = reply_ids(tokenizer, family, row.turns[place].content, row.turns[place - 1])
            fitted = fit(tokenizer, family, row.turns[:place], reply, max_length)
            if fitted is None:
                too_long += 1
                continue
            ids, cut = fitted
            origins.append(Origin(row, place, cut))
            sample_id = f"{row.id}@{place}" if row.every_reply else row.id
            samples.append(Sample(sample_id, row.conversation_id, row.kind, tuple(ids + reply), len(ids)))
    if not samples:
        raise StepError(
            f"No row is left to learn from: {too_long} are longer than {max_length} tokens.", "Raise --max-length."
        )
    return Samples(tuple(samples), sum(one.shortened for one in origins), too_long, tuple(origins))
