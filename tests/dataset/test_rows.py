"""Rows that are held out are never learned, whatever their ids; the served prompt is the one of most rows."""

import errno
from pathlib import Path

import orjson
import pytest

from twin.dataset import rows
from twin.errors import TwinError, UsageError
from twin.files import file_digest
from twin.names import person_digest, source_digest
from twin.runs import DatasetPaths
from twin.settings import load_settings


def write(path, talks, system=""):
    Path(path).parent.mkdir(exist_ok=True, parents=True)
    head = [{"role": "system", "content": system}] if system else []
    lines = [
        {"messages": [*head, {"role": "user", "content": ask}, {"role": "assistant", "content": answer}]}
        for ask, answer in talks
    ]
    Path(path).write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    return Path(path)


def load(dataset, validation=None):
    return rows.load(load_settings(train={"dataset": dataset, "validation": validation}))


TALKS = [(f"question {number}", f"answer {number}") for number in range(20)]


def test_other_tools_rows_are_compared_by_their_words():
    found = load(write("a/all.jsonl", TALKS, "Be Ana."), write("v/held.jsonl", TALKS[3:8]))
    assert [row.turns[-2].content for row in found.train] == [ask for ask, _ in TALKS[:3] + TALKS[8:]]
    assert found.left_out == 5


def test_the_same_line_number_is_not_the_same_row():
    found = load(write("a/rows.jsonl", TALKS[:10]), write("v/rows.jsonl", TALKS[10:]))
    assert (len(found.train), len(found.val), found.left_out) == (10, 10, 0)


def test_all_rows_held_out_leaves_nothing():
    with pytest.raises(UsageError, match="has no rows to learn from"):
        load(write("a/all.jsonl", TALKS), write("v/held.jsonl", TALKS))


def test_the_served_prompt_is_the_one_of_most_rows():
    file = write("a/all.jsonl", TALKS[:8], "Be Ana.")
    more = write("b/more.jsonl", TALKS[8:12])
    file.write_bytes(more.read_bytes() + file.read_bytes())
    assert load(file).system == "Be Ana."
    assert load(more).system == ""


def test_the_full_export_trains_without_its_held_out_rows(sample_brain):
    from twin import pipeline
    from twin.progress import Silent

    done = pipeline.export([sample_brain], load_settings(), Silent())
    found = load(done.paths.full)
    assert (len(found.train), len(found.val), found.left_out) == (done.train, done.val, done.val)
    assert found.owned
    raw = pipeline.export([sample_brain], load_settings(export={"format": "raw", "output": Path("raw")}), Silent())
    found = load(raw.paths.full)
    assert (len(found.train), found.system, found.owned) == (raw.train, "", True)


@pytest.mark.parametrize(
    "edited",
    [
        {"files": ["train.jsonl"]}, {"files": None}, {"provenance": "nowhere"}, {"provenance": None},
        {"provenance": {"a.txt": None}}, {"provenance": {"a.txt": {"people": ["Ana"]}}}, {"system_prompt": 3},
    ],
)  # fmt: skip
def test_a_report_that_was_edited_tells_nothing(edited):
    file = write("data/train.jsonl", TALKS)
    whole = {"files": {"train.jsonl": file_digest(file)}, "provenance": {"a.txt": {"people": {"Ana": 20}}}}
    Path("data/dataset.json").write_bytes(orjson.dumps(whole))
    assert load(file).provenance == {  # of an older report, which has names
        source_digest("a.txt"): {
            "people": [person_digest("Ana")], "first": None, "last": None, "within": [source_digest("a.txt")],
        }
    }  # fmt: skip
    Path("data/dataset.json").write_bytes(orjson.dumps(whole | edited))
    found = load(file)
    assert len(found.train) == 20
    assert (found.provenance is None) is ("system_prompt" not in edited)


def lines(count):
    return (b'{"text": "%d"}\n' % number for number in range(count))


def test_the_file_of_all_is_both_parts_and_each_has_its_digest():
    paths = DatasetPaths(Path("data"))
    rows.write_lines(lines(5000), lines(300), paths, {"rows": 5300})
    assert paths.train.read_bytes() == b"".join(lines(5000))
    assert paths.val.read_bytes() == b"".join(lines(300))
    assert paths.full.read_bytes() == paths.train.read_bytes() + paths.val.read_bytes()
    report = orjson.loads(paths.report.read_bytes())
    assert report["rows"] == 5300
    assert report["files"] == {path.name: file_digest(path) for path in (paths.train, paths.val, paths.full)}


def refused(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_flush_that_fails_while_rows_are_made_leaves_what_was_there(monkeypatch, part):
    paths = DatasetPaths(Path("data"))
    rows.write_lines(lines(3), lines(3), paths, {})
    before = {path: path.read_bytes() for path in Path("data").iterdir()}
    monkeypatch.setattr(rows, "_FLUSH_BYTES", 0)
    monkeypatch.setattr(rows, "_sync", refused)
    with pytest.raises(TwinError, match="The disk is full"):
        rows.write_lines(lines(100 if part == "train" else 0), lines(100), paths, {})
    assert {path: path.read_bytes() for path in Path("data").iterdir()} == before


def test_rows_that_fail_to_be_made_leave_what_was_there():
    paths = DatasetPaths(Path("data"))
    rows.write_lines(lines(3), lines(3), paths, {})
    before = {path: path.read_bytes() for path in Path("data").iterdir()}

    def broken():
        yield from lines(5000)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rows.write_lines(broken(), lines(100), paths, {})
    assert {path: path.read_bytes() for path in Path("data").iterdir()} == before
