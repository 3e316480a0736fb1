"""The proof of what is learned: each sample against what a server would be asked for its row, read by llama.cpp.

    the Go template's prompt of the turns kept | what stands before a reply, the reply, the end token
    context: every id before prompt_length     | learned: every id from there on, and together they spell that text

Not obvious: this takes another road than ``samples`` does, Go for Jinja and llama.cpp for the tokenizer, so that it is
no mirror of it. A server has read the prompt before there is a reply. Read in one piece, the first characters of a
reply may join the last ones of the prompt (a line end behind a line end): there the reply is read by itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from typing import Any, Protocol

from twin.errors import GateError
from twin.records import Sample, Turn
from twin.results import Masked
from twin.templates import Family, gate, render
from twin.templates.served import merged, render_go
from twin.training.samples import Origin, Samples

_PARTS = 1 << 16  # texts between control tokens whose ids are kept: some megabytes
_BLANKS = " \t\n\v\f\r"
_EVERY = 100  # samples between two words of progress
_NAMED = 5
_OURS = "This is twin's own mistake, and nothing is trained with it: please report this line."
_TYPED = (
    "Take that row out of the dataset, or change what stands there. Most often it is a control token of the model's "
    "vocabulary that somebody typed."
)

Ids = Callable[[str], Sequence[int]]


class Reader(Protocol):
    """What reads texts as a server does: ``llama.Gguf``, or a tokenizer where llama.cpp is not installed."""

    def ids(self, text: str) -> list[int]:
        """Return a whole text's ids, BOS where the vocabulary adds one."""

    def plain_ids(self, text: str) -> list[int]:
        """Return ids without BOS."""

    def spelled(self, ids: Sequence[int]) -> bytes:
        """Return the bytes of ids, control tokens as they are written."""

    def control_tokens(self) -> list[str]:
        """Return the tokens that are looked for in a text before anything else."""


class TokenizerReader:
    """A transformers tokenizer as a ``Reader``: what can be said without llama.cpp."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def ids(self, text: str) -> list[int]:
        """Return a whole text's ids."""
        return list(self._tokenizer(text, add_special_tokens=True)["input_ids"])

    def plain_ids(self, text: str) -> list[int]:
        """Return ids without BOS."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def spelled(self, ids: Sequence[int]) -> bytes:
        """Return the text of ids; a SentencePiece tokenizer leaves a blank at its beginning out."""
        return str(self._tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=False)).encode()

    def control_tokens(self) -> list[str]:
        """Return the added tokens."""
        return [token.content for token in self._tokenizer.added_tokens_decoder.values()]


@dataclass(frozen=True, slots=True)
class Proof:
    """What was found of a set of samples.

    Args:
        kept: those of which all holds.
        supervised: how many tokens they learn.
        by_itself: how many replies were read by themselves.
        unwritable: what is wrong with each of those that are left out: the vocabulary can't write their replies, so
            that training and server read the same other text.
    """

    kept: Samples
    supervised: int
    by_itself: int
    unwritable: tuple[str, ...] = ()

    @property
    def samples(self) -> int:
        """How many are kept."""
        return len(self.kept.samples)


class _UnwritableError(GateError):
    """A reply's ids are those that a server reads, and spell something else: no other ids would spell it."""


def reading(reader: Reader, family: Family, texts: Iterable[str]) -> Ids:
    """Return how ``reader`` reads a text, at the cost of what is new in it.

    Rows share a system prompt and history. A control token ends what stands before it, so the parts between them are
    read once each; where that gives other ids for one of ``texts``, every text is read whole.

    Args:
        reader: reads.
        family: whose control tokens part a text.
        texts: they are read both ways.
    """
    tokens = family.control_tokens
    cut = re.compile(f"(?={'|'.join(map(re.escape, tokens))})")
    begin = reader.ids("")

    @lru_cache(_PARTS)
    def part(text: str) -> tuple[int, ...]:
        return tuple(reader.plain_ids(text))

    def shared(text: str) -> list[int]:
        return [*begin, *chain.from_iterable(part(one) for one in cut.split(text) if one)]

    # Another token that ends as one of these begins would be found across a cut.
    across = any(
        token.startswith(other[at:])
        for other in reader.control_tokens()
        for at in range(1, len(other))
        for token in tokens
    )
    probes = (f"a \n{token} \nb {token}" for token in tokens)
    if across or any(shared(text) != list(reader.ids(text)) for text in chain(probes, texts)):
        return reader.ids
    return shared


def _gap(family: Family) -> str:
    """Return what the Go template writes between a prompt and a reply."""
    ask = Turn("user", "ask")
    before = render_go(family.go, [ask])
    gap, said, _ = render_go(family.go, [ask, Turn("assistant", "say"), ask]).removeprefix(before).partition(b"say")
    if not said:
        raise GateError(f"The Go template of family '{family.name}' does not write a reply behind its prompt.", _OURS)
    return gap.decode()


class _Check:
    """Holds one sample after another against its row."""

    def __init__(self, reader: Reader, family: Family, max_length: int, read: Ids, name: str) -> None:
        self._reader, self._family, self._max_length, self._read, self._name = reader, family, max_length, read, name
        self._gap, self._end = _gap(family), reader.plain_ids(family.end_token)

    def _differs(self, sample: Sample, theirs: Sequence[int], start: int, hint: str = _TYPED) -> GateError:
        parting = gate.first_id_difference(
            sample.input_ids[start:], theirs[start:], lambda token: self._reader.spelled([token]), self._name, start
        )
        return GateError(f"'{sample.id}' would be learned as other ids than a server reads, {parting}.", hint)

    def __call__(self, sample: Sample, origin: Origin) -> bool:
        """Return whether the reply was read by itself.

        Raises:
            GateError: the first thing that is wrong, with the row.
        """
        family, ids, begin = self._family, sample.input_ids, sample.prompt_length
        reply = origin.row.turns[origin.place].content
        prompt_text, prompt = self._prompt(sample, origin)
        self._length(sample, origin)
        if list(ids[:begin]) != prompt:
            if list(ids[: len(prompt)]) == prompt:
                raise GateError(
                    f"What is learned of '{sample.id}' begins at id {begin}, and the reply at id {len(prompt)}.", _OURS
                )
            raise self._differs(sample, prompt, 0)
        learned = list(ids[begin:])
        if len(self._end) != 1 or learned[-1:] != self._end:
            raise GateError(f"The end token {family.end_token!r} of '{sample.id}' is not learned.", _OURS)
        told = self._gap + reply + family.end_token
        whole = list(self._read(prompt_text + told))
        by_itself = whole[:begin] != prompt
        if by_itself:
            whole = prompt + self._reader.plain_ids(told)
        if list(ids) != whole:
            raise self._differs(sample, whole, begin)
        self._spells(sample, learned, told, by_itself)
        return by_itself

    def _prompt(self, sample: Sample, origin: Origin) -> tuple[str, list[int]]:
        """Return the prompt of the turns kept, as Ollama renders it, and its ids."""
        turns = origin.kept()
        try:
            text = render_go(self._family.go, merged(turns))
        except GateError as error:
            raise GateError(f"'{sample.id}': {error.message}", error.hint) from None
        ours = render(self._family, turns).encode("utf-8", "replace")
        if text != ours:
            parting = gate.first_difference(text, ours, ("the Go template", "the Jinja"))
            joined = "Ollama joins messages of one role that follow each other: join them in the row, by a blank line."
            raise GateError(
                f"The pair of family '{self._family.name}' differs for '{sample.id}', at {parting}.",
                joined if merged(turns) != turns else _OURS,
            )
        decoded = text.decode()
        return decoded, list(self._read(decoded))

    def _length(self, sample: Sample, origin: Origin) -> None:
        """Refuse a sample that is too long, or lost more turns than it had to."""
        if len(sample.input_ids) > self._max_length:
            raise GateError(
                f"'{sample.id}' is {len(sample.input_ids)} tokens long, and --max-length is {self._max_length}.", _OURS
            )
        if more := origin.one_exchange_more():
            text = render_go(self._family.go, merged(more)).decode()
            if len(self._read(text)) + sample.supervised <= self._max_length:
                raise GateError(f"'{sample.id}' lost an exchange for which there was room.", _OURS)

    def _spells(self, sample: Sample, learned: Sequence[int], told: str, exactly: bool) -> None:
        """Refuse supervised tokens that spell something else than what the person said.

        SentencePiece writes a blank behind a control token and reads U+2581 as one, and Phi-3 drops blanks there: with
        the ids that a server reads, these are no difference.
        """
        spelled = self._reader.spelled(learned).decode("utf-8", "replace")
        if exactly and spelled == told:
            return
        if not exactly and _loose(spelled) == _loose(told):
            return
        parting = gate.first_difference(told.encode(), spelled.encode(), ("the row", "the ids"))
        raise _UnwritableError(
            f"What is learned of '{sample.id}' does not spell its reply, at {parting}.",
            "The vocabulary can't write that. Use the base model's own files, tokenizer.model included where it has "
            "one, or take the row out of the dataset.",
        )


def _loose(text: str) -> str:
    return text.replace("\u2581", " ").lstrip(_BLANKS)


def check(
    built: Samples,
    reader: Reader,
    family: Family,
    max_length: int,
    name: str = "llama.cpp",
    advance: Callable[[float], None] = lambda amount: None,
) -> Proof:
    """Hold every sample against its row; leave those out whose reply the vocabulary can't write.

    Args:
        built: the samples, and where they come from.
        reader: reads as the server will.
        family: the template pair.
        max_length: most tokens of a sample.
        name: what messages call the reader.
        advance: told how many more samples are done.

    Raises:
        GateError: what is wrong with the first: its row's id, and the differing ids side by side; and the others' ids.
            Or the vocabulary can write no reply at all.
    """
    pairs = list(zip(built.samples, built.origins, strict=True))
    some = pairs[:: max(1, len(pairs) // 100)]
    read = reading(reader, family, (_text(family, origin) for _, origin in some))
    one = _Check(reader, family, max_length, read, name)
    by_itself = 0
    kept: list[tuple[Sample, Origin]] = []
    unwritable: list[_UnwritableError] = []
    refused: list[tuple[str, GateError]] = []
    for number, (sample, origin) in enumerate(pairs, start=1):
        try:
            by_itself += one(sample, origin)
            kept.append((sample, origin))
        except _UnwritableError as error:
            unwritable.append(error)
        except GateError as error:
            refused.append((sample.id, error))
        if number % _EVERY == 0:
            advance(_EVERY)
    advance(len(pairs) % _EVERY)
    if refused:  # all of them at once: who has to mend rows should not start over for each
        first, rest = refused[0][1], [f"'{name}'" for name, _ in refused[1:]]
        more = [*rest[:_NAMED], *([f"{len(rest) - _NAMED} more"] if len(rest) > _NAMED else [])]
        raise GateError(first.message + (f" Refused too: {', '.join(more)}." if more else ""), first.hint)
    if not kept and unwritable:
        raise unwritable[0]
    if unwritable:
        origins = tuple(origin for _, origin in kept)
        shortened = sum(origin.shortened for origin in origins)
        built = replace(built, samples=tuple(one for one, _ in kept), shortened=shortened, origins=origins)
    told = tuple(error.message for error in unwritable)
    return Proof(built, sum(sample.supervised for sample in built.samples), by_itself, told)


def _text(family: Family, origin: Origin) -> str:
    """Return a sample's whole text, as Ollama renders it."""
    prompt = render_go(family.go, merged(origin.kept())).decode()
    return prompt + _gap(family) + origin.row.turns[origin.place].content + family.end_token


# ---------------------------------------------------------------- shown to a person


def choose(built: Samples, count: int) -> list[int]:
    """Return which samples to show, different ones first: one of each kind, one that was cut, then the longest."""
    kinds: dict[str, int] = {}
    for number, sample in enumerate(built.samples):
        kinds.setdefault(sample.kind, number)
    cut = [number for number, origin in enumerate(built.origins) if origin.shortened]
    longest = sorted(range(len(built.samples)), key=lambda number: -len(built.samples[number].input_ids))
    return list(dict.fromkeys([*kinds.values(), *cut[:1], *longest]))[:count]


def show(built: Samples, reader: Reader, count: int) -> Iterator[Masked]:
    """Yield some samples as text: what is context, and what is learned."""
    for number in choose(built, count):
        sample, begin = built.samples[number], built.samples[number].prompt_length
        context, learned = (
            reader.spelled(ids).decode("utf-8", "replace")
            for ids in (sample.input_ids[:begin], sample.input_ids[begin:])
        )
        yield Masked(sample.id, sample.kind, context, learned, begin, sample.supervised, built.origins[number].cut)
