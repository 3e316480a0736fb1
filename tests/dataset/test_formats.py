"""Rows as JSON, both ways; other tools' rows; and what a broken line is told."""

import os
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.dataset.formats import WRITERS, read_rows, to_line
from twin.errors import UsageError
from twin.records import Example, Turn

GROUP = Example(
    "chat.txt:3-4",
    "chat.txt#0",
    "chat",
    (
        Turn("system", "Be Ana."),
        Turn("user", "hi\nyou"),
        Turn("assistant", "yo"),
        Turn("user", "é?"),
        Turn("assistant", "so"),
    ),
    other="Beto",
)

contents = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
examples = st.builds(
    lambda row_id, talk, kind, system, pairs: Example(
        row_id,
        talk,
        kind,
        (
            *([Turn("system", system)] if system else []),
            *(Turn(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)),
        ),
    ),
    contents,
    contents,
    st.sampled_from(["chat", "memory", "fact", "journal", "example"]),
    st.none() | contents,
    st.lists(st.tuples(contents, contents), min_size=1, max_size=4),
)

_NO_INDEX = "slice indices must be integers or None or have an __index__ method"


def read(*lines, name="rows.jsonl"):
    Path(name).write_bytes(b"".join(line if isinstance(line, bytes) else orjson.dumps(line) + b"\n" for line in lines))
    return list(read_rows(Path(name)))


def refusal(*lines):
    with pytest.raises(UsageError) as caught:
        read(*lines)
    assert caught.value.exit_code == 2
    return caught.value.message, caught.value.hint


def test_golden():
    written = {name: orjson.loads(to_line(GROUP, name, "Ana")) for name in WRITERS}
    head = {"id": "chat.txt:3-4", "conversation": "chat.txt#0", "kind": "chat"}
    assert written["chatml"] == head | {
        "messages": [
            {"role": "system", "content": "Be Ana."},
            {"role": "user", "content": "hi\nyou"},
            {"role": "assistant", "content": "yo"},
            {"role": "user", "content": "é?"},
            {"role": "assistant", "content": "so"},
        ]
    }
    assert written["alpaca"] == head | {
        "system": "Be Ana.",
        "instruction": "é?",
        "input": "",
        "output": "so",
        "history": [["hi\nyou", "yo"]],
    }
    assert written["sharegpt"] == head | {
        "system": "Be Ana.",
        "conversations": [
            {"from": "human", "value": "hi\nyou"},
            {"from": "gpt", "value": "yo"},
            {"from": "human", "value": "é?"},
            {"from": "gpt", "value": "so"},
        ],
    }
    assert written["raw"] == head | {
        "text": "Beto: hi\nyou\nAna: yo\nBeto: é?\nAna: so",
        "spans": [
            {"role": "user", "start": 6, "stop": 12},
            {"role": "assistant", "start": 18, "stop": 20},
            {"role": "user", "start": 27, "stop": 29},
            {"role": "assistant", "start": 35, "stop": 37},
        ],
    }


def test_raw_of_a_group_names_nobody_twice():
    group = replace(GROUP, other="", turns=(Turn("user", "Beto: hi\nCleo: ho"), Turn("assistant", "yo")))
    assert orjson.loads(to_line(group, "raw", "Ana"))["text"] == "Beto: hi\nCleo: ho\nAna: yo"


@pytest.mark.parametrize("name", ["chatml", "alpaca", "sharegpt"])
@given(rows=st.lists(examples, max_size=5))
def test_reading_is_the_inverse_of_writing(name, rows):
    assert read(*[to_line(row, name, "Ana") for row in rows]) == rows


@given(rows=st.lists(examples, max_size=5))
def test_raw_reads_back_all_but_the_system_prompt(rows):
    """Contents may hold line ends, colons and the speakers' own names."""
    without = [replace(row, turns=row.turns[row.turns[0].role == "system" :]) for row in rows]
    assert read(*[to_line(row, "raw", "Ana") for row in rows]) == without


def test_raw_of_other_tools_goes_by_names():
    talk = "Beto: hi\nyou there\nCleo: both of us\nAna: yo\nwhat: ever\nAna: really"
    row = read({"text": talk})[0]
    assert row.every_reply
    assert row.turns == (
        Turn("user", "hi\nyou there\nboth of us"),
        Turn("assistant", "yo"),
        Turn("user", "ever"),  # without spans a colon makes a speaker
        Turn("assistant", "really"),
    )


@pytest.mark.parametrize("name", sorted(WRITERS))
@given(row=examples)
def test_a_row_is_one_line(name, row):
    line = to_line(row, name, "Ana")
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")


def test_other_tools_rows_learn_every_reply():
    rows = read(
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        b"\n",
        {
            "conversations": [
                {"from": "system", "value": "s"},
                {"from": "user", "value": "a"},
                {"from": "gpt", "value": "b"},
            ]
        },
        {"instruction": "a", "input": "more", "output": "b"},
        {"id": 7, "kind": "chat", "instruction": "a", "output": "b", "history": None, "system": None},
        {"context": "a", "response": "b", "source": "the app", "timestamp": None},
    )
    assert [(row.id, row.conversation_id, row.kind, row.every_reply) for row in rows] == [
        (f"rows.jsonl:{number}", f"rows.jsonl:{number}", "chat", True) for number in (1, 3, 4, 5, 6)
    ]
    assert [[turn.content for turn in row.turns] for row in rows] == [
        ["a", "b"],
        ["s", "a", "b"],
        ["a\nmore", "b"],
        ["a", "b"],
        ["a", "b"],
    ]


def test_neighbours_of_one_role_are_joined_as_ollama_joins_them():
    talk = [("system", "s"), ("system", "t"), ("user", "a"), ("user", "b"), ("assistant", "c"), ("assistant", "d")]
    row = read({"messages": [{"role": role, "content": text} for role, text in talk]})[0]
    assert row.turns == (Turn("system", "s\n\nt"), Turn("user", "a\n\nb"), Turn("assistant", "c\n\nd"))


def test_what_follows_the_last_reply_is_left_out():
    talk = [("user", "a"), ("assistant", "b"), ("user", "c")]
    rows = read({"messages": [{"role": role, "content": text} for role, text in talk]})
    assert [turn.content for turn in rows[0].turns] == ["a", "b"]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "a"}]},
        {"messages": []},
        {"messages": [{"role": "assistant", "content": "a"}]},
    ],
)
def test_a_row_without_a_reply(row):
    good = {"instruction": "a", "output": "b"}
    assert refusal(good, row) == ("Line 2 of 'rows.jsonl' has no reply to learn.", "Take it out, or export again.")


@pytest.mark.parametrize(
    ("row", "detail"),
    [
        ({"text": "a"}, "a text is expected in which each speaker's words begin with 'Name: '"),
        ({"text": "a\nAna: b"}, "a text is expected in which each speaker's words begin with 'Name: '"),
        ({"text": "Ana: b", "spans": [{"role": "user", "start": 0}]}, "'stop'"),
        (
            {"text": "Ana: b", "spans": [{"role": "user", "start": "0", "stop": 1}]},
            _NO_INDEX,
        ),
        ({"instruction": "a"}, "'output'"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "'tool'"),
        ({"messages": [{"role": "user", "content": None}]}, "a text is expected"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "a text is expected"),
        ({"messages": None}, "'NoneType' object is not iterable"),
        ({"instruction": "a", "output": "b", "history": [["x"]]}, "not enough values to unpack (expected 2, got 1)"),
        ({}, "'messages, conversations, instruction, context or text'"),
        ([], "a JSON object is expected"),
        (5, "a JSON object is expected"),
    ],
)
def test_a_line_that_is_no_row(row, detail):
    message, hint = refusal(row)
    assert message.startswith("Line 1 of 'rows.jsonl' is no chat row (")
    if "iterable" not in detail:  # Python's own words change between versions
        assert message == f"Line 1 of 'rows.jsonl' is no chat row ({detail})."
    assert hint == "Use chatml, alpaca, sharegpt or raw rows: twin export --format chatml"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"messages": [{"role": "us', "unexpected end of data"),
        (b'{"instruction": "caf\xe9", "output": "b"}\n', "str is not valid UTF-8: surrogates not allowed"),
    ],
)
def test_a_truncated_line_or_another_encoding(line, reason):
    assert refusal({"instruction": "a", "output": "b"}, line) == (
        f"Line 2 of 'rows.jsonl' is broken JSON: {reason}.",
        "It may be cut short: twin export",
    )


def test_a_missing_file_and_a_folder():
    with pytest.raises(UsageError, match=r"'no\.jsonl' does not exist\."):
        list(read_rows(Path("no.jsonl")))
    Path("folder").mkdir()
    with pytest.raises(UsageError, match="'folder' is a folder where a file was expected"):
        list(read_rows(Path("folder")))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file():
    Path("rows.jsonl").write_bytes(b"{}")
    Path("rows.jsonl").chmod(0)
    with pytest.raises(UsageError, match=r"No permission to read 'rows\.jsonl'"):
        list(read_rows(Path("rows.jsonl")))


def test_an_empty_file_has_no_rows():
    assert read() == []


def test_a_system_prompt_and_a_reply_alone_are_no_row():
    """No user speaks: training drops the row later and says that it is too long."""
    talk = [{"role": "system", "content": "s"}, {"role": "assistant", "content": "b"}]
    assert refusal({"messages": talk})[0] == "Line 1 of 'rows.jsonl' has no reply to learn."


def test_a_byte_order_mark_is_no_error():
    assert len(read(b"\xef\xbb\xbf" + orjson.dumps({"instruction": "a", "output": "b"}))) == 1
