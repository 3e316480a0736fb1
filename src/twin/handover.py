"""A twin's GGUF for another server than Ollama: checked there where that can be done, and what is left for a person.

Every such server renders the Jinja inside the file, which is ours. Not obvious: none of them knows the twin's system
prompt, so whoever asks has to send it, and none joins neighbouring messages of one role as Ollama does.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twin import files, prove, runs
from twin.curate import need
from twin.errors import GateError
from twin.measure import check_measured
from twin.ollama.client import resolve_host
from twin.pipeline import file_to_serve, pick_run, serving_parameters
from twin.progress import Reporter
from twin.results import HandedOver
from twin.settings import Settings
from twin.templates import Family, gate

if TYPE_CHECKING:
    from twin.gguf.server import LlamaServer


def hand_over(
    name: str,
    to: str,
    settings: Settings,
    reporter: Reporter,
    adapter: Path | None = None,
    gguf_file: Path | None = None,
    host: str | None = None,
    dry_run: bool = False,
) -> HandedOver:
    """Make the GGUF ready for ``llama-server`` or ``lmstudio`` and say what they need.

    Args:
        name: the model's name there.
        to: which of the two.
        settings: its ``ollama`` section for context and temperature, and the first quantization of ``gguf``.
        reporter: told of progress.
        adapter: the run to use, where not ``adapters/NAME`` or the newest.
        gguf_file: the file to use, where not the run's first quantization.
        host: a llama-server that runs already, with that file; None: start one, where it is found, to check it.
        dry_run: say it, write nothing and start nothing.

    Raises:
        GateError: the server does not ask what was trained.
        MachineError: no server answers at ``host``.
    """
    need("gguf", "llama_cpp", "transformers", "gguf")
    paths = pick_run(name, adapter, reporter)
    record = runs.read_record(paths)
    family = prove.family_of(record)
    gate.check(family)
    file, sha256 = file_to_serve(paths, gguf_file, settings, reporter, dry_run)
    check_measured(paths, file, sha256, True, reporter)  # a file is named, and nothing of anybody's is replaced
    parameters = serving_parameters(settings, record["plan"])
    checks: dict[str, str] = {}
    if not dry_run:
        if record["system_prompt"]:
            files.write_text(paths.system_prompt, record["system_prompt"])
        if to == "llama-server":
            with _server(host, file, parameters["num_ctx"], settings, reporter) as server:
                checks = _asked(server, record, family, settings, reporter) if server else {}
    system = f"Send {paths.system_prompt} as the first message, role system." if record["system_prompt"] else ""
    if to == "llama-server":
        todo = _for_llama_server(name, file, parameters, bool(checks) or dry_run)
    else:
        todo = _for_lm_studio(file, family, parameters)
    todo += [system] if system else []
    return HandedOver(
        name, to, str(paths.root), str(file), record["system_prompt"], parameters, family.stops, checks, tuple(todo)
    )


def _asked(
    server: LlamaServer, record: dict[str, Any], family: Family, settings: Settings, reporter: Reporter
) -> dict[str, str]:
    """Return what was verified of a live server, by name."""
    ids = prove.training_ids(prove.base_of(record, settings, reporter), family)
    prompts = list(gate.cases(family, prove.prompts_of(record, settings)[:50]))
    with reporter.task("Checking the live server"):
        count = gate.check_server(family, prompts, server.apply_template)
        gate.check_ids(family, prompts, ids, server.ids, server.piece)
    return {
        "rendering": f"{count} prompts as in training, byte for byte",
        "prompt ids": f"{count} prompts, the ids of training",
    }


def _for_llama_server(name: str, file: Path, parameters: dict[str, Any], checked: bool) -> list[str]:
    command = ["llama-server", "-m", str(file), "--alias", name, "-c", str(parameters["num_ctx"])]
    lines = [f"Run it: {shlex.join([*command, '--temp', str(parameters['temperature'])])}"]
    missing = "It was not checked: no llama-server was found. Get one from https://github.com/ggml-org/llama.cpp"
    return lines if checked else [*lines, missing]


def _for_lm_studio(file: Path, family: Family, parameters: dict[str, Any]) -> list[str]:
    sampling = f"temperature {parameters['temperature']}, context {parameters['num_ctx']}"
    return [
        "LM Studio was not tried: this is what its documentation says.",
        f"Bring it there: lms import {shlex.quote(str(file))}",
        f"Set for the model: {sampling}, stop {', '.join(family.stops)}; the prompt template stays the file's own.",
    ]


@contextmanager
def _server(
    host: str | None, file: Path, num_ctx: int, settings: Settings, reporter: Reporter
) -> Iterator[LlamaServer | None]:
    """Open the llama-server to check: the user's own, else one for the time being, else none."""
    from twin.gguf.server import LlamaServer, find_server, serve

    if host:
        with closing(LlamaServer(resolve_host(host, "a llama-server"))) as server:
            server.ready()
            if (theirs := server.file_name()) != file.name:
                raise GateError(
                    f"The llama-server at {server.url} has the file '{theirs}' and not '{file.name}'.",
                    f"Start it with that file: llama-server -m {file}",
                )
            yield server
    elif binary := find_server(settings.gguf.llama_cpp):
        reporter.say(f"Checking it in {binary}")
        with serve(binary, file, num_ctx) as server:
            yield server
    else:
        yield None
