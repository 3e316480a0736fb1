"""The command line as documented: help is quick, whole and says nothing that is not there."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache

import pytest
import typer

import twin
from twin.cli.app import app

HEAVY = {"torch", "transformers", "peft", "trl", "datasets", "llama_cpp", "numpy", "httpx", "sklearn", "fastapi"}
# Typer brings pydantic in by itself to parse; our modules that build on it stay out.
OURS = {"twin.pipeline", "twin.prove", "twin.settings", "twin.presets"}
PROBE = """
import sys
from twin.cli.main import main
code = main(sys.argv[1:])
sys.stderr.write(" ".join(sorted(sys.modules)))
sys.exit(code)
"""
EVERYWHERE = {"--json", "--quiet", "--verbose", "--help"}
# The command line is a contract (CHANGELOG.md); this is what the version has of it.
CONTRACT = {
    "export": {
        "--format", "--output", "--person", "--include-system", "--no-include-system", "--quality-filter",
        "--no-quality-filter", "--deduplicate", "--no-deduplicate", "--validation-split", "--seed", "--dry-run",
        "--redact", "--no-redact", "--pseudonyms", "--no-pseudonyms", "--reserve", "--via", "--url",
    },
    "stats": {"--person"},
    "preview": {"--dropped", "--source", "--person", "--seed"},
    "forget": {"--source", "--before", "--output", "--dry-run"},
    "serve": {"--person", "--host", "--port", "--token"},
    "train": {
        "--preset", "--dataset", "--output", "--name", "--model", "--epochs", "--batch-size", "--learning-rate",
        "--lora-r", "--max-length", "--resume-from", "--backend", "--device", "--seed", "--dry-run", "--explain",
        "--report-to", "--show-mask", "--from-adapter", "--replay",
    },
    "gguf": {
        "--quantization", "-q", "--output", "--base", "--lora", "--imatrix", "--no-imatrix", "--llama-cpp", "--dry-run",
    },
    "register": {"--adapter", "--gguf", "--base", "--host", "--env", "--to", "--force", "--dry-run"},
    "check": {"--modelfile", "--base", "--llama-cpp"},
    "chat": {"--message", "--system", "--gguf", "--host"},
    "run": {
        "--person", "--preset", "--model", "--epochs", "--batch-size", "--learning-rate", "--lora-r", "--max-length",
        "--device", "--quantization", "-q", "--llama-cpp", "--host", "--env", "--seed", "--force",
        "--from", "--until", "--from-adapter", "--replay", "--dry-run",
    },
    "demo": {"--output"},
    "presets list": set(),
    "presets show": set(),
    "presets copy": {"--dry-run"},
}  # fmt: skip
LATER = {
    "eval", "list", "remove", "init", "doctor",
}  # fmt: skip


def discover() -> dict[str, bool]:
    """Every command path of the app, and whether it is a group."""
    found = {}

    def walk(command, path):
        children = getattr(command, "commands", {})
        found[" ".join(path)] = bool(children)
        for name, child in children.items():
            walk(child, [*path, name])

    walk(typer.main.get_command(app), [])
    return found


COMMANDS = discover()


@cache
def help_of(command: str) -> tuple[int, str, frozenset[str]]:
    """Exit code, text and imported modules of ``twin COMMAND --help``, in a process of its own, on a wide terminal."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *command.split(), "--help"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1", "PATH": "", "PYTHONIOENCODING": "utf-8"},
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, frozenset(done.stderr.split())


def test_the_commands_are_those_of_this_version():
    assert set(COMMANDS) == {"", "presets", *CONTRACT}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_exits_0_and_says_what_and_how(command):
    code, text, _ = help_of(command)
    assert code == 0
    assert re.search(r"^ Usage: \S.*", text, re.MULTILINE)
    if command and not COMMANDS[command]:
        examples = re.findall(r"^ *(?:Example: )?twin (.*?)$", text, re.MULTILINE)
        assert examples, "no example"
        assert all(line.startswith(command) for line in examples)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command):
    _, _, modules = help_of(command)
    assert "typer" in modules  # the probe sees what was imported
    assert {name.partition(".")[0] for name in modules} & HEAVY == set()
    assert modules & OURS == set()


@pytest.mark.parametrize("command", CONTRACT)
def test_help_has_the_options_of_the_contract_and_none_of_later(command):
    _, text, _ = help_of(command)
    boxes = text[text.index("╭") :]
    shown = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", boxes))
    assert shown >= CONTRACT[command] | EVERYWHERE
    assert not shown & LATER


def test_top_help_names_no_later_command():
    _, text, _ = help_of("")
    named = set(re.findall(r"^│ (\w+) ", text, re.MULTILINE))
    assert named == {command for command in COMMANDS if command and " " not in command}
    assert not named & LATER


@pytest.mark.parametrize("command", [name for name, group in COMMANDS.items() if not group])
def test_every_option_is_explained(command):
    found = typer.main.get_command(app)
    for part in command.split():
        found = found.commands[part]
    for parameter in found.params:
        if parameter.name != "help":
            assert len((parameter.help or "").split()) > 1, parameter.name


def test_examples_in_help_are_commands_that_parse():
    """What an example shows is typed; its options and command must be those of the app."""
    for command, is_group in COMMANDS.items():
        if is_group:
            continue
        _, text, _ = help_of(command)
        found = typer.main.get_command(app)
        for part in command.split():
            found = found.commands[part]
        known = {name for parameter in found.params for name in [*parameter.opts, *parameter.secondary_opts]}
        for line in re.findall(r"^ *(?:Example: )?twin (.*?)$", text, re.MULTILINE):
            assert set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", line)) <= known, line


def test_version():
    done = subprocess.run([sys.executable, "-m", "twin", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"twin {twin.__version__}\n", "")


def test_twin_alone_shows_help_and_exits_2():
    done = subprocess.run([sys.executable, "-m", "twin"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Usage:" in done.stdout
    assert done.stderr == ""
