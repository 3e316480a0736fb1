"""twin owns the chat template: a family is a folder with one Jinja and one Go template that render the same bytes.

The Jinja goes into the adapter and the GGUF, the Go one to Ollama. To add a family, add a folder with ``family.toml``,
``template.jinja``, ``template.go`` and ``golden.jsonl``, what they render. Neither template writes BOS (the tokenizer
does), trims, or knows the date. ``gate`` proves a pair; ``derive`` makes one for a model that no family fits.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from functools import cache, cached_property
from importlib import resources
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, ConfigDict

from twin.errors import GateError
from twin.records import Turn


class Family(BaseModel):
    """A template pair.

    Args:
        name: the folder's name.
        jinja: the template of training and of the GGUF.
        go: the template of Ollama.
        end_token: what ends a reply; learned, and a stop of the served model.
        stops: every stop of the served model.
        control_tokens: literals that must each be one id of the model's vocabulary.
        models: patterns of the names of models that it fits, without their owners.
        gguf_name: the name that a file must say it has, where llama.cpp reads text by it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    jinja: str
    go: str
    end_token: str
    stops: list[str]
    control_tokens: list[str]
    models: list[str] = []
    gguf_name: str = "twin"

    @cached_property
    def reply_gap(self) -> str:
        """What the template writes between the prompt and a reply: a blank, or nothing. The model has to write it."""
        ask, say = Turn("user", "ask"), Turn("assistant", "say")
        return render(self, [ask, say, ask]).removeprefix(render(self, [ask])).partition(say.content)[0]


def family_names() -> list[str]:
    """Return the families whose pair exists."""
    return sorted(folder.name for folder in resources.files(__name__).iterdir() if (folder / "family.toml").is_file())


def load_family(name: str) -> Family:
    """Return a family by name.

    Raises:
        GateError: its pair does not exist in this version. Another family's is never taken in its place.
    """
    if name not in family_names():
        raise GateError(
            f"The template family '{name}' has no verified pair in this version, so nothing is trained with it.",
            f"Families that work: {', '.join(family_names())}. See which preset uses one: twin presets list",
        )
    folder = resources.files(__name__) / name
    facts: dict[str, Any] = tomllib.loads((folder / "family.toml").read_text("utf-8"))
    # An editor ends files with a line end; a template's last byte counts, so exactly one is taken off.
    jinja = (folder / "template.jinja").read_text("utf-8").removesuffix("\n")
    go = (folder / "template.go").read_text("utf-8").removesuffix("\n")
    return Family(name=name, jinja=jinja, go=go, **facts)


@cache
def _compiled(jinja: str) -> Any:
    # The switches of transformers' own rendering: a template must mean the same there and here.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    return environment.from_string(jinja)


def render(family: Family, turns: Sequence[Turn]) -> str:
    """Return the prompt after which the model's next reply is generated."""
    messages = [turn._asdict() for turn in turns]
    return str(_compiled(family.jinja).render(messages=messages, add_generation_prompt=True))
