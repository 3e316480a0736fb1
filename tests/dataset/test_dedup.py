"""Near-duplicates are near: measured on the whole text, in every script."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.dataset.dedup import (
    SIMILARITY,
    candidates,
    first_of_each,
    flat,
    jaccard,
    keys,
    near_duplicates,
    shingles,
    signatures,
    similarities,
)

ASKED = "and how did it go with the landlord in the end?"


def row(reply, asked=ASKED):
    return f"{asked} {reply}"


def alike(flats, pairs):
    return similarities([flats[one] for one, _ in pairs], [flats[other] for _, other in pairs])


def reasons(*texts):
    """Return why each of some rows goes, or None."""
    flats = [flat(text) for text in texts]
    row_keys, bands = signatures(flats)
    first = first_of_each(row_keys)
    pairs = candidates(bands, first)
    near = near_duplicates(
        pairs, similarities([flats[one] for one, _ in pairs], [flats[other] for _, other in pairs]), len(flats)
    )
    return [
        "near-duplicate" if late else None if early else "duplicate" for early, late in zip(first, near, strict=True)
    ]


texts_ = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ue000"), max_size=12)
LONG = "he came round on thursday with a ladder and a face like thunder and did not say one word about the boiler " * 2


def test_the_first_stays():
    assert reasons(row("fine"), row("fine"), row("fine")) == [None, "duplicate", "duplicate"]


def test_near_duplicates_of_long_rows():
    assert reasons(row(LONG), row(LONG + "!"), row(LONG.upper())) == [None, "near-duplicate", "duplicate"]


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


@given(st.lists(st.text(st.sampled_from("abcd "), min_size=1, max_size=30), min_size=1, max_size=25))
def test_a_row_is_dropped_only_for_a_row_that_is_like_it(replies):
    texts = [row(reply) for reply in replies]
    kept = []
    for text, reason in zip(texts, reasons(*texts), strict=True):
        if reason is None:
            assert flat(text) not in [flat(other) for other in kept]
            kept.append(text)
        else:
            assert max(jaccard(shingles(text), shingles(other)) for other in kept) >= SIMILARITY


@given(st.lists(texts_, min_size=2, max_size=8))
def test_similarities_are_those_of_the_sets_of_shingles(texts):
    flats = [flat(text) for text in texts]
    pairs = np.array([(one, other) for one in range(len(texts)) for other in range(one)])
    exact = [jaccard(shingles(texts[one]), shingles(texts[other])) for one, other in pairs]
    assert alike(flats, pairs) == pytest.approx(exact)


@given(st.lists(texts_, min_size=1, max_size=9))
def test_a_key_is_the_texts_own_whatever_stands_beside_it(texts):
    flats = [flat(text) for text in texts]
    assert keys(flats).tolist() == [int(keys([text])[0]) for text in flats]
    assert signatures(flats)[0].tolist() == keys(flats).tolist()
    assert len(set(keys(flats).tolist())) == len(set(flats))


def test_minhash_finds_what_is_alike():
    rng = random.Random(1)  # noqa: S311
    words = ["".join(rng.choices("abcdefghijklmnop", k=6)) for _ in range(300)]
    texts = [" ".join(rng.choices(words, k=25)) for _ in range(200)]
    copies = [text + " x" for text in texts]
    assert jaccard(shingles(texts[0]), shingles(copies[0])) > SIMILARITY
    _, bands = signatures([*texts, *copies])
    found = {tuple(pair) for pair in candidates(bands, np.ones(400, bool)).tolist()}
    assert sum((number, number + 200) in found for number in range(200)) >= 198
    assert len(found) < 400
    nothing = candidates(bands, np.zeros(400, bool))
    assert len(nothing) == 0
