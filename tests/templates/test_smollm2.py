"""SmolLM2, which runs here: ChatML renders in transformers as here, and training has llama.cpp's ids."""

import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel

from twin.records import Turn
from twin.templates import load_family, render

contents = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
prompts = st.builds(
    lambda system, pairs, last: (
        *([Turn("system", system)] if system is not None else []),
        *(Turn(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)),
        Turn("user", last),
    ),
    st.none() | contents,
    st.lists(st.tuples(contents, contents), max_size=3),
    contents,
)
# What tokenizers get wrong: digits of all scripts, fractions, joined emoji, scripts without spaces, control tokens.
awkward = st.lists(
    st.sampled_from(
        [
            *(
                "0",
                "42",
                "3.14",
                "½",
                "²",
                "٣",
                "४",
                "①",
                "Ⅷ",
                "10%",
                "👩‍👧",
                "🦆",
                "🇮🇸",
                "❤️",
                "木曜日",
                "안녕",
                "नमस्ते",
                "שלום",
                "é",
                "e\u0301",
            ),
            *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>", "<|im_", "|>", "<empty_output>"),
            *(
                " ",
                "  ",
                "\n",
                "\n\n",
                "\t",
                "\u00a0",
                "\u200d",
                "\ufeff",
                "'s",
                "n't",
                "user",
                "assistant",
                "ok so..",
                "_",
                "\\n",
            ),
        ]
    )
    | st.characters(exclude_categories=["Cs"]),
    max_size=24,
).map("".join)


@pytest.fixture(scope="module")
def chatml():
    return load_family("chatml")


@pytest.fixture(scope="module")
def llama(smollm2_gguf):
    import llama_cpp

    model = llama_cpp.Llama(str(smollm2_gguf), vocab_only=True, verbose=False)
    yield model
    model.close()


def ids_in_llama_cpp(llama, text):
    """Return ids as a server makes them: BOS where the vocabulary adds one, control tokens parsed."""
    return llama.tokenize(text.encode("utf-8"), add_bos=True, special=True)


@given(prompts)
def test_a_prompt_is_its_turns_in_order(turns):
    chatml = load_family("chatml")
    parts = "".join(f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in turns)
    assert render(chatml, turns) == parts + "<|im_start|>assistant\n"


@given(turns=prompts)
def test_transformers_renders_the_same_bytes(tokenizer, turns):
    chatml = load_family("chatml")
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    theirs = tokenizer.apply_chat_template(
        messages, chat_template=chatml.jinja, add_generation_prompt=True, tokenize=False
    )
    assert render(chatml, turns) == theirs


@hypothesis_settings(max_examples=300)
@given(text=awkward)
def test_ids_are_those_of_llama_cpp(tokenizer, llama, text):
    """For what the vocabulary can write: it lacks some bytes, which both drop, and join what is around otherwise."""
    letters = "".join(piece for piece, _ in ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text))
    assume(all(letter in tokenizer.vocab for letter in letters))
    assert tokenizer(text, add_special_tokens=True)["input_ids"] == ids_in_llama_cpp(llama, text)


@given(turns=prompts)
def test_ids_of_whole_prompts_are_those_of_llama_cpp(tokenizer, llama, turns):
    text = render(load_family("chatml"), turns)
    assert tokenizer(text, add_special_tokens=True)["input_ids"] == ids_in_llama_cpp(llama, text)


def test_every_token_of_the_vocabulary_is_the_same(tokenizer, llama):
    from llama_cpp import llama_model_get_vocab, llama_vocab_get_text

    vocabulary = llama_model_get_vocab(llama.model)
    theirs = [llama_vocab_get_text(vocabulary, number).decode("utf-8") for number in range(llama.n_vocab())]
    assert tokenizer.convert_ids_to_tokens(list(range(llama.n_vocab()))) == theirs
    assert len(tokenizer) == llama.n_vocab()


def test_the_end_token_ends_generation_in_llama_cpp(tokenizer, llama, chatml):
    from llama_cpp import llama_model_get_vocab, llama_vocab_is_eog

    (end,) = tokenizer(chatml.end_token, add_special_tokens=False)["input_ids"]
    assert llama_vocab_is_eog(llama_model_get_vocab(llama.model), end)
    assert tokenizer.eos_token_id == end == llama.token_eos()


def test_no_bos_is_added(tokenizer, llama):
    assert tokenizer("", add_special_tokens=True)["input_ids"] == []
    assert ids_in_llama_cpp(llama, "") == []
