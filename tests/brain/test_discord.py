"""DiscordChatExporter's JSON, row by row as its JsonMessageWriter.cs writes it."""

from datetime import datetime
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.brain import reading
from tests.brain.reading import document, put
from twin.brain import load
from twin.brain.importers import discord, pick
from twin.dropped import Dropped
from twin.errors import UsageError
from twin.records import Conversation, Message

typed = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")).filter(
    lambda text: not discord._MARK.search(text)
)


def user(name, nickname=None, discriminator="0000", **more):
    return {
        "id": "434468647994523650", "name": name, "discriminator": discriminator, "nickname": nickname or name,
        "color": None, "isBot": False, "roles": [], "avatarUrl": "avatars/0.png", **more,
    }  # fmt: skip


def said(who, text, *, second=10, **more):
    return {
        "id": str(897616432739799082 + second), "type": "Default",
        "timestamp": f"2024-01-09T18:42:{second:02}.472+02:00", "timestampEdited": None, "callEndedTimestamp": None,
        "isPinned": False, "content": text, "author": user(who) if isinstance(who, str) else who, "attachments": [],
        "components": [], "embeds": [], "stickers": [], "reactions": [], "mentions": [], "inlineEmojis": [], **more,
    }  # fmt: skip


def export(*messages, name="Beto"):
    return {
        "guild": {"id": "0", "name": "Direct Messages", "iconUrl": "https://cdn.discordapp.com/embed/avatars/0.png"},
        "channel": {
            "id": "897616348878872660", "type": "DirectTextChat", "categoryId": None, "category": None, "name": name,
            "topic": None,
        },
        "dateRange": {"after": None, "before": None},
        "exportedAt": "2024-01-10T09:00:00+02:00",
        "messages": list(messages),
        "messageCount": len(messages),
    }  # fmt: skip


def read(value):
    put("Direct Messages - Beto [897].json", value)
    return reading.read(discord, "Direct Messages - Beto [897].json", "d")


def texts(found):
    return [(message.speaker, message.text) for one in found for message in one.messages]


def test_one_channel():
    at = datetime(2024, 1, 9, 18, 42, 10, 472000)  # the wall clock that the exporter wrote
    reply = said("beto", "yo", second=11, type="Reply", timestampEdited="2024-01-09T18:43:00+02:00",
                 reference={"type": "Default", "messageId": "1", "channelId": "2", "guildId": None})  # fmt: skip
    assert read(export(said("ana", "hi"), reply)) == (
        [Conversation("d", (Message("ana", "hi", at), Message("beto", "yo", at.replace(second=11))))],
        {},
    )


def test_a_name_is_the_accounts_in_every_server():
    one, other = user("ana", "Ana 🌵"), user("ana", "Boss of this server")
    assert texts(read(export(said(one, "a"), said(other, "b")))[0]) == [("ana", "a"), ("ana", "b")]


def test_of_two_accounts_with_one_name_each_keeps_its_number():
    rows = said(user("slada", discriminator="7077"), "a"), said(user("slada", discriminator="0001"), "b")
    assert texts(read(export(*rows))[0]) == [("slada#7077", "a"), ("slada#0001", "b")]


@pytest.mark.parametrize(
    ("author", "name"),
    [
        (user("Deleted User 2d4b7dbb"), "Deleted User 2d4b7dbb"),
        (user("deleted_user_f6d6f5", "Deleted User"), "deleted_user_f6d6f5"),
        ({"id": "43", "name": None}, "43"),
        ({}, "Deleted User"),
    ],
)
def test_who_left_has_a_name(author, name):
    assert texts(read(export(said(author, "bye")))[0]) == [(name, "bye")]


FORWARDED = {"timestamp": "2025-12-28T22:52:42.175+00:00", "timestampEdited": None, "content": "their words",
             "attachments": [], "embeds": [], "stickers": []}  # fmt: skip


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (said("ana", "Joined the server.", type="GuildMemberJoin"), "Discord's own message"),
        (said("ana", "Started a call that lasted 3 minutes.", type="Call"), "Discord's own message"),
        (said("ana", "Pinned a message.", type="ChannelPinnedMessage"), "Discord's own message"),
        (said("ana", "/play", type="20"), "Discord's own message"),  # a kind that the exporter has no name for
        (said(user("dyno", isBot=True), "beep"), "a bot's words"),
        (said("ana", "", reference={"messageId": "1"}, forwardedMessage=FORWARDED), "forward"),
        (said("ana", "", reference={"type": "Forward", "messageId": "1"}), "forward"),
        (said("ana", "", attachments=[{"id": "1", "url": "x.png", "fileName": "x.png", "fileSizeBytes": 3}]), "media"),
        (said("ana", "", stickers=[{"id": "1", "name": "wave", "format": "Lottie", "sourceUrl": "x"}]), "media"),
        (said("ana", "", embeds=[{"title": "gif", "url": "https://tenor.com/x", "description": ""}]), "media"),
        (said(None, "hi"), "broken Discord message"),
        ("x", "broken Discord message"),
    ],
)
def test_what_the_person_did_not_type(row, reason):
    assert read(export(row)) == ([], {reason: 1})


def test_a_link_keeps_its_words_and_not_its_preview():
    row = said("ana", "look https://x.org", embeds=[{"title": "X", "url": "https://x.org", "description": "theirs"}])
    assert texts(read(export(row))[0]) == [("ana", "look https://x.org")]


def test_marks_are_read_as_people_read_them():
    row = said("ana", "<@!5> <@6> <:NotLikeThis:237729324885606403> <a:dance:1> <3",
               mentions=[user("beto", "Beto", id="5"), "x"])  # fmt: skip
    assert texts(read(export(row))[0]) == [("ana", "@Beto <@6> :NotLikeThis: :dance: <3")]


def test_the_newest_first_is_turned():
    rows = [said("ana", str(number), second=number) for number in (3, 2, 2, 1)]
    assert [text for _, text in texts(read(export(*rows))[0])] == ["1", "2", "2", "3"]
    same = [said("ana", text, second=1) for text in "abc"]
    assert [text for _, text in texts(read(export(*same))[0])] == ["a", "b", "c"]


@pytest.mark.parametrize(("seconds", "kept"), [((1, 2, 3), "12"), ((3, 2, 1), "23"), ((1, 1, 1), "11")])
def test_a_stopped_export_keeps_what_it_has(seconds, kept):
    whole = orjson.dumps(export(*(said("ana", str(number), second=number) for number in seconds)))
    put("cut.json", whole[: whole.rindex(b'"content"')])
    found = []
    with pytest.raises(UsageError, match=r"'cut\.json' is broken JSON after 2 items"):
        for one in discord.read(document("cut.json"), Dropped()):
            found.append(one)
    assert texts(found) == [("ana", text) for text in kept]


@given(st.lists(st.tuples(st.sampled_from(["ana", "beto"]), typed)))
def test_what_was_typed_comes_back(talk):
    found, _ = read(export(*(said(who, text) for who, text in talk)))
    assert texts(found) == [(who, text.strip()) for who, text in talk if text.strip()]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
broken = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("type", "timestamp", "content", "author", "mentions", "reference"), json_values)
)
half_broken = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("id", "name", "discriminator", "isBot", "nickname"), json_values)
).map(lambda author: {"author": author, "mentions": [author], "type": "Reply", "content": "<@1>"})


@given(st.lists(json_values | broken.map(lambda row: said("ana", "hi") | row) | half_broken, max_size=5))
def test_any_messages_are_read_or_counted(rows):
    found, skipped = read(export(*rows))
    assert sum(len(one.messages) for one in found) + sum(skipped.values()) == len(rows)


@given(json_values)
def test_any_json_is_no_crash(value):
    assert read(orjson.dumps(value)) == ([], {})


def test_it_is_found_by_its_content():
    data = export(said("ana", "hi"), said("beto", "yo"))
    assert pick(put("brain/chat.json", data), orjson.dumps(data)[:60000]) is discord
    for other in ({"messages": [], "guild": 1, "channel": 2}, [data], {"name": "x", "messages": [{"type": "message"}]}):
        assert not discord.sniff(put("other.json", other), orjson.dumps(other))
    assert not discord.sniff(put("chat.txt", data), orjson.dumps(data))
    talk = next(load([Path("brain")], "ana").conversations())
    assert [message.text for message in talk.messages] == ["hi", "yo"]
