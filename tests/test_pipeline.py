"""The thinnest path through all steps, for real: a 2-layer model, eight chats, every file that should come out."""

import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest

from tests.conftest import CACHE
from tests.tiny import save_model
from twin import files, pipeline, prove, runs
from twin.chat import Chat
from twin.errors import GateError, StepError, TwinError, UsageError
from twin.presets import load_preset, plan_training, preset_text
from twin.progress import Silent
from twin.records import Scored, Turn
from twin.results import Exported, TrainedRun, Whole, read_survival
from twin.settings import Settings, load_settings
from twin.templates import load_family
from twin.training.samples import prompt_ids

STEPS = ("export", "train", "gguf", "evaluate")
UNMEASURED = pipeline.steps_between("export", "gguf")  # what has learned next to nothing is refused after it
NOBODY = "127.0.0.1:9"
SECRET = "hf_this_is_a_secret_and_stays_one"
TALK = [
    [("Bo", "are you coming to the lake?"), ("Ada", "yep, after six"), ("Bo", "bring the map"), ("Ada", "got it 🙂")],
    [("Bo", "did the engine start"), ("Ada", "nope\nit coughed twice"), ("Bo", "poor thing"), ("Ada", "poor me")],
    [("Bo", "tea or coffee"), ("Ada", "tea, always tea")],
    [("Bo", "who won?"), ("Ada", "we did, 3 to ½"), ("Bo", "half a goal?"), ("Ada", "long story")],
    [("Bo", "is the library open on sunday"), ("Ada", "till noon i think")],
    [("Bo", "happy birthday!"), ("Ada", "aww thank you"), ("Bo", "cake?"), ("Ada", "so much cake")],
    [("Bo", "कल मिलते हैं?"), ("Ada", "हाँ ज़रूर")],
    [("Bo", "what are you reading"), ("Ada", "a book about tides"), ("Bo", "any good?"), ("Ada", "wet")],
]
ROWS = sum(speaker == "Ada" for talk in TALK for speaker, _ in talk)
pytestmark = pytest.mark.slow
TRAIN = {"epochs": 2, "batch_size": 4, "max_length": 256, "lora_r": 4, "device": "cpu", "name": "tiny"}


def whatsapp() -> str:
    """An Android export of TALK, a conversation a day."""
    return "".join(
        f"{day:02}/01/2024, 18:{minute:02} - {speaker}: {text}\n"
        for day, talk in enumerate(TALK, start=1)
        for minute, (speaker, text) in enumerate(talk)
    )


@contextmanager
def inside(folder: Path, cache: Path) -> Iterator[pytest.MonkeyPatch]:
    """Work in ``folder`` with our own cache, no server, and a secret around."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.upper().startswith("TWIN_")]:
            patch.delenv(name)
        patch.setenv("TWIN_CACHE", str(cache))
        patch.setenv("OLLAMA_HOST", NOBODY)
        patch.setenv("HF_TOKEN", SECRET)
        patch.chdir(folder)
        yield patch


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file below ``folder``."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@dataclass
class Project:
    """A project folder after ``pipeline.run``, and what the steps left and said."""

    folder: Path
    cache: Path
    base: Path
    settings: Settings
    whole: Whole
    exported: Exported
    record: dict
    files: dict

    @property
    def run(self) -> Path:
        return self.folder / "adapters" / "tiny"


@pytest.fixture(scope="module")
def project(tmp_path_factory, smollm2) -> Project:
    home = tmp_path_factory.mktemp("home")
    cache = home / "cache"
    cache.mkdir()
    for shared in ("packages", "models"):  # base-gguf/ is ours, so that the user's cache keeps no toys
        (CACHE / shared).mkdir(parents=True, exist_ok=True)
        (cache / shared).symlink_to(CACHE / shared, target_is_directory=True)
    base = save_model(home / "models" / "tiny-llama", smollm2)
    folder = home / "project"
    (folder / "brain").mkdir(parents=True)
    (folder / "brain" / "WhatsApp Chat with Bo.txt").write_text(whatsapp(), "utf-8")
    with inside(folder, cache):
        settings = load_settings(
            export={"person": "Ada", "validation_split": 0.25},
            train={"model": str(base), **TRAIN},
            gguf={"quantization": ["q8_0"]},
        )
        whole = pipeline.run("tiny", [], settings, Silent())
        exported = pipeline.export([], with_settings(settings, "export", output=Path("again")), Silent())
        return Project(
            folder, cache, base, settings, whole, exported, files.read_json(whole.paths.record), listing(folder)
        )


@pytest.fixture
def here(project):
    with inside(project.folder, project.cache):
        yield project.folder


def with_settings(settings: Settings, section: str, **values) -> Settings:
    changed = getattr(settings, section).model_copy(update=values)
    return settings.model_copy(update={section: changed})


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


# ---------------------------------------------------------------- export


def test_export_writes_rows_and_their_account(project):
    data = project.folder / "data"
    report = json.loads((data / "dataset.json").read_text("utf-8"))
    train, val = rows_of(data / "train.jsonl"), rows_of(data / "val.jsonl")
    full = rows_of(data / "finetune_dataset.jsonl")
    assert report["rows"]["total"] == len(full) == len(train) + len(val) == ROWS
    assert (report["rows"]["train"], report["rows"]["val"]) == (len(train), len(val))
    assert report["dropped"] == {}
    assert report["files"] == {
        name: files.file_digest(data / name) for name in ("finetune_dataset.jsonl", "train.jsonl", "val.jsonl")
    }
    assert report["sources"] == ["brain"]
    assert report["person"] == project.exported.person == "Ada"
    assert not {row["conversation"] for row in train} & {row["conversation"] for row in val}
    assert len({row["conversation"] for row in val}) == 2
    for file in ("finetune_dataset.jsonl", "train.jsonl", "val.jsonl"):
        assert (project.folder / "again" / file).read_bytes() == (data / file).read_bytes()
    assert sorted(row["id"] for row in full) == sorted(row["id"] for row in [*train, *val])


# ---------------------------------------------------------------- train


def test_train_leaves_everything_of_a_run(project):
    names = {path.name for path in project.run.iterdir()}
    assert names >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "run.json",
        "metrics.jsonl",
        "loss.png",
        "README.md",
        "likelihood.json",
        "model-q8_0.gguf",
    }
    assert (project.run / "loss.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert (project.run / "chat_template.jinja").read_text("utf-8") == load_family("chatml").jinja
    card = (project.run / "README.md").read_text("utf-8")
    assert card.startswith("---\nbase_model: ")
    assert "{" not in card


def test_no_trace_of_unfinished_work(project):
    assert [name for name in project.files if ".partial" in name] == []


def test_losses_are_finite_and_logged_a_step(project):
    result = project.record["result"]
    logged = rows_of(project.run / "metrics.jsonl")
    assert [entry["step"] for entry in logged] == list(range(1, result["steps"] + 1))
    values = [entry[key] for entry in logged for key in ("loss", "learning_rate", "grad_norm", "seconds")]
    values += [result[key] for key in ("train_loss", "val_loss", "val_loss_base", "tokens_per_second")]
    assert all(math.isfinite(value) for value in values)
    # Random weights know nothing: close to the uniform guess over the vocabulary.
    assert abs(result["val_loss_base"] - math.log(49152)) < 1
    assert result["val_change"]["conversations"] == 2


def test_trains_json_keeps_its_keys(project):
    keys = set(TrainedRun(runs.RunPaths(project.run), project.record).as_json())
    assert keys >= {
        "adapter", "base_model", "backend", "device", "steps", "train_loss", "val_loss", "val_loss_base", "tokens",
        "unique_tokens", "supervised_tokens", "tokens_per_second", "seconds", "peak_rss_bytes", "samples", "shortened",
        "too_long",
    }  # fmt: skip


def test_run_json_tells_all_but_secrets_and_places(project):
    text = (project.run / "run.json").read_text("utf-8")
    record = json.loads(text)
    assert record == project.record
    assert record["plan"]["epochs"] == 2
    assert record["plan"]["lora_r"] == 4
    assert record["dataset"]["train"]["path"] == "data/train.jsonl"
    assert record["dataset"]["train"]["sha256"] == files.file_digest(project.folder / "data" / "train.jsonl")
    assert record["base_model"] == str(project.base)
    assert record["mask"] == {
        "proved": "each prompt is the Go template's, and what is learned is the reply and its end token",
        "read_by": "llama.cpp",
        "samples": record["dataset"]["samples"],
        "supervised_tokens": record["mask"]["supervised_tokens"],
        "held_out": record["dataset"]["val"]["rows"],
        "replies_read_by_themselves": 0,
        "unwritable": 0,
    }
    without_base = text.replace(str(project.base), "")
    home = project.folder.parent
    for private in (str(home), str(Path.home()), os.environ.get("USER") or "\0", SECRET):
        assert private not in without_base
    assert re.findall(r'"/[^"]*"', without_base) == []


def test_no_secret_in_any_file(project):
    for name in project.files:
        assert SECRET.encode() not in (project.folder / name).read_bytes(), name


def test_plain_peft_loads_the_adapter(project):
    import peft
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(project.base, dtype=torch.float32)
    ids = torch.tensor([[1, 4093, 198, 2]])
    with torch.no_grad():
        before = model(ids).logits
        wrapped = peft.PeftModel.from_pretrained(model, str(project.run))
        after = wrapped(ids).logits
    assert not torch.equal(before, after)
    trained = {
        name.partition(".lora_")[0].rpartition(".")[2] for name, _ in wrapped.named_parameters() if "lora_" in name
    }
    assert trained == set(project.record["plan"]["target_modules"])
    config = json.loads((project.run / "adapter_config.json").read_text("utf-8"))
    assert config["base_model_name_or_path"] == str(project.base)


def test_a_preset_of_ones_own_trains_to_the_end(project, here, tmp_path):
    own = tmp_path / "mine.toml"
    own.write_text(preset_text("smollm2-135m").replace('license = "Apache-2.0"', 'license = "mine alone"'), "utf-8")
    settings = with_settings(project.settings, "train", preset=str(own), epochs=0.1)
    done = pipeline.train(settings, Silent(), output=tmp_path / "own")
    assert done.record["plan"]["preset"] == "mine"
    assert "license (mine alone)" in (done.paths.root / "README.md").read_text("utf-8")


# ---------------------------------------------------------------- gguf


def test_the_gguf_carries_our_template(project):
    from twin.llama import open_gguf

    with open_gguf(project.run / "model-q8_0.gguf", vocab_only=True) as model:
        metadata = model.metadata()
        end = model.ids("<|im_end|>")
    assert metadata["tokenizer.chat_template"] == load_family("chatml").jinja
    assert metadata["general.architecture"] == "llama"
    assert end == [2]


def test_the_file_holds_base_plus_adapter(project):
    import peft
    import torch
    import transformers
    from gguf import GGUFReader, dequantize
    from safetensors.torch import load_file

    base = transformers.AutoModelForCausalLM.from_pretrained(project.base, dtype=torch.float32)
    weights = load_file(project.run / "adapter_model.safetensors")
    config = peft.LoraConfig.from_pretrained(str(project.run))
    name = "model.layers.1.self_attn.v_proj"
    before = base.get_submodule(name).weight.detach()
    up, down = (weights[f"base_model.model.{name}.lora_{part}.weight"].float() for part in "BA")
    expected = before + config.lora_alpha / config.r * up @ down
    tensors = {one.name: one for one in GGUFReader(str(project.run / "model-q8_0.gguf")).tensors}
    found = tensors["blk.1.attn_v.weight"]
    made = torch.from_numpy(dequantize(found.data, found.tensor_type))
    torch.testing.assert_close(made, expected, rtol=0, atol=float(expected.abs().max()) / 127)
    assert (made - before).norm() > 3 * (made - expected).norm()


def broken_run(project, tmp_path, change):
    """Copy the run's adapter with other tensors; return what the one pass says of it."""
    from safetensors.torch import load_file, save_file

    from twin.gguf.converter import find_converter
    from twin.gguf.hired import hire
    from twin.gguf.make import foresee

    other = tmp_path / "other"
    other.mkdir()
    shutil.copyfile(project.run / "adapter_config.json", other / "adapter_config.json")
    weights = load_file(project.run / "adapter_model.safetensors")
    changed = {name: change(name, weight).contiguous() for name, weight in weights.items()}
    save_file(changed, other / "adapter_model.safetensors", metadata={"format": "pt"})
    target = tmp_path / "model.gguf"
    with hire(find_converter(None, Silent()), Silent()) as worker, pytest.raises(TwinError) as caught:
        foresee(worker, project.base, other, load_family("chatml"), {"q8_0": target}, None, Silent())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "other", "project"]
    return caught.value


def test_a_zero_adapter_is_refused(project, tmp_path):
    error = broken_run(project, tmp_path, lambda name, weight: weight * ("lora_B" not in name))
    assert isinstance(error, GateError)
    assert error.message.endswith("changes nothing: all of it is zero.")


def test_another_bases_adapter_is_refused(project, tmp_path):
    error = broken_run(project, tmp_path, lambda name, weight: weight.repeat(1, 2))
    assert isinstance(error, UsageError)
    assert "lora_" in error.message or "proj" in error.message


class TestCheck:
    """The check of a finished file refuses what it should."""

    @pytest.fixture
    def probes(self, project):
        """Prompts and their ids of training."""
        from twin.training.tokenizer import load_tokenizer

        tokenizer, family = load_tokenizer(project.base), load_family("chatml")
        system = Turn("system", project.record["system_prompt"])
        prompts = [
            [system, Turn("user", text)] for text in ("Hello there.", "½ of 1234, ٣ and 漢字 के साथ\n\n  🙂", "a\u00a0b")
        ]
        return [(turns, prompt_ids(tokenizer, family, turns)) for turns in prompts]

    @pytest.fixture
    def probe(self, probes):
        return probes[0]

    def check(self, project, family, samples):
        from twin.gguf.check import check

        known = {tuple(turns): ids for turns, ids in samples}
        prompts = [(f"prompt {at}", turns) for at, (turns, _) in enumerate(samples)]
        return check(project.run / "model-q8_0.gguf", family, prompts, lambda turns: known[tuple(turns)])

    def test_accepts_the_ids_of_training(self, project, probes):
        said = self.check(project, load_family("chatml"), probes)
        assert set(said) == {"template", "vocabulary", "input_ids", "end_token", "tensors", "answer"}
        assert said["input_ids"] == "3 prompts, the ids of training"

    @pytest.mark.parametrize(
        ("change", "place"),
        [
            (lambda ids: [*ids[:5], ids[5] + 1, *ids[6:]], 5),
            (lambda ids: [ids[0], *ids], 1),
            (lambda ids: ids[:9], 9),
        ],
        ids=["one other id", "BOS twice", "an end missing"],
    )
    def test_refuses_other_ids(self, project, probe, change, place):
        turns, ids = probe
        wrong = change(list(ids))
        with pytest.raises(GateError) as caught:
            self.check(project, load_family("chatml"), [(turns, wrong)])
        assert caught.value.message.startswith(
            f"Training reads a prompt of family 'chatml' as {len(wrong)} ids and llama.cpp as {len(ids)}, "
            f"for prompt 0, at id {place} (byte "
        )

    def test_refuses_another_template(self, project, probe):
        family = load_family("chatml")
        other = family.model_copy(update={"jinja": family.jinja + " "})
        with pytest.raises(GateError, match=r"'model-q8_0.gguf' does not carry the template of family 'chatml'"):
            self.check(project, other, [probe])

    def test_refuses_an_end_that_does_not_end(self, project, probe):
        family = load_family("chatml")
        other = family.model_copy(update={"end_token": "<|im_start|>", "stops": ["<|im_start|>"]})
        with pytest.raises(GateError, match=re.escape("ends with '<|im_start|>', which is no end of generation")):
            self.check(project, other, [probe])

    def test_a_truncated_file_is_a_step_error(self, project, tmp_path):
        from twin.llama import open_gguf

        cut = tmp_path / "cut.gguf"
        cut.write_bytes((project.run / "model-q8_0.gguf").read_bytes()[:-4096])
        with pytest.raises(StepError, match="can't be opened as a model"), open_gguf(cut):
            pass


# ---------------------------------------------------------------- evaluate


def test_evaluate_measures_the_held_out_replies(project):
    val = rows_of(project.folder / "data" / "val.jsonl")
    survival = project.whole.survival
    for change in (survival.gguf, survival.reference):
        assert (change.replies, change.conversations) == (len(val), 2)
        assert change.low <= change.change <= change.high < 0
    # The same replies under the same weights: by PyTorch, by llama.cpp with the adapter added, and merged at 8 bits.
    assert asdict(survival.adapter) == project.record["result"]["val_change"]
    for change, near in ((survival.gguf, 0.05), (survival.reference, 0.01)):
        assert change.before == pytest.approx(survival.adapter.before, abs=near)
        assert change.after == pytest.approx(survival.adapter.after, abs=near)
    assert 0.9 < survival.kept_low <= survival.kept <= survival.kept_high < 1.1
    assert (survival.quantization, survival.unquantized, survival.refused) == ("q8_0", "f16", "")
    assert survival.gguf_sha256 == files.file_digest(project.run / "model-q8_0.gguf")
    assert len(survival.samples) == 2
    assert {sample.person for sample in survival.samples} <= {row["messages"][-1]["content"] for row in val}
    written = json.loads((project.run / "likelihood.json").read_text("utf-8"))
    assert read_survival(written) == survival


def test_compare_of_equals_is_zero_with_no_doubt():
    from twin.evaluate.likelihood import compare

    scores = [Scored(f"r{n}", f"c{n % 3}", 1.5 * n + 0.1, n + 1) for n in range(12)]
    change = compare(scores, scores)
    assert (change.change, change.low, change.high) == (0.0, 0.0, 0.0)
    assert change.before == change.after == pytest.approx(sum(s.nll for s in scores) / sum(s.tokens for s in scores))
    better = compare(scores, [replace(score, nll=score.nll - 0.5 * score.tokens) for score in scores])
    assert (better.change, better.low, better.high) == pytest.approx((-0.5, -0.5, -0.5))
    with pytest.raises(ValueError, match="not scored on the same replies"):
        compare(scores, scores[1:])


def test_prompts_to_show_are_cut_as_in_training_and_not_shown_twice():
    from twin.evaluate.survival import prompts_to_show
    from twin.records import Example, Sample

    rows = [
        Example(f"r{n}", f"c{n}", "chat", (Turn("user", asked), Turn("assistant", "x")))
        for n, asked in enumerate(["where?", "where?", "when?", "too long"])
    ]
    samples = [Sample(f"r{n}", f"c{n}", "chat", (n, 7, 8, 9), 2) for n in range(3)]
    assert [(row.id, ids) for row, ids in prompts_to_show(rows, samples, 3)] == [("r1", (1, 7)), ("r2", (2, 7))]
    every = [Sample("r0@1", "c0", "chat", (5, 6), 1), Sample("r0@3", "c0", "chat", (5, 6, 7), 2)]
    assert prompts_to_show(rows[:1], every, 3) == [(rows[0], (5, 6))]


# ---------------------------------------------------------------- chat


def test_chat_from_the_gguf_sends_the_trained_prompt(project, here):
    from transformers import AutoTokenizer

    with pipeline.gguf_backend(Path("adapters/tiny/model-q8_0.gguf"), project.settings) as backend:
        chat = Chat(backend)
        pieces = chat.say("tea?")
        reply = "".join(itertools.islice(pieces, 8))
        pieces.close()  # as Ctrl-C does: what was said so far stays
    turns = [Turn("system", project.record["system_prompt"]), Turn("user", "tea?")]
    tokenizer = AutoTokenizer.from_pretrained(project.base)
    assert chat.counts.prompt_tokens == len(prompt_ids(tokenizer, load_family("chatml"), turns))
    assert reply.strip()
    assert chat.turns == [Turn("user", "tea?"), Turn("assistant", reply.strip())]


def test_a_message_longer_than_the_context_is_refused(project, here):
    with pipeline.gguf_backend(Path("adapters/tiny/model-q8_0.gguf"), project.settings) as backend:
        with pytest.raises(UsageError, match=r"The prompt is \d+ tokens long and the model holds 4096"):
            list(Chat(backend).say("half a word " * 4000))
        assert "".join(itertools.islice(Chat(backend).say("tea?"), 4)).strip()


# ---------------------------------------------------------------- register


def test_which_run_is_served(project, here):
    assert pipeline.pick_run("tiny", None, Silent()).name == "tiny"
    assert pipeline.pick_run("chirag-v1", None, Silent()).name == "tiny"
    assert pipeline.pick_run("me/wren:v2", None, Silent()).name == "tiny"  # a name of Ollama's, and no folder's
    half = runs.run_paths("half")
    half.checkpoints.mkdir(parents=True)
    try:
        with pytest.raises(UsageError, match="The training of 'adapters/half' did not finish"):
            pipeline.pick_run("half", None, Silent())
    finally:
        shutil.rmtree(half.root)


# ---------------------------------------------------------------- dry runs


def test_dry_runs_write_nothing(project, here):
    before = listing(here)
    assert pipeline.export([], project.settings, Silent(), dry_run=True).train == project.exported.train
    planned = pipeline.train(project.settings, Silent(), dry_run=True).as_json()
    assert planned["steps"] == project.record["result"]["steps"]
    assert planned["unique_tokens"] == project.record["result"]["unique_tokens"]
    foreseen = pipeline.gguf(None, project.settings, Silent(), dry_run=True)
    size = (project.run / "model-q8_0.gguf").stat().st_size
    assert foreseen.files == ({"gguf": "adapters/tiny/model-q8_0.gguf", "quantization": "q8_0", "bytes": size},)
    assert foreseen.as_json()["foreseen_seconds"] > 0
    assert listing(here) == before


# ---------------------------------------------------------------- run


def test_run_does_each_step_and_ends_without_a_server(project):
    whole = project.whole
    assert set(whole.seconds) == set(STEPS)
    assert all(seconds is not None for seconds in whole.seconds.values())
    assert whole.registered is False
    assert whole.note.endswith("Then: twin register tiny")
    assert NOBODY in whole.note


def test_a_second_run_skips_every_step(project, here):
    before = listing(here)
    assert pipeline.run("tiny", [], project.settings, Silent()).seconds == dict.fromkeys(STEPS)
    assert listing(here) == before


def test_a_conversation_longer_than_the_context_is_measured(project, tmp_path):
    folder = tmp_path / "long"
    (folder / "brain").mkdir(parents=True)
    lines = [
        f"{day:02}/01/2024, 1{n // 60}:{n % 60:02} - {'Ada' if n % 2 else 'Bo'}: {'words and ' * 6}{day} {n}\n"
        for day in (1, 2, 3, 4)
        for n in range(24)
    ]
    (folder / "brain" / "WhatsApp Chat with Bo.txt").write_text("".join(lines), "utf-8")
    with inside(folder, project.cache):
        settings = with_settings(project.settings, "train", max_length=128, epochs=0.1)
        done = pipeline.run("tiny", [], settings, Silent(), force=True)  # it has learned next to nothing
        assert len(done.survival.samples) == 1
        assert files.read_json(done.paths.record)["dataset"]["shortened"] > 0


class StopAt(Silent):
    """A reporter that presses Ctrl-C at a step of training, and keeps what is said."""

    def __init__(self, step):
        self.left, self.said = step, []

    def say(self, text):
        self.said.append(text)

    @contextmanager
    def task(self, title, total=None):
        with super().task(title, total) as inner:
            yield self if title == "Training" else inner

    def advance(self, amount=1, note=""):
        self.left -= amount
        if self.left <= 0:
            raise KeyboardInterrupt


def test_a_run_that_was_stopped_goes_on_and_one_of_other_rows_begins_again(project, tmp_path):
    folder = tmp_path / "stopped"
    shutil.copytree(project.folder / "brain", folder / "brain")
    with inside(folder, project.cache):
        settings = with_settings(project.settings, "train", batch_size=1, epochs=3, learning_rate=1e-5)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                pipeline.run("tiny", [], settings, StopAt(12))
        told = StopAt(math.inf)
        # Other rows: the checkpoint is not theirs.
        seeded = with_settings(settings, "export", seed=5)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run("tiny", [], seeded, StopAt(12))
        with pytest.MonkeyPatch.context() as patch:  # what it was begun with is not chosen again

            def begin(*chosen):
                raise AssertionError

            patch.setattr("twin.training.start.begin", begin)
            pipeline.run("tiny", [], seeded, told, chosen=UNMEASURED)
        assert "Training goes on from adapters/tiny/checkpoints/checkpoint-10" in told.said
        steps = [json.loads(line)["step"] for line in Path("adapters/tiny/metrics.jsonl").read_text().splitlines()]
        assert steps == list(range(1, runs.read_record(runs.run_paths("tiny"))["result"]["steps"] + 1))
        assert not runs.run_paths("tiny").checkpoints.exists()


def test_another_base_model_in_the_same_folder_is_seen(project, tmp_path, smollm2):
    base = save_model(tmp_path / "base", smollm2)
    folder = tmp_path / "again"
    shutil.copytree(project.folder / "brain", folder / "brain")
    with inside(folder, project.cache):
        settings = with_settings(project.settings, "train", model=str(base), epochs=0.1)
        pipeline.run("tiny", [], settings, Silent(), chosen=UNMEASURED)
        assert set(pipeline.run("tiny", [], settings, Silent(), chosen=UNMEASURED).seconds.values()) == {None}
        os.utime(base / "model.safetensors", (1, 1))
        again = pipeline.run("tiny", [], settings, Silent(), chosen=UNMEASURED).seconds
    assert again["export"] is None
    assert None not in (again["train"], again["gguf"])


def test_a_cut_gguf_is_made_again_alike(project, here):
    file = project.run / "model-q8_0.gguf"
    digest = files.file_digest(file)
    file.write_bytes(file.read_bytes()[:100_000])
    seconds = pipeline.run("tiny", [], project.settings, Silent()).seconds
    assert seconds.pop("gguf") is not None
    assert seconds == dict.fromkeys(("export", "train", "evaluate"))
    assert files.file_digest(file) == digest


def test_another_quantization_remakes_the_gguf_alone(project, here):
    both = with_settings(project.settings, "gguf", quantization=["q8_0", "f16"])
    seconds = pipeline.run("tiny", [], both, Silent()).seconds
    assert seconds.pop("gguf") is not None
    assert seconds == dict.fromkeys(("export", "train", "evaluate"))
    assert (project.run / "model-f16.gguf").stat().st_size > (project.run / "model-q8_0.gguf").stat().st_size
    assert pipeline.run("tiny", [], both, Silent()).seconds == dict.fromkeys(STEPS)


def test_an_importance_matrix_is_made_of_the_rows_that_were_learned(project, here, tmp_path):
    weighed = with_settings(project.settings, "gguf", quantization=["iq4_xs"], imatrix=True)
    target = tmp_path / "weighed.gguf"
    made = pipeline.gguf(None, weighed, Silent(), output=target).files[0]
    assert made["imatrix"] is True
    assert made["bytes"] == target.stat().st_size
    before = target.read_bytes()
    with pytest.raises(UsageError, match="is there already"):
        pipeline.gguf(None, weighed, Silent(), output=target)
    plain = pipeline.gguf(None, with_settings(weighed, "gguf", imatrix=False), Silent(), output=tmp_path / "plain.gguf")
    assert plain.files[0]["imatrix"] is False
    assert plain.files[0]["bytes"] == made["bytes"]
    assert (tmp_path / "plain.gguf").read_bytes() != before == target.read_bytes()
    learned = Path("data/train.jsonl")
    rows = learned.read_bytes()
    learned.unlink()
    try:
        with pytest.raises(UsageError, match="rows that the twin learned, and they are not here"):
            pipeline.gguf(None, weighed, Silent(), output=tmp_path / "other.gguf")
    finally:
        learned.write_bytes(rows)
    assert not (tmp_path / "other.gguf").exists()


def test_run_on_the_command_line_is_one_object_and_exit_3_without_a_server(project, here):
    options = [
        part for key, value in TRAIN.items() for part in (f"--{key.replace('_', '-')}", str(value)) if key != "name"
    ]
    Path("twin.toml").write_text('[export]\nperson = "Ada"\nvalidation_split = 0.25\n', "utf-8")
    command = [sys.executable, "-m", "twin", "run", "tiny", "--json", "--model", str(project.base), *options]
    # The last test left both quantizations; alone, this one has to make q8_0 again.
    done = subprocess.run([*command, "-q", "q8_0", "-q", "f16"], capture_output=True, text=True, check=False)
    Path("twin.toml").unlink()
    result = json.loads(done.stdout)
    assert done.returncode == 3, done.stderr
    assert result["registered"] is False
    assert set(result["steps"]) == set(STEPS)
    assert [result["steps"][step] for step in ("export", "train", "evaluate")] == [None] * 3
    assert "Traceback" not in done.stderr


def test_a_pair_that_differs_stops_training_before_it_begins(tmp_path, monkeypatch):
    pair = load_family("chatml")
    broken = pair.model_copy(update={"go": pair.go.replace("\\n", " ", 1)})
    monkeypatch.setattr(prove, "load_family", lambda name: broken)
    settings = load_settings(train=TRAIN)
    plan = plan_training(settings.train, load_preset(settings.train.preset))
    with pytest.raises(GateError, match="The pair of family 'chatml' differs for a user's turn with plain text"):
        pipeline.preflight(settings, plan, tmp_path / "adapters", Silent())
    assert not (tmp_path / "adapters").exists()


def test_a_row_that_the_templates_render_differently_stops_training(project, here, monkeypatch):
    pair = load_family("chatml")
    go = pair.go.replace("{{ .Content }}", "{{ if ne .Content `who won?` }}{{ .Content }}{{ end }}")
    monkeypatch.setattr(prove, "load_family", lambda name: pair.model_copy(update={"go": go}))
    with pytest.raises(GateError, match="The pair of family 'chatml' differs for 'WhatsApp Chat with Bo"):
        pipeline.train(project.settings, Silent(), dry_run=True)


def test_a_wrong_quantization_stops_a_run_before_it_begins(project, tmp_path):
    folder = tmp_path / "new"
    shutil.copytree(project.folder / "brain", folder / "brain")
    wrong = with_settings(project.settings, "gguf", quantization=["q8_0", "q5_q_m"])
    with inside(folder, project.cache):
        with pytest.raises(UsageError) as caught:
            pipeline.run("tiny", [], wrong, Silent())
        assert caught.value.message == "There is no quantization 'q5_q_m'."
        assert set(listing(folder)) == {"brain/WhatsApp Chat with Bo.txt"}


def test_with_nothing_held_out_a_run_ends_unmeasured(project, tmp_path):
    folder = tmp_path / "all"
    shutil.copytree(project.folder / "brain", folder / "brain")
    with inside(folder, project.cache):
        settings = with_settings(project.settings, "export", validation_split=0.0)
        done = pipeline.run("tiny", [], settings, Silent())
        assert set(done.seconds) == {"export", "train", "gguf"}
        assert done.survival is None
        assert done.as_json()["likelihood"] == {}
        assert files.read_json(done.paths.record)["result"]["val_loss"] is None
        with pytest.raises(StepError, match="There are no held-out conversations to measure on"):
            pipeline.evaluate(done.paths, "q8_0", settings, Silent())
