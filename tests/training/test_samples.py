"""What is trained: the server's prompt, then reply and end token; cut at whole turns, never in the middle."""

import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from twin.errors import GateError, StepError
from twin.records import Example, Turn
from twin.templates import load_family, render
from twin.training.samples import build_samples, check_vocabulary, fit, prompt_ids, reply_ids

CHATML = load_family("chatml")


def row(*said, system=None, every_reply=False):
    """Return a row of alternating user and assistant turns."""
    turns = tuple(Turn("assistant" if n % 2 else "user", text) for n, text in enumerate(said))
    head = (Turn("system", system),) if system is not None else ()
    return Example("r", "c", "chat", head + turns, every_reply=every_reply)


def build(rows, tokenizer, max_length=2048):
    return build_samples(rows, tokenizer, CHATML, max_length)


def test_golden(tokenizer):
    done = build([row("hi", "tea is fine", system="Be Ana.")], tokenizer)
    (sample,) = done.samples
    assert (sample.id, sample.conversation_id, sample.kind, done.shortened, done.too_long) == ("r", "c", "chat", 0, 0)
    prompt = "<|im_start|>system\nBe Ana.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(sample.input_ids[: sample.prompt_length]) == prompt
    assert tokenizer.decode(sample.input_ids[sample.prompt_length :]) == "tea is fine<|im_end|>"
    assert sample.supervised == len(sample.input_ids) - sample.prompt_length
    assert sample.input_ids[-1] == tokenizer.eos_token_id


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@hypothesis_settings(max_examples=40)
@given(said=st.lists(words, min_size=2, max_size=6).filter(lambda said: len(said) % 2 == 0), system=st.none() | words)
def test_the_prompt_is_the_servers_and_the_rest_is_the_reply(tokenizer, said, system):
    one = row(*said, system=system)
    (sample,) = build([one], tokenizer).samples
    served = tokenizer(render(CHATML, one.turns[:-1]), add_special_tokens=True)["input_ids"]
    assert list(sample.input_ids[: sample.prompt_length]) == served
    learned = list(sample.input_ids[sample.prompt_length :])
    assert learned == tokenizer(one.reply + "<|im_end|>", add_special_tokens=False)["input_ids"]
    assert learned[-1] == tokenizer.eos_token_id


@hypothesis_settings(max_examples=40)
@given(
    said=st.lists(st.sampled_from(["hi", "tea and cake", "a longer thing to say\nin lines"]), min_size=2, max_size=9),
    system=st.none() | st.just("Be Ana."),
    max_length=st.integers(8, 120),
)
def test_cut_to_length_at_whole_turns_oldest_first(tokenizer, said, system, max_length):
    assume(len(said) % 2 == 0)
    one = row(*said, system=system)
    reply = reply_ids(tokenizer, CHATML, one.reply, one.turns[-2])
    turns = one.turns[:-1]
    head = turns[:1] if system else ()
    rest = turns[len(head) :]
    options = [prompt_ids(tokenizer, CHATML, [*head, *rest[cut:]]) for cut in range(0, len(rest), 2)]
    fitting = [ids for ids in options if len(ids) + len(reply) <= max_length]
    found = fit(tokenizer, CHATML, turns, reply, max_length)
    if not fitting:
        assert found is None
    else:
        assert found == (max(fitting, key=len), 2 * options.index(max(fitting, key=len)))


def test_the_report_of_what_was_cut(tokenizer):
    long = row("word " * 80, "aye", "short?", "yes")
    hopeless = row("short?", "word " * 80)
    done = build([long, hopeless, row("a?", "b")], tokenizer, max_length=64)
    assert (len(done.samples), done.shortened, done.too_long) == (2, 1, 1)
    assert tokenizer.decode(done.samples[0].input_ids).startswith("<|im_start|>user\nshort?")
    assert all(len(sample.input_ids) <= 64 for sample in done.samples)


def test_nothing_left_to_learn(tokenizer):
    with pytest.raises(StepError) as caught:
        build([row("short?", "word " * 80)] * 2, tokenizer, max_length=64)
    assert (caught.value.message, caught.value.hint) == (
        "No row is left to learn from: 2 are longer than 64 tokens.",
        "Raise --max-length.",
    )


def test_our_rows_learn_the_last_reply_and_other_tools_rows_each(tokenizer):
    said = ("a?", "one", "b?", "two")
    own = build([row(*said, system="S")], tokenizer).samples
    theirs = build([row(*said, system="S", every_reply=True)], tokenizer).samples
    assert [tokenizer.decode(one.input_ids[one.prompt_length :]) for one in own] == ["two<|im_end|>"]
    assert [tokenizer.decode(one.input_ids[one.prompt_length :]) for one in theirs] == [
        "one<|im_end|>",
        "two<|im_end|>",
    ]
    assert [one.id for one in theirs] == ["r@2", "r@4"]
    assert theirs[1].input_ids == own[0].input_ids
    assert theirs[1].input_ids[: len(theirs[0].input_ids)] == theirs[0].input_ids


def test_a_control_token_that_a_user_types_is_one_id_as_on_the_server(tokenizer):
    (sample,) = build([row("<|im_end|>", "no")], tokenizer).samples
    assert list(sample.input_ids).count(tokenizer.eos_token_id) == 3


def test_the_vocabulary_must_hold_the_control_tokens(tokenizer):
    check_vocabulary(tokenizer, CHATML)
    with pytest.raises(GateError) as caught:
        check_vocabulary(tokenizer, CHATML.model_copy(update={"control_tokens": ["<|im_start|>", "<|user|>"]}))
    assert caught.value.message == (
        "The base model's vocabulary has no single token '<|user|>', which the family 'chatml' needs."
    )
    assert caught.value.hint == "Use a base model of that family, or another preset: twin presets list"
