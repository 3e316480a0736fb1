"""What Ollama renders of messages with a Go template: ours, which ranges over them, or an older one, turn by turn.

Not obvious: a template without ``.Messages`` is rendered once an exchange, with ``.System``, ``.Prompt`` and
``.Response``, and the last exchange ends where its reply would begin.
Source: ``Execute`` and ``collate`` of ollama/template/template.go (0.33)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby

from twin.errors import GateError
from twin.records import Turn
from twin.templates import go

_REPLY = re.compile(r"\{\{-?\s*\.Response\s*-?\}\}")
# Of a request without tools that leaves thinking as it is.
_PLAIN = {"Tools": [], "Think": False, "ThinkLevel": "", "IsThinkSet": False}
_COMMENT = re.compile(r"\{\{-?\s*/\*.*?\*/\s*-?\}\}", re.DOTALL)
_ACTION = re.compile(r"\{\{.*?\}\}", re.DOTALL)
_OPENS = re.compile(r"\{\{-?\s*(if|range|end)\b")


def merged(turns: Iterable[Turn]) -> list[Turn]:
    """Return the turns as Ollama gives them to a template: neighbours of one role joined by a blank line."""
    groups = groupby(turns, key=lambda turn: turn.role)
    return [Turn(role, "\n\n".join(turn.content for turn in group)) for role, group in groups]


def render_go(source: str, turns: Sequence[Turn]) -> bytes:
    """Return what Ollama renders for merged turns.

    Args:
        source: the Go template.
        turns: merged ones; the last is the user's.

    Raises:
        GateError: the template has what twin does not render, or what Ollama does not give it.
    """
    actions = " ".join(_ACTION.findall(_COMMENT.sub("", source)))
    if ".Messages" not in actions:
        return _by_exchange(source, turns)
    messages = [
        {"Role": turn.role, "Content": turn.content, "Thinking": "", "ToolCalls": [], "ToolName": ""} for turn in turns
    ]
    system = "\n\n".join(turn.content for turn in turns if turn.role == "system")
    return go.parse(source).render({**_PLAIN, "System": system, "Messages": messages, "Response": ""})


def _opened(text: str) -> int:
    """Return how many blocks are open at the end of ``text``."""
    opened = 0
    for word in _OPENS.findall(text):
        opened = max(0, opened - 1) if word == "end" else opened + 1
    return opened


def _by_exchange(source: str, turns: Sequence[Turn]) -> bytes:
    whole = source if ".Response" in source else source + "{{ .Response }}"
    reply = _REPLY.search(whole)
    named = [action for action in _ACTION.findall(_COMMENT.sub("", whole)) if ".Response" in action]
    in_branch = re.search(r"\{\{-?\s*else", whole) and reply and _opened(whole[: reply.start()])
    if reply is None or in_branch or not all(_REPLY.fullmatch(action) for action in named):
        raise GateError(
            "The Go template uses .Response in a way that twin does not render.",
            "Write it alone and in no branch with an else, where the reply belongs: {{ .Response }}",
        )
    before = whole[: reply.start()]
    begun = before + (reply[0][:3] if reply[0].startswith("{{-") else "{{") + ' "" }}' + "{{ end }}" * _opened(before)
    out, now = b"", {"System": "", "Prompt": "", "Response": ""}
    slots = {"system": "System", "user": "Prompt", "assistant": "Response"}
    for turn in turns:
        asked = turn.role == "system" and now["Prompt"]
        if asked or (turn.role != "assistant" and now["Response"]):
            out += go.parse(whole).render({**_PLAIN, **now})
            now = dict.fromkeys(now, "")
        now[slots[turn.role]] = turn.content
    return out + go.parse(begun).render({**_PLAIN, **now})
