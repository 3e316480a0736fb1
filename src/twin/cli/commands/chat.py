"""``twin chat``: talk with a twin."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twin.cli import options
from twin.cli.console import Output

if TYPE_CHECKING:
    from twin.chat import Backend

NAME = "chat"
HELP = """Talk with a twin, through Ollama or straight from its GGUF; both are asked the same, id for id.

In the conversation: /help lists the commands (/reset, /save FILE, /system TEXT, /quit), \"\"\" opens and closes a
message of several lines, Ctrl-C stops a reply. Nothing is written but by /save.

Examples:

  twin chat chirag-v1

  twin chat chirag-v1 --message "are you coming on sunday?"

  twin chat chirag-v1 --gguf adapters/chirag-v1/model-q4_k_m.gguf --system "Answer in one word."
"""


def command(
    name: Annotated[str, typer.Argument(help="The model's name in Ollama, or the run's.")],
    message: Annotated[str | None, typer.Option(help="Say this, print the answer, and end; - reads stdin.")] = None,
    system: Annotated[str | None, typer.Option(help="Another system prompt, for this conversation.")] = None,
    gguf: Annotated[Path | None, typer.Option(help="Answer from this GGUF, without Ollama.")] = None,
    host: options.Host = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Chat."""
    from twin.chat import Chat
    from twin.cli.repl import Keyboard, converse, legible
    from twin.errors import UsageError

    out = Output(json, quiet, verbose)
    if json and message is None:
        raise UsageError("--json needs --message.", f'Type: twin chat {name} --json --message "hello"')
    if message == "-":
        message = sys.stdin.buffer.read().decode("utf-8", "replace")
    if message is not None and not message.strip():
        raise UsageError("--message is empty.", f'Type: twin chat {name} --message "hello"')
    with ExitStack() as stack:
        chat = Chat(_backend(name, gguf, host, stack), legible(system) if system else None)
        if message is None:
            return converse(name, chat, Keyboard(), out)
        reply = "".join(chat.say(legible(message))).strip()
        if not reply:
            out.reporter().say("The reply is empty.")
        counts = chat.counts
        data = {"reply": reply, "prompt_tokens": counts.prompt_tokens, "reply_tokens": counts.reply_tokens}
        out.result(data, [reply])
    return 0


def _backend(name: str, gguf: Path | None, host: str | None, stack: ExitStack) -> Backend:
    """Return who answers; a GGUF stays open until ``stack`` closes."""
    from twin.settings import load_settings

    settings = load_settings(ollama={"host": host})
    if gguf is None:
        from twin.chat import OllamaBackend
        from twin.errors import UsageError
        from twin.ollama.client import OllamaClient
        from twin.ollama.modelfile import model_name

        model_name(name)
        client = stack.enter_context(OllamaClient(settings.ollama.host))
        client.version()
        if not client.exists(name):
            raise UsageError(f"Ollama at {client.url} has no model '{name}'.", f"Register it: twin register {name}")
        return OllamaBackend.of(client, name)
    from twin import pipeline

    return stack.enter_context(pipeline.gguf_backend(gguf, settings))
