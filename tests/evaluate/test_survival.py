"""The gate says no to a zeroed adapter, a merge into 4-bit weights, a tenth of the scale; yes to what was made right.

The pure half first; then a real tiny run, whose file is replaced by one that was made wrong.
"""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.gguf.one_pass import quantized_by_llama_cpp
from tests.listener import Listener
from tests.test_pipeline import inside, project  # noqa: F401 - a fixture
from twin import files, measure, pipeline, runs
from twin.cli.commands.run import _losses
from twin.errors import EXIT_GATE, GateError
from twin.evaluate.likelihood import Kept, keep
from twin.evaluate.survival import refusal, spread
from twin.progress import Silent
from twin.records import Sample, Scored
from twin.results import Answered, Change, Survival, read_survival

TO_THE_END = pipeline.steps_between("evaluate", "register")

# ---------------------------------------------------------------- what is kept


def scored(losses):
    """Return a list of scores: of each conversation the losses of its replies, ten tokens each."""
    return [
        Scored(f"{c}-{r}", f"c{c}", float(loss), 10)
        for c, replies in enumerate(losses)
        for r, loss in enumerate(replies)
    ]


LOSSES = st.lists(st.lists(st.floats(30, 60), min_size=1, max_size=4), min_size=2, max_size=8)


def moved(losses, by):
    return [[loss - by(c, r) for r, loss in enumerate(replies)] for c, replies in enumerate(losses)]


@given(LOSSES, st.floats(0.5, 20), st.floats(-0.5, 1.5))
def test_a_share_of_every_gain_is_that_share(losses, gain, share):
    """Whatever the base models lose: a base that quantization made worse by 3 nats a reply counts for nothing."""
    before = scored(losses)
    after = scored(moved(losses, lambda c, r: gain * (1 + (c + r) % 3)))
    worse = moved(losses, lambda c, r: -3)
    kept = keep((before, after), (scored(worse), scored(moved(worse, lambda c, r: share * gain * (1 + (c + r) % 3)))))
    assert (kept.share, kept.low, kept.high) == pytest.approx((share, share, share), abs=1e-6)


@given(LOSSES, st.floats(0.1, 5), st.integers(0, 3))
def test_kept_does_not_hang_on_order_or_unit(losses, unit, seed):
    lists = [scored(moved(losses, lambda c, r, n=n: n * (2 + (c * r + n) % 5))) for n in (0, 3, 0, 2)]
    kept = keep((lists[0], lists[1]), (lists[2], lists[3]), resamples=200, seed=seed)
    in_bits = [[replace(one, nll=one.nll * unit) for one in scores] for scores in lists]
    again = keep((in_bits[0], in_bits[1]), (in_bits[2], in_bits[3]), resamples=200, seed=seed)
    assert (again.share, again.low, again.high) == pytest.approx((kept.share, kept.low, kept.high), abs=1e-6)
    backwards = [sorted(scores, key=lambda one: (one.conversation_id, -int(one.id[-1]))) for scores in lists]
    again = keep((backwards[0], backwards[1]), (backwards[2], backwards[3]), resamples=200, seed=seed)
    assert (again.share, again.low, again.high) == pytest.approx((kept.share, kept.low, kept.high), abs=1e-6)


def test_an_interval_shows_that_a_part_lost_all():
    """Nine of ten conversations keep everything and one loses more than it had: the mean alone would pass."""
    losses = [[40.0, 50.0]] * 10
    before, after = scored(losses), scored(moved(losses, lambda c, r: 5))
    kept = keep((before, after), (before, scored(moved(losses, lambda c, r: -2 if c == 0 else 5.8))))
    assert kept.share > 0.9
    assert kept.low < 0.75


def test_nothing_to_keep_is_nothing_kept():
    before = scored([[40.0], [50.0]])
    assert keep((before, before), (before, before)) == Kept(0.0, 0.0, 0.0)
    worse = [replace(one, nll=one.nll + 1) for one in before]
    assert keep((before, worse), (before, worse)) == Kept(0.0, 0.0, 0.0)


def test_a_model_that_computes_no_numbers_keeps_nothing():
    before, after = scored([[40.0], [50.0]]), scored([[38.0], [48.0]])
    broken = [replace(one, nll=float("nan")) for one in after]
    assert keep((before, after), (before, broken)) == Kept(0.0, 0.0, 0.0)
    assert keep((before, broken), (before, after)) == Kept(0.0, 0.0, 0.0)


def test_one_conversation_has_no_interval():
    before = scored([[40.0, 50.0]])
    after = [replace(one, nll=one.nll - 8) for one in before]
    half = [replace(one, nll=one.nll - 4) for one in before]
    assert keep((before, after), (before, half)) == Kept(0.5, None, None)


def test_other_replies_can_not_be_compared():
    before = scored([[40.0], [50.0]])
    with pytest.raises(ValueError, match="not scored on the same replies"):
        keep((before, before), (before, before[1:]))
    with pytest.raises(ValueError, match="not scored on the same replies"):
        keep(([], []), ([], []))


# ---------------------------------------------------------------- which replies


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 60))
def test_replies_are_spread_over_conversations(sizes, most):
    samples = [Sample(f"{c}-{r}", f"c{c}", "chat", (1, 2), 1) for c, size in enumerate(sizes) for r in range(size)]
    chosen = spread(samples, most)
    assert len(chosen) == min(most, len(samples))
    order = [samples.index(one) for one in chosen]
    assert order == sorted(set(order))
    counts = [sum(one.conversation_id == f"c{c}" for one in chosen) for c in range(len(sizes))]
    if most >= len(sizes):  # none has two more than another one that has some left
        spare = [count for count, size in zip(counts, sizes, strict=True) if count < size]
        assert max(counts) <= min(spare, default=most) + 1
    else:
        assert max(counts) == 1
    assert spread(samples, most) == chosen


# ---------------------------------------------------------------- the verdict

GAIN = Change(3.0, 2.5, -0.5, -0.6, -0.4, 20, 100)
PASSED = Survival(
    GAIN, GAIN, 0.97, 0.94, 0.99, (Answered("hi?", "Hello.", "yo", "yo 🙂"),), GAIN, "q4_k_m", "f16", "0" * 64
)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, ""),
        ({"kept": 1.2, "kept_low": 1.1, "kept_high": 1.3}, ""),
        ({"kept": 0.9, "kept_low": 0.75}, ""),
        ({"kept_low": None, "kept_high": None}, ""),
        ({"kept": 0.899, "kept_low": 0.85}, "The q4_k_m GGUF kept 89 % of the adapter's gain (95 % interval 85 to 99)"),
        ({"kept": 0.95, "kept_low": 0.749}, "95 % interval 74 to 99"),
        ({"kept": 0.1, "kept_low": None, "kept_high": None}, "10 % of the adapter's gain (no interval from one"),
        ({"reference": replace(GAIN, high=float("nan"))}, "changes nothing measurable"),
        ({"reference": replace(GAIN, high=0.0)}, "changes nothing measurable: 3.000 nats a token without it and 2.500"),
        ({"reference": replace(GAIN, change=0.1, low=None, high=None)}, "on 100 held-out replies."),
    ],
)  # fmt: skip
def test_what_is_refused(changed, words):
    said = refusal(replace(PASSED, **changed))
    assert words in said
    assert bool(said) is bool(words)


def test_the_screen_says_what_was_kept():
    assert "  kept 97 % of the adapter's gain (95 % interval 94 to 99)" in _losses(PASSED)


@pytest.mark.parametrize("quantization", ["q3_k_m", "q4_k_m", "q6_k", "q8_0", "f16"])
def test_the_hint_is_what_to_try(quantization):
    hint = measure._what_to_try(runs.run_paths("ada"), replace(PASSED, quantization=quantization))
    assert ("-q " in hint) is (quantization not in ("q8_0", "f16"))
    assert hint.endswith("To serve it all the same: twin register ada --force")


OLD = {"adapter": None, "gguf": {"before": 1.0, "after": 0.5}, "samples": []}


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", "null", "{", '"' * 9, json.dumps(OLD),
        *(json.dumps(PASSED.as_json() | {key: value}) for key, value in [
            ("gguf", None), ("gguf", {}), ("gguf", "x"), ("reference", {"before": "x"}), ("kept", None),
            ("kept", "much"), ("samples", [{}]), ("samples", [{"prompt": 1}]), ("samples", {"a": 1}), ("adapter", []),
            ("refused", None), ("refused", 7), ("gguf_sha256", []),
        ]),
    ],
    ids=range(20),
)  # fmt: skip
def test_a_hostile_likelihood_is_none(text, isolated):
    paths = runs.run_paths("ada")
    paths.root.mkdir(parents=True)
    paths.likelihood.write_text(text, "utf-8")
    assert measure.survival_of(paths) is None


def test_what_is_written_is_read(isolated):
    paths = runs.run_paths("ada")
    assert measure.survival_of(paths) is None
    files.write_json(paths.likelihood, PASSED.as_json())
    assert measure.survival_of(paths) == PASSED
    alone = replace(PASSED, adapter=None, kept_low=None, kept_high=None)
    assert read_survival(json.loads(json.dumps(alone.as_json()))) == alone


# ---------------------------------------------------------------- the controls


@pytest.fixture
def here(project, tmp_path):  # noqa: F811
    """A copy of the finished run, to spoil."""
    folder = tmp_path / "spoilt"
    shutil.copytree(project.folder, folder)
    with inside(folder, project.cache):
        yield runs.run_paths("tiny")


def to_four_bits(weight, like):
    """Round to the grid of Q4_0 that the blocks of 32 of ``like`` have."""
    blocks, grid = weight.reshape(-1, 32), like.reshape(-1, 32)
    largest = grid.gather(1, grid.abs().argmax(1, keepdim=True))
    step = torch.where(largest == 0, torch.ones_like(largest), largest / -8)
    return ((blocks / step).round().clamp(-8, 7) * step).reshape(weight.shape)


def merged(base, paths, how, target):
    """Write the base with the adapter in it as a checkpoint, by hand."""
    import transformers
    from safetensors.torch import load_file

    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    weights, config = load_file(paths.adapter_weights), files.read_json(paths.adapter_config)
    scale = config["lora_alpha"] / config["r"] * (0.1 if how == "a tenth" else 1.0)
    with torch.no_grad():
        for name, part in weights.items():
            if "lora_B" in name:
                where = name.removeprefix("base_model.model.").removesuffix(".lora_B.weight")
                weight = model.get_submodule(where).weight
                delta = scale * part.float() @ weights[name.replace("lora_B", "lora_A")].float()
                if how == "4 bits":
                    delta = to_four_bits(to_four_bits(weight, weight) + delta, weight) - weight
                weight += delta
    model.to(torch.float16).save_pretrained(target, safe_serialization=True)


def replace_gguf(project, paths, how, tmp_path):  # noqa: F811
    """Put a GGUF in place of the run's own: made by the same converter, of a merge made ``how``."""
    from twin.gguf import converter
    from twin.gguf.quantize import TYPES
    from twin.gguf.vocabulary import copy_checkpoint

    checkpoint, plain = tmp_path / "merged", tmp_path / "plain.gguf"
    merged(project.base, paths, how, checkpoint)
    copy_checkpoint(project.base, checkpoint)
    converter.convert(converter.find_converter(None, Silent()), checkpoint, plain, Silent(), "tiny")
    quantized_by_llama_cpp(plain, paths.gguf("q8_0"), TYPES["q8_0"])
    sha256 = files.file_digest(paths.gguf("q8_0"))
    files.write_json(paths.gguf_record("q8_0"), files.read_json(paths.gguf_record("q8_0")) | {"sha256": sha256})


@pytest.mark.slow
@pytest.mark.parametrize(("how", "least", "most"), [("4 bits", -0.5, 0.8), ("a tenth", 0.05, 0.2), ("right", 0.9, 1.1)])
def test_a_wrong_merge_is_refused_and_the_right_one_is_not(project, here, tmp_path, how, least, most):  # noqa: F811
    replace_gguf(project, here, how, tmp_path)
    listener, before = Listener(), files.read_json(here.steps)
    if how == "right":
        done = pipeline.run("tiny", [], project.settings, listener, chosen=TO_THE_END)
        assert least < done.survival.kept < most
        assert done.survival.refused == ""
        return
    with pytest.raises(GateError, match=r"The q8_0 GGUF kept .* % of the adapter's gain") as caught:
        pipeline.run("tiny", [], project.settings, listener, chosen=TO_THE_END)
    assert caught.value.exit_code == EXIT_GATE
    measured = measure.survival_of(here)
    assert least < measured.kept < most
    assert measured.refused == caught.value.message
    assert files.read_json(here.steps) == before  # which is of the other file
    assert not here.modelfile.exists()
    # Nor is it registered by itself.
    with pytest.raises(GateError, match="The q8_0 GGUF kept"):
        measure.check_measured(here, here.gguf("q8_0"), None, False, listener)
    measure.check_measured(here, here.gguf("q8_0"), measured.gguf_sha256, True, listener)
    assert listener.said[-1].endswith("It is served all the same.")


@pytest.mark.slow
def test_a_refusal_that_was_forced_is_one_without_force(project, here, tmp_path, httpserver):  # noqa: F811
    replace_gguf(project, here, "a tenth", tmp_path)
    done = pipeline.run("tiny", [], project.settings, Silent(), True, chosen=TO_THE_END)
    assert re.match("The q8_0 GGUF kept 1[0-9] %", done.survival.refused)
    assert any(done.survival.refused in line for line in _losses(done.survival))
    # Nor does a server get it, and the command line says 5.
    httpserver.expect_request("/api/version").respond_with_json({"version": "0.33.0"})
    httpserver.expect_request("/api/show").respond_with_json({"error": "model 'tiny' not found"}, status=404)
    Path("twin.toml").write_text('[gguf]\nquantization = ["q8_0"]\n', "utf-8")
    command = [sys.executable, "-m", "twin", "register", "tiny", "--host", httpserver.url_for("")]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert asked.returncode == EXIT_GATE
    assert asked.stderr.splitlines()[1].startswith("Error: The q8_0 GGUF kept 1")
    assert {request.path for request, _ in httpserver.log} == {"/api/version", "/api/show"}
    with pytest.raises(GateError, match="The q8_0 GGUF kept"):
        pipeline.run("tiny", [], project.settings, Silent(), chosen=TO_THE_END)


@pytest.mark.slow
def test_a_zeroed_adapter_is_refused(project, here):  # noqa: F811
    from safetensors.torch import load_file, save_file

    weights = load_file(here.adapter_weights)
    save_file({name: part * 0 if "lora_B" in name else part for name, part in weights.items()}, here.adapter_weights)
    record = files.read_json(here.record)
    record["files"][here.adapter_weights.name] = files.file_digest(here.adapter_weights)
    files.write_json(here.record, record)
    with pytest.raises(GateError, match="The adapter changes nothing measurable") as caught:
        pipeline.run("tiny", [], project.settings, Silent(), chosen=TO_THE_END)
    assert caught.value.exit_code == EXIT_GATE
    measured = measure.survival_of(here)
    assert (measured.reference.change, measured.kept) == (0.0, 0.0)


@pytest.mark.slow
def test_short_memory_measures_at_8_bits_and_says_so(project, here, monkeypatch):  # noqa: F811
    monkeypatch.setattr(measure.psutil, "virtual_memory", type("Memory", (), {"available": 1e6}))
    listener = Listener()
    measured = measure.evaluate(here, "q8_0", project.settings, listener)
    assert measured.unquantized == "q8_0"
    assert 0.9 < measured.kept < 1.1
    assert any("so the adapter is measured on it at 8 bits" in said for said in listener.said)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["{}", '{"gguf": []}', "no JSON"])
def test_a_hostile_likelihood_is_measured_again(project, here, text):  # noqa: F811
    """Also where steps.json vouches for it."""
    here.likelihood.write_text(text, "utf-8")
    steps = files.read_json(here.steps)
    steps["evaluate"]["outputs"][str(here.likelihood)] = files.file_digest(here.likelihood)
    files.write_json(here.steps, steps)
    done = pipeline.run("tiny", [], project.settings, Silent())
    assert done.seconds["evaluate"] is not None
    assert done.survival == measure.survival_of(here) == project.whole.survival


@pytest.mark.slow
def test_a_run_that_was_not_measured_is_told(project, here):  # noqa: F811
    listener = Listener()
    measure.check_measured(here, here.gguf("q8_0"), project.whole.survival.gguf_sha256, False, listener)
    assert listener.said == []
    measure.check_measured(here, here.gguf("q8_0"), "another", False, listener)
    Path(here.likelihood).unlink()
    measure.check_measured(here, here.gguf("q8_0"), None, False, listener)
    assert len(listener.said) == 2
    assert all("was not measured on held-out replies" in said for said in listener.said)
