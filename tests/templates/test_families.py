"""Each family by discovery: its golden renderings, its facts, and that its models' own templates say the same."""

import json
from importlib import resources
from itertools import combinations

import pytest

from tests import vocabularies
from twin.errors import GateError
from twin.records import Turn
from twin.templates import derive, family_names, load_family, render, served

# Of llama.cpp's sources: what models bring themselves, and the family whose pair renders it without its extras.
OWN = {
    "google-gemma-2-2b-it": ("gemma", "<bos>"),
    "microsoft-Phi-3.5-mini-instruct": ("phi3", "<s>"),
    "mistralai-Mistral-Nemo-Instruct-2407": ("mistral", "<s>"),
    "Qwen-Qwen3-0.6B": ("chatml", ""),
}


def goldens():
    for name in family_names():
        lines = (resources.files("twin.templates") / name / "golden.jsonl").read_text("utf-8").splitlines()
        assert len(lines) >= 5
        for line in lines:
            golden = json.loads(line)
            yield pytest.param(name, golden["messages"], golden["text"], id=f"{name}: {golden['name']}")


@pytest.mark.parametrize(("name", "messages", "text"), goldens())
def test_golden(name, messages, text):
    family, turns = load_family(name), [Turn(one["role"], one["content"]) for one in messages]
    assert render(family, turns) == text
    assert served.render_go(family.go, turns) == text.encode()


@pytest.mark.parametrize("name", family_names())
def test_its_facts(name):
    family = load_family(name)
    assert family.end_token in family.stops
    assert set(family.stops) <= set(family.control_tokens)
    assert family.models
    for template in (family.jinja, family.go):
        assert template
        assert not template.endswith("\n")
        for word in ("bos", "trim", "strftime", "currentDate", "tool"):
            assert word not in template
    text = render(family, (Turn("system", "SYS"), Turn("user", "ASK"), Turn("assistant", "SAY"), Turn("user", "NOW")))
    places = [text.index(part) for part in ("SYS", "ASK", "SAY", "NOW")]
    assert places == sorted(places)
    assert all(token in text for token in family.control_tokens)


def test_a_reply_begins_with_a_blank_where_the_mark_before_it_is_text():
    assert {name: load_family(name).reply_gap for name in family_names()} == {
        **dict.fromkeys(family_names(), ""),
        "mistral-v1": " ",
    }


def test_no_model_is_of_two_families():
    patterns = [(name, pattern) for name in family_names() for pattern in load_family(name).models]
    for (one, pattern), (other, again) in combinations(patterns, 2):
        assert pattern.lower() != again.lower(), (one, other)
    for model, about in vocabularies.MODELS.items():
        assert derive.choose(model, None, []) == load_family(about.family)


def test_an_unknown_family_is_refused_and_never_replaced():
    with pytest.raises(GateError) as caught:
        load_family("phi3x")
    assert caught.value.message == (
        "The template family 'phi3x' has no verified pair in this version, so nothing is trained with it."
    )
    assert ", ".join(family_names()) in caught.value.hint
    assert caught.value.exit_code == 5


@pytest.mark.slow
@pytest.mark.parametrize("template", OWN)
def test_a_models_own_template_says_the_same(template):
    name, bos = OWN[template]
    jinja = (vocabularies.sources() / "templates" / f"{template}.jinja").read_text("utf-8")
    family = load_family(name)
    assert derive.fitting(derive.own_template(jinja, bos, "</s>"), family.control_tokens) == family
