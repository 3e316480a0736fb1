"""Which of the processes of one training this is, as torchrun and ``accelerate launch`` tell each of them.

The first one speaks, reads the dataset and writes; the others help. Without a launcher there is one process.
"""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process stands.

    Args:
        rank: its number among all, from 0.
        size: how many there are, on all machines.
        local_rank: its number on its machine, from 0.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def speaks(self) -> bool:
        """Say whether results and progress are its to tell."""
        return self.rank == 0

    @property
    def complains(self) -> bool:
        """Say whether errors are its to tell: one process of each machine does, for each has lines of its own."""
        return self.local_rank == 0


def place() -> Place:
    """Return where this process stands; alone where no launcher says otherwise."""
    told = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    if "MASTER_ADDR" not in os.environ or not all(text.isascii() and text.isdigit() for text in told):
        return Place()
    rank, size, local_rank = map(int, told)
    return Place(rank, size, local_rank) if size > 1 else Place()
