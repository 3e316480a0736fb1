"""Each family with the real tokenizers of its models: the ids of training are llama.cpp's, and the originals'."""

import unicodedata
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests import vocabularies
from twin import prove
from twin.basemodel import BaseModel
from twin.errors import GateError
from twin.progress import Silent
from twin.records import Example, Turn
from twin.templates import derive, gate, load_family, render
from twin.training.mask import TokenizerReader, check, reading
from twin.training.samples import build_samples, check_vocabulary, prompt_ids, reply_ids
from twin.training.tokenizer import load_tokenizer

pytestmark = pytest.mark.slow


class Opened:
    """A model's tokenizer as training has it, its family, and llama.cpp's vocabulary of it."""

    def __init__(self, name):
        from twin.gguf.vocabulary import vocabulary

        self.name, self.folder = name, vocabularies.folder(name)
        self.family = load_family(vocabularies.MODELS[name].family)
        self.tokenizer = load_tokenizer(self.folder)
        self.gguf = vocabulary(self.folder, self.family.gguf_name, None, Silent())

    def ids(self, turns):
        return prompt_ids(self.tokenizer, self.family, turns)


@pytest.fixture(scope="module", params=vocabularies.MODELS)
def opened(request):
    return Opened(request.param)


@pytest.fixture(scope="module")
def llama(opened):
    from twin.llama import open_gguf

    with open_gguf(opened.gguf, vocab_only=True) as model:
        yield model


contents = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
awkward = st.lists(
    st.sampled_from([text for texts in gate.CONTENTS.values() for text in texts] + [" ", "\n", "▁", "<|im_", "[INST"])
    | contents,
    max_size=4,
).map("".join)


def test_the_whole_gate(opened):
    check_vocabulary(opened.tokenizer, opened.family)
    base = BaseModel(opened.name, opened.name, opened.folder)
    said = prove.vocabulary_ids(base, opened.family, opened.ids, [[Turn("user", "my own")]], None, Silent())
    assert said == f"{len(gate.SHAPES) * (len(gate.CONTENTS) + 1) + 1} prompts, the same in llama.cpp"


@hypothesis_settings(max_examples=150)
@given(said=st.lists(awkward, min_size=1, max_size=4), system=st.none() | awkward)
def test_any_prompt_has_llama_cpps_ids(opened, llama, said, system):
    head = [] if system is None else [Turn("system", system)]
    turns = [*head, *(Turn(("user", "assistant")[at % 2], text) for at, text in enumerate(said))]
    assert opened.ids(turns) == llama.ids(render(opened.family, turns))


def test_a_reply_is_read_as_it_stands_in_a_history(opened, llama):
    """What is learned after a prompt is what the server reads of it as soon as it is history."""
    ask = Turn("user", "are you coming?")
    for reply in ("yes, at six", "no", "ok so..\nlater", "½ of it 👍🏽", "مرحبا"):
        prompt = opened.ids([ask])
        learned = prompt + reply_ids(opened.tokenizer, opened.family, reply, ask)
        history = llama.ids(render(opened.family, [ask, Turn("assistant", reply), ask]))
        assert history[: len(learned)] == learned


def samples(opened, *talks, max_length=4096):
    """Return the samples of talks in turn, each reply of them."""
    rows = []
    for number, talk in enumerate(talks):
        turns = (Turn(("user", "assistant")[at % 2], text) for at, text in enumerate(talk))
        rows.append(Example(f"r{number}", "c", "chat", tuple(turns), every_reply=True))
    return build_samples(rows, opened.tokenizer, opened.family, max_length)


# What some vocabulary can't write, or writes as something else: control characters, and the planes behind U+3FFFF.
sayable = st.lists(
    st.sampled_from([text for texts in gate.CONTENTS.values() for text in texts] + [" ", "\n", "<|im_", "[INST"])
    | st.text(st.characters(exclude_categories=["Cs", "Cc"], max_codepoint=0x3FFFF), max_size=20),
    max_size=3,
).map(lambda texts: "".join(texts).replace("\u2581", ""))


@hypothesis_settings(max_examples=60)
@given(said=st.lists(sayable, min_size=2, max_size=5), system=st.none() | sayable)
def test_every_sample_is_proved(opened, llama, said, system):
    head = [] if system is None else [Turn("system", system)]
    turns = [*head, *(Turn(("user", "assistant")[at % 2], text) for at, text in enumerate(said))]
    built = build_samples(
        [Example("r", "c", "chat", tuple(turns), every_reply=True)], opened.tokenizer, opened.family, 4096
    )
    # Without tokenizer.model (none is at hand) llama.cpp's converter makes Gemma 3's bytes texts such as "<0xC2>".
    if any(b"<0x" in llama.spelled(sample.input_ids) for sample in built.samples):
        assert opened.name == "gemma-3-1b-it"
        return
    assert check(built, llama, opened.family, 4096).samples == len(said) // 2
    texts = [render(opened.family, turns)]
    assert reading(llama, opened.family, texts)(texts[0]) == llama.ids(texts[0])


# ---------------------------------------------------------------- what the proof says no to, in real vocabularies


def test_what_rows_share_is_read_once(opened, llama):
    assert reading(llama, opened.family, []) != llama.ids


def test_a_mask_that_is_shifted_and_an_end_that_is_not_learned(opened, llama):
    built = samples(opened, ("a?", "yes, at six"))
    (sample,) = built.samples
    for reader in (llama, TokenizerReader(opened.tokenizer)):
        assert check(built, reader, opened.family, 4096).supervised == sample.supervised
        for wrong in (
            replace(sample, prompt_length=sample.prompt_length + 1),
            replace(sample, prompt_length=sample.prompt_length - 1),
            replace(sample, input_ids=sample.input_ids[:-1]),
            replace(sample, input_ids=sample.input_ids[1:], prompt_length=sample.prompt_length - 1),
        ):
            with pytest.raises(GateError, match="'r0@1'"):
                check(replace(built, samples=(wrong,)), reader, opened.family, 4096)


FOREIGN = {"Qwen2.5-0.5B-Instruct": "</s>", "Qwen3-0.6B": "</s>", "Phi-3-mini-4k-instruct": "<|endoftext|> x"}


def test_a_control_token_that_is_not_the_familys(opened, llama):
    """Some vocabularies read one in two ways; the row is named, wherever in the dataset it stands."""
    plain = [(f"how is day {number}?", "fine") for number in range(5000)]
    if opened.name not in FOREIGN:
        pytest.skip("no such token is known")
    with pytest.raises(GateError) as caught:
        check(samples(opened, *plain, (f"{FOREIGN[opened.name]} a?", "yes")), llama, opened.family, 4096)
    assert caught.value.message.startswith("'r5000@1' would be learned as other ids than a server reads, at id ")
    assert "it is a control token of the model's vocabulary" in caught.value.hint


def test_bytes_that_a_server_would_write_as_text(opened, llama):
    """The ids are the same on both sides: only what they spell tells."""
    built = samples(opened, ("a?", "one\rtwo"))
    if opened.name != "gemma-3-1b-it":
        assert check(built, llama, opened.family, 4096).samples == 1
        return
    with pytest.raises(GateError, match=r"the row «one.rtwo<end_of_turn><end>», the ids «one<0x0D>two<end"):
        check(built, llama, opened.family, 4096)


def test_a_reply_that_begins_with_a_line_end_is_read_by_itself(opened, llama):
    """Read with its prompt it would have other ids in some vocabularies: a server has read the prompt before."""
    joins = opened.family.name in ("llama3", "gemma") or opened.name.startswith("Qwen")
    assert check(samples(opened, ("a?", "\nlate")), llama, opened.family, 4096).by_itself == joins


def test_the_family_is_chosen_by_the_models_name(opened):
    chosen = derive.choose(f"someone/{opened.name}", None, [])
    assert chosen == opened.family


def test_a_tokenizer_of_another_model_is_refused(opened):
    other = "Llama-3.2-1B-Instruct" if opened.family.name != "llama3" else "Qwen3-0.6B"
    wrong = load_tokenizer(vocabularies.folder(other))
    base = BaseModel(opened.name, opened.name, opened.folder)
    with pytest.raises(GateError) as caught:
        prove.vocabulary_ids(
            base, opened.family, lambda turns: prompt_ids(wrong, opened.family, turns), [], None, Silent()
        )
    assert f"Training reads a prompt of family '{opened.family.name}' as " in caught.value.message
    assert "for a user's turn with plain text, at id " in caught.value.message
    assert caught.value.exit_code == 5


# ---------------------------------------------------------------- judges that are not llama.cpp

ORIGINALS = {
    "Phi-3-mini-4k-instruct": "phi-3",
    "Llama-3.2-1B-Instruct": "llama-bpe",
    "Qwen2.5-0.5B-Instruct": "qwen2",
    "TinyLlama-1.1B-Chat-v1.0": "llama-spm",
}


@pytest.mark.parametrize("name", ORIGINALS)
def test_the_ids_are_those_that_the_original_tokenizer_gave(name):
    """llama.cpp keeps texts and the ids that each model's own tokenizer made of them."""
    source = vocabularies.sources() / f"ggml-vocab-{ORIGINALS[name]}.gguf"
    texts = source.with_name(f"{source.name}.inp").read_text("utf-8").split("\n__ggml_vocab_test__\n")
    lines = source.with_name(f"{source.name}.out").read_text("utf-8").split("\n")
    tokenizer = load_tokenizer(vocabularies.folder(name))
    compared = 0
    for text, line in zip(texts, lines, strict=False):
        if text != unicodedata.normalize("NFC", text):
            continue  # composed by Qwen's tokenizer, and by llama.cpp not: what is served counts
        if name.startswith("Phi-3") and text != text.lstrip():
            continue  # dropped here at the beginning of a text too, which no prompt of the family has
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == [int(number) for number in line.split()], text
        compared += 1
    assert compared >= 25


@pytest.mark.parametrize("name", [name for name, model in vocabularies.MODELS.items() if model.spm or model.vocabulary])
def test_sentencepiece_reads_the_same_ids(name):
    from sentencepiece import SentencePieceProcessor

    judge = SentencePieceProcessor(str(vocabularies.folder(name) / "tokenizer.model"))
    tokenizer = load_tokenizer(vocabularies.folder(name))
    texts = [text for texts in gate.CONTENTS.values() for text in texts if text]
    for text in [*texts, *map("".join, pairwise(texts))]:
        if tokenizer.backend_tokenizer.normalizer.normalize_str(text) == "▁" + text.replace(" ", "▁"):
            assert tokenizer(text, add_special_tokens=False)["input_ids"] == judge.encode(text), text


def test_mistrals_own_way_of_asking():
    """A prompt of v0.3 as mistral-common builds it: each text by itself, between tokens."""
    from sentencepiece import SentencePieceProcessor

    name = "Mistral-7B-Instruct-v0.3"
    judge = SentencePieceProcessor(str(vocabularies.folder(name) / "tokenizer.model"))
    tokenizer, family = load_tokenizer(vocabularies.folder(name)), load_family("mistral")
    ask, say = "are you coming?", "yes, at six"
    begin, end, bos, eos = (judge.piece_to_id(piece) for piece in ("[INST]", "[/INST]", "<s>", "</s>"))
    asked = [bos, begin, *judge.encode(ask), end]
    assert prompt_ids(tokenizer, family, [Turn("user", ask)]) == asked
    assert reply_ids(tokenizer, family, say, Turn("user", ask)) == [*judge.encode(say), eos]
    talk = [Turn("user", ask), Turn("assistant", say), Turn("user", ask)]
    assert prompt_ids(tokenizer, family, talk) == [*asked, *judge.encode(say), eos, begin, *judge.encode(ask), end]


@pytest.mark.parametrize("name", ["Mistral-Nemo-Instruct-2407", "gemma-2-2b-it", "gemma-3-1b-it", "Qwen3-0.6B"])
def test_plain_text_is_read_as_it_was_published(name):
    """Without transformers and what is changed of it here: the tokenizers library alone, on the published file."""
    from tokenizers import Tokenizer

    published = Tokenizer.from_file(str(vocabularies.folder(name) / "tokenizer.json"))
    tokenizer = load_tokenizer(vocabularies.folder(name))
    for text in (
        "Are you there?",
        "lol ok..",
        "See you at six.\nBring  the book",
        "3.14 and 10%",
        "C:\\new",
        "don't, I'd say",
    ):
        assert (
            tokenizer(text, add_special_tokens=False)["input_ids"]
            == published.encode(text, add_special_tokens=False).ids
        )
