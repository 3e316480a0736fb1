"""Documents on disk and in zips: read in place, in bounds, and refused with a sentence."""

import io
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.brain.reading import document, put
from twin.brain import document as documents
from twin.brain import load
from twin.brain.document import Document, as_text, members
from twin.brain.sources import find
from twin.dropped import Dropped
from twin.errors import UsageError

CHAT = "09/01/2024, 18:42 - Ana: hi\n09/01/2024, 18:43 - Beto: yo\n"


def pack(inner, name="chat.zip"):
    with zipfile.ZipFile(name, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in inner.items():
            archive.writestr(member, content)
    return Path(name)


def spoken(path, person="Ana"):
    brain = load([Path(path)], person)
    texts = [message.text for one in brain.conversations() for message in one.messages]
    return texts, brain


def lines_of(data, **more):
    return list(put("a.txt", data).lines(**more))


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), max_size=12)))
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_are_what_was_written(encoding, end, lines):
    lines = [line.lstrip("\ufeff") for line in lines]
    written = "".join(line + end for line in lines)
    assert lines_of(written.encode(encoding)) == lines


def test_nul_characters_are_left_out():
    assert lines_of(b"a\0b\n\0\n") == ["ab", ""]


def test_a_line_of_any_length_is_cut_and_the_next_is_whole(monkeypatch):
    monkeypatch.setattr(documents, "MAX_LINE_BYTES", 10)
    assert lines_of("é" * 25 + "\nnext\n" + "b" * 10) == ["é" * 10, "next", "b" * 10]
    dropped = Dropped()
    list(put("a.txt", "é" * 10 + "\r\n" + "é" * 11 + "\nnext\n" + "b" * 10).lines(dropped))
    assert dropped.counts == {"rest of a line of over 4 MiB": 1}
    assert list(put("a.txt", "a" * 25 + "\nnext\n").byte_lines()) == [(1, None), (2, b"next")]


def test_a_head_of_any_encoding_is_text():
    assert as_text("hé".encode("utf-16")) == "hé"
    assert as_text("hé".encode()[:2]) == "h"


@pytest.mark.parametrize("member", ["_chat.txt", "WhatsApp Chat with Beto.txt", "a/b/_chat.txt"])
def test_a_zip_is_read_like_its_text(member):
    path = pack({member: CHAT, "IMG-1.jpg": b"\xff\xd8", "notes.txt": "x", "inner.zip": "PK", "folder/": ""})
    before = set(Path().iterdir())
    texts, brain = spoken(path)
    assert texts == ["hi", "yo"]
    assert brain.journals == ()  # a text that somebody sent is nobody's journal
    assert dict(brain.dropped.counts) == {
        "file in a zip (.jpg)": 1, "file in a zip (.txt)": 1, "file in a zip (.zip)": 1,
    }  # fmt: skip
    assert set(Path().iterdir()) == before  # nothing is unpacked


def test_a_zip_of_several_chats():
    path = pack({"one.txt": CHAT, "two.txt": CHAT.replace("hi", "hello")})
    texts, brain = spoken(path)
    assert texts == ["hi", "yo", "hello", "yo"]
    assert [one.id for one in brain.conversations()] == ["chat.zip/one.txt", "chat.zip/two.txt"]


# Was wrong once: the first of two files of one name is lost in silence.
def test_files_of_one_name_in_a_zip_are_told():
    with zipfile.ZipFile("chat.zip", "w") as made, pytest.warns(UserWarning, match="Duplicate name"):
        for name, content in [("a.txt", CHAT), ("b.jpg", ""), ("a.txt", CHAT.replace("hi", "hello")), ("b.jpg", "")]:
            made.writestr(name, content)
    texts, brain = spoken("chat.zip")
    assert texts == ["hello", "yo"]
    assert brain.dropped.counts == {"file in a zip with a later one of its name": 2, "file in a zip (.jpg)": 1}
    assert brain.dropped.problems == {
        "'a.txt' in 'chat.zip' is there more than once, and the last alone is read.": (
            "Unpack it with a program that keeps both, and name the folder."
        )
    }


def test_a_zip_of_journals():
    pack({"2024-01-02.md": "rain"})
    assert load([Path("chat.zip")], "Ana").journals[0].text == "rain"


@pytest.mark.parametrize("name", ["../_chat.txt", "/etc/_chat.txt", "C:\\_chat.txt", "a/../../_chat.txt"])
def test_a_path_out_of_the_zip_is_a_name_and_nothing_else(name):
    pack({name: CHAT}, "brain.zip")
    before = set(Path("..").rglob("*"))
    assert spoken("brain.zip")[0] == ["hi", "yo"]
    assert set(Path("..").rglob("*")) == before


def refusal(path):
    with pytest.raises(UsageError) as caught:
        load([Path(path)], "Ana")
    return caught.value.message


def with_flag(path, magic, place):
    data = bytearray(path.read_bytes())
    data[data.index(magic) + place] |= 1
    path.write_bytes(data)


def test_a_zip_bomb_is_refused():
    pack({"_chat.txt": b"a" * 30_000_000})
    assert refusal("chat.zip").startswith("'_chat.txt' in 'chat.zip' would unpack to 30,000,000 bytes from ")


def test_a_member_that_lies_about_its_size_is_never_read_past_it():
    path = pack({"_chat.txt": CHAT * 2000})
    data = bytearray(path.read_bytes())
    whole = len(CHAT) * 2000
    while (place := data.find(whole.to_bytes(4, "little"))) >= 0:
        data[place : place + 4] = (100).to_bytes(4, "little")
    path.write_bytes(data)
    [one] = members(document(path))
    try:
        with one.open() as handle:
            assert len(handle.read()) <= 100
    except UsageError as error:
        assert "can't be unpacked" in error.message


def test_a_zip_with_a_password_is_refused():
    path = pack({"_chat.txt": CHAT})
    with_flag(path, b"PK\x03\x04", 6)
    with_flag(path, b"PK\x01\x02", 8)
    assert refusal("chat.zip") == "'_chat.txt' in 'chat.zip' has a password."


def test_an_empty_zip():
    pack({})
    assert refusal("chat.zip") == "'chat.zip' is empty."


def test_what_is_named_zip_and_is_none():
    put("chat.zip", "PK")
    assert refusal("chat.zip") == "'chat.zip' is a broken zip."


def test_the_rest_of_a_brain_is_used():
    Path("brain").mkdir()
    pack({"_chat.txt": b"a" * 30_000_000}, "brain/bomb.zip")
    put("brain/chat.txt", CHAT)
    put("brain/cut.json", '{"memories": [')
    texts, brain = spoken("brain")
    assert texts == ["hi", "yo"]
    assert [message.partition(" would")[0] for message in brain.dropped.problems] == [
        "'_chat.txt' in 'brain/bomb.zip'",
        "'brain/cut.json' is broken JSON: unexpected end of data at line 1.",
    ]


@given(st.integers(0, 200), st.integers(0, 255))
def test_a_broken_zip_is_a_sentence(place, value):
    data = bytearray(pack({"_chat.txt": CHAT}).read_bytes())
    data[place % len(data)] = value
    Path("chat.zip").write_bytes(data)
    try:
        load([Path("chat.zip")], "Ana")
    except UsageError as error:
        assert error.hint


# Was wrong once: each importer parses each name again, the half of what 100,000 files in a zip take.
def test_a_suffix_is_worked_out_once(monkeypatch):
    asked = []
    monkeypatch.setattr(documents, "PurePosixPath", lambda name: asked.append(name) or PurePosixPath(name))
    pack({f"{number}.JSON": "x" for number in range(5)})
    find([Path("chat.zip")], Dropped())
    assert len(asked) <= 2 * 5 + 2  # the suffix, a name, and the zip's own


def test_a_sibling_is_in_the_same_place_alone():
    put("brain/a/x.json", "{}")
    put("brain/users.json", "[]")
    assert document("brain/a/x.json").sibling("../users.json").file.name == "users.json"
    assert document("brain/a/x.json").sibling("gone.json") is None
    assert document("brain/a/x.json").sibling("/etc/hostname") is None
    path = pack({"a/x.json": "{}", "users.json": "[7]"})
    inner = next(one for one in members(document(path)) if one.member == "a/x.json")
    with inner.sibling("../users.json").open() as handle:
        assert handle.read() == b"[7]"
    assert inner.sibling("../../../etc/hostname") is None
    assert isinstance(inner, Document)
    assert io.BytesIO(inner.head()).read() == b"{}"
