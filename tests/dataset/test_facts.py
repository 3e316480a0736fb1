"""Memories, facts, journals and examples as rows, each with a question of its own."""

from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin import prompt
from twin.brain import load
from twin.dataset.clean import Habits
from twin.dataset.facts import fact_rows, journal_rows, memory_rows, rare_words, response_rows
from twin.dropped import Dropped
from twin.prompt import SystemPrompt
from twin.records import Brain, JournalEntry, Memory, Personality

PLAIN = Habits(texts=10, stops=10, cased=10, lower=0)
NOTHING = SystemPrompt("", frozenset(), frozenset())


def asked(rows):
    return [row.turns[0].content for row, _ in rows]


def test_rare_words_are_rare_and_in_order():
    texts = ["Likes tea with honey", "Likes tea with lemon", "Likes tea"]
    assert rare_words(texts) == [("with", "honey"), ("with", "lemon"), ("tea", "tea")]


@given(st.lists(st.text(max_size=40), max_size=8))
def test_rare_words_are_words_of_the_text(texts):
    pairs = rare_words(texts)
    assert len(pairs) == len(texts)
    for text, (one, other) in zip(texts, pairs, strict=True):
        assert one in text
        assert other in text
        assert (one == "") == (other == "")


def test_a_memory_as_a_row():
    brain = Brain("Ana", memories=(Memory("m#1", "Plays the accordion badly."), Memory("m#2", "Is in the prompt")))
    rows = list(memory_rows(brain, SystemPrompt("", frozenset({"m#2"}), frozenset()), PLAIN, Dropped()))
    (row, at) = rows[0]
    assert len(rows) == 1
    assert (row.id, row.conversation_id, row.kind, row.reply, at) == (
        "m#1",
        "m#1",
        "memory",
        "I play the accordion badly.",
        None,
    )
    assert row.turns[0].content == "accordion and badly, what should I know?"


def test_a_reply_is_in_the_persons_hand():
    brain = Brain(
        "Ana", memories=(Memory("m#1", "Plays the Accordion."),), personality=Personality(facts=("Is TALL.",))
    )
    hand = Habits(texts=10, stops=0, cased=10, lower=10)
    assert [row.reply for row, _ in memory_rows(brain, NOTHING, hand, Dropped())] == ["i play the accordion"]
    assert [row.reply for row, _ in fact_rows(brain, NOTHING, hand, Dropped())] == ["i am tall"]


def test_facts_keep_their_number():
    brain = Brain("Ana", personality=Personality(facts=("Zero thing", "One thing", "Two thing")))
    rows = list(fact_rows(brain, SystemPrompt("", frozenset(), frozenset({"One thing"})), PLAIN, Dropped()))
    assert [row.id for row, _ in rows] == ["profile#fact0", "profile#fact2"]
    assert [row.kind for row, _ in rows] == ["fact", "fact"]


def test_journals_are_asked_for_by_date_and_title():
    at = datetime(2024, 3, 5, 12)
    brain = Brain(
        "Ana",
        journals=(
            JournalEntry("a.md", "slept in", "New year", at),
            JournalEntry("b.md", "one two three four five six"),
            JournalEntry("c.md", "late again", "", at),
            JournalEntry("d.md", "rain", "2024-03-05", at),
        ),
    )
    rows = list(journal_rows(brain))
    assert asked(rows) == [
        "What did you write down on 5 March 2024, New year?",
        'Which note of yours begins "one two three four"?',
        "How was 5 March 2024?",
        "What did you write down on 5 March 2024?",
    ]
    assert [(row.reply, when) for row, when in rows] == [
        ("slept in", at.timestamp()),
        ("one two three four five six", None),
        ("late again", at.timestamp()),
        ("rain", at.timestamp()),
    ]


def test_response_examples():
    brain = Brain("Ana", personality=Personality(response_examples=(("hi", "yo"), ("so?", "so"))))
    assert [(row.id, row.kind, row.turns[0].content, row.reply) for row, _ in response_rows(brain)] == [
        ("profile#example0", "example", "hi", "yo"),
        ("profile#example1", "example", "so?", "so"),
    ]


def test_no_stock_question_in_the_sample_brain(sample_brain):
    brain = load([sample_brain])
    hand = PLAIN
    for rows in (
        memory_rows(brain, NOTHING, hand, Dropped()),
        fact_rows(brain, NOTHING, hand, Dropped()),
        journal_rows(brain),
    ):
        kind = list(rows)
        assert len(kind) > 5
        assert len(set(asked(kind))) == len(kind)
        assert all(row.turns[0].content.casefold() != row.reply.casefold() for row, _ in kind)
    system = prompt.build(brain)
    assert len(list(memory_rows(brain, system, hand, Dropped()))) == len(brain.memories) - len(system.memory_ids)


@pytest.mark.parametrize("text", ["{a} {0} {nothing}", "100% %s", "\\1 tricky {word}"])
def test_braces_in_a_memory_are_words(text):
    rows = list(memory_rows(Brain("Ana", memories=(Memory("m", text),)), NOTHING, PLAIN, Dropped()))
    assert rows[0][0].reply == text


# Was wrong once: a single word is asked for twice, and words with vowel signs are cut at each sign.
def test_a_memory_of_one_rare_word_does_not_say_it_twice():
    question = asked(memory_rows(Brain("Ana", memories=(Memory("m", "Likes honey"),)), NOTHING, PLAIN, Dropped()))[0]
    assert question.casefold().count("honey") == 1


def test_words_with_vowel_signs_are_whole():
    assert rare_words(["उसे नमस्ते"])[0][0] == "नमस्ते"
