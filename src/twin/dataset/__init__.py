"""Brain → rows. Pure functions on iterators; ``build`` puts them together.

conversations → sessions (window) → rows (shard, in several processes) ┐
memories, facts, journals, response examples (facts) ──────────────────┴→ table → dedup → thin → split → system → files
"""

from __future__ import annotations

import os
import signal
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import numpy as np

from twin.dataset import dedup, shard, split
from twin.dataset.clean import Habits
from twin.dataset.facts import fact_rows, journal_rows, memory_rows, response_rows
from twin.dataset.private import Private
from twin.dataset.shard import Job, Shard, Source
from twin.dataset.split import Closest
from twin.dataset.system import prompt_of
from twin.dataset.table import Rows, Table, shuffled, thinned
from twin.dropped import Dropped
from twin.errors import MachineError, NothingLeftError
from twin.prompt import SystemPrompt, reworded
from twin.records import KINDS, Brain, Chats
from twin.settings import ExportSettings

_PART_BYTES = 8 << 20  # what one process takes at a time
_MOST_PARTS = 64  # each keeps two files open, and some systems allow 256
_WORTH_PROCESSES = 24 << 20
_PAIRS_AT_ONCE = 8192
_TITLES = {
    "dr",
    "mr",
    "mrs",
    "ms",
    "miss",
    "prof",
    "herr",
    "frau",
    "señor",
    "señora",
    "sr",
    "sra",
    "don",
    "doña",
    "mme",
}
Tick = Callable[[float], None]
Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


@dataclass(frozen=True)
class Dataset:
    """What an export found.

    Args:
        train: rows to learn from, shuffled by the seed.
        val: held-out rows, in the order of their conversations.
        dropped: what was left out, by reason.
        kinds: how many rows were kept, by where they come from.
        redacted: how many private values were replaced, by kind.
        closest: the closest pair across the split; None: none was found alike.
        sources: of each document its speakers and its span of time.
    """

    train: Rows
    val: Rows
    dropped: Dropped
    kinds: dict[str, int]
    redacted: dict[str, int]
    closest: Closest | None
    sources: dict[str, Source]

    def closest_ids(self) -> tuple[str, ...]:
        """Return the ids of the closest pair across the split, the training row first; none where there is no pair."""
        pair = [self.closest.train, self.closest.val] if self.closest else []
        return tuple(row["id"] for row in self.train.table.records(np.array(pair, np.int64)))

    def close(self) -> None:
        """Close the files that the rows are read from."""
        self.train.table.close()


def other_names(brain: Brain, people: Mapping[str, Sequence[str]] | None = None) -> dict[str, str]:
    """Return what everyone else who speaks is called, and who that is: whole names, first names, aliases.

    Where names are written without spaces (田中太郎) and the family's comes first, friends say the last word too. Other
    last names are not looked for by themselves: Young and Will are words.

    Args:
        brain: its conversations are read.
        people: names and their aliases.
    """
    speakers = {message.speaker for one in brain.conversations() for message in one.messages} - {brain.person}
    aliases = [(alias, name) for name, known in (people or {}).items() if name in speakers for alias in known]
    found: dict[str, str] = {}
    for name, who in [*((name, name) for name in sorted(speakers)), *aliases]:
        words = name.lstrip("~ \u202f\u00a0").split()  # WhatsApp's mark of people who are in no address book
        said = [word for word in words if word.casefold().rstrip(".") not in _TITLES]
        spelt = [name, " ".join(words), " ".join(said), *(word for word in said[:1] if len(word) > 1)]
        if any("\u3040" <= letter <= "\u9fff" or "\uac00" <= letter <= "\ud7af" for letter in name):
            spelt += ["".join(words), *(word for word in words[-1:] if len(word) > 1)]
        for one in spelt:
            for form in ("NFC", "NFD"):  # letters composed and not
                found.setdefault(unicodedata.normalize(form, one), who)
    return {name: who for name, who in found.items() if name.strip()}


def build(
    brain: Brain,
    prompt: SystemPrompt,
    settings: ExportSettings,
    scratch: Path,
    private: Private | None = None,
    tick: Tick = lambda rows: None,
    watch: str | None = None,
) -> Dataset:
    """Return the dataset of ``brain``.

    Args:
        brain: what the person said; its memories, journals and profile as ``private`` left them.
        prompt: the system prompt; what stands in it does not become a row of its own.
        settings: filters, window, split and seed.
        scratch: a folder for the rows while they are chosen among; they are read from it as long as they are used.
        private: what was done to the brain's memories, so that placeholders go on counting.
        tick: called with the number of rows that were looked at.
        watch: the reason whose dropped rows are listed.

    Raises:
        NothingLeftError: not one row is left; the sentence counts the reasons.
        GateError: the split leaks.
    """
    private = private or Private(brain.person, settings)
    dropped = Dropped(watch)
    dropped.merge(brain.dropped)
    dropped.merge(private.dropped)
    with _pool(settings, brain.chats) as run:
        shards = _shards(brain, prompt, Job(brain.person, settings, private.names, watch), scratch, dropped, run, tick)
        table = Table(shards, private.redactor)
        for one in shards:
            dropped.merge(one.dropped)
        alive, alike = _distinct(table, settings, dropped)
    if not alive.any():
        reasons = ", ".join(f"{reason} {count}" for reason, count in dropped.counts.most_common())
        raise NothingLeftError(
            f"The dataset is empty: no row of '{brain.person}' is left ({reasons or 'nothing was said'}).",
            "Check --person, add conversations in which they answer, or try --no-quality-filter.",
        )
    val, closest = _split(table, alive, alike, settings)
    rows = np.flatnonzero(alive)
    held = val[table.session[rows]]
    if held.all():
        raise NothingLeftError(
            "The dataset has no training rows: all are held out.", "Lower --validation-split or add conversations."
        )
    train_prompt, val_prompt = _prompts(table, prompt, brain, settings)
    kinds = Counter(KINDS[number] for number in table.kinds[rows].tolist())
    return Dataset(
        Rows(table, shuffled(rows[~held], settings.seed), train_prompt),
        Rows(table, rows[held], val_prompt),
        dropped,
        dict(kinds),
        dict(sum((one.redacted for one in shards), Counter(private.redactor.counts))),
        closest,
        {name: source for one in shards for name, source in one.sources.items() if source.people},
    )


# ---------------------------------------------------------------- in several processes


def _shards(
    brain: Brain, prompt: SystemPrompt, job: Job, scratch: Path, dropped: Dropped, run: Map, tick: Tick
) -> list[Shard]:
    """Return the rows of the chats, a shard a run of files; then those of all else, told in the person's hand."""
    shards = []
    for one in run(partial(_chat_shard, job, scratch), enumerate(_grouped(brain.chats))):
        shards.append(one)
        tick(len(one.kinds))
    hand = Habits()
    for one in shards:
        hand.merge(one.habits)
    others = [
        *memory_rows(brain, prompt, hand, dropped),
        *fact_rows(brain, prompt, hand, dropped),
        *journal_rows(brain),
        *response_rows(brain),
    ]
    shards.append(shard.examples(others, job, scratch / "others"))
    tick(len(shards[-1].kinds))
    return shards


def _grouped(chats: Sequence[Chats]) -> list[list[Chats]]:
    """Return the files in runs of some megabytes; which run a file is in does not depend on the processes."""
    groups: list[list[Chats]] = [[]]
    size = 0
    most = max(_PART_BYTES, sum(one.size for one in chats) // _MOST_PARTS)
    for one in chats:
        if size >= most:
            groups.append([])
            size = 0
        groups[-1].append(one)
        size += one.size
    return groups


def _chat_shard(job: Job, scratch: Path, numbered: tuple[int, Sequence[Chats]]) -> Shard:
    number, chats = numbered
    return shard.chats(chats, job, scratch / f"part-{number}")


@contextmanager
def _pool(settings: ExportSettings, chats: Sequence[Chats]) -> Iterator[Map]:
    """Yield a ``map`` over processes where there is enough to do, else the one of this process."""
    workers = settings.processes or (os.process_cpu_count if hasattr(os, "process_cpu_count") else os.cpu_count)() or 1
    if sys.platform == "win32":
        workers = min(workers, 61)  # what one can wait for there
    if workers < 2 or sum(one.size for one in chats) < _WORTH_PROCESSES:
        yield map
        return
    others = set(active_children())
    # Not forked: the parent may have threads (a progress bar's), and locks of theirs would be copied held. A terminal's
    # Ctrl-C goes to every process: the workers leave it to the parent.
    with ProcessPoolExecutor(workers, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:

        def spread(work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
            with _sigint_blocked():
                done = pool.map(work, items)  # starts the workers
            try:
                yield from done
            except BrokenProcessPool:
                raise MachineError(
                    "A process that builds rows was ended from outside, for memory most often.",
                    "Set processes = 1 in [export] of twin.toml; a script of yours needs if __name__ == '__main__'.",
                ) from None

        try:
            yield spread
        except BaseException:  # nobody waits for their rows any more
            for worker in set(active_children()) - others:
                worker.terminate()
            raise


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Start processes that are deaf to Ctrl-C from their first moment: what a thread blocks, its children inherit."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---------------------------------------------------------------- choosing


def _distinct(
    table: Table, settings: ExportSettings, dropped: Dropped
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Return which rows stay, the pairs of rows (dropped ones among them) that are somewhat alike, and how much."""
    alive = np.ones(table.rows, bool)
    if settings.deduplicate:
        first = dedup.first_of_each(table.keys)
        _drop(table, ~first, "duplicate", dropped)
        alive &= first
    pairs = dedup.candidates(table.bands, alive)
    similar = _similarities(table, pairs)
    if settings.deduplicate:
        near = dedup.near_duplicates(pairs, similar, table.rows)
        _drop(table, near, "near-duplicate", dropped)
        alive &= ~near
    if settings.quality_filter:
        often = thinned(table.replies, alive & (table.kinds == 0), settings.seed)
        _drop(table, often, "repeated reply", dropped)
        alive &= ~often
    return alive, (pairs, similar)


def _similarities(table: Table, pairs: np.ndarray) -> np.ndarray:
    """Return how much the rows of each pair are alike."""
    done = [np.empty(0)]
    for begin in range(0, len(pairs), _PAIRS_AT_ONCE):
        some = pairs[begin : begin + _PAIRS_AT_ONCE]
        done.append(dedup.similarities(*(table.texts(some[:, side]) for side in (0, 1))))
    return np.concatenate(done)


def _drop(table: Table, gone: np.ndarray, reason: str, dropped: Dropped) -> None:
    rows = np.flatnonzero(gone)
    if dropped.watch == reason:
        for row in table.records(rows):
            dropped.add(reason, row["messages"][-1]["content"], row["id"])
    elif len(rows):
        dropped.counts[reason] += len(rows)


def _split(
    table: Table, alive: np.ndarray, alike: tuple[np.ndarray, np.ndarray], settings: ExportSettings
) -> tuple[np.ndarray, Closest | None]:
    """Return which sessions are held out, and the closest pair across the split.

    By time, whatever else is dated after the first held-out conversation is held out with them: a journal of that week
    would tell the twin what it is later asked.
    """
    pairs, similar = alike
    rows = np.flatnonzero(alive)
    used = np.unique(table.session[rows])  # sessions that still have rows, in order
    place = np.full(len(table.session_ids), -1, np.int64)
    place[used] = np.arange(len(used))
    chat = np.zeros(len(used), bool)
    chat[place[table.session[rows[table.kinds[rows] == 0]]]] = True
    long = table.lengths >= split.LEAK_LENGTH
    close = pairs[(similar >= split.ALIKE) & long[pairs[:, 0]] & long[pairs[:, 1]]] if len(pairs) else pairs
    bound = [tuple(both) for both in table.session[close].tolist()] if len(close) else []
    # A row that was dropped still stands in what is said before the next: a chat exported twice is on one side.
    bound += split.same_lines(table.keys[long], table.session[long])
    bound = [
        (one, other) for one, other in place[np.array(bound, np.int64).reshape(-1, 2)].tolist() if one >= 0 <= other
    ]
    quoted = np.isin(table.quoted[1], used)
    lines = table.quoted[0][quoted], place[table.quoted[1][quoted]]
    bound += split.same_lines(*lines)
    times = table.session_times[used]
    conversations = [
        (table.session_ids[number], None if np.isnan(at) else at)
        for number, at in zip(used.tolist(), times.tolist(), strict=True)
    ]
    others = frozenset(np.flatnonzero(~chat).tolist())
    out = split.held_out(conversations, settings, split.groups(len(used), bound), others)
    val = np.zeros(len(used), bool)
    val[list(out)] = True
    if settings.split_by == "time" and out:
        dated = times[list(out)]
        if not np.isnan(dated).all():
            val |= ~chat & (times >= np.nanmin(dated))
    where = np.cumsum(alive) - 1
    kept = alive[pairs[:, 0]] & alive[pairs[:, 1]] if len(pairs) else np.empty(0, bool)
    closest = split.check(
        val,
        (place[table.session[rows]], table.keys[rows], table.lengths[rows]),
        (where[pairs[kept]], similar[kept]),
        lines,
    )
    if closest:
        closest = closest._replace(train=int(rows[closest.train]), val=int(rows[closest.val]))
    whole = np.zeros(len(table.session_ids), bool)
    whole[used] = val
    return whole, closest


def _prompts(
    table: Table, prompt: SystemPrompt, brain: Brain, settings: ExportSettings
) -> tuple[Callable[[int], str], Callable[[int], str]]:
    """Return the system prompt of a session's number, for training rows and for held-out ones."""
    if not settings.include_system:
        return lambda session: "", lambda session: ""
    other = reworded(brain)
    return (
        lambda session: prompt_of(table.session_ids[session], prompt.text, other, settings.seed),
        lambda session: prompt.text,
    )
