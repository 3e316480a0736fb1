"""The renderer of Go templates: each construct, each refusal by its name, and Go's own engine as the judge."""

import base64
import json
import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.errors import GateError
from twin.templates import family_names, load_family
from twin.templates.go import FUNCTIONS, Template, parse

DATA = {
    "System": "Be Ana.",
    "Prompt": "",
    "Response": "é👩‍👧",
    "Messages": [{"Role": "user", "Content": "hi"}, {"Role": "assistant", "Content": " ½\n"}],
    "Words": ["a", "", "ü"],
    "Flag": True,
    "Nothing": None,
}

RENDERED = {
    "text alone }} { \n": "text alone }} { \n",
    "": "",
    '{{ "<|im_start|>" }}{{ .System }}{{ "\\n" }}': "<|im_start|>Be Ana.\n",
    '{{"\\a\\b\\f\\n\\r\\t\\v\\\\\\"\\x41\\101\\u00e9\\U0001F986"}}': '\a\b\f\n\r\t\v\\"AAé🦆',
    '{{`raw \\n "\r\n`}}': 'raw \\n "\n',
    "a \n{{- 1 -}}\n b": "a1b",
    "a\u00a0 {{- 1}}": "a\u00a01",
    "a {{/* {{ }} * / */}} b": "a  b",
    "a {{- /* no */ -}} b": "ab",
    "{{ -3 }}{{ +0 }}{{ true }}{{ .Nothing }}": "-30true<no value>",
    "{{ range .Messages }}{{ .Role }}:{{ .Content }};{{ end }}": "user:hi;assistant: ½\n;",
    "{{ range $i, $m := .Messages }}{{ $i }}{{ $m.Role }}{{ $.Flag }}{{ end }}": "0usertrue1assistanttrue",
    "{{ range $w := .Words }}[{{ $w }}{{ . }}]{{ end }}": "[aa][][üü]",
    "{{ range slice .Words 3 }}x{{ else }}none{{ end }}{{ range .Nothing }}x{{ else }}nil{{ end }}": "nonenil",
    "{{ if .Prompt }}a{{ else if .Words }}b{{ else }}c{{ end }}": "b",
    "{{ if .Nothing }}a{{ else if 0 }}b{{ else if slice .Words 3 }}c{{ else if false }}d{{ else }}e{{ end }}": "e",
    "{{ $x := 1 }}{{ if true }}{{ $x := 2 }}{{ $x }}{{ end }}{{ $x }}": "21",
    "{{ $x := 1 }}{{ if true }}{{ $x = 2 }}{{ $x := 3 }}{{ $x = 4 }}{{ $x }}{{ end }}{{ $x }}": "42",
    "{{ $x := 0 }}{{ range $i, $m := .Words }}{{ $x }}{{ $x = $m }}{{ $m = 1 }}{{ $m }}{{ end }}{{ $x }}": "01a11ü",
    "{{ range .Words }}{{ $ = 1 }}{{ end }}{{ $ }}": "1",
    '{{ if eq 2 1 3 2 }}y{{ end }}{{ eq "a" "b" }}{{ ne 2 3 }}{{ eq .Nothing 1 }}': "yfalsetruefalse",
    '{{ and 1 "" .Nope }}{{ or "" 0 "last" }}{{ not .Prompt }}{{ and 1 2 }}': "lasttrue2",
    '{{ len "é" }}{{ len .Words }}{{ slice .Response 2 }}{{ slice "abc" 1 2 }}': "23👩‍👧b",
    '{{ print 1 2 "a" "b" 3 true .Nothing 4 }}{{ print }}{{ print 1 true }}': "1 2ab3 true <nil> 41 true",
    "{{ range $i, $m := .Messages }}{{ if eq (len (slice $.Messages $i)) 1 }}last {{ $m.Role }}{{ end }}{{ end }}": (
        "last assistant"
    ),
}

REFUSED = {
    "{{ json .Words }}": "the function 'json'",
    "a\n{{ printf .System }}": "the function 'printf', which twin does not render, at line 2, column 4",
    "{{ with .System }}{{ end }}": "the keyword 'with'",
    "{{ range .Words }}{{ break }}{{ end }}": "the keyword 'break'",
    "{{ range .Words }}{{ continue }}{{ end }}": "the keyword 'continue'",
    '{{ define "a" }}{{ end }}': "the keyword 'define'",
    '{{ template "a" }}': "the keyword 'template'",
    '{{ block "a" . }}{{ end }}': "the keyword 'block'",
    "{{ eq .System nil }}": "the keyword 'nil'",
    "{{ .System | print }}": "| where }} belongs",
    "{{ $x = 2 }}": "the variable $x, which is not declared",
    "{{ $x := 1 }}{{ $x= 2 }}": "no space before =",
    "{{ $.System = 2 }}": "= where }} belongs",
    "{{ if true }}{{ $x := 1 }}{{ end }}{{ $x = 2 }}": "the variable $x, which is not declared",
    "{{ $x := 1 }}{{ if $x = 2 }}{{ end }}": "= where }} belongs",
    "{{ if $x := 1 }}{{ end }}": "the variable $x",
    "{{ $y }}": "the variable $y, which is not declared",
    "{{ range $x := .Words }}{{ end }}{{ $x }}": "the variable $x",
    "{{ (slice .Words 1).x }}": "no space before .x",
    "{{ $x := 1 }}{{ range $x := .Words }}{{ else }}{{ $x }}{{ end }}": "the variable $x",
    "{{ print(1) }}": "no space before (",
    '{{ "a"`b` }}': "no space before `b`",
    "{{ 0x1f }}": "the number 0x1f",
    "{{ 1.5 }}": "the number 1.5",
    "{{ 'a' }}": "', which twin does not render",
    '{{ "open }}': '", which twin does not render',
    '{{ "\\q" }}': "the escape \\q",
    '{{ "\\ud800" }}': "the escape \\ud800",
    "{{ .Rôle }}": "ô where }} belongs",
    "{{ .System": "an action without }}",
    "{{ /* spaced */ }}": "/, which twin does not render",
    "{{/* open }}": "a comment that does not end in */}}",
    "{{ }}": "}}, which twin does not render",
    "{{ .System .Prompt }}": ".Prompt where }} belongs",
    "{{ if true }}": "'if' without its end",
    "{{ if true }}{{ else }}{{ else }}{{ end }}": "'if' with a second else",
    "{{ range .Words }}{{ else if true }}{{ end }}": "the keyword 'if' where }} belongs",
    "{{ end }}": "the keyword 'end'",
    "{{ (print 1 }}": "}} where ) belongs",
    "{{ len }}": "0 arguments for 'len'",
    "{{ eq 1 }}": "1 arguments for 'eq'",
    "{{ print print }}": "the function 'print'",
    "{{ .Nope }}": "the field .Nope, which a map of the data does not have",
    "{{ .System.x }}": "the field .x, which a string of the data does not have",
    "{{ range 3 }}{{ end }}": "range over a number",
    "{{ range .System }}{{ end }}": "range over a string",
    "{{ . }}": "a map to print",
    "{{ print .Words }}": "'print' of a list to print",
    '{{ eq 1 "1" }}': "'eq' of a number and a string",
    "{{ eq 1 true }}": "'eq' of a number and a boolean",
    "{{ eq .Words .Words }}": "'eq' of a list and a list",
    "{{ len 1 }}": "'len' of a number",
    "{{ slice .Words 4 }}": "'slice' of a list of length 3 from 4 to 3",
    "{{ slice .Words true }}": "'slice' of a list of length 3 from True",
    "{{ print " + "(print " * 5000 + ")" * 5000 + " }}": "more levels than twin renders",
}


@pytest.mark.parametrize("source", sorted(RENDERED))
def test_each_construct(source):
    assert Template(source).render(DATA) == RENDERED[source].encode()


@pytest.mark.parametrize("source", sorted(REFUSED), ids=lambda source: source[:40])
def test_what_is_not_rendered_is_refused_by_name(source):
    with pytest.raises(GateError) as caught:
        Template(source).render(DATA)
    assert REFUSED[source] in caught.value.message
    assert ", at line " in caught.value.message
    assert caught.value.hint.endswith(f"the functions {', '.join(sorted(FUNCTIONS))}.")


def test_a_refusal_needs_no_data():
    """What is not rendered is known when a template is read, though no branch that is taken holds it."""
    with pytest.raises(GateError, match="the function 'json'"):
        Template("{{ if false }}{{ json . }}{{ end }}")


def test_a_string_is_bytes():
    assert Template('{{ slice "é" 1 }}').render({}) == b"\xa9"


@pytest.mark.parametrize("name", family_names())
def test_each_family_is_inside_what_is_rendered(name):
    assert parse(load_family(name).go).render({"System": "", "Messages": [], "Response": ""}) is not None


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(texts)
def test_text_without_actions_is_itself(text):
    text = text.replace("{{", "{")
    assert Template(text).render({}) == text.encode()


@given(texts)
def test_a_string_constant_is_its_text_and_content_is_never_read_as_a_template(text):
    # JSON's escapes are Go's, but for characters beyond the first plane, which it writes as two surrogates.
    constant = json.dumps(text, ensure_ascii=False).replace("\x7f", "\\x7f")
    assert Template("{{ " + constant + " }}{{ .Content }}").render({"Content": text}) == text.encode() * 2


@given(st.lists(st.sampled_from([*"{}\"`\\$.|() \n-=:,'é1x", "{{", "}}", "{{-", "-}}", "if", "range", "end", "print"])))
def test_any_text_renders_or_is_refused(parts):
    try:
        Template("".join(parts)).render(DATA)
    except GateError as error:
        assert error.message.startswith("The Go template has ")


# ---------------------------------------------------------------- against Go


class Grammar:
    """Makes random templates of the part that is rendered, values mostly of the kind that their place asks for."""

    ROOT: ClassVar = {
        "string": ("System", "Prompt", "Response"),
        "int": (),
        "bool": ("Flag",),
        "nil": ("Nothing",),
        "words": ("Words",),
        "messages": ("Messages",),
    }
    TEXTS = (
        *" \n\t-}{\"'\\",
        "}}",
        "\r\n",
        "\n  ",
        "a",
        "é",
        "👩‍👧",
        "\u00a0",
        "\u3000",
        '"""',
        "<|im_end|>",
        "-}}",
        "\x00",
    )
    CHARACTERS = (*"ab \t'}{-", "{{", "}}", "/*", "é", "½", "漢", "🦆", "e\u0301", "\u200d", "\x00")

    def __init__(self, seed):
        self.random = random.Random(seed)  # noqa: S311
        self.names = []  # (name, kind), innermost last
        self.dot = "root"

    def chance(self, share):
        return self.random.random() < share

    def blank(self, least=1):
        return "".join(
            self.random.choice((" ", " ", " ", "\t", "\n", "\r\n")) for _ in range(max(least, self.chance(0.1)))
        )

    def template(self):
        return self.block(3)

    def block(self, depth):
        names, parts = list(self.names), []
        for _ in range(self.random.randint(0, 4)):
            kind = self.random.choice(("text", "value", "value", "comment", "if", "range", "declare", "assign"))
            parts.append(getattr(self, f"a_{kind}")(depth) if depth else self.a_text(depth))
        self.names = names
        return "".join(parts)

    def action(self, inside):
        left = "{{-" + self.blank() if self.chance(0.15) else "{{" + self.blank(0)
        return left + inside + (self.blank() + "-}}" if self.chance(0.15) else self.blank(0) + "}}")

    def a_text(self, depth):
        return "".join(self.random.choice(self.TEXTS) for _ in range(self.random.randint(0, 4)))

    def a_comment(self, depth):
        left, right = self.random.choice(("{{", "{{- ", "{{-\n")), self.random.choice(("}}", " -}}", "\t-}}"))
        return left + "/*" + self.a_text(0).replace("*/", "") + "*/" + right

    def a_value(self, depth):
        return self.action(self.command(self.printable(), 2))

    def a_declare(self, depth):
        kind = self.random.choice((*self.ROOT, "string"))
        name = "$" + self.random.choice(("x", "y", "x1", "_", "1"))
        action = self.action(name + self.blank(0) + ":=" + self.blank(0) + self.command(kind, 2))
        self.names.append((name, kind))
        return action

    def a_assign(self, depth):
        if not self.names:
            return self.a_declare(depth)
        name = self.random.choice([known for known, _ in self.names])
        # The innermost of a name is set. Its kind stays, mostly: what is read of it afterwards would be refused.
        kind = self.random.choice(tuple(self.ROOT)) if self.chance(0.05) else dict(self.names)[name]
        if kind == "message":
            return ""
        return self.action(name + self.blank() + "=" + self.blank(0) + self.command(kind, 2))

    def a_if(self, depth):
        text = self.action("if" + self.blank() + self.command("any", 2)) + self.block(depth - 1)
        while self.chance(0.3):
            text += self.action("else" + self.blank() + "if" + self.blank() + self.command("any", 2))
            text += self.block(depth - 1)
        if self.chance(0.4):
            text += self.action("else") + self.block(depth - 1)
        return text + self.action("end")

    def a_range(self, depth):
        names, dot = list(self.names), self.dot
        kind = self.random.choice(("words", "messages", "messages", "nil"))
        items = self.command("string" if self.chance(0.02) else kind, 2)
        item = {"words": "string", "messages": "message", "nil": "string"}[kind]
        declared = self.random.choice(((), ("$m",), ("$i", "$m")))
        comma = self.blank(0) + "," + self.blank(0)
        head = comma.join(declared) + self.blank(0) + ":=" + self.blank(0) if declared else ""
        self.names += list(zip(declared, ("int", item)[-len(declared) :] if declared else (), strict=True))
        self.dot = item
        text = self.action("range" + self.blank() + head + items) + self.block(depth - 1)
        self.names, self.dot = [known for known in names if known[0] not in declared], dot
        if self.chance(0.3):
            text += self.action("else") + self.block(depth - 1)
        self.names = names
        return text + self.action("end")

    def printable(self):
        return self.random.choice(("string", "string", "int", "bool", "nil"))

    def command(self, kind, depth):
        """Return an operand, or a function with its arguments."""
        if kind == "any":
            kind = self.random.choice((*self.ROOT, "bool", "bool"))
        if depth == 0 or self.chance(0.4):
            return self.operand(kind, depth)
        wrong = self.chance(0.03)

        def of(*kinds):
            return [self.operand(self.random.choice(tuple(self.ROOT)) if wrong else one, depth - 1) for one in kinds]

        choices = [("and", [kind] * self.random.randint(1, 3)), ("or", [kind] * self.random.randint(1, 3))]
        if kind == "bool":
            same = self.printable()
            anything = self.random.choice(tuple(self.ROOT))
            choices += [("eq", [same] * self.random.randint(2, 4)), ("ne", [same] * 2), ("not", [anything])]
            choices += [("eq", ["nil", anything])]
        if kind == "int":
            choices += [("len", [self.random.choice(("string", "words", "messages"))])] * 2
        if kind in ("words", "messages", "string"):
            choices += [("slice", [kind] + ["int"] * self.random.randint(0, 2))] * 2
        name, kinds = self.random.choice(choices)
        wrong = wrong and name in ("eq", "ne", "len")
        arguments = of(*kinds)
        if kind == "string" and self.chance(0.3):
            name, arguments = (
                "print",
                [self.operand(self.printable(), depth - 1) for _ in range(self.random.randint(0, 4))],
            )
        return self.blank().join([name, *arguments])

    def operand(self, kind, depth):
        if depth and self.chance(0.3):
            return "(" + self.blank(0) + self.command(kind, depth - 1) + self.blank(0) + ")"
        if self.chance(0.005):
            return "$.Nope"
        found = dict(self.names)  # the innermost of a name hides the others
        paths = [f"$.{field}" for field in self.ROOT.get(kind, ())]
        paths += [name for name, known in found.items() if known == kind]
        if kind == "string":
            paths += [
                f"{name}.{part}" for name, known in found.items() if known == "message" for part in ("Role", "Content")
            ]
            paths += {"message": [".Role", ".Content"], "string": ["."]}.get(self.dot, [])
        if self.dot == "root":
            paths += [f".{field}" for field in self.ROOT.get(kind, ())]
        constants = {"string": self.constant, "bool": lambda: self.random.choice(("true", "false"))}
        constants["int"] = lambda: self.random.choice(("0", "1", "2", "2", "-1", "+3", "123456789012345678"))
        return constants[kind]() if kind in constants and (not paths or self.chance(0.5)) else self.random.choice(paths)

    def constant(self):
        pieces = [self.random.choice(self.CHARACTERS) for _ in range(self.random.randint(0, 5))]
        if self.chance(0.15):
            return "`" + "".join(self.random.choice((piece, "\\n", "\r\n", '"')) for piece in pieces) + "`"

        def written(piece):
            code = ord(piece[0])
            ways = [piece, piece, f"\\U{code:08x}", "\\n", '\\"', "\\\\", "\\t", "\\a", "\\v"]
            ways += [f"\\u{code:04X}"] if code < 0x10000 else []
            ways += [f"\\x{code:02x}", f"\\{code:03o}"] if code < 256 else []
            if self.chance(0.005):
                return self.random.choice(("\\q", "\\'", "\\ud800", "\\U00110000", "\\x4", "\\400", "\\08"))
            return self.random.choice(ways)

        return '"' + "".join(map(written, pieces)) + '"'

    def data(self):
        texts = ("", "hi", " a\n", "é½", "👩‍👧", "{{ .System }}", '"""', "user", "\r\n", "<|im_end|>")
        text = lambda: self.random.choice(texts)  # noqa: E731
        messages = [{"Role": text(), "Content": text()} for _ in range(self.random.randint(0, 4))]
        return {
            "System": text(), "Prompt": text(), "Response": text(), "Messages": messages, "Nothing": None,
            "Words": [text() for _ in range(self.random.randint(0, 3))], "Flag": self.chance(0.5),
        }  # fmt: skip

    def broken(self, source):
        """Return ``source`` with one to three small damages."""
        pieces = (
            *"{}()\"`\\$.|,= \n-:'é1_",
            "{{",
            "}}",
            "-}}",
            ":=",
            "0x1",
            "1.5",
            "nil",
            "print",
            "len",
            "end",
            "else",
            "if",
        )
        for _ in range(self.random.randint(1, 3)):
            at = self.random.randint(0, len(source))
            source = (
                source[:at] + (self.random.choice(pieces) if self.chance(0.6) else "") + source[at + self.chance(0.5) :]
            )
        return source


@pytest.fixture(scope="session")
def go_renders(tmp_path_factory):
    """A function that renders many (template, data) pairs with Go's text/template; None where Go refuses."""
    if not shutil.which("go"):
        reason = "no go on PATH: the renderer of Go templates is not compared with Go's own"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    folder = tmp_path_factory.mktemp("differential")
    program = folder / "differential"
    environ = os.environ | {"GOTOOLCHAIN": "local", "GOFLAGS": ""}
    source = Path(__file__).with_name("differential.go")
    subprocess.run(["go", "build", "-o", str(program), str(source)], check=True, env=environ, cwd=folder)

    def renders(pairs):
        lines = "\n".join(json.dumps({"template": template, "data": data}) for template, data in pairs)
        done = subprocess.run([program], input=lines, capture_output=True, text=True, check=True)
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(answers) == len(pairs)
        return [base64.b64decode(one["bytes"] or "") if "bytes" in one else None for one in answers]

    return renders


def ours(source, data):
    try:
        return Template(source).render(data)
    except GateError:
        return None


@pytest.mark.slow
def test_go_renders_the_same_bytes_or_refuses_too(go_renders):
    pairs = [(grammar.template(), grammar.data()) for grammar in map(Grammar, range(20_000))]
    mine = [ours(*pair) for pair in pairs]
    wrong = [(*pair, got, go) for pair, got, go in zip(pairs, mine, go_renders(pairs), strict=True) if got != go]
    assert wrong[:3] == []
    assert 0.02 < mine.count(None) / len(mine) < 0.4
    assert sum(bool(got) for got in mine) > 0.4 * len(mine)


@pytest.mark.slow
def test_what_is_rendered_of_damaged_templates_is_what_go_renders(go_renders):
    """Outside of the part, twin may refuse what Go takes, and never the other way round."""
    grammars = [Grammar(seed) for seed in range(20_000, 50_000)]
    pairs = [(grammar.broken(grammar.template()), grammar.data()) for grammar in grammars]
    mine = [ours(*pair) for pair in pairs]
    wrong = [
        (*pair, got, go)
        for pair, got, go in zip(pairs, mine, go_renders(pairs), strict=True)
        if got is not None and got != go
    ]
    assert wrong[:3] == []
    assert 0.2 < mine.count(None) / len(mine) < 0.8


@pytest.mark.slow
def test_go_agrees_on_the_cases_above(go_renders):
    pairs = [(source, DATA) for source in RENDERED]
    assert go_renders(pairs) == [text.encode() for text in RENDERED.values()]
