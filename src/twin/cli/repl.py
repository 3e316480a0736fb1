"""The conversation that ``twin chat`` holds: lines in, replies on stdout, everything else on stderr.

Not obvious: Ctrl-C and an error end what is being done and never the conversation, which is in memory alone: nothing of
it is written, the lines that can be recalled with the arrow keys included, but by /save.
"""

from __future__ import annotations

import io
import os
import select
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from twin.cli.console import Output, printable, stderr_console
from twin.errors import EXIT_OK, TwinError, UsageError, nearest

if TYPE_CHECKING:
    from twin.chat import Chat

QUOTES = '"""'
FORCE = "--force"
OWN = "-"
COMMANDS = {
    "/help": "this list",
    "/quit": "leave; so does the end of the input (Ctrl-D), or Ctrl-C twice",
    "/reset": "forget the conversation; the system prompt stays",
    "/save FILE": f"write the conversation as a row that twin train --dataset reads; {FORCE} FILE replaces a file",
    "/system": "show the system prompt",
    "/system TEXT": f"use another one in this conversation; /system {OWN} goes back to the twin's own",
}
_NAMES = {usage.split()[0] for usage in COMMANDS}
_PASTE_SECONDS = 0.05  # lines that come faster than anybody types were pasted


class Command(NamedTuple):
    """A line that is not said to the twin."""

    name: str
    argument: str


class Lines(Protocol):
    """Where messages come from."""

    terminal: bool

    def read(self) -> str:
        """Return the next message, or what there is of it.

        Raises:
            EOFError: there is none any more.
            KeyboardInterrupt: Ctrl-C.
        """


def parse(text: str) -> Command | str:
    """Return what was typed: a command, or the text to say (empty: nothing).

    A text in three double quotes is said as it stands, whatever it begins with.

    Raises:
        UsageError: no such command.
    """
    if not text.lstrip().startswith("/"):
        return unquoted(text)
    name, _, argument = text.strip().partition(" ")
    if name not in _NAMES:
        hint = f"{nearest(name, _NAMES)} To say it to the twin, put it in {QUOTES}."
        raise UsageError(f"There is no command '{name}'.", hint)
    return Command(name, unquoted(argument))


def unquoted(text: str) -> str:
    """Return a text without the quotes of a block, or without blanks around it."""
    text = text.strip()
    if not text.startswith(QUOTES):
        return text
    return text.removeprefix(QUOTES).removesuffix(QUOTES).strip("\r\n") if text != QUOTES else ""


def unfinished(text: str) -> bool:
    """Say whether a message, or a command's argument, opens a block and does not close it."""
    body = text.strip()
    if body.startswith("/"):
        body = body.partition(" ")[2].strip()
    return body.startswith(QUOTES) and (len(body) < 2 * len(QUOTES) or not body.endswith(QUOTES))


class Keyboard:
    """Standard input. A terminal has a prompt and line editing there, and lines that are pasted are one message."""

    def __init__(self) -> None:
        self.terminal = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
        self._next: list[str] = []
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")
        if self.terminal:
            with suppress(ImportError):  # Windows has none, and edits lines by itself
                import readline  # noqa: F401 - input() uses it once it is imported

    def read(self) -> str:
        """Return the next message."""
        if self._next:
            return self._next.pop()
        text = self._line("you: ")
        with suppress(EOFError):  # the end of the input ends the message; without another the next call meets it again
            while unfinished(text):
                text += "\n" + self._line("...  ")
            while not _command(text) and self._pasting():
                line = self._line("")
                if _command(line):  # typed ahead, while a reply came
                    self._next.append(line)
                    break
                text += "\n" + line
        return text

    def _line(self, prompt: str) -> str:
        if self.terminal:
            line = input(prompt)
        else:
            line = sys.stdin.readline() if sys.stdin is not None else ""
            if not line:
                raise EOFError
        return legible(line.removesuffix("\n"))

    def _pasting(self) -> bool:
        return self.terminal and os.name == "posix" and bool(select.select([sys.stdin], [], [], _PASTE_SECONDS)[0])


def legible(text: str) -> str:
    """Return a text that fits into a request: what was typed or named in another encoding has half characters."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def _command(line: str) -> bool:
    return line.strip().partition(" ")[0] in _NAMES


def converse(name: str, chat: Chat, lines: Lines, out: Output) -> int:
    """Talk until the person leaves.

    Args:
        name: what the twin is called.
        chat: the conversation.
        lines: where messages come from.
        out: where replies and everything else go.

    Returns:
        The exit code: 0, or of the last error where nobody was there to see it (input that is no terminal).
    """
    code = EXIT_OK
    leaving = False
    out.reporter().say(f"Talking with {name}. /help lists the commands, /quit leaves, Ctrl-C stops a reply.")
    while True:
        try:
            typed = lines.read()
            leaving = False
            done = parse(typed)
            if isinstance(done, str):
                if done:
                    _answer(name, chat, done, lines.terminal, out)
            elif done.name == "/quit":
                break
            else:
                _note(_obey(done, chat))
        except TwinError as error:
            out.error(error)
            code = error.exit_code
        except EOFError:
            if lines.terminal:
                _note("")
            break
        except KeyboardInterrupt:
            if not lines.terminal:
                raise
            if leaving:
                break
            leaving = True
            _note("\nType /quit to leave, or press Ctrl-C again.")
    return EXIT_OK if lines.terminal else code


def _note(text: str) -> None:
    stderr_console().print(printable(text), markup=False, style="dim")


def _answer(name: str, chat: Chat, text: str, labelled: bool, out: Output) -> None:
    """Print the reply to ``text`` as it comes, and what is to be said about it."""
    before = len(chat.turns)
    notes = []
    begun = False
    if labelled:
        out.piece(f"{name}: ")
    try:
        with closing(chat.say(text)) as pieces:
            for piece in pieces:
                shown = piece if begun else piece.lstrip()
                begun = begun or bool(shown)
                out.piece(shown)
    except KeyboardInterrupt:
        notes.append("stopped")
    finally:
        if begun or labelled:
            out.piece("\n")
    if len(chat.turns) == before:
        notes.append("the reply is empty: neither it nor your message is kept")
    if not out.quiet:
        notes += about(chat) if "stopped" not in notes else []
    if notes:
        _note(f"({', '.join(notes)})")


def about(chat: Chat) -> list[str]:
    """Return what to say of the last exchange: its tokens, and what no longer is in the prompt."""
    from twin.chat import reply_room

    counts = chat.counts
    said = [f"prompt {counts.prompt_tokens} tokens, reply {counts.reply_tokens}"]
    if counts.reply_tokens >= (most := reply_room(chat.backend.num_ctx)):
        said.append(f"cut after {most}")
    if chat.left_out:
        said.append(f"the oldest {chat.left_out} turns no longer fit and are left out")
    return said


def _obey(command: Command, chat: Chat) -> str:
    """Do what a command says; return what to tell of it.

    Raises:
        TwinError: it can't be done; the conversation is as it was.
    """
    name, argument = command
    if name == "/reset":
        chat.reset()
        return "Forgotten. The system prompt stays."
    if name == "/save":
        return f"Saved to {save(chat, argument)}"
    if name == "/system" and argument:
        chat.system = None if argument == OWN else argument
        return "The twin's own system prompt is used again." if argument == OWN else "It is used from here on."
    if name == "/system":
        return chat.system_prompt or "There is no system prompt."
    width = max(map(len, COMMANDS))
    listed = [f"{usage:{width}}  {what}" for usage, what in COMMANDS.items()]
    return "\n".join([*listed, f"{QUOTES:{width}}  opens a message of several lines, and closes it"])


def save(chat: Chat, argument: str) -> Path:
    """Write the conversation into a file, for its owner alone.

    Args:
        chat: the conversation.
        argument: the file, after ``--force`` where it may be replaced.

    Raises:
        UsageError: no file is named, it exists, or nothing was said yet.
        TwinError: it can't be written.
    """
    from twin import files

    first, _, rest = argument.partition(" ")
    force = first == FORCE
    place = (rest if force else argument).strip()
    if not place or "\0" in place:
        raise UsageError("/save needs a file's name.", "Type: /save talk.jsonl")
    path = Path(place)
    with suppress(RuntimeError):  # ~somebody: then it is a file of that name
        path = path.expanduser()
    if not chat.turns:
        raise UsageError("Nothing was said yet, so there is nothing to save.", "Say something first.")
    if os.path.lexists(path) and not force:
        raise UsageError(f"'{path}' exists already.", f"Choose another name, or replace it: /save {FORCE} {place}")
    with files.no_empty_parents(path), files.atomic_write(path) as handle:
        handle.write(chat.row())
    return path
