"""Two hundred prompts on a live model: the text that it renders, and the number of ids that it counts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import yaml

from twin import packages, pipeline
from twin.dataset.formats import read_rows
from twin.ollama.client import OllamaClient
from twin.ollama.register import Meant, register
from twin.progress import Silent
from twin.records import Turn
from twin.settings import load_settings
from twin.templates import load_family, render, served
from twin.training.samples import prompt_ids

FAMILY = load_family("chatml")
# Dialogue in 28 languages that nobody here wrote; BSD-3-Clause.
CORPUS = packages.PackageFile(
    project="chatterbot-corpus==1.3.3",
    sha256="86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
    keep=("chatterbot_corpus/data/",),
)
HELD_OUT, FOREIGN = 100, 100
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
def test_two_hundred_prompts_are_served_as_trained(
    ollama: str, gguf: Path, tokenizer: Any, sample_brain: Path, record_property: Any
) -> None:
    pipeline.export(
        [sample_brain], load_settings(export={"person": "Wren Halloran", "validation_split": 0.2}), Silent()
    )
    rows = [row.turns[:-1] for row in read_rows(Path("data/val.jsonl")) if row.kind == "chat"]
    own = next(turns[0] for turns in rows if turns[0].role == "system")
    folder = packages.fetch(CORPUS, Silent()) / "chatterbot_corpus" / "data"
    foreign = [shaped(at, talk) for at, talk in enumerate(islice(exchanges(folder), FOREIGN))]
    # Conversations one after the other: what two prompts share, the server computes once.
    asked = [*sorted(rows, key=lambda turns: [turn.content for turn in turns])[:HELD_OUT], *foreign]
    assert len(asked) == HELD_OUT + FOREIGN

    def count(turns: Any) -> int:
        return len(prompt_ids(tokenizer, FAMILY, turns))

    ids = 0
    with OllamaClient(ollama) as client:
        register(
            client,
            "parity",
            gguf,
            Meant(FAMILY, own.content, {"temperature": 0.7, "num_ctx": 4096}, count, ()),
            license_text="",
            force=False,
            reporter=Silent(),
        )
        for turns in asked:
            meant = served.merged(turns if turns[0].role == "system" else [own, *turns])
            assert client.render("parity", turns) == render(FAMILY, meant)
            (answer,) = client.chat("parity", turns, {"num_predict": 1}, stream=False)
            assert answer["prompt_eval_count"] == count(meant)
            ids += count(meant)
        client.delete("parity")
    record_property("ids", ids)
    print(f"{len(asked)} prompts, {ids} ids")
