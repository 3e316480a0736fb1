"""A preset is one TOML in ``presets/``: a base model, its template family and settings that suit it.

The header comment of each file says which hardware, how much memory and how long.
"""

from __future__ import annotations

import tomllib
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from twin.errors import UsageError, file_errors, nearest
from twin.settings import TrainSettings


class PresetTraining(BaseModel):
    """Training values of a preset; a flag or ``twin.toml`` wins over each."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    epochs: float = Field(gt=0)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0, lt=1)
    lora_r: int = Field(ge=1)
    lora_alpha: int = Field(ge=1)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    max_length: int = Field(ge=64)
    target_modules: list[str] = Field(min_length=1)


class PresetServing(BaseModel):
    """Parameters of the registered model."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    temperature: float = Field(0.7, ge=0, le=2)
    num_ctx: int = Field(4096, ge=256)


class Preset(BaseModel):
    """One file of ``presets/``."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    summary: str
    model: str
    family: str
    parameters_billions: float = Field(gt=0)
    license: str
    training: PresetTraining
    serving: PresetServing = PresetServing()


def preset_folder() -> Traversable:
    """Return where the preset files are: inside the wheel, or at the top of a checkout."""
    packaged = resources.files("twin") / "_presets"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "presets"


def preset_names() -> list[str]:
    """Return the names of all presets, in order."""
    return sorted(file.name.removesuffix(".toml") for file in preset_folder().iterdir() if file.name.endswith(".toml"))


def preset_text(name: str) -> str:
    """Return a preset's file as it is.

    Raises:
        UsageError: no preset of that name; the hint has the nearest ones.
    """
    if name not in preset_names():
        raise UsageError(f"There is no preset '{name}'.", nearest(name, preset_names()))
    return (preset_folder() / f"{name}.toml").read_text("utf-8")


def load_preset(name: str) -> Preset:
    """Return a preset by name, or from a TOML file of the user's own when ``name`` ends in ``.toml``.

    Raises:
        UsageError: no such preset; a file that is not a preset.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise UsageError(f"There is no preset file '{name}'.", "Copy one: twin presets copy smollm2-135m")
        with file_errors(path, "read"):
            text = path.read_text("utf-8")
        title = path.stem
    else:
        text, title = preset_text(name), name
    try:
        return Preset.model_validate({"name": title, **tomllib.loads(text)})
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        detail = str(error).splitlines()
        raise UsageError(
            f"Preset '{name}' can't be read: {' '.join(detail[1:3] or detail)}.", "Mend that key."
        ) from None


class TrainPlan(BaseModel):
    """The settings a training run really uses: the user's over the preset's."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    preset: str
    model: str
    family: str
    license: str
    epochs: float
    batch_size: int
    learning_rate: float
    lora_r: int
    lora_alpha: int
    lora_dropout: float
    max_length: int
    target_modules: list[str]
    temperature: float
    num_ctx: int
    backend: str
    device: str
    seed: int
    early_stopping_patience: int
    four_bit: bool | None


def plan_training(settings: TrainSettings, preset: Preset) -> TrainPlan:
    """Lay the user's settings over the preset's. A changed rank keeps the preset's alpha / rank.

    Raises:
        UsageError: num_ctx of the preset is shorter than the training length.
    """
    own = preset.training
    lora_r = settings.lora_r or own.lora_r
    max_length = settings.max_length or own.max_length
    if max_length > preset.serving.num_ctx:
        raise UsageError(
            f"max_length {max_length} is longer than the {preset.serving.num_ctx} tokens that are served.",
            f"Use --max-length {preset.serving.num_ctx} or a preset of your own with a larger num_ctx.",
        )
    return TrainPlan(
        preset=preset.name,
        model=settings.model or preset.model,
        family=preset.family,
        license=preset.license,
        epochs=settings.epochs or own.epochs,
        batch_size=settings.batch_size or own.batch_size,
        learning_rate=settings.learning_rate or own.learning_rate,
        lora_r=lora_r,
        lora_alpha=max(1, round(own.lora_alpha * lora_r / own.lora_r)),
        lora_dropout=own.lora_dropout,
        max_length=max_length,
        target_modules=own.target_modules,
        temperature=preset.serving.temperature,
        num_ctx=preset.serving.num_ctx,
        backend=settings.backend,
        device=settings.device,
        seed=settings.seed,
        early_stopping_patience=settings.early_stopping_patience,
        four_bit=settings.four_bit,
    )
