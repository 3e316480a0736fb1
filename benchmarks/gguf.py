"""Seconds, memory and bytes written from a base model and an adapter to a quantized GGUF: twin and the usual way.

    python benchmarks/gguf.py [--size 1.1] [-q q4_k_m] [--rounds 1] [--folder DIR] [--base DIR --adapter DIR]

What is the same for all: the base model (random weights in bfloat16 in the shapes of SmolLM2-135M, TinyLlama 1.1B or
Llama 3.2 3B, made here, with SmolLM2's tokenizer), the adapter (random, rank 16, all seven linear layers), the
quantization, the library that quantizes. Each is a process of its own and they take turns.

- twin: ``twin gguf``, as typed, the check of the finished file included.
- both (``--and q8_0``): the same with a second quantization.
- peer: what tutorials do: PEFT's ``merge_and_unload`` in the base's own dtype and ``save_pretrained``,
  ``convert_hf_to_gguf.py`` to float16, ``llama_model_quantize``. Nothing is checked.
- reference: ``llama_model_quantize`` alone, of the float16 file that the peer left: what no way can do without.

"peak memory" is the largest sum of resident sizes of a process and all its children, looked at twenty times a second;
pages of a mapped file count, each time they are mapped. "but GGUFs" leaves out pages of mapped GGUFs, which the system
takes back when it needs them (Linux): the finished file, where twin lets it answer; the float16 file, where it is
quantized. "written" is what the system counts for them (Linux), files that are gone in the end included. "CPU s" are of
all of them; read these where others use the machine ("others").
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

VARIANTS = ("twin", "both", "peer", "reference")
RANK = 16
SHAPES: dict[str, dict[str, Any]] = {
    "0.1": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    },
    "1.1": {
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
        "num_key_value_heads": 4, "vocab_size": 49152, "tie_word_embeddings": False,
    },
    "3": {
        "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
        "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True,
    },
}  # fmt: skip


def make_base(folder: Path, shape: dict[str, Any]) -> None:
    """Save random weights in ``shape`` with SmolLM2's tokenizer, in files of at most 2 GB."""
    import torch
    import transformers

    from twin import basemodel
    from twin.progress import Silent

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = transformers.LlamaConfig(
        **shape, max_position_embeddings=8192, bos_token_id=1, eos_token_id=2, pad_token_id=2, dtype="bfloat16"
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="2GB")
    tokenizer = basemodel.resolve(basemodel.SMOLLM2, Silent()).folder
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(tokenizer / name, folder / name)


def make_adapter(folder: Path, base: Path) -> None:
    """Save a random LoRA of every linear layer, of which no part is zero."""
    import peft
    import torch
    from safetensors.torch import save_file

    config = json.loads((base / "config.json").read_text())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    narrow = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (hidden, narrow),
        "self_attn.v_proj": (hidden, narrow), "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (hidden, inner), "mlp.up_proj": (hidden, inner), "mlp.down_proj": (inner, hidden),
    }  # fmt: skip
    torch.manual_seed(1)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for module, (inputs, outputs) in shapes.items():
            place = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{place}.lora_A.weight"] = torch.randn(RANK, inputs) / inputs**0.5
            tensors[f"{place}.lora_B.weight"] = torch.randn(outputs, RANK) * 0.005
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    modules = [module.split(".")[1] for module in shapes]
    peft.LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules=modules, task_type="CAUSAL_LM", base_model_name_or_path=str(base)
    ).save_pretrained(folder)


def make_run(folder: Path, adapter: Path, base: Path) -> None:
    """Lay out the folder that ``twin train`` would have left of an adapter."""
    folder.mkdir(parents=True)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (folder / name).symlink_to(adapter.resolve() / name)
    plan = {"license": "apache-2.0", "max_length": 1024, "num_ctx": 2048, "temperature": 0.8}
    config = json.loads((adapter / "adapter_config.json").read_text())
    plan |= {"lora_r": config["r"], "lora_alpha": config["lora_alpha"], "target_modules": config["target_modules"]}
    record = {"base_model": str(base), "base_hub_id": "", "family": "chatml", "system_prompt": "", "result": {}}
    (folder / "run.json").write_text(json.dumps(record | {"plan": plan}))


def peer(base: Path, adapter: Path, plain: Path, target: Path, quantization: str) -> None:
    """Merge, save, convert, quantize."""
    import peft
    import transformers

    from twin.gguf.converter import find_converter
    from twin.progress import Silent

    with tempfile.TemporaryDirectory(dir=target.parent) as merged:
        model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype="auto")
        model = peft.PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
        model.save_pretrained(merged)
        transformers.AutoTokenizer.from_pretrained(base).save_pretrained(merged)
        del model
        script = find_converter(None, Silent())
        environment = os.environ | {"PYTHONPATH": str(script.parent / "gguf-py")}
        command = [sys.executable, str(script), merged, "--outfile", str(plain), "--outtype", "f16"]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    reference(plain, target, quantization)


def reference(plain: Path, target: Path, quantization: str) -> None:
    """Quantize a float16 file, as llama.cpp does it."""
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{quantization.upper()}")
    if llama_cpp.llama_model_quantize(str(plain).encode(), str(target).encode(), ctypes.byref(parameters)):
        sys.exit("llama.cpp could not quantize.")


def busy_seconds() -> float:
    """Return how long the machine's cores have worked, for anybody."""
    told = psutil.cpu_times()
    return sum(told) - told.idle - getattr(told, "iowait", 0.0) - getattr(told, "guest", 0.0)


def watched(command: list[str]) -> dict[str, Any]:
    """Run a command and return its seconds, CPU seconds, peak memory and bytes written, its children's included."""
    used, began, busy = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), busy_seconds()
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    peak, own, written = 0, 0, 0
    with tempfile.TemporaryFile("w+") as log:
        process = psutil.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            held = counted = 0
            members = family(process)
            for one in members:
                try:
                    held += one.memory_info().rss
                    # What a child wrote that has ended is among its parent's.
                    counted += one.io_counters().write_bytes if hasattr(one, "io_counters") else 0
                except psutil.Error:  # it has ended
                    continue
            peak, written = max(peak, held), max(written, counted)
            if held > own:
                own = max(own, sum(map(beside_ggufs, members)))
            time.sleep(0.05)
        seconds = time.perf_counter() - began
        if process.returncode:
            log.seek(0)
            sys.exit(f"{' '.join(command[:4])} failed:\n{log.read()[-3000:]}")
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    others = (busy_seconds() - busy - cpu) / (seconds * (os.cpu_count() or 1))
    return {"seconds": seconds, "cpu": cpu, "peak": peak, "own": own, "written": written, "others": max(others, 0.0)}


def beside_ggufs(process: psutil.Process) -> int:
    """Return a process's resident bytes without those of GGUFs that it maps."""
    try:
        return sum(one.rss for one in process.memory_maps() if not one.path.endswith(".gguf"))
    except psutil.Error:  # it has ended
        return 0
    except AttributeError:  # macOS tells nobody
        return int(process.memory_info().rss)


def family(process: psutil.Process) -> list[psutil.Process]:
    """Return a process and all that it has begun."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def report(results: dict[str, list[dict[str, Any]]]) -> None:
    """Print the best round of each, and how many times twin's each is."""
    best = {name: min(found, key=lambda one: one["seconds"]) for name, found in results.items()}
    heads = {"seconds": 9, "each round": 16, "CPU s": 8, "others": 8, "peak memory": 13, "but GGUFs": 13, "written": 11}
    print(" " * 11 + "".join(f"{head:>{width}}" for head, width in heads.items()))
    for name, one in best.items():
        rounds = " ".join(f"{other['seconds']:.1f}" for other in results[name])
        print(
            f"{name:<11}{one['seconds']:>9.1f}{rounds:>16}{one['cpu']:>8.1f}{one['others']:>8.0%}"
            f"{one['peak'] / 1e9:>10.2f} GB{one['own'] / 1e9:>10.2f} GB{one['written'] / 1e9:>8.2f} GB"
        )
    if "twin" not in best:
        return
    for name in [name for name in best if name != "twin"]:
        parts = ("seconds", "cpu", "peak", "own", "written")
        told = ", ".join(f"{part} {best[name][part] / max(best['twin'][part], 1e-9):.2f}" for part in parts)
        print(f"{name} / twin: {told}")


def compare(given: argparse.Namespace, work: Path) -> None:
    """Make what is missing, and let the variants take turns."""
    base, adapter = given.base or work / "base", given.adapter or work / "adapter"
    if not base.exists():
        make_base(base, SHAPES[given.size])
    if not adapter.exists():
        make_adapter(adapter, base)
    run, plain, quantization = work / "run", work / "plain.gguf", given.quantization
    if not run.exists():
        make_run(run, adapter, base)
    script = [sys.executable, __file__, "--base", str(base), "--adapter", str(adapter), "-q", quantization]
    typed = [sys.executable, "-m", "twin", "gguf", str(run), "--base", str(base), "-q", quantization]
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS if name in given.only}
    if not given.second:
        results.pop("both", None)
    for _ in range(given.rounds):
        for name, found in results.items():
            target = work / f"{name}.gguf"
            own = [*script, "--variant", name, "--plain", str(plain), "--target", str(target)]
            by_twin = {"twin": [*typed, "--output", str(target)], "both": [*typed, "-q", given.second]}
            found.append(watched(by_twin.get(name, own)))
            made = [target, *run.glob("model-*.gguf")]
            for file in filter(Path.exists, made):
                print(f"{name}: {file.stat().st_size:,} bytes", file=sys.stderr)
                file.unlink()
    print(
        f"{sum(file.stat().st_size for file in base.glob('*.safetensors')) / 1e9:.2f} GB of weights to {quantization}"
    )
    report(results)


def main() -> None:
    parser = argparse.ArgumentParser(description="From an adapter to a GGUF: twin, the usual way, the quantizer alone.")
    parser.add_argument("--size", choices=SHAPES, default="1.1", help="billions of weights")
    parser.add_argument("-q", "--quantization", default="q4_k_m")
    parser.add_argument("--and", dest="second", metavar="QUANTIZATION", help="measure both in one pass too")
    parser.add_argument("--rounds", type=int, default=1, help="how often each is run; they take turns")
    parser.add_argument("--folder", type=Path, help="keep what is made here, models too, and use it the next time")
    parser.add_argument("--base", type=Path, help="a checkpoint to use in place of random weights")
    parser.add_argument("--adapter", type=Path, help="an adapter of it")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=VARIANTS, help="'reference' needs 'peer'")
    parser.add_argument("--variant", choices=VARIANTS[2:], help=argparse.SUPPRESS)
    parser.add_argument("--plain", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--target", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.variant == "peer":
        peer(given.base, given.adapter, given.plain, given.target, given.quantization)
    elif given.variant == "reference":
        reference(given.plain, given.target, given.quantization)
    elif given.folder:
        given.folder.mkdir(parents=True, exist_ok=True)
        compare(given, given.folder)
    else:
        with tempfile.TemporaryDirectory() as folder:
            compare(given, Path(folder))


if __name__ == "__main__":
    main()
