"""The sample person: enough of it, one voice, dated, and nothing laid over what is there."""

from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from twin import brain, prompt, sample
from twin.dataset import build
from twin.dataset.dedup import jaccard, shingles
from twin.settings import load_settings

CATEGORIES = {"preferences", "facts", "relationships", "experiences", "opinions", "habits", "goals"}


@pytest.fixture(scope="module")
def wren(sample_brain):
    return brain.load([sample_brain])


def test_there_is_enough_of_it(wren):
    assert wren.person == "Wren Halloran"
    assert len(wren.memories) >= 60
    assert {memory.category for memory in wren.memories} == CATEGORIES
    assert len(wren.journals) >= 12
    assert all(entry.at for entry in wren.journals)
    talks = list(wren.conversations())
    others = {message.speaker for talk in talks for message in talk.messages} - {wren.person}
    assert len(others) >= 4
    assert {talk.id.partition("/")[0].rpartition(".")[2] for talk in talks} == {"txt", "json"}
    assert all(message.at for talk in talks for message in talk.messages)


def test_exchanges_conversations_and_what_is_held_out(wren, sample_brain):
    Path("twin.toml").write_text((sample_brain.parent / "twin.toml").read_text("utf-8"), "utf-8")
    settings = load_settings().export
    built = build(wren, prompt.build(wren), settings, Path())
    rows = [row for row in [*built.train, *built.val] if row.kind == "chat"]
    assert len(rows) >= 450
    conversations = Counter(row.conversation_id for row in rows)
    assert len(conversations) >= 70
    assert sum(count > 1 for count in conversations.values()) >= 70  # multi-turn
    assert len({row.conversation_id for row in built.val if row.kind == "chat"}) >= 20


def test_replies_are_not_made_from_templates(wren, sample_brain):
    built = build(wren, prompt.build(wren), load_settings(export={"deduplicate": False}).export, Path())
    long = [shingles(row.reply) for row in [*built.train, *built.val] if row.kind == "chat" and len(row.reply) >= 30]
    assert len(long) >= 400
    alike = sum(jaccard(one, other) > 0.5 for one, other in combinations(long, 2))
    assert alike == 0


def test_what_is_there_stays(tmp_path):
    (tmp_path / "twin.toml").write_text("# mine\n", "utf-8")
    sample.lay(tmp_path)
    assert (tmp_path / "twin.toml").read_text("utf-8") == "# mine\n"
    assert {path.name for path in tmp_path.iterdir()} - {"home", "project"} == {"brain", "twin.toml"}
    assert brain.load([tmp_path / "brain"]).person == "Wren Halloran"
