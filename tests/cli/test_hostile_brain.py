"""Brains that somebody else made: bombs, broken files, names and words that look like our own. Good files are used.

Typed in this process, which is six times as fast as starting one: an exception that escapes fails the test by itself.
"""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cli.conftest import listing
from twin.cli.main import main
from twin.dataset.formats import read_rows

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="POSIX file names and files")


class Said(NamedTuple):
    """An exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        """The one object on stdout."""
        assert self.out.count("\n") == 1
        return json.loads(self.out)


@pytest.fixture
def typed(capfd) -> Callable[..., Said]:
    def run(*arguments: str) -> Said:
        capfd.readouterr()
        code = main(list(arguments))
        return Said(code, *capfd.readouterr())

    return run


def zipped(*files: tuple[str, str | bytes]) -> bytes:
    whole = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return whole.getvalue()


def with_central(data: bytes, at: int, value: bytes) -> bytes:
    """Return a zip whose last directory entry says something else."""
    begin = data.rindex(b"PK\1\2") + at
    return data[:begin] + value + data[begin + len(value) :]


def chat(*names: str, count: int = 40, text: str = "message {n} of many words, {m}") -> str:
    return "".join(
        f"{n // 8 % 28 + 1:02}/01/2024, 10:{n % 8:02} - {names[n % len(names)]}: "
        f"{text.replace('{n}', str(n)).replace('{m}', str(n * 7919 % 9973))}\n"
        for n in range(count)
    )


def rows(name: str = "finetune_dataset.jsonl") -> list[dict]:
    return [json.loads(line) for line in (Path("data") / name).read_bytes().splitlines()]


def outside() -> set[str]:
    """Every file but the export's own."""
    return {name for name in listing() if not name.startswith("data/")}


# ---------------------------------------------------------------- files


def test_a_broken_file_is_named_and_the_good_ones_are_used(typed, brain):
    brain()
    talk = zipped(("chat.txt", chat("Bo", "Ada")))
    broken = {
        "bomb.zip": (zipped(("chat.txt", b"0" * (20 << 20))), "'chat.txt' in '{}' would unpack to 20,971,520 bytes"),
        "cut.zip": (talk[: len(talk) // 2], "'{}' is a broken zip."),
        "empty.zip": (zipped(), "'{}' is empty."),
        "no byte.zip": (b"", "'{}' is empty."),
        "less than it holds.zip": (with_central(talk, 24, struct.pack("<I", 99)), "'chat.txt' in '{}' can't be unp"),
        "locked.zip": (with_central(talk, 8, b"\1\0"), "'chat.txt' in '{}' has a password."),
        "one over the other.zip": (
            with_central(zipped(("a.txt", chat("Bo", "Ada")), ("b.txt", "x")), 42, b"\0" * 4),
            "'b.txt' in '{}' can't be unpacked",
        ),
        "cut.json": ('{"personality_profile": {"name": "Ada"},\n "memo', "'{}' is broken JSON: "),
        "deep.json": ('{"memories": [' + "[" * 10_000 + "]" * 10_000 + "]}", "'{}' is broken JSON: "),
        "latin.txt": ("01/02/2024, 10:00 - José: olé\n".encode("latin-1"), "'{}' is not UTF-8 text (byte 23 can't"),
        "nothing.txt": ("", "'{}' is empty."),
    }
    for name, (content, _) in broken.items():
        brain(content, name)
    brain(zipped(("inner.zip", talk)), "two deep.zip")
    brain(b"\0" * 100_000, "nul.txt")
    before = outside()
    done = typed("export", "--person", "Ada", "--json", "--quiet")
    assert (done.code, done.json["rows"]["total"], done.err) == (0, 20, "")
    problems = done.json["problems"]
    for name, (_, sentence) in broken.items():
        assert [one for one in problems if one.startswith(sentence.format(f"brain/{name}"))], name
    # What can be read of the zips says the same as chat.txt, so it adds no rows.
    assert done.json["dropped"]["file in a zip (.zip)"] == 1
    assert done.json["dropped"]["unknown file: nul.txt"] == 1
    assert outside() == before


def test_names_in_a_zip_become_no_paths(typed, brain):
    names = [
        "../../../escaped.txt",
        "/escaped.txt",
        "C:\\escaped.txt",
        "a/../../escaped.txt",
        "line\nbreak\x1b[31m.txt",
    ]
    brain(zipped(*((name, chat(f"Bo{number}", "Ada", text=f"{{m}} {name[-9:]}")) for number, name in enumerate(names))))
    Path("brain/chat.txt").rename("brain/all.zip")
    above = set(Path("..").iterdir())
    done = typed("export", "--person", "Ada", "--no-deduplicate")
    assert done.code == 0
    assert "\x1b" not in done.out + done.err
    assert {row["id"].rpartition(":")[0] for row in rows()} == {f"all.zip/{name}" for name in names}
    assert outside() == {"brain/all.zip"}
    assert set(Path("..").iterdir()) == above
    assert not Path("/escaped.txt").exists()


@posix_only
def test_what_is_no_file_is_not_waited_for(typed, brain):
    path = brain()
    os.mkfifo(path.with_name("pipe.txt"))
    path.with_name("loop").symlink_to("loop")
    path.with_name("again").symlink_to(".")
    path.with_name("gone.txt").symlink_to("nowhere")
    done = typed("export", "--person", "Ada", "--json", "--quiet")
    assert (done.code, done.json["rows"]["total"]) == (0, 20)


@posix_only
@pytest.mark.parametrize("device", ["/dev/null", "/dev/zero"])
def test_a_device_has_an_end(typed, device):
    done = typed("export", device, "--json")
    assert (done.code, done.json["exit_code"], device in done.json["error"]) == (2, 2, True)


@posix_only
@pytest.mark.parametrize("content", ["", "{}"], ids=["a problem", "a reason"])
def test_a_file_name_that_is_no_unicode(typed, brain, content):
    brain()
    Path("brain", os.fsdecode(b"caf\xe9.json")).write_text(content, "utf-8")
    done = typed("export", "--person", "Ada", "--json", "--quiet")
    assert (done.code, done.json["rows"]["total"]) == (0, 20)
    assert "caf?.json" in str([*done.json["problems"], *done.json["dropped"]])


@posix_only
def test_a_file_name_makes_no_line_of_its_own(typed, brain):
    brain()
    brain("", "x\nHint: delete everything.txt")
    done = typed("export", "--person", "Ada")
    assert not [line for line in done.err.splitlines() if line.startswith("Hint: delete")]


def test_a_source_whose_name_is_too_long(typed):
    assert typed("export", "a" * 300).code == 2


@posix_only
def test_a_linked_folder_is_read_or_named(typed, brain):
    brain()
    Path("elsewhere").mkdir()
    Path("elsewhere/more.txt").write_text(chat("Cy", "Ada", text="elsewhere {m}"), "utf-8")
    Path("brain/more").symlink_to(Path("elsewhere").absolute())
    done = typed("export", "--person", "Ada", "--json", "--quiet")
    assert done.json["rows"]["total"] == 40 or "more" in str([*done.json["problems"], *done.json["dropped"]])


def test_messages_before_a_break_are_kept(typed, brain):
    said = [
        {"type": "message", "date": f"2024-01-0{n // 9 + 1}T10:0{n % 9}:00", "date_unixtime": "1", "text": f"word {n}",
         "from": "Ada" if n % 2 else "Bo"}
        for n in range(40)
    ]  # fmt: skip
    brain(json.dumps({"name": "Bo", "messages": said})[:-200], "result.json")
    brain(chat("Bo", "Ada", count=20))
    done = typed("export", "--person", "Ada", "--json", "--quiet")
    assert any(row["id"].startswith("result.json") for row in rows())
    assert done.json["problems"][0].startswith("'brain/result.json' is broken JSON after ")


# ---------------------------------------------------------------- lines


def test_lines_no_program_should_write(typed, brain):
    """NaN and half a character are read, depth without end is counted with its line."""
    lines = [
        f'{{"speaker": "{"Ada" if n % 2 else "Bo"}", "text": "a\\ud800b {n * 7919}", "x": NaN}}' for n in range(40)
    ]
    lines[20:20] = ['{"speaker": "Bo", "text": ' + "[" * 10_000 + "]" * 10_000 + "}", "[" * 10_000, '"Ada"', "{"]
    brain("\r\n".join(lines), "said.jsonl")
    done = typed("export", "--person", "Ada", "--json", "--quiet")
    assert (done.code, done.json["dropped"]["broken line"]) == (0, 4)
    assert done.json["problems"] == ["'brain/said.jsonl' has a broken line (the first is line 21)."]
    replies = {row["messages"][-1]["content"] for row in rows()}
    assert replies == {f"ab {n * 7919}" for n in range(1, 40, 2)}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_and_line_ends_give_the_same_rows(typed, brain, encoding):
    text = chat("Böb", "Ada", text="ありがとう {n} {m}")
    brain(text.replace("\n", "\r\n").encode(encoding))
    assert typed("export", "--person", "Ada", "--quiet").code == 0
    said = {turn["content"] for row in rows() for turn in row["messages"] if turn["role"] != "system"}
    assert said == {line.partition(": ")[2] for line in text.splitlines()}


def test_dates_at_the_ends_of_the_calendar(typed, brain):
    for year in ("0000", "0001", "1969", "9999"):
        brain(chat("Bo", "Ada", text=f"{year} {{m}}").replace("2024", year), f"{year}.txt")
    seen = typed("stats", "--person", "Ada", "--json", "--quiet")
    assert (seen.code, seen.json["own_messages"]) == (0, 80)
    done = typed("export", "--person", "Ada", "--no-deduplicate", "--json", "--quiet")
    assert (done.code, done.json["rows"]["total"]) == (0, 80)


# ---------------------------------------------------------------- words and names


@pytest.mark.parametrize("format_name", ["chatml", "alpaca", "sharegpt", "raw"])
def test_words_that_look_like_ours_stay_words(typed, brain, format_name):
    told = '{"messages":[{"role":"system","content":"x"}],"id":"y"}\n]},{" \\u0000 [email 1] \ue000email7\ue001 {m}'
    brain(chat("Bo", "Ada", text=told))
    assert typed("export", "--person", "Ada", "--format", format_name, "--no-deduplicate", "--quiet").code == 0
    found = list(read_rows(Path("data/finetune_dataset.jsonl")))
    plain = told.replace("\ue000", "").replace("\ue001", "")
    assert {row.reply for row in found} == {plain.replace("{m}", str(n * 7919 % 9973)) for n in range(1, 40, 2)}
    assert all({turn.role for turn in row.turns} <= {"system", "user", "assistant"} for row in found)
    assert len({row.id for row in found}) == len(found) == 20


def test_pseudonyms_of_names_that_are_patterns(typed, brain):
    names = ["B.o*(", "[x]{2}\\", "😀", "$", "\\1", "O'Neil Jr.", "%s {a}"]
    brain(chat(*names, "Ada", count=80, text=" – ".join(names) + " and Ada said {m}"))
    done = typed("export", "--person", "Ada", "--pseudonyms", "--quiet", "--json")
    assert (done.code, done.json["rows"]["total"]) == (0, 10)
    for row in rows():
        for turn in row["messages"][1:]:
            assert not [name for name in names if name in turn["content"]], turn
            assert "and Ada said" in turn["content"]


def test_pseudonyms_of_somebody_without_a_name(typed, brain):
    brain(chat("", "Ada"))
    assert typed("export", "--person", "Ada", "--pseudonyms", "--quiet").code == 0


@pytest.mark.parametrize("where", ["name", "file"])
def test_a_name_that_looks_like_a_placeholder(typed, brain, where):
    odd = "\ue000email9\ue001"
    brain(chat("Bo", "Cy", "Ada"))
    plain = typed("export", "--person", "Ada", "--json", "--quiet").json["rows"]["total"]
    Path("brain/chat.txt").unlink()
    brain(chat(odd if where == "name" else "Bo", "Cy", "Ada"), f"{odd}.txt" if where == "file" else "chat.txt")
    done = typed("export", "--person", "Ada", "--json", "--quiet")
    assert (done.code, done.json["rows"]["total"]) == (0, plain)


# ---------------------------------------------------------------- forgetting


@pytest.mark.parametrize("text", ["{", "[]", '{"forgotten": 1}', '{"forgotten": [{"persn": "Bo"}]}', ""])
def test_what_is_hidden_is_never_seen_again_for_a_broken_file(typed, brain, text):
    brain()
    Path("forgotten.json").write_text(text, "utf-8")
    done = typed("preview", "--person", "Ada", "--json")
    assert (done.code, done.json["exit_code"]) == (2, 2)
    assert done.json["error"].startswith("'forgotten.json' ")


def test_a_tombstone_with_a_zone(typed, brain):
    brain()
    Path("forgotten.json").write_text('{"forgotten": [{"before": "2000-01-03T00:00:00+00:00"}]}', "utf-8")
    assert typed("export", "--person", "Ada", "--quiet").code in (0, 2)


def test_the_twins_own_person_in_other_letters(typed, brain):
    brain()
    Path("twin.toml").write_text('[export]\nperson = "Ada"\n', "utf-8")
    assert typed("forget", "ADA", "--dry-run").code == 2


def test_forgetting_exports_as_it_was_exported(typed, brain):
    for name in ("Bo", "Cy", "Di"):
        brain(chat(name, "Ada", text=f"{name} {{m}}"), f"{name}.txt")
    assert typed("export", "--person", "Ada", "--pseudonyms", "--format", "alpaca", "--quiet").code == 0
    Path("twin.toml").write_text('[export]\nperson = "Ada"\n', "utf-8")
    assert typed("forget", "Cy", "--quiet").code == 0
    assert all("instruction" in row and "Bo" not in row["instruction"] for row in rows())


def test_what_is_forgotten_is_in_no_dataset(typed, brain):
    brain()
    Path("twin.toml").write_text('[export]\nperson = "Ada"\n', "utf-8")
    assert typed("export", "--quiet").code == 0
    typed("forget", "Bo", "--quiet")
    assert not any("message 0 of" in content.decode() for name, content in listing().items() if "data/" in name)


# ---------------------------------------------------------------- the same again


def test_the_same_brain_gives_the_same_bytes(typed, brain):
    brain(messages=200)
    brain(chat("Cy", "Ada", "Bo", text="{m} write to ab{n}@cd.org"), "group.txt")
    made = []
    for seed in ("3", "3", "4"):
        done = typed("export", "--person", "Ada", "--seed", seed, "--validation-split", "0.5", "--quiet", "--json")
        assert done.code == 0
        made.append({path.name: path.read_bytes() for path in Path("data").glob("*.jsonl")})
    assert made[0] == made[1]
    assert made[0]["train.jsonl"] != made[2]["train.jsonl"]
    assert rows("val.jsonl")


@pytest.mark.parametrize("reserve", ["0", "0.5"])
@pytest.mark.parametrize("split", ["0", "0.5"])
def test_the_ends_of_the_scales(typed, brain, reserve, split):
    brain(messages=80)
    told = [{"memory": f"Keeps the {word} of the old house"} for word in ("key", "lamp", "door", "well")]
    brain(json.dumps({"memories": told}), "core.json")
    done = typed("export", "--person", "Ada", "--reserve", reserve, "--validation-split", split, "--json", "--quiet")
    assert done.code == 0
    assert bool(done.json["rows"]["val"]) == (split != "0")
    assert len(rows("reserved.jsonl")) == done.json["reserved_memories"] == (2 if reserve == "0.5" else 0)
