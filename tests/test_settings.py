"""flag > TWIN_* > twin.toml > default; a typo anywhere is an error that names the nearest key."""

import os
from pathlib import Path

import pytest

from twin.errors import UsageError
from twin.settings import SETTINGS_FILE, load_settings


def toml(text):
    Path(SETTINGS_FILE).write_text(text, "utf-8")


def refusal(**flags):
    with pytest.raises(UsageError) as caught:
        load_settings(**flags)
    assert caught.value.exit_code == 2
    return caught.value.message, caught.value.hint


def test_defaults():
    settings = load_settings()
    assert (settings.export.format, settings.export.output, settings.export.validation_split) == (
        "chatml",
        Path("data"),
        0.1,
    )
    assert (settings.train.preset, settings.train.epochs, settings.train.seed) == ("smollm2-135m", None, 0)
    assert settings.gguf.quantization == ["q4_k_m"]
    assert settings.ollama.host is None


def test_flag_beats_environment_beats_file_key_by_key(monkeypatch):
    toml("[train]\nepochs = 5\nlora_r = 4\nbatch_size = 2\n")
    monkeypatch.setenv("TWIN_TRAIN__EPOCHS", "3")
    monkeypatch.setenv("TWIN_TRAIN__LORA_R", "6")
    train = load_settings(train={"epochs": 7, "lora_r": None}).train
    assert (train.epochs, train.lora_r, train.batch_size) == (7, 6, 2)


def test_an_empty_list_flag_means_not_given():
    toml('[gguf]\nquantization = ["q8_0", "f16"]\n')
    assert load_settings(gguf={"quantization": []}).gguf.quantization == ["q8_0", "f16"]
    assert load_settings(gguf={"quantization": ["q4_0"]}).gguf.quantization == ["q4_0"]


def test_environment_is_case_insensitive(monkeypatch):
    monkeypatch.setenv("twin_train__epochs", "4")
    assert load_settings().train.epochs == 4


def test_every_section_and_type_from_the_file():
    toml(
        '[export]\nperson = "Ana"\nsplit_by = "time"\ninclude_system = false\noutput = "out"\n'
        '[train]\nlearning_rate = 1e-4\n[gguf]\nllama_cpp = "/src/llama.cpp"\n[ollama]\nhost = "box:11434"\n'
    )
    settings = load_settings()
    assert (settings.export.person, settings.export.split_by, settings.export.include_system) == ("Ana", "time", False)
    assert (settings.export.output, settings.gguf.llama_cpp) == (Path("out"), Path("/src/llama.cpp"))
    assert (settings.train.learning_rate, settings.ollama.host) == (1e-4, "box:11434")


def test_settings_are_frozen():
    settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.train = settings.train


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[train]\nepoch = 5\n", "'twin.toml' has an unknown key 'epoch' in [train].", "Did you mean 'epochs'?"),
        ("[trian]\nepochs = 5\n", "'twin.toml' has an unknown table or key 'trian'.", "Did you mean 'train'?"),
        (
            "qqq = 1\n",
            "'twin.toml' has an unknown table or key 'qqq'.",
            "Known: app, columns, export, gguf, ollama, people, serve, train.",
        ),
        ("train = 5\n", "'train' in 'twin.toml' should be a table.", "Write [train] and its keys below."),
        (
            "[train\n",
            "'twin.toml' is not TOML: Expected ']' at the end of a table declaration (at line 1, column 7).",
            "See https://toml.io for the format.",
        ),
        (
            '[train]\nepochs = "three"\n',
            "train.epochs can't be 'three'.",
            "It should be a valid number, unable to parse string as a number.",
        ),
        ('[gguf]\nquantization = ["a", 3]\n', "gguf.quantization.1 can't be 3.", "It should be a valid string."),
    ],
)
def test_a_broken_file(text, message, hint):
    toml(text)
    assert refusal() == (message, hint)


@pytest.mark.parametrize("name", ["da\0ta", "da\udcffta"], ids=["NUL", "no UTF-8"])
def test_a_path_that_cannot_be(name, monkeypatch):
    hint = "It should be a path in UTF-8, without a NUL character."
    assert refusal(export={"output": Path(name)}) == (f"export.output can't be {name!r}.", hint)
    assert refusal(train={"dataset": Path(name)}) == (f"train.dataset can't be {name!r}.", hint)
    toml('[export]\noutput = "da\\u0000ta"\n')
    assert refusal() == ("export.output can't be 'da\\x00ta'.", hint)


def test_a_file_in_another_encoding():
    Path(SETTINGS_FILE).write_bytes("# café\n".encode("latin-1"))
    assert refusal() == (
        "'twin.toml' is not UTF-8 text (byte 5 can't be decoded).",
        "Save it again as UTF-8; in most editors: Save as, Encoding, UTF-8.",
    )


def test_a_folder_in_the_files_place():
    Path(SETTINGS_FILE).mkdir()
    assert refusal() == ("'twin.toml' is a folder where a file was expected.", "Name a file inside it.")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file():
    toml("[train]\n")
    Path(SETTINGS_FILE).chmod(0)
    assert refusal() == ("No permission to read 'twin.toml'.", "See its owner and mode: ls -l 'twin.toml'")


def test_an_unknown_variable(monkeypatch):
    monkeypatch.setenv("TWIN_TRAIN__EPOCH", "2")
    message, hint = refusal()
    assert message == "The environment has an unknown variable 'TWIN_TRAIN__EPOCH'."
    assert hint.startswith("Did you mean 'TWIN_TRAIN__EPOCHS'")


@pytest.mark.parametrize(
    ("section", "key", "value", "message", "hint"),
    [
        ("export", "validation_split", 0.9, "export.validation_split can't be 0.9.", "less than or equal to 0.5"),
        ("export", "validation_split", -1, "export.validation_split can't be -1.", "greater than or equal to 0"),
        ("export", "context_turns", 0, "export.context_turns can't be 0.", "greater than or equal to 1"),
        ("export", "session_gap_hours", 0, "export.session_gap_hours can't be 0.", "greater than 0"),
        ("export", "seed", -1, "export.seed can't be -1.", "greater than or equal to 0"),
        ("train", "learning_rate", 1, "train.learning_rate can't be 1.", "less than 1"),
        ("train", "batch_size", 0, "train.batch_size can't be 0.", "greater than or equal to 1"),
        ("train", "max_length", 63, "train.max_length can't be 63.", "greater than or equal to 64"),
        ("train", "epochs", float("inf"), "train.epochs can't be inf.", "less than or equal to 1000"),
        ("ollama", "temperature", 3, "ollama.temperature can't be 3.", "less than or equal to 2"),
        ("ollama", "num_ctx", 8, "ollama.num_ctx can't be 8.", "greater than or equal to 256"),
    ],
)
def test_a_value_out_of_range(section, key, value, message, hint):
    assert refusal(**{section: {key: value}}) == (message, f"It should be {hint}.")


@pytest.mark.parametrize(
    ("section", "key", "value", "message", "hint"),
    [
        ("export", "format", "alpacca", "'alpacca' is no export.format.", "Did you mean 'alpaca'?"),
        ("train", "device", "tpu", "'tpu' is no train.device.", "Did you mean 'cpu'?"),
        ("export", "split_by", "xyz", "'xyz' is no export.split_by.", "Known: seed, time."),
    ],
)
def test_a_word_that_is_no_choice(section, key, value, message, hint):
    assert refusal(**{section: {key: value}}) == (message, hint)


def test_a_bad_value_in_the_environment(monkeypatch):
    monkeypatch.setenv("TWIN_EXPORT__FORMAT", "shargpt")
    assert refusal() == ("'shargpt' is no export.format.", "Did you mean 'sharegpt'?")


def test_the_ollama_section_is_read_from_the_environment(monkeypatch):
    monkeypatch.setenv("TWIN_OLLAMA__HOST", "box:11434")
    assert load_settings().ollama.host == "box:11434"


def test_a_foreign_variable_named_register_is_not_ours(monkeypatch):
    monkeypatch.setenv("REGISTER__HOST", "elsewhere:1")
    assert load_settings().ollama.host is None


def test_a_quantization_in_the_environment(monkeypatch):
    monkeypatch.setenv("TWIN_GGUF__QUANTIZATION", '["q8_0"]')
    assert load_settings().gguf.quantization == ["q8_0"]
    monkeypatch.setenv("TWIN_GGUF__QUANTIZATION", "q8_0")
    with pytest.raises(UsageError, match="A list in the environment is not JSON"):
        load_settings()


def test_an_empty_list_in_the_file_has_a_hint_in_english():
    toml("[gguf]\nquantization = []\n")
    message, hint = refusal()
    assert message == "gguf.quantization can't be []."
    assert "be List should" not in hint


def test_the_variable_of_the_converter_is_known(monkeypatch):
    monkeypatch.setenv("TWIN_LLAMA_CPP", "/src/llama.cpp")
    assert load_settings().gguf.llama_cpp == Path("/src/llama.cpp")
