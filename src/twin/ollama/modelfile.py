"""The Modelfile that people read and ``ollama create -f`` takes. twin itself registers over JSON, which loses nothing.

Not obvious: the grammar has no escapes. It drops every character that is not printable (joined emoji fall apart), and
a quoted text ends at the first line that ends in three quotes. So text that people wrote is rewritten where it must
be, and a comment says so; in a template or a stop, where each byte counts, the same is an error.
Source: ``parser/parser.go`` of https://github.com/ollama/ollama
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from twin.errors import GateError, UsageError, file_errors
from twin.foreign import bounded, one_line
from twin.templates import Family

_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"
_MODEL_NAME = re.compile(
    rf"(?:(?:[A-Za-z0-9_][A-Za-z0-9_.:-]{{0,349}}/)?[A-Za-z0-9_][A-Za-z0-9_-]{{0,79}}/)?{_PART}(?::{_PART})?"
)
_COMMANDS = ("from", "adapter", "license", "template", "system", "requires", "renderer", "parser")
_KEYED = ("parameter ", "message ")
_GRAMMAR = "See https://github.com/ollama/ollama/blob/main/docs/modelfile.md"
_LINE = re.compile(r"([^\r\n]*)([\r\n]|\Z)")


class Read(NamedTuple):
    """What somebody's Modelfile says of prompts.

    Args:
        template: the Go template; None where it has none.
        stops: the values of ``PARAMETER stop``.
        commands: every command that it holds, in small letters and without the word behind it.
    """

    template: str | None
    stops: list[str]
    commands: list[str]


def read_modelfile(path: Path) -> Read:
    """Return what a Modelfile of anybody's says of prompts, read as Ollama reads it; the last TEMPLATE counts.

    Raises:
        UsageError: it can't be read, it is no text, or Ollama would refuse it.
    """
    with file_errors(path, "read"):
        raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"'{path}' is no UTF-8 text.", "Name a Modelfile.") from None
    commands = parse(text, f"'{path}'")
    for name, _ in commands:
        if name not in _COMMANDS and not name.startswith(_KEYED):
            raise UsageError(f"'{path}' has a command {name!r}, which Ollama does not know.", "See ollama help create.")
    templates = [value for name, value in commands if name == "template"]
    stops = [value for name, value in commands if name == "parameter stop"]
    return Read(templates[-1] if templates else None, stops, [name.partition(" ")[0] for name, _ in commands])


def parse(text: str, whose: str = "The Modelfile") -> list[tuple[str, str]]:  # noqa: PLR0912 - one state machine
    """Return the commands of a Modelfile and their values, read character by character as Ollama reads them.

    Commands come in small letters; ``parameter`` and ``message`` with the word behind them, as it is written.

    Raises:
        UsageError: a name that is none, or a value that does not end.
    """
    found: list[tuple[str, str]] = []
    state, name, buffer = "nil", "", ""
    for char in text:
        blank, end = char in " \t", char in "\r\n"
        if state == "comment":
            state = "nil" if end else state
        elif state == "nil":
            if char == "#":
                state = "comment"
            elif not blank and not end:
                state, buffer = "name", char
        elif state in ("name", "key"):
            if blank:
                name = f"{name} {buffer}" if state == "key" else buffer.lower()
                state = "key" if state == "name" and name in ("parameter", "message") else "value"
                buffer = ""
            elif char.isascii() and (char.isalnum() or char in "_-"):
                buffer += char
            else:
                raise UsageError(f"{whose} has no command in {bounded(one_line(buffer + char), 80)!r}.", _GRAMMAR)
        elif blank or end:
            value = _unquoted(buffer.strip())
            if value is None or blank:
                buffer += char
            else:
                found.append((name, value))
                state, buffer = "nil", ""
        elif char.isprintable():
            buffer += char
    value = _unquoted(buffer.strip()) if state == "value" else None
    if state == "value" and value is not None:
        found.append((name, value))
    elif state not in ("nil", "comment"):
        raise UsageError(f"{whose} ends in the middle of a command.", _GRAMMAR)
    return found


def _unquoted(value: str) -> str | None:
    """Return a value without its quotes; None where they are not closed."""
    for quotes in ('"""', '"'):
        if value.startswith(quotes):
            whole = len(value) >= 2 * len(quotes) and value.endswith(quotes)
            return value[len(quotes) : -len(quotes)] if whole else None
    return value


def model_name(name: str) -> str:
    """Return ``name`` when Ollama takes it: ``[host/][namespace/]model[:tag]``.

    Raises:
        UsageError: a character, a length or a tag that it refuses, or would not treat as a model of this machine.
    """
    if not _MODEL_NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' can't be a model's name in Ollama.",
            "Write [namespace/]model[:tag]: each part at most 80 letters, digits, '-', '_' and '.' (no '.' in a "
            "namespace), beginning with a letter, a digit or '_'.",
        )
    tag = name.rpartition("/")[2].partition(":")[2].lower()
    # Ollama sends what is asked of such a name to its own site, and a twin's prompts are private.
    if tag in ("cloud", "local") or tag.endswith("-cloud"):
        raise UsageError(
            f"Ollama keeps the tag of '{name}' for itself: it says where a model runs.", "Choose another tag."
        )
    return name


def modelfile(
    gguf_name: str, family: Family, system: str, parameters: Mapping[str, Any], license_text: str = ""
) -> str:
    """Return a Modelfile that Ollama reads as what is meant here, or says where it can't.

    Args:
        gguf_name: the model's file: beside the Modelfile, or an absolute path.
        family: the template pair; its stops become parameters.
        system: the system prompt, or nothing.
        parameters: e.g. ``temperature`` and ``num_ctx``; a value may be a list.
        license_text: the base model's license, or nothing.

    Raises:
        GateError: a template, a stop or another value that the grammar can't hold.
    """
    if gguf_name != gguf_name.strip() or gguf_name.startswith('"') or not gguf_name.isprintable() or not gguf_name:
        raise GateError(
            f"A Modelfile can't name the file {gguf_name!r}.", "Rename it: letters, digits, '-', '_' and '.'."
        )
    parts = [
        "# For people, and for: ollama create NAME -f Modelfile. 'twin register' tells Ollama the same over JSON.",
        f"FROM {gguf_name if Path(gguf_name).is_absolute() else f'./{gguf_name}'}",
        f"TEMPLATE {_exact(family.go, f'the Go template of {family.name}')}",
    ]
    for key, value in {"stop": family.stops, **parameters}.items():
        if not re.fullmatch(r"[A-Za-z0-9_]+", key):
            raise GateError(f"A Modelfile has no parameter {key!r}.", "Use Ollama's names, e.g. temperature.")
        values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        parts += [f"PARAMETER {key} {_value(one, key)}" for one in values]
    parts += _prose("SYSTEM", system) + _prose("LICENSE", license_text)
    return "\n".join(parts) + "\n"


def _value(value: Any, key: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    if isinstance(value, str) and value:
        return _exact(value, f"the parameter {key}")
    raise GateError(f"A Modelfile can't hold {value!r} as {key}.", "Use a number, true or false, or a text.")


def _exact(text: str, what: str) -> str:
    dropped = _dropped(text)
    if dropped:
        raise GateError(
            f"A Modelfile can't hold {what}: Ollama would drop {_names(dropped)}.",
            'Write the character in the template as an escape, e.g. {{ "\\u00a0" }}.',
        )
    if _closing_lines(text):
        raise GateError(
            f"A Modelfile can't hold {what}: three quotes at the end of a line would end it there.",
            "Write them as an escape, or put something behind them on the line.",
        )
    return f'"""{text}"""'


def _prose(command: str, text: str) -> list[str]:
    """Return the command for a text that people wrote, with comments on what the file could not keep."""
    if not text:
        return []
    if re.search("[\ud800-\udfff]", text):
        raise GateError(f"The {command} text holds half a character (a lone surrogate).", "Save it again as UTF-8.")
    notes = []
    if dropped := _dropped(text):
        notes.append(
            f"# 'ollama create' drops characters of this {command}: {_names(dropped)}. "
            "The JSON registration of 'twin register' keeps them."
        )
    if closing := _closing_lines(text):
        notes.append(
            f"# Three quotes at a line's end would end this {command}, so they are written ''' here. "
            "The JSON registration of 'twin register' keeps them."
        )
        lines = [list(found.groups()) for found in _LINE.finditer(text)]
        for at in closing:
            kept = _kept(lines[at][0])
            solid = kept.rstrip()
            lines[at][0] = solid[:-3] + "'''" + kept[len(solid) :]
        text = "".join(line + end for line, end in lines)
    return [*notes, f'{command} """{text}"""']


def _kept(text: str) -> str:
    # Go's unicode.IsPrint and Python's isprintable are one rule; only the Unicode version behind them may differ.
    return "".join(char for char in text if char.isprintable() or char in "\t\r\n")


def _dropped(text: str) -> list[str]:
    return sorted({char for char in text if not char.isprintable()} - {"\t", "\r", "\n"})


def _names(chars: Sequence[str]) -> str:
    names = ", ".join(f"U+{ord(char):04X}" for char in chars[:8])
    return names + (f" and {len(chars) - 8} more" if len(chars) > 8 else "")


def _closing_lines(text: str) -> list[int]:
    """Return the numbers of the lines at whose end the parser would close the text too early.

    The parser looks at every line end (CR and LF each are one) after it dropped characters and trimmed blanks. The
    last line ends in the quotes that are meant to close, so it may hold anything.
    """
    lines = re.split(r"[\r\n]", text)
    return [at for at, line in enumerate(lines[:-1]) if _kept(line).rstrip().endswith('"""')]
