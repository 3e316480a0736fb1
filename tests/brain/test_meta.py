"""Instagram's and Messenger's JSON: mended text, the oldest first."""

from datetime import datetime
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.brain import reading
from tests.brain.reading import document
from twin.brain.importers import meta, pick
from twin.records import Conversation, Message

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)


def broken(text):
    """Return the text as the exporter writes it."""
    return text.encode("utf-8").decode("latin-1")


def export(*messages):
    """Return a file's content; ``messages`` are given the oldest first and written the newest first."""
    rows = [{"timestamp_ms": 1704825730000 + number, **row} for number, row in enumerate(messages)]
    return {"participants": [{"name": "Ana"}, {"name": "Beto"}], "messages": rows[::-1], "title": "Beto"}


def read(value):
    Path("message_1.json").write_bytes(orjson.dumps(value))
    return reading.read(meta, "message_1.json", "m")


def test_golden():
    data = export({"sender_name": broken("Zoë"), "content": broken("olé 👍")}, {"sender_name": "Ana", "content": "hi"})
    at = datetime(2024, 1, 9, 18, 42, 10)
    assert read(data) == (
        [Conversation("m", (Message("Zoë", "olé 👍", at), Message("Ana", "hi", at.replace(microsecond=1000))))],
        {},
    )
    assert pick(document("message_1.json"), orjson.dumps(data)) is meta


@given(st.lists(st.tuples(st.sampled_from(["Ana", "Zoë"]), texts), max_size=6))
def test_what_was_typed_comes_back(talk):
    rows = [{"sender_name": broken(who), "content": broken(text)} for who, text in talk]
    typed = [(who, text.strip()) for who, text in talk if text.strip() and not meta._APP_SPEAKS.fullmatch(text.strip())]
    found, _ = read(export(*rows))
    assert [(message.speaker, message.text) for one in found for message in one.messages] == typed


@pytest.mark.parametrize("text", ["plain", "日本", "naïve"])
def test_text_that_is_whole_stays(text):
    assert meta.mended(text) == text


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"sender_name": "Ana", "photos": [{"uri": "x.jpg"}]}, "media"),
        (
            {"sender_name": "Ana", "content": broken("Reacted ❤️ to your message ")},
            "Instagram's or Messenger's own message",
        ),
        ({"sender_name": "Ana", "content": "Liked a message"}, "Instagram's or Messenger's own message"),
        ({"sender_name": "Ana", "content": "Ana sent an attachment."}, "Instagram's or Messenger's own message"),
        ({"sender_name": "Ana", "content": "secret", "is_unsent": True}, "Instagram's or Messenger's own message"),
        ({"content": "whose?"}, "broken Instagram or Messenger message"),
    ],
)
def test_what_the_person_did_not_type(row, reason):
    assert read(export(row)) == ([], {reason: 1})


@pytest.mark.parametrize("text", ["Reacted badly to the news", "he liked a message of mine", "missed you"])
def test_words_like_the_apps_are_speech(text):
    assert read(export({"sender_name": "Ana", "content": text}))[0][0].messages[0].text == text


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
fields = st.fixed_dictionaries({}, optional=dict.fromkeys(("sender_name", "content", "timestamp_ms"), json_values))


@given(st.lists(json_values | fields, max_size=5))
def test_any_messages_are_read_or_counted(rows):
    found, skipped = read({"participants": [], "messages": rows})
    assert sum(len(one.messages) for one in found) + sum(skipped.values()) == len(rows)
