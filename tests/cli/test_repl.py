"""The conversation as typed: at a terminal that is a real one (a pty), and through a pipe; Ollama is on loopback."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Twin, listing
from twin.cli.repl import COMMANDS, Command, parse, unfinished
from twin.dataset.formats import read_rows
from twin.errors import UsageError
from twin.records import Turn

posix = pytest.mark.skipif(sys.platform == "win32", reason="a pty")


@dataclass
class Server:
    """An Ollama that answers by what it is asked, and keeps what that was."""

    url: str = ""
    asked: list[list[dict[str, str]]] = field(default_factory=list)
    hung_up: threading.Event = field(default_factory=threading.Event)

    def pieces(self, text: str) -> Iterator[str]:
        """What is said to ``text``; ``None`` in it cuts the stream."""
        if text == "count":
            yield from (f"{number} " for number in range(2000))
        elif text == "die":
            yield "half a "
            raise ConnectionAbortedError
        elif text == "escape":
            yield "\x1b[2J\rred"
        elif text != "nothing":
            yield "  I heard: "
            yield text


@pytest.fixture
def server() -> Iterator[Server]:
    kept = Server()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def reply(self, value: Any, more: bool = False) -> None:
            if not more:
                self.send_response(200)
                self.end_headers()
            self.wfile.write(json.dumps(value).encode() + b"\n")

        def do_GET(self) -> None:
            self.reply({"version": "0.33.0"})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/api/show":
                self.reply({"system": "Be Wren.\x1b[2J", "parameters": "num_ctx 1024\n"})
                return
            kept.asked.append(asked["messages"])
            self.send_response(200)
            self.end_headers()
            try:
                for piece in kept.pieces(asked["messages"][-1]["content"]):
                    self.reply({"message": {"content": piece}, "done": False}, more=True)
                    time.sleep(0.01)
            except ConnectionAbortedError:
                return
            except OSError:
                kept.hung_up.set()
                return
            said = "".join(one["content"] for one in asked["messages"])
            count = {"prompt_eval_count": max(31, len(said) // 4), "eval_count": 256 if said.endswith("go on") else 7}
            self.reply({"message": {"content": ""}, "done": True, **count}, more=True)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        kept.url = f"http://127.0.0.1:{listener.server_address[1]}"
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        yield kept
        listener.shutdown()


# ---------------------------------------------------------------- what a line means


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("  hello there ", "hello there"),
        ("", ""),
        ("a / b", "a / b"),
        ("/quit", Command("/quit", "")),
        ("  /save  my talk.jsonl ", Command("/save", "my talk.jsonl")),
        ("/system - ", Command("/system", "-")),
        ("/system You are Sam. Be brief.", Command("/system", "You are Sam. Be brief.")),
        ('/system """You are Sam.\n  Be brief."""', Command("/system", "You are Sam.\n  Be brief.")),
        ('"""\n/quit\n  two\n"""', "/quit\n  two"),
        ('"""one line"""', "one line"),
        ('"""', ""),
        ('""""""', ""),
        ('""', '""'),
        ('say """x""" now', 'say """x""" now'),
    ],
)
def test_what_is_typed(typed: str, meant: Command | str) -> None:
    assert parse(typed) == meant


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("/rest", "Did you mean '/reset' or '/system'?"),
        ("/etc/hosts is odd", "Known: /help, /quit"),
        ("/", "Known: /help"),
    ],
)
def test_a_command_that_is_none(typed: str, hint: str) -> None:
    with pytest.raises(UsageError, match=f"There is no command '{typed.split()[0]}'.") as caught:
        parse(typed)
    assert caught.value.hint.startswith(hint)
    assert caught.value.hint.endswith('To say it to the twin, put it in """.')


@pytest.mark.parametrize(
    ("text", "open_"),
    [
        ('"""', True), ('"""a', True), ('"""a\nb', True), ('"""a"""', False), ('""""""', False), ('""""', True),
        ('a """', False), ("a", False), ("", False), ('/system """a', True), ('/system """a"""', False),
        ('"""a\n"""  ', False),
    ],
)  # fmt: skip
def test_which_text_goes_on(text: str, open_: bool) -> None:
    assert unfinished(text) is open_


# ---------------------------------------------------------------- through a pipe


@dataclass
class Talk:
    """What came of lines that were piped in."""

    code: int
    out: str
    err: str


@pytest.fixture
def talk(twin: Twin, server: Server, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Talk]:
    def run(typed: str | bytes, *options: str) -> Talk:
        data = typed if isinstance(typed, bytes) else typed.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        done = twin("chat", "wren", "--host", server.url, *options)
        return Talk(done.returncode, done.stdout, done.stderr)

    return run


GREETING = "Talking with wren. /help lists the commands, /quit leaves, Ctrl-C stops a reply.\n"
COUNTS = "(prompt 31 tokens, reply 7)\n"


def test_replies_alone_are_on_stdout(talk: Callable[..., Talk]) -> None:
    assert talk("hello\n\n \nand you\n") == Talk(0, "I heard: hello\nI heard: and you\n", GREETING + COUNTS + COUNTS)
    assert talk("hello\n", "--quiet") == Talk(0, "I heard: hello\n", "")
    assert talk("") == Talk(0, "", GREETING)
    assert talk("/quit\nhello\n", "--quiet") == Talk(0, "", "")


def test_each_message_is_sent_under_the_system_prompt_with_what_was_said(
    talk: Callable[..., Talk], server: Server
) -> None:
    talk("one\ntwo\n/reset\nthree\n/system Be Sam.\nfour\n/reset\nfive\n/system -\nsix\n")
    said = [[(one["role"][0], one["content"].removesuffix("\x1b[2J")) for one in asked] for asked in server.asked]
    own, other = ("s", "Be Wren."), ("s", "Be Sam.")
    assert said == [
        [own, ("u", "one")],
        [own, ("u", "one"), ("a", "I heard: one"), ("u", "two")],
        [own, ("u", "three")],
        [other, ("u", "three"), ("a", "I heard: three"), ("u", "four")],
        [other, ("u", "five")],
        [own, ("u", "five"), ("a", "I heard: five"), ("u", "six")],
    ]


def test_blocks_are_one_message(talk: Callable[..., Talk], server: Server) -> None:
    done = talk('"""\n/quit\n\n  two\n"""\n"""never closed\n')
    assert [asked[-1]["content"] for asked in server.asked] == ["/quit\n\n  two", "never closed"]
    assert (done.code, done.out) == (0, "I heard: /quit\n\n  two\nI heard: never closed\n")


def test_help_and_the_system_prompt_are_shown_and_move_no_cursor(talk: Callable[..., Talk]) -> None:
    done = talk("/help\n/system\n/system Be Sam.\n/system\n", "--quiet")
    assert (done.code, done.out) == (0, "")
    for usage, what in COMMANDS.items():
        assert re.search(rf"^{re.escape(usage)} +{re.escape(what)}$", done.err, re.MULTILINE)
    assert '\n"""' in done.err
    assert done.err.endswith("Be Wren.\ufffd[2J\nIt is used from here on.\nBe Sam.\n")
    assert talk("escape\n", "--quiet").out == "\ufffd[2J\ufffdred\n"


def test_an_empty_reply_is_said_to_be_one_and_is_not_kept(talk: Callable[..., Talk], server: Server) -> None:
    done = talk("one\nnothing\ntwo\n", "--quiet")
    assert done.out == "I heard: one\nI heard: two\n"
    assert done.err == "(the reply is empty: neither it nor your message is kept)\n"
    assert [one["content"] for one in server.asked[2][1:]] == ["one", "I heard: one", "two"]
    assert talk("", "--message", "nothing").err == "The reply is empty.\n"
    assert talk("", "--message", "one").err == ""


def test_an_error_ends_a_reply_and_not_the_conversation(talk: Callable[..., Talk], server: Server) -> None:
    done = talk("one\ndie\n/nope\ntwo\n", "--quiet")
    assert done.out == "I heard: one\nhalf a \nI heard: two\n"
    assert "stopped in the middle of a reply of 'wren'.\nHint: See Ollama's log" in done.err
    assert "Error: There is no command '/nope'.\nHint: Known: /help" in done.err
    assert done.code == 2  # the last error's: nobody may have been there to see it
    assert talk("die\n").code == 4
    assert [one["content"] for one in server.asked[2][1:]] == ["one", "I heard: one", "two"]


def test_saving(talk: Callable[..., Talk], isolated: Path) -> None:
    Path("folder").mkdir()
    Path("old.jsonl").write_text("precious")
    done = talk(
        "/save early.jsonl\none\n/save my talk.jsonl\n/save my talk.jsonl\n/save old.jsonl\n/save folder\n/save\n"
        "/save old.jsonl/x.jsonl\n/save --force folder\n/save --force\n/save a\0b\ntwo\n/save --force my talk.jsonl\n"
        "/save ~/at home/talk.jsonl\n",
        "--quiet",
    )
    assert done.out == "I heard: one\nI heard: two\n"
    assert done.err == (
        "Error: Nothing was said yet, so there is nothing to save.\nHint: Say something first.\n"
        "Saved to my talk.jsonl\n"
        "Error: 'my talk.jsonl' exists already.\n"
        "Hint: Choose another name, or replace it: /save --force my talk.jsonl\n"
        "Error: 'old.jsonl' exists already.\nHint: Choose another name, or replace it: /save --force old.jsonl\n"
        "Error: 'folder' exists already.\nHint: Choose another name, or replace it: /save --force folder\n"
        "Error: /save needs a file's name.\nHint: Type: /save talk.jsonl\n"
        "Error: 'old.jsonl/x.jsonl' can't be used: a file stands where a folder is needed.\nHint: Move it away.\n"
        "Error: 'folder' is a folder where a file was expected.\nHint: Name a file inside it.\n"
        "Error: /save needs a file's name.\nHint: Type: /save talk.jsonl\n"
        "Error: /save needs a file's name.\nHint: Type: /save talk.jsonl\n"
        "Saved to my talk.jsonl\n"
        f"Saved to {Path.home() / 'at home' / 'talk.jsonl'}\n"
    )
    assert set(listing()) == {"my talk.jsonl", "old.jsonl"}
    assert Path("old.jsonl").read_text() == "precious"
    (row,) = read_rows(Path("my talk.jsonl"))
    assert list(row.turns) == [
        Turn("system", "Be Wren.\x1b[2J"), Turn("user", "one"), Turn("assistant", "I heard: one"),
        Turn("user", "two"), Turn("assistant", "I heard: two"),
    ]  # fmt: skip
    if os.name == "posix":
        assert Path("my talk.jsonl").stat().st_mode & 0o777 == 0o600


def test_what_left_the_prompt_is_told(talk: Callable[..., Talk], server: Server) -> None:
    done = talk(("word " * 100).strip() + "\n" + ("word " * 99 + "more\n") * 5 + "go on\n/save all.jsonl\n")
    told = re.findall(r"^\(prompt \d+ tokens, reply \d+(.*)\)$", done.err, re.MULTILINE)
    assert told[0] == ""
    assert told[-2:] == [
        ", the oldest 6 turns no longer fit and are left out",
        ", cut after 256, the oldest 8 turns no longer fit and are left out",
    ]
    assert len(server.asked[-1]) == 1 + 4 + 1  # the system prompt, what stays of six exchanges, the message
    (row,) = read_rows(Path("all.jsonl"))
    assert len(row.turns) == 1 + 14


def test_bytes_that_are_no_text_are_no_traceback(talk: Callable[..., Talk], server: Server) -> None:
    assert talk(b"caf\xe9\n", "--quiet") == Talk(0, "I heard: caf\ufffd\n", "")
    assert talk("", "--message", "a\udce9b") == Talk(0, "I heard: a\ufffd\ufffd\ufffdb\n", "")
    assert talk("", "--message", "a", "--system", "\udce9").code == 0


def test_a_message_and_a_system_prompt_of_the_command_line(talk: Callable[..., Talk], server: Server) -> None:
    done = talk("from a\nfile \n", "--message", "-", "--json", "--system", "Be Sam.")
    assert json.loads(done.out) == {"reply": "I heard: from a\nfile", "prompt_tokens": 31, "reply_tokens": 7}
    assert server.asked == [[{"role": "system", "content": "Be Sam."}, {"role": "user", "content": "from a\nfile \n"}]]
    assert talk(" \n", "--message", "-").code == 2


def test_a_model_that_runs_elsewhere_is_not_talked_to(twin: Twin, server: Server) -> None:
    done = twin("chat", "wren:120b-cloud", "--host", server.url, "--message", "my secret")
    assert (done.returncode, server.asked) == (2, [])
    assert done.stderr.startswith("Error: Ollama keeps the tag of 'wren:120b-cloud' for itself")


# ---------------------------------------------------------------- at a terminal


class Terminal:
    """``twin chat`` on a pty that is its terminal: what is typed reaches it as a person's keys do, Ctrl-C too."""

    def __init__(self, *arguments: str, term: str = "dumb") -> None:
        import fcntl
        import termios

        def at_the_keys() -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a test in the background passes on an ignored one
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.keys, side = os.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "twin", "chat", *arguments], stdin=side, stdout=side, stderr=side,
            env={**os.environ, "TERM": term}, start_new_session=True,
            preexec_fn=at_the_keys,  # noqa: PLW1509
        )  # fmt: skip
        os.close(side)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self.keys, text.encode())

    def interrupt(self, wanted: str) -> None:
        """Press Ctrl-C until the terminal shows ``wanted``.

        Python's readline may be about to wait for a key when the signal comes, and then hears of it at the next one;
        both presses are one interruption by then.
        """
        for _ in range(5):
            self.type("\x03")
            deadline = time.monotonic() + 20
            while wanted not in self.shown and time.monotonic() < deadline:
                self._read()
            if wanted in self.shown:
                break
        self.see(wanted)

    def interrupt_until_it_ends(self) -> int:
        """Press Ctrl-C until it left; return its exit code. See ``interrupt`` for why once may not do."""
        for _ in range(10):
            self.type("\x03")
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(5)
        pytest.fail(f"Ctrl-C does not end it: {self.shown!r}")

    def _read(self) -> None:
        if select.select([self.keys], [], [], 1)[0]:
            self.shown += os.read(self.keys, 65536).decode("utf-8", "replace").replace("\r\n", "\n")

    def see(self, wanted: str) -> str:
        """Wait until the terminal shows ``wanted``; return what it showed until then, since the last call."""
        deadline = time.monotonic() + 300
        while wanted not in self.shown:
            assert time.monotonic() < deadline, (wanted, self.shown)
            try:
                self._read()
            except OSError:
                pytest.fail(f"it ended before it showed {wanted!r}: {self.shown!r}")
        before, _, self.shown = self.shown.partition(wanted)
        return before

    def end(self) -> tuple[int, str]:
        """Wait until it left; return its exit code and what it still showed."""
        with contextlib.suppress(OSError):  # how a pty says that nobody is at its other side
            while data := os.read(self.keys, 65536):
                self.shown += data.decode("utf-8", "replace").replace("\r\n", "\n")
        return self.process.wait(60), self.shown


@pytest.fixture
def terminal(server: Server) -> Iterator[Callable[..., Terminal]]:
    made: list[Terminal] = []

    def start(*options: str, term: str = "dumb") -> Terminal:
        made.append(Terminal("wren", "--host", server.url, *options, term=term))
        return made[-1]

    yield start
    for one in made:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.process.pid, signal.SIGKILL)
        one.process.wait()
        os.close(one.keys)


@posix
def test_ctrl_c_stops_a_reply_and_not_the_program(
    terminal: Callable[..., Terminal], server: Server, isolated: Path
) -> None:
    screen = terminal()
    screen.see("you: ")
    screen.type("hello\n")
    screen.see("wren: I heard: hello\n(prompt 31 tokens, reply 7)\nyou: ")
    screen.type("count\n")
    screen.see("0 1 2 ")
    screen.type("\x03")
    shown = f"0 1 2 {screen.see('(stopped)')}"
    screen.see("you: ")
    assert server.hung_up.wait(30)  # the server's work ends with the stream
    screen.type("and\n")
    screen.see("I heard: and")
    kept = server.asked[2]
    assert [one["role"] for one in kept] == ["system", "user", "assistant", "user", "assistant", "user"]
    numbers = kept[4]["content"].split()
    assert numbers == [str(number) for number in range(len(numbers))]
    assert 3 <= len(numbers) < 2000
    assert shown.split()[: len(numbers)] == numbers  # what is kept is what was shown
    screen.see("you: ")
    screen.type("/quit\n")
    assert screen.end()[0] == 0
    assert listing() == listing(Path.home()) == {}  # no history of what was typed


@posix
def test_ctrl_c_without_a_conversation_does_end_the_program(terminal: Callable[..., Terminal], server: Server) -> None:
    """The control: the same keys do reach the process."""
    screen = terminal("--message", "count")
    while not server.asked:
        time.sleep(0.01)
    screen.type("\x03")
    assert screen.end()[0] == 130
    assert server.hung_up.wait(30)


@posix
def test_ctrl_c_at_the_prompt_leaves_the_second_time(terminal: Callable[..., Terminal], server: Server) -> None:
    screen = terminal()
    hint = "Type /quit to leave, or press Ctrl-C again.\nyou: "
    screen.see("you: ")
    screen.type("half a senten")
    screen.see("senten")
    screen.interrupt(hint)
    screen.type("whole\n")
    screen.see("I heard: whole\n")
    screen.see("you: ")
    screen.type('"""\nlost\n')
    screen.see("...  ")
    screen.see("...  ")
    screen.interrupt(hint)
    assert screen.interrupt_until_it_ends() == 0
    assert [asked[-1]["content"] for asked in server.asked] == ["whole"]


@posix
def test_an_error_at_a_terminal_is_a_sentence_and_the_talk_goes_on(
    terminal: Callable[..., Terminal], server: Server
) -> None:
    screen = terminal()
    screen.see("you: ")
    screen.type("die\n")
    screen.see("wren: half a \nError: Ollama at")
    screen.see("Hint: See Ollama's log")
    screen.see("you: ")
    screen.type("on\n")
    screen.see("I heard: on")
    assert [one["content"] for one in server.asked[1][1:]] == ["on"]
    screen.see("you: ")
    screen.type("\x04")  # Ctrl-D
    assert screen.end()[0] == 0  # whoever sat there saw the error


@posix
@pytest.mark.parametrize("term", ["dumb", "xterm"])  # without bracketed paste, and with it where readline is GNU's
def test_pasted_lines_are_one_message(terminal: Callable[..., Terminal], server: Server, term: str) -> None:
    screen = terminal(term=term)
    screen.see("you: ")
    pasted = "one\n\n  two"
    screen.type(f"\x1b[200~{pasted}\x1b[201~" if term == "xterm" and _brackets() else pasted)
    screen.type("\n")
    screen.see("I heard: one")
    screen.see("you: ")
    screen.type("three\n/quit\n")  # typed ahead: a command is none of the message
    assert screen.end()[0] == 0
    assert [asked[-1]["content"] for asked in server.asked] == [pasted, "three"]


def _brackets() -> bool:
    import readline

    return "GNU" in (readline.__doc__ or "")


@posix
@pytest.mark.slow
def test_a_conversation_with_the_file_itself(
    terminal: Callable[..., Terminal], smollm2_gguf: Path, isolated: Path
) -> None:
    run = isolated / "adapters" / "wren"
    run.mkdir(parents=True)
    (run / "model.gguf").symlink_to(smollm2_gguf)
    plan = {"license": "Apache-2.0", "max_length": 64, "num_ctx": 2048, "temperature": 0.7}
    record = {"base_model": "x", "base_hub_id": "x/y", "family": "chatml", "system_prompt": "", "result": {}}
    (run / "run.json").write_text(json.dumps({**record, "plan": plan}))
    Path("twin.toml").write_text("[ollama]\nnum_ctx = 256\ntemperature = 0\n")
    screen = terminal("--gguf", str(run / "model.gguf"))
    screen.see("you: ")
    screen.type("Tell me a very long story of the sea.\n")
    screen.see("wren: ")
    screen.see(" ")  # behind its first word
    screen.type("\x03")
    screen.see("(stopped)")
    screen.see("you: ")
    # What was said so far is in the prompt, and the reply ends at a quarter of the context that twin.toml says.
    prompts = []
    for command in ("", "/reset\n"):
        if command:
            screen.type(command)
            screen.see("you: ")
        screen.type("Tell me another.\n")
        counts = re.search(r"prompt (\d+) tokens, reply (\d+)(.*)", screen.see(")\nyou: "))
        assert counts is not None
        assert (counts[2] == "64") is (counts[3] == ", cut after 64")
        assert int(counts[2]) <= 64
        prompts.append(int(counts[1]))
    assert prompts[0] > prompts[1] + 9  # as many words as the first message has
    screen.type("/quit\n")
    assert screen.end()[0] == 0
