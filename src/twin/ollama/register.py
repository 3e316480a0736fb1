"""Make a GGUF a model of Ollama, and prove on the live server that it is asked what it was trained on.

Not obvious: Ollama may accept a template, say ``success`` and use another one. So the model is made under a temporary
name, questioned there, and only a model that passed takes the real name: until then an older one keeps it.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from twin.errors import GateError, TwinError, UsageError
from twin.files import file_digest
from twin.ollama.client import OllamaClient
from twin.ollama.modelfile import model_name
from twin.progress import Reporter
from twin.records import Turn
from twin.templates import Family, gate, render

PARTIAL = "-twin-partial"
# Only the number of ids can be asked, so it holds what other pre-tokenizers cut into more or fewer: digits that are no
# ASCII behind a blank, blanks around line ends, tabs.
_ODD = (
    '  👩‍🚀 na\u00efve\u00a0e\u0301 שלום\u3000你好\r\n½ ٣ \\n {{ .System }} {{ """ }} """'
    "\n<b> & 'q' \t\n\t\tx   \n  y ½ ٣ z"
)


@dataclass(frozen=True, slots=True)
class Registration:
    """A model that passed.

    Args:
        model: its name in Ollama.
        host: the server's URL.
        created: the name was free; False where an older model of that name was replaced.
        checks: what was compared, and the outcome in words.
    """

    model: str
    host: str
    created: bool
    checks: dict[str, str]


@dataclass(frozen=True, slots=True)
class Shape:
    """A kind of request.

    Args:
        name: what messages call it.
        asked: the messages of the request.
        meant: the turns that the model must see for it.
        counted: generate one token too, and compare the number of ids.
    """

    name: str
    asked: tuple[Turn, ...]
    meant: tuple[Turn, ...]
    counted: bool = False


def live_shapes(system: str) -> list[Shape]:
    """Return the requests that a registered model must pass; ``system`` is its own system prompt."""
    own = (Turn("system", system),) if system else ()
    user, reply, again = Turn("user", "Are you there?"), Turn("assistant", "yes, what's up"), Turn("user", "lol ok 123")
    other = Turn("system", "You write as Sam.\n\nBe brief. 👍🏽")
    odd = (Turn("user", _ODD), Turn("assistant", _ODD), Turn("user", _ODD))
    return [
        Shape("a user's message", (user,), (*own, user), counted=True),
        Shape("a system prompt of the request", (other, user), (other, user)),
        Shape("several turns", (user, reply, again), (*own, user, reply, again), counted=True),
        Shape("several turns under a system prompt", (other, user, reply, again), (other, user, reply, again)),
        Shape("unusual characters", odd[:1], (*own, *odd[:1]), counted=True),
        Shape("unusual characters in every turn", odd, (*own, *odd)),
        Shape("a system prompt of unusual characters", (Turn("system", _ODD), user), (Turn("system", _ODD), user)),
        Shape("two messages of one role", (user, again), (*own, Turn("user", f"{user.content}\n\n{again.content}"))),
    ]


def partial_name(name: str, mark: str) -> str:
    """Return the temporary name beside ``name``, unlike any that a person gives; ``mark`` is 8 hexadecimal digits."""
    head, slash, last = name.rpartition("/")
    model, colon, tag = last.partition(":")
    end = f"{PARTIAL}-{mark}"
    room = 80 - len(f"{PARTIAL}-01234567")  # Ollama's limit is 80 characters a part
    return f"{head}{slash}{model}:{tag[:room]}{end}" if colon else f"{head}{slash}{model[:room]}{end}"


def _sweep(client: OllamaClient, name: str) -> None:
    """Delete what killed registrations of ``name`` left more than an hour ago."""
    whole = re.compile(re.escape(partial_name(name, "")) + "[0-9a-f]{8}")
    for one, (_, changed) in client.models().items():
        old = changed is not None and datetime.now(UTC) - changed > timedelta(hours=1)
        if old and whole.fullmatch(one.removesuffix(":latest")):
            client.delete(one)


def first_difference(ours: str, theirs: str) -> str:
    """Return where two texts part, with both sides of it; the byte number counts from 0 in UTF-8."""
    return gate.first_difference(ours.encode(), theirs.encode(), ("ours", "Ollama's"))


@dataclass(frozen=True, slots=True)
class Meant:
    """What a served model must be.

    Args:
        family: the template pair it was trained with.
        system: the system prompt of requests that bring none; empty for none.
        parameters: e.g. ``temperature`` and ``num_ctx``. The stops are the family's.
        prompt_ids: number of ids that our tokenizer makes of these turns' prompt, BOS included where the model has one.
        vocabulary: the tokens of our tokenizer by id; None where an id has none.
    """

    family: Family
    system: str
    parameters: Mapping[str, Any]
    prompt_ids: Callable[[Sequence[Turn]], int]
    vocabulary: Sequence[str | None]

    @property
    def all_parameters(self) -> dict[str, Any]:
        """The parameters and the stops."""
        return {"stop": list(self.family.stops), **self.parameters}


def register(
    client: OllamaClient,
    name: str,
    gguf: Path,
    meant: Meant,
    *,
    license_text: str,
    force: bool,
    reporter: Reporter,
    sha256: str | None = None,
) -> Registration:
    """Register ``gguf`` as ``name``, if the live server passes every check.

    Args:
        client: the server.
        name: the model's name in Ollama.
        gguf: the model file.
        meant: what it must be as served.
        license_text: the base model's license; empty for none.
        force: replace a model of that name.
        reporter: told of each step.
        sha256: of the file, in hexadecimal, where it is known.

    Raises:
        UsageError: a wrong name, or one that is in use and no ``force``.
        GateError: the server would not ask what was trained. A model of that name stays as it was.
        MachineError, StepError: see ``twin.ollama.client``.
    """
    model_name(name)
    version = client.version()
    taken = check_free(client, name, force)
    if sha256 is None:
        with reporter.task(f"Hashing {gguf.name}"):
            sha256 = file_digest(gguf)
    client.upload_blob(gguf, f"sha256:{sha256}", reporter)
    payload: dict[str, Any] = {"files": {"model.gguf": f"sha256:{sha256}"}, "template": meant.family.go}
    payload |= {"parameters": meant.all_parameters}
    payload |= {"system": meant.system} if meant.system else {}
    payload |= {"license": license_text} if license_text else {}
    temporary = partial_name(name, secrets.token_hex(4))
    try:
        client.create(temporary, payload, reporter)
        checks = {"ollama": version} | check_live(client, temporary, meant, reporter)
        client.copy(temporary, name)
    except BaseException:
        # Also when the user interrupts: nothing unproven stays behind, and its file can go only once it is unloaded.
        for clean_up in (client.unload, client.delete):
            with suppress(TwinError):
                clean_up(temporary)
        raise
    with suppress(TwinError):  # the model is registered; a later registration takes leftovers away
        client.delete(temporary)
        _sweep(client, name)
    with reporter.task(f"Warming {name}"):
        # The app gives up after 30 seconds, loading included: its first request should find the model loaded.
        _ask(client, name, live_shapes(meant.system)[0].asked)
    reporter.say(f"Ollama serves {name} at {client.url}; every check on the live model passed.")
    return Registration(model=name, host=client.url, created=not taken, checks=checks)


def check_free(client: OllamaClient, name: str, force: bool) -> bool:
    """Return whether a model of that name is there, to be replaced.

    Raises:
        UsageError: there is one and no ``force``.
        MachineError, StepError: see ``twin.ollama.client``.
    """
    taken = client.exists(name)
    if taken and not force:
        raise UsageError(
            f"Ollama at {client.url} has a model '{name}' already.",
            f"Replace it: twin register {name} --force, or choose another name.",
        )
    return taken


def check_live(client: OllamaClient, name: str, meant: Meant, reporter: Reporter) -> dict[str, str]:
    """Return what was verified of the served model ``name``, by name.

    Args:
        client: the server.
        name: a model that is there, whoever made it.
        meant: what it must be.
        reporter: told of each kind of request.

    Raises:
        GateError: the first thing that is not as trained.
        MachineError, StepError: see ``twin.ollama.client``.
    """
    shown = client.show(name, whole=True)
    checks = check_settings(shown, meant)
    checks |= _check_vocabulary(shown, meant)
    return checks | check_prompts(client, name, meant, reporter)


def check_settings(shown: Mapping[str, Any], meant: Meant) -> dict[str, str]:
    """Compare the template, system prompt and parameters that ``/api/show`` tells; raises as ``check_live``."""
    family, system = meant.family, meant.system
    template, its_system = str(shown.get("template", "")), str(shown.get("system", ""))
    if template != family.go:
        native = "{%" in template and "{%" not in family.go
        raise GateError(
            "Ollama took our template and uses another one"
            + (", the Jinja inside the GGUF" if native else "")
            + f" ({first_difference(family.go, template)}).",
            "It does so when that Jinja mentions tools or thinking. Make the GGUF again, with twin's own: twin gguf"
            if native
            else "Update Ollama, or unset OLLAMA_GO_TEMPLATE where it runs. Nothing was registered.",
        )
    if its_system != system:
        raise GateError(
            f"Ollama did not keep the system prompt ({first_difference(system, its_system)}).",
            "Take the characters at that place out of it. Nothing was registered.",
        )
    wanted = {key: _values(value) for key, value in meant.all_parameters.items()}
    got = _shown_parameters(str(shown.get("parameters", "")))
    for key in sorted(wanted.keys() | got.keys()):
        if sorted(wanted.get(key, []), key=repr) != sorted(got.get(key, []), key=repr):
            raise GateError(
                f"The parameter '{key}' should be {_listed(wanted.get(key, []))} and Ollama has "
                f"{_listed(got.get(key, []))}.",
                "Without its stop a twin never stops; other values change its speech. Update Ollama and try again."
                if key == "stop"
                else "Use a parameter that this Ollama knows. Nothing was registered.",
            )
    return {
        "template": f"the {family.name} template is the one in use",
        "system": f"{len(system)} characters, unchanged" if system else "none, as meant",
        "parameters": ", ".join(f"{key} {_listed(value)}" for key, value in sorted(got.items())),
    }


def _check_vocabulary(shown: Mapping[str, Any], meant: Meant) -> dict[str, str]:
    """Compare the tokens themselves: two tokenizers may make as many ids of a prompt, and other ones."""
    info = shown.get("model_info")
    tokens = info.get("tokenizer.ggml.tokens") if isinstance(info, dict) else None
    served = tokens if isinstance(tokens, list) else []
    for at, ours in enumerate(meant.vocabulary):
        theirs = served[at] if at < len(served) else None
        # SentencePiece writes a blank as U+2581, and the converter turns that back in some tokens.
        if ours is not None and ours.replace("\u2581", " ") != str(theirs).replace("\u2581", " "):
            raise GateError(
                f"Token {at} of training is {ours!r} and Ollama's model has {theirs!r} there.",
                "The GGUF holds another tokenizer. Make it again from the base model's own: twin gguf",
            )
    return {"vocabulary": f"{len(meant.vocabulary)} tokens, those of training"}


def check_prompts(client: OllamaClient, name: str, meant: Meant, reporter: Reporter) -> dict[str, str]:
    """Compare the prompts that the server renders and the numbers of ids that it counts; raises as ``check_live``."""
    shapes = live_shapes(meant.system)
    room = meant.parameters.get("num_ctx")
    counts = []
    with reporter.task("Checking the live model", total=len(shapes)) as task:
        for shape in shapes:
            wanted = meant.prompt_ids(shape.meant)
            if room is not None and wanted >= room:
                raise GateError(
                    f"For {shape.name} the prompt is {wanted} ids and num_ctx is {room}: Ollama would cut it.",
                    "Use a longer --num-ctx.",
                )
            ours, theirs = render(meant.family, shape.meant), client.render(name, shape.asked)
            if ours != theirs:
                raise GateError(
                    f"For {shape.name} Ollama would not send what was trained ({first_difference(ours, theirs)}).",
                    f"The pair '{meant.family.name}' does not hold on this Ollama. Nothing was registered; update "
                    "Ollama, and if it stays, report this line.",
                )
            if shape.counted:
                got = _ask(client, name, shape.asked)
                if wanted != got:
                    raise GateError(
                        f"For {shape.name} Ollama gives the model {got} ids and training gave it {wanted}.",
                        "One id apart is a BOS twice or missing; more is another tokenizer, or a prompt longer than "
                        "num_ctx. Make the GGUF again from the base model's own tokenizer: twin gguf",
                    )
                counts.append(str(got))
            task.advance(1, shape.name)
    return {
        "rendering": f"{len(shapes)} kinds of request equal the training prompts, byte for byte",
        "prompt ids": f"{', '.join(counts)}: as many as in training",
    }


def _ask(client: OllamaClient, name: str, messages: Sequence[Turn]) -> int | None:
    """Generate one token; return how many ids the prompt was."""
    count = None
    for chunk in client.chat(name, messages, {"num_predict": 1}, stream=False):
        count = chunk["prompt_eval_count"]
    return count


def _values(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(repr, values)) or "nothing"


def _shown_parameters(text: str) -> dict[str, list[Any]]:
    """Read ``show.parameters``: a line a value, the name padded with blanks, the value in Go's syntax."""
    found: dict[str, list[Any]] = {}
    for line in filter(None, text.split("\n")):
        key, _, raw = line.partition(" ")
        try:
            value = json.loads(raw.strip())
        except ValueError:  # Go escapes a few characters in a way that JSON has not; then the text itself must do
            value = raw.strip()
        found.setdefault(key, []).append(value)
    return found
