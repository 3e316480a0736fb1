"""Registration on a real Ollama: what passes, and that each way of serving another prompt is refused by name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest
from pytest_httpserver import HTTPServer

from tests.gguf_variants import STOCK_JINJA, TEMPLATE, TOKENS, metadata, write_variant
from tests.ollama.conftest import Recorder
from twin.errors import GateError, StepError, TwinError, UsageError
from twin.llama import open_gguf
from twin.ollama.client import OllamaClient
from twin.ollama.modelfile import model_name
from twin.ollama.register import (
    PARTIAL,
    Meant,
    Registration,
    _sweep,
    check_live,
    first_difference,
    live_shapes,
    partial_name,
    register,
)
from twin.progress import Reporter, Silent
from twin.records import Turn
from twin.templates import Family, load_family, render

FAMILY = load_family("chatml")
SYSTEM = 'You write as Chirag. 👩‍🚀\u00a0He says "ok""".\r\nNo {{ .Prompt }}.'
PARAMETERS = {"temperature": 0.7, "num_ctx": 2048}
DIGEST = "sha256:" + hashlib.sha256(b"GGUF").hexdigest()
Count = Callable[[Sequence[Turn]], int]


# --- plain functions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ("abc", "abX", "byte 2: ours «abc<end>», Ollama's «abX<end>»"),
        ("abc", "ab", "byte 2: ours «abc<end>», Ollama's «ab<end>»"),
        ("é", "è", "byte 1: ours «\\xe9<end>», Ollama's «\\xe8<end>»"),
        ("x" * 50 + "\n", "x" * 50 + " ", f"byte 50: ours «…{'x' * 20}\\n<end>», Ollama's «…{'x' * 20} <end>»"),
    ],
)
def test_the_first_difference_is_shown_from_both_sides(ours: str, theirs: str, said: str) -> None:
    assert first_difference(ours, theirs) == said


def test_the_temporary_name_is_one_that_ollama_takes() -> None:
    mark = "01234567"
    assert partial_name("me", mark) == f"me{PARTIAL}-{mark}"
    assert partial_name("ns/me:v1", mark) == f"ns/me:v1{PARTIAL}-{mark}"
    assert partial_name("box:5000/ns/me", mark) == f"box:5000/ns/me{PARTIAL}-{mark}"
    assert len(partial_name("m" * 80, mark)) == 80
    assert len(partial_name("me:" + "t" * 80, mark)) == 83
    assert model_name(partial_name("m" * 80, mark))


def test_leftovers_of_an_hour_ago_are_taken_away_and_nothing_else(httpserver: HTTPServer) -> None:
    old, new = "2024-01-01T00:00:00.123456789+02:00", datetime.now(UTC).isoformat()
    names = {
        f"me{PARTIAL}-01234567:latest": old, f"me{PARTIAL}-89abcdef:latest": new, f"me{PARTIAL}:latest": old,
        f"you{PARTIAL}-01234567:latest": old, "me:latest": old, f"me{PARTIAL}-01234567:v1": old,
    }  # fmt: skip
    listed = [{"name": name, "digest": "d", "modified_at": at} for name, at in names.items()]
    httpserver.expect_request("/api/tags").respond_with_json({"models": [*listed, {"name": 5}, None]})
    httpserver.expect_request("/api/delete").respond_with_data(b"")
    with OllamaClient(httpserver.url_for("")) as client:
        _sweep(client, "me")
        assert client.digest("me") == "d"
        assert client.digest("nobody") is None
    deleted = [orjson.loads(request.data)["model"] for request, _ in httpserver.log if request.path == "/api/delete"]
    assert deleted == [f"me{PARTIAL}-01234567:latest"]


def test_the_shapes_put_the_models_own_system_first_unless_one_leads() -> None:
    for shape in live_shapes("S"):
        leads = shape.asked[0].role == "system"
        rest = shape.meant if leads else shape.meant[1:]
        assert leads or shape.meant[0] == Turn("system", "S")
        assert "\n\n".join(turn.content for turn in rest) == "\n\n".join(turn.content for turn in shape.asked)
        assert all(one.role != other.role for one, other in pairwise(shape.meant))
    assert {shape.meant[0].role for shape in live_shapes("")} == {"user", "system"}


@pytest.mark.parametrize(
    "other",
    ["gpt-2", "llama-bpe", "qwen2", "deepseek-llm", "falcon", "mpt", "olmo", "dbrx", "tekken", "gpt-4o", "viking",
     "bloom", "llama4", "chatglm-bpe", "superbpe"],
)  # fmt: skip
def test_another_pre_tokenizer_makes_another_number_of_ids(gguf: Path, tmp_path: Path, other: str) -> None:
    """The server tells the number of a prompt's ids alone, so the counted prompts must differ in it."""
    counts = []
    for pre in (metadata(gguf)["tokenizer.ggml.pre"], other):
        file = write_variant(gguf, tmp_path / f"{pre}.gguf", {"tokenizer.ggml.pre": pre}, vocabulary_only=True)
        with open_gguf(file, vocab_only=True) as model:
            counts.append([len(model.ids(render(FAMILY, one.meant))) for one in live_shapes(SYSTEM) if one.counted])
    assert counts[0] != counts[1]


# --- a server that can't be right -----------------------------------------------------------------------------------


def test_a_server_that_fails_half_way_leaves_no_temporary_model(httpserver: HTTPServer, tmp_path: Path) -> None:
    gguf = tmp_path / "model-q8_0.gguf"
    gguf.write_bytes(b"GGUF")
    httpserver.expect_request("/api/version").respond_with_json({"version": "0.33.0"})
    httpserver.expect_request("/api/show").respond_with_json({"error": "model 'me' not found"}, status=404)
    httpserver.expect_request("/api/blobs/" + DIGEST, method="HEAD").respond_with_data(b"")
    httpserver.expect_request("/api/create").respond_with_data(b'{"status":"parsing"}\n{"error":"no llama-quantize"}\n')
    httpserver.expect_request("/api/chat").respond_with_json({"error": "not found"}, status=404)
    httpserver.expect_request("/api/delete").respond_with_data(b"")
    with OllamaClient(httpserver.url_for("")) as client, pytest.raises(StepError, match="no llama-quantize"):
        run(client, gguf, lambda turns: 1)
    paths = [request.path for request, _ in httpserver.log]
    assert paths[-1] == "/api/delete"
    assert re.fullmatch(f"me{PARTIAL}-[0-9a-f]{{8}}", orjson.loads(httpserver.log[-1][0].data)["model"])
    assert "/api/copy" not in paths


# --- a real one -----------------------------------------------------------------------------------------------------


def run(
    client: OllamaClient,
    gguf: Path,
    count: Count,
    name: str = "me",
    family: Family = FAMILY,
    force: bool = False,
    reporter: Reporter | None = None,
    parameters: Mapping[str, Any] = PARAMETERS,
    vocabulary: Sequence[str | None] = (),
) -> Registration:
    return register(
        client,
        name,
        gguf,
        Meant(family, SYSTEM, parameters, count, vocabulary),
        license_text="Apache 2.0\n",
        force=force,
        reporter=reporter or Silent(),
    )


class Meddling(OllamaClient):
    """A client whose server makes of a request something else, as Ollama itself does for some models."""

    change: Mapping[str, Any] = {}

    def create(self, name: str, payload: Mapping[str, Any], reporter: Reporter) -> None:
        super().create(name, {**payload, **self.change}, reporter)


@pytest.fixture(scope="module")
def count(tokenizer: Any) -> Count:
    return lambda turns: len(tokenizer.encode(render(FAMILY, turns), add_special_tokens=False))


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Any) -> list[str]:
    tokens: list[str] = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return tokens


@pytest.fixture(scope="module")
def registered(ollama: str, gguf: Path, count: Count, vocabulary: list[str]) -> tuple[Registration, Recorder]:
    recorder = Recorder()
    with OllamaClient(ollama) as client:
        return run(client, gguf, count, reporter=recorder, vocabulary=vocabulary), recorder


@pytest.fixture
def client(ollama: str, registered: object) -> Iterator[Meddling]:
    """A server that has an older model 'me', which every test must leave as it was, and nothing temporary."""
    with Meddling(ollama) as made:
        before = made.show("me"), made.digest("me")
        yield made
        after = made.show("me"), made.digest("me")
        assert after == before
        assert not any(PARTIAL in name for name in made.models())


@pytest.mark.ollama
def test_a_model_that_passes(ollama: str, registered: tuple[Registration, Recorder]) -> None:
    registration, recorder = registered
    assert (registration.model, registration.host, registration.created) == ("me", ollama, True)
    assert registration.checks.keys() == {
        "ollama",
        "template",
        "system",
        "parameters",
        "vocabulary",
        "rendering",
        "prompt ids",
    }
    assert recorder.done["Checking the live model"] == len(live_shapes(SYSTEM))
    assert recorder.said[-1].startswith(f"Ollama serves me at {ollama}")
    with OllamaClient(ollama) as client:
        shown = client.show("me")
        assert (shown["template"], shown["system"], shown["license"]) == (FAMILY.go, SYSTEM, "Apache 2.0\n")
        assert not any(PARTIAL in name for name in client.models())
        pieces = list(client.chat("me", [Turn("user", "Say ok.")], {"num_predict": 4, "temperature": 0}))
    assert "".join(piece["text"] for piece in pieces)
    assert pieces[-1]["done"] and pieces[-1]["eval_count"] in range(1, 5)


@pytest.mark.ollama
def test_a_name_in_use_needs_force(client: Meddling, gguf: Path, count: Count) -> None:
    with pytest.raises(UsageError) as caught:
        run(client, gguf, count)
    assert "has a model 'me' already" in caught.value.message
    assert "--force" in caught.value.hint


@pytest.mark.ollama
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"template": FAMILY.go.replace('"<|im_start|>"', '"<|im_Start|>"', 1)},
            r"uses another one \(byte \d+: ours «.*im_start.*», Ollama's «.*im_Start.*»\)",
        ),
        *[
            (
                {"parameters": {**PARAMETERS, "stop": [one for one in FAMILY.stops if one != stop]}},
                f"'stop' should be .*{re.escape(stop)}.* and Ollama has nothing",
            )
            for stop in FAMILY.stops
        ],
        ({"parameters": {**PARAMETERS, "stop": ["<|im_end|>", "User:"]}}, "'stop' should be .*User:"),
        ({"parameters": {"stop": FAMILY.stops, "temperature": 0.7}}, "'num_ctx' should be 2048 and Ollama has nothing"),
        ({"parameters": {"stop": FAMILY.stops, **PARAMETERS, "top_k": 3}}, "'top_k' should be nothing"),
        ({"system": SYSTEM.replace("\u00a0", " ")}, r"did not keep the system prompt \(byte 3\d: .*xa0.*»"),
    ],
)
def test_a_server_that_keeps_something_else_is_named(
    client: Meddling, gguf: Path, count: Count, change: Mapping[str, Any], words: str
) -> None:
    client.change = change
    with pytest.raises(GateError, match=words) as caught:
        run(client, gguf, count, force=True)
    assert caught.value.exit_code == 5
    assert caught.value.hint


@pytest.mark.ollama
@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("<|im_end|>\\n", "<|im_end|>", r"byte \d+: ours «.*\\n.*», Ollama's «"),  # the line end behind a turn
        ("<|im_start|>assistant\\n", "<|im_start|>assistant", "ours «.*\\\\n<end>», Ollama's «.*assistant<end>»"),
        (".Messages", "(slice .Messages 1)", "For a user's message Ollama would not send what was trained"),
    ],
)
def test_a_pair_that_renders_two_things_is_named(
    client: Meddling, gguf: Path, count: Count, before: str, after: str, words: str
) -> None:
    family = FAMILY.model_copy(update={"go": FAMILY.go.replace(before, after, 1)})
    assert family.go != FAMILY.go
    with pytest.raises(GateError, match=words):
        run(client, gguf, count, family=family, force=True)


@pytest.mark.ollama
def test_other_ids_are_named(client: Meddling, gguf: Path, count: Count) -> None:
    with pytest.raises(GateError, match=r"gives the model \d+ ids and training gave it \d+") as caught:
        run(client, gguf, lambda turns: count(turns) + 1, force=True)
    assert "BOS" in caught.value.hint
    # Another tokenizer may agree on plain text: the unusual characters are there for that.
    odd = next(shape.meant for shape in live_shapes(SYSTEM) if shape.name == "unusual characters")
    with pytest.raises(GateError, match="For unusual characters Ollama gives"):
        run(client, gguf, lambda turns: count(turns) - (tuple(turns) == odd), force=True)


# Every byte is served as it was trained and one thing in the file is not: the name that it is refused by.
BROKEN: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "tools in the Jinja": (
        lambda old: {TEMPLATE: STOCK_JINJA},
        r"uses another one, the Jinja inside the GGUF \(byte 1: ours «\{\{ range .*», Ollama's «\{%- if tools",
    ),
    "thinking in the Jinja": (
        lambda old: {TEMPLATE: old[TEMPLATE] + "{# <think> </think> #}"},
        "uses another one, the Jinja inside the GGUF",
    ),
    "BOS added": (
        lambda old: {"tokenizer.ggml.add_bos_token": True},
        r"For a user's message Ollama gives the model (\d+) ids and training gave it \d+\.",
    ),
    "another pre-tokenizer": (
        lambda old: {"tokenizer.ggml.pre": "gpt-2"},
        r"Ollama gives the model \d+ ids and training gave it \d+\.",
    ),
    "two tokens swapped": (
        lambda old: {TOKENS: swapped(old[TOKENS], "Ġthe", "Ġof")},
        r"Token \d+ of training is 'Ġ(the|of)' and Ollama's model has 'Ġ(the|of)' there\.",
    ),
    "a vocabulary with a hole": (
        lambda old: {TOKENS: ["<hole>" if token == "Ġagain" else token for token in old[TOKENS]]},
        r"Token \d+ of training is 'Ġagain' and Ollama's model has '<hole>' there\.",
    ),
}


def swapped(tokens: Sequence[str], one: str, other: str) -> list[str]:
    return [{one: other, other: one}.get(token, token) for token in tokens]


@pytest.mark.ollama
@pytest.mark.parametrize("what", BROKEN)
def test_a_gguf_that_would_be_asked_otherwise_is_named(
    client: Meddling, gguf: Path, count: Count, vocabulary: list[str], tmp_path: Path, what: str
) -> None:
    change, words = BROKEN[what]
    broken = write_variant(gguf, tmp_path / "broken.gguf", change(metadata(gguf)))
    with pytest.raises(GateError, match=words) as caught:
        run(client, broken, count, force=True, vocabulary=vocabulary)
    assert caught.value.exit_code == 5
    assert "twin gguf" in caught.value.hint


@pytest.mark.ollama
def test_a_bos_that_the_template_writes_too_is_named(
    client: Meddling, gguf: Path, tokenizer: Any, tmp_path: Path
) -> None:
    """The pair renders two equal texts, and the server puts one more BOS before them."""
    bos = "<|endoftext|>"
    family = FAMILY.model_copy(
        update={"go": f'{{{{ "{bos}" }}}}{FAMILY.go}', "jinja": f'{{{{ "{bos}" }}}}{FAMILY.jinja}'}
    )
    doubled = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 0}
    with pytest.raises(GateError, match=r"Ollama gives the model (\d+) ids and training gave it (\d+)") as caught:
        run(
            client,
            write_variant(gguf, tmp_path / "doubled.gguf", doubled),
            lambda turns: len(tokenizer.encode(render(family, turns), add_special_tokens=False)),
            family=family,
            force=True,
        )
    got, wanted = re.findall(r"\d+", caught.value.message)
    assert int(got) == int(wanted) + 1
    assert "BOS twice" in caught.value.hint


@pytest.mark.ollama
def test_a_context_shorter_than_the_prompt_is_named(client: Meddling, gguf: Path, count: Count) -> None:
    with pytest.raises(GateError, match=r"the prompt is \d+ ids and num_ctx is 64: Ollama would cut it") as caught:
        run(client, gguf, count, force=True, parameters={**PARAMETERS, "num_ctx": 64})
    assert "--num-ctx" in caught.value.hint
    # Were our count of ids wrong as well, the cut itself is seen.
    with pytest.raises(GateError, match=r"For .* Ollama"):
        run(client, gguf, lambda turns: 1, force=True, parameters={**PARAMETERS, "num_ctx": 64})


@pytest.mark.ollama
def test_each_byte_of_the_template_counts(client: Meddling) -> None:
    """The model on the server is created again with one byte of its template changed, where that is one."""
    meant = Meant(FAMILY, SYSTEM, PARAMETERS, lambda turns: 0, ())
    named = 0
    for at, byte in enumerate(FAMILY.go):
        changed = FAMILY.go[:at] + ("x" if byte != "x" else "y") + FAMILY.go[at + 1 :]
        try:
            client.create("mutant", {"from": "me", "template": changed}, Silent())
        except StepError:
            continue
        with pytest.raises(GateError, match=rf"uses another one \(byte {at}: "):
            check_live(client, "mutant", meant, Silent())
        named += 1
    client.delete("mutant")
    assert named > 60


@pytest.mark.ollama
def test_an_interrupted_registration_leaves_nothing(client: Meddling, gguf: Path, count: Count) -> None:
    def interrupt(turns: Sequence[Turn]) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(client, gguf, interrupt, force=True)


@pytest.mark.ollama
def test_force_replaces_a_model(ollama: str, registered: object, gguf: Path, count: Count) -> None:
    with OllamaClient(ollama) as client:
        client.copy("me", "old")
        registration = run(client, gguf, count, name="old", force=True)
        assert not registration.created
        client.delete("old")
        with pytest.raises(TwinError):
            client.show("old")
