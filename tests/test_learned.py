"""What stands for the rows that an adapter learned, and what it must not give away."""

import json

import pytest

from twin import learned
from twin.errors import UsageError
from twin.learned import Learned
from twin.records import Example, Turn
from twin.runs import RunPaths


def row(row_id="chat.txt#0:2-5", history=("hi", "hello"), reply="yep", system="You are Ada.", every=False):
    roles = ("user", "assistant")
    turns = [Turn("system", system)] * bool(system)
    turns += [Turn(roles[at % 2], text) for at, text in enumerate((*history, "coming?"))]
    return Example(row_id, row_id.rpartition(":")[0], "chat", (*turns, Turn("assistant", reply)), every_reply=every)


def test_a_row_is_known_by_its_words_under_any_system_prompt():
    known = Learned.of([row()])
    assert known.has(row(system=""))
    assert known.has(row("other.txt#7:1-9"))
    assert not known.has(row(reply="nope"))
    assert not known.has(row(history=("hi", "hey")))
    assert known.spoils(row("other.txt#7:1-9"))


def test_a_reply_under_another_history_is_not_held_out():
    known = Learned.of([row()])
    shorter = row("chat.txt#0:4-5", history=())
    assert not known.has(shorter)
    assert known.spoils(shorter)
    assert not known.spoils(row("chat.txt#0:4-7", history=()))
    assert not known.spoils(row("chat.txt#9:4-5", history=()))


def test_ids_of_other_tools_rows_are_line_numbers_and_count_for_nothing():
    known = Learned.of([row("rows.jsonl:3", every=True)])
    assert known.places == frozenset()
    assert not known.spoils(row("rows.jsonl:3", reply="something else", every=True))
    assert known.spoils(row("rows.jsonl:8", every=True))


def test_written_and_read_without_a_name_or_a_word(tmp_path):
    paths = RunPaths(tmp_path)
    both = Learned.of([row()]) | Learned.of([row("Bo Peep.txt#1:0-3", reply="a secret")])
    learned.write(both, paths)
    assert learned.read(paths) == both
    text = paths.learned.read_text()
    assert not any(word in text for word in ("chat", "Bo", "secret", "yep", "Ada"))
    found = json.loads(text)
    assert found["said"] == sorted(found["said"])
    assert paths.learned.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "text", ["{}", '{"said": [], "places": 3}', '{"said": ["no"], "places": []}', '{"said": [3], "places": []}']
)
def test_a_file_that_is_no_list_is_refused(tmp_path, text):
    paths = RunPaths(tmp_path)
    with pytest.raises(UsageError, match="so nothing says which rows it learned"):
        learned.read(paths)
    paths.learned.write_text(text)
    with pytest.raises(UsageError, match="is no list of learned rows"):
        learned.read(paths)
