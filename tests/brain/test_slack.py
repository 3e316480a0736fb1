"""Slack's export: days as in github.com/houstondatavis/slack-export, newer keys as docs.slack.dev tells them."""

import os
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
from twin.brain.importers import pick, slack
from twin.dropped import Dropped
from twin.errors import UsageError
from twin.records import Conversation, Message

DAY = "export/general/2024-01-09.json"
characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")


def member(number, display, real="", handle="", **more):
    profile = {"display_name": display, "real_name": real, "email": "x@x.org"}
    return {
        "id": number,
        "team_id": "T1",
        "name": handle,
        "deleted": False,
        "profile": profile,
        "is_bot": False,
        **more,
    }


USERS = [member("U1", "Ana", "Ana Lima", "alima"), member("U2", "", "Beto Cruz", "beto"), member("U3", "", "", "cy"),
         member("U4", "Standup", is_bot=True), member("U5", "Gone", deleted=True)]  # fmt: skip
CHANNELS = [{"id": "C1", "name": "general"}, {"id": "C2", "name": "random"}]


def said(user, text, *, second=10, **more):
    return {"type": "message", "user": user, "text": text, "ts": f"17048257{second + 20:02}.000100", **more}


def read(rows, users=USERS, name=DAY):
    put("export/users.json", users)
    put("export/channels.json", CHANNELS)
    put(name, rows)
    return reading.read(slack, name, "s")


def texts(found):
    return [(message.speaker, message.text) for one in found for message in one.messages]


def test_one_day():
    join = said("U2", "<@U2|beto> has joined the channel", subtype="channel_join")
    at = datetime(2024, 1, 9, 18, 42, 10, 100)
    edited = said("U2", "yo", second=11, edited={"user": "U2", "ts": "1704825800.000000"})
    assert read([join, said("U1", "hi"), edited]) == (
        [Conversation("s", (Message("Ana", "hi", at), Message("Beto Cruz", "yo", at.replace(second=11))))],
        {"Slack's own message": 1},
    )


@pytest.mark.parametrize(
    ("user", "name"),
    [("U1", "Ana"), ("U2", "Beto Cruz"), ("U3", "cy"), ("U5", "Gone"), ("U9", "U9")],
)
def test_names(user, name):
    assert texts(read([said(user, "hi")])[0]) == [(name, "hi")]


def test_a_guest_has_the_name_in_the_message():
    guest = said("U9", "hi", user_profile={"display_name": "", "real_name": "Gil Guest", "name": "gil"})
    assert texts(read([guest])[0]) == [("Gil Guest", "hi")]
    namesake = said("U9", "hi", user_profile={"display_name": "Ana", "name": "ana9"})
    assert texts(read([namesake])[0]) == [("Ana (U9)", "hi")]


def test_namesakes_are_two_people():
    users = [member("U1", "Alex", handle="alex1"), member("U2", "Alex"), member("U3", "Ana")]
    rows = [said("U1", "a"), said("U2", "b"), said("U3", "<@U1>")]
    assert texts(read(rows, users)[0]) == [("Alex (alex1)", "a"), ("Alex (U2)", "b"), ("Ana", "@Alex (alex1)")]


def test_a_grids_users_have_another_file():
    put("grid/org_users.json", USERS)
    assert texts(read([said("U1", "hi")], name="grid/general/2024-01-09.json")[0]) == [("Ana", "hi")]


def test_without_lists_ids_stay():
    put("alone/general/2024-01-09.json", [said("U1", "hi <@U2> <#C2>")])
    assert texts(reading.read(slack, "alone/general/2024-01-09.json")[0]) == [("U1", "hi @U2 #C2")]


def test_changed_users_are_read_again():
    assert texts(read([said("U1", "hi")])[0]) == [("Ana", "hi")]
    put("export/users.json", orjson.dumps(USERS).replace(b'"Ana"', b'"Eva"'))  # of the same size
    os.utime("export/users.json", (1, 1))
    assert texts(reading.read(slack, DAY)[0]) == [("Eva", "hi")]


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("<@U1>: hi", "@Ana: hi"),
        ("<@U1|alima> hi", "@Ana hi"),
        ("<@U9|gil> hi <@U8>", "@gil hi @U8"),
        ("in <#C2|random> and <#C2|> and <#C2> and <#C9>", "in #random and #random and #random and #C9"),
        ("<!here|here> <!channel|@channel> <!everyone>", "@here @channel @everyone"),
        ("<!subteam^S1|@devs> <!subteam^S2>", "@devs @S2"),
        ("<!date^1392734382^{date}|Feb 18>", "Feb 18"),
        ("<https://x.org/?a=1&amp;b=2>", "https://x.org/?a=1&b=2"),
        ("see <http://x.org|x.org> and <mailto:a@x.org|a@x.org>", "see x.org and a@x.org"),
        ("<https://x.org|R&amp;D &lt;new&gt;>", "R&D <new>"),
        ("1 &lt; 2 &amp;&amp; &amp;lt; is &quot;less&quot;", "1 < 2 && &lt; is &quot;less&quot;"),
        ("&lt;@U1&gt;", "<@U1>"),
        ("<>", "<>"),
    ],
)
def test_markup_is_read_as_people_read_it(markup, text):
    assert texts(read([said("U1", markup)])[0]) == [("Ana", text)]


def test_emoji_whose_code_is_told_are_characters():
    emoji = [{"type": "emoji", "name": "wave", "unicode": "1f44b-1f3fd", "skin_tone": 4},
             {"type": "emoji", "name": "+1", "unicode": "1f44d"}, {"type": "emoji", "name": "shipit"},
             {"type": "emoji", "name": "bad", "unicode": "zz"},
             {"type": "emoji", "name": "big", "unicode": "ffffffff"}]  # fmt: skip
    blocks = [{"type": "rich_text", "elements": [{"type": "rich_text_section", "elements": emoji}, 5]}]
    row = said("U1", ":wave::skin-tone-4: :+1::shipit: :bad: :big: at 10:30:00", blocks=blocks)
    assert texts(read([row])[0]) == [("Ana", "👋🏽 👍:shipit: :bad: :big: at 10:30:00")]


OLD_FILE = {"id": "F1", "name": "x.txt", "initial_comment": {"user": "U1", "comment": "my words &amp; more"}}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (said("U1", "set the channel topic: x", subtype="channel_topic"), "Slack's own message"),
        (said("U1", "added an integration", subtype="bot_add", bot_id="B1"), "Slack's own message"),
        (said("USLACKBOT", "This message was deleted.", subtype="tombstone", hidden=True), "Slack's own message"),
        (said("U1", "", subtype="huddle_thread"), "Slack's own message"),
        (said("U1", "x", type="reply"), "Slack's own message"),
        (said("U1", "x", hidden=True), "Slack's own message"),
        (said(None, "deployed", subtype="bot_message", bot_id="B1", username="ci"), "a bot's words"),
        (said("U1", "sent by an app", bot_id="B1", bot_profile={"name": "app"}), "a bot's words"),
        (said("U4", "what did you do yesterday?"), "a bot's words"),
        (said("USLACKBOT", "reminder"), "a bot's words"),
        (said("U1", "", files=[{"id": "F1", "mimetype": "image/png"}], upload=True), "media"),
        (said("U1", "<@U1> uploaded a file: <x|y>", subtype="file_share", file={"id": "F1"}, upload=True), "media"),
        (said("U1", "<@U1> shared a file: <x|y>", subtype="file_share", file=OLD_FILE, upload=False), "media"),
        (said("U1", "", attachments=[{"is_share": True, "text": "their words"}]), "forward"),
        (said("U1", "", attachments=[{"text": "a preview"}]), "media"),
        (said(None, "whose?"), "broken Slack message"),
        ("x", "broken Slack message"),
    ],
)
def test_what_the_person_did_not_type(row, reason):
    assert read([row]) == ([], {reason: 1})


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (said("U1", "waves", subtype="me_message"), "waves"),
        (said("U1", "look", files=[{"id": "F1"}], upload=True), "look"),
        (said("U1", "look", subtype="file_share", files=[{"id": "F1"}]), "look"),
        (said("U1", "<@U1> uploaded a file: <x|y> and commented: my words &amp; more", subtype="file_share",
              file=OLD_FILE, upload=True), "my words & more"),
        (said("U1", "see this", attachments=[{"is_share": True, "text": "their words"}]), "see this"),
    ],
)  # fmt: skip
def test_what_the_person_typed(row, text):
    assert read([row]) == ([Conversation("s", (Message("Ana", text, datetime(2024, 1, 9, 18, 42, 10, 100)),))], {})


def test_a_thread_is_a_conversation_of_its_own():
    first, later = said("U1", "lunch?"), said("U2", "anybody here?", second=11)
    reply = {"thread_ts": first["ts"], "parent_user_id": "U1"}
    rows = [
        first | {"thread_ts": first["ts"], "reply_count": 2},
        later,
        said("U3", "sure", second=13, **reply),
        said("U2", "me too", second=12, subtype="thread_broadcast", root=first, **reply),
        said("U1", "yes", second=14),
        said("U2", "late", second=15, thread_ts="1704700000.000100"),
        said("U3", "answered on another day", second=16, thread_ts="1704825736.000100", reply_count=1),
    ]
    found, skipped = read(rows)
    assert [(one.id, [message.text for message in one.messages]) for one in found] == [
        ("s", ["anybody here?", "yes", "answered on another day"]),
        ("s/1704825730.000100", ["lunch?", "me too", "sure"]),
        ("s/1704700000.000100", ["late"]),
    ]
    assert skipped == {}


def test_messages_are_put_in_order_where_all_have_a_time():
    rows = [said("U1", "b", second=12), said("U1", "a", second=11)]
    assert texts(read(rows)[0]) == [("Ana", "a"), ("Ana", "b")]
    assert texts(read([*rows, said("U1", "c", ts=None)])[0]) == [("Ana", "b"), ("Ana", "a"), ("Ana", "c")]


def test_a_cut_day_keeps_what_it_has():
    put("2024-01-09.json", orjson.dumps([said("U1", "a"), said("U2", "b"), said("U1", "c")])[:-20])
    found = []
    with pytest.raises(UsageError, match=r"'2024-01-09\.json' is broken JSON after 2 items"):
        for one in slack.read(document("2024-01-09.json"), Dropped()):
            found.append(one)
    assert texts(found) == [("U1", "a"), ("U2", "b")]


def test_a_broken_list_of_users_is_a_sentence():
    with pytest.raises(UsageError, match=r"users\.json' is broken JSON"):
        read([said("U1", "hi")], b'[{"id": "U1"')


def escaped(text):
    """Return the text as Slack stores it (https://docs.slack.dev/messaging/formatting-message-text#escaping)."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


@given(st.lists(st.tuples(st.sampled_from(["U1", "U2"]), st.text(characters) | st.text("<>&;|@#!:amplt")), max_size=8))
def test_what_was_typed_comes_back(talk):
    found, _ = read([said(who, escaped(text)) for who, text in talk])
    names = {"U1": "Ana", "U2": "Beto Cruz"}
    assert texts(found) == [(names[who], text.strip()) for who, text in talk if text.strip()]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
KEYS = ("type", "subtype", "user", "text", "ts", "thread_ts", "blocks", "attachments", "file", "bot_id", "user_profile")
broken = st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS, json_values)).map(lambda row: said("U1", "hi") | row)


@given(st.lists(json_values | broken, max_size=5))
def test_any_messages_are_read_or_counted(rows):
    found, skipped = read(rows)
    assert sum(len(one.messages) for one in found) + sum(skipped.values()) == len(rows)


user_values = st.fixed_dictionaries({}, optional=dict.fromkeys(("id", "name", "profile", "is_bot"), json_values))


@given(json_values | st.lists(json_values | user_values, max_size=4))
def test_any_list_of_users_is_no_crash(users):
    found, skipped = read([said("U1", "hi <@U2>")], orjson.dumps(users))
    assert sum(len(one.messages) for one in found) + sum(skipped.values()) == 1


@pytest.mark.parametrize("zipped", ["", "Team Slack export Jan 1 2024 - Jan 9 2024/"])
def test_it_is_found_in_its_zip_and_in_its_folder(zipped):
    read([said("U1", "hi <@U2>"), said("U2", "yo", second=11)])
    with zipfile.ZipFile("team.zip", "w") as archive:
        for path in Path("export").rglob("*.json"):
            archive.write(path, f"{zipped}{path.relative_to('export')}")
    found = members(document("team.zip"))
    assert [one.path.name for one in found if pick(one, one.head()) is slack] == ["2024-01-09.json"]
    for source in ("team.zip", "export"):
        talk = next(load([Path(source)], "Ana").conversations())
        assert [(message.speaker, message.text) for message in talk.messages] == [
            ("Ana", "hi @Beto Cruz"),
            ("Beto Cruz", "yo"),
        ]


def test_it_is_not_found_elsewhere():
    rows = [said("U1", "hi")]
    for name, value in (("users.json", rows), ("2024-01-09.json", rows[0]), ("2024-01-09.json", [{"date": 1}])):
        assert not slack.sniff(put(f"x/{name}", value), orjson.dumps(value))
    assert pick(put("x/2024-01-09.json", rows), orjson.dumps(rows)) is slack
