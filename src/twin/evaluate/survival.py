"""Did the tune survive the GGUF: held-out replies under base and twin, both as files of one quantization.

Imported late: llama_cpp comes in through ``twin.llama``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from twin.evaluate.likelihood import compare, score_gguf
from twin.llama import open_gguf
from twin.progress import Reporter
from twin.records import Example, Sample, Scored
from twin.results import Survival
from twin.templates import Family, render

_ANSWER_TOKENS = 60


def prompts_to_show(rows: Sequence[Example], count: int) -> list[Example]:
    """Return a row from the middle of each of ``count`` conversations: openings are alike in any chat."""
    conversations: dict[str, list[Example]] = {}
    for row in rows:
        conversations.setdefault(row.conversation_id, []).append(row)
    middles = [group[len(group) // 2] for group in conversations.values()]
    middles = list({row.turns[-2].content: row for row in middles}.values())  # a prompt that two have is shown once
    return [middles[number * len(middles) // count] for number in range(min(count, len(middles)))]


def measure(
    base: Path,
    twin: Path,
    samples: Sequence[Sample],
    asked: Sequence[Example],
    family: Family,
    plan: dict[str, Any],
    adapter: dict[str, float] | None,
    reporter: Reporter,
) -> Survival:
    """Score ``samples`` under both files and let both answer.

    Args:
        base: the base model's GGUF.
        twin: the twin's, of the same quantization.
        samples: held-out replies.
        asked: held-out rows whose prompts both answer.
        family: the template pair of both.
        plan: the run's settings: ``max_length`` in tokens, ``temperature``.
        adapter: what training measured, carried along.
        reporter: told of progress.
    """
    scores: dict[str, list[Scored]] = {}
    replies: dict[str, list[str]] = {}
    for who, file in (("base", base), ("twin", twin)):
        with open_gguf(file, num_ctx=plan["max_length"] + _ANSWER_TOKENS) as model:
            with reporter.task(f"Held-out loss of the {who}'s GGUF", len(samples)) as task:
                scores[who] = score_gguf(model, samples, task.advance)
            with reporter.task(f"Answers of the {who}", len(asked)) as task:
                replies[who] = []
                for row in asked:
                    ids = model.ids(render(family, row.turns[:-1]))
                    parts = model.reply(ids, temperature=plan["temperature"], max_tokens=_ANSWER_TOKENS)
                    replies[who].append("".join(parts).strip())
                    task.advance()
    return Survival(
        adapter=adapter,
        gguf=asdict(compare(scores["base"], scores["twin"])),
        samples=tuple(
            {"prompt": row.turns[-2].content, "base": one, "twin": other, "person": row.reply}
            for row, one, other in zip(asked, replies["base"], replies["twin"], strict=True)
        ),
    )
