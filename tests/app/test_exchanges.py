"""Conversations as exchanges, and back again through the ordinary importer."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
from hypothesis import given
from hypothesis import strategies as st

from tests.app.conftest import NOON, Brain, chat
from twin import brain as brain_feature
from twin.app.exchanges import Exchange, exchanges
from twin.app.whole import PIECE_BYTES, brain_json, in_pieces
from twin.records import Conversation, Message


def read_back(brain: Brain, folder: Path) -> list[Conversation]:
    """Serve, save and load: what the other end has in the end."""
    file = folder / "brain.json"
    file.write_bytes(b"".join(brain_json(brain.source())))
    loaded = brain_feature.load([file])
    assert loaded.person == "Ada"
    return list(loaded.conversations())


def test_what_is_said_becomes_exchanges(brain: Brain) -> None:
    minute = timedelta(minutes=1)
    assert list(exchanges(brain.conversations, "Ada")) == [
        Exchange("are you coming?\nat 8", "on my way", "1 Bea%3A 100%25.txt:Bea", NOON + 2 * minute),
        Exchange("", "hello", "2 Tobi.txt:Tobi", NOON),
        Exchange("who is this", "me\nada", "2 Tobi.txt:Tobi", NOON + 2 * minute),
    ]


def test_in_a_group_the_words_say_whose_they_are() -> None:
    group = chat("g", ("Bea", "one"), ("Tobi", "two"), ("Ada", "three"))
    assert list(exchanges([group], "Ada")) == [
        Exchange("Bea: one\nTobi: two", "three", "1 g:", NOON + timedelta(minutes=2))
    ]


def test_pieces_of_a_long_chat_are_one_chat() -> None:
    first = chat("c", ("Bea", "one"), ("Bea", "two"))
    second = chat("c", ("Bea", "three"), ("Ada", "four"), ("Tobi", "five"), ("Ada", "six"), start=2)
    found = list(exchanges([first, second, chat("d", ("Ada", "x"))], "Ada"))
    assert [(one.context, one.response, one.source) for one in found] == [
        ("one\ntwo\nthree", "four", "1 c:Bea"),
        ("Tobi: five", "six", "1 c:Bea"),
        ("", "x", "2 d:"),
    ]


def test_folders_do_not_leave_the_machine() -> None:
    for name in ("/home/ada/chats/Bea.txt#1", "chats\\Bea.txt#1"):
        assert next(exchanges([chat(name, ("Ada", "x"))], "Ada")).source == "1 Bea.txt#1:"


def test_a_time_that_runs_backwards_is_left_out() -> None:
    late, early = NOON.replace(tzinfo=UTC), NOON - timedelta(hours=1)
    messages = [Message("Ada", "a", late), Message("B", "x"), Message("Ada", "b", early), Message("B", "y"),
                Message("Ada", "c", NOON + timedelta(hours=1))]  # fmt: skip
    found = list(exchanges([Conversation("c", tuple(messages))], "Ada"))
    assert [one.at for one in found] == [late, None, NOON + timedelta(hours=1)]


def test_blank_and_broken_texts_are_left_out() -> None:
    odd = chat("c", ("Bea", " "), ("Bea", "a\ud800b"), ("Ada", "\n"), ("Bea", "c"), ("Ada", "d"))
    assert [(one.context, one.response) for one in exchanges([odd], "Ada")] == [("ab\nc", "d")]


def test_it_reads_back_to_the_same_exchanges(brain: Brain, tmp_path: Path) -> None:
    back = read_back(brain, tmp_path)
    want = [(one.context, one.response, one.at) for one in exchanges(brain.conversations, "Ada")]
    assert [(one.context, one.response, one.at) for one in exchanges(back, "Ada")] == want
    assert [message.speaker for message in back[0].messages] == ["Bea", "Ada"]
    assert len(back) == 2


said = st.tuples(st.sampled_from(["Ada", "Bea", "Tobi", "a:b"]), st.text(st.characters(codec="utf-8"), max_size=6))
minutes = st.none() | st.integers(0, 50)


@st.composite
def conversations(draw: st.DrawFn) -> list[Conversation]:
    """Chats with names and times as odd as they come."""
    found = []
    for name in draw(st.lists(st.sampled_from(["a", "b:c", "x/y%", "", "bot:1"]), max_size=4, unique=True)):
        messages = tuple(
            Message(who, text.strip(), None if at is None else NOON + timedelta(minutes=at))
            for (who, text), at in draw(st.lists(st.tuples(said, minutes), max_size=8))
        )
        cut = draw(st.integers(0, 8))
        found += [
            Conversation(name, part, start) for part, start in ((messages[:cut], 0), (messages[cut:], cut)) if part
        ]
    return found


@given(conversations())
def test_any_chats_read_back_to_the_same_exchanges(tmp_path_factory: object, found: list[Conversation]) -> None:
    folder = tmp_path_factory.mktemp("back")  # type: ignore[attr-defined]
    want = [(one.context, one.response) for one in exchanges(found, "Ada")]
    if any(response for _, response in want):
        back = read_back(Brain(folder, found), folder)
        assert [(one.context, one.response) for one in exchanges(back, "Ada")] == want


def test_many_rows_take_the_memory_of_a_few_pieces(brain: Brain) -> None:
    import tracemalloc

    def endless(count: int) -> object:
        for number in range(count):
            yield chat(f"c{number}", ("Bea", "x" * 50), ("Ada", "y" * 50))

    source = brain.source()
    many = type(source)(source.person, source.personality, (), lambda: endless(20_000), source.export, source.preview)
    tracemalloc.start()
    total = sum(len(piece) for piece in in_pieces(brain_json(many)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total > 12 * PIECE_BYTES
    assert peak < 5 * PIECE_BYTES


def test_an_empty_brain_is_json_too(brain: Brain) -> None:
    brain.conversations.clear()
    whole = orjson.loads(b"".join(brain_json(brain.source())))
    assert whole["training_examples"] == []
    assert whole["personality_profile"]["facts"] == ["fixes clocks"]
    assert datetime.fromisoformat(whole["exported_at"]).tzinfo == UTC
