"""The gate put together: the pair of a run, the gate before training, and files of every family in real servers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import vocabularies
from tests.conftest import ROOT
from tests.gguf_variants import TEMPLATE, write_variant
from twin import pipeline, prove
from twin.basemodel import BaseModel
from twin.errors import GateError, StepError, UsageError
from twin.gguf.server import find_server, serve
from twin.ollama.client import OllamaClient
from twin.ollama.register import Meant, register
from twin.presets import load_preset, plan_training
from twin.progress import Silent
from twin.records import Example, Turn
from twin.settings import TrainSettings, load_settings
from twin.templates import derive, gate, load_family
from twin.training.samples import build_samples
from twin.training.tokenizer import load_tokenizer

SERVED = [name for name in vocabularies.MODELS if name not in ("zephyr-7b-beta", "Qwen3-0.6B")]  # tokenizers of others


@pytest.fixture(scope="module", params=SERVED)
def made(request, tmp_path_factory):
    """A GGUF of random weights with a model's real tokenizer, made as twin makes them: the file, family and ids."""
    from twin.gguf.converter import find_converter
    from twin.gguf.hired import hire
    from twin.gguf.make import make

    folder = tmp_path_factory.mktemp("model")
    checkpoint = vocabularies.tiny(request.param, folder / "checkpoint")
    family = load_family(vocabularies.MODELS[request.param].family)
    ids = prove.training_ids(BaseModel(request.param, request.param, checkpoint), family)
    target = folder / "model-q8_0.gguf"
    prompts = [("a greeting", [Turn("user", "Hello there.")]), *gate.cases(family)]
    with hire(find_converter(None, Silent()), Silent()) as worker:
        make(worker, checkpoint, None, family, {"q8_0": target}, prompts, ids, None, Silent())
    return target, family, ids


@pytest.fixture(scope="session")
def llama_server(ollama_binary):
    found = find_server(Path(ollama_binary).resolve().parent.parent / "lib" / "ollama")
    assert found
    return found


@pytest.mark.ollama
def test_llama_server_and_ollama_ask_what_was_trained(made, llama_server, ollama, tmp_path):
    """Point C with the ids of the server itself, then registration with its live check, for each family."""
    file, family, ids = made
    with serve(llama_server, file) as server:
        prompts = list(gate.cases(family))
        assert gate.check_server(family, prompts, server.apply_template) == len(prompts)
        gate.check_ids(family, prompts[::5], ids, server.ids, server.piece)
        other = load_family("llama3" if family.name != "llama3" else "chatml")
        with pytest.raises(
            GateError, match=f"llama-server renders family '{other.name}' in another way for a user's turn"
        ):
            gate.check_server(other, prompts, server.apply_template)
    meant = Meant(family, "Be Ana.", {"temperature": 0.7, "num_ctx": 2048}, lambda turns: len(ids(turns)), ())
    with OllamaClient(ollama) as client:
        done = register(client, "tiny", file, meant, license_text="", force=True, reporter=Silent())
        assert done.checks["template"] == f"the {family.name} template is the one in use"
        assert done.checks["rendering"].endswith("byte for byte")
        client.delete("tiny")


# ---------------------------------------------------------------- which pair


def tokenizer_of(jinja, tokens=(), bos=None):
    """What is read of a transformers tokenizer to choose a pair."""
    added = dict(enumerate(tokens))
    return SimpleNamespace(chat_template=jinja, added_tokens_decoder=added, bos_token=bos, eos_token="</s>", ids=[])


class Tokenizer(SimpleNamespace):
    def __call__(self, text):
        return {"input_ids": self.ids}


def chosen(model, jinja, tokens=(), preset="smollm2-135m"):
    preset = load_preset(preset)
    plan = plan_training(TrainSettings(model=model), preset)
    tokenizer = Tokenizer(**vars(tokenizer_of(jinja, tokens)))
    return prove.family_for(preset, plan, BaseModel(model or plan.model, model or plan.model, Path()), tokenizer)


def test_the_presets_own_model_has_the_presets_family():
    assert chosen(None, None) == load_family("chatml")
    assert chosen(None, None, preset="gemma-2b") == load_family("gemma")


def test_another_model_has_the_pair_that_fits_it():
    assert chosen("someone/Llama-3.2-3B-Instruct", None) == load_family("llama3")
    assert chosen("someone/other", load_family("phi3").jinja, load_family("phi3").control_tokens) == load_family("phi3")
    own = load_family("zephyr").jinja.replace("<|", "<#")
    assert chosen("someone/other", own, ["</s>"]).name == derive.NAME
    assert chosen("someone/other", {"default": own}, ["</s>"]).name == derive.NAME
    assert chosen("a/folder", None) == load_family("chatml")  # nothing says anything: the preset's, which is gated
    with pytest.raises(GateError, match="which is no control token"):
        chosen("someone/other", own, ["<eos>"])


def test_a_run_keeps_the_pair_that_it_was_trained_with():
    pair = load_family("chatml").model_copy(update={"name": "derived", "stops": ["<|im_end|>", "<|im_start|>"]})
    record = json.loads(json.dumps({"family": "derived", "pair": pair.model_dump()}))
    assert prove.family_of(record) == pair
    assert prove.family_of({"family": "chatml"}) == load_family("chatml")  # of a version that kept the name alone
    with pytest.raises(UsageError, match="can't be read: jinja"):
        prove.family_of({"family": "chatml", "pair": {**pair.model_dump(), "jinja": 3}})
    with pytest.raises(UsageError, match="can't be read: "):
        prove.family_of({"family": "chatml", "pair": "chatml"})
    with pytest.raises(GateError, match="no verified pair"):
        prove.family_of({"family": "derived"})


def test_ids_that_differ_are_shown_side_by_side():
    family, pieces = load_family("chatml"), {1: b"yes", 2: b"\xc3", 3: b"\xa9"}
    prompts = [("a user's turn with x", [Turn("user", "x")])]
    assert gate.check_ids(family, prompts, lambda _: [1, 2], lambda text: [1, 2] if text else [], pieces.get) == 1
    for theirs, said in (([1, 3], "3 «\\ufffd»"), ([1], "<end>"), ([1, 2, 3], "3 «\\ufffd»")):
        with pytest.raises(GateError) as caught:
            gate.check_ids(family, prompts, lambda _: [1, 2], lambda text, ids=theirs: ids if text else [], pieces.get)
        begun = f"Training reads a prompt of family 'chatml' as 2 ids and llama.cpp as {len(theirs)}, for a user's turn"
        assert caught.value.message.startswith(f"{begun} with x, at id ")
        assert caught.value.message.endswith(f"llama.cpp {said}.")
        assert "(byte " in caught.value.message


def test_bos_twice_is_named_also_where_both_sides_have_it():
    family = load_family("chatml")
    prompts = [("a user's turn with x", [Turn("user", "x")])]
    served = lambda text: [1, 1, 7] if text else [1]  # noqa: E731
    with pytest.raises(GateError, match="begins with BOS twice, 1 «<s>» 1 «<s>», for a user's turn with x"):
        gate.check_ids(family, prompts, lambda _: [1, 1, 7], served, lambda _: b"<s>")
    once = lambda text: [1, 7] if text else [1]  # noqa: E731
    assert gate.check_ids(family, prompts, lambda _: [1, 7], once, lambda _: b"<s>") == 1


def test_the_end_of_a_reply():
    family = load_family("chatml")
    gate.check_end(family, lambda _: [2], lambda _: True)
    with pytest.raises(GateError, match="which is 3 ids in this vocabulary"):
        gate.check_end(family, lambda _: [1, 2, 3], lambda _: True)
    with pytest.raises(GateError, match="which is no end of generation in this vocabulary"):
        gate.check_end(family, lambda _: [2], lambda _: False)


# ---------------------------------------------------------------- what is learned


class Said(Silent):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


@pytest.mark.parametrize("name", ["llama.cpp", "the tokenizer"])
def test_every_sample_is_proved_with_or_without_llama_cpp(smollm2, monkeypatch, name):
    tokenizer, family = load_tokenizer(smollm2), load_family("chatml")
    rows = [
        Example(f"r{number}", "c", "chat", (Turn("user", f"day {number}?"), Turn("assistant", f"fine, {number}")))
        for number in range(7)
    ]
    built, reporter = build_samples(rows, tokenizer, family, 64), Said()
    if name == "the tokenizer":
        monkeypatch.setattr(prove, "find_spec", lambda package: None)

    def prove_all(learned, held_out):
        base = BaseModel("smollm2", "smollm2", smollm2)
        return prove.mask(base, family, tokenizer, learned, held_out, 64, load_settings(), reporter, 2)

    facts, shown, kept, measured = prove_all(
        built, replace(built, samples=built.samples[:3], origins=built.origins[:3])
    )
    assert (facts["read_by"], facts["samples"], facts["held_out"]) == (name, 7, 3)
    assert facts["supervised_tokens"] == sum(sample.supervised for sample in built.samples)
    assert [one.id for one in shown] == ["r0", "r1"]
    assert (kept, len(measured.samples), facts["unwritable"]) == (built, 3, 0)
    aloud = "llama-cpp-python is not installed: that the server reads these ids is not checked before training"
    assert any(line.startswith(aloud) for line in reporter.lines) == (name == "the tokenizer")
    last = replace(built.samples[-1], input_ids=built.samples[-1].input_ids[:-1])
    wrong = replace(built, samples=(*built.samples[:-1], last))
    for learned, held_out in ((wrong, None), (built, wrong)):
        with pytest.raises(GateError, match="The end token '<|im_end|>' of 'r6' is not learned".replace("|", r"\|")):
            prove_all(learned, held_out)


# ---------------------------------------------------------------- any GGUF


def vocabulary(source, target, jinja):
    return write_variant(source, target, {TEMPLATE: jinja}, vocabulary_only=True)


def check(*args, **options):
    return prove.check(*args, load_settings(), Silent(), **options)


def test_a_file_of_nobody_we_know(smollm2_gguf):
    done = check(smollm2_gguf)
    assert done.family == derive.NAME  # it has a default system prompt, which ours has not
    assert done.checks[smollm2_gguf.name] == {
        "template": "its Jinja gives a pair that passed",
        "end_token": "<|im_end|>",
    }


def test_a_jinja_that_ollama_would_render_itself(smollm2_gguf, tmp_path):
    file = vocabulary(smollm2_gguf, tmp_path / "tools.gguf", load_family("chatml").jinja + "{# tools #}")
    with pytest.raises(GateError) as caught:
        check(file)
    assert caught.value.message.startswith("'tools.gguf' says 'tools': Ollama would render it")
    assert "twin gguf" in caught.value.hint


def test_a_file_without_a_template(smollm2_gguf, tmp_path):
    with pytest.raises(GateError, match="has no chat template"):
        check(vocabulary(smollm2_gguf, tmp_path / "bare.gguf", ""))


PEERS = '''FROM ./model.gguf
# the usual one
TEMPLATE """{{ if .System }}<|im_start|>system
{{ .System }}<|im_end|>
{{ end }}{{ if .Prompt }}<|im_start|>user
{{ .Prompt }}<|im_end|>
{{ end }}<|im_start|>assistant
{{ .Response }}<|im_end|>
"""
PARAMETER stop "<|im_end|>"
'''


def test_a_modelfile_of_anybodys(smollm2_gguf, tmp_path):
    plain = vocabulary(smollm2_gguf, tmp_path / "m.gguf", load_family("chatml").jinja)
    modelfile = tmp_path / "Modelfile"
    modelfile.write_text(PEERS)
    done = check(plain, modelfile=modelfile)
    assert done.checks["m.gguf"] == {
        "template": "its Jinja is chatml's",
        "end_token": "<|im_end|>",
        "modelfile": "54 prompts, byte for byte",
        "stops": "<|im_end|>",
    }
    modelfile.write_text(PEERS.replace("<|im_start|>assistant\n", "<|im_start|>assistant"))
    with pytest.raises(
        GateError, match="would not ask what the model was trained on: for a user's turn with plain text, at"
    ):
        check(plain, modelfile=modelfile)
    for line in ("RENDERER qwen3-coder", "PARSER qwen3-coder", "MESSAGE user hi", "ADAPTER ./x.gguf"):
        modelfile.write_text(f"{PEERS}{line}\n")
        with pytest.raises(GateError, match=f"has {line.split()[0]}, so what is asked is not its TEMPLATE"):
            check(plain, modelfile=modelfile)
    modelfile.write_text(f"{PEERS}PARAMETER stop e\n")
    with pytest.raises(GateError, match="stops at 'e', which stands in ordinary text"):
        check(plain, modelfile=modelfile)
    modelfile.write_text("FROM ./model.gguf\n")
    with pytest.raises(GateError, match="has no TEMPLATE: Ollama would pick one"):
        check(plain, modelfile=modelfile)
    with pytest.raises(UsageError, match="--modelfile judges a Modelfile for a GGUF"):
        check(None, modelfile=modelfile)


def test_a_template_that_never_ends_or_is_no_text(smollm2_gguf, tmp_path):
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(GateError, match="it counts without end"):
        check(vocabulary(smollm2_gguf, tmp_path / "loop.gguf", loop))
    file = vocabulary(smollm2_gguf, tmp_path / "bytes.gguf", "ABCDEFGHIJKLMNOP")
    file.write_bytes(file.read_bytes().replace(b"ABCDEFGHIJKLMNOP", b"\xff\xfe{{" * 4))
    with pytest.raises(UsageError, match="is no UTF-8 text"):
        check(file)


@pytest.mark.parametrize("dataset", ["x", {"val": "x"}, {"val": {"path": 5}}, {"val": {"path": "x"}}, {}, None])
def test_an_odd_record_of_rows_is_no_rows(dataset):
    assert prove.prompts_of({"dataset": dataset}, load_settings()) == []


@pytest.mark.parametrize("content", [b"", b"x", b"GGUF", b"GGUF" + b"\xff" * 400])
def test_what_is_no_gguf(content, tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    with pytest.raises(UsageError, match="is no GGUF, or it is cut short"):
        check(file)


def test_a_file_that_is_cut(smollm2_gguf, tmp_path):
    for size in (100, 10_000, 1_000_000):
        file = tmp_path / "model.gguf"
        file.write_bytes(smollm2_gguf.read_bytes()[:size])
        with pytest.raises((UsageError, StepError)):
            check(file)


def test_nothing_there():
    with pytest.raises(UsageError, match="There is nothing at 'nowhere'"):
        check(Path("nowhere"))
    with pytest.raises(UsageError, match="There is no finished run"):
        check(None)


def test_the_refusal_that_the_readme_shows(smollm2_gguf, tmp_path):
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
    modelfile = tmp_path / "Modelfile"
    modelfile.write_text(PEERS)
    with pytest.raises(GateError) as caught:
        check(smollm2_gguf, modelfile=modelfile)
    said = caught.value.message.replace(str(modelfile), "Modelfile")
    assert f"Error: {said} Hint: {caught.value.hint}" in readme


# ---------------------------------------------------------------- another family, the whole road


@pytest.mark.slow
def test_a_preset_of_another_family_is_trained_made_and_checked(isolated):
    """Phi-3 with two layers of random weights: fused projections, a window, blanks that its tokens drop."""
    base = vocabularies.tiny("Phi-3-mini-4k-instruct", isolated / "Phi-3-mini-tiny")
    rows = [
        {"messages": [{"role": "system", "content": "Be Ana."}, {"role": "user", "content": f"how is day {number}?"},
                      {"role": "assistant", "content": f"fine, {number} of them.. ½"}]}
        for number in range(24)
    ]  # fmt: skip
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"preset": "phi-3-mini", "model": str(base), "dataset": Path("rows.jsonl"), "epochs": 1, "name": "phi"}
    settings = load_settings(train=given, gguf={"quantization": ["q8_0"]})
    done = pipeline.train(settings, Silent())
    assert done.record["family"] == "phi3"
    assert done.record["pair"]["gguf_name"] == "phi-3"
    (made,) = pipeline.gguf(None, settings, Silent()).files
    assert made["checks"]["template"] == "family phi3, byte for byte"
    passed = prove.check(None, settings, Silent()).checks
    assert passed["adapter"]["ids"].endswith("prompts, the same in llama.cpp")
    assert passed["model-q8_0.gguf"]["end_token"] == "<|end|>"
    weights = done.paths.adapter_weights
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(GateError, match="was not made of the adapter that is there now"):
        prove.check(None, settings, Silent())
