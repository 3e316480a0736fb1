"""macOS Messages: what is in the database comes back, and the database stays as it was.

Tables and columns: https://github.com/ReagentX/imessage-exporter/tree/develop/docs/tables. Archived texts as
``NSArchiver`` writes them: https://github.com/dgelessus/python-typedstream.
"""

import plistlib
import shutil
import signal
import sqlite3
import zipfile
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.brain.reading import document, whole
from twin.brain import load
from twin.brain.document import members
from twin.brain.importers import imessage, pick
from twin.dropped import Dropped
from twin.errors import UsageError
from twin.records import ME, Conversation, Message

SCHEMA = """
CREATE TABLE handle (ROWID INTEGER PRIMARY KEY AUTOINCREMENT UNIQUE, id TEXT NOT NULL, service TEXT NOT NULL);
CREATE TABLE chat (ROWID INTEGER PRIMARY KEY AUTOINCREMENT, guid TEXT UNIQUE NOT NULL, style INTEGER,
  chat_identifier TEXT, service_name TEXT);
CREATE TABLE chat_message_join (chat_id INTEGER REFERENCES chat (ROWID), message_id INTEGER REFERENCES message (ROWID),
  message_date INTEGER DEFAULT 0, PRIMARY KEY (chat_id, message_id));
CREATE TABLE message (ROWID INTEGER PRIMARY KEY AUTOINCREMENT, guid TEXT, text TEXT, handle_id INTEGER DEFAULT 0,
  subject TEXT, attributedBody BLOB, date INTEGER, is_from_me INTEGER DEFAULT 0 {newer});
"""
NEWER = """, is_system_message INTEGER DEFAULT 0, is_service_message INTEGER DEFAULT 0, is_auto_reply INTEGER DEFAULT 0,
  item_type INTEGER DEFAULT 0, associated_message_type INTEGER DEFAULT 0, associated_message_guid TEXT,
  balloon_bundle_id TEXT, message_summary_info BLOB, date_edited INTEGER, is_spam INTEGER DEFAULT 0"""
NOON = (datetime(2024, 1, 9, 12) - datetime(2001, 1, 1)).total_seconds()


def nanoseconds(seconds_after_noon=0):
    return int(NOON + seconds_after_noon) * 10**9


def database(path, messages, chats=(("+15550001111", "iMessage"),), newer=NEWER):
    """Write a database: each message is (its chat's number or several, the columns)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with sqlite3.connect(path) as made:
        made.execute("PRAGMA journal_mode = OFF")
        made.executescript(SCHEMA.format(newer=newer))
        made.executemany(
            "INSERT INTO handle (id, service) VALUES (?, 'iMessage')", [["+15550001111"], ["beto@icloud.com"]]
        )
        for identifier, service in chats:
            guid = f"{service};-;{identifier}"
            made.execute("INSERT INTO chat (guid, chat_identifier) VALUES (?, ?)", [guid, identifier])
        for where, columns in messages:
            row = {"handle_id": 1, "date": nanoseconds(), **columns}
            names, marks = ", ".join(row), ", ".join("?" * len(row))
            row_id = made.execute(f"INSERT INTO message ({names}) VALUES ({marks})", list(row.values())).lastrowid  # noqa: S608
            for chat in where if isinstance(where, tuple) else (where,):
                made.execute("INSERT INTO chat_message_join (chat_id, message_id) VALUES (?, ?)", [chat, row_id])
    made.close()
    return document(path)


def read(source):
    dropped = Dropped()
    return whole(imessage.read(source, dropped)), dict(dropped.counts)


def only(**columns):
    """Return the one message that a row becomes, or the reason why it becomes none."""
    found, skipped = read(database("chat.db", [(1, columns)]))
    if found:
        assert not skipped
        return found[0].messages[0].text
    assert list(skipped.values()) == [1]
    return next(iter(skipped))


def archived(text, mutable=True):
    """Return an attributed string as Messages archives it, all of it in one run.

    A typedstream is a header (version 4, the byte order as a word, the system's version 1000) and values, each after
    its type. 0x84 comes before what is written for the first time: a string with its length, an object with its
    class, a class with its name, version and parent; 0x85 is no parent, 0x86 an object's end. What was written before
    is a number from 0x92 on; strings are counted apart from objects and classes. A length from 128 on is 0x81 and two
    bytes, one from 32768 on 0x82 and four.
    """
    words = text.encode()
    units = len(text.encode("utf-16-le")) // 2
    above = 0x95 if mutable else 0x94  # NSObject, known from the classes of the attributed string
    string_type = b"\x84\x84\x0fNSMutableString\x01\x84\x84\x08NSString\x01" if mutable else b"\x84\x84\x08NSString\x01"
    types = 0x96 + (2 if mutable else 0)
    return (
        b"\x04\x0bstreamtyped\x81\xe8\x03"
        + b"\x84\x01@\x84"
        + (b"\x84\x84\x19NSMutableAttributedString\x00" if mutable else b"")
        + b"\x84\x84\x12NSAttributedString\x00\x84\x84\x08NSObject\x00\x85"
        + b"\x92\x84"
        + string_type
        + bytes([above])
        + b"\x84\x01+"
        + length(len(words))
        + words
        + b"\x86"
        + b"\x84\x02iI\x01"
        + length(units)
        + b"\x92\x84\x84\x84\x0cNSDictionary\x00"
        + bytes([above])
        + b"\x84\x01i\x01\x92\x84"
        + bytes([types, types])
        + b"\x1d__kIMMessagePartAttributeName\x86"
        + b"\x92\x84\x84\x84\x08NSNumber\x00\x84\x84\x07NSValue\x00"
        + bytes([above])
        + b"\x84\x01*\x84"
        + bytes([types + 3, types + 3])
        + b"\x00\x86\x86\x86"
    )


def summary(**values):
    return plistlib.dumps(values, fmt=plistlib.FMT_BINARY)


def length(number):
    if number < 0x80:
        return bytes([number])
    return b"\x81" + number.to_bytes(2, "little") if number < 0x8000 else b"\x82" + number.to_bytes(4, "little")


def test_a_chat():
    talk = [
        (1, {"text": "hi 👋", "date": int(NOON)}),  # macOS 10.12 and older count seconds
        (1, {"is_from_me": 1, "handle_id": 0, "attributedBody": archived("hello"), "date": nanoseconds(61)}),
        (1, {"handle_id": 2, "subject": "Tea", "text": "at 5?", "date": nanoseconds(62) + 500_000_000}),
        (1, {"handle_id": 99, "text": "from nobody's handle", "date": 0}),
    ]
    found, skipped = read(database("chat.db", talk))
    assert found == [
        Conversation(
            "chat.db/1",
            (
                Message("+15550001111", "from nobody's handle", None),
                Message("+15550001111", "hi 👋", datetime(2024, 1, 9, 12)),
                Message(ME, "hello", datetime(2024, 1, 9, 12, 1, 1)),
                Message("beto@icloud.com", "Tea\nat 5?", datetime(2024, 1, 9, 12, 1, 2, 500_000)),
            ),
        )
    ]
    assert not skipped


TEXTS = ["", "hi", "a" * 127, "a" * 128, "ñ" * 200, "😀" * 8192, "👩‍👩‍👧\n" * 3000, "x" * 32767, "x" * 70_000]


@pytest.mark.parametrize("mutable", [True, False])
@pytest.mark.parametrize("text", TEXTS, ids=lambda text: f"{len(text.encode())} bytes")
def test_archived_texts_of_any_length(text, mutable):
    assert imessage.attributed_text(archived(text, mutable)) == text


def test_an_archive_byte_for_byte():
    assert archived("Oké", mutable=False).hex(" ") == (
        "04 0b 73 74 72 65 61 6d 74 79 70 65 64 81 e8 03 84 01 40 84 84 84 12 4e 53 41 74 74 72 69 62 75 74 65 64 53 "
        "74 72 69 6e 67 00 84 84 08 4e 53 4f 62 6a 65 63 74 00 85 92 84 84 84 08 4e 53 53 74 72 69 6e 67 01 94 84 01 "
        "2b 04 4f 6b c3 a9 86 84 02 69 49 01 03 92 84 84 84 0c 4e 53 44 69 63 74 69 6f 6e 61 72 79 00 94 84 01 69 01 "
        "92 84 96 96 1d 5f 5f 6b 49 4d 4d 65 73 73 61 67 65 50 61 72 74 41 74 74 72 69 62 75 74 65 4e 61 6d 65 86 92 "
        "84 84 84 08 4e 53 4e 75 6d 62 65 72 00 84 84 07 4e 53 56 61 6c 75 65 00 94 84 01 2a 84 99 99 00 86 86 86"
    )


def test_big_endian_archives():
    old = archived("x" * 300).replace(b"streamtyped\x81\xe8\x03", b"typedstream\x81\x03\xe8")
    assert imessage.attributed_text(old.replace(b"+\x81\x2c\x01", b"+\x81\x01\x2c")) == "x" * 300


@given(st.binary(max_size=6), st.integers(0, 140), st.integers(0, 6))
def test_a_broken_archive_is_an_error(bytes_between, place, cut):
    whole_one = archived("hello there")
    broken = whole_one[:place] + bytes_between + whole_one[place + cut :]
    try:
        text = imessage.attributed_text(broken)
    except ValueError:
        return
    assert len(text) <= len(broken)


def test_every_cut_within_the_text_is_found():
    whole_one = archived("hello")
    end = whole_one.index(b"hello") + 5
    for place in range(end):
        with pytest.raises(ValueError, match=r"cut short|no such string"):
            imessage.attributed_text(whole_one[:place])
    assert imessage.attributed_text(whole_one[:end]) == "hello"


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"text": "Loved “hi”", "associated_message_type": 2000}, "reaction"),
        ({"text": "Removed a like from “hi”", "associated_message_type": 3001}, "reaction"),
        ({"text": "Reacted 🎉 to “hi”", "associated_message_type": 2006}, "reaction"),
        ({"text": "\ufffc", "associated_message_type": 1000}, "reaction"),
        ({"text": "Laughed at “see\nyou”"}, "reaction"),  # from a phone that has no tapbacks
        ({"text": "Emphasized an image"}, "reaction"),
        ({"text": None, "item_type": 1}, "iMessage's own message"),
        ({"text": "x", "item_type": 5}, "iMessage's own message"),
        ({"text": "I'm driving", "is_auto_reply": 1}, "iMessage's own message"),
        ({"text": "x", "is_service_message": 1}, "iMessage's own message"),
        ({"text": "you won", "is_spam": 1}, "spam"),
        ({"text": "\ufffc"}, "media"),
        ({"text": None, "attributedBody": archived("\ufffc\ufffc")}, "media"),
        ({"text": None}, "media"),
        ({"text": "$5", "balloon_bundle_id": "com.apple.messages.MSMessageExtensionBalloonPlugin:0:x"}, "media"),
        ({"text": None, "attributedBody": b"\x04\x0bstreamtyped"}, "unreadable iMessage text"),
        ({"text": " ", "attributedBody": "words"}, "unreadable iMessage text"),
        ({"text": None, "message_summary_info": summary(rp=[0])}, "iMessage's own message"),
    ],
)  # fmt: skip
def test_what_is_no_speech(columns, reason):
    assert only(**columns) == reason


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"text": "Loved it"}, "Loved it"),
        ({"text": "\ufffclook at \ufffcthis"}, "look at this"),
        ({"text": "https://x.org", "balloon_bundle_id": "com.apple.messages.URLBalloonProvider"}, "https://x.org"),
        ({"text": "with an app's mark", "associated_message_type": 3}, "with an app's mark"),
        ({"text": "old", "attributedBody": b"broken"}, "old"),
        ({"text": "a\0b"}, "ab"),
    ],
)
def test_what_is_speech(columns, text):
    assert only(**columns) == text


def test_an_edited_message_is_its_last_version():
    # macOS 13 leaves its words in the history alone; later ones keep the last version as the text.
    history = {
        "0": [{"d": 1.0, "t": archived("fisrt")}, {"d": 2.0, "t": archived("first")}],
        "1": [{"d": 1.0, "t": archived("second")}],
    }
    edits = summary(ec=history, ep=[0], ust=True)
    assert only(text=None, message_summary_info=edits, date_edited=nanoseconds(9)) == "first\nsecond"
    assert only(attributedBody=archived("newest"), message_summary_info=edits, date_edited=1) == "newest"


def test_chats_of_one_person_are_one_conversation():
    chats = [("+15550001111", "iMessage"), ("chat123", "iMessage"), ("+15550001111", "SMS")]
    talk = [
        (1, {"text": "one", "date": nanoseconds(1)}),
        (3, {"text": "two, by SMS", "date": nanoseconds(2)}),
        ((1, 2), {"text": "three", "date": nanoseconds(3)}),
        (2, {"text": "in the group", "handle_id": 0, "date": nanoseconds(4)}),
        ((), {"text": "its chat is gone"}),
        (77, {"text": "its chat never was"}),
    ]
    found, skipped = read(database("chat.db", talk, chats))
    assert [(one.id, [(said.speaker, said.text) for said in one.messages]) for one in found] == [
        ("chat.db/1", [("+15550001111", "one"), ("+15550001111", "two, by SMS"), ("+15550001111", "three")]),
        ("chat.db/2", [("Unknown", "in the group")]),
    ]
    assert skipped == {"duplicate": 1, "message of a deleted chat": 2}


def test_a_database_of_an_old_macos():
    found, _ = read(database("chat.db", [(1, {"text": "hi", "date": int(NOON)})], newer=""))
    assert found[0].messages == (Message("+15550001111", "hi", datetime(2024, 1, 9, 12)),)


def test_a_text_that_is_no_unicode():
    source = database("chat.db", [(1, {"text": "x"})])
    with sqlite3.connect(source.file) as made:
        made.execute("UPDATE message SET text = CAST(x'6f6cff' AS TEXT)")
    made.close()
    assert read(source)[0][0].messages[0].text == "ol\ufffd"


def test_a_long_chat_comes_in_pieces():
    source = database("chat.db", [(1, {"text": str(number)}) for number in range(4100)])
    parts = list(imessage.read(source, Dropped()))
    assert [(part.start, len(part.messages)) for part in parts] == [(0, 4096), (4096, 4)]
    assert [said.text for said in whole(parts)[0].messages] == [str(number) for number in range(4100)]


def test_nothing_is_written():
    folder = Path("My data? 100% #1")
    source = database(folder / "chat.db", [(1, {"text": "hi"})])
    before = (folder / "chat.db").read_bytes()
    folder.chmod(0o500)
    assert read(source)[0][0].messages[0].text == "hi"
    assert [path.name for path in folder.iterdir()] == ["chat.db"]
    assert (folder / "chat.db").read_bytes() == before
    folder.chmod(0o700)


def test_messages_that_wait_beside_the_database_are_spoken_of():
    database("open/chat.db", [(1, {"text": "hi"})])
    made = sqlite3.connect("open/chat.db")
    made.execute("PRAGMA journal_mode = WAL")
    made.execute("INSERT INTO message (text, handle_id, date) VALUES ('newer', 1, 1)")
    made.commit()
    shutil.copytree("open", "copied")
    Path("copied/chat.db-shm").unlink()
    made.close()
    dropped = Dropped()
    found = whole(imessage.read(document("copied/chat.db"), dropped))
    assert [said.text for said in found[0].messages] == ["hi"]
    assert sorted(path.name for path in Path("copied").iterdir()) == ["chat.db", "chat.db-wal"]
    assert dropped.problems == {
        "The newest messages are not in 'copied/chat.db' yet but in 'chat.db-wal', which twin does not read.": (
            "To have them too, read a copy made with: sqlite3 'copied/chat.db' '.backup copy.db'"
        )
    }


def test_in_a_zip():
    database("chat.db", [(1, {"text": "hi"})])
    with zipfile.ZipFile("messages.zip", "w") as made:
        made.write("chat.db", "Messages/chat.db")
    inside = members(document("messages.zip"))[0]
    assert pick(inside, inside.head()) is imessage
    with pytest.raises(UsageError, match=r"'Messages/chat\.db' in 'messages\.zip' is a database") as caught:
        list(imessage.read(inside, Dropped()))
    assert caught.value.hint == "Unpack it, name the folder."


def test_it_is_found_by_its_tables():
    source = database("brain/copy of messages.sqlite", [(1, {"text": "hi"}), (1, {"text": "yo", "is_from_me": 1})])
    assert pick(source, source.head()) is imessage
    talk = next(load([Path("brain")], "Ana").conversations())
    assert [(said.speaker, said.text) for said in talk.messages] == [("+15550001111", "hi"), ("Ana", "yo")]
    with sqlite3.connect("other.db") as other:
        other.execute("CREATE TABLE message (text)")
    other.close()
    assert pick(document("other.db"), document("other.db").head()) is None


@pytest.mark.parametrize("kept", [100, 3000, 9000])
def test_a_broken_database(kept):
    data = Path(database("whole.db", [(1, {"text": "words " * 50}) for _ in range(200)]).file).read_bytes()
    Path("chat.db").write_bytes(data[:kept])
    source = document("chat.db")
    assert pick(source, source.head()) is imessage
    with pytest.raises(UsageError, match=r"'chat\.db' is a broken database: "):
        list(imessage.read(source, Dropped()))


ENDLESS = "WITH RECURSIVE t (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT"


@pytest.mark.parametrize(
    ("table", "made_of"),
    [
        ("message", f"VIEW message AS {ENDLESS} n AS ROWID, 'x' AS text, 1 AS handle_id, n AS date FROM t"),
        ("handle", f"VIEW handle AS {ENDLESS} n AS ROWID, 'x' AS id FROM t"),
        ("chat", f"VIEW chat AS {ENDLESS} n AS ROWID, 'x' AS chat_identifier FROM t"),
        ("chat_message_join", f"VIEW chat_message_join AS {ENDLESS} 1 AS chat_id, n AS message_id FROM t"),
        ("handle", "TABLE handle (ROWID INTEGER PRIMARY KEY, id TEXT AS (hex(zeroblob(9))))"),
    ],
    ids=["message", "handle", "chat", "chat_message_join", "computed"],
)
def test_a_database_that_is_a_program_is_refused(table, made_of):
    source = database("chat.db", [(1, {"text": "hi"})])
    with sqlite3.connect(source.file) as made:
        made.executescript(f"DROP TABLE {table}; CREATE {made_of}")
    made.close()
    assert pick(source, source.head()) is imessage
    with pytest.raises(UsageError) as caught:
        list(imessage.read(source, Dropped()))
    assert (caught.value.message, caught.value.hint) == (
        f"'chat.db' has a view or a computed column where Messages has the table '{table}'.",
        "Copy it again from your Mac.",
    )


def test_a_view_whose_name_is_in_other_letters_is_not_run():
    source = database("chat.db", [(1, {"text": "hi"})])
    with sqlite3.connect(source.file) as made:
        made.executescript(f"DROP TABLE handle; CREATE VIEW HANDLE AS {ENDLESS} n AS ROWID, 'x' AS id FROM t")
    made.close()
    with pytest.raises(UsageError, match=r"a view or a computed column where Messages has the table .handle."):
        list(imessage.read(source, Dropped()))


def test_rows_that_meet_each_other_without_end_are_refused(monkeypatch):
    monkeypatch.setattr(imessage, "MAX_STEPS", 0)
    source = database("chat.db", [])
    tables = {"handle": "id", "message": "handle_id, date", "chat_message_join": "chat_id, message_id"}
    with sqlite3.connect(source.file) as made:
        for table, columns in tables.items():
            made.executescript(f"DROP TABLE {table}; CREATE TABLE {table} (ROWID, {columns})")
            made.executemany(f"INSERT INTO {table} VALUES (1, 1{', 1' * columns.count(',')})", [()] * 200)  # noqa: S608
    made.close()
    with pytest.raises(UsageError) as caught:
        list(imessage.read(document("chat.db"), Dropped()))
    assert caught.value.message == "'chat.db' takes more work than a database of its size should."
    assert caught.value.hint == "Copy it again from your Mac."


# Was wrong once: sqlite3 swallowed what a signal raises inside its progress handler, and the rest was told as broken.
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="POSIX timers")
def test_a_signal_while_it_reads_is_heard(monkeypatch):
    monkeypatch.setattr(imessage, "_STEPS_AT_ONCE", 1)
    source = database("chat.db", [(1, {"text": f"message {number}"}) for number in range(300)])

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for number in range(8):
            with pytest.raises(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, 0.003 + number / 1000)
                while True:
                    list(imessage.read(source, Dropped()))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufffc"), min_size=1)


@given(st.lists(st.tuples(st.booleans(), st.booleans(), texts), max_size=6))
def test_what_was_typed_comes_back(talk):
    rows = [
        (1, {"is_from_me": mine, "text": None if new else text, "attributedBody": archived(text) if new else None})
        for mine, new, text in talk
    ]
    typed = [(ME if mine else "+15550001111", text.strip()) for mine, _, text in talk if text.strip()]
    found, skipped = read(database("chat.db", rows))
    assert [(said.speaker, said.text) for one in found for said in one.messages] == typed
    assert sum(skipped.values()) == len(talk) - len(typed)


integers = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3)
values = st.none() | integers | st.floats() | st.text(max_size=5) | st.binary(max_size=9)
names = ("text", "subject", "attributedBody", "message_summary_info", "date", "is_from_me", "associated_message_type")
names += ("item_type", "balloon_bundle_id", "is_spam", "handle_id")
plists = st.dictionaries(
    st.sampled_from(["ec", "rp", "0"]),
    st.recursive(
        st.integers(0, 2) | st.binary(max_size=3) | st.just(archived("x")),
        lambda inner: (
            st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["0", "t", "d"]), inner, max_size=2)
        ),
        max_leaves=5,
    ),
).map(lambda value: summary(**value))
rows = st.fixed_dictionaries({}, optional=dict.fromkeys(names, values)) | st.fixed_dictionaries(
    {"message_summary_info": plists}
)


@given(st.lists(st.tuples(st.sampled_from([1, 2, 9, ()]), rows), max_size=6), st.lists(values, min_size=2, max_size=2))
def test_any_rows_are_read_or_counted(talk, identifiers):
    source = database("chat.db", talk, [("a", "x"), ("b", "y")])
    with sqlite3.connect(source.file) as made:
        made.executemany("UPDATE chat SET chat_identifier = ? WHERE ROWID = ?", zip(identifiers, (1, 2), strict=True))
    made.close()
    found, skipped = read(source)
    assert sum(len(one.messages) for one in found) + sum(skipped.values()) == len(talk)
