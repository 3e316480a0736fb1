"""JSON read item by item: what stands before a break is there, and the break is told in words."""

import io
import json

import ijson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.brain.reading import put
from twin.brain import reading
from twin.brain.reading import MAX_DEPTH, json_items, json_value
from twin.errors import UsageError
from twin.records import Message

UTF8_HINT = "Save it again as UTF-8; in most editors: Save as, Encoding, UTF-8."


def until_a_break(document, *path):
    """Return the items before a break, what is said of it, and the hint."""
    found = []
    with pytest.raises(UsageError) as caught:
        found.extend(json_items(document, *path))
    return found, caught.value.message, caught.value.hint


# Was wrong once: the parser's excerpt of the file is shown, as Python writes bytes.
def test_a_byte_that_is_no_utf_8_has_its_place():
    assert until_a_break(put("a.json", b'[1, "two", "caf\xe9\n", 4]')) == (
        [1, "two"],
        "'a.json' is not UTF-8 text after 2 items (byte 15 can't be decoded).",
        UTF8_HINT,
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'[1, "two", "thr', "parse error: premature EOF"),
        (b'[1, "two", "a\x01b"]', "lexical error: invalid character inside string"),
        (b'[1, "two", NaN]', "lexical error: invalid char in json text"),
    ],
)
def test_a_break_is_told_in_one_line(content, reason):
    assert until_a_break(put("a.json", content)) == (
        [1, "two"],
        f"'a.json' is broken JSON after 2 items: {reason}.",
        "It may be cut short: export it again.",
    )


def test_a_byte_that_is_no_utf_8_in_what_is_read_at_once():
    with pytest.raises(UsageError) as caught:
        json_value(put("a.json", b'{"a":\n "caf\xe9"}'))
    assert caught.value.message == "'a.json' is not UTF-8 text (byte 11 can't be decoded)."
    assert caught.value.hint == UTF8_HINT


# Was wrong once: a value nested 100,000 deep takes 20 GB, and the process is killed.
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('[{"a":', "}]"), ('{"[": ', "}")])
def test_a_value_nested_without_end_ends_the_reading_before_it(opening, closing):
    before = [{"n": n, "text": "x" * 60} for n in range(100)]
    deep = opening * 100_000 + "1" + closing * 100_000
    text = json.dumps({"messages": before})[:-2] + f", {deep}, 1]}}"
    assert until_a_break(put("a.json", text), "messages") == (
        before,
        f"'a.json' is broken JSON after 100 items: nested more than {MAX_DEPTH} deep.",
        "Export it again.",
    )


def nested(levels):
    value = "words"
    for level in range(levels):
        value = [value, "]"] if level % 2 else {'a"[': value}
    return value


def test_what_is_nested_no_deeper_is_read(monkeypatch):
    monkeypatch.setattr(reading, "WHOLE_BYTES", 0)
    item = nested(MAX_DEPTH - 1)
    assert list(json_items(put("a.json", [item] * 300))) == [item] * 300
    assert until_a_break(put("a.json", [1, nested(MAX_DEPTH)]))[0] == [1]


values = st.recursive(
    st.text('[]{}"\\a\n', max_size=6) | st.integers(0, 9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('[]{}"\\a', max_size=3), inner, max_size=2),
    max_leaves=8,
)


@given(st.lists(values, max_size=5), st.integers(1, 9), st.sampled_from([None, 1]))
@example(["\\", '"[', "\\\\"], 1, None)
def test_any_json_is_read_whatever_the_chunks(items, size, indent):
    data = json.dumps(items, indent=indent).encode()
    assert list(ijson.items(reading._Shallow(io.BytesIO(data)), "item", buf_size=size)) == items


def test_a_piece_ends_where_it_holds_enough(monkeypatch):
    monkeypatch.setattr(reading, "PIECE", 4)
    monkeypatch.setattr(reading, "PIECE_CHARACTERS", 10)
    said = [Message("Ana", "a" * length) for length in (1, 1, 1, 1, 6, 5, 1, 40, 1)]
    found = list(reading.pieces("c", said))
    assert [(one.start, len(one.messages)) for one in found] == [(0, 4), (4, 2), (6, 2), (8, 1)]
    assert [message for one in found for message in one.messages] == said
