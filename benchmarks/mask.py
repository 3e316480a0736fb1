"""What it costs to hold every sample against its row: 10,000 rows under a system prompt of 254 tokens (SmolLM2).

Run: python -m benchmarks.mask [MODEL]..., models of tests/vocabularies.py beside SmolLM2

CPU seconds, of building the samples (the tokenizer) and of the check (the Go template, llama.cpp's vocabulary); and of
llama.cpp reading every text whole, which the check does for a hundred. 1,000 conversations, in which each row keeps
four exchanges, so that its oldest turn is another one than that of the row before.
"""

from __future__ import annotations

import os
import platform
import random
import sys
import time
from pathlib import Path

from tests import vocabularies
from twin import basemodel
from twin.gguf.vocabulary import vocabulary
from twin.llama import open_gguf
from twin.progress import Silent
from twin.records import Example, Turn
from twin.templates import load_family, render
from twin.training import mask
from twin.training.samples import build_samples
from twin.training.tokenizer import load_tokenizer

ROWS, KEPT = 10_000, 8
SMOLLM2 = "SmolLM2-135M-Instruct"


def rows():
    words = (Path(__file__).parents[1] / "README.md").read_text("utf-8").split()
    chance = random.Random(0)  # noqa: S311 - made-up words

    def say(count):
        return " ".join(chance.choice(words) for _ in range(count))

    system, turns = Turn("system", say(140)), []
    for number in range(ROWS):
        turns = [*(turns if number % 10 else []), Turn("user", say(8)), Turn("assistant", say(8))][-KEPT:]
        yield Example(f"chat:{number}", str(number // 10), "chat", (system, *turns))


def main():
    print(f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}; {ROWS} rows, CPU seconds")
    print(f"{'model':28} {'samples':>8} {'check':>8} {'whole':>8}")
    examples = list(rows())
    for name in sys.argv[1:] or [SMOLLM2]:
        known = vocabularies.MODELS.get(name)
        folder = vocabularies.folder(name) if known else basemodel.resolve(basemodel.SMOLLM2, Silent()).folder
        family, tokenizer = load_family(known.family if known else "chatml"), load_tokenizer(folder)
        with open_gguf(vocabulary(folder, family.gguf_name, None, Silent()), vocab_only=True) as model:
            started = time.process_time()
            built = build_samples(examples, tokenizer, family, 4096)
            made = time.process_time()
            assert mask.check(built, model, family, 4096).samples == ROWS
            checked = time.process_time()
            for row in examples[:500]:
                model.ids(render(family, row.turns))
            whole = (time.process_time() - checked) * ROWS / 500
        print(f"{name:28} {made - started:8.1f} {checked - made:8.1f} {whole:8.1f}", flush=True)


if __name__ == "__main__":
    main()
