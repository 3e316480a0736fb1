"""The Modelfile read back as Ollama reads it, and that reading checked against the real one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twin.errors import GateError, UsageError
from twin.ollama.client import OllamaClient
from twin.ollama.modelfile import model_name, modelfile, parse, read_modelfile
from twin.templates import load_family

FAMILY = load_family("chatml")
GGUF = "model-q8_0.gguf"


def parsed(text: str) -> list[tuple[str, str]]:
    return [(name.removeprefix("parameter "), value) for name, value in parse(text)]


def dropped(text: str) -> str:
    return "".join(char for char in text if char.isprintable() or char in "\t\r\n")


def test_the_whole_file() -> None:
    text = modelfile(GGUF, FAMILY, "You write as Chirag.", {"temperature": 0.7, "num_ctx": 4096}, "Apache 2.0\nText")
    assert text == (
        "# For people, and for: ollama create NAME -f Modelfile. 'twin register' tells Ollama the same over JSON.\n"
        "FROM ./model-q8_0.gguf\n"
        f'TEMPLATE """{FAMILY.go}"""\n'
        'PARAMETER stop """<|im_end|>"""\n'
        "PARAMETER temperature 0.7\n"
        "PARAMETER num_ctx 4096\n"
        'SYSTEM """You write as Chirag."""\n'
        'LICENSE """Apache 2.0\nText"""\n'
    )


def test_it_reads_back() -> None:
    system = ' "Quoted"\r\n\tand """ inside\n\n# no comment\nFROM nowhere\n'
    family = FAMILY.model_copy(update={"stops": ["<|im_end|>", '"', '"""', "\n\n", "User:"]})
    read = parsed(modelfile(GGUF, family, system, {"temperature": 1e-05, "num_ctx": 8192, "use_mmap": True}, "L"))
    assert read == [
        ("from", f"./{GGUF}"),
        ("template", FAMILY.go),
        *[("stop", stop) for stop in family.stops],
        ("temperature", "1e-05"),
        ("num_ctx", "8192"),
        ("use_mmap", "true"),
        ("system", system),
        ("license", "L"),
    ]


def test_no_system_and_no_license_leave_no_line() -> None:
    assert [name for name, _ in parsed(modelfile(GGUF, FAMILY, "", {}))] == ["from", "template", "stop"]


tricky = st.sampled_from("\"'\n\r\t #a\u00a0\u200d\u3000👩é")
text = st.text(tricky | st.characters(exclude_categories=["Cs"]), max_size=30)


@given(text, text)
@example('"""\n', '"\u200d""\r\n')
@example('a"""\n"""', '"""')
@example('""""""\n\n', '"')
@example('x"""  \u00a0\ny', '\n"""\n')
def test_any_prose_parses_and_only_what_is_named_is_lost(system: str, license_text: str) -> None:
    written = modelfile(GGUF, FAMILY, system, {"num_ctx": 4096}, license_text)
    read = dict(parsed(written))
    for command, meant in (("system", system), ("license", license_text)):
        got = read.get(command, "")
        assert got.replace("'''", '"""') == dropped(meant).replace("'''", '"""')
        if got != meant:
            assert f"of this {command.upper()}" in written or f"end this {command.upper()}" in written
    assert read["num_ctx"] == "4096"
    assert read["template"] == FAMILY.go


def test_what_is_lost_is_said() -> None:
    written = modelfile(GGUF, FAMILY, "hi 👩‍🚀\u00a0there", {})
    assert (
        "# 'ollama create' drops characters of this SYSTEM: U+00A0, U+200D. "
        "The JSON registration of 'twin register' keeps them.\n" in written
    )
    assert 'SYSTEM """hi 👩‍🚀\u00a0there"""' in written
    assert "drops" not in modelfile(GGUF, FAMILY, "hi ❤️ é ½ ٣ 你好\r\n\tx", {})


def test_quotes_that_would_close_are_rewritten_and_it_is_said() -> None:
    written = modelfile(GGUF, FAMILY, 'say """\nnow', {})
    assert 'SYSTEM """say \'\'\'\nnow"""' in written
    assert "# Three quotes at a line's end would end this SYSTEM" in written


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"go": '{{ "\u00a0" }}'}, r"the Go template of chatml: Ollama would drop U\+00A0"),
        ({"go": '{{ `"""\n` }}'}, "three quotes at the end of a line"),
        ({"stops": ["\u200d"]}, "the parameter stop"),
        ({"stops": ['"""\nx']}, "three quotes"),
        ({"stops": [""]}, "can't hold '' as stop"),
    ],
)
def test_a_template_or_stop_that_would_change_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(GateError, match=words):
        modelfile(GGUF, FAMILY.model_copy(update=change), "", {})


@pytest.mark.parametrize(
    ("gguf", "parameters", "system"),
    [
        ("a\nSYSTEM x", {}, ""),
        (" a.gguf", {}, ""),
        ("", {}, ""),
        (GGUF, {"num ctx": 1}, ""),
        (GGUF, {"temperature": float("nan")}, ""),
        (GGUF, {"temperature": None}, ""),
        (GGUF, {}, "half \ud83d"),
    ],
)
def test_other_values_that_the_grammar_cannot_hold(gguf: str, parameters: dict[str, object], system: str) -> None:
    with pytest.raises(GateError):
        modelfile(gguf, FAMILY, system, parameters)


@pytest.mark.parametrize(
    "name",
    ["me", "_me", "chirag-v1", "Me.v1:q4_K_M", "ns/me", "a-b/me:1", "box.lan:5000/ns/me", "m" * 80, "me:" + "t" * 80],
)
def test_names_that_ollama_takes(name: str) -> None:
    assert model_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-me",
        ".me",
        "my twin",
        "mé",
        "me:",
        ":tag",
        "a/b/c/d",
        "/me",
        "n.s/me",
        "me\n",
        "m" * 81,
        "me:a:b",
        "http://box/ns/me",
        "me@sha",
        "../me",
    ],
)
def test_names_that_it_refuses(name: str) -> None:
    with pytest.raises(UsageError, match="can't be a model's name"):
        model_name(name)


@pytest.mark.parametrize("name", ["me:cloud", "me:v1-CLOUD", "ns/me:local"])
def test_names_that_would_leave_the_machine(name: str) -> None:
    with pytest.raises(UsageError, match="keeps the tag"):
        model_name(name)


@pytest.mark.ollama
def test_the_real_parser_reads_what_the_port_reads(ollama: str, ollama_binary: str, gguf: Path, tmp_path: Path) -> None:
    system = ' "Hi" 👩‍🚀\u00a0é\u3000 """ x\r\n\tsay """\n\n"""\n""\u200d"\n# x\nFROM y \n'
    family = FAMILY.model_copy(update={"stops": ["<|im_end|>", '"', "\n\n"]})
    written = modelfile(GGUF, family, system, {"temperature": 0.25, "num_ctx": 2048}, 'License """\n\u000c"x"')
    (tmp_path / "Modelfile").write_bytes(written.encode())
    (tmp_path / GGUF).symlink_to(gguf)
    environ = {**os.environ, "OLLAMA_HOST": ollama, "HOME": str(tmp_path)}
    done = subprocess.run(
        [ollama_binary, "create", "by-file", "-f", str(tmp_path / "Modelfile")],
        env=environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-500:]
    with OllamaClient(ollama) as client:
        shown = client.show("by-file")
        client.delete("by-file")
    read = dict(parsed(written))
    assert shown["template"] == family.go
    assert shown["system"] == read["system"]
    assert shown["license"] == read["license"]
    for line in ("temperature 0.25", "num_ctx 2048", 'stop "<|im_end|>"', 'stop "\\""', 'stop "\\n\\n"'):
        assert line in " ".join(shown["parameters"].split())


@pytest.mark.parametrize(
    ("text", "template", "stops"),
    [
        ('TEMPLATE """a\r\nb"""\r\n', "a\r\nb", []),
        ("template {{ .Prompt }}  \nPARAMETER stop <|im_end|>  \n", "{{ .Prompt }}", ["<|im_end|>"]),
        ('TEMPLATE "a\nb"\n', "a\nb", []),
        ('TEMPLATE "{{ "x" }}{{ .Prompt }}"\n', '{{ "x" }}{{ .Prompt }}', []),
        ('TEMPLATE good\nSYSTEM "You are\nTEMPLATE evil\nend"\n', "good", []),
        ("TEMPLATE a\u200bb\u00a0c\x00\n", "abc", []),
        ("FROM x\rTEMPLATE y\r", "y", []),
        ('PARAMETER STOP a\nPARAMETER stop b\nPARAMETER stop "c d"\nPARAMETER temperature 1\n', None, ["b", "c d"]),
        ('# TEMPLATE no\n\nTEMPLATE one\nTEMPLATE """two\n"""', "two\n", []),
        ("", None, []),
    ],
)
def test_anybodys_is_read_as_ollama_reads_it(tmp_path, text, template, stops):
    file = tmp_path / "Modelfile"
    file.write_bytes(text.encode())
    said = read_modelfile(file)
    assert (said.template, said.stops) == (template, stops)


def test_what_is_no_modelfile(tmp_path):
    file = tmp_path / "Modelfile"
    for content, sentence in (
        (b"\xff\xfe", "is no UTF-8 text"),
        (b"FROM x\nTEMPERATURE 1\n", "has a command 'temperature'"),
        (b'TEMPLATE """a', "ends in the middle of a command"),
        (b"FR\xc3\x96M x\n", "has no command in"),
    ):
        file.write_bytes(content)
        with pytest.raises(UsageError, match=sentence):
            read_modelfile(file)
    with pytest.raises(UsageError):
        read_modelfile(tmp_path)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(tmp_path_factory, text):
    file = tmp_path_factory.mktemp("m") / "Modelfile"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        assert read_modelfile(file).commands is not None
    except UsageError as error:
        assert error.hint
