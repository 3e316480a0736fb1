"""The four formats as others read them: TRL's own functions, and the rules of LLaMA-Factory and axolotl.

Those rules are written down in ``others/``, with version and source. What is read is an export of the sample person, by
the settings of docs/formats.md, which also says how their own code was tried.
"""

import io
import re
import runpy
from dataclasses import replace
from functools import partial
from pathlib import Path

import orjson
import pyarrow.json
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from twin import curate
from twin.dataset.formats import WRITERS, read_rows, to_line
from twin.progress import Silent
from twin.records import Example, Turn
from twin.settings import load_settings
from twin.templates import load_family, render
from twin.training.samples import build_samples

DOCS = (Path(__file__).parents[2] / "docs" / "formats.md").read_text("utf-8")
RULES = {path.stem: orjson.loads(path.read_bytes()) for path in (Path(__file__).parent / "others").glob("*.json")}
CHATML = load_family("chatml")
SIDES = ("user", "assistant")
TEXTS = dict.fromkeys(("id", "conversation", "kind"), "string")
COLUMNS = {
    "chatml": {"messages": "list<item: struct<role: string, content: string>>"},
    "alpaca": dict.fromkeys(("system", "instruction", "input", "output"), "string")
    | {"history": "list<item: list<item: string>>"},
    "sharegpt": {"system": "string", "conversations": "list<item: struct<from: string, value: string>>"},
    "raw": {"text": "string", "spans": "list<item: struct<role: string, start: int64, stop: int64>>"},
}


def block(language):
    """Return the code in docs/formats.md that is of a language."""
    [code] = re.findall(rf"```{language}\n(.*?)```", DOCS, re.DOTALL)
    return code


LLAMAFACTORY = {name.removeprefix("twin_"): entry for name, entry in orjson.loads(block("json")).items()}
AXOLOTL = dict(zip(re.findall(r"# (\w+)\n", block("yaml")), yaml.safe_load(block("yaml"))["datasets"], strict=True))


# ---------------------------------------------------------------- rows to read

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
said = words.filter(bool)
examples = st.builds(
    lambda row_id, system, pairs, other: Example(
        row_id,
        f"{row_id}#0",
        "chat",
        (
            *([Turn("system", system)] if system else []),
            *(Turn(side, text) for pair in pairs for side, text in zip(SIDES, pair, strict=True)),
        ),
        other,
    ),
    said,
    st.none() | said,
    st.lists(st.tuples(words, said), min_size=1, max_size=4),
    st.sampled_from(["Beto", ""]),
)
some_examples = st.lists(examples, min_size=1, max_size=5)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, sample_brain):
    """Return the folder with an export in each format."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in WRITERS:
            settings = load_settings(export={"format": name, "output": folder / name, "person": "Wren Halloran"})
            curate.export([sample_brain], settings, Silent())
    return folder


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Return ``datasets.load_dataset`` for JSON, with a cache of its own."""
    import datasets

    datasets.disable_progress_bars()
    cache = tmp_path_factory.mktemp("cache")

    def loaded(path, **more):
        return datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(cache), **more)

    return loaded


@pytest.fixture(scope="module")
def talks(exported):
    """Return the training rows as (system prompt, turns)."""
    return [parts(row.turns) for row in read_rows(exported / "chatml" / "train.jsonl")]


def parts(turns):
    head = turns[0].role == "system"
    return turns[0].content if head else "", [tuple(turn) for turn in turns[head:]]


def lines(path):
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


# ---------------------------------------------------------------- the readers' rules


def llamafactory(row, entry):
    """Return the system prompt and the turns that LLaMA-Factory learns.

    Raises:
        ValueError: a row that it leaves out.
    """
    rules = RULES["llamafactory"]
    columns, tags = (
        dict.fromkeys(rules[kind]) | entry[kind] if kind in entry else rules[kind] for kind in ("columns", "tags")
    )
    system = row[columns["system"]] if columns["system"] else ""
    if entry.get("formatting", "alpaca") == "alpaca":
        talk = [text for ask, answer in row[columns["history"]] for text in (ask, answer)] if columns["history"] else []
        asked = [row[columns[name]] for name in ("prompt", "query") if columns[name]]
        talk.append("\n".join(part for part in asked if part))
        if columns["response"]:
            talk.append(row[columns["response"]])
        return system, [(SIDES[number % 2], text) for number, text in enumerate(talk)]
    side_of = {tags["user_tag"]: "user", tags["assistant_tag"]: "assistant", tags["system_tag"]: "system"}
    turns = [(side_of.get(item[tags["role_tag"]]), item[tags["content_tag"]]) for item in row[columns["messages"]]]
    if turns and turns[0][0] == "system":
        system = turns.pop(0)[1]
    if len(turns) % 2 or any(side != SIDES[number % 2] for number, (side, _) in enumerate(turns)):
        raise ValueError("left out")
    return system, turns


def axolotl(row, entry):
    """Return the turns that axolotl hands to the template, or the text that it learns."""
    entry = RULES["axolotl"]["entry"] | entry
    if entry["type"] == "completion":
        return row[entry["field"]]
    if entry["type"] == "alpaca_w_system.load":
        asked = "\n".join(part for part in (row["instruction"], row["input"]) if part)
        head = [("system", row["system"])] if row["system"] else []
        return [*head, ("user", asked), ("assistant", row["output"])]
    role, content = (entry["message_property_mappings"][name] for name in ("role", "content"))
    roles = RULES["axolotl"]["roles"]
    turns = [(roles.get(item[role], item[role]), item[content]) for item in row[entry["field_messages"]]]
    return [("system", row["system"]), *turns] if turns[0][0] != "system" and "system" in row else turns


@pytest.mark.parametrize("entry", LLAMAFACTORY.values(), ids=LLAMAFACTORY)
def test_llamafactory_knows_every_key_of_the_docs(entry):
    rules = RULES["llamafactory"]
    assert set(entry) <= set(rules["entry"])
    assert set(entry["columns"]) <= set(rules["columns"])
    assert set(entry.get("tags", {})) <= set(rules["tags"])


@pytest.mark.parametrize("entry", AXOLOTL.values(), ids=AXOLOTL)
def test_axolotl_knows_every_key_of_the_docs(entry):
    assert set(entry) <= set(RULES["axolotl"]["entry"])
    assert entry["type"] in RULES["axolotl"]["types"]


def test_the_docs_have_an_entry_for_each_format():
    assert sorted(LLAMAFACTORY) == sorted(AXOLOTL) == sorted(WRITERS)


# ---------------------------------------------------------------- datasets: one schema


@pytest.mark.parametrize("part", ["finetune_dataset", "train", "val"])
@pytest.mark.parametrize("name", sorted(WRITERS))
def test_every_row_has_the_one_schema(exported, load, name, part):
    path = exported / name / f"{part}.jsonl"
    rows = load(path)
    types = {field.name: str(field.type) for field in rows.features.arrow_schema}
    assert types == COLUMNS[name] | TEXTS
    assert list(rows) == lines(path)


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_arrow_alone_reads_it(exported, name):
    """As ``datasets`` below 4.7 does, and LLaMA-Factory allows no newer: words and numbers in one list are an error."""
    path = exported / name / "train.jsonl"
    assert pyarrow.json.read_json(path).to_pylist() == lines(path)


@pytest.mark.parametrize("name", sorted(WRITERS))
@given(rows=some_examples)
def test_arrow_keeps_every_text(name, rows):
    written = [to_line(row, name, "Ana") for row in rows]
    table = pyarrow.json.read_json(io.BytesIO(b"".join(written)))
    assert table.to_pylist() == [orjson.loads(line) for line in written]


def test_rows_without_history_may_come_first(exported, load):
    rows = sorted(lines(exported / "alpaca" / "train.jsonl"), key=lambda row: bool(row["history"]))
    assert rows[0]["history"] == [] != rows[-1]["history"]
    Path("sorted.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    assert list(load("sorted.jsonl")) == rows


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_without_a_system_prompt_the_columns_stay(exported, load, sample_brain, name):
    settings = load_settings(export={"format": name, "include_system": False})
    curate.export([sample_brain], settings, Silent())
    rows = load("data/train.jsonl")
    assert rows.column_names == load(exported / name / "train.jsonl").column_names
    systems = [llamafactory(row, LLAMAFACTORY[name])[0] for row in rows]
    assert systems == [""] * len(systems)


# ---------------------------------------------------------------- LLaMA-Factory


@pytest.mark.parametrize("name", ["chatml", "alpaca", "sharegpt"])
def test_llamafactory_reads_every_turn(exported, load, talks, name):
    rows = load(exported / name / "train.jsonl")
    assert [llamafactory(row, LLAMAFACTORY[name]) for row in rows] == talks


def test_llamafactory_reads_raw_as_text(exported, load):
    path = exported / "raw" / "train.jsonl"
    expected = [("", [("user", row["text"])]) for row in lines(path)]
    assert [llamafactory(row, LLAMAFACTORY["raw"]) for row in load(path)] == expected


@pytest.mark.parametrize("name", ["chatml", "alpaca", "sharegpt"])
@given(row=examples)
def test_llamafactory_reads_whatever_is_written(name, row):
    assert llamafactory(WRITERS[name](row, "Ana"), LLAMAFACTORY[name]) == parts(row.turns)


@pytest.mark.parametrize(
    "talk",
    [["human"], ["gpt", "human"], ["human", "human"], ["human", "gpt", "gpt", "human"], ["human", "bot"]],
    ids="-".join,
)
def test_llamafactory_leaves_out_what_does_not_alternate(talk):
    """So the tests above would see such a row."""
    row = {"system": "", "conversations": [{"from": side, "value": "x"} for side in talk]}
    with pytest.raises(ValueError, match="left out"):
        llamafactory(row, LLAMAFACTORY["sharegpt"])


# ---------------------------------------------------------------- axolotl


def test_axolotl_reads_chatml(exported, load, talks):
    rows = load(exported / "chatml" / "train.jsonl")
    expected = [[("system", system), *turns] if system else turns for system, turns in talks]
    assert [axolotl(row, AXOLOTL["chatml"]) for row in rows] == expected


def test_axolotl_makes_an_empty_system_turn_of_sharegpt(exported, load, talks):
    rows = load(exported / "sharegpt" / "train.jsonl")
    assert "" in rows["system"]
    expected = [[("system", system), *turns] for system, turns in talks]
    assert [axolotl(row, AXOLOTL["sharegpt"]) for row in rows] == expected


def test_axolotl_reads_alpaca_without_its_history(exported, load, talks):
    rows = load(exported / "alpaca" / "train.jsonl")
    expected = [[*([("system", system)] if system else []), *turns[-2:]] for system, turns in talks]
    assert [axolotl(row, AXOLOTL["alpaca"]) for row in rows] == expected


def test_axolotl_reads_raw_as_text(exported, load):
    path = exported / "raw" / "train.jsonl"
    assert [axolotl(row, AXOLOTL["raw"]) for row in load(path)] == [row["text"] for row in lines(path)]


# ---------------------------------------------------------------- TRL


@pytest.fixture(scope="module")
def trl():
    from trl import data_utils

    return data_utils


@pytest.fixture
def prompts(exported, monkeypatch, tmp_path):
    """Return the rows as the docs' code for TRL makes them."""
    import datasets

    Path("data").symlink_to(exported / "chatml")
    monkeypatch.setattr(datasets, "load_dataset", partial(datasets.load_dataset, cache_dir=str(tmp_path / "cache")))
    Path("code.py").write_text(block("python"), "utf-8")
    return runpy.run_path("code.py")["rows"]


def test_trl_reads_chatml(exported, load, tokenizer, trl):
    path = exported / "chatml" / "train.jsonl"
    for row, example in zip(load(path), read_rows(path), strict=True):
        assert trl.is_conversational(row)
        text = trl.maybe_apply_chat_template(row, tokenizer, chat_template=CHATML.jinja)["text"]
        assert text == f"{render(CHATML, example.turns[:-1])}{example.reply}{CHATML.end_token}\n"


def test_trl_learns_the_reply_alone(exported, prompts, tokenizer, trl):
    for part, name in (("train", "train"), ("validation", "val")):
        examples = list(read_rows(exported / "chatml" / f"{name}.jsonl"))
        for row, example in zip(prompts[part], examples, strict=True):
            assert trl.is_conversational(row)
            made = trl.maybe_apply_chat_template(row, tokenizer, chat_template=CHATML.jinja)
            assert made == {
                "prompt": render(CHATML, example.turns[:-1]),
                "completion": f"{example.reply}{CHATML.end_token}\n",
            }


def test_trl_makes_the_ids_that_twin_trains(exported, prompts, tokenizer, trl):
    samples = build_samples(read_rows(exported / "chatml" / "val.jsonl"), tokenizer, CHATML, 10_000).samples
    ids = partial(tokenizer.apply_chat_template, chat_template=CHATML.jinja, return_dict=False)
    [line_end] = tokenizer("\n", add_special_tokens=False)["input_ids"]
    for row, sample in zip(prompts["validation"], samples, strict=True):
        asked, whole = ids(row["prompt"], add_generation_prompt=True), ids(row["prompt"] + row["completion"])
        assert whole == [*sample.input_ids, line_end]
        assert trl.common_prefix_length(asked, whole) == len(asked) == sample.prompt_length


def test_trl_reads_raw_as_text(exported, load, tokenizer, trl):
    path = exported / "raw" / "train.jsonl"
    for row, written in zip(load(path), lines(path), strict=True):
        assert not trl.is_conversational(row)
        assert not trl.is_conversational_from_value(row)
        assert trl.maybe_apply_chat_template(row, tokenizer)["text"] == written["text"]


def test_trl_reads_neither_alpaca_nor_the_roles_of_sharegpt(exported, load, trl):
    alpaca, sharegpt = (load(exported / name / "val.jsonl") for name in ("alpaca", "sharegpt"))
    assert not trl.is_conversational(alpaca[0])
    assert not {"text", "prompt", "completion", "messages"} & set(alpaca.column_names)
    assert trl.is_conversational_from_value(sharegpt[0])
    assert {item["role"] for item in trl.maybe_convert_to_chatml(sharegpt[0])["messages"]} == {"human", "gpt"}


@pytest.mark.slow
def test_its_trainer_learns_reply_and_end(exported, prompts, smollm2, tokenizer, tmp_path):
    import transformers
    import trl

    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1,
    )  # fmt: skip
    own = transformers.AutoTokenizer.from_pretrained(str(smollm2))  # the fixture's is everybody's
    own.chat_template = CHATML.jinja
    trainer = trl.SFTTrainer(
        transformers.LlamaForCausalLM(config),
        args=trl.SFTConfig(str(tmp_path / "run"), max_length=None, report_to="none", use_cpu=True),
        train_dataset=prompts["train"],
        processing_class=own,
    )
    rows = read_rows(exported / "chatml" / "train.jsonl")
    samples = build_samples(rows, tokenizer, CHATML, 10_000).samples
    for made, sample in zip(trainer.train_dataset, samples, strict=True):
        assert made["input_ids"][:-1] == list(sample.input_ids)
        learned = [*sample.input_ids[sample.prompt_length :], made["input_ids"][-1]]
        assert made["labels"] == [-100] * sample.prompt_length + learned


# ---------------------------------------------------------------- and back


@given(rows=some_examples)
def test_each_format_converts_to_the_same_rows(rows):
    read = {}
    for name in WRITERS:
        Path("rows.jsonl").write_bytes(b"".join(to_line(row, name, "Ana") for row in rows))
        read[name] = [(row.id, row.conversation_id, row.kind, row.turns) for row in read_rows(Path("rows.jsonl"))]
    expected = [(row.id, row.conversation_id, row.kind, row.turns) for row in rows]
    assert read.pop("raw") == [(*about, turns[turns[0].role == "system" :]) for *about, turns in expected]
    assert read == dict.fromkeys(read, expected)


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_what_datasets_writes_again_reads_the_same(exported, load, name):
    path = exported / name / "val.jsonl"
    load(path).to_json("again.jsonl", force_ascii=False)
    assert list(read_rows(Path("again.jsonl"))) == list(read_rows(path))


@pytest.mark.parametrize("name", ["alpaca", "sharegpt", "raw"])
def test_an_export_converts_to_the_rows_of_chatml(exported, name):
    rows = list(read_rows(exported / "chatml" / "train.jsonl"))
    if name == "raw":
        rows = [replace(row, turns=row.turns[row.turns[0].role == "system" :]) for row in rows]
    assert list(read_rows(exported / name / "train.jsonl")) == rows
