r"""A template pair for a model that no family of ours fits, out of its own Jinja, by probing it.

The Jinja renders a conversation of words that stand in no template, and what lies between the words are the literals:

    <|user|>\n Zqsys0 \n\n Zqask1 <|end|>\n<|assistant|>\n Zqsay2 <|end|>\n<|user|>\n Zqask3 <|end|>\n<|assistant|>\n
    begin           ahead        after_user               after_reply           prompt

From these a pair is written in the grammar of the others: without trimming, date, tools and BOS. It must then render
what the model's own Jinja renders for every text that has no blanks at its edges, which that Jinja may trim, or the
first byte that differs is told. Not obvious: ``prompt`` may be shorter than ``after_user``; a reply then begins with
the rest. A system prompt that the Jinja refuses, or puts elsewhere than first, goes before the first user's text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import cache
from itertools import cycle
from typing import Any, NamedTuple

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from twin.errors import GateError
from twin.records import Turn
from twin.templates import Family, family_names, gate, load_family, render
from twin.templates.served import render_go

NAME = "derived"
_MOST_STEPS = 100_000  # of all loops over range together; the sandbox bounds each one alone
_DAYS = ("26 Jul 2024", "01 Jan 2031")
_HINT = "Use a base model of a family that twin knows (twin presets list), or one whose template is plainer."

_TALK = (
    Turn("user", "Zqask1"), Turn("assistant", "Zqsay2"), Turn("user", "Zqask3"), Turn("assistant", "Zqsay4"),
    Turn("user", "Zqask5"),
)  # fmt: skip

Render = Callable[[Sequence[Turn]], str]


class Literals(NamedTuple):
    """What a template writes around the texts of a conversation; see the module."""

    alone: str  # before the first user's text, where there is no system prompt
    begin: str  # before the system prompt
    ahead: str  # between it and the first user's text
    after_user: str
    after_reply: str
    prompt: str  # after the last user's text


def own_template(jinja: str, bos: str, eos: str, adds_bos: bool = True) -> Render:
    """Return a function that renders turns as a model's own Jinja does, without a leading BOS.

    Args:
        jinja: the ``chat_template`` of a tokenizer or a GGUF: untrusted, so it runs in a sandbox.
        bos: the BOS token's text; empty for none.
        eos: the EOS token's text.
        adds_bos: the tokenizer writes BOS, so one that the template writes is not the pair's to write.

    Raises:
        GateError: by the function, or at once: the Jinja can't be rendered, or it writes the date.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    compiled = cache(environment.from_string)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    # Tags of training alone, around what a reply is, which Jinja does not know.
    plain = re.sub(r"\{%(-?)\s*(end)?generation\s*(-?)%\}", _as_if, jinja)

    def on(day: str, turns: Sequence[Turn]) -> str:
        messages = [turn._asdict() for turn in turns]
        left = _MOST_STEPS

        def steps(*bounds: int) -> range:
            nonlocal left
            left -= len(range(*bounds))
            if left < 0:
                raise TemplateError("it counts without end")
            return range(*bounds)

        try:
            text = compiled(plain).render(
                messages=messages, add_generation_prompt=True, bos_token=bos, eos_token=eos,
                raise_exception=refuse, strftime_now=lambda _: day, range=steps,
            )  # fmt: skip
        except Exception as error:  # somebody's program: it may fail in any way
            raise GateError(f"The model's own chat template can't be rendered: {str(error)[:200]}.", _HINT) from None
        return str(text).removeprefix(bos) if adds_bos else str(text)

    def rendered(turns: Sequence[Turn]) -> str:
        text, later = (on(day, turns) for day in _DAYS)
        if text != later:
            raise GateError("The model's own chat template writes today's date, so no prompt of it is trained.", _HINT)
        return text

    return rendered


def _as_if(tag: re.Match[str]) -> str:
    return "{%" + tag[1] + (" endif " if tag[2] else " if true ") + tag[3] + "%}"


def check_template(source: str, own: Render, whose: str) -> int:
    """Return how many conversations a Go template of anybody's renders as the model's own Jinja does.

    Args:
        source: the Go template.
        own: the model's own template.
        whose: what the message calls the Go template.

    Raises:
        GateError: the first byte that differs, or something that twin does not render.
    """
    count = 0
    for name, turns in _conversations(own):
        try:
            ours = render_go(source, turns)
        except GateError as error:
            raise GateError(f"{whose}, {name}: {error.message}", error.hint) from None
        if ours != (theirs := own(turns).encode()):
            place = gate.first_difference(ours, theirs, ("its TEMPLATE", "the model's own Jinja"))
            raise GateError(
                f"{whose} would not ask what the model was trained on: for {name}, at {place}.",
                "Write the template so that both say the same. For a model of yours: twin register",
            )
        count += 1
    return count


def choose(model: str, own: Render | None, control_tokens: Sequence[str]) -> Family | None:
    """Return the pair for a base model: a family's, by the model's name or by what its template renders, or a new one.

    Args:
        model: a hub id or a folder's name.
        own: the model's own template (``own_template``), or None where it has none.
        control_tokens: the vocabulary's tokens that are no text.

    Returns:
        The pair; None where neither the name nor a template says anything.

    Raises:
        GateError: no pair can be made of its template.
    """
    short = model.rstrip("/").rpartition("/")[2]
    for family in map(load_family, family_names()):
        if any(fnmatchcase(short.lower(), pattern.lower()) for pattern in family.models) and _alike(family, own):
            return family
    return fitting(own, control_tokens) if own else None


def _alike(family: Family, own: Render | None) -> bool:
    """Say whether a model's own template marks turns as the family does; yes where it can't be asked.

    What it does besides, a default system prompt or the date in it, is what a family leaves out.
    """
    if own is None:
        return True
    try:
        theirs = _pieces(own, _TALK)
    except GateError:
        return True
    return theirs[1:-1] == _pieces(lambda turns: render(family, turns), _TALK)[1:-1]


def fitting(own: Render, control_tokens: Sequence[str]) -> Family:
    """Return the family that renders what a model's own template renders, or a new pair. Raises as ``derive`` does."""
    for family in map(load_family, family_names()):
        if set(family.control_tokens) <= set(control_tokens) and _parting(family, own) is None:
            return family
    return derive(own, control_tokens)


def derive(own: Render, control_tokens: Sequence[str]) -> Family:
    """Return the pair that renders what the model's own template renders.

    Args:
        own: the model's own template.
        control_tokens: the vocabulary's tokens that are no text; one of them must end a reply.

    Raises:
        GateError: the template does more than a pair can say, with the first byte at which the two part.
    """
    literals = probe(own)
    ends = [token for token in control_tokens if token and literals.after_reply.startswith(token)]
    if not ends:
        raise GateError(
            f"The model's own chat template ends a reply with {literals.after_reply[:40]!r}, which is no control "
            "token, so a reply would never stop.",
            _HINT,
        )
    end = max(ends, key=len)
    used = [token for token in control_tokens if token and any(token in literal for literal in literals)]
    family = Family(
        name=NAME, jinja=_jinja(literals), go=_go(literals), end_token=end, stops=[end], control_tokens=used
    )  # fmt: skip
    try:
        gate.check(family)
    except GateError as error:
        raise GateError(error.message, _HINT) from None
    if parting := _parting(family, own):
        name, place = parting
        raise GateError(f"No pair could be derived from the model's own chat template: for {name}, at {place}.", _HINT)
    return family


def probe(own: Render) -> Literals:
    """Return the literals of a template.

    Raises:
        GateError: it does not keep the order of a conversation, or renders a turn in more than one way.
    """
    alone, after_user, after_reply, after_user_again, after_reply_again, prompt = _pieces(own, _TALK)
    if (after_user, after_reply) != (after_user_again, after_reply_again) or not after_user.startswith(prompt):
        raise GateError(
            "The model's own chat template renders a turn in more than one way: "
            f"{after_user!r}, {after_user_again!r} and {prompt!r} after a user's turn, "
            f"{after_reply!r} and {after_reply_again!r} after a reply.",
            _HINT,
        )
    begin, ahead = _around_system(own) or (alone, "\n\n")
    return Literals(alone, begin, ahead, after_user, after_reply, prompt)


def _around_system(own: Render) -> tuple[str, str] | None:
    """Return what stands before and behind a system prompt; None where the template has none, or not at its head."""
    try:
        begin, ahead, *_ = _pieces(own, [Turn("system", "Zqsys0"), *_TALK])
    except GateError:
        return None
    return begin, ahead


def _pieces(own: Render, turns: Sequence[Turn]) -> list[str]:
    words = [turn.content for turn in turns]
    found = re.fullmatch("(.*)".join(["", *map(re.escape, words), ""]), own(turns), re.DOTALL)
    if found is None or any(word in piece for piece in found.groups() for word in words):
        raise GateError("The model's own chat template does not render each turn once, in order.", _HINT)
    return list(found.groups())


def _parting(family: Family, own: Render) -> tuple[str, str] | None:
    """Return the first conversation for which the pair and the model's own template part, and where; None for none."""
    for name, turns in _conversations(own):
        ours, theirs = render(family, turns), own(turns)
        if ours != theirs:
            return name, gate.first_difference(ours.encode(), theirs.encode(), ("the pair", "the model's own"))
    return None


def _conversations(own: Render) -> Iterator[tuple[str, list[Turn]]]:
    """Yield the gate's cases that a template which trims, and takes turns in order alone, can render.

    None has a system prompt where the template takes none: how a pair puts one in is its own affair then.
    """
    takes_system = _around_system(own) is not None
    for shape, letters in gate.SHAPES.items():
        if "E" in letters or re.search(r"(.)\1", letters) or ("S" in letters and not takes_system):
            continue
        for content, texts in gate.CONTENTS.items():
            kept = [text for text in texts if text and text == text.strip()]
            if kept:
                turns = zip(letters, cycle(kept), strict=False)
                yield f"{shape} with {content}", [Turn(gate.ROLES[letter], text) for letter, text in turns]


def _go(literals: Literals) -> str:
    def put(text: str) -> str:
        return "{{ " + _quoted(text) + " }}" if text else ""

    return (
        "{{ if .System }}" + put(literals.begin) + "{{ .System }}" + put(literals.ahead)
        + "{{ else }}" + put(literals.alone) + "{{ end }}"
        '{{ $last := "" }}{{ range .Messages }}{{ if ne .Role "system" }}'
        '{{ if eq .Role $last }}{{ "\\n\\n" }}'
        '{{ else if eq .Role "assistant" }}' + put(literals.after_user)
        + "{{ else if $last }}" + put(literals.after_reply) + "{{ end }}"
        "{{ .Content }}{{ $last = .Role }}{{ end }}{{ end }}" + put(literals.prompt)
    )  # fmt: skip


def _jinja(literals: Literals) -> str:
    def put(text: str) -> str:
        return "{{ " + json.dumps(text, ensure_ascii=False) + " }}" if text else ""

    return (
        '{% set seen = namespace(system="", role="") %}'
        '{% for message in messages %}{% if message["role"] == "system" %}'
        '{% if seen.role %}{% set seen.system = seen.system + "\\n\\n" + message["content"] %}'
        '{% else %}{% set seen.system = message["content"] %}{% set seen.role = "system" %}{% endif %}'
        "{% endif %}{% endfor %}"
        "{% if seen.system %}" + put(literals.begin) + "{{ seen.system }}" + put(literals.ahead)
        + "{% else %}" + put(literals.alone) + '{% endif %}{% set seen.role = "" %}'
        '{% for message in messages %}{% if message["role"] != "system" %}'
        '{% if message["role"] == seen.role %}{{ "\\n\\n" }}'
        '{% elif message["role"] == "assistant" %}' + put(literals.after_user)
        + "{% elif seen.role %}" + put(literals.after_reply) + "{% endif %}"
        '{{ message["content"] }}{% set seen.role = message["role"] %}{% endif %}{% endfor %}'
        "{% if add_generation_prompt %}" + put(literals.prompt) + "{% endif %}"
    )  # fmt: skip


def _quoted(text: str) -> str:
    """Return a string constant of Go: JSON's, but for characters beyond the first plane, which it writes as two."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\x7f")


def facts_of(tokenizer: Any) -> tuple[Render | None, list[str]]:
    """Return a transformers tokenizer's own template, if it has one, and its control tokens."""
    jinja = tokenizer.chat_template
    if isinstance(jinja, dict):  # several by name; "default" is the one of a conversation
        jinja = jinja.get("default")
    tokens = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    bos = str(tokenizer.bos_token or "")
    adds_bos = bool(bos and tokenizer("")["input_ids"])
    own = own_template(jinja, bos, str(tokenizer.eos_token or ""), adds_bos) if jinja else None
    return own, tokens
