"""The whole road with the real things, as typed: sample brain → adapter → GGUF → a real Ollama → an answer."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from dotenv import dotenv_values

from tests.app.prompts import PARTS, app_request, merged
from twin import basemodel, brain, measure, packages
from twin.dataset.formats import read_rows
from twin.evaluate.likelihood import compare, score_gguf
from twin.llama import open_gguf
from twin.ollama.client import OllamaClient
from twin.progress import Silent
from twin.records import Example, Sample, Turn
from twin.settings import load_settings
from twin.templates import load_family, render
from twin.training.samples import prompt_ids, reply_ids

pytestmark = [pytest.mark.slow]
ASKED = "are you coming to the harbour on sunday?"


def twin(*arguments, cwd: Path, host: str, check: bool = True) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, "-m", "twin", *arguments],
        cwd=cwd,
        env={**os.environ, "OLLAMA_HOST": host},
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
    )
    if check:
        assert done.returncode == 0, f"{done.stderr}\n{done.stdout}"  # with --json an error stands in stdout
    return done


@pytest.fixture(scope="module")
def demo(tmp_path_factory, ollama):
    """The demo, once, against a real server: its folder and its one JSON object."""
    folder = tmp_path_factory.mktemp("demo")
    done = twin("demo", "--json", "--output", "demo", cwd=folder, host=ollama)
    return folder / "demo", json.loads(done.stdout)


@pytest.mark.ollama
def test_demo_moves_the_loss_of_adapter_and_gguf(demo):
    _, result = demo
    assert set(result["steps"]) == {"export", "train", "gguf", "evaluate", "register"}
    likelihood = result["likelihood"]
    assert likelihood["adapter"]["conversations"] >= 20
    assert likelihood["adapter"]["high"] < 0
    assert likelihood["gguf"]["high"] < 0
    assert likelihood["reference"]["high"] < 0
    assert likelihood["kept"] >= 0.9
    assert likelihood["kept_low"] >= 0.75
    assert (likelihood["unquantized"], likelihood["refused"]) == ("f16", "")
    assert len(likelihood["samples"]) == 3
    assert result["registered"] is True


@pytest.mark.ollama
def test_the_served_prompt_is_the_trained_one(demo, ollama, tokenizer):
    folder, _ = demo
    record = json.loads((folder / "adapters/wren/run.json").read_text("utf-8"))
    family = load_family(record["family"])
    turns = [Turn("system", record["system_prompt"]), Turn("user", ASKED)]
    done = twin("chat", "wren", "--message", ASKED, "--json", cwd=folder, host=ollama)
    answer = json.loads(done.stdout)
    assert answer["reply"]
    assert answer["prompt_tokens"] == len(prompt_ids(tokenizer, family, turns))
    assert OllamaClient(ollama).render("wren", turns[1:]) == render(family, turns)


@pytest.mark.ollama
def test_a_second_run_skips_every_step(demo, ollama):
    folder, _ = demo
    again = twin("run", "wren", "--json", cwd=folder, host=ollama)
    assert set(json.loads(again.stdout)["steps"].values()) == {None}
    assert again.stderr.count("skipped, nothing it reads has changed") == 5


@pytest.mark.ollama
def test_a_model_that_is_not_ours_any_more_stays(demo, ollama):
    folder, _ = demo
    with OllamaClient(ollama) as client:
        own = client.show("wren")["system"]
        client.create("wren", {"from": "wren", "system": "somebody else's"}, Silent())
        refused = twin("run", "wren", cwd=folder, host=ollama, check=False)
        assert refused.returncode == 2
        assert "has a model 'wren' already" in refused.stderr
        assert client.show("wren")["system"] == "somebody else's"
        twin("run", "wren", "--force", "--json", cwd=folder, host=ollama)
        assert client.show("wren")["system"] == own


def test_chat_from_the_gguf_alone(demo, tokenizer):
    folder, _ = demo
    file = "adapters/wren/model-q4_k_m.gguf"
    done = twin("chat", "wren", "--gguf", file, "--message", ASKED, "--json", cwd=folder, host="127.0.0.1:9")
    record = json.loads((folder / "adapters/wren/run.json").read_text("utf-8"))
    turns = [Turn("system", record["system_prompt"]), Turn("user", ASKED)]
    answer = json.loads(done.stdout)
    assert answer["reply"]
    assert answer["prompt_tokens"] == len(prompt_ids(tokenizer, load_family("chatml"), turns))


# ---------------------------------------------------------------- two hundred prompts

# Dialogue in 28 languages that nobody here wrote; BSD-3-Clause.
CORPUS = packages.PackageFile(
    project="chatterbot-corpus==1.3.3",
    sha256="86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
    keep=("chatterbot_corpus/data/",),
)
OTHER = Turn("system", "Du schreibst wie Sam.\n\n  Kurz. 👍🏽")


def exchanges(folder: Path) -> Iterator[list[str]]:
    """The conversations of the corpus, a language after the other, round and round."""
    texts = []
    for language in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = [yaml.safe_load(file.read_text("utf-8")) for file in sorted(language.glob("*.yml"))]
        said = [[str(one) for one in talk] for file in files for talk in file["conversations"] if len(talk) > 1]
        # Short ones: a letter of some scripts is three ids, and each prompt is computed.
        texts.append(iter([talk for talk in said if len("".join(talk)) < 120]))
    while texts:
        for one in list(texts):
            if (talk := next(one, None)) is None:
                texts.remove(one)
            else:
                yield talk


def shaped(at: int, talk: list[str]) -> list[Turn]:
    """Return one of five kinds of requests; two have turns of one role in a row, or a system prompt of their own."""
    user, reply = Turn("user", talk[0]), Turn("assistant", talk[1])
    kinds = (
        [user],
        [user, reply, Turn("user", talk[-1])],
        [user, Turn("user", talk[-1])],
        [user, reply, Turn("user", f"{talk[-1]}\r\n\t{talk[0]} ")],
        [OTHER, user, reply, user],
    )
    return kinds[at % len(kinds)]


@pytest.mark.ollama
def test_two_hundred_held_out_prompts_are_served_as_trained(demo, ollama, tokenizer):
    """The three live points: what the server says of the twin, the text that it renders, the ids that it counts."""
    folder, _ = demo
    record = json.loads((folder / "adapters/wren/run.json").read_text("utf-8"))
    family, own = load_family(record["family"]), Turn("system", record["system_prompt"])
    rows = [row.turns[:-1] for row in read_rows(folder / "data/val.jsonl")]
    corpus = packages.fetch(CORPUS, Silent()) / "chatterbot_corpus" / "data"
    foreign = [shaped(at, talk) for at, talk in enumerate(islice(exchanges(corpus), 100))]
    # Conversations one after the other: what two prompts share, the server computes once.
    asked = [*sorted(rows, key=lambda turns: [turn.content for turn in turns])[:100], *foreign]
    assert len(asked) == 200
    ids = 0
    with OllamaClient(ollama) as client:
        shown = client.show("wren")
        assert (shown["template"], shown["system"]) == (family.go, own.content)
        for turns in asked:
            meant = merged(turns if turns[0].role == "system" else [own, *turns])
            assert client.render("wren", turns) == render(family, meant)
            (answer,) = client.chat("wren", turns, {"num_predict": 1}, stream=False)
            assert answer["prompt_eval_count"] == len(prompt_ids(tokenizer, family, meant))
            ids += answer["prompt_eval_count"]
    print(f"{len(asked)} prompts, {ids} ids")


# ---------------------------------------------------------------- as the app asks it

APP_OPTIONS = {"temperature": 0.8, "num_predict": 256}


def chats(file: Path) -> list[Example]:
    return [row for row in read_rows(file) if row.kind == "chat"]


@pytest.fixture(scope="module")
def asked_by_app(demo):
    """For each held-out conversation one reply, and the request after which the app would want it; 2 to 6 parts long.

    Examples in the prompt are of the rows that were learned: what is held out would tell the answer.
    """
    folder, _ = demo
    own, learned = brain.load([folder / "brain"]), chats(folder / "data/train.jsonl")
    conversations: dict[str, list[Example]] = {}
    for row in chats(folder / "data/val.jsonl"):
        conversations.setdefault(row.conversation_id, []).append(row)
    middles = [rows[len(rows) // 2] for rows in conversations.values()]
    return [
        (row, app_request(own, learned, row.turns[:-1], number, parts=2 + number % 5))
        for number, row in enumerate(middles)
    ]


def test_under_the_apps_prompt_the_twin_is_still_more_like_the_person(demo, asked_by_app, tokenizer):
    folder, _ = demo
    record = json.loads((folder / "adapters/wren/run.json").read_text("utf-8"))
    family = load_family(record["family"])
    samples = []
    for row, messages in asked_by_app:
        ids, reply = prompt_ids(tokenizer, family, messages), reply_ids(tokenizer, family, row.reply, messages[-1])
        samples.append(Sample(row.id, row.conversation_id, row.kind, (*ids, *reply), len(ids)))
    lengths = sorted(sample.prompt_length for sample in samples)
    assert 500 < lengths[0] < lengths[-1] < 2000
    base = basemodel.resolve(record["base_model"], Silent())
    quantization = "q4_k_m"
    scores = {}
    for who, file in (
        ("base", measure.base_ggufs(base, family, [quantization], load_settings(), Silent())[quantization]),
        ("twin", folder / f"adapters/wren/model-{quantization}.gguf"),
    ):
        with open_gguf(file, num_ctx=record["plan"]["num_ctx"]) as model:
            scores[who] = score_gguf(model, samples)
    change = compare(scores["base"], scores["twin"])
    print(f"{len(lengths)} prompts of {lengths[0]} to {lengths[-1]} ids: {change}")
    assert change.conversations == len(samples) >= 20
    assert change.high < 0
    assert not compare(scores["base"], scores["base"]).high < 0  # the control
    assert not compare(scores["twin"], scores["base"]).high < 0


@pytest.mark.ollama
def test_what_the_app_sends_is_rendered_as_it_was_trained(demo, asked_by_app, ollama, tokenizer):
    """Up to what num_ctx has room for; beyond it the server cuts the history, and the same check says so."""
    folder, _ = demo
    record = json.loads((folder / "adapters/wren/run.json").read_text("utf-8"))
    family, num_ctx = load_family(record["family"]), record["plan"]["num_ctx"]
    own, learned = brain.load([folder / "brain"]), chats(folder / "data/train.jsonl")
    talk = [turn for row in learned[:300] for turn in row.turns[-2:]]
    row, _ = asked_by_app[0]
    requests = [
        app_request(own, learned, [*talk[:20], *row.turns[1:-1]], parts, parts) for parts in range(len(PARTS) + 1)
    ]
    double = [*requests[-1], Turn("user", "hello??")]  # two of one role: the last reply never came
    with OllamaClient(ollama) as client:
        for messages in (*requests, double):
            assert client.render("wren", messages) == render(family, merged(messages))
        client.create(
            "wrong", {"from": "wren", "template": family.go.replace("<|im_end|>\\n", "<|im_end|>", 1)}, Silent()
        )
        assert client.render("wrong", double) != render(family, merged(double))  # the control
        client.delete("wrong")

        def full() -> list[Turn]:
            """The last request, made longer turn by turn until little more than the reply has room."""
            head, last = requests[-1][:1], requests[-1][-1]
            for length in range(0, len(talk), 2):
                messages = merged([*head, *talk[:length], last])
                if len(prompt_ids(tokenizer, family, messages)) >= num_ctx - 300:
                    return messages
            raise AssertionError("the talk is too short")

        def counts(messages: list[Turn], **options: int) -> tuple[int, int | None]:
            (piece,) = client.chat("wren", messages, {**APP_OPTIONS, "num_predict": 1, **options}, stream=False)
            return len(prompt_ids(tokenizer, family, merged(messages))), piece["prompt_eval_count"]

        for messages in (requests[0], requests[3], requests[-1], double, full()):
            ours, theirs = counts(messages)
            assert ours == theirs
        ours, theirs = counts(requests[0], num_ctx=512)
        assert theirs < ours  # the control


def asked(host: str, messages: Sequence[Turn], **options: float) -> dict[str, Any]:
    """Ask as the app does, with its options, and return the server's whole answer; its durations are nanoseconds."""
    said = [{"role": turn.role, "content": turn.content} for turn in messages]
    body = {"model": "wren", "messages": said, "stream": False, "options": {**APP_OPTIONS, **options}}
    answer = httpx.post(f"{host}/api/chat", json=body, timeout=600, trust_env=False)
    return answer.raise_for_status().json()


@pytest.mark.ollama
def test_the_apps_first_request_finds_the_model_loaded_and_replies_end_by_themselves(demo, asked_by_app, ollama):
    """The app waits 30 s, loading included: how long it takes is printed (-s), for it hangs on the machine's load."""
    folder, _ = demo
    twin("register", "wren", "--force", cwd=folder, host=ollama)
    answers = [asked(ollama, messages) for _, messages in asked_by_app[::4]]
    for answer in answers:
        seconds = {key: answer[f"{key}_duration"] / 1e9 for key in ("load", "prompt_eval", "eval", "total")}
        print(answer["done_reason"], answer["prompt_eval_count"], answer["eval_count"], seconds, answer["message"])
    assert all(answer["message"]["content"].strip() for answer in answers)
    reasons = [answer["done_reason"] for answer in answers]
    assert reasons.count("stop") > len(reasons) / 2
    assert asked(ollama, asked_by_app[0][1], num_predict=1)["done_reason"] == "length"  # the control
    with OllamaClient(ollama) as client:
        client.unload("wren")
    cold = asked(ollama, asked_by_app[0][1], num_predict=1)
    print("cold", cold["load_duration"] / 1e9)
    assert answers[0]["load_duration"] < cold["load_duration"]


@pytest.mark.ollama
def test_the_app_is_told_of_the_twin_once_it_passed(demo, ollama):
    folder, _ = demo
    file = folder / "app.env"
    file.write_bytes(b"# the app\r\nexport LLM_PROVIDER='gemini' # or ollama\r\nKEY=hunter2\r\n")
    file.chmod(0o640)
    before = file.read_bytes()
    refused = twin("register", "wren", "--env", "app.env", cwd=folder, host=ollama, check=False)
    assert (refused.returncode, file.read_bytes()) == (2, before)  # the name is in use
    done = twin("register", "wren", "--force", "--env", "app.env", cwd=folder, host=ollama)
    assert file.read_bytes() == before.replace(b"gemini", b"ollama") + (
        f"OLLAMA_BASE_URL={ollama}\r\nOLLAMA_MODEL=wren\r\n".encode()
    )
    assert dotenv_values(file) == {
        "LLM_PROVIDER": "ollama", "KEY": "hunter2", "OLLAMA_BASE_URL": ollama, "OLLAMA_MODEL": "wren",
    }  # fmt: skip
    assert (folder / "app.env.bak").read_bytes() == before
    assert file.stat().st_mode == (folder / "app.env.bak").stat().st_mode
    assert done.stderr.splitlines()[-1] == f"Next: restart the app's backend: it reads {file} only when it starts"
    assert "hunter2" not in done.stdout + done.stderr
    again = json.loads(twin("run", "wren", "--force", "--env", "app.env", "--json", cwd=folder, host=ollama).stdout)
    assert again["env"] == {"file": str(file), "changed": [], "repeated": [], "backup": None}
    assert not (folder / "app.env.2.bak").exists()


@pytest.mark.ollama
def test_the_three_lines_as_typed(tmp_path, sample_brain, ollama):
    shutil.copytree(sample_brain, tmp_path / "brain")
    twin("export", "--format", "chatml", cwd=tmp_path, host=ollama)
    twin("train", "--preset", "smollm2-135m", "--epochs", "0.05", cwd=tmp_path, host=ollama)
    registered = twin("register", "chirag-v1", cwd=tmp_path, host=ollama)
    assert "Using the run in adapters/smollm2-135m" in registered.stderr.splitlines()[0]
    assert (tmp_path / "adapters/smollm2-135m/model-q4_k_m.gguf").stat().st_size > 50_000_000
    assert (tmp_path / "adapters/smollm2-135m/Modelfile").is_file()
    reply = twin("chat", "chirag-v1", "--message", ASKED, cwd=tmp_path, host=ollama)
    assert reply.stdout.strip()
    refused = twin("register", "chirag-v1", cwd=tmp_path, host=ollama, check=False)
    assert refused.returncode == 2
    assert "has a model 'chirag-v1' already" in refused.stderr
