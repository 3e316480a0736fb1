"""Files and folders → one Brain: what is read, whose it is, and what each bad input is told."""

import builtins
import errno
import io
import os
import sys
import zipfile
from pathlib import Path

import pytest

from twin.brain import load
from twin.brain.document import Document
from twin.brain.importers import IMPORTERS, pick
from twin.dropped import Dropped
from twin.errors import UsageError

CHAT = "09/01/2024, 18:42 - Ana: hi\n09/01/2024, 18:43 - Beto: yo\n"


def refusal(*sources, person=None):
    with pytest.raises(UsageError) as caught:
        load([Path(source) for source in sources], person)
    assert caught.value.exit_code == 2
    return caught.value.message, caught.value.hint


def put(name, content):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_the_sample_brain(sample_brain):
    brain = load([sample_brain])
    assert brain.person == "Wren Halloran"
    chats = {chat.id: len(chat.messages) for chat in brain.conversations()}
    assert {name for name in chats if name.startswith("WhatsApp")} == {
        f"WhatsApp Chat with {name}.txt" for name in ("Bea", "Mum", "Ravi", "Tobi")
    }
    assert all("Wren Halloran" in {message.speaker for message in chat.messages} for chat in brain.conversations())
    assert len(brain.journals) == len(list((sample_brain / "journal").glob("*.md")))
    assert len(brain.memories) > 50
    assert all(0 <= memory.importance <= 1 for memory in brain.memories)
    assert len({memory.id for memory in brain.memories}) == len(brain.memories)
    assert brain.personality.name == "Wren Halloran"
    assert load([sample_brain]) == brain


def test_every_whatsapp_line_of_the_sample_is_accounted_for(sample_brain):
    for path in sample_brain.glob("WhatsApp*.txt"):
        starts = sum(" - " in line[:22] for line in path.read_text("utf-8").splitlines())
        brain = load([path], "Wren Halloran")
        dropped = Dropped()
        read = sum(len(chat.messages) for chat in brain.conversations(dropped))
        assert read + sum(dropped.counts.values()) == starts


@pytest.mark.parametrize("importer", IMPORTERS, ids=lambda importer: importer.__name__.rpartition(".")[2])
def test_each_importer_keeps_the_contract(importer):
    assert importer.LAYOUT
    assert importer.sniff(Document(Path("x.bin"), "x.bin"), b"\x00\x01") is False


@pytest.mark.parametrize(
    ("name", "head", "importer"),
    [
        ("a.txt", CHAT.encode(), "whatsapp"),
        ("a.txt", b"[09.01.24, 18:42:10] Ana: hi\n", "whatsapp"),
        ("a.txt", b"dear diary\n", "journal"),
        ("a.md", b"# Monday\nrain\n", "journal"),
        ("a.JSON", b'\xef\xbb\xbf {"memories": []}', "app_brain"),
    ],
)
def test_each_layout_is_known_by_its_content(name, head, importer):
    assert pick(Document(Path(name), name), head).__name__ == f"twin.brain.importers.{importer}"


@pytest.mark.parametrize(
    ("name", "head"), [("a.json", b"[1]"), ("a.json", b'{"x": 1}'), ("a.jpg", b"\xff\xd8"), ("a.md", CHAT.encode())]
)
def test_an_unknown_layout(name, head):
    assert pick(Document(Path(name), name), head) is None


def test_unknown_and_hidden_files_beside_a_chat():
    put("brain/chat.txt", CHAT)
    put("brain/photo.jpg", b"\xff\xd8")
    put("brain/LICENSE", "x")
    put("brain/.git/config.txt", "secret")
    put("brain/.hidden.md", "secret")
    brain = load([Path("brain")], "Ana")
    assert [chat.id for chat in brain.conversations()] == ["chat.txt"]
    assert brain.journals == ()
    assert dict(brain.dropped.counts) == {"unknown file (.jpg)": 1, "unknown file (no suffix)": 1}


def test_an_unread_file_that_may_be_a_chat_is_named():
    put("brain/chat.txt", CHAT)
    put("brain/brain.json", "{bad")
    put("brain/ja.txt", "2024/03/05(火) 21:14 - Bo: hi\n")
    assert load([Path("brain")], "Ana").dropped.counts == {
        "unknown file: brain.json": 1,
        "unknown file: ja.txt": 1,
    }


def test_the_order_does_not_depend_on_the_file_system():
    for name in ("b", "a", "c"):
        put(f"brain/{name}.txt", CHAT)
    assert [chat.id for chat in load([Path("brain")], "Ana").conversations()] == ["a.txt", "b.txt", "c.txt"]


def test_the_person_whom_all_chats_share():
    put("brain/a.txt", CHAT)
    put("brain/b.txt", CHAT.replace("Beto", "Cleo"))
    assert load([Path("brain")]).person == "Ana"


def test_a_person_is_a_whole_name():
    put("brain/a.txt", CHAT.replace("Ana", "Anabel"))
    assert refusal("brain", person="Ana") == (
        "'Ana' never speaks in this brain.",
        "Did you mean 'Anabel'? Speakers: Anabel (1), Beto (1).",
    )


def test_an_unclear_person():
    put("brain/a.txt", CHAT)
    assert refusal("brain") == (
        "It is not clear whose twin this should be.",
        "Say so with --person NAME. Speakers: Ana (1), Beto (1).",
    )


def test_a_person_who_never_speaks():
    put("brain/a.txt", CHAT)
    put("brain/b.json", '{"personality_profile": {"name": "Cleo"}}')
    expected = "'Cleo' never speaks in this brain."
    assert refusal("brain")[0] == expected
    assert refusal("brain", person="Cleo") == (
        expected,
        "Say who is meant with --person NAME. Speakers: Ana (1), Beto (1).",
    )
    assert refusal("brain", person="Zed") == (
        "'Zed' never speaks in this brain.",
        "Known: Ana, Beto. Speakers: Ana (1), Beto (1).",
    )


def test_a_missing_source():
    assert refusal("brain") == (
        "There is nothing at 'brain'.",
        "Put your exports into a folder named brain, or name another: twin export FOLDER",
    )


@pytest.mark.parametrize("content", [b"", b" \r\n\t"])
def test_an_empty_file(content):
    put("brain/a.txt", content)
    assert refusal("brain") == ("'brain/a.txt' is empty.", "Export it again, or take it out of the folder.")


# Was wrong once: a misspelt name in [columns] is taken without a word, and the table is read by guess.
@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("speeker", "Did you mean 'speaker'?"),
        ("sender", "Did you mean 'speaker'?"),
        ("von", "Known: at, context, conversation, other, response, speaker, text."),
    ],
)
def test_an_unknown_name_of_a_column(name, hint):
    put("brain/a.csv", "von,nachricht\nAna,hi\n")
    with pytest.raises(UsageError) as caught:
        load([Path("brain")], "Ana", columns={"text": "nachricht", name: "von"})
    assert (caught.value.message, caught.value.hint) == (f"'twin.toml' has an unknown key '{name}' in [columns].", hint)


def test_an_empty_folder():
    Path("brain").mkdir()
    message, hint = refusal("brain")
    assert message == "Nothing in 'brain' is a layout that twin reads."
    assert hint == "It reads: " + "; ".join(importer.LAYOUT for importer in IMPORTERS) + "."
    assert "WhatsApp exports (text or zip)" in hint


def test_nothing_but_unknown_files():
    put("brain/a.jpg", b"\xff\xd8")
    assert refusal("brain", "brain/a.jpg")[0] == "Nothing in 'brain', 'brain/a.jpg' is a layout that twin reads."


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.txt",
            CHAT.replace("hi", "café").encode("latin-1"),
            "'a.txt' is not UTF-8 text (byte 28 can't be decoded).",
        ),
        ("a.md", "café".encode("latin-1"), "'a.md' is not UTF-8 text (byte 3 can't be decoded)."),
        ("a.json", b'{"memories": [{"memory": "ca', "'a.json' is broken JSON: unexpected end of data at line 1."),
        (
            "a.json",
            b'{"memories": [{"memory": "caf\xe9"}]}',
            "'a.json' is not UTF-8 text (byte 29 can't be decoded).",
        ),
    ],
)
def test_a_broken_file(name, content, message):
    put(name, content)
    assert refusal(name)[0] == message


# Was wrong once: the place is counted from the last chunk that was read, not from the beginning of the file.
def test_the_place_of_a_wrong_byte_in_a_long_file():
    good = CHAT * 400
    put("a.txt", good.encode() + b"\xe9")
    assert refusal("a.txt", person="Ana")[0] == f"'a.txt' is not UTF-8 text (byte {len(good)} can't be decoded)."


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_and_folder():
    put("brain/a.txt", CHAT).chmod(0)
    assert refusal("brain") == (
        "No permission to read 'brain/a.txt'.",
        "See its owner and mode: ls -l 'brain/a.txt'",
    )


def test_a_broken_link_is_passed_over():
    put("brain/a.txt", CHAT)
    Path("brain/gone.txt").symlink_to("nowhere")
    assert len(list(load([Path("brain")], "Ana").conversations())) == 1


def without_permission(monkeypatch, call, *names):
    """Refuse ``os.scandir`` or ``Path.stat`` of what has one of these names, as a file's mode does for all but root."""
    owner, real = (os, os.scandir) if call == "scandir" else (Path, Path.stat)

    def guarded(path, **options):
        if Path(path).name in names:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, **options)

    monkeypatch.setattr(owner, call, guarded)


# Was wrong once: one closed folder stops the whole export.
def test_a_folder_that_may_not_be_listed_is_told_and_the_rest_is_read(monkeypatch):
    put("brain/chat.txt", CHAT)
    put("brain/closed/more.txt", CHAT)
    without_permission(monkeypatch, "scandir", "closed")
    brain = load([Path("brain")], "Ana")
    assert [chat.id for chat in brain.conversations()] == ["chat.txt"]
    assert brain.dropped.problems == {
        "No permission to read 'brain/closed'.": "See its owner and mode: ls -l 'brain/closed'"
    }


def test_a_folder_that_may_not_be_entered_is_told_once(monkeypatch):
    put("brain/chat.txt", CHAT)
    put("brain/closed/one.txt", CHAT)
    put("brain/closed/two.txt", CHAT)
    without_permission(monkeypatch, "stat", "one.txt", "two.txt")
    brain = load([Path("brain")], "Ana")
    assert [chat.id for chat in brain.conversations()] == ["chat.txt"]
    assert list(brain.dropped.problems) == ["No permission to read 'brain/closed'."]


def test_a_source_that_may_not_be_listed(monkeypatch):
    put("brain/chat.txt", CHAT)
    put("other/chat.txt", CHAT)
    without_permission(monkeypatch, "scandir", "other")
    assert refusal("brain", "other") == ("No permission to read 'other'.", "See its owner and mode: ls -l 'other'")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("mode", [0o000, 0o644])
def test_a_closed_folder(mode):
    put("brain/chat.txt", CHAT)
    put("brain/closed/more.txt", CHAT).parent.chmod(mode)
    brain = load([Path("brain")], "Ana")
    Path("brain/closed").chmod(0o700)
    assert [chat.id for chat in brain.conversations()] == ["chat.txt"]
    assert list(brain.dropped.problems) == ["No permission to read 'brain/closed'."]


# Was wrong once: a zip that can't be opened is called broken.
def test_a_zip_without_permission(monkeypatch):
    put("brain/chat.txt", CHAT)
    with zipfile.ZipFile("brain/closed.zip", "w") as made:
        made.writestr("chat.txt", CHAT)
    real = io.open

    def guarded(path, *args, **options):
        if str(path).endswith("closed.zip"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *args, **options)

    for owner in (io, builtins):  # zipfile has both
        monkeypatch.setattr(owner, "open", guarded)
    assert load([Path("brain")], "Ana").dropped.problems == {
        "No permission to read 'brain/closed.zip'.": "See its owner and mode: ls -l 'brain/closed.zip'"
    }


# Was wrong once: a linked folder is passed over in silence.
def test_a_linked_folder_is_told_unless_it_is_read_anyway():
    put("brain/real/chat.txt", CHAT)
    put("elsewhere/more.txt", CHAT.replace("hi", "hello"))
    Path("brain/latest").symlink_to("real")
    Path("brain/round").symlink_to(".")
    Path("brain/more").symlink_to(Path("elsewhere").absolute())
    brain = load([Path("brain")], "Ana")
    assert [chat.id for chat in brain.conversations()] == ["real/chat.txt"]
    assert brain.dropped.problems == {
        "'brain/more' is a link to a folder, which twin does not follow.": (
            f"Name the folder itself beside the others: '{Path('elsewhere').resolve()}'"
        )
    }
    both = load([Path("brain"), Path("elsewhere")], "Ana")
    assert [chat.id for chat in both.conversations()] == ["real/chat.txt", "more.txt"]
    assert not both.dropped.problems


# Was wrong once: row ids are not unique, so a held-out row's id is also a training row's.
def test_files_of_one_name_in_two_sources_have_ids_of_their_own():
    put("one/chat.txt", CHAT)
    put("two/chat.txt", CHAT.replace("hi", "hello"))
    ids = [chat.id for chat in load([Path("one"), Path("two")], "Ana").conversations()]
    assert len(ids) == 2
    assert len(set(ids)) == 2


# Was wrong once: nobody speaks in a journal, so no person is known, though journals count as speech a few lines below.
def test_journals_alone_are_a_brain():
    put("brain/2024-01-01.md", "# New year\nslept in")
    brain = load([Path("brain")], "Ana")
    assert (brain.person, len(brain.journals)) == ("Ana", 1)


@pytest.mark.skipif(sys.platform != "linux", reason="file names are Unicode elsewhere")
def test_a_file_name_that_is_no_unicode():
    put("brain/chat.txt", CHAT)
    Path("brain/chat.txt").rename(Path("brain") / os.fsdecode(b"caf\xe9.txt"))
    brain = load([Path("brain")], "Ana")
    assert next(brain.conversations()).id == "caf\ufffd.txt"
