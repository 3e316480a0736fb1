"""llama.cpp's own converter, from the source distribution of the installed llama-cpp-python, or a checkout of yours."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from twin.errors import MachineError, StepError, UsageError
from twin.packages import PackageFile, fetch
from twin.progress import Reporter

_INSIDE = "vendor/llama.cpp"
READS = "Reading the vocabulary"
_SCRIPT = "convert_hf_to_gguf.py"
LORA_SCRIPT = "convert_lora_to_gguf.py"  # lies beside it
_SOURCES = {
    "0.3.36": PackageFile(
        project="llama-cpp-python==0.3.36",
        sha256="832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
        keep=(
            f"{_INSIDE}/{_SCRIPT}",
            f"{_INSIDE}/{LORA_SCRIPT}",
            f"{_INSIDE}/conversion/",
            f"{_INSIDE}/gguf-py/",
            f"{_INSIDE}/LICENSE",
        ),
        source=True,
    )
}


def find_converter(own: Path | None, reporter: Reporter) -> Path:
    """Return the path of ``convert_hf_to_gguf.py``.

    Args:
        own: a llama.cpp checkout to use instead.
        reporter: told of the download (77 MB, once).

    Raises:
        UsageError: ``own`` has no converter.
        MachineError: llama-cpp-python is missing or of a version whose sources twin has not verified.
    """
    if own is not None:
        script = own / _SCRIPT
        if not script.is_file():
            raise UsageError(f"'{own}' has no {_SCRIPT}.", "Name a llama.cpp checkout: --llama-cpp DIR")
        return script
    try:
        installed = version("llama-cpp-python")
    except PackageNotFoundError:
        raise MachineError("llama-cpp-python is not installed.", "Install it: pip install 'twin-llm[gguf]'") from None
    if installed not in _SOURCES:
        raise MachineError(
            f"The converter of llama-cpp-python {installed} was never verified with this version of twin.",
            f"Install llama-cpp-python=={next(iter(_SOURCES))}, or name a llama.cpp checkout: --llama-cpp DIR",
        )
    return fetch(_SOURCES[installed], reporter) / _INSIDE / _SCRIPT


def convert(
    script: Path, checkpoint: Path, target: Path, reporter: Reporter, name: str, vocabulary_only: bool = False
) -> None:
    """Write a Hugging Face folder as a float16 GGUF.

    Args:
        script: see ``find_converter``.
        checkpoint: the folder.
        target: the file to write.
        reporter: told of progress.
        name: what the file says its name is. llama.cpp reads text in another way where it holds "phi-3".
        vocabulary_only: leave out the weights.

    Raises:
        StepError: the converter refused; its last line is in the sentence.
    """
    arguments = [str(checkpoint), "--outtype", "f16", "--model-name", name]
    arguments += ["--vocab-only"] if vocabulary_only else []
    with reporter.task(READS if vocabulary_only else "Converting to GGUF"):
        complaint = run(script, arguments, target)
    if complaint:
        raise refused("model", complaint)


def refused(what: str, complaint: str) -> StepError:
    """Return what to say of a model or an adapter that a converter refuses."""
    return StepError(
        f"llama.cpp's converter refused the {what}: {complaint.rstrip('.')}.",
        "Is the model's architecture one that llama.cpp knows? A newer checkout may: --llama-cpp DIR",
    )


def run(script: Path, arguments: Sequence[str], target: Path) -> str:
    """Run one of llama.cpp's converters, without our settings and tokens, and without the hub.

    Args:
        script: the converter; its own ``gguf-py`` stands beside it.
        arguments: what it is called with besides the file to write.
        target: that file.

    Returns:
        Its last line where it wrote nothing; empty where the file is there.
    """
    command = [sys.executable, str(script), *arguments, "--outfile", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(script))
    if done.returncode == 0 and target.is_file():
        return ""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return re.sub(r"^[A-Z]+:[\w-]+:", "", lines[-1].strip()).rstrip(".") if lines else "it said nothing"


def environment(script: Path) -> dict[str, str]:
    """Return the environment in which the converter's modules and its own ``gguf`` are found, and no token of ours."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("TWIN_") and key != "HF_TOKEN"}
    own = Path(__file__).parents[2]  # where twin is, which may be on no path that a child has
    places = os.pathsep.join(map(str, (script.parent / "gguf-py", script.parent, own)))
    return kept | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": places}
