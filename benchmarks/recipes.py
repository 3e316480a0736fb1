"""Held-out loss for learning rates, ranks and passes, on several people's chats: how a preset's values are found.

    python -m benchmarks.recipes --data wren english spanish [--preset smollm2-135m] [--learning-rates 1e-3 2e-3]
                                 [--ranks 16] [--epochs 1 2] [--jobs 1] [--json results.jsonl]

Each cell is a whole ``twin train`` in a process of its own, its figure the loss of all held-out replies in nats a token
(conversations that no learned row is of), with the adapter that it leaves. A dataset is a folder that ``twin export``
wrote, ``wren`` (the bundled sample), or a language of ``chatterbot-corpus`` (dialogue that nobody here wrote), whose
exchanges become a chat of two people.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

CELL = ("learning_rate", "lora_r", "epochs")


def write_corpus(language: str, folder: Path) -> None:
    """Write a language's exchanges as a table of messages, ten minutes a message, a day a conversation."""
    import yaml

    from tests.test_end_to_end import CORPUS
    from twin import packages
    from twin.progress import Silent

    source = packages.fetch(CORPUS, Silent()) / "chatterbot_corpus" / "data" / language
    with (folder / "chat.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["date", "sender", "text"])
        day = 0
        for part in sorted(source.glob("*.yml")):
            for talk in yaml.safe_load(part.read_text("utf-8"))["conversations"]:
                day += 1
                for place, said in enumerate(talk):
                    date = f"20{10 + day // 336:02}-{day // 28 % 12 + 1:02}-{day % 28 + 1:02}T10:{place:02}:00"
                    table.writerow([date, ("Ann", "Sam")[place % 2], str(said)])


def exported(name: str, scratch: Path) -> Path:
    """Return the folder of a dataset, made where it is not one."""
    from twin import curate, sample
    from twin.progress import Silent
    from twin.settings import load_settings

    if Path(name).is_dir():
        return Path(name)
    source, person = Path(sample.__file__).parent / "brain", "Wren Halloran"
    if name != "wren":
        source, person = scratch / f"{name}-chat", "Sam"
        source.mkdir()
        write_corpus(name, source)
    folder = scratch / name
    curate.export([source], load_settings(export={"person": person, "output": folder}), Silent())
    return folder


def trained(cell: dict[str, Any], data: Path, preset: str, device: str, scratch: Path) -> dict[str, Any]:
    """Run ``twin train`` and return what it measured."""
    name = "-".join(str(value) for value in cell.values())
    options = [part for key, value in cell.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    command = [
        sys.executable, "-m", "twin", "train", "--json", "--quiet", "--preset", preset, "--device", device,
        "--dataset", str(data.absolute() / "train.jsonl"), "--output", str(scratch / data.name / name), *options,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    if done.returncode:
        return {**cell, "data": data.name, "error": (done.stdout or done.stderr).strip()[-300:]}
    told = json.loads(done.stdout)
    kept = (
        "val_loss_base",
        "val_loss",
        "val_change",
        "train_loss",
        "steps",
        "best_step",
        "seconds",
        "device",
        "tokens",
    )
    return {**cell, "data": data.name, **{key: told.get(key) for key in kept}}


def table(results: list[dict[str, Any]], names: list[str]) -> list[str]:
    """Return Markdown: a row a cell, its loss on each dataset; the lowest of each in bold."""
    of = {(*(one[key] for key in CELL), one["data"]): one for one in results}
    cells = sorted({tuple(one[key] for key in CELL) for one in results})
    best = {
        name: min(one["val_loss"] for one in results if one["data"] == name and "error" not in one) for name in names
    }
    lines = ["| learning rate | rank | passes | " + " | ".join(names) + " | seconds |", "|---" * (4 + len(names)) + "|"]
    for cell in cells:
        found = [of[*cell, name] for name in names]
        shown = []
        for name, one in zip(names, found, strict=True):
            loss = "failed" if "error" in one else f"{one['val_loss']:.3f}"
            shown.append(f"**{loss}**" if one.get("val_loss") == best[name] else loss)
        seconds = sum(one.get("seconds") or 0 for one in found)
        lines.append(f"| {cell[0]:g} | {cell[1]} | {cell[2]:g} | " + " | ".join(shown) + f" | {seconds:.0f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Find a preset's values by held-out loss.")
    parser.add_argument("--data", nargs="+", default=["wren", "english"])
    parser.add_argument("--preset", default="smollm2-135m")
    parser.add_argument("--learning-rates", nargs="+", type=float, default=[1e-3, 2e-3])
    parser.add_argument("--ranks", nargs="+", type=int, default=[16])
    parser.add_argument("--epochs", nargs="+", type=float, default=[1.0, 2.0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once: for a GPU that one does not fill")
    parser.add_argument("--json", type=Path, help="a file that each result is added to")
    given = parser.parse_args()
    grid = itertools.product(given.learning_rates, given.ranks, given.epochs)
    cells = [dict(zip(CELL, values, strict=True)) for values in grid]
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        data = [exported(name, scratch) for name in given.data]
        results: list[dict[str, Any]] = []

        def one(work: tuple[dict[str, Any], Path]) -> None:
            results.append(trained(*work, given.preset, given.device, scratch))
            print(f"{len(results)} of {len(cells) * len(data)}: {results[-1]}", file=sys.stderr, flush=True)
            if given.json:
                with given.json.open("a") as file:
                    file.write(json.dumps(results[-1]) + "\n")

        with ThreadPoolExecutor(given.jobs) as pool:
            list(pool.map(one, [(cell, where) for cell in cells for where in data]))
    for where in data:
        base = next((one["val_loss_base"] for one in results if one["data"] == where.name and "error" not in one), None)
        print(f"{where.name}: {base} nats a token before")
    print("\n".join(table(results, [where.name for where in data])))


if __name__ == "__main__":
    main()
