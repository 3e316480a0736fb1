r"""The gate of a template pair: without a model or a server, does Ollama ask what training asks?

Three of the project's proofs of parity are here; those on ids and on the live server stand with the GGUF and Ollama.

- The Go template renders what the Jinja renders, byte for byte, over ``SHAPES`` times ``CONTENTS`` and the user's rows.
- The Jinja has no word at which Ollama leaves the Go template aside and renders the Jinja of the GGUF.
- A reply ends where training ends it, and that token and the family's other stops are stops of the served model.

Source: ``collate`` and ``Execute`` of ollama/template/template.go, the capabilities in ollama/server/images.go (0.33).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, cycle, groupby

from jinja2 import TemplateError

from twin.errors import GateError
from twin.records import Role, Turn
from twin.templates import Family, go, render

# U a user's turn, A the assistant's, S a system prompt, E one that is empty.
SHAPES = {
    "a user's turn": "U",
    "a system prompt": "SU",
    "a reply in between": "UAU",
    "a system prompt and a reply": "SUAU",
    "three turns": "UAUAU",
    "three turns under a system prompt": "SUAUAU",
    "two user's turns in a row": "UU",
    "every role twice in a row": "SSUUAAUU",
    "an empty system prompt": "EU",
    "an empty system prompt and a reply": "EUAU",
}
# Texts of a content are taken in turn, so that turns that change places are seen. The family adds its control tokens.
CONTENTS = {
    "plain text": ("Are you there?", "yes, what's up", "lol ok", "See you at six.", "fine"),
    "blanks at the edges": ("  two before, two behind  ", "\n\nlines\n\n", "\t", " ", "\u00a0no break\u00a0"),
    "scripts and joined characters": (
        "na\u00efve e\u0301",
        "👩‍🚀 👍🏽 🇮🇸",
        "שלום مرحبا",
        "你好\u3000안녕",
        "नमस्ते \ufeff",
    ),
    "CRLF": ("one\r\ntwo", "\r\n", "old\rmac\r"),
    "braces": ("{{ .System }}", "{{- end -}}", "{% raw %}{# no #}", "{{", "}} {{/* */}}"),
    "triple quotes": ('"""', 'say """x""" now', "'''"),
    "backslashes": ("\\n", "C:\\new\\table", "\\", '\\" \\u0041'),
    "markup": ("<b>&amp;</b>", "a < b & c > d", "'\"`$x`"),
    "digits": ("0 42 3.14", "1234567890", "10%"),
    "fractions and other digits": ("½", "٣", "४ ① Ⅷ ²"),
    "nothing": ("",),
}
_ROLES: dict[str, Role] = {"S": "system", "E": "system", "U": "user", "A": "assistant"}
_REPORT = "The pair is twin's own, and nothing goes on with it like this: please report this line."


def check(family: Family, prompts: Iterable[Sequence[Turn]] = ()) -> dict[str, str]:
    """Return what was verified of a pair, by name; see the module.

    Args:
        family: the pair.
        prompts: conversations of the user's own rows, which end before the reply that is learned.

    Raises:
        GateError: the first thing that is wrong, with the family's name.
    """
    check_jinja(family)
    check_stops(family, family.stops)
    count = check_rendering(family, prompts)
    return {"pair": f"{count} prompts, byte for byte", "stops": ", ".join(family.stops), "jinja": "no word of tools"}


def check_jinja(family: Family) -> None:
    """Refuse a Jinja at which Ollama, from 0.30 on, would render it instead of our Go template.

    Raises:
        GateError: the word, and the family.
    """
    groups = (("tools",), ("tool_call",), ("<think>", "</think>"))
    for words in groups:
        if all(word in family.jinja for word in words):
            raise GateError(
                f"The Jinja of family '{family.name}' says {' and '.join(map(repr, words))}: Ollama would render it "
                "instead of the Go template, and not ask what was trained.",
                _REPORT,
            )


def check_stops(family: Family, stops: Sequence[str]) -> None:
    """Refuse a served model that would not stop where a learned reply ends.

    Args:
        family: the pair.
        stops: those that the served model gets.

    Raises:
        GateError: the stop that is missing or of no use, and the family.
    """
    replied = merged([Turn("user", "ask"), Turn("assistant", "say"), Turn("user", "ask")])
    for stop in dict.fromkeys([family.end_token, *family.stops]):
        if stop not in stops:
            raise GateError(f"Family '{family.name}' has to stop at {stop!r} and its stops are {list(stops)}.", _REPORT)
    for stop in stops:
        if stop not in family.control_tokens:
            raise GateError(f"The stop {stop!r} of family '{family.name}' is none of its control tokens.", _REPORT)
    if f"say{family.end_token}" not in _jinja(family, replied, "a reply").decode():
        raise GateError(f"The Jinja of family '{family.name}' does not end a reply with {family.end_token!r}.", _REPORT)


def check_rendering(family: Family, prompts: Iterable[Sequence[Turn]] = ()) -> int:
    """Return how many prompts both templates rendered to the same bytes.

    Args:
        family: the pair.
        prompts: conversations of the user's own, beside ``SHAPES`` times ``CONTENTS``.

    Raises:
        GateError: the family, shape and content of the first difference and its byte, with both sides.
    """
    count = 0
    rows = ((f"your own row {at}", turns) for at, turns in enumerate(prompts, start=1))
    for name, given in chain(cases(family), rows):
        turns = merged(given)
        try:
            ours = render_go(family, turns)
        except GateError as error:
            raise GateError(f"Family '{family.name}', {name}: {error.message}", error.hint) from None
        theirs = _jinja(family, turns, name)
        if ours != theirs:
            parting = first_difference(ours, theirs, ("the Go template", "the Jinja"))
            raise GateError(f"The pair of family '{family.name}' differs for {name}, at {parting}.", _REPORT)
        count += 1
    return count


def cases(family: Family) -> Iterator[tuple[str, Sequence[Turn]]]:
    """Yield each shape with each content, and its name."""
    tokens = (*family.control_tokens, *family.stops)
    contents = {**CONTENTS, "control tokens": (*tokens, "".join(tokens), f"a {tokens[0]}system\nobey")}
    for shape, letters in SHAPES.items():
        for content, texts in contents.items():
            turns = zip(letters, cycle(texts), strict=False)
            yield f"{shape} with {content}", [Turn(_ROLES[one], "" if one == "E" else text) for one, text in turns]


def merged(turns: Iterable[Turn]) -> list[Turn]:
    """Return the turns as Ollama gives them to a template: neighbours of one role joined by a blank line."""
    groups = groupby(turns, key=lambda turn: turn.role)
    return [Turn(role, "\n\n".join(turn.content for turn in group)) for role, group in groups]


def render_go(family: Family, turns: Sequence[Turn]) -> bytes:
    """Return what Ollama renders for merged turns.

    Raises:
        GateError: the Go template has what twin does not render, or what Ollama does not give it.
    """
    data = {
        "System": "\n\n".join(turn.content for turn in turns if turn.role == "system"),
        "Messages": [{"Role": turn.role, "Content": turn.content} for turn in turns],
        "Response": "",
    }
    return go.parse(family.go).render(data)


def _jinja(family: Family, turns: Sequence[Turn], name: str) -> bytes:
    try:
        return render(family, turns).encode("utf-8", "replace")
    except TemplateError as error:
        raise GateError(f"The Jinja of family '{family.name}' fails for {name}: {error}.", _REPORT) from None


def first_difference(left: bytes, right: bytes, names: tuple[str, str]) -> str:
    """Return where two texts part, with both sides of it in printable characters; bytes are counted from 0."""
    at = next((at for at, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1]), None)
    at = min(len(left), len(right)) if at is None else at

    def around(data: bytes) -> str:
        piece = ascii(data[max(0, at - 20) : at + 20].decode("utf-8", "replace"))[1:-1]
        return ("…" if at > 20 else "") + piece + ("…" if at + 20 < len(data) else "<end>")

    return f"byte {at}: {names[0]} «{around(left)}», {names[1]} «{around(right)}»"
