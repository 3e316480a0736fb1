"""What is mended and what is left out, in every script alike."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.dataset.clean import Habits, habits, in_their_hand, normalise, reason_to_drop
from twin.records import Brain, Conversation, Example, Message, Turn


def row(reply, asked="really?"):
    return Example("r", "c", "chat", (Turn("user", asked), Turn("assistant", reply)))


def spoken(*texts):
    return Brain("Ana", (Conversation("c", tuple(Message("Ana", text) for text in texts)),))


@pytest.mark.parametrize(
    "reply", ["lol", "ok", "k", "no", "👍", "<3", "हाँ", "はい", "да", "7", "a.", "see https://x.y"]
)
def test_words_stay(reply):
    assert reason_to_drop(row(reply), quality_filter=True) is None


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "empty reply"),
        ("https://x.y/z", "links only"),
        ("www.x.y\nhttp://z", "links only"),
        ("...", "punctuation only"),
        ("?!", "punctuation only"),
        ("- – —", "punctuation only"),
    ],
)
def test_what_is_dropped_and_why(reply, reason):
    assert reason_to_drop(row(reply), quality_filter=True) == reason


def test_an_empty_prompt_or_reply_is_dropped_even_without_the_filter():
    assert reason_to_drop(row("hi", asked=""), quality_filter=False) == "empty prompt"
    assert reason_to_drop(row(""), quality_filter=False) == "empty reply"
    assert reason_to_drop(row("..."), quality_filter=False) is None


def test_normalise_golden():
    assert normalise(row("\u200e a\r\nb\rc \u2069", asked=" q\ufeff ")) == row("a\nb\nc", asked="q")


def test_joined_emoji_and_joiners_of_scripts_stay():
    family = "👩\u200d👧 می\u200cروم"
    assert normalise(row(family)).reply == family


@given(st.text(max_size=60), st.text(max_size=60))
def test_normalise_is_idempotent_and_keeps_words(asked, reply):
    once = normalise(row(reply, asked))
    assert "\r" not in once.reply
    assert [letter for letter in once.reply if letter.isalnum()] == [letter for letter in reply if letter.isalnum()]
    assert [turn.role for turn in once.turns] == ["user", "assistant"]
    twice = normalise(once)
    assert len(twice.reply) <= len(once.reply)


def test_habits_are_the_persons_own():
    brain = Brain(
        "Ana",
        (
            Conversation(
                "c", (Message("Ana", "hi"), Message("Ana", "So."), Message("Beto", "LOUD."), Message("Ana", "7"))
            ),
        ),
    )
    assert habits(brain) == Habits(starts_lowercase=0.5, ends_with_full_stop=1 / 3)
    assert habits(Brain("Ana")) == Habits(0.0, 1.0)
    assert habits(spoken("字", "한")) == Habits(0.0, 0.0)


@pytest.mark.parametrize(
    ("hand", "written"),
    [
        (Habits(1.0, 0.0), "likes tea"),
        (Habits(0.5, 0.0), "Likes Tea"),
        (Habits(0.0, 1.0), "Likes Tea."),
        (Habits(1.0, 0.5), "likes tea."),
    ],
)
def test_statements_in_their_hand(hand, written):
    assert in_their_hand(" Likes Tea. ", hand) == written


# Was wrong once: _LINKS_ONLY backtracks exponentially.
def test_a_long_link_does_not_hang():
    code = (
        "from twin.dataset.clean import reason_to_drop\nfrom twin.records import Example, Turn\n"
        "reply = 'http://a' * 60 + ' x'\n"
        "print(reason_to_drop(Example('r', 'c', 'chat', (Turn('user', 'q'), Turn('assistant', reply))), True))"
    )
    # A process of its own: Python's regex engine can't be interrupted from inside.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=3)
    assert done.stdout == "None\n"
