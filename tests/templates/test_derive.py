"""Pairs for models that nobody knows, out of their own Jinja; and what cannot be said in a pair is refused."""

import pytest

from tests import vocabularies
from twin.errors import GateError
from twin.records import Turn
from twin.templates import derive, gate, load_family, render, served

TOKENS = ["<s>", "</s>", "<|user|>", "<|model|>", "<|end|>", "<|im_start|>", "<|im_end|>"]
PLAIN = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '<<' + message['content'] + '>>' }}"
    "{% elif message['role'] == 'user' %}{{ '<|user|>' + message['content'] | trim + '\\n\"' }}"
    "{% else %}{{ '<|model|> ' + message['content'] | trim + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|model|>' }}{% endif %}"
)


def own(jinja, bos="<s>"):
    return derive.own_template(jinja, bos, "</s>")


def test_a_pair_is_derived_and_says_the_same_in_both_languages():
    family = derive.derive(own(PLAIN), TOKENS)
    assert (family.name, family.end_token, family.stops) == ("derived", "<|end|>", ["<|end|>"])
    assert family.control_tokens == ["<|user|>", "<|model|>", "<|end|>"]
    assert family.reply_gap == " "
    talk = [Turn("system", "Be é."), Turn("user", "hi"), Turn("assistant", "yes"), Turn("user", "½ {{ x }}")]
    text = '<<Be é.>><|user|>hi\n"<|model|> yes<|end|><|user|>½ {{ x }}\n"<|model|>'
    assert own(PLAIN)(talk) == render(family, talk) == text
    assert served.render_go(family.go, talk) == text.encode()
    assert render(family, [Turn("user", " kept ")]) == '<|user|> kept \n"<|model|>'
    assert gate.check(family)


@pytest.mark.parametrize(
    "talk",
    [
        [Turn("assistant", "first"), Turn("user", "x")],
        [Turn("user", "a"), Turn("system", "late"), Turn("user", "b")],
        [Turn("system", "")],
        [],
    ],
)
def test_any_turns_of_a_derived_pair_render_alike(talk):
    family = derive.derive(own(PLAIN), TOKENS)
    assert served.render_go(family.go, talk) == render(family, talk).encode()


def test_a_template_without_a_system_role_gets_it_before_the_first_text():
    jinja = PLAIN.replace("{{ '<<' + message['content'] + '>>' }}", "{{ raise_exception('no system role') }}")
    family = derive.derive(own(jinja), TOKENS)
    assert render(family, [Turn("system", "Be Ana."), Turn("user", "hi")]) == '<|user|>Be Ana.\n\nhi\n"<|model|>'


def test_a_default_system_prompt_stays_where_there_is_none():
    jinja = PLAIN.replace(
        "{{ bos_token }}", "{% if messages[0]['role'] != 'system' %}{{ '<<You are kind.>>' }}{% endif %}"
    )
    family = derive.derive(own(jinja, ""), TOKENS)
    assert render(family, [Turn("user", "hi")]).startswith("<<You are kind.>><|user|>hi")
    assert render(family, [Turn("system", "S"), Turn("user", "hi")]).startswith("<<S>><|user|>hi")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("<|end|>'", "END'", "ends a reply with 'END<|user|>', which is no control token"),
        ("{{ '<|model|>' }}", "{{ '<|model|><think>' }}", "renders a turn in more than one way"),
        ("'<|user|>'", "strftime_now('%d') + '<|user|>'", "writes today's date"),
        ("| trim + '<|end|>'", "| upper + '<|end|>'", "does not render each turn once, in order"),
        ("content'] | trim + '\\n", "content'] | trim | replace('½', '1/2') + '\\n", "at byte 8: the pair «"),
        ("{% for", "{% nonsense %}{% for", "can't be rendered: Encountered unknown tag 'nonsense'"),
        ("'<|model|> '", "'<|model|> tools '", "says 'tools': Ollama would render it"),
        ("{{ bos_token }}", "{{ 1 / 0 }}", "can't be rendered"),
        ("{{ bos_token }}", "{% for a in range(9999) %}" * 2 + "{% endfor %}" * 2, "it counts without end"),
        ("{{ bos_token }}", "{{ messages.__class__.__mro__ }}", "can't be rendered"),
    ],
)  # fmt: skip
def test_what_a_pair_cannot_say_is_refused(old, new, said):
    assert old in PLAIN
    with pytest.raises(GateError) as caught:
        derive.derive(own(PLAIN.replace(old, new)), TOKENS)
    assert said in caught.value.message
    assert "twin presets list" in caught.value.hint


def test_bos_is_the_pairs_to_write_where_the_tokenizer_does_not():
    family = derive.derive(derive.own_template(PLAIN, "<s>", "</s>", adds_bos=False), TOKENS)
    assert render(family, [Turn("user", "hi")]) == '<s><|user|>hi\n"<|model|>'
    assert served.render_go(family.go, [Turn("user", "hi")]) == b'<s><|user|>hi\n"<|model|>'


def test_a_name_is_not_believed_against_the_models_own_template():
    chatml = load_family("chatml")
    assert derive.choose("x/zephyr-7b-gemma", own(chatml.jinja, ""), TOKENS) == chatml
    assert derive.choose("x/zephyr-7b-beta", own(load_family("zephyr").jinja, ""), TOKENS) == load_family("zephyr")


def test_a_model_is_known_by_its_name_then_by_what_its_template_renders():
    assert derive.choose("unsloth/Llama-3.2-3B-Instruct-bnb", None, []) == load_family("llama3")
    assert derive.choose("someone/new", None, []) is None
    chatml = load_family("chatml")
    assert derive.choose("someone/new", own(chatml.jinja, ""), TOKENS) == chatml
    # The vocabulary lacks its control tokens, so it is not that family, whatever its template says.
    with pytest.raises(GateError, match="which is no control token"):
        derive.choose("someone/new", own(chatml.jinja, ""), ["</s>"])


def test_a_template_of_anybodys_is_judged_by_the_models_own():
    assert derive.check_template(load_family("chatml").go, own(load_family("chatml").jinja, ""), "it") > 40
    with pytest.raises(GateError) as caught:
        derive.check_template("{{ .System }}{{ .Prompt }}", own(load_family("chatml").jinja, ""), "'Modelfile'")
    assert caught.value.message.startswith(
        "'Modelfile' would not ask what the model was trained on: for a user's turn "
    )
    assert (
        "at byte 0: its TEMPLATE «Are you there?<end>», the model's own Jinja «<|im_start|>user" in caught.value.message
    )
    with pytest.raises(GateError, match="'Modelfile', a user's turn with plain text: The Go template has the function"):
        derive.check_template("{{ json .Prompt }}", own(load_family("chatml").jinja, ""), "'Modelfile'")


@pytest.mark.slow
def test_the_templates_that_models_bring():
    """Of llama.cpp's collection: each gives a pair that passed, or is refused in a sentence."""
    derived, refused = {}, {}
    for file in sorted((vocabularies.sources() / "templates").glob("*.jinja")):
        jinja = file.read_text("utf-8")
        tokens = ["<|im_end|>", "<|eot_id|>", "</s>", "<end_of_turn>", "<|end|>", "<|end_of_text|>", "<seed:eos>"]
        try:
            derived[file.stem] = derive.fitting(derive.own_template(jinja, "", "</s>"), tokens)
        except GateError as error:
            refused[file.stem] = error.message
    assert {"ibm-granite-granite-4.0", "ByteDance-Seed-OSS", "Kimi-K2-Instruct", "LFM2-8B-A1B"} <= derived.keys()
    assert "writes today's date" in refused["openai-gpt-oss-120b"]
    assert len(derived) > 10
    assert all(gate.check(family) for family in derived.values())
