"""The real Trainer on a two-layer model: resumption to the same bits, what is measured, what is refused."""

import itertools
import json
import math
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import peft
import pytest
import torch
import transformers

from twin import runs
from twin.errors import GateError, MachineError, UsageError
from twin.presets import load_preset, plan_training
from twin.progress import Silent
from twin.settings import TrainSettings
from twin.training import attention, backend_hf, execution, lora_products, start
from twin.training.model import add_lora, load_model
from twin.training.passes import plan_passes
from twin.training.samples import Sample
from twin.training.start import Begun, begin, choose_dtype

SAMPLES = [
    Sample(f"r{number}", f"c{number // 3}", "chat", (1, 2, 3, *range(4, 8 + number % 5), 40 + number, 41, 2), 4)
    for number in range(36)
]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def plan():
    settings = TrainSettings(epochs=2, batch_size=3, learning_rate=0.01, lora_r=4, device="cpu")
    return plan_training(settings, load_preset("smollm2-135m"))


class StopAt(Silent):
    """A reporter that presses Ctrl-C when training reaches a step."""

    def __init__(self, step):
        self.step = step

    def task(self, title, total=None):
        context = super().task(title, total)
        return _Stopping(context, self.step) if title == "Training" else context


class _Stopping:
    def __init__(self, inner, left):
        self.inner, self.left = inner, left

    def __enter__(self):
        self.inner.__enter__()
        return self

    def __exit__(self, *error):
        return self.inner.__exit__(*error)

    def advance(self, amount=1, note=""):
        self.left -= amount
        if self.left <= 0:
            raise KeyboardInterrupt


def train(base, plan, folder, resume=None, reporter=None, val=SAMPLES[:6], begun=None):
    folder.mkdir(exist_ok=True)
    checkpoint = runs.find_checkpoint(resume, runs.RunPaths(folder))
    begun = begun or begin(plan, base, SAMPLES)
    job = backend_hf.Job(base, "owner/model", plan, SAMPLES[6:], val, folder / "checkpoints", folder, begun, checkpoint)
    return backend_hf.train(job, reporter or Silent())


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


class Watch(StopAt):
    """A reporter that keeps the figures, and what the growing file held at each of them."""

    def __init__(self, file, step=math.inf):
        super().__init__(step)
        self.file, self.figures, self.held, self.val_losses = file, [], [], []

    def measured(self, figures):
        if figures.val_loss is not None:
            assert figures.loss is None
            self.val_losses.append(figures.val_loss)
            return
        self.figures.append(figures)
        self.held.append(self.file.read_text().splitlines() if self.file.exists() else None)


def test_figures_and_lines_come_as_it_goes_and_no_step_stands_twice(base, plan, tmp_path):
    file = tmp_path / "cut/checkpoints/metrics.jsonl"
    first = Watch(file, step=14)
    with pytest.raises(KeyboardInterrupt):
        train(base, plan, tmp_path / "cut", reporter=first)
    steps = first.figures
    assert len(first.val_losses) == 2  # before, and at step 10, whose line waits for it
    assert [len(held) for held in first.held] == [*range(1, 10), 9, *range(11, 15)]
    assert all(one.loss > 0 and one.tokens_per_second > 0 and one.peak_rss_bytes > 10**7 for one in steps)
    assert all(one.seconds_left > 0 for one in steps)
    assert file.read_text().count("\n") == 14
    with file.open("a") as handle:
        handle.write('{"step": 15, "lo')  # what a power cut may leave
    earlier = [json.loads(line) for line in file.read_text().splitlines()[:10]]

    again = Watch(file)
    done = train(base, plan, tmp_path / "cut", resume="auto", reporter=again)
    kept = [json.loads(line) for line in file.read_text().splitlines()]
    assert [entry["step"] for entry in kept] == list(range(1, 21))
    assert kept[:10] == earlier
    measured = {entry["step"]: entry["val_loss"] for entry in kept if "val_loss" in entry}
    assert measured == {10: first.val_losses[1], 20: again.val_losses[1]}
    assert kept == list(done.logs)
    assert len(again.held[0]) == 11
    assert again.figures[-1].seconds_left == 0
    assert done.done_steps == 10


def test_lines_wait_while_the_file_cannot_be_written_and_it_is_said_once(tmp_path):
    file, said = tmp_path / "run/metrics.jsonl", []
    reporter = SimpleNamespace(say=said.append, measured=lambda figures: None)
    task = SimpleNamespace(advance=lambda amount: None)
    steps = [execution.PrefixTree("").cut(SAMPLES[:3])] * 4
    log = backend_hf._Log(task, reporter, steps, file, None)
    arguments, control = SimpleNamespace(device=torch.device("cpu")), SimpleNamespace(should_evaluate=False)
    state = SimpleNamespace(global_step=0, log_history=[], is_world_process_zero=True)
    file.parent.mkdir()
    log.on_train_begin(arguments, state, control)
    file.unlink()
    file.parent.rmdir()
    file.parent.touch()  # no folder any more
    for step in (1, 2, 3, 4):
        if step == 3:
            file.parent.unlink()
        state.global_step = step
        log.on_step_begin(arguments, state, control)
        log.on_log(arguments, state, control, logs={"loss": 2.0, "learning_rate": 0.1, "grad_norm": 1.0})
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2, 3, 4]
    assert len(said) == 1
    assert said[0].endswith("Training goes on, and writes it once there is room.")


def test_a_batch_is_one_step():
    """What transformers would make of two GPUs: half of the steps would be lost without a word."""
    assert backend_hf._one_step([7]) == {"step": 7}
    with pytest.raises(ValueError, match="too many values"):
        backend_hf._one_step([7, 8])


class SmallGpu(execution.PrefixTree):
    """A tree on a GPU that holds so many tokens at once, or with each layer computed again any number."""

    MOST, again = 13, False

    def losses(self, model, work, dtype):
        if work.computed > self.MOST and not (self.again and model.is_gradient_checkpointing):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().losses(model, work, dtype)


def small_gpu(monkeypatch, most, again=False):
    """Let each execution that is chosen be one on a small GPU; ``replace`` keeps its class."""
    kind = type("Small", (SmallGpu,), {"MOST": most, "again": again})
    original = execution.choose

    def choose(*given):
        found = original(*given)
        return kind(found.why, found.token_budget, found.attends)

    monkeypatch.setattr(execution, "choose", choose)


class Told(Silent):
    def __init__(self):
        self.said = []

    def say(self, line):
        self.said.append(line)


def test_a_step_that_memory_does_not_hold_is_cut_in_halves_and_the_weights_are_the_same(
    base, plan, tmp_path, monkeypatch
):
    whole = train(base, plan, tmp_path / "whole", val=())
    assert whole.largest_pack > 13
    small_gpu(monkeypatch, 13)
    told = Told()
    cut = train(base, plan, tmp_path / "cut", val=(), reporter=told)
    assert cut.largest_pack <= 13
    assert cut.packs > whole.packs
    assert cut.token_budget < whole.token_budget
    assert not cut.checkpointing
    assert all(
        re.fullmatch(r"The GPU's memory is full: packs of at most \d+ tokens from here on\.", s) for s in told.said
    )
    assert told.said
    same, other = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.allclose(same[name], other[name], atol=2e-5) for name in same)


def test_a_sample_that_memory_does_not_hold_is_computed_again_layer_by_layer(base, plan, tmp_path, monkeypatch):
    whole = train(base, plan, tmp_path / "whole", val=())
    small_gpu(monkeypatch, 8, again=True)
    told = Told()
    outcome = train(base, plan, tmp_path / "again", val=(), reporter=told)
    assert outcome.checkpointing
    assert "each layer is computed again" in told.said[-1]
    assert outcome.steps == whole.steps
    same, other = weights(tmp_path / "whole"), weights(tmp_path / "again")
    assert all(torch.allclose(same[name], other[name], atol=2e-5) for name in same)


def test_a_gpu_that_holds_no_row_is_told_by_the_row(base, plan, tmp_path, monkeypatch):
    small_gpu(monkeypatch, 3)
    with pytest.raises(MachineError, match=r"does not hold row 'r\d+' of \d+ tokens") as caught:
        train(base, plan, tmp_path / "none", val=())
    assert "--max-length" in caught.value.hint


def test_memory_that_ends_elsewhere_than_in_a_step_is_one_sentence(base, plan, tmp_path, monkeypatch):
    def full(*given):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(execution, "choose", full)
    with pytest.raises(MachineError, match="memory is full"):
        train(base, plan, tmp_path)


def test_a_launcher_s_dtype_is_not_taken(base, plan, tmp_path, monkeypatch):
    """accelerate's settings file sets this variable; its autocast would mix two dtypes in one product."""
    begun = Begun("cpu", "float32", "for a test", 1)
    train(base, plan, tmp_path / "plain", val=(), begun=begun)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    train(base, plan, tmp_path / "launched", val=(), begun=begun)
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "bf16"
    same, other = weights(tmp_path / "plain"), weights(tmp_path / "launched")
    assert all(torch.equal(same[name], other[name]) for name in same)


def test_four_bits_are_for_a_gpu(base, plan):
    with pytest.raises(UsageError, match="trained on cpu"):
        begin(plan.model_copy(update={"four_bit": True}), base, SAMPLES)


@pytest.mark.slow
def test_a_stopped_run_resumed_gives_the_same_bits(base, plan, tmp_path):
    whole = train(base, plan, tmp_path / "whole")
    assert whole.steps == 20
    with pytest.raises(KeyboardInterrupt):
        train(base, plan, tmp_path / "cut", reporter=StopAt(14))
    assert not (tmp_path / "cut/adapter_model.safetensors").exists()
    train(base, plan, tmp_path / "cut", resume="auto")
    once, again = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert once.keys() == again.keys()
    assert all(torch.equal(once[name], again[name]) for name in once)
    other = weights(tmp_path / "whole") | {}
    train(base, plan.model_copy(update={"seed": 1}), tmp_path / "other")
    assert not all(torch.equal(other[name], value) for name, value in weights(tmp_path / "other").items())


def test_what_is_measured_is_what_plain_peft_computes(base, plan, tmp_path):
    done = train(base, plan, tmp_path / "run")
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=done.begun.torch_dtype)
    model = peft.PeftModel.from_pretrained(model, str(tmp_path / "run"), autocast_adapter_dtype=False).eval()
    for sample, score in zip(SAMPLES[:6], done.after, strict=True):
        ids = torch.tensor([sample.input_ids])
        with torch.no_grad():
            logits = model(ids[:, :-1]).logits[0, sample.prompt_length - 1 :].float()
        expected = torch.nn.functional.cross_entropy(logits, ids[0, sample.prompt_length :], reduction="sum")
        assert (score.id, score.tokens) == (sample.id, sample.supervised)
        assert score.nll == pytest.approx(float(expected), rel=0.02)
    assert sum(score.nll for score in done.after) < sum(score.nll for score in done.before)
    assert all(math.isfinite(entry["loss"]) for entry in done.logs)
    assert [entry["step"] for entry in done.logs] == list(range(1, done.steps + 1))
    kept = [json.loads(line) for line in (tmp_path / "run/checkpoints/metrics.jsonl").read_text().splitlines()]
    assert kept == list(done.logs)
    assert {type(value) for entry in kept for value in entry.values()} == {int, float}
    assert set(kept[0]) == {
        "step", "loss", "learning_rate", "grad_norm", "seconds", "tokens_per_second", "peak_rss_bytes",
    }  # fmt: skip
    tokens = sum(entry["tokens_per_second"] * entry["seconds"] for entry in kept)
    assert tokens == pytest.approx(done.tokens, rel=0.01)
    assert sum(entry["seconds"] for entry in kept) <= done.seconds
    assert (done.optimizer["name"], done.optimizer["max_grad_norm"]) == ("MasterAdamW", 1.0)


def test_small_updates_are_not_rounded_away():
    weight = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    ours = backend_hf.MasterAdamW([weight], lr=1e-4, weight_decay=0.0)
    plain_weight = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    plain = torch.optim.AdamW([plain_weight], lr=1e-4, weight_decay=0.0)
    for _ in range(100):
        for one, optimizer in ((weight, ours), (plain_weight, plain)):
            one.grad = torch.ones_like(one)
            optimizer.step()
            optimizer.zero_grad()
    assert float(plain_weight) == 1.0
    assert float(weight) == pytest.approx(0.99, abs=0.003)


def test_target_modules_that_the_model_lacks_are_refused(base, plan):
    model = load_model(base, "cpu", torch.float32)
    with pytest.raises(GateError, match=r"The base model has no module qkv_proj\."):
        add_lora(model, plan.model_copy(update={"target_modules": ["qkv_proj", "o_proj"]}))


def test_the_dtype_of_a_cpu_is_measured_and_the_reason_told():
    dtype, why = choose_dtype("cpu")
    ratio = float(re.search(r"run at (\d+\.\d)x the rate of float32", why)[1])
    assert ratio == 1.2 or dtype == (torch.bfloat16 if ratio > 1.2 else torch.float32)  # told in tenths


def test_slow_products_are_measured_few_times(monkeypatch):
    clock = itertools.count(step=0.5)  # each look at it is half a second later
    monkeypatch.setattr(start, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert choose_dtype("cpu")[0] == torch.float32
    assert next(clock) == 3.0  # three looks for each dtype: where it began, and one product


# ---------------------------------------------------------------- the plain loop


def plain_loop(base, plan, samples):
    """Return the adapter that a tutorial's loop gives: samples one by one, AdamW, the cosine, no tree, no Trainer."""
    model = load_model(base, "cpu", torch.float32)
    model.set_attn_implementation("eager")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lora_products, "install", lambda model: {})  # PEFT's own products
        model = add_lora(model, plan)
    model.train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    steps = list(itertools.chain.from_iterable(plan_passes(samples, plan)))
    optimizer = torch.optim.AdamW(trained, lr=plan.learning_rate, weight_decay=0.0)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, len(steps) // 20, len(steps))
    for step in steps:
        tokens = sum(sample.supervised for sample in step)
        for sample in step:
            ids = torch.tensor([sample.input_ids])
            logits = model(input_ids=ids).logits[0, sample.prompt_length - 1 : -1]
            loss = torch.nn.functional.cross_entropy(logits, ids[0, sample.prompt_length :], reduction="sum")
            (loss / tokens).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return len(steps), peft.get_peft_model_state_dict(model)


def apart(left, right):
    """Return how far two adapters are apart, relative to the second."""
    difference = sum(float((left[name] - right[name]).square().sum()) for name in right) ** 0.5
    return difference / sum(float(right[name].square().sum()) for name in right) ** 0.5


def test_twenty_steps_along_trees_give_the_weights_of_the_plain_loop(base, plan, tmp_path, monkeypatch):
    """Controls: siblings that see one another, places off by one, a branch without values; over 1e-2 apart each."""
    steps, plain = plain_loop(base, plan, SAMPLES[6:])
    assert steps >= 20
    begun = Begun("cpu", "float32", "for a test", 1)
    outcome = train(base, plan, tmp_path / "tree", val=(), begun=begun)
    assert (outcome.execution, outcome.steps) == ("prefix tree", steps)
    assert outcome.unique_tokens < outcome.tokens - outcome.steps
    assert apart(weights(tmp_path / "tree"), plain) < 1e-4
    prepared, attend = attention.prepared, attention.prefix_tree_attention

    def believed(model, *rest):  # the probe would refuse what comes now
        attention.register()
        model.set_attn_implementation(attention.NAME)
        return execution.PrefixTree("")

    def shifted(pack, *rest):
        pack.position_ids[pack.position_ids >= 3] += 1
        return prepared(pack, *rest)

    def lost(module, query, key, value, *rest, **named):
        value = value.clone()
        value[:, :, -3:] = 0
        return attend(module, query, key, value, *rest, **named)

    monkeypatch.setattr(execution, "choose", believed)
    for name, attribute, wrong in (
        ("siblings", "ancestors", lambda parents: np.tri(len(parents), dtype=bool)),
        ("places", "prepared", shifted),
        ("branch", "prefix_tree_attention", lost),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(attention, attribute, wrong)
            train(base, plan, tmp_path / name, val=(), begun=begun)
        assert apart(weights(tmp_path / name), plain) > 1e-2, name
