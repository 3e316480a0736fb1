"""What a sample learns is its reply and end token behind the server's prompt; each slip is told, with its row."""

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from twin.errors import GateError, StepError
from twin.llama import open_gguf
from twin.records import Example, Turn
from twin.results import Masked
from twin.templates import gate, load_family
from twin.training.mask import Proof, TokenizerReader, check, choose, reading, show
from twin.training.samples import build_samples

CHATML = load_family("chatml")
AWKWARD = [text for texts in gate.CONTENTS.values() for text in texts]


@pytest.fixture(scope="module")
def llama(smollm2_gguf):
    with open_gguf(smollm2_gguf, vocab_only=True) as model:
        yield model


@pytest.fixture(scope="module", params=["llama.cpp", "the tokenizer"])
def reader(request, llama, tokenizer):
    return llama if request.param == "llama.cpp" else TokenizerReader(tokenizer)


def row(*said, system=None, every_reply=False, row_id="chat:3-8", kind="chat"):
    """Return a row of alternating user and assistant turns."""
    turns = tuple(Turn("assistant" if n % 2 else "user", text) for n, text in enumerate(said))
    head = (Turn("system", system),) if system is not None else ()
    return Example(row_id, "c", kind, head + turns, every_reply=every_reply)


def with_sample(built, **changed):
    return replace(built, samples=(replace(built.samples[0], **changed), *built.samples[1:]))


# SmolLM2's vocabulary lacks the bytes of a few control characters and of U+40000 to U+BFFFF.
characters = st.characters(exclude_categories=["Cs", "Cc"], max_codepoint=0x3FFFF)
texts = st.lists(
    st.sampled_from([*AWKWARD, *CHATML.control_tokens, "\n", " ", "tea"]) | st.text(characters, max_size=12),
    max_size=3,
).map("".join)


@hypothesis_settings(max_examples=80)
@given(
    said=st.lists(st.lists(texts, min_size=2, max_size=8), min_size=1, max_size=3),
    system=st.none() | texts,
    every_reply=st.booleans(),
    max_length=st.integers(20, 400),
)
def test_every_sample_of_random_turns_is_proved(llama, tokenizer, said, system, every_reply, max_length):
    rows = [
        row(*one[: len(one) // 2 * 2], system=system, every_reply=every_reply, row_id=str(number))
        for number, one in enumerate(said)
    ]
    try:
        built = build_samples(rows, tokenizer, CHATML, max_length)
    except StepError:
        assume(False)
    done = check(built, llama, CHATML, max_length)
    assert done.samples == len(built.samples)
    assert done.supervised == sum(sample.supervised for sample in built.samples)
    for sample, origin in zip(built.samples, built.origins, strict=True):
        learned = sample.input_ids[sample.prompt_length :]
        assert llama.spelled(learned).decode() == origin.row.turns[origin.place].content + "<|im_end|>"
        context = llama.spelled(sample.input_ids[: sample.prompt_length]).decode()
        assert context.startswith(f"<|im_start|>system\n{system}<|im_end|>\n" if system is not None else "<|im_start|>")
        assert context.endswith("<|im_start|>assistant\n")
    assert built.shortened == sum(origin.shortened for origin in built.origins)
    replies = sum(sum(turn.role == "assistant" for turn in one.turns) if every_reply else 1 for one in rows)
    assert len(built.samples) + built.too_long == replies


def test_a_reply_that_would_join_its_prompt_is_read_by_itself(llama, tokenizer):
    built = build_samples([row("a?", "\n\nlate"), row("a?", "late")], tokenizer, CHATML, 256)
    assert check(built, llama, CHATML, 256) == Proof(built, sum(one.supervised for one in built.samples), 1)


# ---------------------------------------------------------------- it says no

SAID = ("are you there", "half 3", "and then?", "tea is fine")


def refused(built, reader, max_length=256):
    with pytest.raises(GateError) as caught:
        check(built, reader, CHATML, max_length)
    assert caught.value.exit_code == 5
    assert caught.value.message.count("'chat:3-8'") == 1
    assert caught.value.hint
    return caught.value.message


@pytest.fixture
def built(tokenizer):
    return build_samples([row(*SAID, system="Be Ana, from Porto."), row("x", "y", row_id="2")], tokenizer, CHATML, 256)


@pytest.mark.parametrize("by", [-1, 1])
def test_a_mask_that_is_shifted(built, reader, by):
    (sample, _) = built.samples
    begin = sample.prompt_length
    said = refused(with_sample(built, prompt_length=begin + by), reader)
    assert said == f"What is learned of 'chat:3-8' begins at id {begin + by}, and the reply at id {begin}."


def test_an_end_token_that_is_not_learned(built, reader):
    said = refused(with_sample(built, input_ids=built.samples[0].input_ids[:-1]), reader)
    assert said == "The end token '<|im_end|>' of 'chat:3-8' is not learned."


def test_a_turn_that_leaked_into_the_reply(built, reader, tokenizer):
    (sample, _) = built.samples
    asked = len(tokenizer("<|im_start|>user\nand then?<|im_end|>\n<|im_start|>assistant\n")["input_ids"])
    said = refused(with_sample(built, prompt_length=sample.prompt_length - asked), reader)
    assert said.endswith(f"begins at id {sample.prompt_length - asked}, and the reply at id {sample.prompt_length}.")


def test_an_id_of_the_reply_that_was_swapped(built, reader):
    ids, begin = list(built.samples[0].input_ids), built.samples[0].prompt_length
    ids[begin], ids[begin + 1] = ids[begin + 1], ids[begin]
    said = refused(with_sample(built, input_ids=tuple(ids)), reader)
    assert said == (
        f"'chat:3-8' would be learned as other ids than a server reads, at id {begin}: training {ids[begin]} «a» "
        f"{ids[begin + 1]} «te» {ids[begin + 2]} « is», llama.cpp {ids[begin + 1]} «te» {ids[begin]} «a» "
        f"{ids[begin + 2]} « is»."
    )


def test_a_reply_that_the_vocabulary_can_not_write(tokenizer, reader):
    """SmolLM2's lacks the byte 6 and drops it, in training and in the server alike."""
    built = build_samples(
        [row("a?", "b"), row("a?", "one\x06two", row_id="x"), row("\x06", "c")], tokenizer, CHATML, 256
    )
    proof = check(built, reader, CHATML, 256)
    assert proof.unwritable == (
        "What is learned of 'x' does not spell its reply, at byte 3: the row «one\\x06two<|im_end|><end>», "
        "the ids «onetwo<|im_end|><end>».",
    )
    assert [sample.id for sample in proof.kept.samples] == [built.samples[0].id, built.samples[2].id]
    assert [origin.row.id for origin in proof.kept.origins] == [built.origins[0].row.id, built.origins[2].row.id]
    assert proof.supervised == built.samples[0].supervised + built.samples[2].supervised
    assert check(proof.kept, reader, CHATML, 256).unwritable == ()


def test_a_vocabulary_that_can_write_no_reply(tokenizer, reader):
    with pytest.raises(GateError, match="does not spell its reply") as caught:
        check(build_samples([row("a?", "one\x06two")], tokenizer, CHATML, 256), reader, CHATML, 256)
    assert caught.value.hint.startswith("The vocabulary can't write that.")


def test_a_wrong_sample_beside_one_that_can_not_be_written_is_still_refused(tokenizer, reader):
    built = build_samples([row("a?", "one\x06two"), row("a?", "b", row_id="y")], tokenizer, CHATML, 256)
    last = replace(built.samples[1], input_ids=built.samples[1].input_ids[:-1])
    with pytest.raises(GateError, match="of 'y' is not learned"):
        check(replace(built, samples=(built.samples[0], last)), reader, CHATML, 256)


def test_all_rows_that_are_refused_are_named_at_once(tokenizer, llama):
    built = build_samples([row("a?", "b", row_id=f"r{number}") for number in range(9)], tokenizer, CHATML, 256)
    cut = tuple(replace(sample, input_ids=sample.input_ids[:-1]) for sample in built.samples)
    with pytest.raises(GateError) as caught:
        check(replace(built, samples=cut), llama, CHATML, 256)
    assert caught.value.message.endswith("is not learned. Refused too: 'r1', 'r2', 'r3', 'r4', 'r5', 3 more.")


def test_an_id_of_the_prompt_that_was_swapped(built, reader):
    ids = list(built.samples[0].input_ids)
    ids[5], ids[6] = ids[6], ids[5]
    assert ", at id 5 (byte " in refused(with_sample(built, input_ids=tuple(ids)), reader)


def test_a_system_prompt_that_was_cut(built, reader):
    sample = built.samples[0]
    ids = sample.input_ids[:5] + sample.input_ids[7:]
    said = refused(with_sample(built, input_ids=ids, prompt_length=sample.prompt_length - 2), reader)
    assert ", at id 5 (byte " in said


def test_a_reply_of_another_row(built, reader):
    first, second = built.origins
    wrong = replace(built, origins=(first._replace(row=replace(first.row, turns=second.row.turns), place=1), second))
    assert "would be learned as other ids than a server reads, at id 1 " in refused(wrong, reader)


def test_turns_that_were_cut_without_need(tokenizer, reader):
    whole = len(build_samples([row(*SAID)], tokenizer, CHATML, 256).samples[0].input_ids)
    built = build_samples([row(*SAID)], tokenizer, CHATML, whole - 1)
    (sample,), (origin,) = built.samples, built.origins
    assert (built.shortened, origin.cut) == (1, 2)
    assert check(built, reader, CHATML, whole - 1).samples == 1
    assert refused(built, reader) == "'chat:3-8' lost an exchange for which there was room."
    length = len(sample.input_ids)
    assert (
        refused(built, reader, length - 1) == f"'chat:3-8' is {length} tokens long, and --max-length is {length - 1}."
    )


def test_messages_of_one_role_in_a_row_are_asked_in_another_way(tokenizer, reader):
    turns = (Turn("user", "a"), Turn("user", "b"), Turn("assistant", "c"))
    built = build_samples([Example("chat:3-8", "c", "chat", turns)], tokenizer, CHATML, 256)
    with pytest.raises(GateError) as caught:
        check(built, reader, CHATML, 256)
    assert caught.value.message.startswith("The pair of family 'chatml' differs for 'chat:3-8', at byte 18: ")
    assert caught.value.hint.startswith("Ollama joins messages of one role that follow each other")


def test_a_pair_whose_go_template_asks_something_else(built, reader):
    other = CHATML.model_copy(update={"go": CHATML.go.replace("assistant", "Assistant")})
    with pytest.raises(GateError, match="differs for 'chat:3-8', at byte ") as caught:
        check(built, reader, other, 256)
    assert "twin's own mistake" in caught.value.hint


# ---------------------------------------------------------------- what it costs


class Counting:
    """A reader that counts the characters it reads; ``blank`` makes what it reads depend on what stands before."""

    def __init__(self, reader, blank=False, extra=()):
        self.reader, self.blank, self.extra, self.characters = reader, blank, list(extra), 0

    def ids(self, text):
        return self.reader.ids("") + self.plain_ids(text)

    def plain_ids(self, text):
        self.characters += len(text)
        return self.reader.plain_ids(text.replace("\n<|im_end|>", "<|im_end|>") if self.blank else text)

    def spelled(self, ids):
        return self.reader.spelled(ids)

    def control_tokens(self):
        return self.reader.control_tokens() + self.extra


def test_what_rows_share_is_read_once(tokenizer, llama):
    rows = [row(*SAID, f"number {n}?", "yes", system="word " * 200, row_id=str(n)) for n in range(1000)]
    built = build_samples(rows, tokenizer, CHATML, 1024)
    counting = Counting(llama)
    assert check(built, counting, CHATML, 1024).samples == 1000
    whole = sum(len(llama.spelled(sample.input_ids)) for sample in built.samples)
    assert counting.characters < whole / 5  # a tenth of it is read whole, to see that the parts are the same


def test_a_vocabulary_whose_texts_have_no_parts_is_read_whole(llama):
    text = "<|im_start|>user\nhi\n<|im_end|>\n"
    assert reading(llama, CHATML, [text]) != llama.ids
    assert reading(llama, CHATML, [text])(text) == llama.ids(text)
    joined = Counting(llama, blank=True)
    assert reading(joined, CHATML, []) == joined.ids
    across = Counting(llama, extra=["x<|im_"])
    assert reading(across, CHATML, []) == across.ids


# ---------------------------------------------------------------- shown


def test_different_samples_are_shown_first(tokenizer):
    rows = [
        row("a", "b", row_id="1"),
        row("a", "longer than the first", row_id="2"),
        row("when?", "a day", row_id="3", kind="journal"),
        row(*SAID, *SAID, row_id="4"),
        row("fact?", "so it is", row_id="5", kind="fact"),
    ]
    built = build_samples(rows, tokenizer, CHATML, 40)
    assert built.origins[3].cut
    assert [built.samples[at].id for at in choose(built, 9)] == ["1", "3", "5", "4", "2"]
    assert choose(built, 2) == [0, 2]


def test_a_sample_as_text(built, reader):
    (one,) = show(built, reader, 1)
    assert one == Masked(
        "chat:3-8", "chat",
        "<|im_start|>system\nBe Ana, from Porto.<|im_end|>\n<|im_start|>user\nare you there<|im_end|>\n"
        "<|im_start|>assistant\nhalf 3<|im_end|>\n<|im_start|>user\nand then?<|im_end|>\n<|im_start|>assistant\n",
        "tea is fine<|im_end|>",
        built.samples[0].prompt_length, built.samples[0].supervised, 0,
    )  # fmt: skip
    assert one.as_json()["pieces"][1] == {"text": "tea is fine<|im_end|>", "learned": True}
