"""``twin chat``: talk with a twin."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twin.cli import options
from twin.cli.console import Output, printable

if TYPE_CHECKING:
    from twin.chat import Backend, Chat

NAME = "chat"
HELP = """Talk with a twin, through Ollama or straight from its GGUF.

In the conversation: /quit leaves, Ctrl-C stops a reply.

Examples:

  twin chat chirag-v1

  twin chat chirag-v1 --message "are you coming on sunday?"

  twin chat chirag-v1 --gguf adapters/chirag-v1/model-q4_k_m.gguf
"""


def command(
    name: Annotated[str, typer.Argument(help="The model's name in Ollama, or the run's.")],
    message: Annotated[str | None, typer.Option(help="Say this, print the answer, and end.")] = None,
    gguf: Annotated[Path | None, typer.Option(help="Answer from this GGUF, without Ollama.")] = None,
    host: options.Host = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Chat."""
    from twin.chat import Chat
    from twin.errors import UsageError

    out = Output(json, quiet, verbose)
    if json and message is None:
        raise UsageError("--json needs --message.", f'Type: twin chat {name} --json --message "hello"')
    if message is not None and not message.strip():
        raise UsageError("--message is empty.", f'Type: twin chat {name} --message "hello"')
    with ExitStack() as stack:
        chat = Chat(_backend(name, gguf, host, stack))
        if message is not None:
            reply = "".join(chat.say(message)).strip()
            data = {
                "reply": reply, "prompt_tokens": chat.counts.prompt_tokens, "reply_tokens": chat.counts.reply_tokens,
            }  # fmt: skip
            out.result(data, [reply])
            return
        _converse(name, chat)


def _backend(name: str, gguf: Path | None, host: str | None, stack: ExitStack) -> Backend:
    """Return who answers; a GGUF stays open until ``stack`` closes."""
    from twin.settings import load_settings

    settings = load_settings(ollama={"host": host})
    if gguf is None:
        from twin.chat import OllamaBackend
        from twin.errors import UsageError
        from twin.ollama.client import OllamaClient

        client = OllamaClient(settings.ollama.host)
        client.version()
        if not client.exists(name):
            raise UsageError(f"Ollama at {client.url} has no model '{name}'.", f"Register it: twin register {name}")
        return OllamaBackend(client, name)
    from twin import pipeline

    return stack.enter_context(pipeline.gguf_backend(gguf))


def _converse(name: str, chat: Chat) -> None:
    sys.stderr.write(f"Talking with {name}. /quit leaves, Ctrl-C stops a reply.\n")
    while True:
        try:
            text = input("you: ").strip()
        except (EOFError, KeyboardInterrupt):
            sys.stderr.write("\n")
            return
        if text == "/quit":
            return
        if not text:
            continue
        if text.startswith("/"):
            sys.stderr.write(f"There is no command {text.split()[0]}. /quit leaves.\n")
            continue
        sys.stdout.write(f"{name}: ")
        try:
            for piece in chat.say(text):
                sys.stdout.write(printable(piece))
                sys.stdout.flush()
        except KeyboardInterrupt:
            sys.stderr.write(" (stopped)")
        sys.stdout.write("\n")
