"""Which rows are held out: whole conversations, never a row here and its neighbour there."""

from __future__ import annotations

import random
from collections.abc import Sequence

from twin.records import Example
from twin.settings import ExportSettings


def held_out(conversations: Sequence[tuple[str, float | None]], settings: ExportSettings) -> set[str]:
    """Return the ids of the conversations held out.

    Args:
        conversations: id and beginning (seconds since 1970) of each, in a stable order.
        settings: ``validation_split`` of them (rounded, at least one unless 0), by ``split_by`` and ``seed``. Fewer
            than two conversations: none. By time, a conversation without a date counts as early.
    """
    if not settings.validation_split or len(conversations) < 2:
        return set()
    count = max(1, round(len(conversations) * settings.validation_split))
    if settings.split_by == "time":
        ordered = sorted(conversations, key=lambda pair: (pair[1] is not None, pair[1] or 0.0))
        return {name for name, _ in ordered[-count:]}
    names = sorted(name for name, _ in conversations)
    return set(random.Random(settings.seed).sample(names, count))  # noqa: S311 - a reproducible split, no secret


def split(
    rows: Sequence[tuple[Example, float | None]], settings: ExportSettings
) -> tuple[list[Example], list[Example]]:
    """Return (train, val).

    Chats are held out by conversation. By time, whatever else is dated after the first held-out conversation is held
    out with them: a journal of that week would tell the twin what it is later asked.
    """
    chats = {row.conversation_id: at for row, at in rows if row.kind == "chat"}
    out = held_out(list(chats.items()), settings)
    cutoff = float("inf")
    if settings.split_by == "time":
        cutoff = min((at for name, at in chats.items() if name in out and at is not None), default=cutoff)

    def is_val(row: Example, at: float | None) -> bool:
        return row.conversation_id in out or (row.kind != "chat" and at is not None and at >= cutoff)

    train = [row for row, at in rows if not is_val(row, at)]
    val = [row for row, at in rows if is_val(row, at)]
    random.Random(settings.seed).shuffle(train)  # noqa: S311 - reproducible order, no secret
    return train, val
