"""What only libraries that take seconds and half a gigabyte to import can read of an adapter, its base and its rows.

Asked by name, in words of JSON: so a worker (``gguf.worker``) that is started as this module can be asked the same, and
the process that hires it needs none of them. Heavy imports stand inside functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from twin.gguf.hired import Worker
from twin.records import Role, Turn
from twin.templates import Family, derive

_IMATRIX_TOKENS = 16_384  # of the samples that it is gathered from


class Ask(Protocol):
    """``answer``, here or in another process."""

    def __call__(self, what: str, /, **about: Any) -> dict[str, Any]:
        """Return what is asked for; see the functions of ``reading``."""


def answer(what: str, /, **about: Any) -> dict[str, Any]:
    """Return what one of the functions below returns.

    Args:
        what: its name.
        about: its arguments.
    """
    return _ANSWERS[what](**about)


def asked_of(worker: Worker) -> Ask:
    """Return what asks a worker that was hired as this module."""

    def ask(what: str, /, **about: Any) -> dict[str, Any]:
        return worker.do({"what": what} | about, _TITLES[what])

    return ask


def adapter(where: str, scratch: str) -> dict[str, Any]:
    """Check an adapter of another tool; one in mlx-lm's layout is written anew.

    Args:
        where: its folder.
        scratch: where it goes in PEFT's layout, if it is in another.

    Returns:
        ``folder``: the adapter in PEFT's layout; ``base_model``: what it calls its base, or null.

    Raises:
        TwinError: see ``delta.open_adapter`` and ``mlx.to_peft``.
    """
    from twin.gguf import delta, mlx

    folder = Path(where)
    if mlx.is_mlx(folder):
        mlx.to_peft(folder, Path(scratch))
        folder = Path(scratch)
    return {"folder": str(folder), "base_model": delta.open_adapter(folder).base_model}


def family(base: str, name: str, jinja: str | None) -> dict[str, Any]:
    """Choose the pair that fits the template an adapter was trained with.

    Args:
        base: folder of the base model.
        name: its hub id, or its folder's.
        jinja: the template that stands beside the adapter; null: the base model's own counts.

    Returns:
        ``family``: the pair, or null where there is no template; see ``derive.choose``.

    Raises:
        GateError: no pair fits.
    """
    from twin.training.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(Path(base))
    if jinja is not None:
        tokenizer.chat_template = jinja
    chosen = derive.choose(name, *derive.facts_of(tokenizer))
    return {"family": chosen.model_dump() if chosen else None}


def prompt_ids(base: str, family: dict[str, Any], prompts: Sequence[Sequence[tuple[Role, str]]]) -> dict[str, Any]:
    """Read prompts as training does.

    Args:
        base: folder of the base model.
        family: the pair.
        prompts: each a list of turns, role and text.

    Returns:
        ``ids``: of each prompt.
    """
    from twin.training.samples import prompt_ids
    from twin.training.tokenizer import load_tokenizer

    tokenizer, pair = load_tokenizer(Path(base)), Family.model_validate(family)
    return {"ids": [prompt_ids(tokenizer, pair, [Turn(*turn) for turn in turns]) for turns in prompts]}


def row_ids(rows: str, base: str, family: dict[str, Any], max_length: int) -> dict[str, Any]:
    """Read samples, as many as an importance matrix asks for.

    Args:
        rows: file of the rows.
        base: folder of the base model.
        family: the pair.
        max_length: of a sample, in tokens.

    Returns:
        ``ids``: of each sample.
    """
    from twin.dataset.formats import read_rows
    from twin.gguf.imatrix import choose
    from twin.training.samples import build_samples
    from twin.training.tokenizer import load_tokenizer

    pair = Family.model_validate(family)
    built = build_samples(list(read_rows(Path(rows))), load_tokenizer(Path(base)), pair, max_length)
    return {"ids": choose([sample.input_ids for sample in built.samples], _IMATRIX_TOKENS)}


_ANSWERS: dict[str, Callable[..., dict[str, Any]]] = {
    "adapter": adapter,
    "family": family,
    "prompt_ids": prompt_ids,
    "row_ids": row_ids,
}
_TITLES = {
    "adapter": "Reading the adapter",
    "family": "Reading the base model's template",
    "prompt_ids": "Reading prompts as training does",
    "row_ids": "Reading the rows that were learned",
}

if __name__ == "__main__":
    from twin.gguf import worker

    worker.main(answer)
