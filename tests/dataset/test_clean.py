"""What is mended and what is left out, in every script alike."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.dataset.clean import Habits, in_their_hand, pasted, reason_to_drop, tidied, tidy


def reason(reply, asked="really?", quality_filter=True):
    return reason_to_drop(asked, reply, quality_filter)


def heard(*texts):
    hand = Habits()
    hand.hear(texts)
    return hand.starts_lowercase, hand.ends_with_full_stop


@pytest.mark.parametrize(
    "reply", ["lol", "ok", "k", "no", "👍", "<3", "हाँ", "はい", "да", "7", "a.", "see https://x.y"]
)
def test_words_stay(reply):
    assert reason(reply) is None


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("", "empty reply"),
        ("https://x.y/z", "links only"),
        ("www.x.y\nhttp://z", "links only"),
        ("...", "punctuation only"),
        ("?!", "punctuation only"),
        ("- – —", "punctuation only"),
    ],
)
def test_what_is_dropped_and_why(reply, expected):
    assert reason(reply) == expected


def test_an_empty_prompt_or_reply_is_dropped_even_without_the_filter():
    assert reason("hi", "", False) == "empty prompt"
    assert reason("", quality_filter=False) == "empty reply"
    assert reason("...", quality_filter=False) is None


def test_tidy_golden():
    assert tidy("\u200e a\r\nb\rc \u2069") == "a\nb\nc"


def test_joined_emoji_and_joiners_of_scripts_stay():
    family = "👩\u200d👧 می\u200cروم"
    assert tidy(family) == family


@given(st.text(max_size=60))
def test_tidy_is_idempotent_and_keeps_words(text):
    once = tidy(text)
    assert "\r" not in once
    assert [letter for letter in once if letter.isalnum()] == [letter for letter in text if letter.isalnum()]
    assert once == once.strip()
    assert tidied([text, "plain"]) == [once, "plain"]
    once.encode("utf-8")


def test_halves_of_characters_are_left_out():
    assert tidy("a\ud83d b\r\nc\0\u200e") == "a b\nc"


def test_habits_are_counted():
    assert heard("hi", "So.", "7") == (0.5, 1 / 3)
    assert heard() == (0.0, 1.0)
    assert heard("字", "한") == (0.0, 0.0)
    one, other = Habits(), Habits()
    one.hear(["hi"])
    other.hear(["So.", "7"])
    one.merge(other)
    assert (one.starts_lowercase, one.ends_with_full_stop) == (0.5, 1 / 3)


def test_what_was_hardly_typed():
    assert pasted("word " * 400)
    assert pasted("see https://a.example " + "word " * 130)
    assert not pasted("word " * 130)
    assert reason("x" * 4001) == "over-long"
    assert reason("x" * 4000) is None


@pytest.mark.parametrize(
    ("hand", "written"),
    [
        (Habits(10, 0, 10, 10), "likes tea"),
        (Habits(10, 0, 10, 5), "Likes Tea"),
        (Habits(10, 10, 10, 0), "Likes Tea."),
        (Habits(10, 5, 10, 10), "likes tea."),
    ],
)
def test_statements_in_their_hand(hand, written):
    assert in_their_hand(" Likes Tea. ", hand) == written


# Was wrong once: _LINKS_ONLY backtracks exponentially.
def test_a_long_link_does_not_hang():
    code = (
        "from twin.dataset.clean import reason_to_drop\n"
        "reply = 'http://a' * 60 + ' x'\n"
        "print(reason_to_drop('q', reply, True))"
    )
    # A process of its own: Python's regex engine can't be interrupted from inside.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "None\n"
