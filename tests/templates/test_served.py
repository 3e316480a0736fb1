"""What Ollama renders with templates of the older kind, turn by turn, and with ours."""

import pytest

from twin.errors import GateError
from twin.records import Turn
from twin.templates import served

S, U, A, AGAIN = Turn("system", "S"), Turn("user", "u"), Turn("assistant", "a"), Turn("user", "v")
ALPACA = "{{ if .System }}{{ .System }}\n{{ end }}### Q:\n{{ .Prompt }}\n### A:\n{{ .Response }}<end>\n"
TRIMMED = "{{- if .System }}<s>{{ .System }}{{ end }}\n{{- if .Prompt }}<u>{{ .Prompt }}{{ end }}<a>{{ .Response }}<e>"


@pytest.mark.parametrize(
    ("template", "turns", "text"),
    [
        (ALPACA, [U], "### Q:\nu\n### A:\n"),
        (ALPACA, [S, U], "S\n### Q:\nu\n### A:\n"),
        (ALPACA, [S, U, A, AGAIN], "S\n### Q:\nu\n### A:\na<end>\n### Q:\nv\n### A:\n"),
        (ALPACA, [U, A, S, AGAIN], "### Q:\nu\n### A:\na<end>\nS\n### Q:\nv\n### A:\n"),
        (ALPACA, [U, S, AGAIN], "### Q:\nu\n### A:\n<end>\nS\n### Q:\nv\n### A:\n"),
        (TRIMMED, [S, U, A, AGAIN], "<s>S<u>u<a>a<e><u>v<a>"),
        ("{{ .Prompt }} ", [U], "u "),
        ("{{ if .Prompt }}{{ .Prompt }}[{{- .Response -}}]{{ end }}", [U, A, AGAIN], "u[a]v["),
        ("{{/* newer ones use .Messages */}}.Messages {{ .Prompt }}", [U], ".Messages u"),
        ("{{ if .Tools }}x{{ end }}{{ range .Messages }}{{ .Role }}{{ .Thinking }}|{{ end }}", [S, U], "system|user|"),
    ],
)
def test_rendered(template, turns, text):
    assert served.render_go(template, turns) == text.encode()


@pytest.mark.parametrize(
    "template",
    [
        "{{ if .Response }}x{{ end }}{{ .Prompt }}",
        "{{ print .Response }}{{ .Prompt }}{{ .Response }}",
        "{{ if .Prompt }}{{ .Prompt }}{{ .Response }}{{ else }}{{ .Response }}{{ end }}",
    ],
)
def test_a_response_that_is_more_than_a_place_is_refused(template):
    """Ollama cuts the parsed template at its first mention, and fails where that leaves half a branch."""
    with pytest.raises(GateError, match=r"uses \.Response in a way that twin does not render"):
        served.render_go(template, [U])
