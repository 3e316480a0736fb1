"""A brain as a whole: exported here or from a server, looked at, forgotten, and what was made of it."""

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path

import orjson
import pytest

from tests.listener import Listener
from twin import curate, files, runs
from twin.brain.forgotten import Tombstone
from twin.dataset import rows
from twin.errors import MachineError, StepError, UsageError
from twin.names import name_digest, person_digest, source_digest
from twin.progress import Silent
from twin.settings import load_settings

SECRET = "0123456789abcdef" * 3
CHAT = "".join(
    f"{day:02}/01/2024, 10:{minute:02} - {'Ada' if minute % 2 else who}: message {day * 100 + minute} {word}\n"
    for day, who, word in [(day, ("Bo", "Cy")[day % 2], f"number{day * 7919 % 97}") for day in range(1, 21)]
    for minute in range(4)
)


def rows_of(path):
    return [orjson.loads(line) for line in Path(path).read_bytes().splitlines()]


def spoken(rows, *kinds):
    """Return what is said in rows of some kinds, whatever their ids and system prompts."""
    return Counter(
        tuple((turn["role"], turn["content"]) for turn in row["messages"] if turn["role"] != "system")
        for row in rows
        if row["kind"] in kinds
    )


def export(sources=(), reporter=None, **settings):
    return curate.export(list(sources), load_settings(export=settings), reporter or Silent())


@pytest.fixture
def chat():
    Path("brain").mkdir()
    Path("brain/chat.txt").write_text(CHAT, "utf-8")
    return Path("brain/chat.txt")


# ---------------------------------------------------------------- export


def test_the_report_says_where_rows_come_from(chat):
    done = export(person="Ada")
    report = files.read_json(done.paths.report)
    assert report["provenance"] == {
        "chat.txt": {
            "people": {person_digest("Ada"): 40, person_digest("Bo"): 20, person_digest("Cy"): 20},
            "first": "2024-01-01T10:00:00",
            "last": "2024-01-20T10:03:00",
            "place": source_digest(str(chat.resolve())),
        }
    }
    assert report["rows"]["total"] == len(rows_of(done.paths.full)) == done.train + done.val
    for path in (done.paths.full, done.paths.train, done.paths.val):
        assert report["files"][path.name] == files.file_digest(path)
    assert done.paths.full.read_bytes() == done.paths.train.read_bytes() + done.paths.val.read_bytes()


def test_every_row_leads_back_to_its_messages(chat):
    done = export(person="Ada", deduplicate=False)
    messages = [line.partition(": ")[2] for line in CHAT.splitlines()]
    for row in rows_of(done.paths.full):
        name, _, span = row["id"].rpartition(":")
        first, last = (int(part) for part in span.split("-"))
        assert name == "chat.txt"
        assert row["messages"][-1]["content"] == "\n".join(messages[first : last + 1])


def test_the_closest_pair_across_the_split_is_told(chat):
    done = export(person="Ada", validation_split=0.5)
    sides = [{row["id"] for row in rows_of(path)} for path in (done.paths.train, done.paths.val)]
    assert 0 < done.closest < 0.7
    assert [row in side for row, side in zip(done.closest_rows, sides, strict=True)] == [True, True]


def test_a_broken_file_is_told_and_the_rest_used(chat):
    Path("brain/cut.json").write_text('{"memories": [', "utf-8")
    listener = Listener()
    done = export(person="Ada", reporter=listener)
    assert done.train > 20
    assert [line for line in listener.said if "cut.json" in line]
    assert files.read_json(done.paths.report)["problems"] == [
        "'brain/cut.json' is broken JSON: unexpected end of data at line 1."
    ]


def test_a_source_that_the_report_could_not_name(chat):
    with pytest.raises(UsageError, match="is no name in UTF-8"):
        export([Path("br\udcffain")], person="Ada")
    assert not Path("data").exists()


def test_a_failed_export_leaves_no_folder_behind(chat):
    chat.write_text("01/01/2024, 10:00 - Bo: hi\n01/01/2024, 10:01 - Ada: https://a.example\n", "utf-8")
    before = sorted(Path().rglob("*"))
    with pytest.raises(StepError, match="The dataset is empty"):
        export(person="Ada", output=Path("a/b/data"))
    assert sorted(Path().rglob("*")) == before


def test_a_dry_run_writes_nothing(chat):
    before = sorted(Path().rglob("*"))
    done = curate.export([], load_settings(export={"person": "Ada"}), Silent(), dry_run=True)
    assert done.train > 20
    assert sorted(Path().rglob("*")) == before


def test_reserved_memories_are_in_a_file_of_their_own(sample_brain):
    done = export([sample_brain])
    reserved = [row["memory"] for row in rows_of(done.paths.reserved)]
    assert len(reserved) == done.reserved == 7
    words = done.paths.full.read_text("utf-8").casefold()
    assert not any(text.casefold() in words for text in reserved)
    again = export([sample_brain], reserve=0.0)
    assert (again.reserved, again.paths.reserved.read_bytes()) == (0, b"")


def test_pseudonyms_are_stable_and_the_names_are_gone(chat):
    done = export(person="Ada", pseudonyms=True, format="raw")
    text = done.paths.full.read_text("utf-8")
    assert not re.search(r"\b(Bo|Cy)\b", text)
    assert set(re.findall(r"\[person \d+\]", text)) == {"[person 1]", "[person 2]"}
    assert done.redacted["person"] >= 2


def test_aliases_are_one_person(chat):
    Path("brain/other.txt").write_text(
        CHAT.replace("Ada", "ada_b").replace("Bo:", "Di:").replace("Cy:", "Ed:"), "utf-8"
    )
    Path("twin.toml").write_text('[people]\n"Ada" = ["ada_b"]\n', "utf-8")
    done = export()
    assert done.person == "Ada"
    assert files.read_json(done.paths.report)["provenance"]["other.txt"]["people"][person_digest("Ada")] == 40


# ---------------------------------------------------------------- forget


def forget(**what):
    return curate.forget(load_settings(), Silent(), **what)


def a_run(name, people=("Ada", "Bo"), provenance=True):
    """Lay a run that learned from chat.txt, as training and registering leave it."""
    paths = runs.run_paths(name)
    about = {"people": [name_digest(one) for one in people], "first": "2024-01-01T10:00:00", "last": None}
    files.write_json(paths.adapter_config, {})
    files.write_json(paths.record, {"provenance": {"chat.txt": about} if provenance else None})
    (paths.root / "model-q4_k_m.gguf").write_bytes(b"GGUF")
    runs.remember_model(paths, f"{name}-model", "http://127.0.0.1:11434")
    runs.remember_model(paths, f"{name}-model", "http://127.0.0.1:11434")
    return paths


def test_a_person_is_forgotten_and_what_learned_of_them_is_named(chat):
    before = export(person="Ada")
    files.write_text(Path("twin.toml"), '[export]\nperson = "Ada"\n')
    a_run("with-bo")
    a_run("without-bo", people=("Ada", "Cy"))
    a_run("unknown", provenance=False)
    source = chat.read_bytes()
    done = forget(person="Bo")
    assert (done.what, done.messages, done.others) == ("Bo", 20, 0)
    assert chat.read_bytes() == source
    assert files.read_json(Path("forgotten.json")) == {"forgotten": [{"person": "Bo", "source": "", "before": None}]}
    after = rows_of(before.paths.full)
    assert done.exported.train + done.exported.val == len(after) < before.train + before.val
    bo = {line.partition("Bo: ")[2] for line in CHAT.splitlines() if " Bo: " in line}
    assert not any(text in before.paths.full.read_text("utf-8") for text in bo)
    assert [(Path(run["adapter"]).name, run["certain"]) for run in done.made] == [
        ("unknown", False), ("with-bo", True),
    ]  # fmt: skip
    assert done.made[1]["gguf"] == ["adapters/with-bo/model-q4_k_m.gguf"]
    assert done.made[1]["models"] == [{"model": "with-bo-model", "host": "http://127.0.0.1:11434"}]
    # It stays so, and saying it again makes the same again.
    assert export(person="Ada").train == done.exported.train
    again = forget(person="Bo")
    assert (again.messages, again.exported.train) == (0, done.exported.train)
    assert rows_of(before.paths.full) == after
    assert files.read_json(Path("forgotten.json")) == {"forgotten": [{"person": "Bo", "source": "", "before": None}]}


def test_another_dataset_is_exported_again_as_it_was_made_and_where_it_is_now(chat):
    first, second = (export(person="Ada", output=Path(name), format="alpaca") for name in ("data", "old"))
    Path("other").mkdir()
    second.paths.root.rename("other/place")
    settings = load_settings(export={"output": Path("other/place")})
    done = curate.forget(settings, Silent(), person="Bo")
    assert (done.dataset, done.exported.paths.root) == (Path("other/place"), Path("other/place"))
    found = rows_of("other/place/finetune_dataset.jsonl")
    assert len(found) == done.exported.train + done.exported.val < second.train + second.val
    assert "instruction" in found[0]
    assert not Path("old").exists()
    # The first one was made before that, and can be asked for; so can a copy of it, whatever its date.
    assert len(rows_of(first.paths.full)) == first.train + first.val
    later = Path("forgotten.json").stat().st_mtime + 60
    os.utime(first.paths.report, (later, later))
    again = forget(person="Bo")
    assert (again.messages, again.dataset, len(rows_of(first.paths.full))) == (0, Path("data"), len(found))


def test_forgetting_without_a_dataset_says_so(chat):
    files.write_text(Path("twin.toml"), '[export]\nperson = "Ada"\n')
    done = forget(person="Bo")
    assert (done.messages, done.dataset, done.exported) == (20, None, None)


def test_a_time_and_a_source_are_forgotten(chat):
    export(person="Ada")
    files.write_text(Path("twin.toml"), '[export]\nperson = "Ada"\n')
    done = forget(before=datetime(2024, 1, 11))
    assert done.messages == 40
    assert all(
        int(row["id"].rpartition(":")[2].partition("-")[0]) >= 40 for row in rows_of("data/finetune_dataset.jsonl")
    )
    with pytest.raises(UsageError, match=r"Nothing here is of source chat\.tx\."):
        forget(source="chat.tx")


@pytest.mark.parametrize("what", [{"source": "chat.txt"}, {"before": datetime(2030, 1, 1)}])
def test_where_nothing_is_left_the_old_rows_go_however_often_it_is_said(chat, what):
    paths = export(person="Ada").paths
    files.write_text(Path("twin.toml"), '[export]\nperson = "Ada"\n')
    kept = {name: Path("data", name).read_bytes() for name in ("train.jsonl", "dataset.json")}
    with pytest.raises(StepError, match="is hidden, and no row is left: the old dataset was removed"):
        forget(**what)
    assert not paths.full.exists()
    assert not paths.train.exists()
    for name, content in kept.items():  # the removal failed, say
        Path("data", name).write_bytes(content)
    with pytest.raises(StepError, match="the old dataset was removed"):
        forget(**what)
    assert not paths.train.exists()


def test_a_profile_is_forgotten_and_documents_without_chats_are_called_by_name(chat):
    files.write_json(Path("brain/app.json"), {"personality_profile": {"facts": ["Ada has a boat called Wim."]}})
    export(person="Ada")
    assert "Wim" in Path("data/dataset.json").read_text("utf-8")
    with pytest.raises(UsageError) as caught:
        forget(source="ap.json")
    assert caught.value.hint == "Did you mean 'app.json'?"
    with pytest.raises(UsageError, match=r"Nothing here is of Bo, source app\.json"):
        forget(person="Bo", source="app.json")
    assert forget(source="app.json").exported.train
    assert "Wim" not in Path("data/dataset.json").read_text("utf-8")


@pytest.mark.parametrize("what", [{"person": "Bo"}, {"source": "chat.txt"}])
@pytest.mark.parametrize("exported", [True, False])  # False: the first one was killed
def test_forgetting_takes_away_what_killed_exports_left(chat, exported, what):
    files.write_text(Path("twin.toml"), '[export]\nperson = "Ada"\n')
    if exported:
        export()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    half = [Path(f"data/.{name}.{gone.pid}.x.partial") for name in ("train.jsonl", "reserved.jsonl", "dataset.json")]
    scratch, living = Path(f".data.{gone.pid}.y.partial"), Path(f"data/.val.jsonl.{os.getppid()}.x.partial")
    for path in (*half, scratch / "part-0", living):
        files.write_text(path, "old words")
    forget(**what, dry_run=True)
    assert all(path.exists() for path in (*half, scratch, living))
    with pytest.raises(StepError) if exported and "source" in what else nullcontext():
        forget(**what)
    assert not any(path.exists() for path in (*half, scratch))
    assert living.exists()


def test_another_process_in_the_folder_is_waited_for_and_nothing_is_removed(chat):
    paths = export(person="Ada").paths
    before = paths.train.read_bytes()
    with files.exclusive(paths.root), pytest.raises(StepError, match="Another twin is working"):
        forget(person="Bo")
    assert paths.train.read_bytes() == before
    assert forget(person="Bo").exported.train  # it may be said again


def test_a_dry_run_of_forgetting_hides_nothing(chat):
    export(person="Ada")
    files.write_text(Path("twin.toml"), '[export]\nperson = "Ada"\n')
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    done = forget(person="Cy", dry_run=True)
    assert (done.messages, done.exported) == (20, None)
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("sources", ["brain", {"brain": 1}, 5, [5], ["bra\0in"]])
def test_a_report_whose_sources_are_none(chat, sources):
    export(person="Ada")
    report = Path("data/dataset.json")
    files.write_json(report, files.read_json(report) | {"sources": sources})
    with pytest.raises(UsageError) as caught:
        forget(person="Bo")
    assert caught.value.message == "'sources' in 'data/dataset.json' is no list of paths."
    assert not Path("forgotten.json").exists()


@pytest.mark.parametrize("settings", [["person"], {"person": "Ada", "colour": "red"}])
def test_a_report_whose_settings_are_none_is_told(chat, settings):
    export(person="Ada")
    report = Path("data/dataset.json")
    files.write_json(report, files.read_json(report) | {"settings": settings})
    listener = Listener()
    done = curate.forget(load_settings(export={"person": "Ada"}), listener, person="Bo")
    assert done.exported.train
    assert listener.said[0].startswith("'settings' in 'data/dataset.json' are none of this version's")


ODD_SOURCES = [
    "Ada", [], {}, {"people": "Bo"}, {"people": {"Bo": 1}}, {"people": ["x"], "first": "yesterday"},
    {"people": ["x"], "first": 2024},
]  # fmt: skip


@pytest.mark.parametrize("about", ODD_SOURCES, ids=str)
def test_a_run_whose_record_does_not_tell_is_named_as_one_that_may_have_learned(chat, about):
    export(person="Ada")
    for name, source in [("odd", "chat.txt"), ("other", "else.txt")]:
        files.write_json(a_run(name).record, {"provenance": {source: about}})
    done = forget(source="chat.txt", before=datetime(2024, 1, 11), dry_run=True)
    assert [(run["adapter"], run["certain"]) for run in done.made] == [("adapters/odd", False)]


@pytest.mark.parametrize("named", ["Di", "di_77", "+442079460958"])
def test_a_run_knows_a_person_by_any_name_and_spelling_of_today(chat, named):
    chat.write_text(CHAT.replace("Bo", "+44 20 7946 0958").replace("Cy", "di_77"), "utf-8")
    export(person="Ada")
    files.write_json(a_run("told").record, {"provenance": rows.load(load_settings()).provenance})
    Path("twin.toml").write_text('[people]\n"Di" = ["di_77", "+44 (20) 79460958"]\n', "utf-8")
    assert [run["certain"] for run in forget(person=named, dry_run=True).made] == [True]
    Path("twin.toml").unlink()
    if named != "Di":
        assert [run["certain"] for run in forget(person=named, dry_run=True).made] == [True]


@pytest.mark.parametrize("before", [None, datetime(2030, 1, 1)])
def test_a_forgotten_source_stays_so_whatever_folder_is_named(chat, before):
    for name in ("sub/chat.txt", "sub/2020-01-02.md", "sub/other.txt"):
        files.write_text(Path("brain", name), "Forgotten words.\n" if name.endswith(".md") else CHAT)
    with zipfile.ZipFile("brain/old.zip", "w") as packed:
        packed.writestr("in/a.txt", CHAT)
    export(person="Ada")
    forget(source="sub/chat.txt", before=before)
    forget(source="sub/2020-01-02.md", before=before)
    forget(source="old.zip", before=before)
    stones = files.read_json(Path("forgotten.json"))["forgotten"]
    assert [one["paths"] for one in stones] == [
        [str(Path("brain/sub/chat.txt").resolve())],
        [str(Path("brain/sub/2020-01-02.md").resolve())],
        [str(Path("brain/old.zip").resolve()) + "/in/a.txt"],
    ]
    Path("elsewhere").symlink_to("brain/old.zip")
    report = files.read_json(export([Path("brain/sub"), Path("elsewhere")], person="Ada").paths.report)
    seen = {name: one["people"] for name, one in report["provenance"].items() if one["people"] or one["first"]}
    assert list(seen) == ["other.txt"]
    forget(source="sub/chat.txt", before=before)  # in another folder, where nothing is called so
    assert files.read_json(Path("forgotten.json"))["forgotten"] == stones


def test_a_stone_of_before_paths_were_kept_gets_them_when_it_is_said_again(chat):
    files.write_text(Path("brain/sub/chat.txt"), CHAT)
    files.write_json(Path("forgotten.json"), {"forgotten": [{"source": "sub"}, {"person": "Cy"}]})
    export(person="Ada")
    forget(source="sub")
    assert files.read_json(Path("forgotten.json"))["forgotten"][0]["paths"] == [
        str(Path("brain/sub/chat.txt").resolve())
    ]


@pytest.mark.parametrize("source", ["", "sub", "sub/", "sub/+44 20 7946 0958.zip", "sub/+44 20 7946 0958.zip/in/a.txt"])
def test_neither_report_nor_record_names_anybody_and_yet_all_that_was_learned_is_found(chat, source):
    Path("brain/sub").mkdir()
    with zipfile.ZipFile("brain/sub/+44 20 7946 0958.zip", "w") as packed:
        packed.writestr("in/a.txt", CHAT.replace("Bo", "+44 20 7946 0958").replace("Cy", "Zoe Quill"))
    report = files.read_json(export(person="Ada").paths.report)
    assert [len(one["people"]) for one in report["provenance"].values()] == [3, 3]
    assert not re.search(r"Zoe|7946 0958", str(list(report["provenance"].values())))
    provenance = rows.load(load_settings()).provenance
    files.write_json(a_run("told").record, {"provenance": provenance})
    assert not re.search(r"Zoe|7946 0958|\.txt|\.zip", runs.run_paths("told").record.read_text("utf-8"))
    for person in ("", "Zoe Quill", "+442079460958"):
        if person or source:
            assert [run["certain"] for run in forget(person=person, source=source, dry_run=True).made] == [True]
    for what in ({"person": "Bo", "source": "chat.txt"}, {"source": "chat.txt", "before": datetime(2024, 1, 11)}):
        assert [run["certain"] for run in forget(dry_run=True, **what).made] == [True]
    files.write_json(runs.run_paths("told").record, {"provenance": dict(list(provenance.items())[1:])})
    assert forget(source="chat.txt", before=datetime(2024, 1, 11), dry_run=True).made == ()


def test_a_run_that_learned_from_another_folders_name_of_a_file_is_found(chat):
    files.write_text(Path("brain/sub/other.txt"), CHAT)
    export([Path("brain/sub")], person="Ada")
    files.write_json(a_run("told").record, {"provenance": rows.load(load_settings()).provenance})
    export(person="Ada")
    assert [run["certain"] for run in forget(source="sub/other.txt", dry_run=True).made] == [True]
    assert forget(source="chat.txt", dry_run=True).made == ()


def test_an_older_record_may_know_a_phone_number_in_another_spelling(chat):
    chat.write_text(CHAT.replace("Bo", "+44 20 7946 0958"), "utf-8")
    export(person="Ada")
    a_run("other", people=("Ada", "+44 (20) 7946-0958"))
    a_run("same", people=("Ada", "+44 20 7946 0958"))
    assert [(run["adapter"], run["certain"]) for run in forget(person="+44 20 7946 0958", dry_run=True).made] == [
        ("adapters/other", False), ("adapters/same", True),
    ]  # fmt: skip


def test_a_training_that_was_stopped_may_have_learned(chat):
    export(person="Ada")
    a_run("again", people=("Ada",))
    a_run("with-bo")
    for name in ("again", "with-bo", "stopped"):
        (runs.run_paths(name).checkpoints / "checkpoint-5").mkdir(parents=True)
    assert [(run["adapter"], run["certain"]) for run in forget(person="Bo", dry_run=True).made] == [
        ("adapters/again", False), ("adapters/stopped", False), ("adapters/with-bo", True),
    ]  # fmt: skip


def test_documents_without_conversations_stand_in_the_provenance(chat):
    Path("brain/diary #2.md").write_text("## 2 January 2020\n\nRain all day.\n\n## 3 January 2021\n\nSun.\n", "utf-8")
    files.write_json(Path("brain/profile/app.json"), {"personality_profile": {"facts": ["Ada has a boat called Wim."]}})
    found = files.read_json(export(person="Ada").paths.report)["provenance"]
    dated = {"people": {}, "first": "2020-01-02T00:00:00", "last": "2021-01-03T00:00:00"}
    assert found["diary #2.md"].items() > dated.items()
    assert found["profile/app.json"].items() > {"people": {}, "first": None, "last": None}.items()
    about = rows.load(load_settings()).provenance
    files.write_json(a_run("told").record, {"provenance": about})
    done = forget(source="diary #2.md", dry_run=True)
    assert (done.others, [run["certain"] for run in done.made]) == (2, [True])


def test_times_with_and_without_a_zone_are_compared(chat):
    export(person="Ada")
    about = {"people": [], "first": "2024-01-01T10:00:00+02:00"}
    files.write_json(a_run("zoned").record, {"provenance": {"chat.txt": about}})
    assert forget(before=datetime(2024, 1, 11), dry_run=True).made[0]["certain"]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({}, "Nothing is named."),
        ({"person": "Ada"}, "'Ada' is whose twin this is."),
        ({"person": "Zed"}, "Nothing here is of Zed."),
        ({"before": datetime(2020, 1, 1)}, "Nothing here is of before 2020-01-01."),
    ],
)
def test_what_cannot_be_forgotten(chat, what, message):
    files.write_text(Path("twin.toml"), '[export]\nperson = "Ada"\n')
    export(person="Ada")
    with pytest.raises(UsageError) as caught:
        forget(**what)
    assert caught.value.message == message
    assert not Path("forgotten.json").exists()


def test_counting_what_would_be_hidden_leaves_nothing_out_again(chat):
    with chat.open("a") as handle:
        handle.write("21/01/2024, 10:00 - Bo: <Media omitted>\n")
    brain = curate.read_brain([], load_settings(export={"person": "Ada"}), Silent())
    before = brain.dropped.counts.copy()
    assert curate._hidden(brain, Tombstone("Bo"))["messages"] == 20
    assert brain.dropped.counts == before


# ---------------------------------------------------------------- look


def test_stats_count_everything(chat):
    seen = curate.stats([], load_settings(export={"person": "Ada"}), Silent()).as_json()
    assert (seen["conversations"], seen["messages"], seen["own_messages"]) == (1, 80, 40)
    assert seen["people"] == {"Ada": 40, "Bo": 20, "Cy": 20}
    assert seen["own_messages_by_month"] == {"2024-01": 40}
    assert seen["own_messages_by_hour"]["10"] == 40
    assert sum(seen["own_lengths_in_characters"].values()) == 40
    assert seen["rows"]["total"] > 20
    assert not Path("data").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_temporary_folder_is_the_one_that_is_named(chat, monkeypatch):
    folder = Path("tmp").absolute()

    def made(*names):
        folder.mkdir()
        (folder / "part-0").symlink_to("/dev/full")
        return str(folder)

    monkeypatch.setattr(tempfile, "mkdtemp", made)
    with pytest.raises(MachineError) as caught:
        curate.stats([], load_settings(export={"person": "Ada"}), Silent())
    assert caught.value.message == f"The disk is full: could not write '{folder}'."
    assert not folder.exists()


def test_no_temporary_folder_is_a_sentence(chat, monkeypatch):
    def nowhere(*names):
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "mkdtemp", nowhere)
    with pytest.raises(MachineError, match="no folder for temporary files"):
        curate.preview([], load_settings(export={"person": "Ada"}), Silent(), 1)


def test_preview_shows_what_an_export_writes(chat):
    settings = load_settings(export={"person": "Ada"})
    seen = curate.preview([], settings, Silent(), 3)
    written = rows_of(curate.export([], settings, Silent()).paths.train)[:3]
    assert [row.id for row in seen.rows] == [row["id"] for row in written]
    assert [[turn._asdict() for turn in row.turns] for row in seen.rows] == [row["messages"] for row in written]


def test_preview_lists_what_was_left_out(chat):
    with chat.open("a") as handle:
        handle.write("21/01/2024, 10:00 - Bo: <Media omitted>\n21/01/2024, 10:01 - Ada: my password is Kal1mba!\n")
        handle.write("21/01/2024, 10:02 - Bo: look\n21/01/2024, 10:03 - Ada: https://a.example/b\n")
    settings = load_settings(export={"person": "Ada"})
    assert curate.preview([], settings, Silent(), 9, "media").listed == (("chat.txt", "Bo: <Media omitted>"),)
    assert curate.preview([], settings, Silent(), 9, "links only").listed == (
        ("chat.txt:82-82", "https://a.example/b"),
    )
    hidden = curate.preview([], settings, Silent(), 9, "secret (password)").listed
    assert hidden == (("chat.txt:80", "…"),)
    with pytest.raises(UsageError) as caught:
        curate.preview([], settings, Silent(), 9, "medai")
    assert caught.value.hint == "Did you mean 'media'?"


# ---------------------------------------------------------------- the app


def test_conversations_are_served_as_they_were_said_and_the_rest_without_secrets(chat):
    with chat.open("a") as handle:
        handle.write("21/01/2024, 10:00 - Bo: wifi?\n21/01/2024, 10:01 - Ada: my password is Kal1mba!\n")
    secret = {"memory": "my password is Kal1mba!", "category": "core", "importance": 0.9}
    mail = {"memory": "Ada writes to ada@example.org every day", "category": "core", "importance": 0.9}
    files.write_json(Path("brain/core_memories.json"), {"memories": [secret, mail]})
    source = curate.app_source([], load_settings(export={"person": "Ada"}), Silent())
    said = [message.text for one in source.conversations() for message in one.messages]
    assert "my password is Kal1mba!" in said  # the other end's export leaves it out
    assert [memory.text for memory in source.memories] == ["Ada writes to [email 1] every day"]
    assert "Kal1mba" not in str(source.preview("chatml", 1000))


@pytest.fixture
def served(sample_brain, monkeypatch):
    """``twin serve`` on the sample brain: its URL, and a token in the environment."""
    environ = {**os.environ, "TWIN_SERVE_SECRET": SECRET}
    twin = [sys.executable, "-m", "twin", "serve"]
    token = subprocess.run([*twin, "--token"], env=environ, capture_output=True, text=True, check=True).stdout.strip()
    Path("server").mkdir()
    server = subprocess.Popen(
        [*twin, str(sample_brain), "--port", "0"], env=environ, cwd="server", stdout=subprocess.PIPE, text=True
    )
    try:
        url = re.search(r"http://\S+?(?=,)", server.stdout.readline())[0]
        monkeypatch.setenv("TWIN_APP_TOKEN", token)
        yield url
    finally:
        server.terminate()
        server.wait(20)


def test_an_export_of_a_served_brain_has_the_rows_of_the_local_one(served, sample_brain):
    local = rows_of(export([sample_brain], output=Path("local"), deduplicate=False).paths.full)
    settings = load_settings(export={"output": Path("fetched"), "deduplicate": False}, app={"url": served})
    done = curate.export([], settings, Silent(), via="brain")
    fetched = rows_of(done.paths.full)
    own = ("chat", "memory", "fact", "example")  # the app's format has no place for journals
    assert spoken(fetched, *own) == spoken(local, *own)
    assert spoken(local, *own).total() > 800
    assert files.read_json(done.paths.report)["sources"] == [served]
    assert done.reserved == 7
    assert not any(path.name.endswith(".partial") for path in Path().iterdir())


def test_the_apps_own_rows_are_fetched_as_they_are(served):
    settings = load_settings(export={"output": Path("rows")}, app={"url": served})
    files.write_text(Path("rows/reserved.jsonl"), "of an earlier export")
    done = curate.export([], settings, Silent(), via="app")
    made = Path("server/data")
    for name in ("train.jsonl", "val.jsonl"):
        assert (Path("rows") / name).read_bytes() == (made / name).read_bytes()
    assert not done.paths.reserved.exists()
    assert (done.train, done.val) == tuple(len(rows_of(made / name)) for name in ("train.jsonl", "val.jsonl"))
    from twin.dataset import rows

    found = rows.load(load_settings(train={"dataset": Path("rows/finetune_dataset.jsonl")}))
    assert (len(found.train), found.left_out) == (done.train, done.val)


def test_the_app_is_asked_where_the_environment_names_it(served, monkeypatch):
    monkeypatch.setenv("TWIN_APP_URL", served)
    done = curate.export([], load_settings(), Silent())
    assert files.read_json(done.paths.report)["sources"] == [served]


def test_a_token_of_somebody_else_is_refused_and_not_shown(served, monkeypatch, capfd):
    monkeypatch.setenv("TWIN_APP_TOKEN", "not-a-token")
    with pytest.raises(StepError) as caught:
        curate.export([], load_settings(app={"url": served}), Silent(), via="brain")
    assert "not-a-token" not in f"{caught.value.message} {caught.value.hint} {capfd.readouterr()}"
    assert not Path("data").exists()
