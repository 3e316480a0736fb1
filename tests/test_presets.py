"""Each preset file is a whole preset; a user's settings lie over it; a wrong name leads to the right one."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.errors import TwinError, UsageError
from twin.presets import load_preset, plan_training, preset_folder, preset_names, preset_text
from twin.settings import TrainSettings

OWN = """summary = "mine"
model = "owner/model"
family = "chatml"
parameters_billions = 1.0
license = "MIT"
[training]
epochs = 3
batch_size = 4
learning_rate = 1e-4
lora_r = 8
lora_alpha = 16
max_length = 1024
target_modules = ["q_proj"]
"""


def test_the_names_are_those_of_the_files():
    assert preset_names() == sorted(path.stem for path in Path(str(preset_folder())).glob("*.toml"))
    assert {"smollm2-135m", "phi-3-mini", "llama3-8b", "mistral-7b", "gemma-2b"} <= set(preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_each_preset_loads_and_can_be_planned(name):
    preset = load_preset(name)
    plan = plan_training(TrainSettings(), preset)
    assert plan.preset == name
    assert plan.model == preset.model
    assert plan.lora_alpha == preset.training.lora_alpha
    assert plan.max_length <= plan.num_ctx
    assert len(set(plan.target_modules)) == len(plan.target_modules)


@pytest.mark.parametrize("name", preset_names())
def test_each_preset_opens_with_its_hardware(name):
    header = [line for line in preset_text(name).split("summary =")[0].splitlines() if line]
    assert all(line.startswith("# ") for line in header)
    assert re.search(r"\d+ GB", " ".join(header))


def test_an_unknown_preset_leads_to_the_nearest():
    with pytest.raises(UsageError) as caught:
        load_preset("phi3-mini")
    assert (caught.value.message, caught.value.hint, caught.value.exit_code) == (
        "There is no preset 'phi3-mini'.",
        "Did you mean 'phi-3-mini'?",
        2,
    )


def test_a_name_that_looks_like_nothing_lists_all():
    with pytest.raises(UsageError) as caught:
        preset_text("../../etc/passwd")
    assert caught.value.hint == "Known: " + ", ".join(preset_names()) + "."


def test_a_preset_of_the_users_own():
    Path("own.toml").write_text(OWN, "utf-8")
    preset = load_preset("own.toml")
    assert (preset.name, preset.model, preset.training.lora_r, preset.serving.num_ctx) == (
        "own",
        "owner/model",
        8,
        4096,
    )


def test_a_missing_preset_file():
    with pytest.raises(UsageError) as caught:
        load_preset("own.toml")
    assert (caught.value.message, caught.value.hint) == (
        "There is no preset file 'own.toml'.",
        "Copy one: twin presets copy smollm2-135m",
    )


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (OWN + "lora_rank = 3\n", "training.lora_rank Extra inputs are not permitted"),
        (OWN.replace("lora_r = 8\n", ""), "training.lora_r Field required"),
        (OWN.replace("epochs = 3", "epochs = 0"), "training.epochs Input should be greater than 0"),
        ("= nonsense", "Invalid"),
        ("", "Field required"),
    ],
)
def test_a_broken_preset_file_names_the_key(text, part):
    Path("own.toml").write_text(text, "utf-8")
    with pytest.raises(UsageError) as caught:
        load_preset("own.toml")
    assert caught.value.message.startswith("Preset 'own.toml' can't be read: ")
    assert part in " ".join(caught.value.message.split())


# Was wrong once: UnicodeDecodeError (and PermissionError) escape as tracebacks; runs.py and brain use file_errors.
def test_a_preset_file_in_another_encoding():
    Path("own.toml").write_bytes(OWN.replace("mine", "café").encode("latin-1"))
    with pytest.raises(TwinError, match="is not UTF-8 text"):
        load_preset("own.toml")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_preset_file():
    Path("own.toml").write_text(OWN, "utf-8")
    Path("own.toml").chmod(0)
    with pytest.raises(UsageError, match=r"No permission to read 'own\.toml'\."):
        load_preset("own.toml")


def test_the_users_settings_win_over_the_presets():
    preset = load_preset("smollm2-135m")
    flags = {"epochs": 5, "batch_size": 3, "learning_rate": 1e-5, "max_length": 512, "model": "other/base"}
    plan = plan_training(TrainSettings(**flags, seed=7, device="cpu"), preset)
    assert {key: getattr(plan, key) for key in flags} == flags
    assert (plan.seed, plan.device, plan.lora_r) == (7, "cpu", preset.training.lora_r)


@given(lora_r=st.integers(1, 1024))
def test_a_changed_rank_keeps_the_scale(lora_r):
    preset = load_preset("smollm2-135m")
    plan = plan_training(TrainSettings(lora_r=lora_r), preset)
    assert plan.lora_r == lora_r
    assert plan.lora_alpha == 2 * lora_r


def test_rows_longer_than_what_is_served_are_refused():
    with pytest.raises(UsageError) as caught:
        plan_training(TrainSettings(max_length=8192), load_preset("smollm2-135m"))
    assert caught.value.message == "max_length 8192 is longer than the 4096 tokens that are served."
    assert caught.value.hint == "Use --max-length 4096 or a preset of your own with a larger num_ctx."
