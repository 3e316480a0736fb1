"""Sessions and windows: silences cut, bursts stay, no message is lost or heard twice."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.dataset import window
from twin.dataset.redact import Redactor
from twin.dataset.shard import Job, chats
from twin.dataset.table import Table
from twin.dataset.window import context, sessions, turns_of
from twin.records import Conversation, Held, Message
from twin.settings import ExportSettings

BEGIN = datetime(2024, 1, 1, 9)
HOUR = timedelta(hours=1)


def talk(*rows):
    """Return messages of (speaker, text, hours since the beginning)."""
    return tuple(Message(who, text, None if at is None else BEGIN + at * HOUR) for who, text, at in rows)


def cut(messages, gap):
    return [(one.start, list(one.messages)) for one in sessions([Conversation("c", tuple(messages))], gap)]


def rows_of(messages, person="Ana", **settings):
    """Return the rows of one chat, and what was left out."""
    job = Job(person, ExportSettings(quality_filter=False, **settings))
    shard = chats([Held((Conversation("c", tuple(messages)),))], job, Path("part"))
    table = Table([shard], Redactor())
    times = [shard.session_times[number] for number in shard.session]
    return [(table.example(row), times[row]) for row in range(table.rows)], dict(shard.dropped.counts)


def test_a_silence_cuts_and_its_length_is_the_settings():
    messages = talk(("Beto", "a", 0), ("Ana", "b", 1), ("Beto", "c", 7), ("Ana", "d", 12.9))
    assert [(start, len(run)) for start, run in cut(messages, 6 * HOUR)] == [(0, 2), (2, 2)]
    assert [(start, len(run)) for start, run in cut(messages, 6.5 * HOUR)] == [(0, 4)]


def test_messages_without_a_time_or_out_of_order_do_not_cut():
    messages = talk(("Beto", "a", 50), ("Ana", "b", 1), ("Beto", "c", None), ("Ana", "d", 99))
    assert [(start, len(run)) for start, run in cut(messages, HOUR)] == [(0, 4)]
    assert list(sessions([], HOUR)) == []


def test_a_chat_without_silences_is_cut_between_its_pieces(monkeypatch):
    monkeypatch.setattr(window, "MAX_SESSION", 6)
    said = talk(*[("Beto", str(number), 0) for number in range(20)])
    chat = [Conversation("c", said[start : start + 4], start) for start in range(0, 20, 4)]
    cut = list(sessions(chat, HOUR))
    assert [(one.start, len(one.messages)) for one in cut] == [(0, 8), (8, 8), (16, 4)]
    assert [message for one in cut for message in one.messages] == list(said)


def test_bursts_are_one_turn_a_line_each():
    messages = talk(("Beto", "a", 0), ("Beto", "b", 0), ("Ana", "c", 0), ("Ana", "d\ne", 0), ("Beto", "f", 0))
    assert turns_of(messages, "Ana") == [
        ("user", "a\nb", 0, 1),
        ("assistant", "c\nd\ne", 2, 3),
        ("user", "f", 4, 4),
    ]


def test_in_a_group_the_others_are_named():
    messages = talk(("Beto", "a", 0), ("Cleo", "b", 0), ("Ana", "c", 0), ("Beto", "d", 0))
    assert [turn.content for turn in turns_of(messages, "Ana")] == ["Beto: a\nCleo: b", "c", "Beto: d"]
    assert [row.other for row, _ in rows_of(messages)[0]] == [""]
    assert [row.other for row, _ in rows_of(messages[:1] + messages[2:])[0]] == ["Beto"]


def test_one_row_a_reply_with_ids_that_lead_back():
    messages = talk(
        ("Ana", "opening", 0), ("Beto", "a", 0), ("Ana", "b", 0), ("Ana", "b2", 0), ("Beto", "c", 20), ("Ana", "d", 20)
    )
    rows, dropped = rows_of(messages)
    assert [(row.id, row.conversation_id, row.kind, [turn.content for turn in row.turns]) for row, _ in rows] == [
        ("c:2-3", "c#0", "chat", ["a", "b\nb2"]),
        ("c:5-5", "c#4", "chat", ["c", "d"]),
    ]
    assert [at for _, at in rows] == [BEGIN.timestamp(), (BEGIN + 20 * HOUR).timestamp()]
    assert dropped == {"nothing was said before it": 1}


@pytest.mark.parametrize(("context", "history"), [(1, 1), (2, 1), (3, 3), (4, 3), (24, 5)])
def test_the_window_begins_with_the_other_side(context, history):
    messages = talk(*[("Ana" if n % 2 else "Beto", str(n), 0) for n in range(6)])
    last = rows_of(messages, context_turns=context)[0][-1][0]
    assert len(last.turns) == history + 1
    assert last.turns[0].role == "user"


@given(
    rows=st.lists(st.tuples(st.sampled_from(["Ana", "Beto", "Cleo"]), st.floats(0, 12)), max_size=24),
    context=st.integers(1, 8),
    gap=st.integers(1, 10),
)
def test_what_holds_of_every_chat(rows, context, gap):
    at = 0.0
    messages = []
    for number, (who, wait) in enumerate(rows):
        at += wait
        messages.append(Message(who, f"<{number}>", BEGIN + at * HOUR))
    runs = cut(messages, gap * HOUR)
    assert [message for _, run in runs for message in run] == messages
    assert all(messages[start] == run[0] for start, run in runs)
    examples, dropped = rows_of(messages, context_turns=context, session_gap_hours=gap)
    openings = sum(run[0].speaker == "Ana" for _, run in runs)
    replies = [turn for _, run in runs for turn in turns_of(run, "Ana") if turn.role == "assistant"]
    assert len(examples) == len(replies) - openings
    assert dropped.get("nothing was said before it", 0) == openings
    for row, _ in examples:
        roles = [turn.role for turn in row.turns]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert len(roles) <= context + 1
        first, last = (int(part) for part in row.id.removeprefix("c:").split("-"))
        assert row.reply == "\n".join(message.text for message in messages[first : last + 1])
        start = int(row.conversation_id.removeprefix("c#"))
        run = next(run for begin, run in runs if begin == start)
        assert first - start < len(run)


def test_the_window_is_bounded_in_tokens_but_keeps_the_last_turn():
    turns = turns_of(talk(*[("Ana" if n % 2 else "Beto", "x", 0) for n in range(6)]), "Ana")
    assert context(turns, [10] * 6, 24, 60) == [0, 0, 0, 0, 0, 0]
    assert context(turns, [10] * 6, 24, 35)[5] == 2
    assert context(turns, [10] * 6, 24, 5)[5] == 4
    assert context(turns, [10] * 6, 2, 1000)[5] == 4


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(1, 12), st.integers(1, 200))
def test_a_prompt_never_passes_its_bounds(tokens, most_turns, most_tokens):
    turns = turns_of(talk(*[("Ana" if n % 2 else "Beto", "x", 0) for n in range(len(tokens))]), "Ana")
    for place, begin in enumerate(context(turns, tokens, most_turns, most_tokens)):
        if place % 2:
            assert turns[begin].role == "user"
            assert place - begin <= max(1, most_turns)
            assert begin == place - 1 or sum(tokens[begin:place]) <= most_tokens


def test_a_chat_in_pieces_is_one_chat():
    messages = talk(*[("Ana" if n % 2 else "Beto", str(n), n / 10) for n in range(9)])
    whole = [Conversation("c", messages)]
    pieces = [
        Conversation("c", messages[:4], 0),
        Conversation("c", messages[4:5], 4),
        Conversation("c", messages[5:], 5),
    ]
    assert [(one.id, list(one.messages)) for one in sessions(pieces, HOUR)] == [
        (one.id, list(one.messages)) for one in sessions(whole, HOUR)
    ]
    hidden = [pieces[0], pieces[2]]  # a message between them is gone: what is on its other side is another talk
    assert [one.id for one in sessions(hidden, HOUR)] == ["c#0", "c#5"]
    assert [one.id for one in sessions([*whole, Conversation("d", messages)], HOUR)] == ["c#0", "d#0"]
