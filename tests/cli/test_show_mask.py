"""``twin train --show-mask``: what is learned, for people with and without colour, and for programs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from twin.cli.commands.train import _show
from twin.cli.console import Output
from twin.results import Masked

HOSTILE = Masked(
    "[red]chat[/red]\n>:1", "chat", "<|im_start|>user\n[bold]a?\x1b[2J\x07 \u202f:cat:\r\n> no<|im_end|>\n\n",
    "tea\n\n\x9b31m[/] fine<|im_end|>", 9, 4, 2,
)  # fmt: skip
PLAIN = """\
--- chat, [red]chat[/red] >:1: 9 tokens of context, 4 learned, 2 older turns cut
  <|im_start|>user↵
  [bold]a?\ufffd[2J\ufffd \u202f:cat:␍↵
  > no<|im_end|>↵
  ↵
> tea↵
> ↵
> \ufffd31m[/] fine<|im_end|>
"""


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1", "FORCE_COLOR": "1", "TERM": "xterm-256color"}], ids=str)
def test_what_is_learned_is_marked_without_colour(variables, monkeypatch, capfd):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    _show([HOSTILE], Output())
    assert capfd.readouterr().out == PLAIN


def test_on_a_terminal_it_is_coloured_too_and_chats_colour_nothing(monkeypatch, capfd):
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    _show([HOSTILE], Output())
    said = capfd.readouterr().out
    assert re.sub(r"\x1b\[[0-9;]*m", "", said) == PLAIN
    assert "\x1b[1;32m> tea↵" in said
    assert "\x1b[2m  > no<|im_end|>↵" in said
    assert set(re.findall(r"\x1b\[([0-9;]*)m", said)) == {"0", "1", "2", "1;32"}


def rows(*replies):
    said = [
        {"messages": [{"role": "system", "content": "Be Ana."}, {"role": "user", "content": f"how is day {number}?"},
                      {"role": "assistant", "content": reply}]}
        for number, reply in enumerate(replies)
    ]  # fmt: skip
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said), "utf-8")


TRAIN = ("train", "--preset", "smollm2-135m", "--dataset", "rows.jsonl", "--dry-run", "--quiet")


@pytest.mark.slow
def test_a_dry_run_shows_and_trains_nothing(twin):
    rows("fine", "a longer thing to say", "ok")
    done = twin(*TRAIN, "--show-mask", "2")
    assert done.returncode == 0, done.stderr
    shown = [
        f"--- chat, rows.jsonl:{number}@2: {context} tokens of context, {learned} learned\n"
        f"  <|im_start|>system↵\n  Be Ana.<|im_end|>↵\n  <|im_start|>user↵\n  how is day {number - 1}?<|im_end|>↵\n"
        f"  <|im_start|>assistant↵\n> {reply}<|im_end|>\n"
        for number, context, learned, reply in ((1, 23, 2, "fine"), (2, 23, 6, "a longer thing to say"))
    ]
    assert done.stdout.startswith("".join(shown))
    assert (
        "3 samples, 10 tokens to learn, each checked with llama.cpp; 0 lost their oldest turns, 0 were too long\n"
        in (done.stdout)
    )
    assert done.stdout.endswith("Nothing was written (--dry-run).\n")
    assert not Path("adapters").exists()
    said = json.loads(twin(*TRAIN, "--show-mask", "1", "--json").stdout)
    assert said["mask"] == [
        {
            "id": "rows.jsonl:1@2", "kind": "chat", "turns_cut": 0, "tokens": {"context": 23, "learned": 2},
            "pieces": [
                {"text": "<|im_start|>system\nBe Ana.<|im_end|>\n<|im_start|>user\nhow is day 0?<|im_end|>\n"
                         "<|im_start|>assistant\n", "learned": False},
                {"text": "fine<|im_end|>", "learned": True},
            ],
        }
    ]  # fmt: skip
    assert {key: said[key] for key in ("samples", "shortened", "too_long", "supervised_tokens")} == {
        "samples": 3, "shortened": 0, "too_long": 0, "supervised_tokens": 2 * 10,  # two passes
    }  # fmt: skip
    assert "mask" not in json.loads(twin(*TRAIN, "--json").stdout)


@pytest.mark.slow
def test_a_reply_that_the_vocabulary_can_not_write_is_left_out_and_counted(twin):
    rows("fine", "no\x06pe")
    done = twin(*TRAIN[:-1], "--json")
    said = json.loads(done.stdout)
    assert (done.returncode, said["unwritable"], said["supervised_tokens"]) == (0, 1, 2 * 2)  # two passes
    assert "1 replies are left out, for the vocabulary can't write them. What is learned of 'rows.jsonl:2@2'" in (
        done.stderr
    )


@pytest.mark.slow
def test_rows_of_which_the_vocabulary_can_write_none_stop_training(twin):
    rows("no\x06pe")
    done = twin(*TRAIN)
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.startswith("Error: What is learned of 'rows.jsonl:1@2' does not spell its reply, at byte 2: ")
    assert not Path("adapters").exists()
