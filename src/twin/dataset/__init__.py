"""Brain → rows. Pure functions on iterators; ``build`` puts them together.

conversations → sessions (window) → examples (window) ┐
memories, facts, journals, response examples (facts) ─┴→ clean → dedup → split → system prompt → formats
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from twin.dataset.clean import habits, normalise, reason_to_drop
from twin.dataset.dedup import Deduplicator
from twin.dataset.facts import fact_rows, journal_rows, memory_rows, response_rows
from twin.dataset.split import split
from twin.dataset.system import with_system
from twin.dataset.window import conversation_examples
from twin.errors import StepError
from twin.prompt import SystemPrompt, reworded
from twin.records import Brain, Example
from twin.settings import ExportSettings


@dataclass(frozen=True, slots=True)
class Dataset:
    """What an export found.

    Args:
        train: rows to learn from, shuffled by the seed.
        val: held-out rows, in the order of their conversations.
        dropped: how many rows were left out, by reason.
        kinds: how many rows were kept, by where they come from.
    """

    train: tuple[Example, ...]
    val: tuple[Example, ...]
    dropped: dict[str, int]
    kinds: dict[str, int]


def build(
    brain: Brain, prompt: SystemPrompt, settings: ExportSettings, tick: Callable[[], None] = lambda: None
) -> Dataset:
    """Return the dataset of ``brain``.

    Args:
        brain: what the person said.
        prompt: the system prompt; what stands in it does not become a row of its own.
        settings: filters, window, split and seed.
        tick: called once a row looked at.

    Raises:
        StepError: not one row is left; the sentence counts the reasons.
    """
    dropped: Counter[str] = Counter(brain.skipped)
    hand = habits(brain)
    seen = Deduplicator()
    kept: list[tuple[Example, float | None]] = []
    candidates = [
        *conversation_examples(brain, settings, dropped),
        *memory_rows(brain, prompt, hand),
        *fact_rows(brain, prompt, hand),
        *journal_rows(brain),
        *response_rows(brain),
    ]
    for example, at in candidates:
        tick()
        row = normalise(example)
        reason = reason_to_drop(row, settings.quality_filter)
        if reason is None and settings.deduplicate:
            reason = seen.reason_to_drop(row)
        if reason:
            dropped[reason] += 1
        else:
            kept.append((row, at))
    if not kept:
        reasons = ", ".join(f"{reason} {count}" for reason, count in dropped.most_common()) or "nothing was said"
        raise StepError(
            f"The dataset is empty: no row of '{brain.person}' is left ({reasons}).",
            "Check --person, add conversations in which they answer, or try --no-quality-filter.",
        )
    train, val = split(kept, settings)
    if not train:
        raise StepError(
            "The dataset has no training rows: all are held out.", "Lower --validation-split or add conversations."
        )
    if settings.include_system:
        train = with_system(train, prompt.text, reworded(brain), settings.seed)
        val = with_system(val, prompt.text, prompt.text, settings.seed, share=0)
    kinds: Counter[str] = Counter(example.kind for example in [*train, *val])
    return Dataset(tuple(train), tuple(val), dict(dropped), dict(kinds))
