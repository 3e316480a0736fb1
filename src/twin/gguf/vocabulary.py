"""The vocabulary that a base model's GGUF will have, before there is one: so that ids are compared before training."""

from __future__ import annotations

import shutil
from pathlib import Path

from filelock import FileLock

from twin import __version__
from twin.errors import file_errors
from twin.files import file_digest, fingerprint, scratch_dir
from twin.gguf import converter
from twin.gguf.hired import Worker
from twin.progress import Reporter
from twin.runs import cache_dir

# What a GGUF's vocabulary is made of, before training and after.
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "generation_config.json",
)  # fmt: skip


def _tokenizer_files(base: Path) -> list[Path]:
    return [base / name for name in _TOKENIZER_FILES if (base / name).is_file()]


def copy_checkpoint(base: Path, target: Path) -> None:
    """Copy what the converter may read beside weights: the configuration and the tokenizer, and no code of others'."""
    for file in (base / "config.json", *_tokenizer_files(base)):
        shutil.copyfile(file, target / file.name)


def vocabulary(base: Path, name: str, llama_cpp: Path | None, reporter: Reporter, worker: Worker | None = None) -> Path:
    """Return a GGUF that holds the vocabulary of a checkpoint and no weights, made once into the user's cache.

    Args:
        base: the checkpoint's folder.
        name: what the file says its name is; see ``Family.gguf_name``.
        llama_cpp: a checkout of the user's, for its converter.
        reporter: told of progress.
        worker: one with the same converter, which is asked to save its start; None: the converter runs as a program.

    Raises:
        TwinError: what the converter refuses.
    """
    script = converter.find_converter(llama_cpp, reporter)
    found = [base / "config.json", *_tokenizer_files(base)]
    about = {"name": name, "twin": __version__, "converter": str(script), "script": file_digest(script)}
    home = cache_dir() / "vocabularies"
    target = home / f"{fingerprint(about, found)[:16]}.gguf"
    with file_errors(home, "write"):
        home.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.exists():
            with scratch_dir(target) as scratch, file_errors(target, "write"):
                checkpoint = scratch / "checkpoint"
                checkpoint.mkdir()
                copy_checkpoint(base, checkpoint)
                made = scratch / "vocabulary.gguf"
                if worker:
                    job = {"what": "vocabulary", "checkpoint": str(checkpoint), "target": str(made), "name": name}
                    worker.do(job, converter.READS)
                else:
                    converter.convert(script, checkpoint, made, reporter, name, vocabulary_only=True)
                made.replace(target)
    return target
