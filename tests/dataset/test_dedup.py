"""Near-duplicates are near: measured on the whole text, in every script."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.dataset.dedup import SIMILARITY, Deduplicator, jaccard, shingles
from twin.records import Example, Turn


def row(reply, asked="and how did it go with the landlord in the end?"):
    return Example("r", "c", "chat", (Turn("user", asked), Turn("assistant", reply)))


def reasons(*rows):
    seen = Deduplicator()
    return [seen.reason_to_drop(each) for each in rows]


LONG = "he came round on thursday with a ladder and a face like thunder and did not say one word about the boiler " * 2


def test_the_first_stays():
    assert reasons(row("fine"), row("fine"), row("fine")) == [None, "duplicate", "duplicate"]


def test_near_duplicates_of_long_rows():
    assert reasons(row(LONG), row(LONG + "!"), row(LONG.upper())) == [None, "near-duplicate", "near-duplicate"]


def test_a_shared_beginning_is_no_duplicate():
    assert reasons(
        row(LONG + "we had cake"), row(LONG[:100] + " anyway i am moving to the coast in may with the dog")
    ) == [
        None,
        None,
    ]


def test_the_same_reply_to_another_question_stays():
    assert reasons(row("yes", "do you want tea?"), row("yes", "is the shop open on monday?")) == [None, None]


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("он пришёл в четверг с лестницей и ни слова не сказал про котёл и про окно", "он пришёл в четверг один"),
        ("木曜日に梯子を持ってきたけどボイラーのことは何も言わなかったし窓も直さなかった", "木曜日に一人で来た"),
    ],
)
def test_every_script_alike(text, other):
    assert reasons(row(text), row(text + "."), row(other)) == [None, "near-duplicate", None]


def test_shingles_and_jaccard():
    assert shingles("ABC  d\nef") == {"abc d", "bc de", "c def"} - {"bc de", "c def"} | {"bc d ", "c d e", " d ef"}
    assert shingles("ab") == {"ab"}
    assert shingles("") == {""}
    assert jaccard(frozenset("abc"), frozenset("bcd")) == 0.5
    assert jaccard(frozenset("a"), frozenset("a")) == 1


@given(st.lists(st.text(st.sampled_from("abcd "), min_size=1, max_size=30), max_size=25))
def test_a_row_is_dropped_only_for_a_row_that_is_like_it(replies):
    seen = Deduplicator()
    kept = []
    for reply in replies:
        each = row(reply)
        own = shingles(f"{each.turns[-2].content}\n{each.reply}")
        reason = seen.reason_to_drop(each)
        if reason is None:
            assert reply not in [text for text, _ in kept]
            kept.append((reply, own))
        elif reason == "duplicate":
            assert reply in [text for text, _ in kept]
        else:
            assert max(jaccard(own, other) for _, other in kept) >= SIMILARITY
    again = Deduplicator()
    assert [again.reason_to_drop(row(reply)) for reply, _ in kept] == [None] * len(kept)
