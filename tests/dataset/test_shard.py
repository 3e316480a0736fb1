"""One part's rows, and that it is the same whether one process makes all parts or several do."""

import importlib.util
import pickle
from collections import Counter
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin import curate, dataset
from twin.dataset import shard
from twin.dataset.dedup import BANDS, flat
from twin.dataset.redact import CLOSE, OPEN, Redactor
from twin.dataset.shard import BEGINNING, Job, Source, text_file
from twin.dataset.table import Table
from twin.dropped import Dropped
from twin.names import person_digest
from twin.progress import Silent
from twin.records import KINDS, Conversation, Example, Held, Message, Turn
from twin.settings import ExportSettings, load_settings

BEGIN = datetime(2024, 1, 1, 9)
PRIVATE = "ana@example.org"


def chat(name, *said, who=("Beto", "Ana"), at=BEGIN):
    """Return a conversation in which two people take turns, a minute apart."""
    turns = (Message(who[n % len(who)], text, at and at + n * timedelta(minutes=1)) for n, text in enumerate(said))
    return Conversation(name, tuple(turns))


def made(*talks, person="Ana", names=(), watch=None, path="part", **settings):
    """Return the part of some conversations, all of one source."""
    job = Job(person, ExportSettings(**settings), dict(zip(names, names, strict=True)), watch)
    return shard.chats([Held(talks, "chat.txt")], job, Path(path))


def lines(part):
    """Return a part's rows as they stand in its file."""
    data = part.path.read_bytes()
    ends = part.offsets.tolist()
    assert (ends[0], ends[-1]) == (0, len(data))
    return [orjson.loads(BEGINNING + data[begin:end]) for begin, end in pairwise(ends)]


def texts(part):
    data = text_file(part.path).read_bytes()
    ends = part.text_offsets.tolist()
    assert (ends[0], ends[-1]) == (0, len(data))
    return [data[begin:end].decode() for begin, end in pairwise(ends)]


def replies(part):
    return [row["messages"][-1]["content"] for row in lines(part)]


# ---------------------------------------------------------------- rows


def test_a_part_and_its_columns():
    part = made(chat("c", "tea?", "Always!", "and  now?", "now too"), chat("d", "hi", "Always!"))
    assert lines(part) == [
        {
            "messages": [{"role": "user", "content": "tea?"}, {"role": "assistant", "content": "Always!"}],
            "id": "c:1-1",
            "conversation": "c#0",
            "kind": "chat",
        },
        {
            "messages": [
                {"role": "user", "content": "tea?"},
                {"role": "assistant", "content": "Always!"},
                {"role": "user", "content": "and  now?"},
                {"role": "assistant", "content": "now too"},
            ],
            "id": "c:3-3",
            "conversation": "c#0",
            "kind": "chat",
        },
        {
            "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Always!"}],
            "id": "d:1-1",
            "conversation": "d#0",
            "kind": "chat",
        },
    ]
    assert texts(part) == ["tea? always!", "and now? now too", "hi always!"]
    assert part.lengths.tolist() == [12, 16, 10]
    assert part.kinds.tolist() == [0, 0, 0]
    assert part.session.tolist() == [0, 0, 1]
    assert part.session_ids == ["c#0", "d#0"]
    assert part.session_others == ["Beto", "Beto"]
    assert part.session_times == [BEGIN.timestamp()] * 2
    assert part.replies == ["always!", "now too"]
    assert part.reply.tolist() == [0, 1, 0]
    assert part.bands.shape == (3, BANDS)
    assert len(set(part.keys.tolist())) == 3


def test_nothing_said_is_an_empty_part():
    part = made()
    assert lines(part) == texts(part) == []
    assert part.bands.shape == (0, BANDS)
    assert len(part.keys) == len(part.quoted[0]) == len(part.quoted[1]) == 0
    assert lines(made(chat("c", "hi", "there", who=("Beto", "Cleo")))) == []


def test_long_replies_have_no_number():
    part = made(chat("c", "?", "x" * shard.SHORT_REPLY, "?", "y" * (shard.SHORT_REPLY + 1)))
    assert part.reply.tolist() == [0, -1]
    assert part.replies == ["x" * shard.SHORT_REPLY]


def test_long_lines_are_remembered_with_their_session():
    line = "he came round on thursday with a ladder and did not say one word about it"
    part = made(
        chat("c", f"so\n> {line}", "ok"), chat("d", "what?", f"{line.upper()}\nshort"), chat("e", line[:59], "y")
    )
    assert part.quoted[1].tolist() == [0, 1]
    assert len(set(part.quoted[0].tolist())) == 1


def test_rows_that_are_no_chat():
    job = Job("Ana", ExportSettings())
    rows = [
        (Example("m#1", "m#1", "memory", (Turn("user", "tea?"), Turn("assistant", "I like tea"))), None),
        (Example("j#1", "j#1", "journal", (Turn("user", "and?"), Turn("assistant", "..."))), 7.0),
        (Example("e#1", "e#1", "example", (Turn("user", "and?"), Turn("assistant", "..."))), None),
    ]
    part = shard.examples(rows, job, Path("others"))
    assert [(row["id"], row["kind"], row["conversation"]) for row in lines(part)] == [
        ("m#1", "memory", "m#1"),
        ("j#1", "journal", "j#1"),
    ]
    assert [KINDS[kind] for kind in part.kinds] == ["memory", "journal"]
    assert np.isnan(part.session_times[0])
    assert part.session_times[1] == 7
    assert part.dropped.counts == {"punctuation only": 1}


@given(
    st.lists(
        st.lists(st.tuples(st.booleans(), st.text(st.characters(exclude_categories=["Cs"]), max_size=30)), max_size=8),
        max_size=4,
    )
)
def test_every_line_and_every_text_is_at_its_place(talks):
    said = [
        Conversation(f"c{n}", tuple(Message("Ana" if own else "Beto", text) for own, text in talk))
        for n, talk in enumerate(talks)
    ]
    part = made(*said)
    rows = lines(part)
    for row, text, length, number in zip(rows, texts(part), part.lengths, part.reply, strict=True):
        asked, reply = (turn["content"] for turn in row["messages"][-2:])
        assert text == f"{flat(asked)} {flat(reply)}"
        assert length == len(text)
        assert number == -1 or part.replies[number] == flat(reply)
        assert row["conversation"] == part.session_ids[part.session[rows.index(row)]]
    assert len(part.replies) == len(set(part.replies))


# ---------------------------------------------------------------- secrets and private values


def test_a_message_that_gives_a_secret_away_is_gone_and_its_neighbours_are_not():
    part = made(
        chat("c", "what is it?", "the password is k4lem-2x", "thanks", "any time", "pin 4711", "got it"), watch="x"
    )
    assert replies(part) == ["any time"]
    assert b"k4lem" not in part.path.read_bytes() + text_file(part.path).read_bytes()
    assert part.dropped.counts == {"secret (password)": 2, "empty reply": 1, "empty prompt": 1}


@pytest.mark.parametrize("kind", ["password", "key", "seed phrase"])
def test_the_listing_of_secrets_says_where_and_not_what(kind):
    secret = {
        "password": "the password is k4lem-2x",
        "key": "ghp_" + "a1" * 20,
        "seed phrase": "abandon ability able about above absent absorb abstract absurd abuse access accident",
    }[kind]
    part = made(Conversation("c", (Message("Beto", "?"), Message("Ana", secret)), 40), watch=f"secret ({kind})")
    assert part.dropped.listed == [("c:41", "…")]


def test_private_values_are_numbered_in_the_part():
    part = made(chat("c", f"is it {PRIVATE}?", f"no, bo@example.org, not {PRIVATE}"))
    assert replies(part) == [f"no, {OPEN}email2{CLOSE}, not {OPEN}email1{CLOSE}"]
    assert part.values == [("email", PRIVATE), ("email", "bo@example.org")]
    assert part.redacted == {"email": 3}
    assert texts(part) == ["is it email? no, email, not email"]
    assert b"example" not in part.path.read_bytes() + text_file(part.path).read_bytes()


def test_private_values_can_stay():
    part = made(chat("c", "where?", f"at {PRIVATE}"), redact=False)
    assert replies(part) == [f"at {PRIVATE}"]
    assert (part.values, part.redacted) == ([], {})


def test_other_people_by_a_pseudonym():
    part = made(chat("c", "Ana?", "yes Beto", "ok"), names=["Beto"], redact=False)
    assert replies(part) == [f"yes {OPEN}person1{CLOSE}"]
    assert part.session_others == [f"{OPEN}person1{CLOSE}"]
    assert lines(part)[0]["messages"][0]["content"] == "Ana?"


@pytest.mark.parametrize("name", ["+49 176 12345678", "bo@example.org"])
def test_a_speaker_who_is_a_number(name):
    part = made(chat("c", "tea?", "coffee?", "both", who=("Beto", name, "Ana")))
    assert len(replies(part)) == 1
    assert name.encode() not in part.path.read_bytes()


def test_a_listed_text_is_readable():
    part = made(chat("c", PRIVATE, "so", who=("Ana", "Beto")), watch="nothing was said before it")
    assert part.dropped.listed == [("c:0-0", "[email 1]")]


def test_pasted_texts_are_the_persons_alone():
    long = "word " * 400
    part = made(chat("c", long, "short", "?", long), watch="pasted text")
    assert replies(part) == ["short"]
    assert part.dropped.listed == [("c", long.strip())]
    assert len(replies(made(chat("c", long, "short", "?", long), quality_filter=False))) == 2


# ---------------------------------------------------------------- who spoke, and how


def test_sources_are_counted():
    part = made(chat("c", "a", "b", "c"), chat("d", "a", "b", at=BEGIN - timedelta(days=400)), chat("e", "a", at=None))
    assert part.sources == {
        "chat.txt": Source({"Beto": 4, "Ana": 2}, BEGIN - timedelta(days=400), BEGIN + timedelta(minutes=2))
    }
    assert part.sources["chat.txt"].as_json() == {
        "people": {person_digest("Beto"): 4, person_digest("Ana"): 2},
        "first": "2022-11-27T09:00:00",
        "last": "2024-01-01T09:02:00",
    }
    assert Source(Counter({"+44 20 7946 0958": 2, "+442079460958": 3})).as_json()["people"] == {
        person_digest("+442079460958"): 5
    }
    assert Source().as_json() == {"people": {}, "first": None, "last": None}


def test_habits_are_the_persons_own():
    part = made(chat("c", "Hi.", "yo", "So.", "So there."))
    assert (part.habits.texts, part.habits.stops, part.habits.lower) == (2, 1, 1)


def test_a_part_travels_between_processes():
    part = made(chat("c", "tea?", f"to {PRIVATE}"))
    back = pickle.loads(pickle.dumps(part))  # noqa: S301 - its own
    assert lines(back) == lines(part)
    assert (back.values, back.dropped.counts, back.sources) == (part.values, part.dropped.counts, part.sources)


def test_what_a_source_leaves_out_is_counted_here():
    class Broken:
        name, size = "broken.txt", 0

        def read(self, dropped: Dropped):
            yield chat("c", "hi", "yo")
            dropped.add("media")
            dropped.problem("'broken.txt' is broken.", "Export it again.")

    part = shard.chats([Broken()], Job("Ana", ExportSettings()), Path("part"))
    assert replies(part) == ["yo"]
    assert part.dropped.counts == {"media": 1}
    assert part.dropped.problems == {"'broken.txt' is broken.": "Export it again."}


# ---------------------------------------------------------------- one process or several


def exported(brain, processes, **settings):
    """Export a brain; return the files' bytes, and the report without what depends on the clock."""
    folder = Path(f"data-{processes}")
    own = {"person": "me", "output": folder, "processes": processes, **settings}
    curate.export([brain], load_settings(export=own), Silent())
    found = {path.name: path.read_bytes() for path in folder.glob("*.json*")}
    report = orjson.loads(found.pop("dataset.json"))
    for name in ("seconds", "peak_rss_bytes", "paths"):
        report.pop(name, None)
    for name in ("output", "processes"):
        report["settings"].pop(name)
    return found, report


def generated(pairs):
    """Write a brain of so many exchanges; return its folder."""
    place = Path(__file__).parents[2] / "benchmarks" / "generate_chats.py"
    spec = importlib.util.spec_from_file_location("generate_chats", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.PAIRS_A_FILE = min(module.PAIRS_A_FILE, pairs // 3)
    module.generate(Path("brain"), pairs)
    return Path("brain")


def used(monkeypatch):
    """Return a list that grows with each pool of processes that is started."""
    pools = []
    real = dataset.ProcessPoolExecutor
    monkeypatch.setattr(dataset, "ProcessPoolExecutor", lambda *args: pools.append(args[0]) or real(*args))
    return pools


def test_one_process_or_two_make_the_same_files(monkeypatch):
    monkeypatch.setattr(dataset, "_WORTH_PROCESSES", 1)
    monkeypatch.setattr(dataset, "_PART_BYTES", 1 << 10)
    brain, pools = generated(1500), used(monkeypatch)
    (brain / "notes.json").write_bytes(orjson.dumps({"memories": [{"memory": "Answers to ab5@example.org"}] * 3}))
    one, two = exported(brain, 1), exported(brain, 2)
    assert pools == [2]
    assert one == two
    assert set(one[0]) >= {"finetune_dataset.jsonl", "train.jsonl", "val.jsonl"}
    assert one[0]["val.jsonl"].count(b"\n") > 50
    assert one[1]["redacted"]["phone"] > 10
    assert one[1]["dropped"]["near-duplicate"] > 50


def test_how_the_files_are_grouped_does_not_matter(monkeypatch):
    brain, found = generated(300), []
    for size in (1, 30_000, 1 << 30):
        monkeypatch.setattr(dataset, "_PART_BYTES", size)
        found.append(exported(brain, 1))
    assert found[0] == found[1] == found[2]


def test_files_are_grouped_by_their_size(monkeypatch):
    monkeypatch.setattr(dataset, "_PART_BYTES", 10)
    chats = [Held((), str(number), size) for number, size in enumerate([4, 4, 4, 20, 5, 4, 1, 3])]
    assert [[one.name for one in group] for group in dataset._grouped(chats)] == [
        ["0", "1", "2"],
        ["3"],
        ["4", "5", "6"],
        ["7"],
    ]
    assert dataset._grouped([]) == [[]]


@pytest.mark.parametrize(("processes", "size", "pools"), [(1, 1 << 30, []), (2, 1 << 30, [2]), (2, 1 << 20, [])])
def test_processes_start_where_there_is_enough_to_do(monkeypatch, processes, size, pools):
    started = used(monkeypatch)
    with dataset._pool(ExportSettings(processes=processes), [Held((), "", size)]) as run:
        assert list(run(abs, [-1, 2])) == [1, 2]
    assert started == pools


@pytest.mark.slow
def test_one_process_or_two_make_the_same_files_of_a_large_brain(monkeypatch):
    brain, pools = generated(125_000), used(monkeypatch)
    assert sum(path.stat().st_size for path in brain.iterdir()) > dataset._WORTH_PROCESSES
    one, two = exported(brain, 1), exported(brain, 2)
    assert pools == [2]
    assert one == two
    assert one[0]["finetune_dataset.jsonl"].count(b"\n") > 50_000


def test_a_row_is_read_back_as_it_was_written():
    part = made(chat("c", "tea?", f"to {PRIVATE}"))
    [row] = [Table([part], Redactor()).example(0)]
    assert row == Example("c:1-1", "c#0", "chat", (Turn("user", "tea?"), Turn("assistant", "to [email 1]")), "Beto")


def test_a_conversation_called_after_a_number_is_named_by_a_placeholder():
    talk = chat("Chat with +44 20 7946 0958.txt", "tea or coffee?", "tea, always", "sure?", "call +44 20 7946 0958")
    [one, two] = (row.decode() for row in Table([made(talk)], Redactor()).lines(np.arange(2)))
    assert '"id":"Chat with [phone 1].txt:1-1","conversation":"Chat with [phone 1].txt#0"' in one
    assert "call [phone 1]" in two
    assert "7946" not in one + two
    [kept, _] = (row.decode() for row in Table([made(talk, redact=False, path="k")], Redactor()).lines(np.arange(2)))
    assert '"id":"Chat with +44 20 7946 0958.txt:1-1"' in kept


@pytest.mark.parametrize(("answer", "goes"), [("Sunflower99!", True), ("try K4lem-2x", True), ("no idea sorry", False)])
def test_a_password_that_answers_is_a_secret(answer, goes):
    talk = chat("c", "whats the wifi password at yours again", answer, "thanks", "any time")
    part = made(talk, watch="secret (password)")
    assert (answer not in replies(part)) is goes
    assert part.dropped.counts["secret (password)"] == goes
    assert [text for _, text in part.dropped.listed] == ["…"] * goes
    assert answer in replies(made(chat("c", "what is it called again", answer, "thanks", "any time"), path="other"))


def test_a_message_that_is_too_long_is_listed_without_its_words():
    part = made(chat("c", "hi", "my password is Hunter2!! " * 2000), watch="over-long message")
    assert [text for _, text in part.dropped.listed] == ["49,999 characters"]


def test_long_lines_of_a_journal_are_quoted_too(tmp_path):
    line = "the day on which the whole street was out to see the circus leave the town again"
    row = Example("j#1", "j#1", "journal", (Turn("user", "What was it like?"), Turn("assistant", f"hi\n{line}")))
    part = shard.examples([(row, None)], Job("Ana", ExportSettings()), tmp_path / "others")
    said = made(chat("c", "and?", line))
    assert part.quoted[0].tolist() == said.quoted[0].tolist()
    assert part.quoted[1].tolist() == [0]
