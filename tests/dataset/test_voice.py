"""Neutral statements in the person's own voice: English ones are turned, others stay or are somebody else's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.dataset.voice import first_person

ANA = "Ana Beltrán"


@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("Plays the accordion", "I play the accordion"),
        ("Is tall", "I am tall"),
        ("Isn't tall", "I am not tall"),
        ("Has a cat", "I have a cat"),
        ("Doesn't eat meat", "I don't eat meat"),
        ("Was born in Lima", "I was born in Lima"),
        ("Goes to bed late", "I go to bed late"),
        ("Studies law", "I study law"),
        ("Watches birds", "I watch birds"),
        ("Fixes bicycles", "I fix bicycles"),
        ("Misses the sea", "I miss the sea"),
        ("Owes him money", "I owe him money"),
        ("likes tea", "I like tea"),
        ("Never drinks coffee", "I never drink coffee"),
        ("Secretly likes the rain", "I secretly like the rain"),
        ("Ana likes tea", "I like tea"),
        ("Ana Beltrán likes tea", "I like tea"),
        ("She likes tea", "I like tea"),
        ("The user likes tea", "I like tea"),
        ("Ana always likes tea", "I always like tea"),
        ("Ana's sister is Clara", "My sister is Clara"),
        ("Lives alone and likes it", "I live alone and like it"),
        ("Sings in the kitchen but never washes the pots", "I sing in the kitchen but never washes the pots"),
        ("Lives with his sister", "I live with my sister"),
        ("Cuts her hair herself", "I cut her hair myself"),
        ("Mends clocks and watches the birds", "I mend clocks and watch the birds"),
        ("Keeps cats and dogs", "I keep cats and dogs"),
    ],
)
def test_english_is_turned(text, own):
    assert first_person(text, ANA) == own


@pytest.mark.parametrize(
    "text",
    [
        "I like tea",
        "My sister is Clara",
        "It's me who cooks",
        "Born in Lima",
        "Allergic to nuts",
        "Always on time",
        "Parents live in Lima",
        "His is the red one",
        "Glass and paper",
        "Friends since school",
        "Le gusta el té",
        "Mag Tee",
        "お茶が好き",
        "любит чай",
        "चाय पसंद है",
        "",
    ],
)
def test_what_stays_as_it_is(text):
    assert first_person(text, ANA) == text


@pytest.mark.parametrize(
    "text",
    [
        "A le gusta el té a Ana",
        "Ana toca el acordeón",
        "Beto likes Ana",
        "Ana, of all people",
        "They",
        "Ana",
        "Любит чай, говорит Ana Beltrán",
    ],
)
def test_somebody_elses_sentence_is_none(text):
    assert first_person(text, ANA) is None


@pytest.mark.parametrize("text", ["Anabel likes tea", "Banana likes the sun", "Anas is a name"])
def test_a_name_is_a_whole_word(text):
    assert first_person(text, ANA) is not None


def test_a_name_of_marks_is_a_name():
    assert first_person("A. (x) likes tea", "A. (x)") == "I like tea"
    assert first_person("Likes tea", "") == "I like tea"


words = st.sampled_from(
    [
        "Ana",
        "Beltrán",
        "likes",
        "is",
        "has",
        "plays",
        "tea",
        "and",
        "his",
        "herself",
        "never",
        "She",
        "ama",
        "お茶",
        ".",
    ]
)


@given(st.lists(words, max_size=7).map(" ".join))
def test_no_statement_still_names_its_person_for_a_subject(text):
    own = first_person(text, ANA)
    if own is not None:
        assert not own.startswith(("Ana ", "She ", "Ana Beltrán"))
        assert first_person(own, ANA) == own  # in their voice already


@given(st.text(max_size=60), st.text(max_size=8))
def test_any_text_is_told_or_left_out(text, name):
    assert (first_person(text, name) == "") == (text == "")


@given(st.text(st.characters(categories=["Lo", "Nd", "Zs"]), max_size=40))
def test_other_scripts_stay(text):
    assert first_person(text, ANA) == text
