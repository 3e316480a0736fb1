r"""The gate of a template pair: without a model or a server, does Ollama ask what training asks?

The project's proofs of parity, by the letters that docs/gate.md gives them, over ``SHAPES`` times ``CONTENTS`` and the
user's own rows. What opens files or asks servers hands its functions in; the live checks stand with Ollama.

- A: the Go template renders what the Jinja renders, byte for byte.
- B: llama.cpp reads a prompt as the ids that training reads.
- C: llama.cpp's own server renders the Jinja of the GGUF as training does.
- D: the Jinja has no word at which Ollama leaves the Go template aside and renders the Jinja of the GGUF.
- E: a reply ends where training ends it, and that token and the family's other stops are stops of the served model.
- F: the finished file still says all that; ``gguf.check`` asks it.

Source: ``collate`` and ``Execute`` of ollama/template/template.go, the capabilities in ollama/server/images.go (0.33).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, cycle

from twin.errors import GateError
from twin.records import Role, Turn
from twin.templates import Family, render
from twin.templates.served import merged, render_go

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
# How some templates take thoughts out of earlier replies, which Ollama reads as thinking too.
_SPLITS = (("content.split('</think>')",), ('content.split("</think>")',))
ROLES: dict[str, Role] = {"S": "system", "E": "system", "U": "user", "A": "assistant"}
_ROW = "your own row"
_OWN = "The pair is twin's own: please report it, without the words of your row that stand there."
_REPORT = "The pair is twin's own, and nothing goes on with it like this: please report this line."


def check(family: Family, prompts: Iterable[Sequence[Turn]] = ()) -> dict[str, str]:
    """Return what was verified of a pair, by name; see the module.

    Args:
        family: the pair.
        prompts: conversations of the user's own rows, which end before the reply that is learned.

    Raises:
        GateError: the first thing that is wrong, with the family's name.
    """
    check_words(family.jinja, f"The Jinja of family '{family.name}'", _REPORT)
    check_stops(family, family.stops)
    count = check_rendering(family, prompts)
    return {"pair": f"{count} prompts, byte for byte", "stops": ", ".join(family.stops), "jinja": "no word of tools"}


def check_words(jinja: str, whose: str, hint: str) -> None:
    """Refuse a Jinja at which Ollama, from 0.30 on, would render it and ignore any TEMPLATE.

    Args:
        jinja: the template.
        whose: what the message calls it.
        hint: of the message.

    Raises:
        GateError: the word.
    """
    for words in (("tools",), ("tool_call",), ("<think>", "</think>"), *_SPLITS):
        if all(word in jinja for word in words) and (words not in _SPLITS or "reasoning_content" not in jinja):
            raise GateError(
                f"{whose} says {' and '.join(map(repr, words))}: Ollama would render it instead of the Go template, "
                "and not ask what was trained.",
                hint,
            )


def check_stops(family: Family, stops: Sequence[str]) -> None:
    """Refuse a served model that would not stop where a learned reply ends.

    Args:
        family: the pair.
        stops: those that the served model gets.

    Raises:
        GateError: the stop that is missing or of no use, and the family.
    """
    replied = [Turn("user", "ask"), Turn("assistant", "say"), Turn("user", "ask")]
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
    for name, turns in cases(family, prompts):
        try:
            ours = render_go(family.go, turns)
        except GateError as error:
            raise GateError(f"Family '{family.name}', {name}: {error.message}", error.hint) from None
        theirs = _jinja(family, turns, name)
        if ours != theirs:
            parting = first_difference(ours, theirs, ("the Go template", "the Jinja"))
            hint = _OWN if name.startswith(_ROW) else _REPORT
            raise GateError(f"The pair of family '{family.name}' differs for {name}, at {parting}.", hint)
        count += 1
    return count


def check_ids(
    family: Family,
    prompts: Iterable[tuple[str, Sequence[Turn]]],
    training: Callable[[Sequence[Turn]], Sequence[int]],
    served: Callable[[str], Sequence[int]],
    piece: Callable[[int], bytes],
) -> int:
    """Return how many prompts llama.cpp reads as the ids of training.

    Args:
        family: the pair.
        prompts: names and turns; see ``cases``.
        training: the ids of turns' prompt as they are learned, BOS included where there is one.
        served: the ids that llama.cpp makes of a text.
        piece: the bytes of an id.

    Raises:
        GateError: the family and content of the first difference, its place, and both sides of it.
    """
    count = 0
    added = list(served(""))  # BOS, where the vocabulary adds one
    for name, turns in prompts:
        ours, theirs = list(training(turns)), list(served(render(family, turns)))
        if added and added * 2 in (ours[:2], theirs[:2]):
            raise GateError(
                f"A prompt of family '{family.name}' begins with BOS twice, {_tokens(added * 2, piece)}, for {name}: "
                "the tokenizer adds it, and the template writes it too.",
                _REPORT,
            )
        if ours != theirs:  # what is shown of it is the person's own where it is their row
            raise GateError(
                f"Training reads a prompt of family '{family.name}' as {len(ours)} ids and llama.cpp as {len(theirs)}, "
                f"for {name}, {first_id_difference(ours, theirs, piece)}.",
                "The two tokenizers are not one. Use the base model's own files, tokenizer.model included where it has "
                "one, or another base model.",
            )
        count += 1
    return count


def first_id_difference(
    ours: Sequence[int],
    theirs: Sequence[int],
    piece: Callable[[int], bytes],
    whose: str = "llama.cpp",
    start: int = 0,
) -> str:
    """Return where ids part, with both sides of it.

    Args:
        ours: the ids of training.
        theirs: the others.
        piece: the bytes of an id.
        whose: what reads ``theirs``.
        start: how many ids, the same in both, stand before these.
    """
    pairs = zip(ours, theirs, strict=False)
    at = next((at for at, pair in enumerate(pairs) if pair[0] != pair[1]), min(len(ours), len(theirs)))
    byte = "" if start else f" (byte {sum(len(piece(token)) for token in ours[:at])})"
    sides = f"training {_tokens(ours[at : at + 3], piece)}, {whose} {_tokens(theirs[at : at + 3], piece)}"
    return f"at id {start + at}{byte}: {sides}"


def _tokens(ids: Sequence[int], piece: Callable[[int], bytes]) -> str:
    texts = (ascii(piece(token).decode("utf-8", "replace"))[1:-1] for token in ids)
    return " ".join(f"{token} «{text}»" for token, text in zip(ids, texts, strict=True)) or "<end>"


def check_server(
    family: Family, prompts: Iterable[tuple[str, Sequence[Turn]]], apply_template: Callable[[Sequence[Turn]], str]
) -> int:
    """Return how many prompts a server renders from the Jinja of the GGUF as training does.

    Args:
        family: the pair.
        prompts: names and turns; see ``cases``.
        apply_template: the server's rendering of turns.

    Raises:
        GateError: the family and content of the first difference and its byte, with both sides.
    """
    count = 0
    for name, turns in prompts:
        ours, theirs = render(family, turns).encode(), apply_template(turns).encode()
        if ours != theirs:
            place = first_difference(ours, theirs, ("training", "llama-server"))
            raise GateError(
                f"llama-server renders family '{family.name}' in another way for {name}, at {place}.", _REPORT
            )
        count += 1
    return count


def check_end(family: Family, served: Callable[[str], Sequence[int]], ends_generation: Callable[[int], bool]) -> None:
    """Refuse a vocabulary in which the end of a reply is no single token that ends generation.

    Being a stop is not enough: servers compare stops with text, and a control token is none.

    Args:
        family: the pair.
        served: the ids that llama.cpp makes of a text, without BOS.
        ends_generation: whether llama.cpp marks an id as an end of generation.

    Raises:
        GateError: the end token, and the family.
    """
    ids = served(family.end_token)
    if len(ids) != 1 or not ends_generation(ids[0]):
        what = f"{len(ids)} ids" if len(ids) != 1 else "no end of generation"
        raise GateError(
            f"A reply of family '{family.name}' ends with {family.end_token!r}, which is {what} in this vocabulary.",
            "Use a base model of that family, or another preset: twin presets list",
        )


def cases(family: Family, prompts: Iterable[Sequence[Turn]] = ()) -> Iterator[tuple[str, list[Turn]]]:
    """Yield each shape with each content, then the user's own prompts, merged as Ollama does, and their names."""
    rows = ((f"{_ROW} {at}", turns) for at, turns in enumerate(prompts, start=1))
    for name, turns in chain(_matrix(family), rows):
        yield name, merged(turns)


def _matrix(family: Family) -> Iterator[tuple[str, Sequence[Turn]]]:
    tokens = (*family.control_tokens, *family.stops)
    contents = {**CONTENTS, "control tokens": (*tokens, "".join(tokens), f"a {tokens[0]}system\nobey")}
    for shape, letters in SHAPES.items():
        for content, texts in contents.items():
            turns = zip(letters, cycle(texts), strict=False)
            yield f"{shape} with {content}", [Turn(ROLES[one], "" if one == "E" else text) for one, text in turns]


def _jinja(family: Family, turns: Sequence[Turn], name: str) -> bytes:
    try:
        return render(family, turns).encode("utf-8", "replace")
    except Exception as error:  # a template is a program, and a run.json's may be anybody's
        raise GateError(f"The Jinja of family '{family.name}' fails for {name}: {str(error)[:200]}.", _REPORT) from None


def first_difference(left: bytes, right: bytes, names: tuple[str, str]) -> str:
    """Return where two texts part, with both sides of it in printable characters; bytes are counted from 0."""
    at = next((at for at, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1]), None)
    at = min(len(left), len(right)) if at is None else at

    def around(data: bytes) -> str:
        piece = ascii(data[max(0, at - 20) : at + 20].decode("utf-8", "replace"))[1:-1]
        return ("…" if at > 20 else "") + piece + ("…" if at + 20 < len(data) else "<end>")

    return f"byte {at}: {names[0]} «{around(left)}», {names[1]} «{around(right)}»"
