"""One part of a brain → its rows, on disk, and what is needed of each to choose among them.

This is what runs in several processes. A row stands in the part's file as one line of ChatML JSON without its
beginning (``{"messages":[``), after which a system prompt may be put; of each row some fifty bytes stay in memory.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import orjson

from twin.dataset import dedup
from twin.dataset.clean import MAX_MESSAGE, MAX_TYPED_WITH_LINK, Habits, pasted, reason_to_drop, tidied
from twin.dataset.redact import CLOSE, LOCAL, OPEN, Redactor
from twin.dataset.secrets import holds_key, holds_seed_phrase, is_password, tells_password
from twin.dataset.suspects import suspects
from twin.dataset.window import SaidTurn, Session, context, seconds, sessions, turns_of
from twin.dropped import Dropped
from twin.errors import file_errors
from twin.names import person_digest
from twin.records import KINDS, Chats, Conversation, Example, Message, Turn
from twin.settings import ExportSettings

BEGINNING = b'{"messages":['
QUOTED = 60  # characters of a line that is the same only where somebody quotes or forwards it
SHORT_REPLY = 40  # characters: what is longer is not said often
_TURN = {role: b'{"role":"' + role.encode() + b'","content":%b}' for role in ("user", "assistant")}
_ANSWERS = 2  # messages after one about a password that may be it
_BATCH = 2048
_BUFFER = 1 << 20


@dataclass(frozen=True)
class Job:
    """What a part needs to become rows; it travels to other processes.

    Args:
        person: whose replies are learned.
        settings: filters, window.
        names: what people are called who get a pseudonym, and who each is.
        watch: the reason whose dropped rows are listed.
    """

    person: str
    settings: ExportSettings
    names: Mapping[str, str] = field(default_factory=dict)
    watch: str | None = None


@dataclass
class Source:
    """What rows were made of: one document, who speaks in it, and when."""

    people: Counter[str] = field(default_factory=Counter)
    first: datetime | None = None
    last: datetime | None = None

    def as_json(self) -> dict[str, object]:
        """Return what ``dataset.json`` says of it: how many speak, and not who."""
        people: Counter[str] = Counter()
        for name, count in self.people.items():
            people[person_digest(name)] += count
        first, last = (at.isoformat() if at else None for at in (self.first, self.last))
        return {"people": dict(people), "first": first, "last": last}

    def hear(self, messages: Sequence[Message]) -> None:
        """Count speakers and widen the span of time."""
        self.people.update(message.speaker for message in messages)
        self.date(message.at for message in messages)

    def date(self, dates: Iterable[datetime | None]) -> None:
        """Widen the span of time."""
        times = [at for at in dates if at]
        if times:
            self.first = min([*times, self.first] if self.first else times)
            self.last = max([*times, self.last] if self.last else times)


@dataclass
class Shard:
    """The rows of one part.

    Args:
        path: their lines.
        offsets: where each row's line begins in the file, and where the last ends (shape: rows + 1).
        text_offsets: the same of its prompt and reply, flat, in the file beside it.
        kinds: of each row, its place in ``KINDS``.
        session: of each row, its session's number in this part.
        lengths: of each row, the characters of its prompt and reply.
        keys: of each row, a hash of its prompt and reply.
        bands: of each row, its MinHash bands (shape: rows, bands).
        reply: of each row, its reply's number among the part's short replies, -1 for a long one.
        session_ids, session_times, session_others: of each session its id, its beginning in seconds since 1970 (NaN:
            unknown) and the other side's name, empty in a group.
        replies: the short replies.
        quoted: hashes of the long lines said (shape: lines), and the session of each.
        values: private values by kind, in the order of their first appearance.
    """

    path: Path
    offsets: np.ndarray
    text_offsets: np.ndarray
    kinds: np.ndarray
    session: np.ndarray
    lengths: np.ndarray
    keys: np.ndarray
    bands: np.ndarray
    reply: np.ndarray
    session_ids: list[str]
    session_times: list[float]
    session_others: list[str]
    replies: list[str]
    quoted: tuple[np.ndarray, np.ndarray]
    values: list[tuple[str, str]]
    redacted: Counter[str]
    dropped: Dropped
    habits: Habits
    sources: dict[str, Source]


def text_file(path: Path) -> Path:
    """Return the file of flat texts beside a part's lines."""
    return path.with_suffix(".text")


class _Writer:
    """Gathers rows: their lines go to the file, their texts are hashed a few thousand at a time."""

    def __init__(self, job: Job, path: Path) -> None:
        self.job, self.path = job, path
        self.dropped = Dropped(job.watch)
        self.redactor = Redactor(job.settings.regions, job.names, job.settings.redact)
        self.habits = Habits()
        self.sources: dict[str, Source] = {}
        self._names: dict[str, str] = {}
        self._places: dict[str, str] = {}
        self._handle = path.open("wb", buffering=_BUFFER)
        self._texts = text_file(path).open("wb", buffering=_BUFFER)
        # Arrays, for lists would take some forty bytes a number, and one file may hold millions of rows.
        self._text_sizes, self._lengths = array("q", [0]), array("q", [0])
        self._kinds, self._session, self._reply = array("B"), array("i"), array("i")
        self._replies: dict[str, int] = {}
        self._sessions: list[tuple[str, float, str]] = []
        self._flat: list[str] = []
        self._text_lengths = array("I")
        self._hashed: list[tuple[np.ndarray, np.ndarray]] = []
        self._quotes: list[str] = []
        self._quote_session = array("i")
        self._quote_keys: list[np.ndarray] = []

    # ------------------------------------------------------------ messages

    def messages(self, conversations: Iterable[Conversation], name: str) -> Iterator[Conversation]:
        """Yield conversations tidied, without secrets and private values; count who speaks."""
        settings, person = self.job.settings, self.job.person
        source = self.sources.setdefault(name, Source())
        for piece in conversations:
            source.hear(piece.messages)
            texts = tidied([message.text for message in piece.messages])
            if settings.quality_filter:
                for number, text in enumerate(texts):
                    if len(text) > MAX_MESSAGE:
                        self.dropped.add("over-long message", f"{len(text):,} characters", piece.id)
                        texts[number] = ""
            self._hide(texts, piece)
            if settings.quality_filter:
                for number, text in enumerate(texts):
                    if len(text) > MAX_TYPED_WITH_LINK and piece.messages[number].speaker == person and pasted(text):
                        self._drop("pasted text", text, piece.id)
                        texts[number] = ""
            names = {speaker: self._called(speaker) for speaker in {one.speaker for one in piece.messages}}
            messages = tuple(
                one
                if text is one.text and names[one.speaker] is one.speaker
                else Message(names[one.speaker], text, one.at)
                for one, text in zip(piece.messages, texts, strict=True)
            )
            self.habits.hear([text for speaker, text, _ in messages if text and speaker == person])
            yield Conversation(piece.id, messages, piece.start)

    def _called(self, speaker: str) -> str:
        """Return what rows call a speaker, whose name may be a phone number."""
        found = self._names.get(speaker)
        if found is None:
            own = speaker == self.job.person or not (self.job.names or self.job.settings.redact)
            plain = speaker.replace(OPEN, "").replace(CLOSE, "")
            found = self._names[speaker] = speaker if own else self.redactor.local(plain)
        return found

    def _place(self, conversation_id: str) -> str:
        """Return how rows name a conversation: its file is often called after somebody, or after a number."""
        found = self._places.get(conversation_id)
        if found is None:
            hides = self.job.settings.redact or self.job.names
            found = self._places[conversation_id] = self.redactor.local(conversation_id) if hides else conversation_id
        return found

    def _drop(self, reason: str, text: str, where: str) -> None:
        """Count a row left out; where it is listed, placeholders are readable."""
        text, where = (LOCAL.sub(r"[\1 \2]", one) if OPEN in one else one for one in (text, where))
        self.dropped.add(reason, text, where)

    def _hide(self, texts: list[str], piece: Conversation) -> None:
        found = suspects(texts)
        secrets = {number: "key" for number in found.keys if holds_key(texts[number])}
        secrets |= {number: "password" for number in found.passwords if tells_password(texts[number])}
        asked = {later for number in found.passwords for later in range(number + 1, number + 1 + _ANSWERS)}
        secrets |= {number: "password" for number in asked if number < len(texts) and is_password(texts[number])}
        secrets |= {number: "seed phrase" for number in found.seeds if holds_seed_phrase(texts[number])}
        for number, secret in secrets.items():
            self.dropped.add(f"secret ({secret})", "…", f"{piece.id}:{piece.start + number}")
            texts[number] = ""
        if self.job.settings.redact or self.job.names:
            for number in range(len(texts)) if self.job.names else found.values:
                texts[number] = self.redactor.local(texts[number])

    # ------------------------------------------------------------ rows

    def session(self, said: Session) -> None:
        """Add one row a reply of the person."""
        turns = turns_of(said.messages, self.job.person)
        if all(turn.role == "user" for turn in turns):
            return
        settings = self.job.settings
        session_id = said.id
        others = {message.speaker for message in said.messages}
        others.discard(self.job.person)
        number = self._begin(session_id, seconds(said.messages[0].at), others.pop() if len(others) == 1 else "")
        flats = [
            dedup.flat(turn.content if OPEN not in turn.content else LOCAL.sub(r"\1", turn.content)) for turn in turns
        ]
        lines = [_TURN[turn.role] % orjson.dumps(turn.content) for turn in turns]
        place_id = self._place(said.conversation_id)
        tail = orjson.dumps({"conversation": f"{place_id}#{said.start}", "kind": "chat"})[1:]
        begins = context(turns, [len(line) // 3 for line in lines], settings.context_turns, settings.context_tokens)
        self._quote(turns, number)
        for place, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            row_id = f"{place_id}:{said.start + turn.first}-{said.start + turn.last}"
            if place == 0:
                self._drop("nothing was said before it", turn.content, row_id)
                continue
            before = turns[place - 1].content
            reason = reason_to_drop(before, turn.content, settings.quality_filter)
            if reason:
                self._drop(reason, turn.content, row_id)
                continue
            turns_said = b",".join(lines[begins[place] : place + 1])
            line = b'%b],"id":%b,%b\n' % (turns_said, orjson.dumps(row_id), tail)
            self._add(line, 0, number, f"{flats[place - 1]} {flats[place]}", flats[place])

    def example(self, example: Example, at: float | None) -> None:
        """Add a row that is no reply in a chat; its texts are tidied and redacted already."""
        prompt, reply = example.turns[-2].content, example.reply
        reason = reason_to_drop(prompt, reply, self.job.settings.quality_filter and example.kind != "journal")
        if reason:
            self.dropped.add(reason, reply, example.id)
            return
        number = self._begin(example.conversation_id, at, example.other)
        about = {"id": example.id, "conversation": example.conversation_id, "kind": example.kind}
        self._quote(example.turns, number)  # a chat that says a journal's line stays with it
        turns = [{"role": turn.role, "content": turn.content} for turn in example.turns]
        line = orjson.dumps({"messages": turns} | about)[len(BEGINNING) :] + b"\n"
        own = dedup.flat(reply)
        self._add(line, KINDS.index(example.kind), number, f"{dedup.flat(prompt)} {own}", own)

    def _begin(self, session_id: str, at: float | None, other: str) -> int:
        self._sessions.append((session_id, float("nan") if at is None else at, other))
        return len(self._sessions) - 1

    def _quote(self, turns: Sequence[SaidTurn | Turn], session: int) -> None:
        for turn in turns:
            if len(turn.content) >= QUOTED:
                for line in turn.content.split("\n"):
                    if len(line) >= QUOTED:
                        self._quotes.append(dedup.flat(line.lstrip("> ")))
                        self._quote_session.append(session)
        if len(self._quotes) >= _BATCH:
            self._hash()

    def _add(self, line: bytes, kind: int, session: int, text: str, reply: str) -> None:
        self._handle.write(line)
        self._lengths.append(len(line))
        self._kinds.append(kind)
        self._session.append(session)
        short = len(reply) <= SHORT_REPLY
        self._reply.append(self._replies.setdefault(reply, len(self._replies)) if short else -1)
        self._flat.append(text)
        self._text_lengths.append(len(text))
        self._text_sizes.append(self._texts.write(text.encode()))
        if len(self._flat) >= _BATCH:
            self._hash()

    def _hash(self) -> None:
        self._hashed.append(dedup.signatures(self._flat))
        self._quote_keys.append(dedup.keys(self._quotes))
        self._flat, self._quotes = [], []

    def done(self) -> Shard:
        """Close the file and return the part."""
        self._hash()
        self._handle.close()
        self._texts.close()
        return Shard(
            path=self.path,
            offsets=np.cumsum(np.array(self._lengths, np.int64)),
            text_offsets=np.cumsum(np.array(self._text_sizes, np.int64)),
            kinds=np.array(self._kinds, np.uint8),
            session=np.array(self._session, np.int32),
            lengths=np.array(self._text_lengths, np.uint32),
            keys=np.concatenate([sums for sums, _ in self._hashed]),
            bands=np.concatenate([bands for _, bands in self._hashed]),
            reply=np.array(self._reply, np.int32),
            session_ids=[name for name, _, _ in self._sessions],
            session_times=[at for _, at, _ in self._sessions],
            session_others=[other for _, _, other in self._sessions],
            replies=list(self._replies),
            quoted=(np.concatenate(self._quote_keys), np.array(self._quote_session, np.int32)),
            values=self.redactor.values,
            redacted=self.redactor.counts,
            dropped=self.dropped,
            habits=self.habits,
            sources=self.sources,
        )


def chats(parts: Sequence[Chats], job: Job, path: Path) -> Shard:
    """Return the rows of conversations.

    Args:
        parts: files of conversations, read one after another.
        job: whose rows, and how.
        path: the file that the rows go to.
    """
    with file_errors(job.settings.output, "write"):
        writer = _Writer(job, path)
        gap = timedelta(hours=job.settings.session_gap_hours)
        for part in parts:
            for said in sessions(writer.messages(part.read(writer.dropped), part.name), gap):
                writer.session(said)
        return writer.done()


def examples(rows: Iterable[tuple[Example, float | None]], job: Job, path: Path) -> Shard:
    """Return the rows of memories, facts, journals and response examples."""
    with file_errors(job.settings.output, "write"):
        writer = _Writer(job, path)
        for row, at in rows:
            writer.example(row, at)
        return writer.done()
