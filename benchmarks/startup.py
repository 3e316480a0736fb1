"""How long ``twin --help`` takes, as whole processes, beside a bare Typer app of eight commands.

    python benchmarks/startup.py [--runs 15]

The three commands take turns, so that a busy moment of the machine meets all of them; each one's first run is thrown
away (it fills the file cache and writes the ``.pyc`` files). The ratio of the medians is what the figure is for.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version

BARE = """
from typing import Annotated
import typer

app = typer.Typer(name="bare", add_completion=False, no_args_is_help=True, help="A bare app of eight commands.")


def one(
    source: Annotated[str, typer.Argument(help="What to read.")] = "brain",
    output: Annotated[str, typer.Option(help="Where to write.")] = "data",
    count: Annotated[int, typer.Option(help="How many.")] = 1,
    quiet: Annotated[bool, typer.Option(help="Say nothing.")] = False,
) -> None:
    pass


for name in ("one", "two", "three", "four", "five", "six", "seven", "eight"):
    app.command(name=name, help=f"Do the thing called {name}.")(one)
app()
"""

COMMANDS = {
    "bare Typer app --help": [sys.executable, "-c", BARE, "--help"],
    "twin --help": [sys.executable, "-m", "twin", "--help"],
    "twin train --help": [sys.executable, "-m", "twin", "train", "--help"],
}


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description="Time twin --help against a bare Typer app.")
    parser.add_argument("--runs", type=int, default=15, help="timed runs of each command")
    runs: int = parser.parse_args().runs
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for command in COMMANDS.values():
        seconds(command)
    for _ in range(runs):
        for name, command in COMMANDS.items():
            taken[name].append(seconds(command))
    print(
        f"Python {platform.python_version()}, typer {version('typer')}, {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} cores; whole processes, {runs} alternating runs each\n"
    )
    bare = statistics.median(taken["bare Typer app --help"])
    print(f"{'command':<24}{'median ms':>10}{'fastest':>9}{'slowest':>9}{'ratio':>8}")
    for name, times in taken.items():
        middle = statistics.median(times)
        low, high = min(times), max(times)
        print(f"{name:<24}{middle * 1e3:>10.0f}{low * 1e3:>9.0f}{high * 1e3:>9.0f}{middle / bare:>8.2f}")


if __name__ == "__main__":
    main()
