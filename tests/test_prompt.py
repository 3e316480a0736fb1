"""The one system prompt: personality first, the most important memories next, 300 tokens at most."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.brain import load
from twin.prompt import MAX_TOKENS, build, by_importance, estimate_tokens, reworded
from twin.records import Brain, Memory, Personality

WREN = Brain(
    "Wren",
    memories=(
        Memory("m#1", "Likes tea", importance=0.2),
        Memory("m#2", "Is allergic to walnuts.", importance=1.0),
        Memory("m#3", "Sister  is\nBea", importance=0.2),
    ),
    personality=Personality(
        name="Wren H.",
        common_phrases=("ok so", "ta", "c", "d", "e", "f", "seventh"),
        emoji=("🦆", "🫠"),
        typing_quirks=("lowercase.", "two dots "),
        tone=("dry", "warm", "teasing", "fourth"),
        facts=("Repairs clocks",),
    ),
)

texts = st.text(st.sampled_from("ab Z.!?é字🦆\n0-"), min_size=1, max_size=60).filter(str.strip)
brains = st.builds(
    lambda name, quirks, phrases, facts, memories: Brain(
        name,
        memories=tuple(Memory(f"m#{n}", text, importance=weight) for n, (text, weight) in enumerate(memories)),
        personality=Personality(typing_quirks=tuple(quirks), common_phrases=tuple(phrases), facts=tuple(facts)),
    ),
    st.text("abcé", min_size=1, max_size=10),
    st.lists(texts, max_size=8),
    st.lists(texts, max_size=8),
    st.lists(texts, max_size=6),
    st.lists(st.tuples(texts, st.floats(0, 1)), max_size=40),
)


def test_golden():
    prompt = build(WREN)
    assert prompt.text == (
        "You are Wren H.. You reply to messages just as Wren H. does.\n"
        "How you type: lowercase; two dots.\n"
        "You often say: ok so, ta, c, d, e, f.\n"
        "Your emoji: 🦆 🫠\n"
        "About you: Repairs clocks. Is allergic to walnuts. Likes tea. Sister is Bea."
    )
    assert prompt.memory_ids == {"m#1", "m#2", "m#3"}
    assert prompt.facts == {"Repairs clocks"}


def test_a_person_of_whom_nothing_is_known():
    prompt = build(Brain("Ana"))
    assert prompt.text == "You are Ana. You reply to messages just as Ana does."
    assert (prompt.memory_ids, prompt.facts) == (frozenset(), frozenset())


def test_other_wording():
    assert reworded(WREN) == "Answer as Wren H. would. Tone: dry, warm, teasing."
    assert reworded(Brain("Ana")) == "Answer as Ana would."


def test_importance_sorts_and_ties_keep_their_order():
    assert [memory.id for memory in by_importance(WREN.memories)] == ["m#2", "m#1", "m#3"]


def test_what_does_not_fit_is_left_for_rows():
    many = tuple(
        Memory(f"m#{n}", f"Memory number {n} about the old clock tower", importance=n / 100) for n in range(100)
    )
    prompt = build(replace(WREN, memories=many))
    kept = len(prompt.memory_ids)
    assert 0 < kept < 100
    assert prompt.memory_ids == {f"m#{n}" for n in range(100 - kept, 100)}


@given(brains)
def test_the_bound_holds_and_the_record_says_what_is_in(brain):
    prompt = build(brain)
    assert estimate_tokens(prompt.text) <= MAX_TOKENS
    flat = " ".join(prompt.text.split())
    assert all(" ".join(memory.text.split()) in flat for memory in brain.memories if memory.id in prompt.memory_ids)
    assert all(" ".join(fact.split()) in flat for fact in prompt.facts)
    assert build(brain) == prompt


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", 0), ("clock", 1), ("clocks", 2), ("Clock", 3), ("2024", 4), ("é字🦆", 9), ("a, b.", 4), ("a\nb", 3)],
)
def test_estimate(text, tokens):
    assert estimate_tokens(text) == tokens


def test_the_estimate_bounds_the_real_tokenizer_on_the_sample_brain(sample_brain, tokenizer):
    brain = load([sample_brain])
    prompt = build(brain)
    real = len(tokenizer(prompt.text, add_special_tokens=False)["input_ids"])
    assert 150 < real <= estimate_tokens(prompt.text) <= MAX_TOKENS


@pytest.mark.parametrize("text", ["Drinks black tea with honey, never milk", "Zofia i Jerzy, Gdynia Chylonia"])
def test_the_estimate_bounds_the_real_tokenizer(tokenizer, text):
    assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= estimate_tokens(text)


@given(st.text(st.characters(min_codepoint=0x80, exclude_categories=["Cs", "Cn"]), max_size=20))
def test_the_estimate_bounds_the_real_tokenizer_outside_ascii(tokenizer, text):
    assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= estimate_tokens(text)
