"""Trained in another folder, under another home, with the base model at another place, and brought back."""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.listener import Listener
from tests.test_pipeline import TRAIN, whatsapp, with_settings
from tests.tiny import save_model
from twin import files, measure, pipeline, runs
from twin.cli.main import main
from twin.errors import GateError, StepError, UsageError
from twin.progress import Silent
from twin.settings import load_settings

GGUF = "model-q8_0.gguf"


@contextmanager
def machine(home: Path):
    """Work in ``home/project``, as whoever lives there."""
    (home / "project").mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("OLLAMA_HOST", "127.0.0.1:9")
        patch.chdir(home / "project")
        yield


def run(settings, first, last, reporter=None):
    return pipeline.run("tiny", [], settings, reporter or Silent(), chosen=pipeline.steps_between(first, last))


@pytest.fixture(scope="module")
def brought(tmp_path_factory, smollm2):
    """A laptop's home whose run was trained in another home and copied back, and the settings there."""
    root = tmp_path_factory.mktemp("two")
    laptop, elsewhere = root / "laptop", root / "elsewhere"
    save_model(laptop / "models" / "tiny", smollm2)
    shutil.copytree(laptop / "models", elsewhere / "bases", copy_function=shutil.copyfile)  # other times
    settings = load_settings(export={"person": "Ada", "validation_split": 0.25}, gguf={"quantization": ["q8_0"]})
    there = with_settings(settings, "train", model=str(elsewhere / "bases" / "tiny"), **TRAIN | {"epochs": 0.5})
    with machine(laptop):
        Path("brain").mkdir()
        Path("brain/WhatsApp Chat with Bo.txt").write_text(whatsapp(), "utf-8")
        done = run(settings, "export", "export")
        assert (list(done.seconds), done.registered, done.note) == (["export"], False, "")
    (elsewhere / "project/data").mkdir(parents=True)
    for name in ("train.jsonl", "val.jsonl", "dataset.json"):  # the brain stays, and the memories that are kept out
        shutil.copy(laptop / "project/data" / name, elsewhere / "project/data")
    with machine(elsewhere):
        assert list(run(there, "train", "train").seconds) == ["train"]
        assert set(run(there, "train", "train").seconds.values()) == {None}
    shutil.copytree(elsewhere / "project/adapters", laptop / "project/adapters", dirs_exist_ok=True)
    elsewhere.rename(root / "gone")
    return laptop, with_settings(settings, "train", model=str(laptop / "models" / "tiny"))


@pytest.fixture
def back(brought, tmp_path):
    """A copy of that home, to change."""
    shutil.copytree(brought[0] / "project", tmp_path / "home" / "project")
    with machine(tmp_path / "home"):
        yield brought[1]


def change(**values):
    path = Path("adapters/tiny/run.json")
    files.write_json(path, files.read_json(path) | values)


pytestmark = pytest.mark.slow


def test_what_was_trained_elsewhere_becomes_a_gguf_here(back):
    record = files.read_json(Path("adapters/tiny/run.json"))
    assert record["dataset"]["train"]["path"] == "data/train.jsonl"
    assert not any("elsewhere" in text for text in texts(record) - {record["base_model"], record["base_hub_id"]})
    told = Listener()
    assert list(run(back, "gguf", "gguf", told).seconds) == ["gguf"]
    assert f"Using the run in adapters/tiny, trained on {record['base_model']}" in told.said
    assert files.file_digest(Path("adapters/tiny", GGUF)) == runs.current_gguf(runs.run_paths("tiny"), "q8_0")
    assert run(back, "gguf", "gguf").seconds == {"gguf": None}
    # Held-out prompts are found by their digest, and so are the rows to measure on.
    assert len(measure.held_out_rows(runs.run_paths("tiny"), record, back)) == record["dataset"]["val"]["rows"]


def texts(value):
    """Every text in a JSON value."""
    if isinstance(value, dict):
        return set().union(*map(texts, value.values()))
    if isinstance(value, list):
        return set().union(*map(texts, value))
    return {value} if isinstance(value, str) else set()


def test_without_its_place_here_the_base_model_is_asked_for(back):
    settings = with_settings(back, "train", model=None)
    with pytest.raises(UsageError, match=r"There is no model folder '.*/elsewhere/bases/tiny'") as caught:
        run(settings, "gguf", "gguf")
    assert caught.value.hint == "Name the same model as it is called on this machine: --base"
    with pytest.raises(UsageError, match="There is no model folder"):
        pipeline.gguf(Path("adapters/tiny"), settings, Silent())
    planned = pipeline.gguf(
        Path("adapters/tiny"), with_settings(settings, "gguf", base=back.train.model), Silent(), dry_run=True
    )
    (file,) = planned.files
    assert file["gguf"] == f"adapters/tiny/{GGUF}"
    assert file["bytes"] > 0


def test_another_base_model_is_refused(back, tmp_path):
    from safetensors.torch import load_file, save_file

    other = shutil.copytree(back.train.model, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(GateError, match=r"The adapter was trained on other weights than those of '.*/other'"):
        run(with_settings(back, "train", model=str(other)), "gguf", "gguf")
    assert not Path("adapters/tiny", GGUF).exists()


def test_rows_that_are_others_by_now_are_refused(back):
    for name in ("train", "val"):
        file = Path(f"data/{name}.jsonl")
        text = file.read_text("utf-8")
        file.write_text(text + text.splitlines()[0] + "\n", "utf-8")
        with pytest.raises(GateError, match=f"'adapters/tiny' was not trained with the rows in 'data/{name}.jsonl'"):
            run(back, "gguf", "gguf")
        file.write_text(text, "utf-8")


def test_without_the_rows_it_is_told_and_not_measured(back):
    shutil.rmtree("data")
    told = Listener()
    pipeline.foresee("tiny", [], back, told, chosen=("gguf",))
    assert "There is no 'data/train.jsonl', so nothing shows that it was trained with your rows" in told.said
    with pytest.raises(UsageError, match="The held-out rows of 'adapters/tiny' are not here"):
        pipeline.foresee("tiny", [], back, Silent(), chosen=("gguf", "evaluate"))
    with pytest.raises(StepError, match="held-out rows that the run knew are not here"):
        pipeline.evaluate(runs.run_paths("tiny"), "q8_0", back, Silent())
    assert not Path("data").exists()


def test_a_cut_file_and_a_link_are_refused(back):
    weights = Path("adapters/tiny/adapter_model.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8])
    for does in (lambda: run(back, "gguf", "gguf"), lambda: pipeline.gguf(Path("adapters/tiny"), back, Silent())):
        with pytest.raises(UsageError, match=r"'adapters/tiny/adapter_model\.safetensors' is not as it was written"):
            does()
    weights.write_bytes(whole)
    Path("adapters/tiny/loss.png").unlink()
    Path("adapters/tiny/loss.png").symlink_to("/etc/hostname")
    with pytest.raises(UsageError, match=r"'adapters/tiny/loss\.png' is a link, and a run has none"):
        run(back, "gguf", "gguf")


PATHS = [
    "/etc/passwd", "../../../../../../etc/passwd", "data/../../x", "\\\\host\\share", "//host/x", "C:\\x", "\0",
    "x" * 5000, "", 3, None, {},
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_a_path_in_run_json_is_followed_nowhere(back, path):
    digest = files.file_digest(Path("/etc/passwd"))
    change(dataset={"train": {"path": path, "sha256": digest}, "val": {"path": path, "sha256": digest}})
    record = files.read_json(Path("adapters/tiny/run.json"))
    opened = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "file_digest", lambda file: opened.append(str(file)) or "none")
        assert runs.rows_file(record, "val", Path("data/val.jsonl")) is None
    assert set(opened) == {"data/val.jsonl"}
    with pytest.raises(GateError, match=r"was not trained with the rows in 'data/train\.jsonl'"):
        pipeline.foresee("tiny", [], back, Silent(), chosen=("gguf",))


NAMES = [
    "../../etc", "/etc", "~nobody-of-that-name/x", "\0", "x" * 5000, "a/b\0", "a--b/c", "//host/share", "", "a/b/c",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_an_odd_base_model_is_one_sentence(back, name):
    change(base_model=name)
    with pytest.raises(UsageError):
        pipeline.gguf(Path("adapters/tiny"), with_settings(back, "train", model=None), Silent())


@pytest.mark.parametrize(
    "values",
    [
        {"dataset": 3}, {"dataset": {"val": []}}, {"files": 3}, {"plan": []}, {"result": []}, {"result": {}},
        {"result": {"val_change": {"before": "x"}}}, {"pair": {"name": 3}}, {"system_prompt": None},
        {"base_weights": 3},
    ],
)  # fmt: skip
def test_an_odd_record_is_no_traceback(back, values):
    change(**values)
    assert main(["run", "tiny", "--from", "gguf", "--until", "gguf", "--dry-run", "--quiet"]) in (0, 2, 5)
    assert main(["gguf", "adapters/tiny", "--dry-run", "--quiet", "--base", back.train.model]) in (0, 2, 5)


def test_a_link_for_checkpoints_costs_nothing_elsewhere(back, tmp_path):
    precious = tmp_path / "precious"
    for name in ("letters", "checkpoint-of-my-own-heart"):
        (precious / name).mkdir(parents=True)
    Path("adapters/tiny/checkpoints").symlink_to(precious)
    runs.bind_checkpoints(runs.run_paths("tiny"), None, {}, dict)
    assert (precious / "letters").is_dir()


# ---------------------------------------------------------------- on the command line


def twin(capfd, *words):
    code = main(list(words))
    out, err = capfd.readouterr()
    return code, out, err


def test_what_steps_can_be_left_out(back, capfd):
    assert pipeline.steps_between("export", "register") == pipeline.STEPS
    assert pipeline.steps_between("gguf", "gguf") == ("gguf",)
    Path("chats").mkdir()
    for words, said in [
        (["--from", "trian"], "There is no step 'trian' (--from).\nHint: Did you mean 'train'?"),
        (
            ["--until", "fly"],
            "There is no step 'fly' (--until).\nHint: Known: evaluate, export, gguf, register, train.",
        ),
        (["--from", "gguf", "--until", "train"], "The step 'train' comes before 'gguf'."),
        (["chats", "--from", "train"], "The export reads chats, and --from train leaves it out."),
        (["--until", "gguf", "--env", ".env"], "--env is for the registered model, and --until gguf ends before."),
    ]:
        code, out, err = twin(capfd, "run", "tiny", *words)
        assert (code, out) == (2, "")
        assert err.startswith(f"Error: {said}")


def test_a_run_ends_where_it_was_told_to(back, capfd):
    Path("twin.toml").write_text('[export]\nperson = "Ada"\nvalidation_split = 0.25\n', "utf-8")
    code, out, err = twin(capfd, "run", "other", "--until", "export")
    assert code == 0
    assert out.startswith("Steps: export ")
    assert "measured" not in out
    assert err.endswith("Next: twin run other --from train\n")
    code, out, _ = twin(capfd, "run", "other", "--until", "export", "--json", "--quiet")
    told = json.loads(out)
    assert (code, told["steps"], told["registered"], told["note"]) == (0, {"export": None}, False, "")
    before = sorted(os.walk("."))
    code, out, _ = twin(capfd, "run", "tiny", "--from", "gguf", "--until", "gguf", "--dry-run", "--json", "--quiet")
    told = json.loads(out)
    assert (code, told["export"], told["steps"], told["done_before"]) == (0, None, ["gguf"], ["train"])
    code, out, _ = twin(capfd, "run", "tiny", "--from", "train", "--dry-run", "--quiet", "--model", back.train.model)
    assert "Steps to do: train, gguf, evaluate, register\n" in out
    assert sorted(os.walk(".")) == before
    code, _, err = twin(capfd, "run", "nobody", "--from", "gguf")
    assert (code, err) == (
        2,
        "Error: There is no adapter folder 'adapters/nobody'.\nHint: Train one: twin train --preset smollm2-135m\n",
    )
