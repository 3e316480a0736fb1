"""Training on from an adapter when new chats arrive: which one may be, which rows are learned, what is told of it.

As in ``pipeline``, what two features need of one another is put together here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from twin import adapter, curate, files, learned, runs
from twin.errors import UsageError
from twin.learned import Learned
from twin.presets import TrainPlan
from twin.progress import Reporter
from twin.records import Example
from twin.runs import RunPaths
from twin.settings import Settings
from twin.templates import Family

if TYPE_CHECKING:
    from twin.dataset.rows import Rows

_NOTHING = "Or train from nothing: leave --from-adapter out."
_SAME = {
    "lora_r": "--lora-r", "lora_alpha": "a preset with lora_alpha", "target_modules": "a preset with target_modules",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Earlier:
    """A run that is trained on from.

    Args:
        paths: of it.
        record: its ``run.json``.
        learned: what it learned, and what those before it did.
        replay: rows that it learned, learned once more for each new one.
    """

    paths: RunPaths
    record: dict[str, Any]
    learned: Learned
    replay: float

    def job(self) -> dict[str, Any]:
        """Return what the weights of a run that goes on from it hang on."""
        found = [self.paths.adapter_config, self.paths.adapter_weights, self.paths.learned]
        return {"earlier_adapter": files.fingerprint({}, found)[:16], "replay": self.replay}


def find(settings: Settings, paths: RunPaths) -> Earlier | None:
    """Return the run that ``settings`` go on from; None: train from nothing.

    Args:
        settings: its ``train`` section.
        paths: of the run that is to be.

    Raises:
        UsageError: there is none, it is not whole, or it is the same folder.
    """
    folder = settings.train.from_adapter
    if folder is None:
        return None
    found = runs.find_adapter(folder)
    record = runs.read_record(found)
    if found.root.resolve() == paths.root.resolve():
        raise UsageError(
            f"The run '{paths.root}' can't be trained on into itself: the earlier adapter would be gone.",
            "Choose another --name.",
        )
    adapter.check(found, record)
    return Earlier(found, record, learned.read(found), settings.train.replay)


def job(earlier: Earlier | None) -> dict[str, Any]:
    """Return what of the earlier run the weights hang on, for checkpoints and ``twin run``."""
    return earlier.job() if earlier else {"earlier_adapter": None, "replay": None}


def learned_by(earlier: Earlier | None) -> Learned:
    """Return what the earlier run learned."""
    return earlier.learned if earlier else Learned()


def _check(earlier: Earlier, plan: TrainPlan, base_weights: str, family: Family) -> None:
    """Refuse an earlier adapter of another base model, other LoRA settings or another template.

    Raises:
        UsageError: what is not the same, with both sides.
    """
    where, before = earlier.paths.root, earlier.record["plan"]
    if earlier.record.get("base_weights") != base_weights:
        name = earlier.record["base_model"]
        raise UsageError(
            f"'{where}' was trained on the base model '{name}', and this is '{plan.model}'"
            + (", whose weights are others." if name == plan.model else "."),
            f"Use the preset and the --model that it was trained with. {_NOTHING}",
        )
    for key, option in _SAME.items():
        old, new = (_words(one) for one in (before.get(key), getattr(plan, key)))
        if old != new:
            raise UsageError(
                f"'{where}' was trained with {key} {old}, and this is {new}.", f"Use {option} {old}. {_NOTHING}"
            )
    if earlier.record.get("pair") != family.model_dump():
        theirs = earlier.record["family"]
        raise UsageError(
            f"'{where}' was trained with the template family '{theirs}', and this is '{family.name}'"
            + (", whose templates are others." if theirs == family.name else "."),
            f"Use the preset that it was trained with. {_NOTHING}",
        )


def _words(value: Any) -> str:
    return ", ".join(sorted(map(str, value))) if isinstance(value, list) else str(value)


def choose(
    earlier: Earlier | None,
    rows: Rows,
    plan: TrainPlan,
    base_weights: str,
    family: Family,
    settings: Settings,
    reporter: Reporter,
) -> tuple[Rows, dict[str, Any]]:
    """Return the rows that are learned and measured, and what ``run.json`` says of them; all rows without ``earlier``.

    Learned are the rows that the earlier run did not learn, and ``replay`` times as many of those that it did, drawn by
    conversation: they keep what was learned, and their history is computed once. What it learned is not held out.

    Args:
        earlier: the run to train on from.
        rows: of the dataset.
        plan: the settings of the run that is to be.
        base_weights: the digest of its base model's weights.
        family: its template pair.
        settings: who is who, for what is forgotten.
        reporter: told of the numbers, and of what is forgotten and stays learned.

    Raises:
        UsageError: no row is new; another base model, other LoRA settings or another template, with both sides.
    """
    if earlier is None:
        return rows, {}
    _check(earlier, plan, base_weights, family)
    new = [not earlier.learned.has(row) for row in rows.train]
    if not any(new):
        raise UsageError(
            f"'{rows.train_path}' has no row that '{earlier.paths.root}' has not learned.",
            "Put the new chats into the brain and export again: twin export",
        )
    old = [place for place, one in enumerate(new) if not one]
    replayed = _drawn(rows.train, old, round(sum(new) * earlier.replay), plan.seed)
    train = [row for place, row in enumerate(rows.train) if new[place] or place in replayed]
    val = [row for row in rows.val if not earlier.learned.spoils(row)]
    about = {
        "name": earlier.paths.name,
        "adapter": runs.adapter_digests(earlier.paths),
        "lineage": _lineage(earlier),
        "new_rows": sum(new),
        "replay": earlier.replay,
        "replayed_rows": len(replayed),
        "not_replayed_rows": len(old) - len(replayed),
        "held_out_rows_it_learned": len(rows.val) - len(val),
        "learned_forgotten": None,
    }
    where = earlier.paths.root
    reporter.say(f"{sum(new)} new rows, and once more {len(replayed)} of the {len(old)} that '{where}' learned")
    if left := about["held_out_rows_it_learned"]:
        reporter.say(f"{left} of {len(rows.val)} held-out rows are not measured: '{where}' learned them")
    still = curate.still_learned(earlier.record, settings)
    for what, certain in still:
        sure = "has learned" if certain else "does not say whether it learned"
        reporter.say(f"'{where}' {sure} what is forgotten ({what}), and training on keeps it. {_NOTHING}")
    about["learned_forgotten"] = True if any(certain for _, certain in still) else None if still else False
    provenance = _either(earlier.record.get("provenance"), rows.provenance)
    return replace(rows, train=train, val=val, provenance=provenance), {"earlier": about}


def _drawn(rows: Sequence[Example], old: Sequence[int], count: int, seed: int) -> set[int]:
    """Return the places of ``count`` of the rows at ``old``, by whole conversations but for the last."""
    talks: dict[str, list[int]] = {}
    for place in old:
        talks.setdefault(rows[place].conversation_id, []).append(place)
    order = random.Random(seed).sample(sorted(talks), len(talks))  # noqa: S311 - reproducible, no secret
    return set([place for name in order for place in talks[name]][:count])


def _lineage(earlier: Earlier) -> list[str]:
    """Return the SHA-256 of the weights of each adapter that was trained on from, the last one first."""
    before = earlier.record.get("earlier")
    older = before.get("lineage") if isinstance(before, dict) else None
    known = [one for one in older if isinstance(one, str)] if isinstance(older, list) else []
    return [files.file_digest(earlier.paths.adapter_weights), *known]


def _either(before: Any, now: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return where the rows of both trainings come from, so that what is forgotten is found; None: one doesn't tell."""
    if not isinstance(before, dict) or now is None:
        return None
    found = dict(now)
    for name, about in before.items():
        if not (isinstance(about, dict) and _strings(about.get("people")) and _strings(about.get("within"))):
            return None  # another version's, or somebody edited it
        mine = found.get(name, about)
        found[name] = {
            "people": sorted({*about["people"], *mine["people"]}),
            "first": _end(min, about, mine, "first"),
            "last": _end(max, about, mine, "last"),
            "within": list(dict.fromkeys([*mine["within"], *about["within"]])),
        }
    return found


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _end(which: Callable[[str, str], str], one: dict[str, Any], other: dict[str, Any], key: str) -> str | None:
    """Return the earlier or later of two dates; a source without one may be of any time, and stays so."""
    first, second = one.get(key), other.get(key)
    return which(first, second) if isinstance(first, str) and isinstance(second, str) else None
