"""Telegram Desktop's JSON: what was typed comes back, what was not is counted."""

from datetime import datetime
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.brain import reading
from tests.brain.reading import put
from twin.brain import load
from twin.brain.importers import pick, telegram
from twin.errors import UsageError
from twin.records import Conversation, Message

DATE = {"date": "2024-01-09T18:42:10", "date_unixtime": "1704825730"}


def said(who, text, **more):
    return {"id": 1, "type": "message", **DATE, "from": who, "from_id": "user1", "text": text, **more}


def chat(*messages, **more):
    return {"name": "Beto", "type": "personal_chat", "id": 7, "messages": list(messages), **more}


def read(value):
    data = value if isinstance(value, bytes) else orjson.dumps(value)
    put("result.json", data)
    return reading.read(telegram, "result.json", "t")


def test_one_chat():
    talk = [
        {"type": "service", "action": "phone_call"},
        said("Ana", "hi"),
        said("Beto", ["see ", {"type": "link", "text": "x.org"}, "!"]),
    ]
    assert read(chat(*talk)) == (
        [
            Conversation(
                "t",
                (
                    Message("Ana", "hi", datetime(2024, 1, 9, 18, 42, 10)),
                    Message("Beto", "see x.org!", datetime(2024, 1, 9, 18, 42, 10)),
                ),
            )
        ],
        {"Telegram's own message": 1},
    )


def test_all_chats_of_an_account():
    data = {
        "personal_information": {},
        "chats": {"about": "x", "list": [chat(said("Ana", "a")), 5, chat(said("Cy", "c"))]},
    }
    found, skipped = read(data)
    assert [(one.id, one.messages[0].text) for one in found] == [("t/0", "a"), ("t/2", "c")]
    assert skipped == {"broken Telegram chat": 1}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (said("Ana", "old news", forwarded_from="Cy"), "forward"),
        (said("Ana", "42", via_bot="@calc"), "a bot's words"),
        (said("Ana", "", photo="photos/1.jpg"), "media"),
        (said("Ana", None, media_type="sticker"), "media"),
        ("x", "Telegram's own message"),
    ],
)
def test_what_the_person_did_not_type(row, reason):
    assert read(chat(row)) == ([], {reason: 1})


def test_a_deleted_account_keeps_its_id():
    assert read(chat(said(None, "hi")))[0][0].messages[0].speaker == "user1"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
fields = st.fixed_dictionaries({}, optional=dict.fromkeys(("from", "text", "date", "from_id"), json_values))


@given(st.lists(json_values | fields.map(lambda row: {"type": "message", **row}), max_size=5))
def test_any_messages_are_read_or_counted(rows):
    found, skipped = read({"messages": rows})
    assert sum(len(one.messages) for one in found) + sum(skipped.values()) == len(rows)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["Ana", "Beto"]),
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
        )
    )
)
def test_what_was_typed_comes_back(talk):
    typed = [(who, text.strip()) for who, text in talk if text.strip()]
    found, _ = read(chat(*(said(who, text) for who, text in talk)))
    assert [(message.speaker, message.text) for one in found for message in one.messages] == typed


def test_it_is_found_by_its_content():
    for data in (chat(said("Ana", "hi")), {"personal_information": {}, "chats": {"list": [chat(said("Ana", "hi"))]}}):
        assert pick(put("result.json", data), orjson.dumps(data)[:60000]) is telegram
    put("brain/result.json", chat(said("Ana", "hi"), said("Beto", "yo")))
    talk = next(load([Path("brain")], "Ana").conversations())
    assert [message.text for message in talk.messages] == ["hi", "yo"]


@pytest.mark.parametrize("data", [b'{"messages": [{"type": "mess', b"{" * 5000])
def test_broken_json(data):
    with pytest.raises(UsageError, match=r"'result\.json' is broken JSON"):
        read(data)
