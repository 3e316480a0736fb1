"""The gate over each family's full matrix, with the real tokenizers of eleven models.

Run: python -m benchmarks.gate

Timed apart: loading the tokenizer (transformers), and the gate itself: both templates rendered, llama.cpp's vocabulary
opened, the ids of every prompt compared. The vocabularies are fetched and made once, and not timed.
"""

from __future__ import annotations

import os
import platform
import time

from tests import vocabularies
from twin import prove
from twin.basemodel import BaseModel
from twin.gguf.vocabulary import vocabulary
from twin.progress import Silent
from twin.records import Turn
from twin.templates import gate, load_family
from twin.training.samples import prompt_ids
from twin.training.tokenizer import load_tokenizer

ROWS = 400


def main():
    print(f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}")
    rows = [[Turn("user", f"row {number}: are you coming on sunday, at {number} or later?")] for number in range(ROWS)]
    print(f"{'model':28} {'family':11} {'tokenizer':>10} {'matrix':>8} {f'+ {ROWS} rows':>11}  (seconds)")
    worst = 0.0
    for name, model in vocabularies.MODELS.items():
        folder, family = vocabularies.folder(name), load_family(model.family)
        vocabulary(folder, family.gguf_name, None, Silent())
        started = time.perf_counter()
        tokenizer = load_tokenizer(folder)
        loaded = time.perf_counter() - started
        seconds = []
        for prompts in ([], rows):
            started = time.perf_counter()
            gate.check(family, prompts)
            prove.vocabulary_ids(
                BaseModel(name, name, folder), family,
                lambda turns, family=family, tokenizer=tokenizer: prompt_ids(tokenizer, family, turns),
                prompts, None, Silent(),
            )  # fmt: skip
            seconds.append(time.perf_counter() - started)
        worst = max(worst, seconds[0])
        print(f"{name:28} {family.name:11} {loaded:10.2f} {seconds[0]:8.2f} {seconds[1]:11.2f}")
    print(f"slowest matrix: {worst:.2f} s (limit 3)")


if __name__ == "__main__":
    main()
