"""The app's JSON: exchanges of one source are one chat again; whatever has a wrong type is left out and counted."""

from datetime import datetime
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.brain import reading
from twin.brain.importers import app_brain
from twin.errors import UsageError
from twin.records import ME, Conversation, Memory, Message, Personality


def read(value):
    """Return (items, skipped) of a JSON value, or of bytes as they are."""
    Path("brain.json").write_bytes(value if isinstance(value, bytes) else orjson.dumps(value))
    return reading.read(app_brain, "brain.json")


def row(context, response, timestamp=None, source="whatsapp:Beto"):
    return {"context": context, "response": response, "timestamp": timestamp, "source": source}


def test_profile():
    profile = {
        "name": " Ana ",
        "common_phrases": {"rare": 1, "often": 9, "bad": "x", " ": 4},
        "emoji_patterns": {"🦆": 2},
        "typing_quirks": ["lowercase", "", 3, " two dots "],
        "tone_markers": ["dry"],
        "facts": ["Repairs clocks"],
        "response_examples": [{"context": "hi", "response": "yo"}, {"context": 1, "response": "x"}, "no"],
    }
    assert read({"personality_profile": profile}) == (
        [
            Personality(
                name="Ana",
                common_phrases=("often", "rare"),
                emoji=("🦆",),
                typing_quirks=("lowercase", "two dots"),
                tone=("dry",),
                facts=("Repairs clocks",),
                response_examples=(("hi", "yo"),),
            )
        ],
        {},
    )


def test_exchanges_of_a_source_are_one_chat_in_time():
    rows = [
        row("later?", "yes", "2024-01-02T10:00:00Z"),
        row("first?", "aye", "2024-01-01T10:00:00"),
        row("hm", "ok", None, source="mail"),
        row(" ", "alone", "2024-01-03T10:00:00"),
    ]
    items, skipped = read({"personality_profile": {"name": "Ana"}, "training_examples": rows})
    first, second, third = datetime(2024, 1, 1, 10), datetime(2024, 1, 2, 10), datetime(2024, 1, 3, 10)
    assert items[1:] == [
        Conversation(
            "brain.json/whatsapp:Beto",
            (
                Message("Beto", "first?", first),
                Message("Ana", "aye", first),
                Message("Beto", "later?", second),
                Message("Ana", "yes", second),
                Message("Ana", "alone", third),
            ),
        ),
        Conversation("brain.json/mail", (Message("someone", "hm"), Message("Ana", "ok"))),
    ]
    assert skipped == {}


def test_without_all_timestamps_the_files_order_stays():
    items, _ = read({"training_examples": [row("b", "2", "2024-01-02"), row("a", "1", "soon")]})
    assert [message.text for message in items[0].messages] == ["b", "2", "a", "1"]
    assert {message.speaker for message in items[0].messages} == {"Beto", ME}


def test_memories():
    rows = [
        {"id": 7, "memory": " Tea ", "category": "taste", "importance": 1, "created_at": "2024-01-10T08:14:00"},
        {"memory": "No id", "category": 3, "importance": "high", "created_at": 5},
    ]
    assert read({"memories": rows}) == (
        [
            Memory("brain.json#7", "Tea", "taste", 1.0, datetime(2024, 1, 10, 8, 14)),
            Memory("brain.json#row1", "No id", "facts", 0.5, None),
        ],
        {},
    )


def test_wrong_types_are_left_out_and_counted():
    value = {
        "personality_profile": [1],
        "training_examples": [row("q", "r"), row(None, "r"), row("q", 5), "x", None],
        "memories": [{"memory": ""}, {"memory": 5}, 7, {"memory": "good"}],
    }
    items, skipped = read(value)
    assert [type(item).__name__ for item in items] == ["Conversation", "Memory"]
    assert skipped == {"broken app example": 4, "broken app memory": 3}


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
rows = st.lists(
    st.dictionaries(
        st.sampled_from(["context", "response", "timestamp", "source", "memory", "id", "importance", "category"]),
        json_values,
    )
    | json_values,
    max_size=4,
)
profiles = st.dictionaries(
    st.sampled_from(["name", "common_phrases", "emoji_patterns", "typing_quirks", "facts", "response_examples"]),
    json_values,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "personality_profile": profiles | json_values,
            "training_examples": rows,
            "memories": rows | json_values,
        },
    )
)
def test_any_json_is_read_without_a_crash(value):
    items, skipped = read(value)
    asked = sum(len(value.get(key, [])) for key in ("memories",) if isinstance(value.get(key), list))
    assert sum(isinstance(item, Memory) for item in items) + skipped.get("broken app memory", 0) == asked
    for item in items:
        if isinstance(item, Conversation):
            assert all(message.text.strip() for message in item.messages)


def test_a_byte_order_mark_is_no_error():
    assert read(b'\xef\xbb\xbf{"memories": [{"memory": "x"}]}')[0] == [Memory("brain.json#row0", "x")]


@pytest.mark.parametrize("cut", [30, 60, 100])
def test_a_truncated_download(cut):
    whole = orjson.dumps({"memories": [{"memory": "a long enough memory to cut", "category": "facts"}] * 3})
    with pytest.raises(UsageError) as caught:
        read(whole[:cut])
    assert caught.value.message == "'brain.json' is broken JSON: unexpected end of data at line 1."
    assert caught.value.hint == "It may be cut short: export it again."


# Was wrong once: memories without an id of their own share "#None"; with one in the prompt, none became a row.
def test_memories_without_an_id_have_ids_of_their_own():
    items, _ = read(
        {
            "memories": [
                {"id": None, "memory": "a"},
                {"id": None, "memory": "b"},
                {"memory": "c"},
                {"id": 2, "memory": "d"},
            ]
        }
    )
    assert len({item.id for item in items}) == 4
