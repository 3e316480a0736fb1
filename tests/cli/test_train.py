"""``twin train`` as typed: what is told before, while and after it trains a model of two layers."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.cli.conftest import Twin, listing
from tests.cli.screen import seen
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


def test_what_a_run_tells_and_leaves(train) -> None:
    done = train()
    assert done.returncode == 0, done.stderr
    run = Path("adapters/tiny")
    record = json.loads((run / "run.json").read_text())
    logs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    result = record["result"]
    assert [entry["step"] for entry in logs] == list(range(1, result["steps"] + 1))
    for entry in logs:
        assert entry["seconds"] > 0 < entry["tokens_per_second"]
        assert entry["peak_rss_bytes"] <= 1.01 * result["peak_rss_bytes"]  # the kernel counts pages a little late
    assert not (run / "checkpoints").exists()
    # Every setting, version, seed, fingerprint, the machine, every figure.
    assert (record["plan"]["seed"], record["plan"]["lora_r"], record["report_to"]) == (0, 4, [])
    assert record["versions"].keys() >= {"torch", "transformers", "peft", "numpy"}
    assert re.fullmatch("[0-9a-f]{64}", record["dataset"]["train"]["sha256"])
    assert record["hardware"].keys() >= {"cpu", "cpu_cores", "cpu_threads", "memory_bytes", "gpus", "python"}
    assert result["optimizer"] == {
        "name": "MasterAdamW", "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0, "max_grad_norm": 1.0,
    }  # fmt: skip
    assert 0 < result["largest_pack"] <= result["token_budget"]
    assert result["packs"] >= result["steps"]
    assert result["peak_gpu_bytes"] is None
    # The loss, drawn.
    told, *plot = done.stdout.split("Loss a step, ")[1].split("\n")
    assert told == "nats a token (o: held out, before and after)"
    assert plot[0].lstrip().startswith("┌")
    assert max(map(len, plot)) <= 80
    assert plot[-2].split()[0::] == [str(tick) for tick in ticks(result["steps"])]
    assert sum(line.count("o") for line in plot) >= 1
    assert "\x1b" not in done.stdout + done.stderr


def ticks(steps: int) -> list[int]:
    return sorted({1 + round(place * (steps - 1) / 4) for place in range(5)})


def test_after_a_kill_each_line_is_whole_and_no_step_stands_twice(train, twin: Twin, base: Path) -> None:
    options = ("--model", str(base), *OPTIONS, "--batch-size", "1", "--epochs", "1")
    run = Path("adapters/tiny")
    growing = run / "checkpoints" / "metrics.jsonl"
    process = twin.start("train", *options)
    while not growing.exists() or growing.read_bytes().count(b"\n") < 13:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    before = [json.loads(line) for line in growing.read_text().splitlines()]
    assert [entry["step"] for entry in before] == list(range(1, len(before) + 1))
    assert not (run / "metrics.jsonl").exists()
    at = max(int(folder.name.partition("-")[2]) for folder in growing.parent.glob("checkpoint-*"))
    done = twin("train", *options, "--resume-from", "auto", "--json")
    steps = json.loads(done.stdout)["steps"]
    assert steps > len(before)
    after = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in after] == list(range(1, steps + 1))
    kept = [new == old for new, old in zip(after, before, strict=False)]
    assert kept == [step < at for step in range(len(kept))] or all(kept)


def test_json_is_one_object_and_quiet_is_quiet(train) -> None:
    done = train("--json", "--quiet", env={"WANDB_MODE": "offline"})  # at which transformers prints
    assert done.stderr == "[INFO] Running in WANDB offline mode\n"
    assert set(json.loads(done.stdout)) >= {"adapter", "val_loss", "packs", "optimizer", "peak_rss_bytes"}


@pytest.mark.skipif(sys.platform == "win32", reason="a pty")
@pytest.mark.parametrize("columns", [80, 34])
def test_on_a_terminal_the_figures_stay_and_fit(train, base: Path, columns: int) -> None:
    code, text = seen(["train", "--model", str(base), *OPTIONS], columns, {"TERM": "xterm", "NO_COLOR": "1"})
    assert code == 0, text
    logs = [json.loads(line) for line in Path("adapters/tiny/metrics.jsonl").read_text().splitlines()]
    lines = text.split("\n")
    (place,) = (number for number, line in enumerate(lines) if line.startswith("Training "))
    assert f"{len(logs)}/{len(logs)}" in lines[place] or columns < 80
    assert re.fullmatch(rf"loss ([▁-█]+ )?{logs[-1]['loss']:.3f}, held out \d+\.\d{{3}}", lines[place + 1])
    assert re.match(r"[\d,]+ tokens/s, peak memory", lines[place + 2])
    assert max(map(len, lines[place : place + 3])) <= columns
    assert "Held-out loss before" not in "".join(line for line in lines if "━" in line)
    assert not re.search("Training: ", text)  # told once


def test_a_tracker_that_is_not_there_is_one_sentence(train, twin: Twin) -> None:
    if find_spec("wandb"):
        pytest.skip("wandb is installed")
    twin.refuses(
        "train", "--report-to", "wandb", exit_code=3,
        error="To report to wandb the package wandb has to be installed, and it is not.", hint="pip install wandb",
    )  # fmt: skip
    twin.refuses(
        "train", "--report-to", "wand", exit_code=2,
        error="'wand' is no train.report_to.0.", hint="Did you mean 'wandb'?",
    )  # fmt: skip


def test_tensorboard_is_told_in_the_runs_folder(train) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = train("--report-to", "tensorboard", "--json")
    assert done.returncode == 0, done.stderr
    events = EventAccumulator("adapters/tiny/tensorboard")
    events.Reload()
    logs = [json.loads(line) for line in Path("adapters/tiny/metrics.jsonl").read_text().splitlines()]
    assert [(one.step, round(one.value, 4)) for one in events.Scalars("train/loss")] == [
        (entry["step"], round(entry["loss"], 4)) for entry in logs
    ]
    assert json.loads(Path("adapters/tiny/run.json").read_text())["report_to"] == ["tensorboard"]
    for file in Path("adapters/tiny/tensorboard").iterdir():
        assert b"message 1" not in file.read_bytes()  # no row's text


def test_training_on_tells_what_it_was_worth(train, twin: Twin, brain: Callable[..., Path]) -> None:
    assert train("--quiet").returncode == 0
    brain(messages=120)
    assert twin("export", "--person", "Ada", "--validation-split", "0.25", "--quiet").returncode == 0
    again = ("--from-adapter", "adapters/tiny", "--name", "tiny-2")
    assert train(*again, "--lora-r", "8").stderr.endswith(
        "Error: 'adapters/tiny' was trained with lora_r 4, and this is 8.\n"
        "Hint: Use --lora-r 4. Or train from nothing: leave --from-adapter out.\n"
    )
    planned = json.loads(train(*again, "--replay", "0", "--dry-run", "--json").stdout)["earlier"]
    assert planned["new_rows"] > 0 == planned["replayed_rows"] < planned["not_replayed_rows"]
    assert not Path("adapters/tiny-2").exists()
    done = train(*again)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\d+ new rows, and once more \d+ of the \d+ that 'adapters/tiny' learned$", done.stderr, re.M)
    assert re.search(r"^  with the earlier adapter \d+\.\d{3}, so [+-]\d\.\d{3} by this training$", done.stdout, re.M)
    told = json.loads(Path("adapters/tiny-2/run.json").read_text())
    assert told["result"]["val_loss_earlier"] == told["result"]["val_change_earlier"]["before"]
