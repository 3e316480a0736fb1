"""Discord's data package: rows as packages of 2018 to 2026 hold them (github.com/purarue/discord_data, tests apart)."""

import csv
import io
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
from twin.brain.importers import discord_package, pick
from twin.brain.importers.discord import _MARK
from twin.dropped import Dropped
from twin.errors import UsageError
from twin.records import ME, Conversation, Message

CHANNEL = {"id": "502291754930929684", "type": "DM", "recipients": ["247424274304991233", "Deleted User"]}
FOLDER = "package/Messages/c502291754930929684"
typed = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")).filter(
    lambda text: not _MARK.search(text)
)


def sent(text, number=897870239797215243, **more):
    return {"ID": number, "Timestamp": "2021-10-13 15:35:46", "Contents": text, "Attachments": "", **more}


def as_csv(*rows, end="\r\n"):
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, ["ID", "Timestamp", "Contents", "Attachments"], lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def read(content, name="messages.json"):
    put(f"{FOLDER}/{name}", content)
    return reading.read(discord_package, f"{FOLDER}/{name}", "p")


def texts(found):
    return [message.text for one in found for message in one.messages]


AT = datetime(2021, 10, 13, 15, 35, 46)


def test_json():
    rows = [sent("my only 10/10 so far", 2), sent("", 3, Attachments="https://cdn.discordapp.com/x.jpg?ex=0"),
            sent("", 4), sent("hm <:NotLikeThis:237729324885606403>", 1)]  # fmt: skip
    assert read(rows) == (
        [Conversation("p", (Message(ME, "hm :NotLikeThis:", AT), Message(ME, "my only 10/10 so far", AT)))],
        {"media": 1, "Discord's own message": 1},
    )


def test_csv():
    rows = [sent('say "no", then\nsay yes', 2, Timestamp="2020-08-25 22:54:05.726000+00:00"), sent("é", 1),
            sent("", 3, Attachments="https://cdn.discordapp.com/x.jpg")]  # fmt: skip
    assert read(as_csv(*rows), "messages.csv") == (
        [Conversation("p", (
            Message(ME, "é", AT), Message(ME, 'say "no", then\nsay yes', datetime(2020, 8, 25, 22, 54, 5, 726000))
        ))],
        {"media": 1},
    )  # fmt: skip


def test_keys_in_small_letters():
    rows = [{key.lower(): value for key, value in sent("hi").items()}]
    assert texts(read(rows)[0]) == ["hi"]
    assert discord_package.sniff(document(f"{FOLDER}/messages.json"), orjson.dumps(rows))


def test_ids_tell_the_order_where_all_rows_have_one():
    rows = [sent("c", "30"), sent("b", 20), sent("a", 10)]
    assert texts(read(rows)[0]) == ["a", "b", "c"]
    assert texts(read([*rows, sent("d", "x")])[0]) == ["c", "b", "a", "d"]


@pytest.mark.parametrize("row", ["x", None, {}, sent(None), sent(5), {"ID": 1, "Timestamp": "2021-10-13 15:35:46"}])
def test_broken_rows(row):
    assert read([row, sent("hi")]) == ([Conversation("p", (Message(ME, "hi", AT),))], {"broken Discord message": 1})


def test_a_row_of_too_few_or_too_many_columns():
    data = b"ID,Timestamp,Contents,Attachments\n1,2021-10-13 15:35:46\n2,2021-10-13 15:35:46,hi,,,\n"
    assert read(data, "messages.csv") == (
        [Conversation("p", (Message(ME, "hi", AT),))],
        {"broken Discord message": 1},
    )


def partly(path):
    found = []
    with pytest.raises(UsageError) as caught:
        for one in discord_package.read(document(path), Dropped()):
            found.append(one)
    return texts(found), caught.value.message


def test_a_cut_file_keeps_what_it_has():
    put("messages.json", orjson.dumps([sent("b", 2), sent("a", 1), sent("c", 3)])[:-20])
    said, message = partly("messages.json")
    assert said == ["a", "b"]
    assert message.startswith("'messages.json' is broken JSON after 2 items")
    put("messages.csv", as_csv(sent("b", 2), sent("a", 1)) + b'3,x,"' + b"a" * 200_000)
    said, message = partly("messages.csv")
    assert said == ["a", "b"]
    assert message.startswith("'messages.csv' is broken CSV: field larger")


@given(st.lists(typed))
def test_what_was_typed_comes_back(said):
    rows = [sent(text, 1000 + number) for number, text in enumerate(said)]
    assert texts(read(rows[::-1])[0]) == [text.strip() for text in said if text.strip()]


@given(st.lists(typed.map(lambda text: text.replace("\r", ""))))
@pytest.mark.parametrize("end", ["\r\n", "\n"])
def test_what_was_typed_comes_back_from_csv(end, said):
    rows = [sent(text, 1000 + number) for number, text in enumerate(said)]
    found = texts(read(as_csv(*rows, end=end), "messages.csv")[0])
    assert found == [text.strip() for text in said if text.strip()]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
half_broken = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("ID", "Timestamp", "Contents", "Attachments"), json_values | st.text(max_size=4))
)


@given(st.lists(json_values | half_broken | half_broken.map(lambda row: sent("hi") | row), max_size=5))
def test_any_rows_are_read_or_counted(rows):
    found, skipped = read(orjson.dumps(rows, option=orjson.OPT_NON_STR_KEYS) if fits(rows) else [])
    assert sum(len(one.messages) for one in found) + sum(skipped.values()) == (len(rows) if fits(rows) else 0)


def fits(rows):
    """Say whether orjson writes them: integers of over 64 bits it does not."""
    try:
        return bool(orjson.dumps(rows))
    except TypeError:
        return False


@given(st.binary(max_size=60))
def test_any_csv_is_a_sentence(data):
    try:
        read(b"ID,Timestamp,Contents,Attachments\n" + data, "messages.csv")
    except UsageError as error:
        assert error.hint


@pytest.mark.parametrize("folder", ["messages/c502", "Messages/c502", "Wiadomości/c502", "messages/502"])
@pytest.mark.parametrize("zipped", [False, True])
def test_it_is_found_in_any_language_and_in_its_zip(folder, zipped):
    files = {f"{folder}/channel.json": CHANNEL, f"{folder}/messages.json": [sent("hi")],
             f"{folder[:-1]}9/channel.json": CHANNEL, f"{folder[:-1]}9/messages.json": []}  # fmt: skip
    if zipped:
        with zipfile.ZipFile("package.zip", "w") as archive:
            for name, value in files.items():
                archive.writestr(name, orjson.dumps(value))
        found = members(document("package.zip"))
    else:
        found = [put(name, value) for name, value in sorted(files.items())]
    ours = [one for one in found if one.path.name == "messages.json"]
    assert [pick(one, one.head()) for one in ours] == [discord_package] * 2
    assert [pick(one, one.head()) for one in found if one not in ours] == [None] * 2
    brain = load([Path("package.zip" if zipped else folder.split("/", maxsplit=1)[0])], "ana")
    assert [(message.speaker, message.text) for one in brain.conversations() for message in one.messages] == [
        ("ana", "hi")
    ]


def test_it_is_not_found_elsewhere():
    for name, value in (("messages.json", []), ("messages.json", {"Contents": 1}), ("other.json", [sent("hi")])):
        assert not discord_package.sniff(put(f"x/{name}", value), orjson.dumps(value))
    assert discord_package.sniff(put("messages.csv", as_csv(sent("hi"))), as_csv(sent("hi")))
    assert not discord_package.sniff(put("messages.csv", "Date,Text\n"), b"Date,Text\n")
    assert not discord_package.sniff(put("table.csv", as_csv(sent("hi"))), as_csv(sent("hi")))
