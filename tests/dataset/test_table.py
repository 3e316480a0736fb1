"""The rows of several parts as one: numbers, words and placeholders lead to the same row whatever part it stands in."""

from datetime import datetime
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.dataset import shard
from twin.dataset.dedup import flat
from twin.dataset.formats import to_line
from twin.dataset.redact import Redactor
from twin.dataset.shard import BEGINNING, Job
from twin.dataset.table import Rows, Table, shuffled, thinned
from twin.records import Conversation, Example, Held, Message, Turn
from twin.settings import ExportSettings

AT = datetime(2024, 1, 1, 9)


def part(number, *pairs, other="Beto", names=()):
    """Return a part of one conversation a pair: what the other said, and what Ana did."""
    talks = tuple(
        Conversation(f"p{number}c{n}", (Message(other, asked, AT), Message("Ana", reply, AT)))
        for n, (asked, reply) in enumerate(pairs)
    )
    job = Job("Ana", ExportSettings(quality_filter=False), dict(zip(names, names, strict=True)))
    return shard.chats([Held(talks, f"{number}.txt")], job, Path(f"part-{number}"))


def table(*parts, redactor=None):
    return Table([part(number, *pairs) for number, pairs in enumerate(parts)], redactor or Redactor())


def replies(found):
    return [found.example(row).reply for row in range(found.rows)]


HELLO = [("tea?", "always"), ("and now?", "now too")]
LATER = [("hi", "always"), ("long?", "x" * 60), ("late", "so late")]


def test_the_rows_of_all_parts_are_numbered_through():
    found = table(HELLO, [], LATER)
    assert found.rows == 5
    assert replies(found) == ["always", "now too", "always", "x" * 60, "so late"]
    assert found.session_ids == ["p0c0#0", "p0c1#0", "p2c0#0", "p2c1#0", "p2c2#0"]
    assert found.session.tolist() == [0, 1, 2, 3, 4]
    assert found.session_times.tolist() == [AT.timestamp()] * 5
    assert found.kinds.tolist() == [0] * 5
    assert found.lengths.tolist() == [len(text) for text in found.texts(np.arange(5))]
    assert found.texts(np.array([4, 0])) == ["late so late", "tea? always"]
    assert found.replies.tolist() == [0, 1, 0, -1, 2]  # the same short reply has one number in every part
    assert found.quoted[1].tolist() == [3]
    assert found.example(3) == Example(
        "p2c1:1-1", "p2c1#0", "chat", (Turn("user", "long?"), Turn("assistant", "x" * 60)), "Beto"
    )
    assert found.example(0, "Be Ana.").turns[0] == Turn("system", "Be Ana.")


def test_a_table_without_rows():
    found = table([], [])
    assert found.rows == 0
    assert found.lines(np.empty(0, np.int64)) == found.texts(np.empty(0, np.int64)) == []
    assert found.replies.tolist() == found.session.tolist() == []


said = st.text(st.characters(exclude_categories=["Cs", "Co"]), min_size=1, max_size=12).filter(str.strip)
pairs_ = st.lists(st.tuples(said, said), max_size=5)


@given(st.lists(pairs_, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_every_row_is_found_in_any_order(parts, chance):
    made = [part(number, *pairs) for number, pairs in enumerate(parts)]
    own = [row for one in made for row in one.path.read_bytes().split(b"\n")[:-1]]
    found = Table(made, Redactor())
    assert found.rows == len(own)
    order = list(range(found.rows))
    chance.shuffle(order)
    assert found.lines(np.array(order, np.int64)) == [own[row] + b"\n" for row in order]
    records = list(found.records(np.array(order, np.int64)))
    assert [record["id"] for record in records] == [found.example(row).id for row in order]
    for row, record, text in zip(order, records, found.texts(np.array(order, np.int64)), strict=True):
        asked, reply = (turn["content"] for turn in record["messages"])
        assert text == f"{flat(asked)} {flat(reply)}"
        assert found.session_ids[found.session[row]] == record["conversation"]
    by_number = {}
    for row, number in enumerate(found.replies.tolist()):
        by_number.setdefault(number, set()).add(flat(found.example(row).reply))
    assert all(len(words) == 1 for words in by_number.values())
    assert len({next(iter(words)) for words in by_number.values()}) == len(by_number)


def test_files_are_closed():
    found = table(HELLO)
    assert replies(found) == ["always", "now too"]
    found.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        found.example(0)


# ---------------------------------------------------------------- placeholders


def test_one_value_has_one_number_in_all_parts():
    first = [("where?", "cy@example.org"), ("or?", "bo@example.org, +49 176 12345678")]
    second = [("and?", "bo@example.org"), ("or?", "4111 1111 1111 1111 for bo@example.org"), ("so?", "no")]
    third = [("+49 176 87654321?", "rather +49 176 12345678"), ("cy@example.org?", "di@example.org")]
    found = table(first, second, third)
    assert replies(found) == [
        "[email 1]",
        "[email 2], [phone 1]",
        "[email 2]",
        "[card 1] for [email 2]",
        "no",
        "rather [phone 1]",
        "[email 3]",
    ]
    assert found.example(5).turns[0].content == "[phone 2]?"
    assert found.example(6).turns[0].content == "[email 1]?"


def test_placeholders_go_on_from_what_is_known():
    redactor = Redactor()
    redactor.redact("to ana@example.org and bo@example.org")
    found = table([("?", "cy@example.org"), ("?", "bo@example.org")], redactor=redactor)
    assert replies(found) == ["[email 3]", "[email 2]"]


def test_names_are_numbered_in_the_other_side_too():
    parts = [part(0, ("Cleo?", "yes"), other="Beto", names=["Beto", "Cleo"])]
    parts.append(part(1, ("Beto?", "no"), other="Cleo", names=["Beto", "Cleo"]))
    found = Table(parts, Redactor(names={"Beto": "Beto", "Cleo": "Cleo"}))
    assert [(one.other, one.turns[0].content) for one in map(found.example, range(2))] == [
        ("[person 2]", "[person 1]?"),
        ("[person 1]", "[person 2]?"),
    ]


values = st.sampled_from([f"someone{n}@example.org" for n in "abcdef"] + [f"+49 176 1234567{n}" for n in range(6)])


@given(st.lists(st.lists(values, min_size=1, max_size=4), min_size=1, max_size=4))
def test_the_same_number_is_the_same_value_and_no_other(parts):
    found = table(*([("?", f"{value}, then") for value in part_values] for part_values in parts))
    told = replies(found)
    flat_values = [value for part_values in parts for value in part_values]
    kinds = {"[email": [], "[phone": []}
    for value, reply in zip(flat_values, told, strict=True):
        known = kinds["[email" if "@" in value else "[phone"]
        if value not in known:
            known.append(value)
        kind = "email" if "@" in value else "phone"
        assert reply == f"[{kind} {known.index(value) + 1}], then"
    assert not any(value.encode() in line for line in found.lines(np.arange(found.rows)) for value in flat_values)


def test_what_looks_like_a_placeholder_stays():
    found = table([("[email 7]?", "email1 [phone 1] ana@example.org")])
    assert replies(found) == ["email1 [phone 1] [email 1]"]
    assert found.example(0).turns[0].content == "[email 7]?"


# ---------------------------------------------------------------- rows


def prompted(session):
    return ("Be Ana.", "", "Answer as Ana.")[session % 3]


def test_rows_are_a_sequence():
    rows = Rows(table(HELLO, LATER), np.array([4, 0, 2]), prompted)
    assert len(rows) == 3
    assert [row.reply for row in rows] == ["so late", "always", "always"]
    assert rows[-1] == rows[2] == rows[0:3][2]
    assert [row.id for row in rows[1:]] == ["p0c0:1-1", "p1c0:1-1"]
    assert [row.turns[0] for row in rows] == [
        Turn("user", "late"),
        Turn("system", "Be Ana."),
        Turn("system", "Answer as Ana."),
    ]
    with pytest.raises(IndexError):
        rows[3]


def test_rows_are_equal_when_they_say_the_same():
    found = table(HELLO, LATER)
    one, same = (Rows(found, np.array([0, 3]), prompted) for _ in range(2))
    assert one == same
    assert one != Rows(found, np.array([3, 0]), prompted)
    assert one != Rows(found, np.array([0, 3]), lambda session: "")
    assert one != list(one)


@given(st.lists(pairs_, min_size=1, max_size=3), st.integers(0, 9))
def test_chatml_is_what_the_writer_of_records_writes(parts, seed):
    parts[0].append(("where?", 'at ana@example.org, "she" said\\n'))
    found = table(*parts)
    rows = Rows(found, shuffled(np.arange(found.rows), seed), prompted)
    assert b"".join(rows.chatml()) == b"".join(to_line(row, "chatml", "Ana") for row in rows)


def test_chatml_comes_some_thousand_rows_at_a_time():
    found = table(HELLO)
    rows = Rows(found, np.zeros(10_000, np.int64), prompted)
    pieces = list(rows.chatml())
    assert [piece.count(b"\n") for piece in pieces] == [4096, 4096, 1808]
    assert {orjson.loads(line)["id"] for piece in pieces for line in piece.splitlines()} == {"p0c0:1-1"}
    assert pieces[0].startswith(BEGINNING)


# ---------------------------------------------------------------- order, and what is said too often


def test_the_order_is_the_seeds_and_is_kept_for_good():
    rows = np.arange(10, 18)
    assert shuffled(rows, 0).tolist() == [16, 12, 11, 17, 13, 10, 15, 14]
    assert shuffled(rows, 0).tolist() == shuffled(rows, 0).tolist() != shuffled(rows, 1).tolist()
    assert sorted(shuffled(rows, 1).tolist()) == rows.tolist()
    assert rows.tolist() == list(range(10, 18))


def kept(replies_, alive=None, seed=0):
    numbers = np.array(replies_, np.int64)
    living = np.ones(len(numbers), bool) if alive is None else np.array(alive, bool)
    gone = thinned(numbers, living, seed)
    return [number for number, out in zip(numbers.tolist(), gone.tolist(), strict=True) if not out]


def test_what_is_said_twenty_times_stays_and_a_little_more_goes_little():
    assert kept([0] * 20) == [0] * 20
    assert len(kept([0] * 25)) == 24
    assert len(kept([0] * 100)) == int(20 * (1 + np.log(5)))
    assert len(kept([0] * 1000)) == int(20 * (1 + np.log(50)))
    assert kept([]) == []
    assert kept([-1] * 100) == [-1] * 100


def test_the_limit_is_a_share_of_all_rows():
    many = [0] * 60 + [-1] * (20_000 - 60)
    assert kept(many).count(0) == 60
    assert kept([0] * 60 + [-1] * 40).count(0) < 60


@given(
    counts=st.lists(st.integers(0, 150), max_size=4),
    long=st.integers(0, 300),
    dead=st.integers(0, 40),
    seed=st.integers(0, 9),
)
def test_what_is_said_more_often_stays_more_often(counts, long, dead, seed):
    numbers = [n for n, count in enumerate(counts) for _ in range(count)] + [-1] * long + [0] * dead
    alive = [True] * (len(numbers) - dead) + [False] * dead
    order = np.random.RandomState(seed).permutation(len(numbers))
    numbers, alive = np.array(numbers, np.int64)[order], np.array(alive, bool)[order]
    gone = thinned(numbers, alive, seed)
    assert not gone[~alive].any()
    assert not gone[numbers < 0].any()
    limit = max(20, int(alive.sum()) // 200)
    left = [int((alive & ~gone & (numbers == n)).sum()) for n in range(len(counts))]
    for count, stays in zip(counts, left, strict=True):
        assert stays == (count if count <= limit else int(limit * (1 + np.log(count / limit))))
    assert [count for _, count in sorted(zip(counts, left, strict=True))] == sorted(left)
    assert (thinned(numbers, alive, seed) == gone).all()


def test_which_ones_stay_is_spread_over_the_years():
    gone = thinned(np.zeros(1000, np.int64), np.ones(1000, bool), 5)
    stays = np.flatnonzero(~gone)
    apart = np.diff(stays)
    assert apart.max() - apart.min() <= 1
    assert stays[0] <= apart.max()
    assert 1000 - stays[-1] <= apart.max()
    assert (thinned(np.zeros(1000, np.int64), np.ones(1000, bool), 6) != gone).any()
