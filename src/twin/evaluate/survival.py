"""Did the tune survive the GGUF: held-out replies under base and twin, both as files of one quantization.

What there was to survive is measured by llama.cpp too: on the base model before its quantization, with the adapter
added to it as it runs. Nothing there is merged or quantized, so what either loses shows. ``refusal`` is the gate.

Imported late: llama_cpp comes in through ``twin.llama``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from twin.evaluate.likelihood import compare, keep, score_gguf
from twin.llama import Gguf, open_gguf
from twin.progress import Reporter
from twin.records import Example, Sample, Scored
from twin.results import Answered, Survival

LEAST_KEPT = 0.90
LEAST_KEPT_LOW = 0.75  # the lower end of the interval
_ANSWER_TOKENS = 60
_MOST_REPLIES = 200
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Files:
    """What is compared, all GGUF.

    Args:
        reference: the base model before its quantization.
        adapter: the adapter, which is added to ``reference``.
        base: the base model, quantized as the twin is; may be ``reference`` itself.
        twin: the twin's.
    """

    reference: Path
    adapter: Path
    base: Path
    twin: Path


def spread(samples: Sequence[Sample], most: int = _MOST_REPLIES) -> list[Sample]:
    """Return at most ``most`` samples of all conversations: as many of each as it has, or as there is room for.

    They stay in their order, in which neighbours share their beginnings. The same samples give the same ones.
    """
    groups: dict[str, list[int]] = {}
    for number, sample in enumerate(samples):
        groups.setdefault(sample.conversation_id, []).append(number)
    conversations = sorted(_evenly(list(groups.values()), most), key=len)
    chosen: list[int] = []
    for done, group in enumerate(conversations):  # the shortest first: the room that they leave is the others'
        chosen += _evenly(group, (most - len(chosen)) // (len(conversations) - done))
    return [samples[number] for number in sorted(chosen)]


def _evenly(items: Sequence[T], most: int) -> list[T]:
    """Return at most ``most`` of the items, as far from one another as can be."""
    count = min(len(items), most)
    return [items[(2 * place + 1) * len(items) // (2 * count)] for place in range(count)]


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
    files: Files,
    samples: Sequence[Sample],
    asked: Sequence[tuple[Example, Sequence[int]]],
    plan: dict[str, Any],
    reporter: Reporter,
) -> Survival:
    """Score ``samples`` under all four models and let base and twin answer.

    Args:
        files: of the models.
        samples: held-out replies.
        asked: held-out rows and the ids of their prompts, which both answer.
        plan: the run's settings: ``max_length`` in tokens, ``temperature``.
        reporter: told of progress.

    Returns:
        The figures. Whose they are, and whether they are enough, is not said yet.
    """
    num_ctx = plan["max_length"] + _ANSWER_TOKENS

    def score(model: Gguf, whose: str) -> list[Scored]:
        with reporter.task(f"Held-out loss of the {whose}", len(samples)) as task:
            return score_gguf(model, samples, task.advance)

    def answer(model: Gguf, whose: str) -> list[str]:
        replies = []
        with reporter.task(f"Answers of the {whose}", len(asked)) as task:
            for _, ids in asked:
                parts = model.reply(ids, temperature=plan["temperature"], max_tokens=_ANSWER_TOKENS)
                replies.append("".join(parts).strip())
                task.advance()
        return replies

    with open_gguf(files.reference, num_ctx) as model:
        plain = score(model, "base model")
        with model.adapted(files.adapter):
            adapted = score(model, "base model with the adapter")
    with open_gguf(files.base, num_ctx) as model:
        base = plain if files.base == files.reference else score(model, "base's GGUF")
        of_base = answer(model, "base")
    with open_gguf(files.twin, num_ctx) as model:
        twin = score(model, "twin's GGUF")
        of_twin = answer(model, "twin")
    kept = keep((plain, adapted), (base, twin))
    return Survival(
        reference=compare(plain, adapted),
        gguf=compare(base, twin),
        kept=kept.share,
        kept_low=kept.low,
        kept_high=kept.high,
        samples=tuple(
            Answered(row.turns[-2].content, one, other, row.reply)
            for (row, _), one, other in zip(asked, of_base, of_twin, strict=True)
        ),
    )


def refusal(measured: Survival) -> str:
    """Return why a twin is refused, one sentence; empty where it may be served.

    It must keep 90 % of what the adapter gains, and 75 % at the lower end of the interval. An adapter whose own gain
    may be nothing has nothing to keep. One conversation has no interval: there the figure alone counts.
    """
    gain = measured.reference
    if gain.nothing:
        interval = "" if gain.high is None else f", 95 % interval of the change {gain.low:+.3f} to {gain.high:+.3f}"
        return (
            f"The adapter changes nothing measurable: {gain.before:.3f} nats a token without it and "
            f"{gain.after:.3f} with it on {gain.replies} held-out replies{interval}."
        )
    low = measured.kept if measured.kept_low is None else measured.kept_low
    if measured.kept >= LEAST_KEPT and low >= LEAST_KEPT_LOW:
        return ""
    return (
        f"The {measured.quantization} GGUF kept {measured.share()}, where {LEAST_KEPT * 100:.0f} % are needed and "
        f"{LEAST_KEPT_LOW * 100:.0f} % at the interval's lower end."
    )
