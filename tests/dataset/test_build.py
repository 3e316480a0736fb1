"""Brain → rows as a whole: nothing vanishes without a reason, nothing depends on luck, nothing is said twice."""

import socket
import tempfile
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin import prompt
from twin.brain import load
from twin.dataset import build, other_names
from twin.dataset.redact import Redactor
from twin.dropped import Dropped
from twin.errors import StepError
from twin.records import Brain, Conversation, Held, JournalEntry, Memory, Message, Personality
from twin.settings import ExportSettings

BEGIN = datetime(2024, 1, 1, 9)


def chat(name, *said, at=BEGIN, step=timedelta(minutes=1)):
    """Return a conversation of alternating other and Ana, beginning with the other."""
    speakers = ("Beto", "Ana")
    return Conversation(name, tuple(Message(speakers[n % 2], text, at + n * step) for n, text in enumerate(said)))


def held(*talks):
    return (Held(talks),)


def dataset(brain, **settings):
    return rows_of(brain, prompt.build(brain), ExportSettings(**settings))


def rows_of(brain, system, settings, **more):
    return build(brain, system, settings, Path(tempfile.mkdtemp(dir=".")), **more)


def said(brain):
    return [one for talk in brain.conversations() for one in talk.messages]


@pytest.fixture(scope="module")
def sample(sample_brain):
    return load([sample_brain])


def test_the_sample_brain(sample):
    data = dataset(sample)
    assert set(data.kinds) == {"chat", "memory", "journal", "example"} | ({"fact"} & set(data.kinds))
    assert sum(data.kinds.values()) == len(data.train) + len(data.val)
    assert len(data.train) > 500
    assert 0.05 < len(data.val) / (len(data.train) + len(data.val)) < 0.2
    assert len({row.id for row in [*data.train, *data.val]}) == len(data.train) + len(data.val)
    assert {row.kind for row in data.val} == {"chat"}


def test_only_the_persons_own_words_are_learned(sample):
    own = Counter(message.text for message in said(sample) if message.speaker == sample.person)
    data = dataset(sample)
    for row in [*data.train, *data.val]:
        assert row.turns[-1].role == "assistant"
        if row.kind == "chat":
            lines = "\n".join(own)
            assert all(line in lines for line in row.reply.split("\n"))


def test_every_reply_of_the_sample_is_a_row_or_has_a_reason(sample):
    data = dataset(sample, include_system=False)
    chats = [row for row in [*data.train, *data.val] if row.kind == "chat"]
    raw = dataset(sample, include_system=False, quality_filter=False, deduplicate=False)
    everything = [row for row in [*raw.train, *raw.val] if row.kind == "chat"]
    lost = len(raw.train) + len(raw.val) - len(data.train) - len(data.val)
    added = data.dropped.counts - raw.dropped.counts
    assert lost == added.total()
    assert {row.id for row in chats} <= {row.id for row in everything}


def test_what_stands_in_the_prompt_is_no_row_and_the_rest_is(sample):
    system = prompt.build(sample)
    data = rows_of(sample, system, ExportSettings(deduplicate=False, quality_filter=False))
    rows = {row.id for row in data.train if row.kind == "memory"}
    assert rows == {memory.id for memory in sample.memories} - system.memory_ids
    facts = {row.reply.casefold() for row in data.train if row.kind == "fact"}
    assert len(facts) == len(set(sample.personality.facts) - system.facts)


def test_the_same_brain_gives_the_same_rows(sample):
    one, other = dataset(sample, seed=3), dataset(sample, seed=3)
    assert list(one.train) == list(other.train)
    assert list(one.val) == list(other.val)


def test_another_seed_gives_another_order_and_split(sample):
    one, other = dataset(sample, seed=1), dataset(sample, seed=2)
    assert [row.id for row in one.train] != [row.id for row in other.train]
    assert {row.id for row in one.val} != {row.id for row in other.val}
    assert {row.id for row in [*one.train, *one.val]} == {row.id for row in [*other.train, *other.val]}


def test_nothing_is_truncated():
    long = "word " * 5000 + "end"
    data = dataset(Brain("Ana", held(chat("c", "tell me", long))), include_system=False, quality_filter=False)
    assert [row.reply for row in data.train] == [long]


@pytest.mark.parametrize("said", ["lol", "ok", "k", "👍", "हाँ", "はい", "да", "7", "¿"])
def test_short_and_foreign_replies_stay(said):
    data = dataset(Brain("Ana", held(chat("c", "really?", said))))
    assert [row.reply for row in data.train] == [said]


def test_the_prompt_is_put_first_and_can_be_left_out():
    brain = Brain("Ana", held(chat("c", "a?", "b", "c?", "d")))
    text = prompt.build(brain).text
    assert {row.turns[0].content for row in dataset(brain, seed=1).train} == {text}
    assert all(row.turns[0].role == "user" for row in dataset(brain, include_system=False).train)


def test_validation_rows_always_carry_the_prompt(sample):
    text = prompt.build(sample).text
    data = dataset(sample, validation_split=0.5)
    assert {row.turns[0].content for row in data.val} == {text}
    bare = [row for row in data.train if row.turns[0].content != text]
    assert 0.02 < len(bare) / len(data.train) < 0.25


def test_an_empty_dataset_says_why():
    left_out = Dropped()
    for _ in range(3):
        left_out.add("media")
    brain = Brain("Ana", held(chat("c", "look", "https://a.example", "x", "..", "y", "!!")), dropped=left_out)
    with pytest.raises(StepError) as caught:
        dataset(brain)
    assert caught.value.message == (
        "The dataset is empty: no row of 'Ana' is left (media 3, punctuation only 2, links only 1)."
    )
    assert caught.value.hint == "Check --person, add conversations in which they answer, or try --no-quality-filter."
    assert caught.value.exit_code == 4
    assert len(dataset(brain, quality_filter=False).train) == 3


def test_a_brain_in_which_nothing_was_said():
    with pytest.raises(StepError, match=r"no row of 'Ana' is left \(nothing was said\)\."):
        dataset(Brain("Ana"))


def test_a_conversation_that_the_person_opens():
    brain = Brain("Ana", held(Conversation("c", (Message("Ana", "hi"), Message("Beto", "yo"), Message("Ana", "so")))))
    data = dataset(brain, include_system=False)
    assert [[turn.content for turn in row.turns] for row in data.train] == [["yo", "so"]]
    assert dict(data.dropped.counts) == {"nothing was said before it": 1}


def test_duplicates_are_dropped_once_with_a_reason():
    brain = Brain("Ana", held(*(chat(f"c{n}", "how are you", "fine and you?") for n in range(4))))
    data = dataset(brain, validation_split=0)
    assert (len(data.train), dict(data.dropped.counts)) == (1, {"duplicate": 3})
    assert len(dataset(brain, validation_split=0, deduplicate=False).train) == 4


def test_every_kind_of_row():
    brain = Brain(
        "Ana",
        held(chat("c", "tea?", "always")),
        (Memory("m#1", "Plays the accordion on sundays"),),
        (JournalEntry("j.md", "slept in", "New year", datetime(2024, 1, 1)),),
        Personality(name="Ana", response_examples=(("hi", "yo yo"),), facts=("Has two left feet",)),
    )
    nothing = prompt.SystemPrompt("You are Ana.", frozenset(), frozenset())
    data = rows_of(brain, nothing, ExportSettings(include_system=False))
    assert data.kinds == {"chat": 1, "memory": 1, "journal": 1, "example": 1, "fact": 1}


def test_ticks_count_the_rows_looked_at(sample):
    ticks = []
    settings = ExportSettings()
    data = rows_of(sample, prompt.build(sample), settings, tick=ticks.append)
    chosen = sum(data.dropped.counts[reason] for reason in ("duplicate", "near-duplicate", "repeated reply"))
    assert sum(ticks) == len(data.train) + len(data.val) + chosen


def test_no_network_is_needed(sample, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("the dataset reached for the network")

    monkeypatch.setattr(socket, "socket", refuse)
    assert dataset(sample).train


# Was wrong once: a naive datetime of the year 1 (Go's and .NET's "no time") has no timestamp: ValueError, a traceback.
def test_the_zero_time_of_other_programs():
    brain = Brain("Ana", held(chat("c", "tea?", "always", at=datetime(1, 1, 1))))
    assert len(dataset(brain).train) == 1


@given(
    sides=st.lists(st.lists(st.booleans(), min_size=1, max_size=12), min_size=1, max_size=8),
    share=st.floats(0, 0.5),
    seed=st.integers(0, 9),
)
def test_replies_are_conserved(sides, share, seed):
    """Each run of Ana's messages is a row or was dropped for a reason; no row is on both sides."""
    numbers = iter(range(1000))
    talks = tuple(
        Conversation(f"c{n}", tuple(Message("Ana" if own else "Beto", f"said {next(numbers)}") for own in talk))
        for n, talk in enumerate(sides)
    )
    runs = sum(own and not before for talk in sides for own, before in zip(talk, [False, *talk], strict=False))
    openings = sum(talk[0] for talk in sides)
    settings = ExportSettings(deduplicate=False, validation_split=share, seed=seed, include_system=False)
    brain = Brain("Ana", held(*talks))
    if runs == openings:
        with pytest.raises(StepError):
            rows_of(brain, prompt.build(brain), settings)
        return
    data = rows_of(brain, prompt.build(brain), settings)
    assert len(data.train) + len(data.val) == runs - openings
    assert data.dropped.counts["nothing was said before it"] == openings
    assert {row.conversation_id for row in data.train}.isdisjoint(row.conversation_id for row in data.val)


def test_the_names_of_others_are_also_what_friends_call_them():
    said = tuple(Message(name, "hi") for name in ("Ana", "田中 太郎", "Bo Young", "Cleo"))
    brain = Brain("Ana", (Held((Conversation("c", said),)),))
    assert set(other_names(brain)) == {"田中 太郎", "田中太郎", "田中", "太郎", "Bo Young", "Bo", "Cleo"}


def test_people_are_called_without_marks_and_titles_and_by_their_aliases():
    said = tuple(Message(name, "hi") for name in ("Ana", "~ Jon Vale", "Dr. Anna Quill", "Zo\u00eb", "Sam Poe"))
    brain = Brain("Ana", (Held((Conversation("c", said),)),))
    found = set(other_names(brain, {"Sam Poe": ["sam_handle"], "Ana": ["me"], "Nobody": ["no one"]}))
    assert {"Jon Vale", "Jon", "Anna Quill", "Anna", "Zo\u00eb", "Zoe\u0308", "Sam", "sam_handle"} <= found
    assert found.isdisjoint({"Dr.", "~", "me", "no one"})


@pytest.mark.parametrize("seed", range(4))
def test_a_chat_that_was_exported_twice_stands_on_one_side(seed):
    """What both exports hold is dropped once; before the reply that the second has more, it is still there."""

    def said(other, text):
        times = (BEGIN + number * timedelta(minutes=1) + number // 6 * timedelta(hours=9) for number in range(240))
        words = (f"{text} {n // 2} it was {n * 7919 % 99991}" for n in range(240))
        return [Message((other, "Ana")[n % 2], text, at) for n, (text, at) in enumerate(zip(words, times, strict=True))]

    beto, cleo = said("Beto", "what happened on day"), said("Cleo", "of other things, the time")
    chats = {"a": [one for n, one in enumerate(beto) if n % 6 < 4], "b": beto, "c": cleo}
    brain = Brain("Ana", tuple(Held((Conversation(name, tuple(talk)),), name) for name, talk in chats.items()))
    own = ExportSettings(seed=seed, validation_split=0.2)
    built = build(brain, prompt.build(brain), own, Path(tempfile.mkdtemp(dir=".")))
    learned = {turn.content for row in built.train for turn in row.turns}
    assert len(built.val) > 3
    assert not [row.id for row in built.val if row.reply in learned]


def test_one_person_has_one_number_whatever_they_are_called():
    said = tuple(Message(name, "hi") for name in ("Sam Poe", "Ana", "Strauß"))
    names = other_names(Brain("Ana", (Held((Conversation("c", said),)),)), {"Sam Poe": ["Sammy"]})
    redactor = Redactor(names=names)
    assert redactor.redact("Sam Poe, Sam, sammy, Samuel") == "[person 1], [person 1], [person 1], Samuel"
    assert redactor.redact("strauß, SAM") == "[person 2], [person 1]"
