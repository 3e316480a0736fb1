"""The wheel in an empty environment with its core dependencies alone: help, presets, a full export; no torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


def run(*command, **kwargs) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=600, check=False, **kwargs
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """The bin folder of an environment that holds the wheel and its core dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    uv = [sys.executable, "-m", "uv"]
    run(*uv, "build", "--wheel", "--out-dir", folder / "dist", ROOT)
    run(*uv, "venv", folder / "env", "--python", sys.executable)
    bin_folder = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
    wheel = next((folder / "dist").glob("*.whl"))
    run(*uv, "pip", "install", "--python", bin_folder / "python", "--constraint", ROOT / "constraints.txt", wheel)
    return bin_folder


def test_core_install_exports_without_torch(bare, tmp_path, sample_brain):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    assert "export" in run(bare / "twin", "--help", env=environment)
    assert "smollm2-135m" in run(bare / "twin", "presets", "list", env=environment)
    out = run(bare / "twin", "export", sample_brain, "--json", cwd=tmp_path, env=environment)
    assert json.loads(out)["rows"]["kinds"]["chat"] == 794
    heavy = ["torch", "transformers", "datasets", "llama_cpp", "peft", "trl"]
    probe = f"import importlib.util as u; print([m for m in {heavy} if u.find_spec(m)])"
    assert run(bare / "python", "-c", probe, env=environment).strip() == "[]"


def test_a_step_without_its_extra_says_how_to_install_it(bare, tmp_path, sample_brain):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    run(bare / "twin", "export", sample_brain, cwd=tmp_path, env=environment)
    done = subprocess.run(
        [bare / "twin", "train"], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == 3
    assert done.stderr.splitlines() == [
        "Error: This step needs torch, transformers, peft, accelerate, which are not installed.",
        "Hint: Install the extra: pip install 'twin-llm[train]'",
    ]


def test_the_wheel_carries_presets_sample_and_templates(bare):
    listing = run(
        bare / "python",
        "-c",
        "import twin, pathlib; p = pathlib.Path(twin.__file__).parent;"
        "print(sorted(str(f.relative_to(p)) for f in p.rglob('*') if f.suffix in {'.toml', '.go', '.jinja', '.md'}))",
    )
    for name in ("_presets/phi-3-mini.toml", "templates/chatml/template.go", "sample/twin.toml"):
        assert name in listing
