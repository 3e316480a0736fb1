r"""Render Ollama's templates without Go: the part of text/template that twin's own are written in.

In it: text, trim markers, comments, string constants, decimal integers, ``true`` and ``false``, ``.Field`` chains on
the dot and on variables, ``$x :=`` and ``$x =``, ``range`` over lists, ``if``, ``else if``, ``else``, parentheses,
``FUNCTIONS``.
Everything else is refused by name, with its place, also where Go would take it. Not obvious: Go's strings are bytes, so
``len "é"`` is 2 and ``slice`` can cut a character, and what is rendered here is bytes too.

Source: https://pkg.go.dev/text/template, and Go's own lex.go, parse.go, exec.go and funcs.go where that page is silent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, NoReturn

from twin.errors import GateError

_KEYWORDS = {"if", "range", "else", "end", "with", "break", "continue", "define", "template", "block", "nil"}
_BLANKS = " \t\r\n"
_COMMENT = re.compile(r"/\*[^*]*(?:\*(?!/)[^*]*)*\*/(?P<trim>[ \t\r\n]-)?\}\}")
_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]*)(?:(?P<close>(?<=[ \t\r\n])-\}\}|\}\})
    |(?P<string>"(?:[^"\\\n]|\\[^\n])*"|`[^`]*`)
    |(?P<number>[+-]?\.?[0-9][\w.]*)
    |(?P<path>(?:\.[A-Za-z_]\w*)+|\.)
    |(?P<variable>\$\w*(?:\.[A-Za-z_]\w*)*)
    |(?P<word>[A-Za-z_]\w*)
    |(?P<mark>:=|.))""",
    re.VERBOSE | re.ASCII,
)
_ESCAPE = re.compile(
    rb"""\\(?:(?P<simple>[abfnrtv\\"])|x(?P<hex>[0-9A-Fa-f]{2})|(?P<octal>[0-3][0-7]{2})
    |(?:u(?P<short>[0-9A-Fa-f]{4})|U(?P<long>[0-9A-Fa-f]{8}))|.)""",
    re.VERBOSE,
)
_SIMPLE = dict(zip(b'abfnrtv\\"', b'\a\b\f\n\r\t\v\\"', strict=True))

Value = Any  # bytes, int, bool, None (Go's nil), or a list or dict of these
_Names = dict[str, list[Value]]  # a variable is a list of one value: blocks inside can set it
_Evaluate = Callable[[Value, _Names], Value]
_Node = Callable[[list[bytes], Value, _Names], None]


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


class Template:
    """A template, read whole: what twin does not render is known before anything is rendered.

    Args:
        source: the template's text.

    Raises:
        GateError: a construct that is not rendered, or that Go refuses as well.
    """

    def __init__(self, source: str) -> None:
        self._source, self._place, self._names = source, 0, {"$"}
        self._tokens = self._tokenize()
        try:
            self._node, _ = self._block(None)
        except RecursionError:
            self._refuse(0, "more levels than twin renders")

    def render(self, data: Mapping[str, Any]) -> bytes:
        """Return what Go writes for ``data``: strings, booleans, None, and lists and dicts of these.

        Raises:
            GateError: a field that the data does not have, or a value that can't stand where it does.
        """
        dot, out = _go_value(data), list[bytes]()
        try:
            self._node(out, dot, {"$": [dot]})
        except RecursionError:
            self._refuse(0, "more levels than twin renders")
        return b"".join(out)

    def _refuse(self, at: int, what: str) -> NoReturn:
        line, column = self._source.count("\n", 0, at) + 1, at - self._source.rfind("\n", 0, at)
        raise GateError(
            f"The Go template has {what}, at line {line}, column {column}.",
            "Write it with what twin renders as Go does: text, string constants, fields, variables, range, if, else "
            f"and the functions {', '.join(sorted(FUNCTIONS))}.",
        )

    def _tokenize(self) -> list[_Token]:
        """Return texts and the tokens of actions; trim markers and comments have done their work and are gone."""
        source, tokens, at, trim = self._source, list[_Token](), 0, False
        while True:
            start = source.find("{{", at)
            text = source[at : start if start >= 0 else len(source)]
            text = text.lstrip(_BLANKS) if trim else text
            if start < 0:
                return [*tokens, _Token("text", text, at), _Token("over", "the template's end", len(source))]
            left = bool(re.match(r"-[ \t\r\n]", source[start + 2 : start + 4]))
            tokens.append(_Token("text", text.rstrip(_BLANKS) if left else text, at))
            at = start + (4 if left else 2)
            if source.startswith("/*", at):
                comment = _COMMENT.match(source, at) or self._refuse(start, "a comment that does not end in */}}")
                at, trim = comment.end(), bool(comment["trim"])
                continue
            tokens.append(_Token("open", "{{", start))
            while tokens[-1].kind != "close":
                found = _TOKEN.match(source, at) or self._refuse(start, "an action without }}")
                kind = str(found.lastgroup)
                token, before = _Token(kind, found[kind], found.start(kind)), tokens[-1]
                if not found["space"] and _is_value(before, ")") and _is_value(token, "("):
                    self._refuse(token.at, f"no space before {token.text}")
                tokens.append(token)
                at = found.end()
            trim = tokens[-1].text.startswith("-")

    # ------------------------------------------------ reading

    def _take(self, expected: str = "") -> _Token:
        token = self._tokens[self._place]
        if expected and expected not in {token.text, token.kind}:
            self._refuse(token.at, f"{_shown(token)} where {expected.replace('close', '}}')} belongs")
        self._place += 1
        return token

    def _block(self, opener: _Token | None) -> tuple[_Node, str]:
        """Read what stands inside ``opener``; return it and the word that ended it."""
        nodes, outer = list[_Node](), set(self._names)
        while (token := self._take()).kind != "over":
            word = self._tokens[self._place]
            if token.kind == "text":
                nodes.append(_write(token.text))
            elif word.text in ("end", "else") and opener:
                self._take()
                if word.text == "end":
                    self._take("close")
                self._names = outer
                return _in_order(nodes), word.text
            elif word.text in ("if", "range"):
                nodes.append(self._control(self._take()))
            else:
                nodes.append(self._action(word))
        if opener:
            self._refuse(opener.at, f"'{opener.text}' without its end")
        return _in_order(nodes), ""

    def _action(self, first: _Token) -> _Node:
        names = self._declared(most=1)
        target = "" if names else self._assigned()
        value = self._command()
        self._take("close")
        self._names.update(names)

        def node(out: list[bytes], dot: Value, known: _Names) -> None:
            if names:
                known[names[0]] = [value(dot, known)]
            elif target:
                known[target][0] = value(dot, known)
            else:
                try:
                    written = value(dot, known)
                    out.append(b"<no value>" if written is None else _print(written))
                except ValueError as error:
                    self._refuse(first.at, str(error))

        return node

    def _declared(self, most: int) -> list[str]:
        """Read ``$x :=``, or ``$i, $x :=`` where ``most`` is 2; nothing where no variable is declared."""
        names, start = list[str](), self._place
        while self._tokens[self._place].kind == "variable":
            names.append(self._take().text)
            mark = self._take()
            if mark.text == ":=" and len(names) <= most and not any("." in name for name in names):
                return names
            if mark.text != "," or len(names) == most:
                break
        self._place = start
        return []

    def _assigned(self) -> str:
        """Read ``$x =``; return the variable, or nothing where none is set."""
        token, mark = self._tokens[self._place : self._place + 2]
        if token.kind != "variable" or mark.text != "=" or "." in token.text:
            return ""
        if token.text not in self._names:
            self._refuse(token.at, f"the variable {token.text}, which is not declared")
        if mark.at == token.at + len(token.text):
            self._refuse(mark.at, "no space before =")
        self._place += 2
        return token.text

    def _control(self, word: _Token) -> _Node:
        outer = set(self._names)
        names = self._declared(most=2) if word.text == "range" else []
        value = self._command()
        self._take("close")
        self._names.update(names)
        body, end = self._block(word)
        self._names = outer - set(names)  # in its else Go has range's variables hold the list: refused there
        other = _in_order([])
        if end == "else":
            if word.text == "if" and self._tokens[self._place].text == "if":
                other = self._control(self._take())
            else:
                self._take("close")
                other, end = self._block(word)
                if end == "else":
                    self._refuse(word.at, f"'{word.text}' with a second else")
        self._names = outer

        def if_node(out: list[bytes], dot: Value, known: _Names) -> None:
            (body if value(dot, known) else other)(out, dot, {**known})

        def range_node(out: list[bytes], dot: Value, known: _Names) -> None:
            items = value(dot, known)
            if not isinstance(items, list | None):
                self._refuse(word.at, f"range over {_kind(items)}")
            for pair in enumerate(items or []):
                own = {name: [one] for name, one in zip(names, pair[2 - len(names) :], strict=True)}
                body(out, pair[1], {**known, **own})
            if not items:
                other(out, dot, {**known})

        return if_node if word.text == "if" else range_node

    def _command(self) -> _Evaluate:
        """Read one value, or a function with its arguments, up to ``}}`` or ``)``."""
        token = self._tokens[self._place]
        if token.text not in FUNCTIONS:
            return self._operand()
        self._take()
        arguments = list[_Evaluate]()
        while self._tokens[self._place].text not in (")", "}}", "-}}"):
            arguments.append(self._operand())
        function, least, most = FUNCTIONS[token.text]
        if not least <= len(arguments) <= most:
            self._refuse(token.at, f"{len(arguments)} arguments for '{token.text}'")

        def evaluate(dot: Value, known: _Names) -> Value:
            try:
                return function(*(argument(dot, known) for argument in arguments))
            except ValueError as error:
                self._refuse(token.at, f"'{token.text}' of {error}")

        def decide(dot: Value, known: _Names) -> Value:
            # The first value that decides, else the last; what stands behind it is not looked at, as in Go.
            for argument in arguments:
                value = argument(dot, known)
                if bool(value) == (token.text == "or"):
                    break
            return value

        return decide if token.text in ("and", "or") else evaluate

    def _operand(self) -> _Evaluate:
        token = self._take()
        if token.text == "(":
            inside = self._command()
            self._take(")")
            return inside
        if token.kind in ("path", "variable"):
            head, *fields = token.text.rstrip(".").split(".")
            if head and head not in self._names:
                self._refuse(token.at, f"the variable {head}, which is not declared")
            return lambda dot, known: self._field(token, known[head][0] if head else dot, fields)
        value = self._constant(token)
        return lambda dot, known: value

    def _field(self, token: _Token, value: Value, fields: Sequence[str]) -> Value:
        for field in fields:
            if not isinstance(value, dict) or field not in value:
                self._refuse(token.at, f"the field .{field}, which {_kind(value)} of the data does not have")
            value = value[field]
        return value

    def _constant(self, token: _Token) -> Value:
        text = token.text
        if text in ("true", "false"):
            return text == "true"
        if token.kind == "number" and re.fullmatch(r"[+-]?(0|[1-9][0-9]{0,17})", text):
            return int(text)
        if token.kind != "string":
            self._refuse(token.at, f"{_shown(token)}, which twin does not render")
        body = text[1:-1].encode("utf-8", "replace")
        if text[0] == "`":
            return body.replace(b"\r", b"")  # as Go does
        try:
            return _ESCAPE.sub(_unescape, body)
        except ValueError as error:
            self._refuse(token.at, f"the escape {error}")


@cache
def parse(source: str) -> Template:
    """Return the template, read once a process. Raises as ``Template`` does."""
    return Template(source)


def _go_value(value: Any) -> Value:
    if isinstance(value, str):
        return value.encode("utf-8", "replace")
    if isinstance(value, Mapping):
        return {key: _go_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_go_value(item) for item in value]
    if value is None or isinstance(value, bool):
        return value
    # Ollama gives no numbers, and Go takes one that comes in an interface in some places and not in others.
    raise TypeError(f"{type(value).__name__} in the data of a template")


def _unescape(found: re.Match[bytes]) -> bytes:
    if found["simple"]:
        return bytes([_SIMPLE[found["simple"][0]]])
    if found["hex"] or found["octal"]:
        return bytes([int(found["hex"], 16) if found["hex"] else int(found["octal"], 8)])
    point = int(found["short"] or found["long"] or b"D800", 16)
    if point > 0x10FFFF or 0xD800 <= point < 0xE000:
        raise ValueError(found[0].decode("utf-8", "replace"))
    return chr(point).encode()


def _is_value(token: _Token, paren: str) -> bool:
    return token.kind not in ("open", "close", "mark") or token.text == paren


def _shown(token: _Token) -> str:
    if token.kind == "word":
        return f"{'the keyword' if token.text in _KEYWORDS else 'the function'} '{token.text}'"
    return f"the number {token.text}" if token.kind == "number" else token.text


def _kind(value: Value) -> str:
    names = {bytes: "a string", bool: "a boolean", int: "a number", list: "a list", dict: "a map", type(None): "nil"}
    return names.get(type(value), f"a {type(value).__name__}")


def _write(text: str) -> _Node:
    data = text.encode("utf-8", "replace")
    return lambda out, dot, known: out.append(data)


def _in_order(nodes: Sequence[_Node]) -> _Node:
    def node(out: list[bytes], dot: Value, known: _Names) -> None:
        for one in nodes:
            one(out, dot, known)

    return node


# ------------------------------------------------ functions; ValueError says what is refused


def _print(*values: Value) -> bytes:
    """As Go's fmt.Sprint: a space between two values where neither is a string."""
    out, strings = b"", True
    for value in values:
        if isinstance(value, list | dict):
            raise ValueError(f"{_kind(value)} to print")
        string = isinstance(value, bytes)
        text = value if string else {"None": b"<nil>"}.get(str(value), str(value).lower().encode())
        out, strings = out + (b"" if strings or string else b" ") + text, string
    return out


def _equal(first: Value, *others: Value) -> bool:
    for other in others:
        if None not in (first, other) and (type(first) is not type(other) or isinstance(first, list | dict)):
            raise ValueError(f"{_kind(first)} and {_kind(other)}")
        if first == other:
            return True
    return False


def _length(value: Value) -> int:
    return len(value) if isinstance(value, bytes | list) else _raise(_kind(value))


def _slice(value: Value, start: Value = 0, stop: Value = None) -> Value:
    end = _length(value)
    stop = end if stop is None else stop
    if not (type(start) is type(stop) is int and 0 <= start <= stop <= end):
        raise ValueError(f"{_kind(value)} of length {end} from {start!r} to {stop!r}")
    return value[start:stop]


def _raise(what: str) -> NoReturn:
    raise ValueError(what)


# What each does, and how many arguments it takes; `and` and `or` are decided where they are called.
FUNCTIONS: dict[str, tuple[Callable[..., Value], int, int]] = {
    "and": (bool, 1, 99),
    "or": (bool, 1, 99),
    "not": (lambda value: not value, 1, 1),
    "eq": (_equal, 2, 99),
    "ne": (lambda first, other: not _equal(first, other), 2, 2),
    "len": (_length, 1, 1),
    "slice": (_slice, 1, 3),
    "print": (_print, 0, 99),
}
