import ctypes
import subprocess
import threading
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from hypothesis import given
from hypothesis import strategies as st

from tests.gguf import small_file
from twin.errors import MachineError, StepError, UsageError
from twin.gguf import ggml, imatrix
from twin.gguf.quantize import NEEDS_IMATRIX
from twin.llama import open_gguf, silence
from twin.progress import Silent

ROWS = [[int(token) for token in row] for row in np.random.default_rng(1).integers(3, 250, (5, 40))]
# What goes into a weight goes into its neighbours too.
PARTS = ("attn_k", "attn_q", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return small_file.write(tmp_path_factory.mktemp("plain") / "f32.gguf", "F32")


@pytest.fixture(scope="module")
def gathered(plain):
    return imatrix.gather(plain, ROWS, Silent())


def first_layer(rows):
    """The mean square of what goes into the first block's query, by hand: the embedding over its root mean square."""
    hidden = small_file.weights()["token_embd.weight"][np.concatenate(rows)].astype(np.float64)
    normal = hidden / np.sqrt((hidden**2).mean(1, keepdims=True) + 1e-5)
    return (normal**2).mean(0)


def test_every_weight_of_the_blocks_has_its_columns(gathered):
    assert set(gathered) == {f"blk.{layer}.{part}.weight" for layer in range(2) for part in PARTS}
    assert {name: mean.shape for name, mean in gathered.items()} == {
        name: (small_file.INNER if "down" in name else small_file.WIDTH,) for name in gathered
    }
    assert all(mean.dtype == np.float32 and (mean > 0).all() for mean in gathered.values())


def test_the_first_layer_is_what_arithmetic_says(gathered):
    np.testing.assert_allclose(gathered["blk.0.attn_q.weight"], first_layer(ROWS), rtol=1e-4)


def test_rows_beside_one_another_are_rows_alone(plain, gathered):
    each = [imatrix.gather(plain, [row], Silent()) for row in ROWS]
    for name, mean in gathered.items():
        np.testing.assert_allclose(mean, np.mean([one[name] for one in each], 0), rtol=2e-3, err_msg=name)


def test_other_rows_give_another_matrix(plain, gathered):
    other = imatrix.gather(plain, [row[::-1] for row in ROWS], Silent())
    np.testing.assert_allclose(other["blk.0.attn_q.weight"], gathered["blk.0.attn_q.weight"], rtol=1e-4)
    assert not np.allclose(other["blk.1.ffn_down.weight"], gathered["blk.1.ffn_down.weight"], rtol=1e-3)


def test_a_row_longer_than_a_pass_is_read_as_one(plain):
    row = [int(token) for token in np.random.default_rng(2).integers(3, 250, 700)]
    found = imatrix.gather(plain, [row], Silent())
    np.testing.assert_allclose(found["blk.0.attn_q.weight"], first_layer([row]), rtol=1e-4)


def test_each_expert_of_a_mixture_has_its_own(tmp_path):
    mixture = small_file.write(tmp_path / "mixture.gguf", "F32", experts=4)
    found = imatrix.gather(mixture, ROWS, Silent())
    gates = found["blk.0.ffn_gate_exps.weight"]
    assert gates.shape == (4, small_file.WIDTH)
    assert found["blk.0.ffn_down_exps.weight"].shape == (4, small_file.INNER)
    assert len({row.tobytes() for row in gates}) == 4
    # One token chooses two of the four; the others are 1, as llama.cpp takes those it saw nothing of.
    one = imatrix.gather(mixture, [ROWS[0][:1]], Silent())["blk.0.ffn_gate_exps.weight"]
    assert sorted((row == 1).all() for row in one) == [False, False, True, True]


def test_nothing_to_gather_from_is_refused(plain):
    with pytest.raises(UsageError, match="no row"):
        imatrix.gather(plain, [[], []], Silent())


def test_ids_of_another_vocabulary_are_refused(plain):
    with pytest.raises(StepError, match="could not evaluate"):
        imatrix.gather(plain, [[len(small_file.TOKENS) + 5] * 20], Silent())


def test_activations_that_are_not_finite_are_refused(tmp_path):
    def damage(tensors):
        tensors["blk.1.attn_norm.weight"][0][7] = np.inf

    broken = small_file.write(tmp_path / "broken.gguf", "F32", damage=damage)
    with pytest.raises(StepError, match=r"'blk\.1\.attn_[qkv]\.weight' is not finite"):
        imatrix.gather(broken, ROWS, Silent())


def test_an_interruption_inside_llama_cpp_comes_out(plain, monkeypatch):
    def interrupted(self, address):
        raise KeyboardInterrupt

    monkeypatch.setattr(imatrix._Collector, "_take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        imatrix.gather(plain, ROWS, Silent())


def test_another_layout_of_tensors_is_refused(plain, monkeypatch):
    class Shorter(ctypes.Structure):
        _fields_ = [field for field in ggml.Tensor._fields_ if field[0] != "op_params"]

    monkeypatch.setattr(ggml, "Tensor", Shorter)
    with pytest.raises(MachineError, match="lays out its tensors"):
        imatrix.gather(plain, ROWS, Silent())


@given(st.lists(st.lists(st.integers(0, 9), max_size=30), max_size=12), st.integers(0, 80))
def test_a_choice_is_of_the_rows_within_its_size_and_always_the_same(rows, most):
    chosen = imatrix.choose(rows, most)
    assert sum(map(len, chosen)) == min(most, sum(map(len, rows)))
    assert all(any(row[: len(one)] == one for row in rows) for one in chosen)
    assert chosen == imatrix.choose(rows, most)


def test_a_choice_is_spread_over_all_rows():
    chosen = [row[0] for row in imatrix.choose([[at] for at in range(1000)], 10)]
    assert max(np.diff(sorted([0, *chosen, 999]))) < 250


# ---------------------------------------------------------------- the file


def test_a_file_gives_back_what_was_written(tmp_path, gathered):
    path = tmp_path / "imatrix.gguf"
    imatrix.write(path, gathered | {"blk.0.ffn_up_exps.weight": np.ones((3, 8), np.float32)}, 200)
    found = imatrix.read(path)
    assert path.stat().st_mode & 0o77 == 0
    assert found["blk.0.ffn_up_exps.weight"].shape == (3, 8)
    for name, mean in gathered.items():
        np.testing.assert_allclose(found[name], mean, rtol=1e-6)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"blk.0.a.in_sum2": [[1.0]]}, "no sums and counts"),
        ({"blk.0.a.in_sum2": [[1.0, 2.0, 3.0]], "blk.0.a.counts": [[1.0], [1.0]]}, "another shape"),
        ({"blk.0.a.in_sum2": [[np.nan]], "blk.0.a.counts": [[1.0]]}, "no mean of squares"),
        ({"blk.0.a.in_sum2": [[-1.0]], "blk.0.a.counts": [[1.0]]}, "no mean of squares"),
        ({"blk.0.a.weight": [[1.0]]}, "has no sums"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path, tensors, said):
    writer = GGUFWriter(tmp_path / "it.gguf", "")
    for name, values in tensors.items():
        writer.add_tensor(name, np.array(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UsageError, match=said):
        imatrix.read(tmp_path / "it.gguf")


# ---------------------------------------------------------------- what quantizes with it


def quantized(source, target, ftype, means=None):
    """Quantize by the library; return its code and the tensors' bytes by name."""
    silence()
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = ftype
    entries = imatrix.as_parameters(means) if means is not None else None
    if entries is not None:
        parameters.imatrix = entries
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters))
    return code, {} if code else {tensor.name: tensor for tensor in GGUFReader(str(target)).tensors}


def test_the_library_quantizes_by_it_as_ggml_does_by_its_rows(tmp_path, plain, gathered):
    code, tensors = quantized(plain, tmp_path / "with.gguf", llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_S, gathered)
    assert code == 0
    _, without = quantized(plain, tmp_path / "without.gguf", llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_S)
    name = "blk.1.attn_q.weight"
    values = small_file.weights()[name]
    assert tensors[name].tensor_type == GGMLQuantizationType.Q4_K
    made = np.zeros_like(tensors[name].data)
    row = imatrix.weights(gathered, name, values.shape[1])
    chunk = ggml.BASE.ggml_quantize_chunk
    chunk(GGMLQuantizationType.Q4_K, values.ctypes.data, made.ctypes.data, 0, *values.shape, row.ctypes.data)
    assert (made == tensors[name].data).all()
    assert not (made == without[name].data).all()


def test_a_weight_that_it_does_not_have_goes_without(gathered):
    assert imatrix.weights(gathered, "token_embd.weight", small_file.WIDTH) is None
    assert imatrix.weights(None, "blk.0.attn_q.weight", small_file.WIDTH) is None


def test_a_matrix_of_another_model_is_refused(gathered):
    with pytest.raises(StepError, match=r"256 columns for 'blk\.0\.attn_q\.weight', which has 512"):
        imatrix.weights(gathered, "blk.0.attn_q.weight", 512)


@pytest.mark.slow
def test_types_that_need_one_are_those_that_llama_cpp_refuses_without(tmp_path, plain, gathered):
    for name in ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ1_S", "IQ1_M", "IQ3_S", "IQ4_NL", "Q4_K_S", "Q2_K"):
        ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
        code, _ = quantized(plain, tmp_path / f"{name}.gguf", ftype, gathered)
        assert code == 0, name
        refused, _ = quantized(plain, tmp_path / f"without-{name}.gguf", ftype)
        assert (name.lower() in NEEDS_IMATRIX) == bool(refused), name


@pytest.mark.slow
def test_llama_cpp_gathers_the_same_and_reads_our_file(tmp_path, plain, ollama_binary, gathered):
    tools = Path(ollama_binary).resolve().parent.parent / "lib" / "ollama"
    if not (tools / "llama-imatrix").is_file():
        pytest.skip("no llama-imatrix beside this Ollama")
    text = (Path(__file__).parents[2] / "README.md").read_text("utf-8")[:4000]
    (tmp_path / "text.txt").write_text(text, "utf-8")
    with open_gguf(plain, vocab_only=True) as model:
        ids = model.plain_ids(text)
    rows = [ids[at : at + 128] for at in range(0, len(ids) // 128 * 128, 128)]
    theirs = tmp_path / "theirs.gguf"
    command = [tools / "llama-imatrix", "-m", plain, "-f", tmp_path / "text.txt", "-o", theirs]
    command += ["-c", "128", "-b", "128", "--no-ppl", "-ngl", "0"]
    got = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert got.returncode == 0, got.stderr[-2000:]
    ours, other = imatrix.gather(plain, rows, Silent()), imatrix.read(theirs)
    assert set(ours) == set(other)
    for name, mean in ours.items():
        np.testing.assert_allclose(mean, other[name], rtol=5e-3, err_msg=name)
    # The control: the last row left out shows.
    short = imatrix.gather(plain, rows[:-1], Silent())
    assert not np.allclose(short["blk.1.ffn_down.weight"], other["blk.1.ffn_down.weight"], rtol=5e-3)

    imatrix.write(tmp_path / "ours.gguf", ours, sum(map(len, rows)))
    command = [tools / "llama-quantize", "--imatrix", tmp_path / "ours.gguf", plain, tmp_path / "tool.gguf", "IQ2_XS"]
    got = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert got.returncode == 0, got.stderr[-2000:]
    assert f"have {len(ours)} importance matrix entries" in got.stdout
    again = imatrix.read(tmp_path / "ours.gguf")  # a mean that became a sum and a mean again may differ in its last bit
    _, tensors = quantized(plain, tmp_path / "library.gguf", llama_cpp.LLAMA_FTYPE_MOSTLY_IQ2_XS, again)
    for tensor in GGUFReader(str(tmp_path / "tool.gguf")).tensors:
        assert (tensor.data == tensors[tensor.name].data).all(), tensor.name


def test_threads_gather_apart(plain, gathered):
    found = []
    threads = [threading.Thread(target=lambda: found.append(imatrix.gather(plain, ROWS, Silent()))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in found:
        np.testing.assert_allclose(one["blk.1.ffn_down.weight"], gathered["blk.1.ffn_down.weight"], rtol=1e-5)
