"""What is hidden and what is not: whose, from where, from when; what is left keeps its message numbers."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.brain import load
from twin.brain.forgotten import NOTHING, Forgotten, Tombstone, read, write
from twin.brain.identity import Identity
from twin.dataset.window import sessions
from twin.dropped import Dropped
from twin.errors import UsageError
from twin.records import Conversation, JournalEntry, Memory, Message

BEGIN = datetime(2024, 1, 1, 9)
DAY = timedelta(days=1)


def at(day):
    return BEGIN + day * DAY


def chat(*speakers, start=0):
    """Return a conversation of one message a day."""
    return Conversation("c", tuple(Message(who, f"<{n}>", at(n)) for n, who in enumerate(speakers)), start)


def seen(conversation, *stones, source="chat.txt", people=None):
    """Return (number of its first message, texts) of each run that is left, and how many messages went."""
    dropped = Dropped("forgotten")
    left = list(Forgotten(stones).visible(conversation, source, Identity(people), dropped))
    assert all(one.id == conversation.id for one in left)
    assert len(dropped.listed) == dropped.counts["forgotten"] == dropped.counts.total()
    return [(one.start, [message.text for message in one.messages]) for one in left], dropped.counts.total()


TALK = chat("Beto", "Ana", "Cleo", "Ana", "Cleo", "Beto")


def test_nothing_is_hidden_without_a_stone():
    dropped = Dropped()
    assert list(NOTHING.visible(TALK, "chat.txt", Identity(), dropped)) == [TALK]
    assert not NOTHING.hides_document("chat.txt")
    assert not NOTHING.hides(Memory("m", "x"), "chat.txt")
    assert dropped.counts == {}


def test_a_person_goes_and_numbers_stay():
    assert seen(TALK, Tombstone("Cleo")) == ([(0, ["<0>", "<1>"]), (3, ["<3>"]), (5, ["<5>"])], 2)
    assert seen(TALK, Tombstone("Beto")) == ([(1, ["<1>", "<2>", "<3>", "<4>"])], 2)
    assert seen(TALK, Tombstone("Cle")) == ([(0, [f"<{n}>" for n in range(6)])], 0)


def test_numbers_of_a_later_piece_stay_too():
    assert seen(chat("Cleo", "Ana", "Cleo", "Ana", start=4096), Tombstone("Cleo"))[0] == [
        (4097, ["<1>"]),
        (4099, ["<3>"]),
    ]


def test_a_hidden_message_ends_the_talk():
    left = Forgotten((Tombstone("Cleo"),)).visible(TALK, "chat.txt", Identity(), Dropped())
    assert [one.id for one in sessions(left, 1000 * DAY)] == ["c#0", "c#3", "c#5"]
    assert [one.id for one in sessions([TALK], 1000 * DAY)] == ["c#0"]


@pytest.mark.parametrize(
    ("stone", "source", "hidden"),
    [
        (Tombstone(), "chat.txt", "012345"),
        (Tombstone("Cleo"), "chat.txt", "24"),
        (Tombstone(before=at(3)), "chat.txt", "012"),
        (Tombstone("Cleo", before=at(3)), "chat.txt", "2"),
        (Tombstone("Cleo", before=at(2)), "chat.txt", ""),
        (Tombstone(source="chat.txt"), "chat.txt", "012345"),
        (Tombstone(source="chat.txt"), "chat.txt~2", ""),
        (Tombstone(source="old"), "old/chat.txt", "012345"),
        (Tombstone(source="old/"), "old/chat.txt", "012345"),
        (Tombstone(source="old"), "older/chat.txt", ""),
        (Tombstone(source="chat.txt"), "old/chat.txt", ""),
        (Tombstone(source="a.zip"), "a.zip/chat.txt", "012345"),
        (Tombstone("Cleo", "old"), "old/chat.txt", "24"),
        (Tombstone("Cleo", "old"), "chat.txt", ""),
        (Tombstone("Cleo", "old", at(3)), "old/chat.txt", "2"),
        (Tombstone("Cleo", "old", at(3)), "chat.txt", ""),
        (Tombstone(source="old", before=at(1)), "old/chat.txt", "0"),
    ],
)
def test_of_several_fields_all_must_hold(stone, source, hidden):
    left, count = seen(TALK, stone, source=source)
    gone = {f"<{n}>" for n in range(6)} - {text for _, run in left for text in run}
    assert gone == {f"<{n}>" for n in hidden}
    assert count == len(hidden)


def test_several_stones_hide_what_any_of_them_does():
    assert seen(TALK, Tombstone("Cleo"), Tombstone(before=at(1)))[0] == [(1, ["<1>"]), (3, ["<3>"]), (5, ["<5>"])]


def test_what_has_no_date_is_not_early():
    talk = Conversation("c", (Message("Beto", "a"), Message("Ana", "b", at(0))))
    assert seen(talk, Tombstone(before=at(9))) == ([(0, ["a"])], 1)
    assert seen(talk, Tombstone("Beto", before=at(9))) == ([(0, ["a", "b"])], 0)
    assert seen(talk, Tombstone("Beto"))[0] == [(1, ["b"])]


def test_the_hour_itself_is_not_before():
    assert seen(TALK, Tombstone(before=at(1)))[0][0][0] == 1
    assert seen(TALK, Tombstone(before=at(1) + timedelta(seconds=1)))[0][0][0] == 2


PEOPLE = {"Cleo": ["cleo_77", "+49 176 1234567"]}


@pytest.mark.parametrize("named", ["Cleo", "cleo", " CLEO ", "cleo_77", "0049 176 1234567"])
def test_an_alias_is_the_person(named):
    assert seen(TALK, Tombstone(named), people=PEOPLE)[0] == [(0, ["<0>", "<1>"]), (3, ["<3>"]), (5, ["<5>"])]


@pytest.mark.parametrize("named", ["cleo_7", "Cleopatra", "1234567"])
def test_a_name_like_an_alias_is_somebody_else(named):
    assert seen(TALK, Tombstone(named), people=PEOPLE)[1] == 0


@pytest.mark.parametrize("named", ["0000000", ".......", " "])
def test_a_name_of_marks_is_not_everybody(named):
    assert seen(TALK, Tombstone(named))[1] == 0


@given(
    speakers=st.lists(st.sampled_from(["Ana", "Beto", "Cleo"]), max_size=12),
    stones=st.lists(
        st.builds(
            Tombstone,
            st.sampled_from(["", "Beto", "Cleo"]),
            st.sampled_from(["", "old", "new"]),
            st.none() | st.integers(0, 12).map(at),
        ),
        max_size=3,
    ),
    start=st.integers(0, 5),
)
def test_what_is_left_is_what_no_stone_hits(speakers, stones, start):
    talk = chat(*speakers, start=start)

    def hit(message, stone):
        return (
            stone.person in ("", message.speaker)
            and stone.source in ("", "old")
            and (stone.before is None or message.at < stone.before)
        )

    dropped = Dropped()
    left = list(Forgotten(tuple(stones)).visible(talk, "old/chat.txt", Identity(), dropped))
    kept = [number for number, one in enumerate(talk.messages) if not any(hit(one, stone) for stone in stones)]
    assert [one.start + n for one in left for n in range(len(one.messages))] == [start + number for number in kept]
    assert [one for run in left for one in run.messages] == [talk.messages[number] for number in kept]
    assert all(run.messages for run in left if speakers)
    ends = [one.start + len(one.messages) for one in left]
    assert all(end < one.start for end, one in zip(ends, left[1:], strict=False))  # something is between any two
    assert dropped.counts["forgotten"] == len(speakers) - len(kept)


# ---------------------------------------------------------------- memories, journals, whole files


@pytest.mark.parametrize(
    ("stone", "hidden"),
    [
        (Tombstone(source="brain.json"), True),
        (Tombstone(source="other.json"), False),
        (Tombstone(before=at(2)), True),
        (Tombstone(before=at(1)), False),
        (Tombstone(source="brain.json", before=at(2)), True),
        (Tombstone(source="other.json", before=at(2)), False),
        (Tombstone("Cleo"), False),  # whose words they are is not known
        (Tombstone("Cleo", source="brain.json"), False),
    ],
)
def test_memories_and_journals(stone, hidden):
    for item in (Memory("m", "x", at=at(1)), JournalEntry("j", "x", at=at(1))):
        assert Forgotten((stone,)).hides(item, "brain.json") is hidden
    assert Forgotten((Tombstone(before=at(9)),)).hides(Memory("m", "x"), "brain.json") is False


@pytest.mark.parametrize(
    ("stone", "hidden"),
    [
        (Tombstone(source="old"), True),
        (Tombstone(source="old/a.txt"), True),
        (Tombstone(source="old/a"), False),
        (Tombstone("Cleo", "old"), False),
        (Tombstone(source="old", before=at(1)), False),
        (Tombstone(), False),
    ],
)
def test_whole_documents(stone, hidden):
    assert Forgotten((stone,)).hides_document("old/a.txt") is hidden


def test_a_brain_without_what_is_forgotten():
    files = {
        "a.txt": "09/01/2024, 18:42 - Beto: hi\n09/01/2024, 18:43 - Ana: yo\n09/01/2024, 18:44 - Cleo: so\n",
        "old/b.txt": "09/01/2020, 18:42 - Beto: past\n09/01/2020, 18:43 - Ana: gone\n",
        "2020-01-09.md": "long ago",
        "2024-01-09.md": "of late",
    }
    for name, text in files.items():
        Path("brain", name).parent.mkdir(parents=True, exist_ok=True)
        Path("brain", name).write_text(text, "utf-8")

    def words(*stones):
        brain = load([Path("brain")], "Ana", forgotten=Forgotten(stones))
        dropped = Dropped()
        said = {message.text for one in brain.conversations(dropped) for message in one.messages}
        dropped.merge(brain.dropped)
        return said | {entry.text for entry in brain.journals}, dropped.counts["forgotten"]

    everything = {"hi", "yo", "so", "past", "gone", "long ago", "of late"}
    assert words() == (everything, 0)
    assert words(Tombstone("Cleo")) == (everything - {"so"}, 1)
    assert words(Tombstone(source="old")) == (everything - {"past", "gone"}, 1)
    assert words(Tombstone(before=datetime(2022, 1, 1))) == (everything - {"past", "gone", "long ago"}, 3)
    assert words(Tombstone("Beto", "old")) == (everything - {"past"}, 1)


# ---------------------------------------------------------------- as people and files say it


@pytest.mark.parametrize(
    ("stone", "said"),
    [
        (Tombstone("Cleo"), "Cleo"),
        (Tombstone(source="old"), "source old"),
        (Tombstone(before=at(1)), "before 2024-01-02"),
        (Tombstone("Cleo", "old", at(1)), "Cleo, source old, before 2024-01-02"),
    ],
)
def test_as_people_say_it(stone, said):
    assert str(stone) == said


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


named = st.builds(Tombstone, names, names, st.none() | st.datetimes()).filter(lambda stone: stone != Tombstone())


@given(st.lists(named, max_size=4))
def test_what_is_written_is_read(stones):
    write(Forgotten(tuple(stones)), Path("forgotten.json"))
    assert read(Path("forgotten.json")) == Forgotten(tuple(stones))


def test_paths_are_kept_beside_the_name_and_either_hides():
    stone = Tombstone(source="sub/a.txt", paths=frozenset({"/b/sub/a.txt"}))
    write(Forgotten((stone,)), Path("forgotten.json"))
    found = read(Path("forgotten.json"))
    assert found.stones[0].paths == stone.paths
    assert found.hides_document("a.txt", "/b/sub/a.txt")
    assert found.hides_document("sub/a.txt", "/moved/sub/a.txt")
    assert not found.hides_document("a.txt", "/b/a.txt")
    assert found.hides(Memory("m", "x"), "a.txt", "/b/sub/a.txt")
    assert list(found.visible(TALK, "a.txt", Identity(), Dropped(), "/b/sub/a.txt")) == []


def test_no_file_is_nothing_forgotten():
    assert read(Path("forgotten.json")) == NOTHING


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        '{"forgotten": {}}',
        '{"forgotten": ["Cleo"]}',
        '{"forgotten": [null]}',
        '{"forgotten": [{"person": "Cleo", "before": "last week"}]}',
        '{"forgotten": [{"person": "Cleo", "before": 5}]}',
        '{"forgotten": [{"person": "Cleo", "paths": ["/a.txt"]}]}',
        '{"forgotten": [{"source": "a.txt", "paths": "/a.txt"}]}',
        '{"forgotten": [{"source": "a.txt", "paths": [""]}]}',
        '{"forgotten": [{"paths": ["/a.txt"]}]}',
    ],
)
def test_a_broken_file_is_never_read_as_nothing_forgotten(content):
    Path("forgotten.json").write_text(content)
    with pytest.raises(UsageError) as caught:
        read(Path("forgotten.json"))
    assert caught.value.message == "'forgotten.json' is no list of what is forgotten."
    assert caught.value.hint == "Mend it: without it, what you hid would be seen again."


def test_a_stone_with_a_key_that_is_not_known():
    Path("forgotten.json").write_text('{"forgotten": [{"persons": "Cleo"}]}')
    with pytest.raises(UsageError):
        read(Path("forgotten.json"))
