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

_ANSWER_TOKENS = 60


def prompts_to_show(
    rows: Sequence[Example], samples: Sequence[Sample], count: int
) -> list[tuple[Example, tuple[int, ...]]]:
    """Return rows and the ids of their prompts, one from the middle of each of ``count`` conversations.

    Openings are alike in any chat; a prompt that two conversations have is shown once. The ids are those of training:
    cut where the conversation is longer than the context.
    """
    prompts: dict[str, tuple[int, ...]] = {}
    for sample in samples:
        for row_id in (sample.id, sample.id.rpartition("@")[0]):  # a row of several replies: the last one's stays
            prompts[row_id] = sample.input_ids[: sample.prompt_length]
    conversations: dict[str, list[Example]] = {}
    for row in rows:
        if row.id in prompts:
            conversations.setdefault(row.conversation_id, []).append(row)
    middles = [group[len(group) // 2] for group in conversations.values()]
    middles = list({row.turns[-2].content: row for row in middles}.values())
    count = min(count, len(middles))
    chosen = [middles[number * len(middles) // count] for number in range(count)]
    return [(row, prompts[row.id]) for row in chosen]


def measure(
    base: Path,
    twin: Path,
    samples: Sequence[Sample],
    asked: Sequence[tuple[Example, Sequence[int]]],
    plan: dict[str, Any],
    adapter: dict[str, float | None] | None,
    reporter: Reporter,
) -> Survival:
    """Score ``samples`` under both files and let both answer.

    Args:
        base: the base model's GGUF.
        twin: the twin's, of the same quantization.
        samples: held-out replies.
        asked: held-out rows and the ids of their prompts, which both answer.
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
                for _, ids in asked:
                    parts = model.reply(ids, temperature=plan["temperature"], max_tokens=_ANSWER_TOKENS)
                    replies[who].append("".join(parts).strip())
                    task.advance()
    return Survival(
        adapter=adapter,
        gguf=asdict(compare(scores["base"], scores["twin"])),
        samples=tuple(
            {"prompt": row.turns[-2].content, "base": one, "twin": other, "person": row.reply}
            for (row, _), one, other in zip(asked, replies["base"], replies["twin"], strict=True)
        ),
    )
