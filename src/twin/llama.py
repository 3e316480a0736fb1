"""A GGUF opened with llama-cpp-python: ids, log-likelihoods, replies. Closed explicitly, quiet unless it fails.

Imported late: llama_cpp is at the top.
"""

from __future__ import annotations

import codecs
import ctypes
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
import psutil

from twin.errors import StepError, UsageError
from twin.foreign import bounded, one_line

Floats = npt.NDArray[np.float32]


_ERROR = 4  # ggml.h, enum ggml_log_level
_errors: list[str] = []


@llama_cpp.llama_log_callback
def _silent(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    """Keep errors and drop the rest: what matters comes back as a return code, but not which tensor is wrong."""
    if level == _ERROR:
        _errors.append(bounded(one_line(text.decode("utf-8", "replace")), 200))


def silence() -> None:
    """Keep llama.cpp's log off stderr, in this process."""
    llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))


class Gguf:
    """An open model. Use ``open_gguf``."""

    def __init__(self, model: llama_cpp.Llama) -> None:
        self.model = model
        self._cached: list[int] = []
        self._pieces: dict[int, bytes] = {}

    def ids(self, text: str) -> list[int]:
        """Return ids as a server makes them: BOS where the vocabulary adds it, control tokens parsed."""
        return list(self.model.tokenize(text.encode("utf-8"), add_bos=True, special=True))

    def plain_ids(self, text: str) -> list[int]:
        """Return ids without BOS, control tokens parsed."""
        return list(self.model.tokenize(text.encode("utf-8"), add_bos=False, special=True))

    def control_tokens(self) -> list[str]:
        """Return the texts of the tokens that are no text."""
        vocabulary = llama_cpp.llama_model_get_vocab(self.model.model)
        return [
            llama_cpp.llama_vocab_get_text(vocabulary, token).decode("utf-8", "replace")
            for token in range(self.model.n_vocab())
            if self.is_control(token)
        ]

    def is_control(self, token: int) -> bool:
        """Say whether a token is no text."""
        marks = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED
        vocabulary = llama_cpp.llama_model_get_vocab(self.model.model)
        return bool(0 <= token < self.model.n_vocab() and llama_cpp.llama_vocab_get_attr(vocabulary, token) & marks)

    def bos_and_eos(self) -> tuple[str, str, bool]:
        """Return the texts of BOS and EOS, empty where there is none, and whether the vocabulary adds BOS."""
        texts = []
        for token in (self.model.token_bos(), self.model.token_eos()):
            texts.append(self.piece(token).decode("utf-8", "replace") if token >= 0 else "")
        return texts[0], texts[1], bool(self.ids(""))

    def piece(self, token: int) -> bytes:
        """Return the bytes of a token; llama.cpp would end the process for an id that the vocabulary does not have."""
        if not 0 <= token < self.model.n_vocab():
            return b"no such id"
        if token not in self._pieces:
            self._pieces[token] = bytes(self.model.detokenize([token], special=True))
        return self._pieces[token]

    def spelled(self, ids: Sequence[int]) -> bytes:
        """Return the bytes of ids, control tokens as they are written."""
        return b"".join(map(self.piece, ids))

    def metadata(self) -> dict[str, str]:
        """Return the file's string and number metadata."""
        return dict(self.model.metadata)

    def ends_generation(self, token: int) -> bool:
        """Say whether the vocabulary marks ``token`` as an end of generation."""
        vocabulary = llama_cpp.llama_model_get_vocab(self.model.model)
        return bool(llama_cpp.llama_vocab_is_eog(vocabulary, token))

    def logits(self, input_ids: Sequence[int], first: int) -> Floats:
        """Return [len(input_ids) - first, vocabulary] logits of the positions from ``first`` on.

        What the previous call had in common with ``input_ids`` is not computed again.

        Raises:
            StepError: the model could not be evaluated (too long for the context, or out of memory).
        """
        shared = 0
        limit = min(len(self._cached), first)
        while shared < limit and self._cached[shared] == input_ids[shared]:
            shared += 1
        context = self.model.ctx
        memory = llama_cpp.llama_get_memory(context)
        llama_cpp.llama_memory_seq_rm(memory, -1, shared, -1)
        size = self.model.n_batch
        rows: list[Floats] = []
        width = self.model.n_vocab()
        batch = llama_cpp.llama_batch_init(size, 0, 1)
        try:
            for start in range(shared, len(input_ids), size):
                chunk = input_ids[start : start + size]
                batch.n_tokens = len(chunk)
                wanted = []
                for place, token in enumerate(chunk):
                    batch.token[place] = token
                    batch.pos[place] = start + place
                    batch.n_seq_id[place] = 1
                    batch.seq_id[place][0] = 0
                    batch.logits[place] = start + place >= first
                    if start + place >= first:
                        wanted.append(place)
                if llama_cpp.llama_decode(context, batch):
                    self._cached = []
                    raise StepError("llama.cpp could not evaluate the prompt.", "Is it longer than num_ctx?")
                for place in wanted:
                    pointer = llama_cpp.llama_get_logits_ith(context, place)
                    rows.append(np.ctypeslib.as_array(pointer, shape=(width,)).astype(np.float32, copy=True))
        finally:
            llama_cpp.llama_batch_free(batch)
        self._cached = list(input_ids)
        return np.stack(rows)

    @contextmanager
    def adapted(self, path: Path, scale: float = 1.0) -> Iterator[None]:
        """Add a GGUF adapter to the model while the block runs.

        Args:
            path: the adapter (see ``twin.gguf.lora``).
            scale: times its own ``lora_alpha`` / rank.

        Raises:
            StepError: it is no adapter, or one for another model.
        """
        adapter = llama_cpp.llama_adapter_lora_init(self.model.model, str(path).encode())
        if not adapter:
            raise StepError(f"'{path}' can't be opened as an adapter of this model.", "Make it again: twin gguf --lora")
        try:
            self._apply((llama_cpp.llama_adapter_lora_p_ctypes * 1)(adapter), (ctypes.c_float * 1)(scale))
            yield
        finally:
            self._apply(None, None)
            llama_cpp.llama_adapter_lora_free(adapter)

    def _apply(self, adapters: Any, scales: Any) -> None:
        """Set the adapters that count from now on; what was computed with others is forgotten."""
        if llama_cpp.llama_set_adapters_lora(self.model.ctx, adapters, len(adapters or ()), scales):
            raise StepError("llama.cpp could not add the adapter to the model.", "Is there enough memory?")
        self._cached = []

    def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        temperature: float,
        max_tokens: int,
        seed: int = 0,
        stops: Sequence[str] = (),
    ) -> Iterator[int]:
        """Yield the ids of a reply to the prompt, until an end of generation, ``max_tokens`` or the context's end.

        Args:
            prompt_ids: the prompt.
            temperature: of sampling; 0 takes the likeliest id each time.
            max_tokens: most ids of the reply.
            seed: of sampling.
            stops: an id that spells one of these ends the reply too, and is not yielded.

        Raises:
            UsageError: the prompt alone fills the context.
        """
        room = self.model.n_ctx() - len(prompt_ids)
        if room < 1:
            raise UsageError(
                f"The prompt is {len(prompt_ids)} tokens long and the model holds {self.model.n_ctx()}.",
                "Say it in fewer words, or send it in parts.",
            )
        self._cached = []
        ends = {stop.encode("utf-8") for stop in stops}
        # Ollama's own defaults, which a registered model has too: one file should not speak in two ways.
        generated = self.model.generate(list(prompt_ids), temp=temperature, top_k=40, top_p=0.9, min_p=0.0)
        self.model.set_seed(seed)
        for count, token in enumerate(generated):
            if self.ends_generation(token) or count >= min(max_tokens, room) or self.piece(token) in ends:
                break
            yield token

    def texts(self, ids: Iterable[int]) -> Iterator[str]:
        """Yield the text of ids piece by piece, each piece whole characters; control tokens have none, as in Ollama."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in ids:
            if text := decoder.decode(bytes(self.model.detokenize([token], special=False))):
                yield text
        if rest := decoder.decode(b"", final=True):
            yield rest

    def reply(self, prompt_ids: Sequence[int], *, temperature: float, max_tokens: int, seed: int = 0) -> Iterator[str]:
        """Yield pieces of a reply to the prompt; see ``generate``."""
        return self.texts(self.generate(prompt_ids, temperature=temperature, max_tokens=max_tokens, seed=seed))


@contextmanager
def _no_copies() -> Iterator[None]:
    """Open models without copies of their weights: ``Llama`` has no argument for it, and takes the defaults."""
    library: Any = llama_cpp.llama_cpp
    defaults = library.llama_model_default_params

    def plain() -> Any:
        parameters = defaults()
        parameters.use_extra_bufts = False
        return parameters

    library.llama_model_default_params = plain
    try:
        yield
    finally:
        library.llama_model_default_params = defaults


@contextmanager
def open_gguf(path: Path, num_ctx: int = 4096, vocab_only: bool = False, copies: bool = True) -> Iterator[Gguf]:
    """Open the model file ``path``.

    Args:
        path: a GGUF.
        num_ctx: context length in tokens.
        vocab_only: load the vocabulary alone, for ids.
        copies: let llama.cpp copy weights into the layout that this processor computes fastest: as much memory again.

    Raises:
        StepError: llama.cpp can't open it.
    """
    silence()
    _errors.clear()
    try:
        with nullcontext() if copies else _no_copies():
            model = llama_cpp.Llama(
                str(path),
                n_ctx=num_ctx,
                n_batch=512,
                vocab_only=vocab_only,
                verbose=False,
                n_threads=psutil.cpu_count(logical=False) or 2,
                n_threads_batch=psutil.cpu_count() or 2,
            )
    except (ValueError, RuntimeError, OSError) as error:
        said = _errors[0].rpartition("error loading model: ")[2] if _errors else str(error)
        raise StepError(f"'{path}' can't be opened as a model: {said}.", "Make it again: twin gguf") from None
    try:
        yield Gguf(model)
    finally:
        model.close()
