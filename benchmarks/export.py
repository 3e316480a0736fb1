"""``twin export`` on generated chats: seconds and memory by size, beside parse + write alone and beside a peer.

Run: ``python benchmarks/export.py [--pairs 1000000] [--more 4000000] [--peer-pairs 200000]``

The peer is datatrove (https://github.com/huggingface/datatrove, in a folder of its own): JSONL reader, MinHash
signatures, buckets, clusters and filter, PII formatter (e-mails and IP addresses), JSONL writer, on as many processes.
It does less: no conversations, no context, no split, no phones, cards, IBANs, secrets. Memory is the largest resident
set of the process and that of its largest child times the number of children, added.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

from generate_chats import generate

CHILD = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE)
use = resource.getrusage(resource.RUSAGE_CHILDREN)
sys.stderr.flush()
print(json.dumps({"seconds": time.perf_counter() - started, "cpu": use.ru_utime + use.ru_stime, "code": done.returncode,
                  "peak_mb": use.ru_maxrss / 1024, "out": done.stdout.decode()}))
"""
PEER = """
import sys
from loguru import logger
logger.remove()
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import minhash as m
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.word_tokenizers import WordTokenizer

source, work, processes = sys.argv[1], sys.argv[2], int(sys.argv[3])
config = m.MinhashConfig(n_grams=2, num_buckets=5, hashes_per_bucket=4)

class Words(WordTokenizer):  # quicker than any of its own, which load spaCy
    def word_tokenize(self, text):
        return text.split()

    def sent_tokenize(self, text):
        return [text]

    def span_tokenize(self, text):
        return [(0, len(text))]

words = Words()

def adapt(self, data, path, number):
    return {"text": data["context"] + "\\n" + data["response"], "id": f"{path}/{number}", "metadata": {}}

def reader():
    return JsonlReader(source, glob_pattern="*.jsonl", adapter=adapt, doc_progress=False)

def run(pipeline, tasks, name):
    LocalPipelineExecutor(pipeline=pipeline, tasks=tasks, workers=processes, logging_dir=f"{work}/logs/{name}").run()

if __name__ == "__main__":
    run([reader(), m.MinhashDedupSignature(f"{work}/sig", config=config, language=words)], processes, "sig")
    run([m.MinhashDedupBuckets(f"{work}/sig", f"{work}/buckets", config=config)], config.num_buckets, "buckets")
    run([m.MinhashDedupCluster(f"{work}/buckets", f"{work}/remove", config=config)], 1, "cluster")
    out = JsonlWriter(f"{work}/out", compression=None)
    run([reader(), m.MinhashDedupFilter(f"{work}/remove"), PIIFormatter(), out], processes, "filter")
"""
PARSE_AND_WRITE = """
import sys
from pathlib import Path
import orjson
with open(sys.argv[2], "wb") as out:
    for file in sorted(Path(sys.argv[1]).glob("*.jsonl")):
        with file.open("rb") as handle:
            for line in handle:
                row = orjson.loads(line)
                turns = [{"role": "user", "content": row["context"]}, {"role": "assistant", "content": row["response"]}]
                out.write(orjson.dumps({"messages": turns}) + b"\\n")
"""


def timed(*command: str, cwd: Path | None = None) -> dict:
    """Run a command in a process of its own; return its seconds, CPU seconds and the largest resident set in MB."""
    done = subprocess.run([sys.executable, "-c", CHILD, *command], cwd=cwd, stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout)
    if found["code"]:
        raise SystemExit(f"{' '.join(command[:4])} failed with {found['code']}")
    return found


def export(project: Path, processes: int, output: str = "data") -> dict:
    """Export a generated brain; ``rss_mb`` is the whole of it: this process and its children."""
    code = (
        "import json, resource, sys\nfrom pathlib import Path\n"
        "if __name__ == '__main__':\n"
        "    from twin import curate\n    from twin.progress import Silent\n"
        "    from twin.settings import load_settings\n"
        "    own = {'person': 'Me Myself', 'processes': int(sys.argv[1]), 'output': Path(sys.argv[2])}\n"
        "    done = curate.export([], load_settings(export=own), Silent()).as_json()\n"
        "    here, there = (resource.getrusage(who).ru_maxrss / 1024 for who in (0, -1))\n"
        "    done['rss_mb'] = here + (there * int(sys.argv[1]) if int(sys.argv[1]) > 1 else 0)\n"
        "    print(json.dumps(done))\n"
    )
    script = project / "run_export.py"
    script.write_text(code, "utf-8")
    found = timed(sys.executable, str(script), str(processes), output, cwd=project)
    return found | json.loads(found["out"])


def peer(project: Path, folder: Path, processes: int) -> dict:
    """Run datatrove on the same rows."""
    home = folder / "peer"
    if not home.exists():
        venv.create(home, with_pip=True)
        python = home / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "-q", "datatrove[processing,io]==0.10.1"], check=True)
    script = folder / "peer.py"
    script.write_text(PEER, "utf-8")
    work = folder / "peer-work"
    shutil.rmtree(work, ignore_errors=True)
    command = (str(home / "bin" / "python"), str(script), str(project / "brain"), str(work), str(processes))
    found = timed(*command)
    kept = sum(1 for file in (work / "out").glob("*.jsonl*") for _ in file.open("rb"))
    return found | {"kept": kept}


def _line(number: int) -> str:
    who, minute = ("Bo", "Me Myself")[number % 2], number // 6
    day, hour = minute // 1440, minute // 60 % 24
    date = f"{day % 28 + 1:02}/{day // 28 % 12 + 1:02}/{2000 + day // 336}"
    words = f"{number * 2654435761 % 2**32:x} said {number * 40503 % 65536:x} and so on, at length"
    return f"{date}, {hour:02}:{minute % 60:02} - {who}: {words}\n"


def big_zip(folder: Path, size: int, text_bytes: int) -> Path:
    """Write a WhatsApp chat with that much text and media up to ``size`` in a zip; return its project."""
    path = folder / f"zip-{text_bytes}" / "brain" / "WhatsApp Chat with Bo.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("WhatsApp Chat with Bo.txt", "w", force_zip64=True) as text:
            written = first = 0
            while written < text_bytes:
                block = "".join(map(_line, range(first, first + 20_000))).encode()
                text.write(block)
                written += len(block)
                first += 20_000
        media = os.urandom(32 << 20)
        for number in range((size - path.stat().st_size) // len(media)):
            archive.writestr(f"VID-{number:05}.mp4", media, zipfile.ZIP_STORED)
    return path.parents[1]


READ = """
import json, resource, time
from pathlib import Path
from twin import brain
started = time.perf_counter()
count = sum(len(one.messages) for one in brain.load([Path("brain")], "Me Myself").conversations())
print(json.dumps({"messages": count, "seconds": time.perf_counter() - started,
                  "mb": resource.getrusage(0).ru_maxrss / 1024}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--more", type=int, default=4_000_000, help="a larger size, for growth; 0: none")
    parser.add_argument("--peer-pairs", type=int, default=200_000, help="the peer's size; 0: no peer")
    parser.add_argument("--zip-bytes", type=int, default=2 << 30, help="size of a WhatsApp zip, media most; 0: none")
    parser.add_argument("--text-bytes", type=int, default=2 << 30, help="text of another, read alone; 0: none")
    parser.add_argument("--folder", type=Path, help="where to work; kept. Default: a temporary folder")
    asked = parser.parse_args()
    processes = os.cpu_count() or 1
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="twin-bench-"))
    sizes = sorted({size for size in (asked.peer_pairs, asked.pairs, asked.more) if size})
    print(f"{processes} processors; load before: {os.getloadavg()[0]:.2f}")
    print(f"{'pairs':>9} {'seconds':>8} {'CPU s':>7} {'us/pair':>8} {'MB':>7}  rows")
    found = {}
    for size in sizes:
        project = folder / str(size)
        if not (project / "brain").exists():
            generate(project / "brain", size)
        one = found[size] = export(project, processes)
        rows = f"{one['rows']['train']} + {one['rows']['val']}, redacted {sum(one['redacted'].values())}"
        micro = one["seconds"] / size * 1e6
        print(f"{size:>9} {one['seconds']:>8.1f} {one['cpu']:>7.1f} {micro:>8.1f} {one['rss_mb']:>7.0f}  {rows}")
    project = folder / str(asked.pairs)
    bare = timed(sys.executable, "-c", PARSE_AND_WRITE, str(project / "brain"), str(folder / "bare.jsonl"))
    print(f"parse + write alone, one process: {bare['seconds']:.1f} s; twin takes", end=" ")
    print(f"{found[asked.pairs]['seconds'] / bare['seconds']:.1f} times that on {processes}")
    single = export(project, 1, "single")
    names = ("train.jsonl", "val.jsonl", "finetune_dataset.jsonl")
    same = all(filecmp.cmp(project / "data" / name, project / "single" / name, shallow=False) for name in names)
    print(f"one process: {single['seconds']:.1f} s, {single['rss_mb']:.0f} MB; byte-identical: {same}")
    if asked.peer_pairs:
        other = peer(folder / str(asked.peer_pairs), folder, processes)
        ratio = other["seconds"] / found[asked.peer_pairs]["seconds"]
        print(f"datatrove, {asked.peer_pairs} pairs: {other['seconds']:.1f} s", end=", ")
        print(f"{ratio:.1f} times twin's; keeps {other['kept']}")
    if asked.zip_bytes:
        project = big_zip(folder, asked.zip_bytes, 20_000_000)
        packed = export(project, 1)
        print(f"a WhatsApp zip of {asked.zip_bytes / 2**30:.1f} GiB with 20 MB of text:", end=" ")
        print(f"{packed['seconds']:.0f} s, {packed['rss_mb']:.0f} MB, {packed['rows']['total']} rows")
        shutil.rmtree(project)
    if asked.text_bytes:
        project = big_zip(folder, 0, asked.text_bytes)
        read = json.loads(timed(sys.executable, "-c", READ, cwd=project)["out"])
        print(f"{asked.text_bytes / 2**30:.1f} GiB of WhatsApp text in a zip, read alone:", end=" ")
        print(f"{read['seconds']:.0f} s, {read['mb']:.0f} MB, {read['messages']} messages")
        shutil.rmtree(project)
    if not asked.folder:
        shutil.rmtree(folder)
    print(f"largest resident set of this benchmark itself: {resource.getrusage(0).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
