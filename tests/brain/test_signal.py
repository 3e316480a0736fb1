"""Signal's own export and signal-export's: what was typed comes back, what was not is counted.

Signal's ``main.jsonl`` is written by libsignal (rust/message-backup/src/json/exporter.rs) from backup.proto;
signal-export's ``data.json`` and ``chat.md`` by ``Message.dict_str`` and ``to_md`` of sigexport/models.py.
"""

import json
import zipfile
from datetime import datetime
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.brain import reading
from tests.brain.reading import document, put
from twin.brain import load
from twin.brain.document import members
from twin.brain.importers import pick, signal
from twin.records import ME, Conversation, Message

ACI = "EREREREREREREREREREREQ=="
FIRST_LINES = [
    {"version": "1", "backupTimeMs": "1715636551000", "mediaRootBackupKey": "q6urq6s="},
    {"account": {"profileKey": "YQKRq+3D", "givenName": "Ana", "accountSettings": {"readReceipts": True}}},
    {"recipient": {"id": "1", "self": {"avatarColor": "A130"}}},
    {"recipient": {"id": "2", "releaseNotes": {}}},
    {"recipient": {"id": "3", "contact": {"aci": ACI, "e164": "15550001111", "profileGivenName": "Beto"}}},
    {"recipient": {"id": "4", "group": {"masterKey": "AA==", "snapshot": {"title": {"title": "Friends"}}}}},
    {"chat": {"id": "7", "recipientId": "3"}},
    {"chat": {"id": "8", "recipientId": "4"}},
]
AT = datetime(2024, 1, 9, 18, 42, 10, 500_000)
MS = 1704825730500


def item(author, chat="7", **content):
    """Return a line: a text as the app writes it, or whatever is given instead."""
    if "text" in content:
        body, ranges = content.pop("text"), content.pop("ranges", None)
        text = {"body": body, **({"bodyRanges": ranges} if ranges else {})}
        content["standardMessage"] = {"text": text}
    way = {"outgoing": {"dateReceived": str(MS)}} if author == "1" else {"incoming": {"dateReceived": str(MS)}}
    return {"chatItem": {"chatId": chat, "authorId": author, "dateSent": str(MS), **way, **content}}


def lines(*rows):
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


def app(*items, first=FIRST_LINES):
    put("main.jsonl", lines(*first, *items))
    return reading.read(signal, "main.jsonl", "s")


def test_the_apps_export():
    found, skipped = app(
        item("3", text="hi"),
        item("1", "8", text="hello all"),
        item("1", text="yo 👋"),
        item("3", "8", text="hey"),
    )
    assert found == [
        Conversation("s/7", (Message("Beto", "hi", AT), Message(ME, "yo 👋", AT))),
        Conversation("s/8", (Message(ME, "hello all", AT), Message("Beto", "hey", AT))),
    ]
    assert not skipped


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (item("3", updateMessage={"simpleUpdate": {"type": "IDENTITY_UPDATE"}}), "Signal's own message"),
        (item("3", updateMessage={"individualCall": {"type": "AUDIO_CALL"}}), "Signal's own message"),
        (item("3", remoteDeletedMessage={}), "Signal's own message"),
        (item("2", text="What's new in Signal"), "Signal's own message"),
        (item("3"), "Signal's own message"),
        (item("3", stickerMessage={"sticker": {"emoji": "🐟"}}), "media"),
        (item("3", viewOnceMessage={}), "media"),
        (item("3", contactMessage={"contact": {}}), "media"),
        (item("3", poll={"question": "when?"}), "media"),
        (item("3", standardMessage={"attachments": [{"pointer": {"contentType": "image/png"}}]}), "media"),
        (item("3", directStoryReplyMessage={"emoji": "❤️"}), "reaction"),
        ({"chatItem": 5}, "Signal's own message"),
        ([], "broken Signal message"),
    ],
)
def test_what_nobody_typed_in_the_app(row, reason):
    assert app(row) == ([], {reason: 1})


def test_an_edited_message_is_its_last_version():
    edited = item("1", text="first", revisions=[item("1", text="fisrt")["chatItem"]])
    assert app(edited)[0][0].messages == (Message(ME, "first", AT),)


def test_a_reply_to_a_story_is_speech_and_a_quote_is_not():
    story = item("1", directStoryReplyMessage={"textReply": {"text": {"body": "nice"}}})
    quote = item("3", standardMessage={"quote": {"authorId": "1", "text": {"body": "nice"}}, "text": {"body": "thx"}})
    assert [said.text for said in app(story, quote)[0][0].messages] == ["nice", "thx"]


def test_mentions_get_their_names():
    # Nought is not written, so a range without a start is at the beginning; 😀 is two UTF-16 units.
    ranges = [{"start": 5, "length": 1, "mentionAci": ACI}, {"length": 1, "mentionAci": ACI}, {"start": 7, "length": 1}]
    ranges += [
        {"start": -1, "length": 1, "mentionAci": ACI},
        {"start": "0", "mentionAci": ACI},
        {"start": 8, "length": 1, "mentionAci": "unknown"},
        {"start": 99, "length": 1, "mentionAci": ACI},
    ]
    assert (
        app(item("1", text="\ufffc 😀 \ufffc, \ufffc!", ranges=ranges))[0][0].messages[0].text == "@Beto 😀 @Beto, @!"
    )


@pytest.mark.parametrize(
    ("contact", "name"),
    [
        ({"nickname": {"given": "B", "family": "D"}, "systemGivenName": "Beto", "e164": "1555"}, "B D"),
        ({"systemGivenName": "Beto", "systemFamilyName": "Diaz", "profileGivenName": "b"}, "Beto Diaz"),
        ({"profileFamilyName": "Diaz", "e164": "1555"}, "Diaz"),
        ({"e164": "15550001111", "username": "beto.01"}, "+15550001111"),
        ({"username": "beto.01"}, "beto.01"),
        ({"nickname": 3, "e164": True, "username": []}, "Unknown 3"),
    ],
)
def test_who_somebody_is(contact, name):
    first = [{"recipient": {"id": "3", "contact": contact}}]
    assert app(item("3", text="hi"), first=first)[0][0].messages[0].speaker == name


def test_a_cut_export_keeps_what_is_whole():
    put("main.jsonl", lines(*FIRST_LINES, item("3", text="hi")) + lines(item("3", text="hello"))[:40])
    found, skipped = reading.read(signal, "main.jsonl")
    assert [said.text for said in found[0].messages] == ["hi"]
    assert skipped == {"broken Signal message": 1}


def entry(sender, body, **more):
    """Return a message as signal-export dumps it: two spaces end each text."""
    return {
        "date": "2024-01-09T18:42:10.500000",
        "sender": sender,
        "body": body + "  ",
        "quote": "",
        "sticker": "",
        "reactions": [],
        "attachments": [],
        **more,
    }


def data_json(*rows):
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return put("Beto/data.json", text)


def read_data_json(*rows):
    data_json(*rows)
    return reading.read(signal, "Beto/data.json", "s")


def test_data_json():
    found, skipped = read_data_json(
        entry("Beto", "hi\nthere", reactions=[["Me", "👍"]]),
        entry("Me", "look", quote="\n\n> hi\n\n", attachments=[{"name": "a.jpg", "path": "media/a.jpg"}]),
        entry("No-Sender", "who am I?"),
        entry(None, "and I?"),
    )
    assert found == [
        Conversation(
            "s",
            (
                Message("Beto", "hi\nthere", AT),
                Message(ME, "look", AT),
                Message("Unknown", "who am I?", AT),
                Message("Unknown", "and I?", AT),
            ),
        )
    ]
    assert not skipped


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (entry("Beto", "", attachments=[{"name": "a.jpg", "path": "media/a.jpg"}]), "media"),
        (entry("Beto", "", sticker={"emoji": "🐟", "id": "1"}), "media"),
        (entry("Beto", ""), "Signal's own message"),  # a group's or a timer's change
        (entry("Beto", "old", deleted=True), "Signal's own message"),
        (entry("Me", "Outgoing voice call (accepted, 1m 3s)"), "Signal's own message"),
        (entry("Beto", "Missed video call"), "Signal's own message"),
        (entry("Beto", "☎ 5 min", call=True), "Signal's own message"),
        (entry(5, "hi"), "broken Signal message"),
        ({**entry("Beto", "x"), "body": None}, "broken Signal message"),
        ([1], "broken Signal message"),
    ],
)
def test_what_nobody_typed_in_data_json(row, reason):
    assert read_data_json(row) == ([], {reason: 1})


CHAT_MD = """[2024-01-09 18:42:10] Beto: hi
there  
(- Me: 👍 -)

[2024-01-09 18:42:11] Me: 

> hi
> there

see: this![a b.jpg](./media/2024_a.jpg)  

[2024-01-09 18:42:12] Beto: (This message was deleted)

[2024-01-09 18:42:13] Beto:   [sticker](../exported_stickers/p/1.webp)  

[2024-01-09 18:42:14] Beto: Missed voice call  

[2019-05-29, 15:04] Me: [a link](https://x.org) of old  

"""  # noqa: W291


def test_chat_md_alone():
    put("Beto/chat.md", CHAT_MD)
    found, skipped = reading.read(signal, "Beto/chat.md", "s")
    assert found == [
        Conversation(
            "s",
            (
                Message("Beto", "hi\nthere", datetime(2024, 1, 9, 18, 42, 10)),
                Message(ME, "see: this", datetime(2024, 1, 9, 18, 42, 11)),
                Message(ME, "[a link](https://x.org) of old", datetime(2019, 5, 29, 15, 4)),
            ),
        )
    ]
    assert skipped == {"Signal's own message": 2, "media": 1}


def test_chat_md_beside_data_json_is_a_copy():
    data_json(entry("Beto", "hi"), entry("Me", "yo"))
    put("Beto/chat.md", "[2024-01-09 18:42:10] Beto: hi  \n\n[2024-01-09 18:42:10] Me: yo  \n\n")
    assert reading.read(signal, "Beto/chat.md") == ([], {"copy of a Signal chat": 1})
    with zipfile.ZipFile("all.zip", "w") as made:
        for name in ("chat.md", "data.json"):
            made.write(f"Beto/{name}", f"signal/Beto/{name}")
    inside = members(document("all.zip"))
    assert [pick(one, one.head()) for one in inside] == [signal, signal]
    talks = list(load([Path("all.zip")], "Ana").conversations())
    assert [[(said.speaker, said.text) for said in talk.messages] for talk in talks] == [
        [("Beto", "hi"), ("Ana", "yo")]
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("main.jsonl", lines(*FIRST_LINES, item("3", text="hi"))),
        ("data.json", json.dumps(entry('B"eto', "x" * 70_000), ensure_ascii=False)),
        ("chat.md", CHAT_MD),
    ],
)
def test_they_are_found_by_their_first_line(name, content):
    source = put(name, content)
    assert pick(source, source.head()) is signal


@pytest.mark.parametrize(
    ("name", "content"),
    [("notes.md", CHAT_MD), ("chat.md", "# A chat\n"), ("data.json", '{"date": "2024-01-09"}'), ("main.jsonl", "{}\n")],
)
def test_others_are_not_claimed(name, content):
    source = put(name, content)
    assert not signal.sniff(source, source.head())


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufffc"), min_size=1)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["7", "8"]), texts), max_size=6))
def test_what_was_typed_comes_back(talk):
    typed = [(ME if mine else "Beto", chat, text.strip()) for mine, chat, text in talk if text.strip()]
    found, skipped = app(*(item("1" if mine else "3", chat, text=text) for mine, chat, text in talk))
    for chat in ("7", "8"):
        back = [(said.speaker, said.text) for one in found if one.id == f"s/{chat}" for said in one.messages]
        assert back == [(who, text) for who, where, text in typed if where == chat]
    assert sum(skipped.values()) == len(talk) - len(typed)
    found, skipped = read_data_json(*(entry("Me" if mine else "Beto", text) for mine, _, text in talk))
    assert [(said.speaker, said.text) for one in found for said in one.messages] == [
        (who, what) for who, _, what in typed
    ]
    assert sum(skipped.values()) == len(talk) - len(typed)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=3) | st.just("1"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["text", "body", "start", "mentionAci", "self", "contact"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)
items = st.dictionaries(
    st.sampled_from(["chatId", "authorId", "dateSent", "standardMessage", "outgoing", "directStoryReplyMessage"]),
    values,
).map(lambda row: {"standardMessage": {"text": {"body": "x", "bodyRanges": row.get("chatId")}}, **row})
keys = ("id", "self", "contact", "releaseNotes", "nickname", "aci")
recipients = st.dictionaries(st.sampled_from(keys), values).map(lambda row: {"recipient": row})


@given(st.lists(items, max_size=5), st.lists(recipients | st.just({"chat": 5}), max_size=3))
def test_any_items_are_read_or_counted(rows, first):
    found, skipped = app(*({"chatItem": row} for row in rows), first=first)
    assert sum(len(one.messages) for one in found) + sum(skipped.values()) == len(rows)


fields = st.dictionaries(st.sampled_from(["date", "sender", "body", "attachments", "sticker", "deleted"]), values)


@given(st.lists(values | fields, max_size=6))
def test_any_messages_are_read_or_counted(rows):
    found, skipped = read_data_json(*rows)
    assert sum(len(one.messages) for one in found) + sum(skipped.values()) == len(rows)


md_lines = st.sampled_from(
    [*CHAT_MD.split("\n"), "[", "![](./media/", "(- -)", "> ", "\ufffc", "[2024-13-99 99:99] Me: x"]
)


@given(st.lists(md_lines, max_size=12))
def test_any_order_of_lines_is_read_or_counted(some):
    put("chat.md", "\n".join(["[2024-01-09 18:42:10] Me: x", *some]))
    found, skipped = reading.read(signal, "chat.md")
    begun = 1 + sum(line.startswith("[20") for line in some)
    assert sum(len(one.messages) for one in found) + sum(skipped.values()) == begun
