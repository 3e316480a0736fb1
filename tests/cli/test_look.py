"""``stats``, ``preview`` and ``forget`` as they are typed: what is on stdout, what is said, what is written."""

import json
import re
from pathlib import Path

import pytest


def test_stats_for_people(twin, brain):
    brain()
    done = twin("stats", "--person", "Ada")
    assert done.returncode == 0
    assert done.stdout.startswith("Ada: 20 of 40 messages in 1 chats, 0 memories, 0 journal entries\n")
    for title in ("Own messages a month", "Own messages by hour of the day", "Messages by person"):
        assert title in done.stdout
    assert re.search(r"^  10 █{40} 20$", done.stdout, re.MULTILINE)
    assert "\x1b" not in done.stdout
    assert done.stderr == "Next: twin preview, or twin export\n"
    assert sorted(path.name for path in Path().iterdir()) == ["brain"]


def test_stats_for_programs(twin, brain):
    brain()
    done = twin("stats", "--person", "Ada", "--json")
    found = json.loads(done.stdout)
    assert (found["messages"], found["own_messages"], found["rows"]["total"]) == (40, 20, 20)
    assert done.stderr == ""


def test_preview_marks_what_is_learned(twin, brain):
    brain()
    done = twin("preview", "2", "--person", "Ada", "--seed", "1")
    assert done.returncode == 0
    assert done.stdout.count("--- chat, chat.txt:") == 2
    learned = [line for line in done.stdout.splitlines() if line.startswith("> ")]
    assert len(learned) == 2
    assert all(line.startswith("> Ada: message ") for line in learned)
    assert "  Bo: message " in done.stdout
    assert sorted(path.name for path in Path().iterdir()) == ["brain"]


def test_preview_of_a_reason(twin, brain):
    brain("01/01/2024, 10:00 - Bo: <Media omitted>\n01/01/2024, 10:01 - Bo: hi\n01/01/2024, 10:02 - Ada: yo there\n")
    done = twin("preview", "--dropped", "media", "--person", "Ada")
    assert (done.returncode, done.stdout) == (0, "--- chat.txt\n  Bo: <Media omitted>\n")
    twin.refuses(
        "preview", "--dropped", "meida", "--person", "Ada", "--quiet",
        exit_code=2, error="Nothing was left out for 'meida'.", hint="Did you mean 'media'?",
    )  # fmt: skip


def test_forget_as_it_is_typed(twin, brain):
    brain()
    Path("twin.toml").write_text('[export]\nperson = "Ada"\n')
    assert twin("export").returncode == 0
    would = twin("forget", "--before", "2000-01-03", "--dry-run")
    assert would.returncode == 0
    assert would.stdout.startswith("Would hide: before 2000-01-03: 16 messages")
    assert would.stdout.splitlines()[1] == "Would be exported again: data"
    assert not Path("forgotten.json").exists()
    done = twin("forget", "--before", "2000-01-03")
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == "Hidden: before 2000-01-03: 16 messages, 0 memories and journal entries"
    assert re.match(r"Exported again: \d+ rows to learn, \d+ held out", done.stdout.splitlines()[1])
    assert done.stdout.splitlines()[1].endswith(" held out, in data")
    assert json.loads(Path("forgotten.json").read_text())["forgotten"][0]["before"] == "2000-01-03T00:00:00"


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["forget"], "Nothing is named.", "Say what to forget: twin forget PERSON, --source NAME or --before DATE"),
        (["export", "--via", "web"], "'web' is no --via.", "Known: app, brain."),
        (
            ["export", "--via", "app", "brain"],
            "--via app fetches the app's own rows alone.",
            "Leave out sources and --dry-run, or: --via brain",
        ),
    ],
)
def test_a_slip_of_the_hand(twin, brain, arguments, error, hint):
    brain()
    twin.refuses(*arguments, exit_code=2, error=error, hint=hint)
