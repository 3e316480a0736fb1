"""Which rows carry the system prompt: nine in ten; the tenth carries none or another wording.

Why: a server may replace the prompt of training by its own with each request; the voice should not hang on it. The
choice is one a conversation, so that its rows still share their history and training computes it once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace

from twin.records import Example, Turn

OTHER_SHARE = 0.1


def _number(seed: int, conversation_id: str) -> float:
    """Return a stable number in [0, 1) for a conversation, whatever stands around it."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{conversation_id}".encode()).digest()[:8], "big") / 2**64


def with_system(
    rows: Iterable[Example], prompt: str, other: str, seed: int, share: float = OTHER_SHARE
) -> list[Example]:
    """Return the rows with a system turn first; of a ``share`` of conversations half have ``other``, half none."""
    done: list[Example] = []
    for row in rows:
        number = _number(seed, row.conversation_id)
        text = "" if number < share / 2 else other if number < share else prompt
        done.append(replace(row, turns=(Turn("system", text), *row.turns)) if text else row)
    return done
