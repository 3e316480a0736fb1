"""A conversation: what is sent, what is kept, where a reply ends; and that both roads ask the same, id for id."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from twin.chat import Chat, Counts, GgufBackend, OllamaBackend, Pieces, reply_room, until_stop
from twin.dataset.formats import read_rows
from twin.errors import StepError, UsageError
from twin.llama import open_gguf
from twin.ollama.client import OllamaClient
from twin.ollama.register import Meant, register
from twin.progress import Silent
from twin.prompt import estimate_tokens
from twin.records import Turn
from twin.templates import Family, load_family, render
from twin.training.samples import prompt_ids

FAMILY = load_family("chatml")
SYSTEM = 'You write as Wren. 👩‍🚀\u00a0She says "ok". No {{ .Prompt }}.'


# ---------------------------------------------------------------- where a reply ends


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        (["one two"], ["one two"]),
        (["one<|e", "nd|>two"], ["one"]),
        (["one<", "|", "e", "nd|>"], ["one"]),
        (["one<|e", "ven", " two"], ["one", "<|even", " two"]),  # it was no stop after all
        (["<|end|>"], []),
        (["a\nUs", "er: b<|end|>"], ["a"]),  # the earlier of two stops
        (["one<|en"], ["one", "<|en"]),  # the reply ended before the stop was whole
        (["ab<<|end|>"], ["ab<"]),
        ([], []),
    ],
)
def test_no_part_of_a_stop_is_said(pieces: list[str], said: list[str]) -> None:
    assert list(until_stop(pieces, ["<|end|>", "\nUser:"])) == said


def test_nothing_is_asked_for_behind_a_stop() -> None:
    asked = []

    def pieces() -> Iterator[str]:
        for piece in ("one", "<|end|>", "two"):
            asked.append(piece)
            yield piece

    assert list(until_stop(pieces(), ["<|end|>"])) == ["one"]
    assert asked == ["one", "<|end|>"]
    assert list(until_stop(["one", "<|end|>", "two"], [])) == ["one", "<|end|>", "two"]


# ---------------------------------------------------------------- what is sent and kept


@dataclass
class Script:
    """Whoever answers, with replies that are written down; counts as a tokenizer of four characters a token would."""

    replies: list[Any]
    system: str = "S"
    num_ctx: int = 4096
    sent: list[list[Turn]] = field(default_factory=list)
    closed: int = 0

    def stream(self, turns: Sequence[Turn], counts: Counts) -> Pieces:
        self.sent.append(list(turns))
        try:
            for piece in self.replies.pop(0):
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
            counts.prompt_tokens = sum(len(turn.content) // 4 + 5 for turn in turns)
        finally:
            self.closed += 1


def test_an_exchange_enters_the_history_once_it_is_whole() -> None:
    script = Script([[" a", "ye\n"], ["again"]])
    chat = Chat(script)
    assert list(chat.say("are you there")) == [" a", "ye\n"]
    assert chat.turns == [Turn("user", "are you there"), Turn("assistant", "aye")]
    list(chat.say("what"))
    assert script.sent[1] == [Turn("system", "S"), *chat.turns[:2], Turn("user", "what")]


def test_a_reply_that_is_stopped_is_kept_as_far_as_it_was_said() -> None:
    script = Script([["one ", "two ", "three"], ["one ", KeyboardInterrupt()]])
    chat = Chat(script)
    pieces = chat.say("count")
    assert [next(pieces), next(pieces)] == ["one ", "two "]
    pieces.close()
    assert (chat.turns, script.closed) == ([Turn("user", "count"), Turn("assistant", "one two")], 1)
    with pytest.raises(KeyboardInterrupt):
        list(chat.say("again"))
    assert (chat.turns[2:], script.closed) == ([Turn("user", "again"), Turn("assistant", "one")], 2)


@pytest.mark.parametrize("reply", [[], [" \n"], [KeyboardInterrupt()], ["half", StepError("It broke.", "Mend it.")]])
def test_an_exchange_without_a_reply_is_not_kept(reply: list[Any]) -> None:
    chat = Chat(Script([["aye"], reply, ["aye again"]]))
    list(chat.say("first"))
    before = list(chat.turns)
    try:
        list(chat.say("second"))
    except (StepError, KeyboardInterrupt) as error:
        assert error is reply[-1]
    assert chat.turns == before
    list(chat.say("third"))
    assert [turn.content for turn in chat.turns] == ["first", "aye", "third", "aye again"]


def test_the_system_prompt_of_a_conversation_stands_in_for_the_twins_own() -> None:
    chat = Chat(Script([["aye"]]))
    assert chat.prompt("x") == [Turn("system", "S"), Turn("user", "x")]
    chat.system = "other"
    list(chat.say("x"))
    chat.reset()
    assert chat.prompt("y") == [Turn("system", "other"), Turn("user", "y")]
    chat.system = None
    assert chat.prompt("y")[0] == Turn("system", "S")
    assert Chat(Script([], system="")).prompt("y") == [Turn("user", "y")]


def test_the_oldest_exchanges_leave_and_the_system_prompt_stays() -> None:
    script = Script([["word " * 30]] * 40, system="You are Wren. " * 5, num_ctx=1024)
    chat = Chat(script)
    for number in range(40):
        list(chat.say(f"{number} " + "and then some more of it " * 5))
    kept = [len(sent) for sent in script.sent]
    assert kept[:5] == [2, 4, 6, 8, 10]  # nothing leaves as long as all fits
    assert max(kept) < 40
    for sent in script.sent:
        assert sent[0] == Turn("system", script.system)
        assert [turn.role for turn in sent[1:]] == ["user", "assistant"] * (len(sent) // 2 - 1) + ["user"]
        assert sum(len(turn.content) // 4 + 5 for turn in sent) + reply_room(1024) <= 1024
    # As much stays as fits: one exchange more would be too long, but for what estimates are off.
    last = script.sent[-1]
    exchange = sum(len(turn.content) // 4 + 5 for turn in last[1:3])
    assert sum(len(turn.content) // 4 + 5 for turn in last) + reply_room(1024) + 2 * exchange > 1024
    assert len(chat.turns) == 80  # what leaves the prompt stays in what is saved
    starts = [sent[1].content for sent in script.sent]
    assert starts == sorted(starts, key=lambda text: int(text.split()[0]))  # what left does not come back


def test_estimates_follow_what_was_counted() -> None:
    """A vocabulary that knows a script well makes a fraction of the tokens that the cautious estimate expects."""
    text = "कल शाम को झील पर मिलते हैं क्या " * 3
    chat = Chat(Script([[text]] * 40, num_ctx=1024))
    for _ in range(40):
        list(chat.say(text))
    kept = (len(chat.turns) - chat.left_out) * (len(text) // 4 + 5)
    assert 500 < kept <= 768
    assert estimate_tokens(text) * (len(chat.turns) - chat.left_out) > 2 * 768  # by the estimate alone far too much


def test_a_message_that_is_refused_costs_no_history() -> None:
    chat = Chat(Script([["aye"], [UsageError("Too long.", "Shorten it.")], ["aye"]], num_ctx=1024))
    list(chat.say("first"))
    assert len(chat.prompt("long " * 2000)) == 2
    with pytest.raises(UsageError):
        list(chat.say("long " * 2000))
    assert len(chat.prompt("second")) == 4
    list(chat.say("second"))
    chat.turns *= 30
    assert len(chat.prompt("long " * 800)) < len(chat.prompt("x"))


def test_a_saved_conversation_is_a_row_that_trains(tmp_path: Path) -> None:
    chat = Chat(Script([["aye\n\nand 🙂"], ["no"]]))
    list(chat.say("are you\nthere"))
    list(chat.say("what"))
    (tmp_path / "talk.jsonl").write_bytes(chat.row())
    (row,) = read_rows(tmp_path / "talk.jsonl")
    assert list(row.turns) == [Turn("system", "S"), *chat.turns]
    assert row.every_reply
    assert chat.row().count(b"\n") == 1


# ---------------------------------------------------------------- Ollama, on loopback


@pytest.mark.parametrize(
    ("shown", "system", "num_ctx"),
    [
        ({"system": "Be Wren.", "parameters": 'stop      "<|im_end|>"\nnum_ctx      2048\n'}, "Be Wren.", 2048),
        ({"parameters": 'stop "num_ctx 5"'}, "", 4096),
        ({"system": None, "parameters": None}, "", 4096),
    ],
)
def test_what_a_server_says_of_its_model(
    httpserver: HTTPServer, shown: dict[str, Any], system: str, num_ctx: int
) -> None:
    httpserver.expect_request("/api/show").respond_with_json(shown)
    with OllamaClient(httpserver.url_for("")) as client:
        backend = OllamaBackend.of(client, "me")
    assert (backend.system, backend.num_ctx) == (system, num_ctx)


def test_a_request_says_all_that_the_prompt_depends_on(httpserver: HTTPServer) -> None:
    asked: list[Any] = []

    def answer(request: Request) -> Response:
        asked.append(orjson.loads(request.data))
        return Response(
            b'{"message":{"content":"aye"},"done":false}\n'
            b'{"message":{"content":""},"done":true,"prompt_eval_count":31,"eval_count":2}\n'
        )

    httpserver.expect_request("/api/chat").respond_with_handler(answer)
    with OllamaClient(httpserver.url_for("")) as client:
        chat = Chat(OllamaBackend(client, "me", "Be Wren.", 1024))
        assert "".join(chat.say("hi")) == "aye"
    assert chat.counts == Counts(31, 2)
    assert asked == [
        {
            "model": "me",
            "messages": [{"role": "system", "content": "Be Wren."}, {"role": "user", "content": "hi"}],
            "stream": True,
            "truncate": False,
            "options": {"num_predict": 256, "num_ctx": 1024, "num_keep": -1},
        }
    ]


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        ("the request exceeds the available context size", UsageError, "longer than the 1024 tokens that the model"),
        ("out of memory", StepError, "out of memory"),  # and nothing else is
    ],
)
def test_a_prompt_that_is_too_long_is_called_that(
    httpserver: HTTPServer, said: str, error: type[Exception], message: str
) -> None:
    httpserver.expect_request("/api/chat").respond_with_json({"error": said}, status=400)
    with OllamaClient(httpserver.url_for("")) as client, pytest.raises(error, match=message):
        list(Chat(OllamaBackend(client, "me", "", 1024)).say("hi"))


# ---------------------------------------------------------------- the real ones

NUM_CTX = 384
LONG = "And another thing about the harbour, the ferry and ½ of the 1234 seats: कल मिलते हैं? "


@pytest.fixture(scope="module")
def gguf(smollm2_gguf: Path) -> Iterator[GgufBackend]:
    with open_gguf(smollm2_gguf, num_ctx=NUM_CTX) as model:
        yield GgufBackend(model, FAMILY, SYSTEM, 0.0, NUM_CTX)


@pytest.fixture(scope="module")
def trained(tokenizer: Any) -> Callable[[Sequence[Turn]], list[int]]:
    """The ids of training, which llama.cpp has no part in."""
    return lambda turns: prompt_ids(tokenizer, FAMILY, turns)


@pytest.fixture(scope="module")
def served(ollama: str, smollm2_gguf: Path, trained: Callable[[Sequence[Turn]], list[int]]) -> Iterator[OllamaBackend]:
    with OllamaClient(ollama) as client:
        register(
            client,
            "wren",
            smollm2_gguf,
            Meant(FAMILY, SYSTEM, {"temperature": 0.0, "num_ctx": NUM_CTX}, lambda turns: len(trained(turns)), ()),
            license_text="",
            force=False,
            reporter=Silent(),
        )
        yield OllamaBackend.of(client, "wren")


@pytest.mark.slow
def test_a_stop_of_the_family_ends_a_reply_of_the_gguf(gguf: GgufBackend) -> None:
    def said(family: Family) -> tuple[str, int]:
        chat = Chat(replace(gguf, family=family))
        return "".join(chat.say("Name three colours of the sky.")), chat.counts.reply_tokens

    whole, tokens = said(FAMILY)
    middle = len(whole) // 2
    for stop in (whole[middle : middle + 9], whole[middle : middle + 1]):
        cut, fewer = said(FAMILY.model_copy(update={"stops": [*FAMILY.stops, stop]}))
        assert cut == whole[: whole.index(stop)]
        assert fewer < tokens
    assert "<|im_" not in whole


@pytest.mark.slow
def test_a_reply_of_the_gguf_ends_at_its_room(gguf: GgufBackend) -> None:
    small = replace(gguf, num_ctx=64)
    chat = Chat(small)
    list(chat.say("Tell me a long story of the sea."))
    assert chat.counts.reply_tokens == reply_room(64) == 16
    with pytest.raises(
        UsageError, match=r"The prompt is \d+ tokens long and the model holds 512"
    ):  # llama.cpp rounds up
        list(Chat(gguf).say(LONG * 30))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replies of a few tokens, so that a conversation of many turns takes seconds."""
    monkeypatch.setattr("twin.chat.MAX_REPLY_TOKENS", 16)


@pytest.mark.ollama
@pytest.mark.usefixtures("short")
def test_both_roads_ask_the_same_ids(
    served: OllamaBackend, gguf: GgufBackend, trained: Callable[[Sequence[Turn]], list[int]]
) -> None:
    """Many turns, a system prompt that changes and comes back, and a history that outgrows the context."""
    assert (served.system, served.num_ctx) == (gguf.system, gguf.num_ctx)
    one, other = Chat(served), Chat(gguf)
    left = []
    for number in range(8):
        for chat in (one, other):
            chat.system = "You write as Sam.\n\nBe brief. 👍🏽" if number in (3, 4) else None
        text = f"{number}. {LONG * (1 + number % 2)}And you?"
        asked = other.prompt(text)
        ids = gguf.prompt_ids(asked)
        sent = one.prompt(text)
        assert gguf.model.ids(served.client.render("wren", sent, served.options())) == ids == trained(asked)
        for chat in (one, other):
            list(chat.say(text))
        assert one.counts.prompt_tokens == other.counts.prompt_tokens == len(ids)
        assert len(ids) + reply_room(NUM_CTX) <= NUM_CTX
        other.turns[:] = one.turns  # two samplers may part; the question is what is asked after the same history
        assert one.left_out == other.left_out
        left.append(one.left_out)
    assert len(one.turns) == 16
    assert left[0] == 0
    assert len(set(left)) > 2  # it was cut, more than once


@pytest.mark.ollama
def test_a_cut_that_is_left_to_ollama_would_be_another_prompt(served: OllamaBackend, gguf: GgufBackend) -> None:
    """The control: without the cut of twin's own the two roads part, and Ollama's begins with a reply."""
    turns = [Turn("system", SYSTEM)]
    for number in range(9):
        turns += [Turn("user", f"{number} " + LONG), Turn("assistant", "yes " * (10 + number))]
    turns.append(Turn("user", "And you?"))
    theirs = served.client.render("wren", turns, served.options())
    assert gguf.model.ids(theirs) != gguf.prompt_ids(turns)
    chat = Chat(served, turns=turns[1:-1])
    assert served.client.render("wren", chat.prompt("And you?"), served.options()) == render(
        FAMILY, chat.prompt("And you?")
    )
    with pytest.raises(UsageError, match="longer than the 384 tokens that the model holds"):
        list(served.stream(turns, Counts()))


@pytest.mark.ollama
def test_neighbours_of_one_role_are_one_turn_on_both_roads(served: OllamaBackend, gguf: GgufBackend) -> None:
    turns = [Turn("system", "S"), Turn("user", "one"), Turn("user", "two"), Turn("assistant", "a"), Turn("user", "b")]
    theirs = served.client.render("wren", turns, served.options())
    assert gguf.prompt_ids(turns) == gguf.model.ids(theirs)
    assert gguf.model.ids(render(FAMILY, turns)) != gguf.model.ids(theirs)  # without merging


@pytest.mark.ollama
@pytest.mark.usefixtures("short")
def test_both_roads_count_and_say_the_same(served: OllamaBackend, gguf: GgufBackend) -> None:
    one, other = Chat(served), Chat(gguf)
    said = ["".join(chat.say("What is the capital of France? Answer in one word.")) for chat in (one, other)]
    assert said[0] == said[1]
    assert one.counts == other.counts
