"""Rows as JSON, both ways: ``chatml``, ``alpaca``, ``sharegpt`` and ``raw``.

Writing and reading are inverse; only ``raw`` leaves the system prompt out. Its ``text`` is speakers' names and words,
and ``spans`` beside it says where each turn's words are, so that a name inside a message is no new turn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from twin.errors import UsageError, file_errors
from twin.records import KINDS, Example, Role, Turn

_SHAREGPT_ROLES: dict[str, Role] = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
}  # fmt: skip


_SPEAKER = re.compile(r"([^:\n]{1,60}): (.*)")


def _system_of(example: Example) -> tuple[str, tuple[Turn, ...]]:
    if example.turns[0].role == "system":
        return example.turns[0].content, example.turns[1:]
    return "", example.turns


def _chatml(example: Example, person: str) -> dict[str, Any]:
    return {"messages": [{"role": turn.role, "content": turn.content} for turn in example.turns]}


def _alpaca(example: Example, person: str) -> dict[str, Any]:
    system, turns = _system_of(example)
    history = [[ask.content, answer.content] for ask, answer in zip(turns[:-2:2], turns[1:-2:2], strict=True)]
    return {
        "system": system,
        "instruction": turns[-2].content,
        "input": "",
        "output": example.reply,
        "history": history,
    }


def _sharegpt(example: Example, person: str) -> dict[str, Any]:
    system, turns = _system_of(example)
    return {
        "system": system,
        "conversations": [{"from": "human" if turn.role == "user" else "gpt", "value": turn.content} for turn in turns],
    }


def _raw(example: Example, person: str) -> dict[str, Any]:
    _, turns = _system_of(example)
    other = f"{example.other}: " if example.other else ""
    text = ""
    spans: list[dict[str, Any]] = []
    for turn in turns:
        text += ("\n" if text else "") + (other if turn.role == "user" else f"{person}: ")
        spans.append({"role": turn.role, "start": len(text), "stop": len(text) + len(turn.content)})
        text += turn.content
    return {"text": text, "spans": spans}


WRITERS: dict[str, Callable[[Example, str], dict[str, Any]]] = {
    "chatml": _chatml, "alpaca": _alpaca, "sharegpt": _sharegpt, "raw": _raw,
}  # fmt: skip


def to_line(example: Example, format_name: str, person: str) -> bytes:
    """Return the row as one line of JSON with its id, line end included."""
    about = {"id": example.id, "conversation": example.conversation_id, "kind": example.kind}
    return orjson.dumps(WRITERS[format_name](example, person) | about) + b"\n"


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a text is expected")
    return value


def _turns(row: Any) -> list[Turn]:
    if not isinstance(row, dict):
        raise TypeError("a JSON object is expected")
    if "messages" in row:
        return [Turn(_SHAREGPT_ROLES[item["role"]], _text(item["content"])) for item in row["messages"]]
    system = [Turn("system", _text(row["system"]))] if row.get("system") else []
    if "conversations" in row:
        return system + [Turn(_SHAREGPT_ROLES[item["from"]], _text(item["value"])) for item in row["conversations"]]
    if "instruction" in row:
        for ask, answer in row.get("history") or []:
            system += [Turn("user", _text(ask)), Turn("assistant", _text(answer))]
        asked = "\n".join(part for part in (_text(row["instruction"]), _text(row.get("input") or "")) if part)
        return [*system, Turn("user", asked), Turn("assistant", _text(row["output"]))]
    if "context" in row:  # how the app keeps an exchange
        return [*system, Turn("user", _text(row["context"])), Turn("assistant", _text(row["response"]))]
    if "text" in row:
        text = _text(row["text"])
        if "spans" in row:
            return [Turn(_SHAREGPT_ROLES[one["role"]], text[one["start"] : one["stop"]]) for one in row["spans"]]
        return _spoken(text)
    raise KeyError("messages, conversations, instruction, context or text")


def _joined(turns: Sequence[Turn]) -> list[Turn]:
    """Return the turns with neighbours of one role joined by a blank line, as Ollama joins them in a request."""
    done: list[Turn] = []
    for turn in turns:
        if done and done[-1].role == turn.role:
            done[-1] = Turn(turn.role, f"{done[-1].content}\n\n{turn.content}")
        else:
            done.append(turn)
    return done


def _spoken(text: str) -> list[Turn]:
    """Return the turns of lines ``Name: words``; who speaks last is whose replies are learned."""
    lines = [(match[1], match[2]) if (match := _SPEAKER.match(line)) else ("", line) for line in text.split("\n")]
    person = next((name for name, _ in reversed(lines) if name), None)
    if person is None or not lines[0][0]:
        raise ValueError("a text is expected in which each speaker's words begin with 'Name: '")
    turns: list[Turn] = []
    for name, words in lines:
        role: Role = turns[-1].role if not name else "assistant" if name == person else "user"
        if turns and turns[-1].role == role:
            turns[-1] = Turn(role, f"{turns[-1].content}\n{words}")
        else:
            turns.append(Turn(role, words))
    return turns


def read_rows(path: Path) -> Iterator[Example]:
    """Yield the rows of a JSONL file, ours or another tool's.

    Rows with our ``id`` and ``kind`` learn their last reply; rows of other tools learn each assistant turn. Empty lines
    are passed over.

    Raises:
        UsageError: unreadable file, or the first line that is no such row, with its number.
    """
    with file_errors(path, "read"), path.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            try:
                row = orjson.loads(line.removeprefix(b"\xef\xbb\xbf"))
                turns = _turns(row)
            except orjson.JSONDecodeError as error:
                raise UsageError(
                    f"Line {number} of '{path}' is broken JSON: {error.msg}.", "It may be cut short: twin export"
                ) from None
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise UsageError(
                    f"Line {number} of '{path}' is no chat row ({error}).",
                    "Use chatml, alpaca, sharegpt or raw rows: twin export --format chatml",
                ) from None
            turns = _joined(turns)
            while turns and turns[-1].role != "assistant":
                turns.pop()
            if not any(turn.role == "user" for turn in turns):
                raise UsageError(f"Line {number} of '{path}' has no reply to learn.", "Take it out, or export again.")
            row_id = row.get("id")
            ours = isinstance(row_id, str) and row.get("kind") in KINDS
            yield Example(
                id=row_id if ours else f"{path.name}:{number}",
                conversation_id=str(row.get("conversation", row_id)) if ours else f"{path.name}:{number}",
                kind=row["kind"] if ours else "chat",
                turns=tuple(turns),
                every_reply=not ours,
            )
