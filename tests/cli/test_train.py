"""``twin train`` as typed: what is told before, while and after it trains a model of two layers."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Twin, listing
from tests.tiny import save_model

pytestmark = pytest.mark.slow
OPTIONS = ("--name", "tiny", "--epochs", "2", "--batch-size", "4", "--lora-r", "4", "--device", "cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Path:
    return save_model(tmp_path_factory.mktemp("base") / "tiny-llama", smollm2)


@pytest.fixture
def train(twin: Twin, brain: Callable[..., Path], base: Path) -> Callable[..., object]:
    """``twin train`` with what an export of a small chat made."""
    brain(messages=64)
    assert twin("export", "--person", "Ada", "--validation-split", "0.25", "--quiet").returncode == 0
    shutil.rmtree("brain")
    return lambda *more, **options: twin("train", "--model", str(base), *OPTIONS, *more, **options)


def test_explain_adds_up_and_writes_nothing(train) -> None:
    before = listing()
    done = train("--explain", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    told = result["explain"]
    assert told["unique_tokens"] == result["unique_tokens"]
    assert (told["tokens"], told["steps"]) == (result["tokens"], result["steps"])
    assert told["tokens"] - told["last_tokens"] - told["shared_system"] - told["shared_history"] == result[
        "unique_tokens"
    ]  # fmt: skip
    assert sum(row["computed_tokens"] for row in told["costs"]) == pytest.approx(result["unique_tokens"])
    assert sum(one["rows"] for one in told["systems"]) == told["rows"] == len(told["costs"])
    assert told["execution"]["device"] == result["device"] == "cpu"
    assert listing() == before

    shown = train("--explain").stdout
    number = f"{told['unique_tokens']:,}"
    assert re.search(rf"^ +{number}  computed$", shown, re.MULTILINE)
    assert re.search(rf"^ +-{told['shared_history']:,}  shared: the history of a conversation$", shown, re.MULTILINE)
    ranked = sorted(told["costs"], key=lambda row: row["computed_tokens"] / row["times"])
    for which, row in (("cheapest", ranked[0]), ("dearest", ranked[-1])):
        cost = row["computed_tokens"] / row["times"]
        assert re.search(rf"^ +{which} +{row['tokens']} +[\d.]+ +{cost:.1f} +\S", shown, re.MULTILINE)
    assert shown.endswith("Nothing was written (--explain).\n")
    assert max(map(len, shown.split("\n\n")[3].split("\n"))) <= 100
    assert listing() == before
