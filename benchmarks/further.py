"""Training on when new chats have come, against training from nothing: loss on old and new held-out replies.

Run: python -m benchmarks.further FOLDER [RUN]..., which keeps what is trained

The sample person's chat with one other, without a system prompt and with four turns of history; preset smollm2-135m,
steps of 4 replies. Its last 40 % of conversations are new and the others old; every second of either is held out. The
earlier adapter learns the old rows; the others go on from it, with or without old rows replayed, or learn all rows from
nothing. One pass over what is learned.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch

from twin import basemodel, pipeline, sample
from twin.dataset.formats import read_rows, to_line
from twin.presets import load_preset, plan_training
from twin.progress import Silent
from twin.settings import load_settings
from twin.templates import load_family
from twin.training import backend_hf, earlier, execution
from twin.training.model import add_lora, load_model
from twin.training.samples import build_samples
from twin.training.tokenizer import load_tokenizer

CHAT = "WhatsApp Chat with Ravi.txt"
RUNS = {
    "earlier": {"dataset": "old.jsonl"},
    "no replay": {"from_adapter": "adapters/earlier", "replay": 0.0},
    "replay 0.5": {"from_adapter": "adapters/earlier", "replay": 0.5},
    "replay 1": {"from_adapter": "adapters/earlier", "replay": 1.0},
    "replay 1, rate halved": {"from_adapter": "adapters/earlier", "replay": 1.0, "learning_rate": 1e-3},
    "replay 3": {"from_adapter": "adapters/earlier", "replay": 3.0},
    "from nothing": {},
}


def parts(file):
    """Return the rows of the chat as {(new, held out): rows}."""
    rows = [row for row in read_rows(file) if row.conversation_id.startswith(CHAT)]
    ordered = sorted({row.conversation_id for row in rows}, key=lambda name: int(name.rpartition("#")[2]))
    late = ordered[round(len(ordered) * 0.6) :]
    early = ordered[: len(ordered) - len(late)]
    out = {*late[1::2], *early[1::2]}
    found = {}
    for row in rows:
        found.setdefault((row.conversation_id in late, row.conversation_id in out), []).append(row)
    return found


def main():
    folder, *names = Path(sys.argv[1]), *sys.argv[2:]
    sample.lay(folder)
    os.chdir(folder)
    settings = load_settings(export={"validation_split": 0, "include_system": False, "context_turns": 4})
    if not Path("whole").exists():
        export = settings.export.model_copy(update={"output": Path("whole")})
        pipeline.export([], settings.model_copy(update={"export": export}), Silent())
    found = parts(Path("whole/train.jsonl"))
    old, new, held_old, held_new = (found[key] for key in ((False, False), (True, False), (False, True), (True, True)))
    for name, rows in (("old", old), ("all", old + new)):
        Path(f"{name}.jsonl").write_bytes(b"".join(to_line(row, "chatml", "Wren Halloran") for row in rows))
    print(f"{len(old)} old and {len(new)} new rows; held out {len(held_old)} old and {len(held_new)} new", flush=True)
    base = basemodel.resolve(basemodel.SMOLLM2, Silent())
    tokenizer, family = load_tokenizer(base.folder), load_family("chatml")
    told = {}
    for name in names or RUNS:
        given = {"dataset": Path("all.jsonl"), "early_stopping_patience": 0, "batch_size": 4} | RUNS[name]
        given |= {key: Path(given[key]) for key in ("dataset", "from_adapter") if key in given}
        now = settings.model_copy(update={"train": settings.train.model_copy(update=given)})
        run = Path("adapters") / name.replace(" ", "-").replace(",", "")
        started = time.perf_counter()
        if not (run / "run.json").exists():
            told[name] = pipeline.train(now, Silent(), output=run).as_json()
        seconds = time.perf_counter() - started
        plan = plan_training(now.train, load_preset("smollm2-135m"))
        model = add_lora(load_model(base.folder, "cpu", torch.float32), plan)
        losses = []
        some = build_samples(held_new, tokenizer, family, plan.max_length).samples
        chosen = execution.choose(model.get_base_model(), some, torch.float32)
        for weights in ([None] if name == "earlier" else []) + [run / "adapter_model.safetensors"]:
            if weights:
                earlier.take_up(model, weights)
            for rows in (held_old, held_new):
                samples = build_samples(rows, tokenizer, family, plan.max_length).samples
                scored = backend_hf.held_out(model, samples, chosen, torch.float32, lambda _: None)
                losses.append(sum(one.nll for one in scored) / sum(one.tokens for one in scored))
        if name == "earlier":
            print(f"{'base model':24} old {losses[0]:.3f}  new {losses[1]:.3f}", flush=True)
        steps, rows = (told[name][key] for key in ("steps", "samples")) if name in told else ("", "")
        print(
            f"{name:24} old {losses[-2]:.3f}  new {losses[-1]:.3f}  {rows} rows, {steps} steps, {seconds:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
