"""Tables: CSV as RFC 4180 and spreadsheets write it, JSONL as https://jsonlines.org has it; messages and exchanges."""

import csv
import io
import itertools
import json
from collections import defaultdict
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.brain.reading import document, put, whole
from twin.brain import load
from twin.brain.importers import pick, table
from twin.dropped import Dropped
from twin.errors import UsageError
from twin.records import ME, Conversation, Message

AT = datetime(2024, 3, 5, 21, 14)


def lines(*rows):
    return b"".join((row if isinstance(row, bytes) else orjson.dumps(row)) + b"\n" for row in rows)


def read(content, file="t.jsonl", columns=()):
    """Return the conversations of a file, whole again, and everything that was left out."""
    put(file, content)
    dropped = Dropped()
    return whole(table.read(replace(document(file, "t"), columns=columns), dropped)), dropped


def said(content, file="t.jsonl", columns=()):
    found, _ = read(content, file, columns)
    return [(one.id, message.speaker, message.text) for one in found for message in one.messages]


def claims(content, file, columns=()):
    one = replace(put(file, content), columns=columns)
    return pick(one, one.head()) is table


# ---------------------------------------------------------------- messages and exchanges

CHAT = "speaker,text,at,conversation\nAna,hi,2024-03-05 21:14,c1\nBeto,yo,2024-03-05T21:14:00Z,c1\nAna,bye,,c2\n"


def test_messages_of_a_csv():
    assert read(CHAT, "t.csv")[0] == [
        Conversation("t/c1", (Message("Ana", "hi", AT), Message("Beto", "yo", AT))),
        Conversation("t/c2", (Message("Ana", "bye"),)),
    ]


def test_messages_of_a_jsonl():
    content = lines({"sender": "Ana", "body": " hi ", "timestamp": 1709673240, "x": [1]}, {"sender": 7, "body": "yo"})
    assert read(content)[0] == [Conversation("t", (Message("Ana", "hi", AT), Message("7", "yo")))]


def test_exchanges():
    rows = [
        {"conversation": "c", "context": "hungry?", "response": "always", "at": "2024-03-05T21:14:00"},
        {"conversation": "c", "context": "", "response": "and you?", "at": None},
        {"conversation": "c", "context": "me too", "response": None},
        {"conversation": "d", "context": "hi", "response": "yo", "contact": "Beto"},
    ]
    assert read(lines(*rows))[0] == [
        Conversation(
            "t/c",
            (
                Message("Someone", "hungry?", AT),
                Message(ME, "always", AT),
                Message(ME, "and you?"),
                Message("Someone", "me too"),
            ),
        ),
        Conversation("t/d", (Message("Beto", "hi"), Message(ME, "yo"))),
    ]


@pytest.mark.parametrize("file", ["t.csv", "t.jsonl"])
def test_exchanges_without_a_chat_or_a_time_stand_alone(file):
    content = lines({"prompt": "a", "reply": "b"}, {"prompt": "c", "reply": "d"})
    content = content if file == "t.jsonl" else "Prompt,Reply\na,b\nc,d\n"
    first = 1 if file == "t.jsonl" else 2
    assert [(one.id, [message.text for message in one.messages]) for one in read(content, file)[0]] == [
        (f"t/{first}", ["a", "b"]),
        (f"t/{first + 1}", ["c", "d"]),
    ]
    assert len(read(lines({"prompt": "a", "reply": "b", "date": None}, {"prompt": "c", "reply": "d"}))[0]) == 1


def test_what_is_left_out_is_counted_with_its_line():
    content = lines(
        {"speaker": "Ana", "text": "hi"},
        b"{broken",
        {"speaker": "Ana", "text": ["hi"]},
        {"speaker": "", "text": "who?"},
        [1],
        b"",
        {"speaker": "Ana", "text": "when?", "at": "soon"},
    )
    found, dropped = read(content)
    assert [message for one in found for message in one.messages] == [Message("Ana", "hi"), Message("Ana", "when?")]
    assert dropped.counts == {
        "broken line": 2,
        "row without text": 1,
        "row without a speaker": 1,
        "row with an unreadable date": 1,
    }
    assert list(dropped.problems) == [
        "'t.jsonl' has a broken line (the first is line 2).",
        "'t.jsonl' has a row with an unreadable date (the first is line 7).",
    ]
    watching = Dropped("broken line")
    list(table.read(document("t.jsonl", "t"), watching))
    assert [where for where, _ in watching.listed] == ["t:2", "t:5"]


def test_a_speaker_can_not_be_the_mark_for_me():
    assert said(lines({"speaker": ME, "text": "a\0b"})) == [("t", "me", "ab")]


# ---------------------------------------------------------------- columns


@pytest.mark.parametrize(
    ("header", "file"),
    [
        ("date,username,message", "whatstk.csv"),  # whatstk-to-csv
        ("CONVERSATION ID,CONVERSATION TITLE,FROM,SENDER PROFILE URL,TO,DATE,SUBJECT,CONTENT,FOLDER", "messages.csv"),
        ("Timestamp;Sender;Content", "chatpack.csv"),
        ("Sent At\tAuthor Name\tMessage Text", "x.tsv"),
        ("CONTEXT;RESPONSE", "x.csv"),
        ('"speaker","text"', "X.CSV"),
        ("sep=;\nspeaker;text", "excel.csv"),
    ],
)
def test_common_columns_are_known(header, file):
    assert claims(f"\ufeff{header}\r\n", file)


def test_other_languages_need_a_mapping():
    content = "von;nachricht;wann\nAna;hallo;05.03.2024 21:14\n"
    mine = (("speaker", "von"), ("text", "Nachricht"), ("at", "wann"), ("conversation", "not there"))
    assert not claims(content, "t.csv")
    assert claims(content, "t.csv", mine)
    assert read(content, "t.csv", mine)[0] == [Conversation("t", (Message("Ana", "hallo", AT),))]


def test_a_mapping_goes_before_the_common_names():
    row = {"from": "Ana", "name": "Ana B", "text": "raw", "clean": "good", "context": "a", "response": "b"}
    assert said(lines(row)) == [("t/1", "Someone", "a"), ("t/1", ME, "b")]
    assert said(lines(row), columns=(("speaker", "name"), ("text", "clean"))) == [("t", "Ana B", "good")]
    assert said(lines(row), columns=(("context", "text"), ("response", "clean"))) == [
        ("t/1", "Someone", "raw"),
        ("t/1", ME, "good"),
    ]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("chatml.jsonl", lines({"id": "a", "conversation": "c", "messages": [{"role": "user", "content": "x"}]})),
        ("alpaca.jsonl", lines({"instruction": "a", "input": "", "output": "b", "context": "x", "response": "y"})),
        ("sharegpt.jsonl", lines({"conversations": [{"from": "human", "value": "x"}]})),
        ("raw.jsonl", lines({"id": "a", "conversation": "c", "kind": "chat", "text": "A: x", "spans": []})),
        ("raw.jsonl", lines({"text": "A: x"})),
        # Signal's plaintext export, a frame a line: no column but the frame's kind
        ("main.jsonl", lines({"version": "1"}, {"recipient": {"id": "1"}}, {"chatItem": {"authorId": "1"}})),
        ("discord.csv", b'AuthorID,Author,Date,Content,Attachments,Reactions\n"1","Ana","2024","x","",""\n'),
        ("messages.csv", b"ID,Timestamp,Contents,Attachments\n1,2024-03-05 21:14:00+00:00,hi,\n"),
        ("words.csv", b"word,count\nhi,3\n"),
        ("types.jsonl", lines({"speaker": 1, "text": {"a": 1}})),
        ("t.json", lines({"speaker": "a", "text": "b"})),
        ("t.txt", CHAT.encode()),
        ("t.csv", b'"never closed'),
        ("empty.csv", b"\n\n"),
    ],
)
def test_other_files_are_not_claimed(file, content):
    assert not claims(content, file)


def test_a_file_without_columns_is_a_sentence():
    with pytest.raises(UsageError, match=r"'t\.csv' has no columns that twin knows"):
        read("a,b\n1,2\n", "t.csv")


def test_a_table_of_a_brain():
    put("brain/t.csv", CHAT)
    put("brain/ex.jsonl", lines({"context": "hi", "response": "yo", "conversation": 3}))
    brain = load([Path("brain")], "Ana")
    assert [(one.id, [message.speaker for message in one.messages]) for one in brain.conversations()] == [
        ("ex.jsonl/3", ["Someone", "Ana"]),
        ("t.csv/c1", ["Ana", "Beto"]),
        ("t.csv/c2", ["Ana"]),
    ]


# ---------------------------------------------------------------- CSV


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_encodings_delimiters_and_quotes(encoding, delimiter):
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows(
        [("Text", "Speaker", "x"), ('a "q", b; c\td\ne é', "Ana", ""), ("z", "Beto", "1")]
    )
    assert said(out.getvalue().encode(encoding), "t.csv") == [("t", "Ana", 'a "q", b; c\td\ne é'), ("t", "Beto", "z")]


def test_rows_of_another_length():
    content = "speaker,text,note\nAna\nAna,short\nAna,hello, how are you\n\nAna,tail,,,\n"
    found, dropped = read(content, "t.csv")
    assert [message.text for one in found for message in one.messages] == ["short", "hello", "tail"]
    assert dropped.counts == {"row too short": 1}
    found, dropped = read("speaker,text\nAna,hello, how are you\nAna,ok\n", "t.csv")
    assert [message.text for one in found for message in one.messages] == ["ok"]
    assert list(dropped.problems.items()) == [
        (
            "'t.csv' has a row too long (the first is line 2).",
            "Put the texts in quotes; such rows are left out and counted, the rest is read.",
        )
    ]


@pytest.mark.parametrize("bad", ['Ana,"never closed', 'Ana,"closed" twice', f'Ana,"{"x" * 200_000}"'])
def test_a_broken_row_takes_no_other_with_it(bad):
    rest = "".join(f"Beto,line {number}\n" for number in range(30_000))
    found, dropped = read(f"speaker,text\n{bad}\n{rest}", "t.csv")
    assert sum(len(one.messages) for one in found) == 30_000
    assert dropped.counts == {"broken line": 1}
    assert list(dropped.problems) == ["'t.csv' has a broken line (the first is line 2)."]


def test_an_open_quote_is_given_up_before_the_end_of_the_file():
    """Whatever limit another library has set."""
    taken = []
    rest = (taken.append(number) or f"Beto,line {number}" for number in range(1_000_000))
    before = csv.field_size_limit(10**9)
    try:
        records = table._records(itertools.chain(['Ana,"never closed'], rest), ",")
        assert next(records) == (1, None)
    finally:
        csv.field_size_limit(before)
    assert len(taken) < 100_000
    assert next(records) == (2, ["Beto", "line 0"])


def test_a_row_of_several_lines_has_the_number_of_its_first():
    dropped = Dropped("row without text")
    put("t.csv", 'speaker,text\nAna,"a\nb"\n\nAna,\n"B\n",\n')
    list(table.read(document("t.csv", "t"), dropped))
    assert [where for where, _ in dropped.listed] == ["t:5", "t:6"]


def test_latin_1_is_a_sentence_after_what_stands_before_it():
    rows = b"speaker,text\n" + b"Ana,hi\n" * 60_000 + b"Ana,caf\xe9\n"
    put("t.csv", rows)
    found = []
    with pytest.raises(UsageError, match=r"'t\.csv' is not UTF-8 text \(byte 420020 "):
        found.extend(table.read(document("t.csv", "t"), Dropped()))
    assert sum(len(one.messages) for one in found) > 50_000


# ---------------------------------------------------------------- JSONL


def test_lines_that_orjson_refuses():
    """Python writes NaN, JavaScript halves of characters; both are read."""
    content = lines(
        {"speaker": "Ana", "text": "hi", "score": 1},
        b'{"speaker": "Ana", "text": "nan", "score": NaN}',
        b'{"speaker": "Ana\\ud83d", "text": "half \\ude00\\u0000!"}',
        b'{"speaker": "Ana", "text": "\xff"}',
        b"[" * 100_000,
        b'{"speaker": ' + b"9" * 5000 + b"}",
    )
    assert said(content) == [("t", "Ana", "hi"), ("t", "Ana", "nan"), ("t", "Ana", "half !")]
    assert read(content)[1].counts == {"broken line": 3}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_jsonl_with_a_byte_order_mark(encoding):
    rows = '{"speaker": "Ana", "text": "é"}\r\n{"speaker": "Ana", "text": "b\u2028c"}'
    assert claims(rows.encode(encoding), "t.jsonl")
    assert said(rows.encode(encoding)) == [("t", "Ana", "é"), ("t", "Ana", "b\u2028c")]


def test_a_line_of_a_hundred_megabytes():
    with Path("t.jsonl").open("wb") as file:
        file.write(lines({"speaker": "Ana", "text": "a"}) + b'{"speaker": "')
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n' + lines({"speaker": "Ana", "text": "b"}))
    dropped = Dropped()
    [one] = table.read(document("t.jsonl", "t"), dropped)
    assert [message.text for message in one.messages] == ["a", "b"]
    assert dropped.counts == {"broken line": 1}


def test_columns_may_begin_later_and_be_missing():
    rows = [
        {"type": "start"},
        {"speaker": "Ana", "text": "a"},
        {"speaker": "Ana"},
        {"speaker": "B", "text": "b", "at": 1},
    ]
    found, dropped = read(lines(*rows))
    assert found[0].messages == (Message("Ana", "a"), Message("B", "b", datetime(1970, 1, 1, 0, 0, 1)))
    assert dropped.counts == {"row without text": 2}


# ---------------------------------------------------------------- conversations


def test_chats_that_are_mixed_are_told_apart():
    rows = [{"chat": number % 3, "speaker": "Ana", "text": f"{number}"} for number in range(30_000)]
    put("t.jsonl", lines(*rows))
    told = defaultdict(list)
    for piece in table.read(document("t.jsonl", "t"), Dropped()):
        assert piece.start == len(told[piece.id])
        assert len(piece.messages) <= 4096
        told[piece.id] += [int(message.text) for message in piece.messages]
    assert told == {f"t/{chat}": list(range(chat, 30_000, 3)) for chat in range(3)}


def test_many_chats_are_not_held_until_the_end():
    put("t.jsonl", lines(*({"chat": n // 2, "context": "a", "response": "b"} for n in range(50_000))) + b"\xff")
    dropped = Dropped()
    found = table.read(document("t.jsonl", "t"), dropped)
    first = next(found)
    assert (first.id, len(first.messages)) == ("t/0", 4)
    assert dropped.counts == {}  # the last line is not read yet
    assert sum(len(one.messages) for one in found) == 99_996
    assert dropped.counts == {"broken line": 1}


def test_a_long_chat_comes_in_pieces():
    put("t.jsonl", lines(*({"context": "a", "response": f"{n}", "at": n} for n in range(5000))))
    pieces = list(table.read(document("t.jsonl", "t"), Dropped()))
    assert [(piece.start, len(piece.messages)) for piece in pieces] == [(0, 4096), (4096, 4096), (8192, 1808)]


def test_newest_first():
    """LinkedIn's messages.csv (github.com/dwinter3/keep-it-krispy/issues/55)."""
    content = (
        "CONVERSATION ID,FROM,DATE,CONTENT\n"
        "2-a,Ana,2024-10-26 11:43:11 UTC,third\n2-a,Beto,2024-10-26 11:42:57 UTC,second\n"
        "2-a,Ana,2024-10-19 21:07:45 UTC,first\n2-b,Ana,2024-10-27 09:00:00 UTC,later\n"
    )
    assert read(content, "messages.csv")[0] == [
        Conversation(
            "t/2-a",
            (
                Message("Ana", "first", datetime(2024, 10, 19, 21, 7, 45)),
                Message("Beto", "second", datetime(2024, 10, 26, 11, 42, 57)),
                Message("Ana", "third", datetime(2024, 10, 26, 11, 43, 11)),
            ),
        ),
        Conversation("t/2-b", (Message("Ana", "later", datetime(2024, 10, 27, 9)),)),
    ]


# ---------------------------------------------------------------- times


@pytest.mark.parametrize(
    "value",
    [
        "2024-03-05T21:14:00",
        "2024-03-05 21:14",
        "2024-03-05T21:14:00.0000000+02:00",  # wall-clock time, as all zones
        "20240305T211400",
        "2024/03/05 21:14:00",
        "5.3.2024, 21:14",
        "05/03/2024 9:14 PM",
        "5/3/24 9:14\u202fp.m.",
        1709673240,
        1709673240.25,
        "1709673240",
        1709673240000,
        "1709673240000000",
        "1709673240.5",
    ],
)
def test_times(value):
    # The second row settles that the day comes first where it may.
    rows = lines({"speaker": "A", "text": "a", "at": value}, {"speaker": "A", "text": "a", "at": "31/03/2024"})
    found = read(rows)[0][0].messages
    assert found[0].at.replace(microsecond=0) == AT


@pytest.mark.parametrize(
    "value", ["true", '"soon"', '"2024-02-31"', "1e300", "9" * 400, '"1e999"', "NaN", '"-"', "[1]", '{"a": 1}']
)
def test_what_is_no_time(value):
    found, dropped = read(f'{{"speaker": "A", "text": "a"}}\n{{"speaker": "A", "text": "b", "at": {value}}}\n')
    assert [message.at for message in found[0].messages] == [None, None]
    assert dropped.counts == {"row with an unreadable date": 1}


@pytest.mark.parametrize(
    ("dates", "days"),
    [
        (["1/2/2024", "2/2/2024", "13/2/2024"], ["01.02", "02.02", "13.02"]),
        (["1/2/2024", "1/3/2024", "1/13/2024"], ["02.01", "03.01", "13.01"]),
        (["5/1/2024", "5/2/2024", "6/1/2024"], ["01.05", "02.05", "01.06"]),  # as dmy time would run backward
        (["6/1/2024", "5/2/2024", "5/1/2024"], ["01.05", "02.05", "01.06"]),  # the newest first
        (["3/4/2024 9:14 PM"], ["04.03"]),
        (["3/4/2024 21:14"], ["03.04"]),
        (["2/29/24", "x", "3/1/24"], ["29.02", "", "01.03"]),
    ],
)
def test_the_order_of_day_and_month_is_settled_over_the_whole_file(dates, days):
    content = "speaker,text,date\n" + "".join(f'Ana,x,"{date}"\n' for date in dates)
    found = read(content, "t.csv")[0][0].messages
    assert [f"{message.at:%d.%m}" if message.at else "" for message in found] == days


def test_a_date_far_below_settles_the_order():
    content = "speaker,text,date\n" + "Ana,x,1/2/2024\n" * 20_000 + "Ana,y,1/13/2024\n"
    assert read(content, "t.csv")[0][0].messages[0].at == datetime(2024, 1, 2)


# ---------------------------------------------------------------- properties

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=20)
rows_of_messages = st.lists(
    st.tuples(st.sampled_from(["Ana", "Beto é"]), texts, st.integers(0, 10**6), st.sampled_from(["c", "d", "1"])),
    max_size=6,
)


def later(rows):
    """Return (speaker, text, at, chat) with each row as many seconds later as it says."""
    at, told = datetime(2024, 1, 1), []
    for who, text, seconds, chat in rows:
        at += timedelta(seconds=seconds)
        told.append((who, text, at, chat))
    return told


def expected(rows):
    chats = defaultdict(list)
    for who, text, at, chat in rows:
        if text.strip():
            chats[f"t/{chat}"].append(Message(who, text.strip(), at))
    return dict(chats)


@given(rows_of_messages, st.sampled_from(["excel", "excel-tab", "unix"]), st.booleans())
def test_what_a_csv_was_written_of_comes_back(rows, dialect, bom):
    out = io.StringIO()
    rows = later(rows)
    csv.writer(out, dialect).writerows([("Sender", "Message", "Date", "Chat"), *rows])
    found, dropped = read(("\ufeff" if bom else "") + out.getvalue(), "t.csv")
    assert {one.id: list(one.messages) for one in found} == expected(rows)
    assert dropped.counts.total() == sum(not text.strip() for _, text, _, _ in rows)


@given(rows_of_messages)
def test_what_a_jsonl_was_written_of_comes_back(rows):
    rows = [("Ana", "x", datetime(2024, 1, 1), "c"), *later(rows)]
    content = lines(*({"speaker": who, "text": text, "at": at, "chat": chat} for who, text, at, chat in rows))
    found, dropped = read(content)
    assert {one.id: list(one.messages) for one in found} == expected(rows)
    assert dropped.counts.total() == sum(not text.strip() for _, text, _, _ in rows)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
EXCHANGE = {"context": "a", "response": "b", "at": 0, "chat": "x", "other": "o"}
MESSAGE = {"speaker": "A", "text": "b", "at": 0, "chat": "x"}
UNREAD = ("broken line", "row without text", "row without a speaker")


def rows_like(row):
    fields = st.fixed_dictionaries({}, optional=dict.fromkeys(row, json_values))
    return st.tuples(st.just(row), st.lists(json_values | fields, max_size=6))


@given(rows_like(EXCHANGE) | rows_like(MESSAGE))
def test_any_json_is_read_or_counted(first_and_rows):
    first, rows = first_and_rows
    found, dropped = read(lines(first, *(json.dumps(row).encode() for row in rows)))
    made = [message for one in found for message in one.messages]
    unread = sum(dropped.counts[reason] for reason in UNREAD)
    most = 2 if first is EXCHANGE else 1
    assert len(rows) + 1 - unread <= len(made) <= most * (len(rows) + 1 - unread)
    assert all(message.speaker and message.text == message.text.strip() != "" for message in made)


@given(st.text(st.sampled_from("ab,;\n\t\0 é"), max_size=60))
def test_any_csv_is_read_or_counted(text):
    found, dropped = read(f"speaker,text\nAna,x\n{text}", "t.csv")
    told = [line for line in text.replace("\0", "").split("\n") if line]
    assert sum(len(one.messages) for one in found) + dropped.counts.total() == 1 + len(told)


@given(st.text(st.sampled_from('ab,"\n'), max_size=60))
def test_quotes_anywhere(text):
    found, dropped = read(f"speaker,text\nAna,x\n{text}\nBeto,y", "t.csv")
    made = [message for one in found for message in one.messages]
    assert made[0] == Message("Ana", "x")
    assert 2 <= len(made) + dropped.counts.total() <= 2 + len(text.split("\n"))
