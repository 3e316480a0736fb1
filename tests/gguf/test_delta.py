"""Each form of an adapter against PEFT's own merge, tensor by tensor; and what is refused, by name."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests import small
from twin.errors import GateError, UsageError
from twin.gguf import delta

CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def shapes_of(tensors):
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def rewrite(adapter, **settings):
    """Set keys of an adapter's JSON, without PEFT."""
    path = adapter / delta.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def merged(tuned, tied=False, block=None):
    """Return every tensor of the base as the adapter makes it, whole or in blocks of rows."""
    changes = delta.open_adapter(tuned.adapter).bind(shapes_of(tuned.before), tied)
    out = dict(tuned.before)
    for name, change in changes.items():
        weight = tuned.before[name]
        step = block if block and change.rowwise else len(weight)
        kept = weight.clone()
        rows = [
            change.rows(weight[at : at + step], at, min(at + step, len(weight))) for at in range(0, len(weight), step)
        ]
        assert torch.equal(weight, kept), "what came in was changed"
        out[name] = torch.cat(rows)
        assert out[name].dtype == torch.float32
    return out, changes


def holds(tuned, tied=False):
    """Check that twin's merge is PEFT's, whole and by blocks, and that it changes what PEFT changes."""
    whole, changes = merged(tuned, tied)
    assert changes
    assert whole.keys() == tuned.after.keys()
    for name, tensor in tuned.after.items():
        torch.testing.assert_close(whole[name], tensor.float(), **CLOSE, msg=lambda text, name=name: f"{name}: {text}")
    moved = {name for name, tensor in tuned.after.items() if not torch.equal(tensor, tuned.before[name])}
    assert moved <= changes.keys()
    blocks_and_answers(tuned, whole, tied)
    return changes


def blocks_and_answers(tuned, whole, tied=False):
    """Check that blocks give what the whole gives, and that the merged model answers as PEFT's does at run time."""
    for block in (1, 5):
        for name, tensor in merged(tuned, tied, block)[0].items():
            torch.testing.assert_close(tensor, whole[name], **CLOSE)
    torch.testing.assert_close(small.logits_with(tuned.base, whole), tuned.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("kind", small.KINDS)
def test_lora(tmp_path, kind, rslora):
    tuned = small.tune(tmp_path, kind, use_rslora=rslora)
    changes = holds(tuned)
    assert len(changes) == 2 * len(small.TARGETS[kind]) + (2 if kind == "gpt2" else 0)  # two modules are c_proj
    assert all(change.rowwise for change in changes.values())


def test_the_control_sees_a_wrong_scale(tmp_path):
    tuned = small.tune(tmp_path, "llama")
    rewrite(tuned.adapter, lora_alpha=6.1)
    with pytest.raises(AssertionError):
        holds(tuned)


def test_patterns_of_rank_and_alpha(tmp_path):
    """The first pattern that fits wins, a name's end counts, and a pattern may be a regular expression."""
    ranks = {r"layers\.1\.self_attn\.q_proj": 7, "q_proj": 3, "model.layers.0.self_attn.v_proj": 2}
    holds(
        small.tune(
            tmp_path, "llama", rank_pattern=ranks, alpha_pattern={r".*\.0\.mlp\.down_proj": 11, "v_proj": 5, "proj": 1}
        )
    )


def test_layers_and_exclusions_and_all_linear(tmp_path):
    changes = holds(small.tune(tmp_path / "a", "llama", layers_to_transform=[1], layers_pattern="layers"))
    assert {name.split(".")[2] for name in changes} == {"1"}
    changes = holds(small.tune(tmp_path / "b", "qwen2", target_modules="all-linear", exclude_modules=["k_proj"]))
    assert len(changes) == 2 * 6
    holds(small.tune(tmp_path / "c", "llama", target_modules=r".*\.0\..*(q|up)_proj"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_adapters_in_half_precision(tmp_path, dtype):
    """PEFT rounds the product to the adapter's dtype; ours is the product of the same weights in float32."""
    tuned = small.tune(tmp_path, "llama", dtype=dtype)
    ours, changes = merged(tuned)
    weights = small.load(tuned.adapter)
    name = "model.layers.0.self_attn.q_proj.weight"
    a, b = (weights[f"base_model.model.model.layers.0.self_attn.q_proj.lora_{half}.weight"] for half in "AB")
    assert a.dtype == getattr(torch, dtype)
    torch.testing.assert_close(ours[name], tuned.before[name] + 1.5 * b.float() @ a.float(), **CLOSE)
    for name in changes:
        torch.testing.assert_close(ours[name], tuned.after[name], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", small.KINDS)
def test_dora(tmp_path, kind):
    """Each output's length is a row's, and a column's where the weight stands turned: then it can't go by rows."""
    changes = holds(small.tune(tmp_path, kind, use_dora=True))
    assert {change.rowwise for change in changes.values()} == {kind != "gpt2"}


FORMS = {
    "saved": ("llama", {"modules_to_save": ["lm_head", "embed_tokens", "norm"]}),
    "saved mlp": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["mlp"]}),
    "saved norms with biases": ("gpt2", {"modules_to_save": ["lm_head", "ln_f"], "target_modules": ["c_attn"]}),
    "bias of B": ("qwen2", {"lora_bias": True, "target_modules": ["q_proj", "v_proj"], "use_rslora": True}),
    "bias of B turned": ("gpt2", {"lora_bias": True, "target_modules": ["c_attn", "c_proj"]}),
    "all biases": ("qwen2", {"bias": "all"}),
    "all biases of gpt2": ("gpt2", {"bias": "all"}),
    "biases of adapted layers": ("qwen2", {"bias": "lora_only"}),
    "embedding": ("llama", {"target_modules": ["q_proj", "embed_tokens"]}),
    "embedding with a scale": ("gemma2", {"target_modules": ["q_proj", "embed_tokens"]}),
    "embedding and head": ("llama", {"target_modules": ["embed_tokens", "lm_head"]}),
    "embedding of gpt2": ("gpt2", {"target_modules": ["wte", "c_attn"]}),
    "embedding with DoRA": ("llama", {"target_modules": ["embed_tokens", "v_proj"], "use_dora": True}),
    "tokens": ("llama", {"trainable_token_indices": [70, 3, 5]}),
    "tokens of two": ("llama", {"trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [1]}}),
    "eva": ("llama", {"init_lora_weights": "eva"}),
    "orthogonal": ("llama", {"init_lora_weights": "orthogonal"}),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(tmp_path, form):
    kind, settings = FORMS[form]
    holds(small.tune(tmp_path, kind, **settings))


TIED_ALIKE = {
    "layers": {},
    "tokens": {"trainable_token_indices": [3, 5]},
    "both saved alike": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
}


@pytest.mark.parametrize("form", TIED_ALIKE)
def test_a_tied_model_where_both_change_alike(tmp_path, form):
    holds(small.tune(tmp_path, "llama", tied=True, **TIED_ALIKE[form]), tied=True)


def test_tied_adapters_on_embedding_and_output_layer(tmp_path):
    """PEFT's merge adds such an adapter twice to the one tensor, and its run time once: ours is the run time's."""
    tuned = small.tune(
        tmp_path, "llama", tied=True, target_modules=["q_proj", "embed_tokens"], ensure_weight_tying=True
    )
    whole, changes = merged(tuned, tied=True)
    assert "model.embed_tokens.weight" in changes
    blocks_and_answers(tuned, whole, tied=True)
    name = "model.embed_tokens.weight"
    change = whole[name] - tuned.before[name]
    torch.testing.assert_close(tuned.after[name], tuned.before[name] + 2 * change, **CLOSE)


TIED_APART = {
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "saved": {"modules_to_save": ["embed_tokens"]},
    "both saved": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "other tokens": {"trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [1]}},
}


@pytest.mark.parametrize("form", TIED_APART)
def test_a_tied_model_where_one_changes_alone(tmp_path, form):
    """PEFT's merge either unties the two, or answers otherwise than its run time: one tensor can't be right."""
    tuned = small.tune(tmp_path, "llama", tied=True, **TIED_APART[form])
    with pytest.raises(UsageError, match="by itself, and this base has one tensor for embedding and output") as told:
        merged(tuned, tied=True)
    assert "tie_word_embeddings=False" in told.value.hint
    untied = "lm_head.weight" in tuned.after
    assert untied == (form in ("saved", "both saved"))
    answers = small.logits_with(tuned.base, tuned.after)
    assert torch.allclose(answers, tuned.logits, rtol=1e-4, atol=1e-4) == untied, "then why refuse it?"


def test_a_checkpoint_without_an_output_layer_is_tied_whatever_is_said(tmp_path):
    tuned = small.tune(tmp_path, "llama", tied=True, target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(UsageError, match="has one tensor for embedding and output"):
        merged(tuned, tied=False)


def test_the_hint_for_tied_models_works(tmp_path):
    """With the output layer saved beside the embedding, the same adapter merges into what PEFT answers."""
    tuned = small.tune(tmp_path, "llama", tied=True, target_modules=["q_proj", "embed_tokens"])
    config = json.loads((tuned.base / "config.json").read_text()) | {"tie_word_embeddings": False}
    (tuned.base / "config.json").write_text(json.dumps(config))
    before = tuned.before | {"lm_head.weight": tuned.before["model.embed_tokens.weight"].clone()}
    tuned = tuned._replace(before=before)
    blocks_and_answers(tuned, merged(tuned)[0])


def test_a_tied_checkpoint_that_holds_the_output_layer_all_the_same(tmp_path):
    tuned = small.tune(tmp_path, "llama", tied=True, trainable_token_indices=[3, 5])
    before = tuned.before | {"lm_head.weight": tuned.before["model.embed_tokens.weight"].clone()}
    whole, changes = merged(tuned._replace(before=before), tied=True)
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= changes.keys()
    assert torch.equal(whole["lm_head.weight"], whole["model.embed_tokens.weight"])


# ---------------------------------------------------------------- without PEFT: by hand

LAYER = "model.layers.0.self_attn.q_proj"
PREFIX = "base_model.model."


def write(folder, tensors, **settings):
    """Write an adapter as its files are, whatever they say."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]} | settings
    (folder / delta.CONFIG).write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / delta.WEIGHTS)
    return folder


def halves(module=LAYER, rank=2, out=6, inside=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rank, inside, generator=generator), torch.randn(out, rank, generator=generator)
    return {f"{PREFIX}{module}.lora_A.weight": a, f"{PREFIX}{module}.lora_B.weight": b}


BASE = {f"{LAYER}.weight": (6, 5)}


def refused(folder, match, shapes=BASE, tied=False, kind=UsageError, hint=""):
    with pytest.raises(kind, match=match) as told:
        delta.open_adapter(folder).bind(shapes, tied)
    assert told.value.hint
    assert hint in told.value.hint
    assert "\n" not in told.value.message


@given(data=st.data())
def test_any_rank_dtype_and_block(tmp_path_factory, data):
    """Rows in blocks of any size are those of W + scale·B·A, computed here in float64."""
    rank, out, inside = (data.draw(st.integers(1, 7), label=label) for label in ("rank", "out", "inside"))
    alpha, rslora = data.draw(st.floats(0.5, 64)), data.draw(st.booleans())
    dtype = data.draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    tensors = {name: tensor.to(dtype) for name, tensor in halves(rank=rank, out=out, inside=inside, seed=rank).items()}
    folder = write(tmp_path_factory.mktemp("a"), tensors, r=rank, lora_alpha=alpha, use_rslora=rslora)
    weight = torch.randn(out, inside).to(data.draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16])))
    change = delta.open_adapter(folder).bind({f"{LAYER}.weight": (out, inside)}, False)[f"{LAYER}.weight"]
    edges = sorted({0, out, *data.draw(st.lists(st.integers(0, out), max_size=4), label="edges")})
    rows = torch.cat([change.rows(weight[at:to], at, to) for at, to in pairwise(edges)])
    a, b = (tensor.double() for tensor in tensors.values())
    wanted = weight.double() + alpha / (rank**0.5 if rslora else rank) * (b @ a)
    torch.testing.assert_close(rows.double(), wanted, rtol=1e-5, atol=1e-4)


WORDS = st.sampled_from(["model", "layers", "0", "1", "11", "self_attn", "q_proj", "proj", "mlp", "experts"])
PATTERNS = st.one_of(
    st.lists(WORDS, min_size=1, max_size=3).map(".".join),
    st.sampled_from([r".*\.1\..*", r"layers\.[01]\.mlp", r"(q|v)_proj", r".*proj", r"\d+", "^model", r"mlp|q_proj"]),
)


@given(patterns=st.dictionaries(PATTERNS, st.integers(1, 64), max_size=4), name=st.lists(WORDS, min_size=1, max_size=5))
def test_patterns_are_read_as_peft_reads_them(patterns, name):
    from peft.utils.other import get_pattern_key

    module = ".".join(name)
    assert delta.pattern_value(patterns, module, 8) == patterns.get(get_pattern_key(patterns, module), 8)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("model.layers.0.self_attn.q_proj", "layers.0.self_attn.q_proj"),
        ("transformer.h.0.attn.c_attn", "h.0.attn.c_attn"),
        ("model.language_model.layers.0.self_attn.q_proj", "language_model.model.layers.0.self_attn.q_proj"),
        ("lm_head", "language_model.lm_head"),
    ],
)
def test_names_that_differ_in_the_wrapping_alone(tmp_path, ours, theirs):
    for one, other in ((ours, theirs), (theirs, ours)):
        folder = write(tmp_path / "a", halves(one))
        assert list(delta.open_adapter(folder).bind({f"{other}.weight": (6, 5)}, False)) == [f"{other}.weight"]
    bare = {name.removeprefix(PREFIX): tensor for name, tensor in halves(ours).items()}
    assert delta.open_adapter(write(tmp_path / "b", bare)).bind({f"{ours}.weight": (6, 5)}, False)


def test_names_that_could_be_two(tmp_path):
    folder = write(tmp_path / "a", halves("layers.0.q_proj"))
    shapes = {"model.layers.0.q_proj.weight": (6, 5), "language_model.layers.0.q_proj.weight": (6, 5)}
    refused(folder, "could be 'model.layers.0.q_proj.weight' or 'language_model.layers.0", shapes, hint="--base")
    folder = write(tmp_path / "b", halves("model.layers.0.q_proj") | halves("layers.0.q_proj"))
    refused(folder, "Two modules of the adapter .* are 'layers.0.q_proj.weight'", {"layers.0.q_proj.weight": (6, 5)})
    twice = halves() | {f"{LAYER}.lora_A.weight": torch.ones(2, 5)}
    refused(write(tmp_path / "c", twice), "are the same")


def test_another_base(tmp_path):
    folder = write(tmp_path / "a", halves())
    refused(folder, "has no 'model.layers.0.self_attn.q_proj.weight'", {"h.0.weight": (6, 5)}, hint="--base")
    refused(folder, r"lora_A.weight' is \[2, 5\] and does not fit .*, which is \[6, 7\]", {f"{LAYER}.weight": (6, 7)})
    refused(folder, r"lora_B.weight' is \[6, 2\] and does not fit .*, which is \[7, 5\]", {f"{LAYER}.weight": (7, 5)})


ODD_CONFIGS = {
    "alora_invocation_tokens": [1, 2],
    "arrow_config": {"top_k": 1},
    "kasa_config": {"beta": 1},
    "layer_replication": [[0, 2]],
    "megatron_config": {"a": 1},
    "monteclora_config": {"a": 1},
    "target_parameters": ["mlp.experts.gate_up_proj"],
    "use_bdlora": {"nblocks": 2},
    "use_qalora": True,
    "velora_config": {"rank": 1},
    "some_new_key": True,
}


@pytest.mark.parametrize("key", ODD_CONFIGS)
def test_settings_that_no_merged_model_holds(tmp_path, key):
    refused(write(tmp_path / "a", halves(), **{key: ODD_CONFIGS[key]}), f"sets {key}")
    assert delta.open_adapter(write(tmp_path / "b", halves(), **{key: None})).bind(BASE, False)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "new\x1b[2Jstart"])
def test_starts_that_change_the_base(tmp_path, start):
    refused(
        write(tmp_path / "a", halves(), init_lora_weights=start),
        "takes a part out of the base",
        hint="path_initial_model_for_weight_conversion",
    )


def test_a_converted_pissa_adapter_is_plain(tmp_path):
    """Saved as the hint says, it is a LoRA of twice the rank, and right on the base itself."""
    import peft
    import transformers

    base = small.save_small(tmp_path / "base", "llama")
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    wrapped = peft.get_peft_model(
        model,
        peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], init_lora_weights="pissa"),
    )
    wrapped.peft_config["default"].init_lora_weights = True
    wrapped.save_pretrained(tmp_path / "start")
    wrapped.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    logits = small.logits_of(wrapped)
    wrapped.save_pretrained(tmp_path / "pissa")
    wrapped.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    before = small.load(base)
    tuned = small.Tuned(base, tmp_path / "pissa", before, {}, logits)
    with pytest.raises(UsageError, match="began as 'pissa'"):
        merged(tuned)
    tuned = tuned._replace(adapter=tmp_path / "plain")
    blocks_and_answers(tuned, merged(tuned)[0])


@pytest.mark.parametrize("kind", ["IA3", "LOHA", "PROMPT_TUNING", "ADALORA", "TRAINABLE_TOKENS", None, 3])
def test_other_kinds(tmp_path, kind):
    refused(write(tmp_path / "a", halves(), peft_type=kind), f"'{kind}'" if kind else "without a peft_type")


def test_weights_that_are_no_numbers(tmp_path):
    for value in (float("nan"), float("inf")):
        tensors = halves()
        tensors[f"{PREFIX}{LAYER}.lora_B.weight"][3, 1] = value
        refused(write(tmp_path / "a", tensors), "lora_B.weight' in .* not finite")
    tensors = halves() | {f"{PREFIX}{LAYER}.lora_A.weight": torch.ones(2, 5, dtype=torch.int8)}
    refused(write(tmp_path / "b", tensors), "lora_A.weight' in .* is torch.int8")


def test_an_adapter_that_does_nothing(tmp_path):
    for half in "AB":
        tensors = halves()
        tensors[f"{PREFIX}{LAYER}.lora_{half}.weight"].zero_()
        refused(write(tmp_path / half, tensors), "changes nothing: all of it is zero", kind=GateError)
    refused(write(tmp_path / "none", {}), "changes nothing", kind=GateError)
    refused(write(tmp_path / "alpha", halves(), lora_alpha=0), "changes nothing", kind=GateError)
    other = halves("model.layers.1.self_attn.q_proj")
    shapes = BASE | {"model.layers.1.self_attn.q_proj.weight": (6, 5)}
    assert len(delta.open_adapter(write(tmp_path / "one", tensors | other)).bind(shapes, False)) == 2


def test_tensors_that_belong_to_nothing(tmp_path):
    a = next(iter(halves()))
    refused(write(tmp_path / "a", {a: halves()[a]}), "lora_A.weight' has no other half")
    for part, said in (
        ("lora_C.weight", "has no place"),
        ("lora_diag", "is no tensor of a LoRA adapter that twin knows"),
    ):
        refused(write(tmp_path / "b", halves() | {f"{PREFIX}{LAYER}.{part}": torch.ones(2)}), f"{part}' .*{said}")
    for part, key in (("lora_magnitude_vector", "use_dora"), ("lora_B.bias", "lora_bias")):
        extra = {f"{PREFIX}{LAYER}.{part}": torch.ones(6)}
        refused(write(tmp_path / part, halves() | extra), f"{part}' has what {key} = False")
        refused(write(tmp_path / key, halves(), **{key: True}), f"has not what {key} = True")
        refused(write(tmp_path / "z", {f"{PREFIX}x.{part}": torch.ones(6)}, **{key: True}), "belongs to nothing")
    refused(write(tmp_path / "r", halves(rank=3)), r"lora_A.weight' is \[3, 5\], which is no weight of rank 2")
    bias = {f"{PREFIX}{LAYER}.lora_B.bias": torch.ones(6)}
    refused(write(tmp_path / "d", halves() | bias, lora_bias=True), "adds to a bias, and .* has none")
    assert len(delta.open_adapter(tmp_path / "d").bind(BASE | {f"{LAYER}.bias": (6,)}, False)) == 2
    refused(
        tmp_path / "d", r"lora_B.bias' is \[6\] and does not fit .*, which is \[5\]", BASE | {f"{LAYER}.bias": (5,)}
    )


HEAD = {"lm_head.weight": (8, 5)}


def test_trained_weights_of_another_shape(tmp_path):
    name = "model.embed_tokens.weight"
    folder = write(tmp_path / "a", {f"{PREFIX}{name}": torch.ones(9, 5)})
    refused(folder, "vocabulary of 9 tokens, and .* has 8", {name: (8, 5), **HEAD}, hint="--base")
    refused(folder, r"is \[9, 5\] and does not fit .*, which is \[9, 4\]", {name: (9, 4), **HEAD})
    tokens = {f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta": torch.ones(2, 5)}
    for told in ([1, 8], [-1, 2], ["1", 2], [True, 2], None, {"lm_head": [1, 2]}, 3):
        refused(
            write(tmp_path / "b", tokens, trainable_token_indices=told),
            "are no rows of the base",
            {name: (8, 5), **HEAD},
        )
    for told in ([1], [1, 1], [1, 2, 3]):
        refused(
            write(tmp_path / "b", tokens, trainable_token_indices=told),
            "is .* and not .* rows of",
            {name: (8, 5), **HEAD},
        )
    both = tokens | {
        f"{PREFIX}model.embed_tokens.lora_embedding_{half}": torch.ones(shape)
        for half, shape in (("A", (2, 8)), ("B", (5, 2)))
    }
    refused(
        write(tmp_path / "c", both, trainable_token_indices=[1, 2]),
        "a module that has a LoRA too",
        {name: (8, 5), **HEAD},
    )


ODD_VALUES = [
    ({"r": 0}, "odd r: 0"),
    ({"r": True}, "odd r"),
    ({"r": 2.5}, "odd r"),
    ({"r": None}, "odd r"),
    ({"lora_alpha": "4"}, "odd lora_alpha"),
    ({"rank_pattern": [1]}, "odd rank_pattern"),
    ({"rank_pattern": {"q": 0}}, "odd rank_pattern: 0"),
    ({"alpha_pattern": {"q": None}}, "odd alpha_pattern"),
    ({"alpha_pattern": {"(q": 1}}, "in the alpha_pattern of .* is no pattern"),
    ({"bias": "some"}, "odd bias"),
]


@pytest.mark.parametrize(("settings", "match"), ODD_VALUES)
def test_odd_values(tmp_path, settings, match):
    refused(write(tmp_path / "a", halves(), **settings), match)


def test_files_that_are_not_there_or_not_whole(tmp_path):
    folder = write(tmp_path / "run" / "checkpoint-20", halves())
    refused(tmp_path / "nothing", "does not exist")
    refused(tmp_path / "run", "There is no adapter_config.json", hint="checkpoint-20")
    whole = (folder / delta.WEIGHTS).read_bytes()
    for bad in (whole[:-8], b"", b"\x80\x04pickle", whole[:8] + b"}" + whole[9:]):
        (folder / delta.WEIGHTS).write_bytes(bad)
        refused(folder, "is no whole safetensors file")
    (folder / delta.WEIGHTS).unlink()
    refused(folder, "does not exist")
    (folder / "adapter_model.bin").write_bytes(b"")
    refused(folder, "as a pickle, which is not loaded", hint="save_pretrained")
    for bad in ("", "[]", "{", "[" * 100_000, "\ufeff{}", '{"r": NaN}'):
        (folder / delta.CONFIG).write_text(bad)
        refused(folder, "is not JSON|should hold a JSON object")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "There is no adapter_config.json", hint="a training wrote")


def test_what_an_adapter_calls_its_base(tmp_path):
    for name, told in (("owner/model", "owner/model"), ("", None), (None, None), (3, None)):
        folder = write(tmp_path / "a", halves(), base_model_name_or_path=name)
        assert delta.open_adapter(folder).base_model == told


def test_rows_that_are_not_the_ones_asked_for(tmp_path):
    change = delta.open_adapter(write(tmp_path / "a", halves())).bind(BASE, False)[f"{LAYER}.weight"]
    for rows, start, stop in ((torch.ones(2, 5), 0, 3), (torch.ones(2, 5), 5, 7), (torch.ones(2, 4), 0, 2)):
        with pytest.raises(ValueError, match="are not"):
            change.rows(rows, start, stop)
    whole = delta.Merged((), False, (6, 5))
    with pytest.raises(ValueError, match="whole"):
        whole.rows(torch.ones(2, 5), 0, 2)


def test_it_needs_no_heavy_library():
    heavy = "{'peft', 'transformers', 'llama_cpp', 'gguf', 'accelerate'}"
    code = f"import sys, twin.gguf.delta; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("tied", "edit", "told"),
    [
        (False, {}, False),
        (True, {}, True),
        (False, {"tie_word_embeddings": True}, False),  # stored apart, and different
        (False, {"tie_word_embeddings": None}, False),
    ],
)
def test_shapes_of_a_base_and_whether_it_is_tied(tmp_path, tied, edit, told):
    base = small.save_small(tmp_path / "base", "llama", tied)
    config = json.loads((base / "config.json").read_text()) | edit
    (base / "config.json").write_text(json.dumps(config))
    shapes, is_tied = delta.base_shapes(base)
    assert (shapes, is_tied) == (shapes_of(small.load(base)), told)
    assert ("lm_head.weight" in shapes) == (not tied)


def test_an_output_layer_stored_apart_that_equals_the_embedding(tmp_path):
    base = small.save_small(tmp_path / "base", "llama", tied=True)
    tensors = small.load(base)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, base / "model.safetensors")
    assert delta.base_shapes(base)[1]
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    assert not delta.base_shapes(base)[1]
    (base / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UsageError, match="no whole safetensors"):
        delta.base_shapes(base)
