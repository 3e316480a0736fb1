"""Walking away: killed anywhere and gone on with, the same bits; ended early; a full disk; a loss that is no number."""

import json
import math
import os
import random
import shutil
import signal
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import transformers

from tests.training import test_backend_hf
from tests.training.test_backend_hf import SAMPLES, weights
from twin import runs
from twin.errors import MachineError, StepError, StoppedError, UsageError
from twin.presets import load_preset, plan_training
from twin.progress import Silent
from twin.settings import TrainSettings
from twin.training import checkpoints, execution
from twin.training.checkpoints import plan_measuring
from twin.training.passes import plan_passes
from twin.training.start import Begun, begin, begun_with

POSIX = sys.platform != "win32"
# One thread: the model is so small that two would only wait for one another.
ONE = Begun("cpu", "float32", "for a test", 1)
HALF = replace(ONE, dtype="bfloat16")


# Replies that are learned backwards: what is learned makes them less likely, so the last weights are not the best.
HELD_OUT = [replace(one, input_ids=one.input_ids[:4] + one.input_ids[:3:-1]) for one in SAMPLES[:6]]


def train(base, plan, folder, **named):
    return test_backend_hf.train(base, plan, folder, **{"val": HELD_OUT, "begun": ONE} | named)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


def save_base(folder: Path, nan_token: int | None = None) -> Path:
    """A two-layer Llama; one token's embedding may be no number."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    if nan_token is not None:
        model.model.embed_tokens.weight.data[nan_token] = math.nan
    model.save_pretrained(folder)
    return folder


def plan_of(**settings):
    given = {"epochs": 3, "batch_size": 3, "learning_rate": 0.02, "lora_r": 4, "device": "cpu"} | settings
    plan = plan_training(TrainSettings(**given), load_preset("smollm2-135m"))
    return plan.model_copy(update={"lora_dropout": 0.1})  # so that random numbers count


class At(Silent):
    """A reporter that does something at a step of training, or when a task begins, and keeps what is said."""

    def __init__(self, step=math.inf, do=lambda: None, task=None):
        self.left, self.do, self.when, self.said = step, do, task, []

    def say(self, text):
        self.said.append(text)

    @contextmanager
    def task(self, title, total=None):
        if title == self.when:
            self.do()
        with super().task(title, total) as inner:
            yield self if title == "Training" else inner

    def advance(self, amount=1, note=""):
        was, self.left = self.left, self.left - amount
        if self.left <= 0 < was:
            self.do()


def steps_kept(folder):
    return sorted(runs.checkpoint_step(path) for path in (folder / "checkpoints").glob("checkpoint-*"))


def newest(folder):
    return "auto" if runs.newest_checkpoint(folder / "checkpoints") else None


def alike(one, other):
    """Whether two runs saved the same bits."""
    left, right = weights(one), weights(other)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def losses(done):
    """Return what the lines of a run's steps say, but for what hangs on the machine."""
    told = ("step", "loss", "learning_rate", "grad_norm", "val_loss")
    return [{key: entry[key] for key in told if key in entry} for entry in done.logs]


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """An uninterrupted run, whose best weights are not the last ones."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(base, plan_of(), folder)


# ---------------------------------------------------------------- in processes of their own, killed


def child(base, folder, place=None):
    """Train or go on; killed at the second call of ``place``, ``module:name``."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if place:
        deadly(place)
    try:
        done = train(base, plan_of(), folder, resume=newest(folder))
    except StoppedError as stopped:
        sys.exit(stopped.exit_code)
    (folder / "losses.json").write_text(json.dumps(losses(done)))


def deadly(place):
    owner, _, name = place.rpartition(".")
    owner = {
        "Trainer": transformers.Trainer, "State": transformers.TrainerState, "runs": runs, "Path": Path,
        "shutil": checkpoints.shutil,
    }[owner]  # fmt: skip
    real, calls = getattr(owner, name), []

    def kill(*arguments, **named):
        of_checkpoint = name not in ("replace", "rmtree") or Path(arguments[0]).name.startswith("checkpoint-")
        calls.extend([1] * of_checkpoint)
        if len(calls) == (1 if name == "rmtree" else 2) and of_checkpoint:
            if name == "rmtree":  # half of it is gone
                next(Path(arguments[0]).glob("optimizer.pt")).unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **named)

    setattr(owner, name, kill)


@pytest.mark.slow
@pytest.mark.skipif(not POSIX, reason="POSIX signals")
def test_killed_at_twenty_random_moments_the_adapter_is_the_same(base, whole, tmp_path, context):
    chance = random.Random(0)  # noqa: S311
    for name in ("cold", "timed"):
        started = time.monotonic()
        process = context.Process(target=child, args=(base, tmp_path / name))
        process.start()
        process.join()
        assert process.exitcode == 0
    seconds = time.monotonic() - started
    ends, trial = [], 0
    while len(ends) < 20:
        trial += 1
        folder = tmp_path / str(trial)
        while True:
            process = context.Process(target=child, args=(base, folder))
            process.start()
            process.join(chance.uniform(0, seconds))
            if process.exitcode is None:
                (process.kill if len(ends) % 2 else process.terminate)()
                process.join()
            if process.exitcode == 0:
                break
            ends.append(process.exitcode)
            assert len(steps_kept(folder) if (folder / "checkpoints").exists() else []) <= 2
        assert alike(folder, whole[0])
        assert json.loads((folder / "losses.json").read_text()) == losses(whole[1])
    # -9: killed. -15: before the first step, where nothing could be kept; 143: after a step, which was.
    assert {-9, 143} <= set(ends) <= {-9, -15, 143}, ends


PLACES = {
    "Trainer._save_optimizer_and_scheduler": 10, "Trainer._save_rng_state": 10, "State.save_to_json": 10,
    "runs.seal_checkpoint": 10, "Path.replace": 10, "shutil.rmtree": 20,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not POSIX, reason="POSIX signals")
@pytest.mark.parametrize("place", PLACES)
def test_killed_in_the_middle_of_a_checkpoint_a_whole_one_is_there(base, whole, tmp_path, context, place):
    process = context.Process(target=child, args=(base, tmp_path / "run", place))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    whole_one = runs.newest_checkpoint(tmp_path / "run/checkpoints")
    assert runs.checkpoint_step(whole_one) == PLACES[place]
    train(base, plan_of(), tmp_path / "run", resume="auto")
    assert alike(tmp_path / "run", whole[0])


# ---------------------------------------------------------------- Ctrl-C and SIGTERM


@pytest.fixture
def hears():
    """Python's own handlers, also in a test that runs in the background."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.skipif(not POSIX, reason="POSIX signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_ends_after_the_step_with_a_checkpoint(base, whole, tmp_path, hears, number, code):
    said = At(13, lambda: [signal.raise_signal(number) for _ in range(2)])  # timeout(1) sends it twice
    with pytest.raises(StoppedError) as caught:
        train(base, plan_of(), tmp_path, reporter=said)
    assert (caught.value.message, caught.value.exit_code) == (
        "Training stopped after step 13 of 30, which is kept.",
        code,
    )
    assert caught.value.hint == "Go on with --resume-from auto."
    assert said.said == ["Training ends after this step, with a checkpoint. Ctrl-C once more ends it at once."]
    assert steps_kept(tmp_path) == [13]
    assert not (tmp_path / "adapter_model.safetensors").exists()
    spent = checkpoints.seconds_until(tmp_path / "checkpoints/checkpoint-13")
    done = train(base, plan_of(), tmp_path, resume="auto")
    assert losses(done) == losses(whole[1])
    assert alike(tmp_path, whole[0])
    assert (whole[1].seconds_before, done.seconds_before) == (0, spent)
    # What the last checkpoint says counts both processes, and more than the steps.
    whole_time = checkpoints.seconds_until(tmp_path / "checkpoints/checkpoint-30")
    assert 0 < sum(line["seconds"] for line in done.logs[:13]) < spent < spent + done.seconds < whole_time


def test_a_checkpoint_that_does_not_say_how_long_it_took(tmp_path):
    assert checkpoints.seconds_until(None) == checkpoints.seconds_until(tmp_path) == 0
    (tmp_path / "spent.json").write_text('{"seconds": 1e999}')
    with pytest.raises(UsageError):
        checkpoints.seconds_until(tmp_path)
    for said, seconds in (('{"seconds": 2.5}', 2.5), ('{"seconds": "2"}', 0), ("{}", 0)):
        (tmp_path / "spent.json").write_text(said)
        assert checkpoints.seconds_until(tmp_path) == seconds


@pytest.mark.skipif(not POSIX, reason="POSIX signals")
def test_a_second_ctrl_c_ends_at_once(base, tmp_path, hears, monkeypatch):
    monkeypatch.setattr(checkpoints, "_ONE_PRESS_SECONDS", 0)

    def press():
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.01)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(base, plan_of(), tmp_path, reporter=At(13, press))
    assert steps_kept(tmp_path) == [10]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.skipif(not POSIX, reason="POSIX signals")
def test_an_ignored_signal_stays_ignored(base, whole, tmp_path, hears):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # nohup, or a shell's &
    train(base, plan_of(), tmp_path, reporter=At(13, lambda: signal.raise_signal(signal.SIGINT)))
    assert alike(tmp_path, whole[0])


# ---------------------------------------------------------------- what a run goes on with


def test_a_run_goes_on_with_the_dtype_and_threads_it_was_begun_with(base, tmp_path):
    paths = runs.RunPaths(tmp_path)
    begun = begin(plan_of(), base, SAMPLES)
    facts = asdict(HALF)
    assert runs.bind_checkpoints(paths, None, {}, lambda: facts) == facts
    train(base, plan_of(), tmp_path, reporter=At(), begun=begun_with(facts))
    checkpoint = runs.newest_checkpoint(paths.checkpoints)

    def measure_again():
        raise AssertionError

    again = begun_with(runs.bind_checkpoints(paths, checkpoint, {}, measure_again))
    assert again == HALF != begun
    threads = []
    train(base, plan_of(), tmp_path, begun=again, reporter=At(5, lambda: threads.append(torch.get_num_threads())))
    assert threads == [1]
    assert torch.get_num_threads() == begun.threads
    with pytest.raises(AssertionError):
        runs.bind_checkpoints(paths, None, {}, measure_again)


def test_a_start_that_is_refused_leaves_the_checkpoints(tmp_path):
    paths = runs.RunPaths(tmp_path)
    kept = paths.checkpoints / "checkpoint-10"
    kept.mkdir(parents=True)

    def refuse():
        raise UsageError("4-bit weights need a CUDA GPU.", "Leave them out.")

    with pytest.raises(UsageError):
        runs.bind_checkpoints(paths, None, {}, refuse)
    assert kept.is_dir()
    runs.bind_checkpoints(paths, None, {}, lambda: {"backend": "hf"})
    assert not kept.exists()
    assert runs.begun_backend(paths, None, go_on=True) == "hf"
    assert runs.begun_backend(paths, None, go_on=False) is None
    assert runs.begun_backend(paths, kept, go_on=False) == "hf"


def test_another_dtype_would_give_other_bits(base, whole, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(base, plan_of(), tmp_path, reporter=At(14, interrupt))
    train(base, plan_of(), tmp_path, resume="auto", begun=HALF)
    left, right = weights(tmp_path), weights(whole[0])
    assert not all(torch.equal(left[name].float(), right[name].float()) for name in left)


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "float99"}, {"threads": 0}, {"threads": True}, {"device": None}, {"why": 1}, {"threads": "2"},
        {"token_budget": 0}, {"token_budget": None}, {"backend": "x"},
    ],
)  # fmt: skip
def test_a_changed_record_of_the_beginning_is_refused(change):
    facts = asdict(HALF)
    assert begun_with(facts) == HALF
    with pytest.raises(UsageError, match="says oddly what the run was begun with"):
        begun_with(facts | change)


# ---------------------------------------------------------------- the held-out loss in between


def test_the_best_weights_are_kept_and_their_step_is_told(whole):
    done = whole[1]
    measured = {entry["step"]: entry["val_loss"] for entry in done.logs if "val_loss" in entry}
    assert list(measured) == [10, 20, 30]
    assert done.best_step == min(measured, key=measured.get) == 20
    assert done.best_why.startswith(
        f"the lowest held-out loss of 3 measurements, {measured[20]:.3f} nats a token on 6 of"
    )
    after = sum(score.nll for score in done.after) / sum(score.tokens for score in done.after)
    assert after == pytest.approx(measured[20], abs=1e-4)
    assert after < measured[30] - 0.01
    assert (done.steps, done.planned_steps) == (30, 30)


def test_training_ends_when_the_held_out_loss_falls_no_more(base, whole, tmp_path):
    plan = plan_of(epochs=8, early_stopping_patience=2)
    done = train(base, plan, tmp_path / "run")
    measured = {entry["step"]: entry["val_loss"] for entry in done.logs if "val_loss" in entry}
    assert (done.steps, done.planned_steps, done.best_step) == (max(measured), 80, min(measured, key=measured.get))
    assert done.steps == done.best_step + 20
    # Stopped while no lower loss came: it is remembered for how long.
    with pytest.raises(KeyboardInterrupt):
        train(base, plan, tmp_path / "stopped", reporter=At(done.steps - 2, interrupt))
    assert losses(train(base, plan, tmp_path / "stopped", resume="auto")) == losses(done)
    assert alike(tmp_path / "run", tmp_path / "stopped")
    # Killed before the adapter was saved: gone on with, not one step more is taken.
    with pytest.raises(KeyboardInterrupt):
        train(base, plan, tmp_path / "cut", reporter=At(do=interrupt, task="Held-out loss after"))
    again = train(base, plan, tmp_path / "cut", resume="auto")
    assert again.done_steps == 0
    assert losses(again) == losses(done)
    assert alike(tmp_path / "run", tmp_path / "cut")


def test_without_patience_nothing_is_measured_and_the_last_weights_stay(base, tmp_path):
    done = train(base, plan_of(early_stopping_patience=0), tmp_path)
    assert (done.steps, done.best_step) == (30, 30)
    assert done.best_why == "the last step: the held-out loss was not measured in between"
    assert not any("val_loss" in entry for entry in done.logs)


def test_measuring_takes_a_bounded_share():
    one = SAMPLES[0]
    learned = [replace(one, id=str(number)) for number in range(1600)]
    held = [replace(one, id=f"v{number}") for number in range(400)]
    every, drawn = plan_measuring(learned, held, steps=100, epochs=1, seed=0)
    assert every == 25
    assert len(drawn) == 1600 * 0.09 // 4
    assert plan_measuring(learned, held, 100, 1, 0) == (every, drawn)
    assert plan_measuring(learned, held, 100, 1, 1) != (every, drawn)
    assert plan_measuring(learned, [], 100, 1, 0) == (0, [])
    assert plan_measuring(learned, held, 10, 1, 0) == (0, [])  # one measurement chooses nothing
    assert plan_measuring(learned[:100], held, 11, 1, 0)[0] == 10
    assert len(plan_measuring(learned[:20], held, 11, 1, 0)[1]) == 8
    assert plan_measuring(learned, held[:5], 300, 3, 0)[0] == 25
    assert len(plan_measuring(learned, held[:5], 300, 3, 0)[1]) == 5


# ---------------------------------------------------------------- what goes wrong


def test_a_row_whose_loss_is_no_number_is_named_and_the_weights_before_it_are_kept(tmp_path):
    broken = save_base(tmp_path / "base", nan_token=60)
    assert SAMPLES[20].input_ids[-3] == 60
    plan = plan_of()
    steps = [rows for one in plan_passes(SAMPLES[6:], plan) for rows in one]
    step = next(at for at, rows in enumerate(steps, 1) if SAMPLES[20] in rows)
    assert step > 1
    with pytest.raises(StepError) as caught:
        train(broken, plan, tmp_path / "run")
    assert caught.value.message == f"The loss became nan at step {step}, in row 'r20'."
    kept = tmp_path / f"run/checkpoints/checkpoint-{step - 1}"
    assert caught.value.hint == f"The weights of step {step - 1} are in {kept}. Take row 'r20' out and train again."
    assert runs.find_checkpoint("auto", runs.RunPaths(tmp_path / "run")) == kept
    good = weights(kept)
    assert all(torch.isfinite(weight).all() for weight in good.values())
    assert any(weight.any() for name, weight in good.items() if "lora_B" in name)
    assert not (tmp_path / "run/adapter_model.safetensors").exists()


def test_a_gradient_that_is_no_number_never_reaches_the_weights(base, tmp_path, monkeypatch):
    real, calls = execution.PrefixTree.losses, []

    def steep(self, model, work, dtype):
        found = real(self, model, work, dtype)
        calls.append(model.training)
        return found + torch.sqrt(found - found) if sum(calls) == 7 and model.training else found

    monkeypatch.setattr(execution.PrefixTree, "losses", steep)
    with pytest.raises(
        StepError, match=r"^The gradient became nan at step 7, in rows 'r\d+', 'r\d+', 'r\d+'\.$"
    ) as caught:
        train(base, plan_of(), tmp_path)
    assert caught.value.hint.endswith("checkpoint-6. Lower --learning-rate 0.02 and train again.")
    assert all(torch.isfinite(weight).all() for weight in weights(tmp_path / "checkpoints/checkpoint-6").values())


def test_a_held_out_row_without_a_loss_stops_before_training(tmp_path):
    broken = save_base(tmp_path / "base", nan_token=43)
    with pytest.raises(StepError, match=r"own loss is no number for the held-out row 'r3'\.$"):
        train(broken, plan_of(), tmp_path / "run")


@pytest.fixture
def limit():
    """Set the largest file that this process may write, in bytes, and take it away again."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_at_a_checkpoint_is_told_and_training_goes_on(base, whole, tmp_path, limit):
    said = At(15, lambda: limit(40_000))
    done = train(base, plan_of(), tmp_path, reporter=said)
    limit(-1)
    assert [line.partition(" could not be written (")[0] for line in said.said] == [
        "The checkpoint of step 20",
        "The checkpoint of step 30",
    ]
    end = "; is the disk full? The last whole checkpoint is of step 10. Training goes on."
    assert said.said[0].endswith(end)
    assert losses(done) == losses(whole[1])
    assert alike(tmp_path, whole[0])
    assert steps_kept(tmp_path) == [10]
    assert [path.name for path in tmp_path.rglob("*.partial")] == []


@pytest.mark.skipif(not POSIX, reason="POSIX signals")
def test_a_full_disk_where_it_is_stopped_says_which_step_is_kept(base, tmp_path, limit, hears):
    def stop():
        limit(40_000)
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(StoppedError) as caught:
        train(base, plan_of(), tmp_path, reporter=At(15, stop))
    limit(-1)
    assert caught.value.message == (
        "Training stopped after step 15 of 30, which could not be kept: the last whole checkpoint is of step 10."
    )


def test_a_full_disk_at_the_adapter_is_a_sentence_and_the_checkpoint_stays(base, whole, tmp_path, limit):
    with pytest.raises(MachineError, match=r"^The adapter could not be written: ") as caught:
        train(base, plan_of(), tmp_path, reporter=At(do=lambda: limit(5_000), task="Held-out loss after"))
    limit(-1)
    assert caught.value.hint == "Free some space and go on with --resume-from auto."
    assert train(base, plan_of(), tmp_path, resume="auto").done_steps == 0
    assert alike(tmp_path, whole[0])


def test_a_disk_too_small_for_two_checkpoints_is_told_before_anything_long(base, tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free._replace(free=300_000))
    with pytest.raises(MachineError, match=r"^Training needs "):
        train(base, plan_of(lora_r=64), tmp_path)
    with suppress(KeyboardInterrupt):  # and a rank that fits
        train(base, plan_of(), tmp_path, reporter=At(1, interrupt))


def test_a_checkpoint_once_every_few_minutes_whatever_the_steps(base, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "_SAVE_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt):
        train(base, plan_of(), tmp_path, reporter=At(4, interrupt))
    assert steps_kept(tmp_path) == [3]


def test_an_older_checkpoint_that_is_named_is_gone_on_from(base, whole, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(base, plan_of(), tmp_path, reporter=At(14, interrupt))
    kept = shutil.copytree(tmp_path / "checkpoints/checkpoint-10", tmp_path / "mine/checkpoint-10")
    train(base, plan_of(), tmp_path, resume="auto")
    assert steps_kept(tmp_path) == [30]
    train(base, plan_of(), tmp_path, resume=str(kept))
    assert alike(tmp_path, whole[0])
