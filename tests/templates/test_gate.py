"""The gate says yes to the pairs that are there and no, by name, to each damage."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.errors import GateError
from twin.records import Turn
from twin.templates import family_names, gate, load_family, render, served

LITERAL = re.compile(r'"((?:[^"\\]|\\.)*)"')


@pytest.fixture(params=family_names())
def family(request):
    return load_family(request.param)


def refusal(family, **changes):
    with pytest.raises(GateError) as caught:
        gate.check(family.model_copy(update=changes))
    assert f"amily '{family.name}'" in caught.value.message
    assert caught.value.hint
    return caught.value.message


def test_each_pair_passes(family):
    said = gate.check(family, [[Turn("user", "my own"), Turn("assistant", "row"), Turn("user", "½")]])
    assert said == {
        "pair": f"{len(gate.SHAPES) * (len(gate.CONTENTS) + 1) + 1} prompts, byte for byte",
        "stops": ", ".join(family.stops),
        "jinja": "no word of tools",
    }


@pytest.mark.parametrize("damage", ["replaced", "dropped", "doubled"])
def test_one_byte_of_a_literal_of_the_go_template(family, damage):
    places = [at for found in LITERAL.finditer(family.go) for at in range(*found.span(1))]
    assert len(places) > 20
    for at in places:
        byte = {"replaced": "Z", "dropped": "", "doubled": family.go[at] * 2}[damage]
        message = refusal(family, go=family.go[:at] + byte + family.go[at + 1 :])
        # A literal that loses its backslash can end too early, and then it is no template any more.
        assert "the Go template «" in message or "The Go template has " in message


def test_a_byte_outside_of_the_actions_of_the_go_template(family):
    for at in [0, *(found.end() for found in re.finditer(r"\}\}", family.go))]:
        assert "differs for " in refusal(family, go=f"{family.go[:at]} {family.go[at:]}")


def test_a_difference_names_family_shape_content_and_byte():
    chatml = load_family("chatml")
    go = chatml.go.replace("{{ .Content }}", "{{ if ne .Content `½` }}{{ .Content }}{{ end }}")
    assert refusal(chatml, go=go) == (
        "The pair of family 'chatml' differs for a user's turn with fractions and other digits, at byte 17: the Go "
        "template «<|im_start|>user\\n<|im_end|>\\n<|im_star…», "
        "the Jinja «<|im_start|>user\\n\\xbd<|im_end|>\\n<|im_st…»."
    )


@pytest.mark.parametrize(
    ("old", "new", "shape"),
    [
        ("{{ range .Messages }}", '{{ range .Messages }}{{ if eq .Role "system" }}{{ else }}', "a system prompt with"),
        ("{{ range .Messages }}", "{{ range $i, $m := .Messages }}{{ if eq $i 4 }}{{ else }}", "three turns with"),
        ("{{ range .Messages }}", "{{ range .Messages }}{{ if .Content }}", "a user's turn with nothing"),
    ],
)
def test_a_turn_that_is_left_out(old, new, shape):
    chatml = load_family("chatml")
    go = chatml.go.replace(old, new).replace(
        '{{ "<|im_end|>\\n" }}{{ end }}', '{{ "<|im_end|>\\n" }}{{ end }}{{ end }}'
    )
    assert f"differs for {shape}" in refusal(chatml, go=go)


def test_what_ollama_does_not_give_a_template():
    chatml = load_family("chatml")
    assert "the field .Date" in refusal(chatml, go="{{ range .Messages }}{{ .Date }}{{ end }}")
    assert "the function 'json'" in refusal(chatml, go="{{ json .Messages }}")


@pytest.mark.parametrize("words", [("tools",), ("tool_call",), ("<think>", "</think>")])
def test_a_word_at_which_ollama_leaves_our_template(family, words):
    message = refusal(family, jinja=family.jinja + "{# " + " ".join(words) + " #}")
    assert f"says {' and '.join(map(repr, words))}: Ollama would render it instead" in message


def test_a_jinja_that_takes_thoughts_out_of_replies(family):
    for quote in "'\"":
        words = f"{{# message.content.split({quote}</think>{quote}) #}}"
        assert "Ollama would render it instead" in refusal(family, jinja=family.jinja + words)
        gate.check(family.model_copy(update={"jinja": family.jinja + words + "{# reasoning_content #}"}))


def test_one_mark_of_thinking_is_no_reason(family):
    gate.check(family.model_copy(update={"jinja": family.jinja + "{# <think> #}"}))


def test_each_stop_that_is_dropped(family):
    for stop in family.stops:
        with pytest.raises(GateError) as caught:
            gate.check_stops(family, [other for other in family.stops if other != stop])
        assert f"Family '{family.name}' has to stop at {stop!r}" in caught.value.message
    assert f"has to stop at {family.end_token!r}" in refusal(
        family, stops=[stop for stop in family.stops if stop != family.end_token]
    )


def test_a_stop_that_is_no_token_and_an_end_that_is_not_written(family):
    assert "is none of its control tokens" in refusal(family, stops=[*family.stops, "User:"])
    end = "<|other|>"
    assert f"does not end a reply with '{end}'" in refusal(
        family, end_token=end, stops=[*family.stops, end], control_tokens=[*family.control_tokens, end]
    )


def test_a_jinja_that_fails(family):
    for jinja in ("{{ messages[0].missing.deeper }}", "{{ 1 + 'a' }}", "{{ 1 / 0 }}", "{{"):
        assert "fails for a reply" in refusal(family, jinja=jinja)


def test_a_row_of_the_user():
    chatml = load_family("chatml")
    go = chatml.go.replace("{{ .Content }}", "{{ if ne .Content `mine` }}{{ .Content }}{{ end }}")
    broken = chatml.model_copy(update={"go": go})
    assert gate.check(broken, [[Turn("user", "yours")]])
    with pytest.raises(GateError, match="differs for your own row 2, at byte 17") as caught:
        gate.check(broken, [[Turn("user", "yours")], [Turn("user", "mine")]])
    assert caught.value.hint.endswith("without the words of your row that stand there.")


contents = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
turns = st.lists(st.builds(Turn, st.sampled_from(["system", "user", "assistant"]), contents), max_size=8)


@given(turns)
def test_neighbours_of_one_role_are_merged_with_a_blank_line(given_turns):
    merged = served.merged(given_turns)
    assert all(one.role != other.role for one, other in pairwise(merged))
    assert "\n\n".join(turn.content for turn in merged) == "\n\n".join(turn.content for turn in given_turns)
    assert served.merged(merged) == merged


@given(turns)
def test_any_turns_render_alike(given_turns):
    for family in map(load_family, family_names()):
        merged = served.merged([*given_turns, Turn("user", "and now?")])
        assert served.render_go(family.go, merged) == render(family, merged).encode()


def test_the_byte_is_counted_in_utf8_and_the_ends_are_shown():
    names = ("a", "b")
    assert gate.first_difference(b"\xc3\xa9x", b"\xc3\xa9y", names) == "byte 2: a «\\xe9x<end>», b «\\xe9y<end>»"
    assert gate.first_difference(b"ab", b"a", names) == "byte 1: a «ab<end>», b «a<end>»"
    long = b"0123456789" * 5
    assert gate.first_difference(long, long[:30] + b"!" + long[31:], names) == (
        "byte 30: a «…01234567890123456789" + "01234567890123456789<end>», "
        "b «…01234567890123456789" + "!1234567890123456789<end>»"
    )
