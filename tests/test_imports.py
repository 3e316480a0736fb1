"""The direction of imports, read off the source, and what the light half of twin never pulls in."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import twin

ROOT = Path(twin.__file__).parent
HEAVY = {"torch", "transformers", "peft", "unsloth", "trl", "datasets", "llama_cpp", "sklearn", "fastapi"}
BOTTOM = {
    "adapter",
    "basemodel",
    "dropped",
    "errors",
    "files",
    "foreign",
    "gguf_checkpoint",
    "learned",
    "llama",
    "names",
    "packages",
    "presets",
    "processes",
    "progress",
    "prompt",
    "records",
    "results",
    "runs",
    "sample",
    "settings",
    "steps",
}
FEATURES = {"app", "brain", "chat", "dataset", "evaluate", "gguf", "ollama", "templates", "training"}
COMPOSING = {"curate", "foreign_adapter", "further", "handover", "measure", "pipeline", "prove", "reading"}
# CONTRIBUTING.md: who may take what from a feature beside it.
EXCEPTIONS = {(taker, "templates") for taker in ("training", "gguf", "ollama", "evaluate", "chat")} | {
    ("chat", "ollama.client"),
    ("app", "brain"),
}
# Modules with a heavy import at their top: themselves imported late, inside the function that needs them.
LATE = {
    "twin.gguf.adapter_file",
    "twin.gguf.check",
    "twin.gguf.delta",
    "twin.gguf.lazy",
    "twin.gguf.mlx",
    "twin.gguf.ggml",
    "twin.gguf.imatrix",
    "twin.gguf.quantize",
    "twin.gguf_checkpoint",
    "twin.llama",
    "twin.training.attention",
    "twin.training.backend_hf",
    "twin.training.backend_unsloth",
    "twin.training.budget",
    "twin.training.execution",
    "twin.training.flex",
    "twin.training.memory",
    "twin.training.hardware",
    "twin.training.lora_products",
    "twin.training.many",
    "twin.training.checkpoints",
    "twin.training.earlier",
    "twin.app.server",
    "twin.training.optimizer",
    "twin.training.model",
    "twin.training.start",
    "twin.training.tokenizer",
}


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of twin by its dotted name, parsed."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = ["twin", *path.relative_to(ROOT).with_suffix("").parts]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text("utf-8"), str(path))
    return found


def imported(name, nodes):
    """Yield the dotted names that imports among ``nodes`` name; ``from a import b`` is ``a.b`` if that is a module."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively: twin's imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules() else str(node.module)


def everywhere(name):
    return set(imported(name, ast.walk(modules()[name])))


def at_top(name):
    """Return the imports that run when the module is imported (in an if or try too, but for TYPE_CHECKING)."""

    def running(body):
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
                continue
            yield node
            yield from running(ast.iter_child_nodes(node))

    return set(imported(name, running(modules()[name].body)))


def part(name):
    """Return the second segment: the layer's or the feature's name."""
    return name.split(".")[1] if "." in name else ""


def test_the_parser_sees_imports():
    assert "twin.errors" in everywhere("twin.runs")
    assert "torch" in at_top("twin.gguf_checkpoint")
    assert "twin.gguf_checkpoint" in everywhere("twin.basemodel")
    assert "twin.gguf_checkpoint" not in at_top("twin.basemodel")


@pytest.mark.parametrize("name", sorted(modules()))
def test_each_module_has_a_known_place(name):
    assert part(name) in BOTTOM | FEATURES | COMPOSING | {"", "__main__", "cli"}


@pytest.mark.parametrize("name", sorted(name for name in modules() if part(name) in BOTTOM))
def test_the_bottom_layer_imports_no_layer_above(name):
    wrong = {other for other in everywhere(name) if part(other) not in BOTTOM and other.split(".")[0] == "twin"}
    assert wrong - {"twin"} == set()


@pytest.mark.parametrize("name", sorted(name for name in modules() if part(name) in FEATURES))
def test_a_feature_imports_the_bottom_and_its_stated_exceptions(name):
    own = part(name)
    allowed = {taken for taker, taken in EXCEPTIONS if taker == own}
    wrong = {
        other
        for other in everywhere(name)
        if other.startswith("twin.")
        and part(other) not in BOTTOM | {own}
        and not any(f"{other}.".startswith(f"twin.{taken}.") for taken in allowed)
    }
    assert wrong == set()


def test_the_pipeline_does_not_import_the_cli_and_nothing_else_does():
    takers = {name for name in modules() for other in everywhere(name) if part(other) == "cli" and part(name) != "cli"}
    assert takers <= {"twin.__main__"}


def test_only_the_cli_imports_the_pipeline():
    takers = {part(name) for name in modules() for other in everywhere(name) if part(other) in COMPOSING}
    assert takers <= {"cli"} | COMPOSING


def test_heavy_imports_are_at_the_top_of_late_modules_alone():
    heavy = {name for name in modules() if {other.split(".")[0] for other in at_top(name)} & HEAVY}
    assert heavy - LATE == set()
    assert LATE - set(modules()) == set(), "listed and gone"


def test_late_modules_are_imported_late():
    """A module that is not late itself takes a late one inside a function."""
    # A late module pulls its importers into being late: the ones whose top names it must be late as well.
    late = set(LATE)
    while more := {name for name in modules() if name not in late and at_top(name) & late}:
        late |= more
    reachable = {name for name in late if part(name) in {"cli", "brain", "dataset", "templates", "pipeline", "app"}}
    assert reachable == {"twin.app.server"}
    assert {name for name in late if part(name) in BOTTOM} == {"twin.gguf_checkpoint", "twin.llama"}


@pytest.mark.parametrize(
    "name",
    [
        "twin",
        "twin.brain",
        "twin.app.client",
        "twin.app.source",
        "twin.app.tokens",
        "twin.dataset",
        "twin.prompt",
        "twin.settings",
        "twin.presets",
        "twin.runs",
        "twin.adapter",
        "twin.further",
        "twin.basemodel",
        "twin.templates",
        "twin.training.samples",
        "twin.training.prefix_tree",
        "twin.training.explain",
        "twin.training.metrics",
        "twin.training.trackers",
    ],
)
def test_the_light_half_stays_light(name):
    code = f"import sys, {name}; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
