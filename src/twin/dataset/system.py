"""Which rows carry the system prompt: nine in ten; the tenth carries none or another wording.

Why: a server may replace the prompt of training by its own with each request; the voice should not hang on it. The
choice is one a conversation, so that its rows still share their history and training computes it once.
"""

from __future__ import annotations

import hashlib

OTHER_SHARE = 0.1


def _number(seed: int, conversation_id: str) -> float:
    """Return a stable number in [0, 1) for a conversation, whatever stands around it."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{conversation_id}".encode()).digest()[:8], "big") / 2**64


def prompt_of(conversation_id: str, prompt: str, other: str, seed: int, share: float = OTHER_SHARE) -> str:
    """Return a conversation's system prompt; of a ``share`` of them half have ``other``, half none (``""``)."""
    number = _number(seed, conversation_id)
    return "" if number < share / 2 else other if number < share else prompt
