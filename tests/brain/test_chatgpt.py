"""ChatGPT's export: nodes as github.com/mohamed-chs/convoviz, docs/dev/chatgpt-spec.md tells them."""

from datetime import datetime
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.brain import reading
from tests.brain.reading import document, put
from twin.brain import load
from twin.brain.importers import chatgpt, pick
from twin.dropped import Dropped
from twin.errors import UsageError
from twin.records import ME, Conversation, Message

AT = 1704825730.0
OWN, BRANCH = "ChatGPT's own message", "a branch of a ChatGPT conversation"
typed = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")).filter(
    lambda text: not chatgpt._SOURCE.search(text)
)


def told(role, *parts, kind="text", at=AT, recipient="all", content=None, **metadata):
    return {
        "id": "m", "author": {"role": role, "name": None, "metadata": {}}, "create_time": at, "update_time": None,
        "content": content or {"content_type": kind, "parts": list(parts)}, "status": "finished_successfully",
        "end_turn": True, "weight": 1.0, "metadata": metadata, "recipient": recipient, "channel": None,
    }  # fmt: skip


def tree(nodes, current, **more):
    """Return a conversation; ``nodes`` maps a key to its parent and message."""
    mapping = {
        key: {
            "id": key, "message": message, "parent": parent,
            "children": [other for other, (above, _) in nodes.items() if above == key],
        }
        for key, (parent, message) in nodes.items()
    }  # fmt: skip
    return {"title": "x", "create_time": AT, "update_time": AT, "mapping": mapping, "current_node": current, **more}


def chain(*messages):
    """Return a conversation of one branch below an empty root, as most are."""
    nodes = {"root": (None, None)}
    for number, message in enumerate(messages):
        nodes[f"n{number}"] = (list(nodes)[-1], message)
    return tree(nodes, list(nodes)[-1])


def read(*talks):
    put("conversations.json", list(talks))
    return reading.read(chatgpt, "conversations.json", "c")


def texts(found):
    return [(message.speaker, message.text) for one in found for message in one.messages]


def test_one_conversation():
    talk = chain(told("system", "", is_visually_hidden_from_conversation=True), told("user", "hi"),
                 told("assistant", "Hello!", at=AT + 1.5))  # fmt: skip
    at = datetime(2024, 1, 9, 18, 42, 10)
    said = (Message(ME, "hi", at), Message("ChatGPT", "Hello!", at.replace(second=11, microsecond=500000)))
    assert read(5, talk) == ([Conversation("c/1", said)], {"broken ChatGPT conversation": 1, OWN: 1})


def test_branches_that_were_left_are_counted_once():
    nodes = {
        "root": (None, None),
        "typo": ("root", told("user", "waht?")),
        "answer": ("typo", told("assistant", "You mean what?")),
        "asked": ("root", told("user", "what?")),
        "first": ("asked", told("assistant", "This.")),
        "second": ("asked", told("assistant", "That.")),
    }
    put("conversations.json", [tree(nodes, "second")])
    dropped = Dropped(BRANCH)
    found = list(chatgpt.read(document("conversations.json"), dropped))
    assert texts(found) == [(ME, "what?"), ("ChatGPT", "That.")]
    assert dict(dropped.counts) == {BRANCH: 3}
    assert [text for _, text in dropped.listed] == ["waht?", "You mean what?", "This."]


@pytest.mark.parametrize("current", [None, "gone", 5, ["second"]])
def test_without_a_current_node_the_newest_branch_is_read(current):
    nodes = {
        "asked": ("no such root", told("user", "what?")),
        "second": ("asked", told("assistant", "That.", at=AT + 2)),
        "first": ("asked", told("assistant", "This.", at=AT + 1)),
        "unknown": ("asked", told("assistant", "When?", at=None)),
    }
    assert read(tree(nodes, current)) == (
        [Conversation("c/0", (
            Message(ME, "what?", datetime(2024, 1, 9, 18, 42, 10)),
            Message("ChatGPT", "That.", datetime(2024, 1, 9, 18, 42, 12)),
        ))],
        {BRANCH: 2},
    )  # fmt: skip


def test_without_times_the_last_branch_is_read():
    nodes = {key: (None, told("user", key, at=None)) for key in "abc"}
    found, skipped = read(tree(nodes, None))
    assert found == [Conversation("c/0", (Message(ME, "c", None),))]
    assert skipped == {BRANCH: 2}


@pytest.mark.parametrize("current", ["b", None])
def test_a_circle_ends(current):
    nodes = {"a": ("b", told("user", "a")), "b": ("a", told("assistant", "b"))}
    found, skipped = read(tree(nodes, current))
    assert texts(found) == [(ME, "a"), ("ChatGPT", "b")]
    assert skipped == {}


def test_ten_thousand_nodes_in_a_row():
    said = [told(("user", "assistant")[number % 2], str(number), at=None) for number in range(10_000)]
    mapping = {
        str(number): {"id": str(number), "message": one, "parent": str(number - 1), "children": [str(number + 1)]}
        for number, one in enumerate(said)
    }
    found, skipped = read({"mapping": mapping, "current_node": "9999"})
    assert [text for _, text in texts(found)] == [str(number) for number in range(10_000)]
    assert skipped == {}


IMAGE = {"content_type": "image_asset_pointer", "asset_pointer": "sediment://file_1", "width": 1, "height": 1}
VOICE = {"content_type": "audio_transcription", "text": "said aloud", "direction": "in", "decoding_id": None}
SOUND = {"content_type": "audio_asset_pointer", "asset_pointer": "sediment://file_2", "format": "wav"}


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (told("system", "You are ChatGPT"), OWN),
        (told("tool", "result", recipient="assistant"), OWN),
        (told("user", "hidden", is_visually_hidden_from_conversation=True), OWN),
        (told("assistant", "search('x')", recipient="web.run"), OWN),
        (told("assistant", content={"content_type": "code", "language": "python", "text": "1"}), OWN),
        (told("assistant", content={"content_type": "thoughts", "thoughts": [{"summary": "x", "content": "y"}]}), OWN),
        (told("assistant", content={"content_type": "reasoning_recap", "content": "Thought for 5s"}), OWN),
        (told("user", content={"content_type": "user_editable_context", "user_profile": "x"}), OWN),
        (told("assistant", ""), OWN),
        (told("user", content={"content_type": "text", "parts": "hi"}), OWN),
        (told("user", IMAGE, "", kind="multimodal_text"), "media"),
        (told("user", SOUND, kind="multimodal_text"), "media"),
        (told("user", "x") | {"author": None}, "broken ChatGPT message"),
        (told("user", "x") | {"content": "x"}, "broken ChatGPT message"),
        ("x", "broken ChatGPT message"),
    ],
)
def test_what_the_person_did_not_type(message, reason):
    assert read(chain(message)) == ([], {reason: 1})


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ((IMAGE, "what is this?"), "what is this?"),
        ((VOICE, SOUND), "said aloud"),
        (("one", 5, None, {"text": "not ours"}, "two"), "one\ntwo"),
    ],
)
def test_parts(parts, text):
    assert texts(read(chain(told("user", *parts, kind="multimodal_text")))[0]) == [(ME, text)]


def test_marks_of_sources_are_no_words():
    answer = "Yes.\ue200cite\ue202turn0search0\ue201 No.【12†L1-L3】"
    assert texts(read(chain(told("assistant", answer)))[0]) == [("ChatGPT", "Yes. No.")]


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), typed)))
def test_what_was_typed_comes_back(talk):
    found, _ = read(chain(*(told(role, text) for role, text in talk)))
    names = {"user": ME, "assistant": "ChatGPT"}
    assert texts(found) == [(names[role], text.strip()) for role, text in talk if text.strip()]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
MESSAGE_KEYS = ("author", "create_time", "content", "recipient", "metadata")
messages = json_values | st.fixed_dictionaries({}, optional=dict.fromkeys(MESSAGE_KEYS, json_values)).map(
    lambda row: told("user", "hi") | row
)
keys = st.sampled_from("abcd")
nodes = json_values | st.fixed_dictionaries({"message": messages, "parent": keys | json_values})


@given(st.dictionaries(keys, nodes), keys | json_values)
def test_any_tree_is_read_or_counted(mapping, current):
    found, skipped = read({"mapping": mapping, "current_node": current})
    held = [one for one in mapping.values() if not isinstance(one, dict) or one.get("message") is not None]
    assert sum(len(one.messages) for one in found) + sum(skipped.values()) == len(held)


@given(json_values)
def test_any_json_is_no_crash(value):
    put("conversations.json", orjson.dumps(value))
    found, skipped = reading.read(chatgpt, "conversations.json")
    assert found == []
    assert sum(skipped.values()) == (len(value) if isinstance(value, list) else 0)


@pytest.mark.parametrize("name", ["conversations.json", "conversations-000.json"])
def test_it_is_found_by_its_content(name):
    data = [chain(told("user", "hi"), told("assistant", "Hello!"))]
    assert pick(put(f"brain/{name}", data), orjson.dumps(data)[:60000]) is chatgpt
    others = ({"title": "x", "mapping": {}, "message": 1}, [{"id": "1", "conversation_id": "2", "title": "shared"}],
              [{"uuid": "1", "chat_messages": [{"text": '{"mapping": {"message": 1, "parent": 2}}'}]}])  # fmt: skip
    for other in others:
        assert not chatgpt.sniff(put("other.json", other), orjson.dumps(other))
    talk = next(load([Path("brain")], "Ana").conversations())
    assert [(message.speaker, message.text) for message in talk.messages] == [("Ana", "hi"), ("ChatGPT", "Hello!")]


def test_a_cut_export_keeps_what_it_has():
    data = orjson.dumps([chain(told("user", "a")), chain(told("user", "b"))])
    put("conversations.json", data[:-200])
    found = []
    with pytest.raises(UsageError, match=r"'conversations\.json' is broken JSON after 1 items"):
        for one in chatgpt.read(document("conversations.json"), Dropped()):
            found.append(one)
    assert texts(found) == [(ME, "a")]
