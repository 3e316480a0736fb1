"""Seconds an optimizer step on one GPU for the same rows: twin, Unsloth's own SFTTrainer path, TRL's.

    python benchmarks/gpu.py --shape 1b --tokenizer FOLDER [--model FOLDER] [--variants twin-4bit,unsloth-4bit-packing]
                             [--rows 64] [--step-rows 8] [--passes 3] [--checkpointing] [--json results.jsonl]

What is the same for all: the rows (chats of the bundled sample brain with its system prompt, as ``twin export`` writes
them), their order, the rows of each optimizer step, the base model (random weights in the shape of TinyLlama-1.1B or
Llama-3.1-8B, bfloat16 on disk, made once from a seed), LoRA's rank, alpha and modules, AdamW, loss on the reply and its
end token, averaged over a step's supervised tokens. The losses show it: without packing each step's must agree up to
rounding. The first pass over the rows is not timed, since kernels are compiled and tuned in it.

- twin-bf16, twin-4bit: ``backend_hf.train`` whole, as ``twin train`` runs it; its own lines of ``metrics.jsonl`` are
  read. twin-unsloth-4bit: the same with the backend unsloth.
- unsloth-4bit-packing: what Unsloth recommends: FastLanguageModel, its SFTTrainer, ``packing=True``. A packed row is as
  long as a step's rows are at the most, so a step holds about as many: seconds are put to a step by the tokens.
- unsloth-4bit-flat: the same with ``padding_free=True``: exactly the rows of each step, one behind the other.
- trl-4bit-packing, trl-bf16-packing: plain TRL with PEFT, ``packing=True``.

Each is a process of its own; loading is outside the timing. ``--checkpointing`` computes layers again in the backward
pass, in each variant in its own way; without it nothing does. Peak memory is what PyTorch allocated at most.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 49152, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    },
    "1b": {
        "vocab_size": 49152, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
        "num_attention_heads": 32, "num_key_value_heads": 4,
    },
    "8b": {
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8,
    },
}  # fmt: skip
VARIANTS = (
    "twin-bf16", "twin-4bit", "twin-unsloth-4bit", "unsloth-4bit-packing", "unsloth-4bit-flat", "unsloth-bf16-packing",
    "trl-4bit-packing", "trl-bf16-packing",
)  # fmt: skip


def make_model(folder: Path, shape: str, tokenizer: Path) -> None:
    """Save random weights of ``shape`` with the tokenizer's files into ``folder``."""
    import torch
    import transformers

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = transformers.LlamaConfig(
        **SHAPES[shape], max_position_embeddings=16384, tie_word_embeddings=False,
        bos_token_id=1, eos_token_id=2, pad_token_id=2, dtype="bfloat16",
    )  # fmt: skip
    begun = time.perf_counter()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = transformers.LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    scratch = folder.with_name(folder.name + ".part")
    model.save_pretrained(scratch, safe_serialization=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, scratch / name)
    scratch.replace(folder)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"made {folder}: {size / 2**30:.1f} GiB in {time.perf_counter() - begun:.0f} s", file=sys.stderr)


class Setup:
    """What the variants share.

    Args:
        model: the base model's folder.
        rows: how many to train on.
        step_rows: of each optimizer step.
        passes: over them.
        device: where.
    """

    def __init__(self, model: Path, rows: int, step_rows: int, passes: int, device: str) -> None:
        from dataclasses import replace
        from itertools import chain

        import transformers
        from training import sample_rows

        from twin.presets import load_preset, plan_training
        from twin.settings import TrainSettings
        from twin.templates import load_family
        from twin.training.passes import plan_passes
        from twin.training.samples import build_samples
        from twin.training.tokenizer import load_tokenizer

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.folder, self.device, self.step_rows = model, device, step_rows
        settings = TrainSettings(epochs=passes, batch_size=step_rows, device=device, early_stopping_patience=0)
        self.plan = plan_training(settings, load_preset("smollm2-135m"))
        self.tokenizer = load_tokenizer(model)
        family = load_family(self.plan.family)
        built = build_samples(sample_rows(rows), self.tokenizer, family, self.plan.max_length).samples
        # A block of rows is a conversation to ``batches``, so that every step has as many; the brain's conversations
        # stay side by side in it.
        count = len(built) // step_rows * step_rows
        self.samples = [replace(one, conversation_id=f"{n // step_rows}") for n, one in enumerate(built[:count])]
        self.passes = passes
        self.steps = list(chain.from_iterable(plan_passes(self.samples, self.plan)))
        assert all(len(step) == step_rows for step in self.steps)
        self.flat = [one for step in self.steps for one in step]

    @property
    def untimed(self) -> int:
        """How many steps come before the timed ones."""
        return len(self.steps) // self.passes

    def table(self) -> Any:
        """Return the rows in order, as every trainer of datasets takes them."""
        import datasets

        datasets.disable_progress_bars()
        rows = []
        for one in self.flat:
            ids, begin = list(one.input_ids), one.prompt_length
            rows.append({"input_ids": ids, "labels": [-100] * begin + ids[begin:], "attention_mask": [1] * len(ids)})
        return datasets.Dataset.from_list(rows)


def twin(setup: Setup, backend: str, four_bit: bool, checkpointing: bool, scratch: Path) -> dict[str, Any]:
    """Train with ``backend_hf.train``."""
    from dataclasses import replace

    from twin.progress import Silent
    from twin.training import backend_hf
    from twin.training.backends import Chosen
    from twin.training.start import begin

    plan = setup.plan.model_copy(update={"four_bit": four_bit} if setup.device == "cuda" else {})
    begun = begin(plan, setup.folder, setup.samples, Chosen(backend, "asked for"))
    begun = replace(begun, dtype="bfloat16", checkpointing=checkpointing)
    job = backend_hf.Job(
        setup.folder, "random weights", plan, setup.samples, (), scratch / "checkpoints", scratch, begun
    )
    done = backend_hf.train(job, Silent())
    lines = [line for line in done.logs if line["seconds"] is not None]
    return {
        "losses": [line["loss"] for line in lines],
        "seconds": [line["seconds"] for line in lines],
        "tokens": [sum(len(one.input_ids) for one in step) for step in setup.steps],
        "execution": f"{done.execution}: {done.execution_why}",
        "computed": done.unique_tokens // setup.passes,
        "largest_pack": done.largest_pack,
    }


def wait(device: str) -> None:
    """Wait for what the device was given to do."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def watch(trainer: Any, device: str) -> dict[str, list[float]]:
    """Return lists that get each optimizer step's loss, seconds and tokens of its rows."""
    import transformers

    found: dict[str, list[float]] = {"losses": [], "seconds": [], "tokens": []}

    class Watch(transformers.TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            wait(device)
            self.begun = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            wait(device)
            found["seconds"].append(time.perf_counter() - self.begun)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "loss" in logs:
                found["losses"].append(float(logs["loss"]))

    collate = trainer.data_collator

    def counted(rows: Any) -> Any:
        # A packed row ends with the padding that its batch needs, none in these: its ids are its rows' ids.
        found["tokens"].append(float(sum(len(row["input_ids"]) for row in rows)))
        return collate(rows)

    trainer.data_collator = counted
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    trainer.add_callback(Watch())
    return found


def arguments(setup: Setup, packing: bool, checkpointing: bool, scratch: Path) -> dict[str, Any]:
    """Return what TRL's SFTConfig is given, by Unsloth's trainer and by TRL's own."""
    plan = setup.plan
    longest = max(sum(len(one.input_ids) for one in step) for step in setup.steps)
    return {
        "output_dir": str(scratch), "num_train_epochs": 1, "gradient_accumulation_steps": 1,
        "per_device_train_batch_size": 1 if packing else setup.step_rows,
        "max_length": longest if packing else None, "packing": packing, "padding_free": not packing,
        "train_sampling_strategy": "sequential", "learning_rate": plan.learning_rate, "lr_scheduler_type": "cosine",
        "weight_decay": 0.0, "max_grad_norm": 1.0, "optim": "adamw_torch", "logging_steps": 1,
        "logging_strategy": "steps", "save_strategy": "no", "report_to": [], "disable_tqdm": True, "bf16": True,
        "use_cpu": setup.device == "cpu",
        "seed": plan.seed, "gradient_checkpointing": checkpointing, "dataset_num_proc": 1,
    }  # fmt: skip


def unsloth(setup: Setup, four_bit: bool, packing: bool, checkpointing: bool, scratch: Path) -> dict[str, Any]:
    """Train as Unsloth's notebooks do."""
    from trl import SFTConfig, SFTTrainer
    from unsloth import FastLanguageModel

    plan = setup.plan
    given = arguments(setup, packing, checkpointing, scratch)
    again: Any = "unsloth" if checkpointing else False
    model, _ = FastLanguageModel.from_pretrained(
        model_name=str(setup.folder.absolute()), max_seq_length=given["max_length"] or plan.max_length, dtype=None,
        load_in_4bit=four_bit, use_gradient_checkpointing=again, use_exact_model_name=True, local_files_only=True,
    )  # fmt: skip
    model = FastLanguageModel.get_peft_model(
        model, r=plan.lora_r, target_modules=list(plan.target_modules), lora_alpha=plan.lora_alpha, lora_dropout=0,
        bias="none", use_gradient_checkpointing=again, random_state=plan.seed,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=model, processing_class=setup.tokenizer, train_dataset=setup.table(), args=SFTConfig(**given)
    )
    found: dict[str, Any] = watch(trainer, setup.device)
    trainer.train()
    return found | {"computed": int(sum(found["tokens"])) // setup.passes}


def trl(setup: Setup, four_bit: bool, checkpointing: bool, scratch: Path) -> dict[str, Any]:
    """Train as TRL's documentation does: packed, with PEFT."""
    import peft
    import torch
    import transformers
    from trl import SFTConfig, SFTTrainer

    if setup.device == "cpu":  # its kernel is one for GPUs
        from training import PlainLogProb
        from trl.trainer import utils

        utils._ChunkedLogProbFunction = PlainLogProb
    plan = setup.plan
    packed = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_pretrained(
        setup.folder,
        dtype=torch.bfloat16,
        device_map={"": setup.device},
        quantization_config=packed if four_bit else None,
    )
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**arguments(setup, True, checkpointing, scratch)),
        train_dataset=setup.table(),
        processing_class=setup.tokenizer,
        peft_config=peft.LoraConfig(
            r=plan.lora_r, lora_alpha=plan.lora_alpha, lora_dropout=0.0, target_modules=list(plan.target_modules),
            task_type="CAUSAL_LM",
        ),
    )  # fmt: skip
    found: dict[str, Any] = watch(trainer, setup.device)
    trainer.train()
    return found | {"computed": int(sum(found["tokens"])) // setup.passes}


def measure(given: argparse.Namespace) -> None:
    """Run one variant here and print what it took as JSON, last of all."""
    name, bits, *rest = f"{given.variant}".replace("twin-unsloth", "twin_unsloth").split("-")
    begun = time.perf_counter()
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(Path(tempfile.gettempdir()) / "unsloth_compiled_cache"))
    if "unsloth" in name:
        import unsloth as first  # noqa: F401 - before transformers
    import torch

    setup = Setup(given.model, given.rows, given.step_rows, given.passes, given.device)
    four_bit = bits == "4bit"
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if name.startswith("twin"):
            backend = "unsloth" if name == "twin_unsloth" else "hf"
            found = twin(setup, backend, four_bit, given.checkpointing, scratch)
        elif name == "unsloth":
            found = unsloth(setup, four_bit, rest == ["packing"], given.checkpointing, scratch)
        else:
            found = trl(setup, four_bit, given.checkpointing, scratch)
    gpu = given.device == "cuda"
    steps, tokens = len(found["seconds"]), found["tokens"][: len(found["seconds"])]
    untimed = steps // given.passes
    timed, seconds = tokens[untimed:], found["seconds"][untimed:]
    a_step = sum(len(one.input_ids) for one in setup.flat) / len(setup.steps)
    result = {
        "variant": given.variant, "model": given.model.name, "checkpointing": given.checkpointing, "steps": steps,
        "step_rows": given.step_rows, "row_tokens_a_step": a_step, "computed_tokens_a_pass": found["computed"],
        "tokens_per_second": sum(timed) / sum(seconds), "seconds_a_step": a_step * sum(seconds) / sum(timed),
        "median_seconds": statistics.median(seconds), "first_pass_seconds": sum(found["seconds"][:untimed]),
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if gpu else 0,
        "whole_seconds": time.perf_counter() - begun, "losses": found["losses"],
        "gpu": torch.cuda.get_device_name() if gpu else "CPU", "torch": torch.__version__,
        "about": {key: value for key, value in found.items() if key in ("execution", "largest_pack")},
    }  # fmt: skip
    print(json.dumps(result))


def in_process(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Run one variant in a process of its own; what it says on the way goes to stderr where it fails."""
    command = [sys.executable, __file__, "--variant", name, "--model", str(given.model), "--rows", str(given.rows)]
    command += ["--step-rows", str(given.step_rows)]
    command += [
        "--passes",
        str(given.passes),
        "--device",
        given.device,
        *(["--checkpointing"] if given.checkpointing else []),
    ]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(
            command, env=environment, text=True, capture_output=True, check=False, timeout=given.seconds
        )
    except subprocess.TimeoutExpired:
        return {"variant": name, "failed": f"took more than {given.seconds} s"}
    if done.returncode:
        return {"variant": name, "failed": (done.stderr or done.stdout)[-3000:]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def report(results: list[dict[str, Any]], given: argparse.Namespace) -> None:
    """Print the table, and how many times as long as twin's 4-bit run each takes (or as its first run)."""
    good = [one for one in results if "failed" not in one]
    if good:
        first = good[0]
        print(
            f"\n{first['gpu']}, torch {first['torch']}, {first['model']}, "
            f"{first['row_tokens_a_step']:.0f} row tokens a step of {given.step_rows} rows"
        )
        ours = next((one for one in good if one["variant"] == "twin-4bit"), good[0])
        heads = (
            "", "s a step", "ratio", "row tokens/s", "computed", "peak GiB", "1st pass s", "loss 1", "loss 8", "last",
            "whole s",
        )  # fmt: skip
        print("".join(f"{head:>{22 if not place else 13}}" for place, head in enumerate(heads)))
        for one in good:
            losses = one["losses"] or [math.nan]
            cells = (
                one["variant"], f"{one['seconds_a_step']:.3f}", f"{one['seconds_a_step'] / ours['seconds_a_step']:.2f}",
                f"{one['tokens_per_second']:,.0f}", f"{one['computed_tokens_a_pass']:,}",
                f"{one['peak_gpu_bytes'] / 2**30:.1f}", f"{one['first_pass_seconds']:.1f}", f"{losses[0]:.4f}",
                f"{losses[min(7, len(losses) - 1)]:.4f}", f"{losses[-1]:.4f}", f"{one['whole_seconds']:.0f}",
            )  # fmt: skip
            print("".join(f"{cell:>{22 if not place else 13}}" for place, cell in enumerate(cells)))
    for one in results:
        if "failed" in one:
            print(f"\n{one['variant']} failed:\n{one['failed']}")
        elif one["about"]:
            print(f"{one['variant']}: {json.dumps(one['about'])}")


def main() -> None:
    """Make the model where it is missing, run the variants, print a table."""
    parser = argparse.ArgumentParser(description="Time optimizer steps on one GPU: twin, Unsloth, TRL.")
    parser.add_argument("--shape", choices=SHAPES, default="1b", help="of the random weights")
    parser.add_argument("--model", type=Path, help="folder for them, or of a model of yours")
    parser.add_argument("--tokenizer", type=Path, help="folder with SmolLM2's tokenizer, where the model is to be made")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="which, by commas")
    parser.add_argument("--rows", type=int, default=64, help="chat rows of the sample brain")
    parser.add_argument("--step-rows", type=int, default=8, help="of each optimizer step")
    parser.add_argument("--passes", type=int, default=3, help="over the rows; the first is not timed")
    parser.add_argument("--checkpointing", action="store_true", help="compute layers again in the backward pass")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try the script itself")
    parser.add_argument("--seconds", type=int, default=150, help="the most a variant may take")
    parser.add_argument("--json", type=Path, help="a file that gets a line for each variant")
    parser.add_argument("--variant", choices=VARIANTS, help="run this one alone, here, and print JSON")
    given = parser.parse_args()
    given.model = given.model or Path(tempfile.gettempdir()) / f"random-llama-{given.shape}"
    if given.variant:
        measure(given)
        return
    if not given.model.is_dir():
        if given.tokenizer is None:
            sys.exit(f"{given.model} is not there; name --tokenizer to make it.")
        make_model(given.model, given.shape, given.tokenizer)
    results = []
    for name in given.variants.split(","):
        results.append(in_process(name, given))
        print(name, "failed" if "failed" in results[-1] else "done", file=sys.stderr)
        if given.json:
            with given.json.open("a") as out:
                out.write(json.dumps(results[-1]) + "\n")
    report(results, given)


if __name__ == "__main__":
    main()
