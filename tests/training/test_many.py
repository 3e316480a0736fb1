"""Several processes, gloo on a CPU: the losses and the adapter of one, ends and errors that all share."""

import json
import os
import signal
import socket
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.training.test_backend_hf import SAMPLES, weights
from tests.training.test_checkpoints import HELD_OUT, ONE, At, losses, plan_of, save_base
from twin import runs
from twin.errors import TwinError
from twin.progress import Silent
from twin.training import backend_hf, execution, many
from twin.training.prefix_tree import even_cuts

BUDGET = 11  # tokens of a piece: a step has several
SECONDS = 120


def plan_for():
    return plan_of(epochs=2).model_copy(update={"lora_dropout": 0.0})


def work(base, folder, plan, reporter=None):
    """Train as ``pipeline.train`` does, in one process or beside others; go on where there is a checkpoint."""
    execution.TOKEN_BUDGET = BUDGET

    def lead():
        folder.mkdir(exist_ok=True)
        found = runs.newest_checkpoint(folder / "checkpoints")
        learned, measured = SAMPLES[6:], HELD_OUT
        job = backend_hf.Job(
            base, "owner/model", plan, learned, measured, folder / "checkpoints", folder, ONE, found
        )  # fmt: skip
        return backend_hf.train(many.lead(job), reporter or Silent())

    with many.joined() as world:
        if not world.first:
            with many.follow(lambda name: base) as job:
                backend_hf.train(job, reporter or Silent())
        return world.share(lead)


def process(rank, size, port, fsdp, change, base, folder, plan):
    """One of several, in a folder of its own: as on machines that share no disk."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        ACCELERATE_USE_FSDP=str(fsdp),
    )  # fmt: skip
    own = folder.with_name(f"{folder.name}-{rank}")
    own.mkdir(exist_ok=True)
    os.chdir(own)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    reporter = Silent()
    if change:
        base, plan, reporter = change(rank, base, plan) or (base, plan, reporter)
    try:
        done = work(base, Path("run") if rank else folder, plan, reporter)
    except TwinError as error:
        told = {"error": error.message, "code": error.exit_code}
    except OSError as error:
        told = {"error": str(error), "code": 1}
    else:
        facts = (done.processes, done.packs, done.tokens, done.supervised_tokens, done.best_step)
        told = {"losses": losses(done), "facts": facts, "after": [one.nll for one in done.after]}
    (own / "told.json").write_text(json.dumps(told))


@pytest.fixture
def together(context, base, tmp_path):
    """Run several processes to their ends; return what each told."""

    def run(size=2, fsdp=False, change=None, name="run", plan=None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        folder = tmp_path / name
        started = [
            context.Process(target=process, args=(rank, size, port, fsdp, change, base, folder, plan or plan_for()))
            for rank in range(size)
        ]
        for one in started:
            one.start()
        for one in started:
            one.join(SECONDS)
        hung = [one.kill() for one in started if one.is_alive()]
        assert not hung
        own = [folder.with_name(f"{name}-{rank}") for rank in range(size)]  # nothing is written but by the first
        assert all({file.name for file in one.iterdir()} <= {"told.json", "base"} for one in own[1:])
        return [json.loads((one / "told.json").read_text()) for one in own if (one / "told.json").exists()]

    return run


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def alone(base, tmp_path_factory):
    """The same training in one process: its folder and what it measured."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execution, "TOKEN_BUDGET", BUDGET)
        return folder, work(base, folder, plan_for())


def apart(one: Path, other: Path) -> float:
    """The largest relative difference of a weight matrix."""
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).norm() / left[name].norm()) for name in left)


def assert_as_alone(told, alone, folder):
    done = alone[1]
    assert told[1:] == told[:-1]  # each process returns what the first does
    size = len(told)
    assert told[0]["facts"][0] == size
    assert told[0]["facts"][2:] == [done.tokens, done.supervised_tokens, done.best_step]
    for here, there in zip(told[0]["losses"], losses(done), strict=True):
        assert here == pytest.approx(there, rel=1e-4)
    assert told[0]["after"] == pytest.approx([score.nll for score in done.after], rel=1e-4)
    assert apart(alone[0], folder) < 1e-4


def test_two_processes_give_the_losses_and_the_adapter_of_one(together, alone, tmp_path):
    assert_as_alone(together(), alone, tmp_path / "run")


def drops_its_pieces(rank, base, plan):
    if rank:
        real = many.share
        many.share = lambda pieces: [
            one._replace(work=replace(one.work, weights=one.work.weights * 0)) for one in real(pieces)
        ]


def keeps_its_gradients(rank, base, plan):
    from accelerate import Accelerator

    Accelerator.prepare = lambda self, *given: given if len(given) > 1 else given[0]  # no DDP


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [drops_its_pieces, keeps_its_gradients])
def test_a_process_that_leaves_something_out_gives_another_adapter(together, alone, tmp_path, wrong):
    together(change=wrong, plan=plan_for())
    assert apart(alone[0], tmp_path / "run") > 1e-2


@pytest.mark.slow
def test_more_processes_than_samples_in_a_step(together, alone, tmp_path):
    assert_as_alone(together(size=4), alone, tmp_path / "run")


def sees_shares(rank, base, plan):
    real = many.keep_sharded

    def keep(model):
        shares = {name: one for name, one in model.named_parameters() if isinstance(one, many.DTensor)}
        assert len(shares) > 10
        assert all(one.to_local().numel() * 2 == one.numel() for one in shares.values())
        assert not any(one.requires_grad for one in shares.values())
        real(model)

    many.keep_sharded = keep


@pytest.mark.slow
def test_with_fsdp_each_process_holds_a_share_of_the_base_model_and_the_adapter_is_that_of_one(
    together, alone, tmp_path
):
    assert_as_alone(together(fsdp=True, change=sees_shares), alone, tmp_path / "run")


# ---------------------------------------------------------------- all end alike


def ends_at(who, step, rank, base, plan):
    reporter = At(step, lambda: os.kill(os.getpid(), signal.SIGTERM)) if rank == who else Silent()
    return base, plan, reporter


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("fsdp", [False, True], ids=["DDP", "FSDP"])
def test_a_signal_to_any_process_ends_all_after_the_same_step_and_they_go_on(together, alone, base, tmp_path, fsdp):
    told = together(change=partial(ends_at, 1, 13), fsdp=fsdp)
    assert told == [{"error": "Training stopped after step 13 of 20, which is kept.", "code": 143}] * 2
    (kept,) = (tmp_path / "run/checkpoints").glob("checkpoint-*")
    assert {file.name for file in kept.glob("rng*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    assert_as_alone(together(fsdp=fsdp), alone, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_one_process_goes_on_where_two_stopped(together, alone, base, tmp_path, monkeypatch):
    together(change=partial(ends_at, 0, 13))
    monkeypatch.setattr(execution, "TOKEN_BUDGET", BUDGET)
    done = work(base, tmp_path / "run", plan_for())
    assert (done.done_steps, done.best_step) == (7, alone[1].best_step)
    assert apart(alone[0], tmp_path / "run") < 1e-4


def lacks_the_base(rank, base, plan):
    return (base / "nothing" if rank else base), plan, Silent()


def fails_in_the_first(rank, base, plan):
    return base, plan.model_copy(update={"target_modules": ["nothing"]}), Silent()


def is_killed(rank, base, plan):
    return base, plan, At(14, lambda: os.kill(os.getpid(), signal.SIGKILL)) if rank else Silent()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_the_first_one_does_not_wait_for_one_that_was_killed(together, alone, tmp_path):
    (told,) = together(change=is_killed)
    assert told == {"error": "Another process of this training ended.", "code": 3}
    (kept,) = (tmp_path / "run/checkpoints").glob("checkpoint-*")
    assert kept.name == "checkpoint-10"
    assert_as_alone(together(), alone, tmp_path / "run")


def has_another_base(rank, base, plan):
    return (save_base(Path("base"), nan_token=5) if rank else base), plan, Silent()


def test_another_base_model_on_another_machine_is_refused(together, alone):
    told = together(change=has_another_base)
    assert told == [{"error": "The base model's weights are not the same for all processes.", "code": 2}] * 2


def test_what_fails_in_one_process_is_said_in_all(together):
    first, second = together(change=lacks_the_base)
    assert first == {"error": f"Process 1 failed: OSError: {second['error']}", "code": 4}
    told = together(change=fails_in_the_first, name="gate")
    assert told == [{"error": "The base model has no module nothing.", "code": 5}] * 2


# ---------------------------------------------------------------- who does what


def test_a_step_is_divided_evenly_and_in_order(monkeypatch):
    monkeypatch.setattr(execution, "TOKEN_BUDGET", BUDGET)
    for size in (1, 2, 3, 5, 8):
        for count in (1, 2, 5, 12):
            monkeypatch.setattr(many, "_world", many.World(size=size))
            batch = SAMPLES[:count]
            divided = many.parts(batch)
            assert [one for part in divided for one in part] == batch
            assert len(divided) <= size
            pieces = [piece for part in divided for piece in execution.PrefixTree("").cut(part)]
            shares = []
            for rank in range(size):
                monkeypatch.setattr(many, "_world", many.World(rank, size))
                shares.append(many.share(pieces))
            assert len({len(own) for own in shares}) == 1
            learned = [piece for own in shares for piece in own if piece.work.weights.any()]
            assert list(map(id, learned)) == list(map(id, pieces))
            assert sum(int(piece.work.weights.sum()) for own in shares for piece in own) == sum(
                int(piece.work.weights.sum()) for piece in pieces
            )


def test_even_cuts_make_the_largest_part_small():
    assert even_cuts([5, 1, 1, 1, 5], [0] * 5, 2) == [0, 3]
    assert even_cuts([4, 4, 4, 4], [0, 3, 3, 3], 1) == [0]
    assert even_cuts([4, 4, 4, 4], [0, 3, 3, 3], 2) == [0, 2]
    assert even_cuts([3], [0], 4) == [0]


def test_work_is_spread_in_order():
    whole = list(range(23))
    asked = []

    class Half(many.World):
        def exchange(self, value, error=None):
            asked.append(value)
            return [[[-number for number in whole[start : start + 4]] for start in range(first, 23, 8)]
                    for first in (0, 4)]  # fmt: skip

    assert Half(rank=1, size=2).spread(whole, lambda group: [-number for number in group], 4) == [-n for n in whole]
    assert asked == [[[-4, -5, -6, -7], [-12, -13, -14, -15], [-20, -21, -22]]]


def test_one_that_computes_otherwise_lets_all_compute_the_safe_way():
    class Model:
        def set_attn_implementation(self, name):
            self.attention = name

    model, tree, padded = Model(), execution.PrefixTree("tree"), execution.LengthGrouped("no tree here")
    told = many.World(size=2)
    for choices, name in (([tree, tree], "prefix tree"), ([tree, padded], "length-grouped batches")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(many.World, "exchange", lambda self, value, choices=choices: choices)
            patch.setattr(many, "_world", told)
            assert many.same_execution(model, tree).name == name
    assert model.attention == "eager"


def test_another_way_to_train_is_refused_by_name(monkeypatch):
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(TwinError, match=r"^twin does not train with DeepSpeed\.$"), many.joined():
        pass
    assert many.world() is many.ALONE


def test_more_processes_than_gpus_is_a_sentence(monkeypatch):
    monkeypatch.setattr(many, "_world", many.World(1, 2, 1))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for device in ("cuda", "mps"):
        with pytest.raises(TwinError, match=r"^There are more processes than GPUs here \(1\)\.$"):
            many.take_device(device)
    many.take_device("cpu")
