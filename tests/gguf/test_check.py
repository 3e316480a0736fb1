from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import quants

from tests.gguf import small_file
from twin.errors import GateError, StepError, UsageError
from twin.gguf.check import check
from twin.gguf.ggml import BASE
from twin.llama import open_gguf
from twin.templates import load_family

NAME = "blk.1.ffn_up.weight"
KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")


def checked(path, family=small_file.FAMILY, prompts=small_file.PROMPTS, **more):
    return check(path, family, prompts, small_file.training_ids, **more)


def shapes(kind):
    """What a writer of the small file means to write."""
    types = {1: "F32", 2: kind}
    return {name: (value.shape, types[value.ndim]) for name, value in small_file.weights().items()}


def k_quant(tensors, kind, words):
    """Put the matrix as ggml quantizes it to ``kind``, in one block the scales at 16-bit ``words`` infinite."""
    values = small_file.weights()[NAME]
    blocks = np.zeros((len(values), quants.GGML_QUANT_SIZES[kind][1] * small_file.WIDTH // 256), np.uint8)
    BASE.ggml_quantize_chunk(kind, values.ctypes.data, blocks.ctypes.data, 0, *values.shape, None)
    for word in words:
        blocks.view(np.uint16)[300, word] = 0x7C00
    tensors[NAME] = (blocks, kind)


class TestAccepts:
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_whole_file(self, tmp_path, kind):
        path = small_file.write(tmp_path / "it.gguf", kind)
        said = checked(path, expected=shapes(kind), vocabulary=path)
        assert said["tensors"] == f"{len(small_file.weights())}, all finite, none all zero"
        assert said["vocabulary"] == f"{len(small_file.TOKENS)} tokens, a row of the embedding for each"
        assert said["input_ids"] == "2 prompts, the ids of training"
        assert said["answer"]

    @pytest.mark.parametrize("kind", [Kind.Q4_K, Kind.Q6_K])
    def test_blocks_of_k_quants(self, tmp_path, kind):
        path = small_file.write(tmp_path / "it.gguf", damage=lambda tensors: k_quant(tensors, kind, []))
        assert checked(path)["answer"]

    def test_a_bias_that_is_all_zero(self, tmp_path):
        def add(tensors):
            tensors["blk.0.attn_q.bias"] = (np.zeros(small_file.WIDTH, np.float32), Kind.F32)

        assert checked(small_file.write(tmp_path / "it.gguf", damage=add))["answer"]

    @pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells")
    def test_nothing_holds_the_file_any_more(self, tmp_path):
        """Windows renames no file that is open or mapped."""
        path = small_file.write(tmp_path / "it.gguf")
        with open_gguf(path):
            assert small_file.is_held(path)
        checked(path, vocabulary=path)
        assert not small_file.is_held(path)

    def test_a_file_without_prompts(self, tmp_path):
        assert checked(small_file.write(tmp_path / "it.gguf"), prompts=[])["answer"] == ""


def bad_value(value):
    def damage(tensors):
        data, kind = tensors[NAME]
        if kind == Kind.BF16:
            data = data.copy().view(np.uint16)
            data[5, 9] = 0x7FC0 if np.isnan(value) else 0x7F80
            data = data.view(np.uint8)
        elif data.dtype == np.uint8:
            data.view(np.uint16)[5, 0] = np.float16(value).view(np.uint16)  # these blocks begin with their scale
        else:
            data[5, 9] = value
        tensors[NAME] = (data, kind)

    return damage


def zeroed(tensors):
    kind = tensors[NAME][1]
    blank = np.zeros((small_file.INNER, small_file.WIDTH), np.float32)
    tensors[NAME] = (quants.quantize(blank, kind), kind)


class TestTensors:
    """A damaged tensor is refused by its name."""

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_a_value_or_scale_that_is_not_finite(self, tmp_path, kind, value):
        path = small_file.write(tmp_path / "it.gguf", kind, damage=bad_value(value))
        with pytest.raises(GateError, match=rf"Tensor '{NAME}' of 'it\.gguf' has values that are not finite"):
            checked(path)

    @pytest.mark.parametrize(("kind", "word"), [(Kind.Q4_K, 0), (Kind.Q4_K, 1), (Kind.Q6_K, 104)])
    def test_a_scale_of_a_k_quant_that_is_not_finite(self, tmp_path, kind, word):
        path = small_file.write(tmp_path / "it.gguf", damage=lambda tensors: k_quant(tensors, kind, [word]))
        with pytest.raises(GateError, match=f"Tensor '{NAME}' of 'it.gguf' has values that are not finite"):
            checked(path)

    @pytest.mark.parametrize("kind", KINDS)
    def test_nothing_but_zeros(self, tmp_path, kind):
        path = small_file.write(tmp_path / "it.gguf", kind, damage=zeroed)
        with pytest.raises(GateError, match=f"Tensor '{NAME}' of 'it.gguf' is all zero"):
            checked(path)

    def test_a_norm_of_zeros(self, tmp_path):
        def damage(tensors):
            tensors["blk.0.attn_norm.weight"][0][:] = 0

        path = small_file.write(tmp_path / "it.gguf", damage=damage)
        with pytest.raises(GateError, match=r"'blk\.0\.attn_norm\.weight' of 'it\.gguf' is all zero"):
            checked(path)

    def test_a_missing_one(self, tmp_path):
        path = small_file.write(tmp_path / "it.gguf", damage=lambda tensors: tensors.pop(NAME))
        with pytest.raises(GateError, match=f"'it.gguf' has no tensor '{NAME}'"):
            checked(path, expected=shapes("F16"))
        with pytest.raises(StepError, match=f"can't be opened as a model: .*'{NAME}' not found"):
            checked(path)

    def test_one_too_many(self, tmp_path):
        def damage(tensors):
            tensors["blk.0.more.weight"] = (np.ones(4, np.float32), Kind.F32)

        with pytest.raises(GateError, match=r"has a tensor 'blk\.0\.more\.weight' that nothing asked for"):
            checked(small_file.write(tmp_path / "it.gguf", damage=damage), expected=shapes("F16"))

    def test_another_shape(self, tmp_path):
        def damage(tensors):
            data, kind = tensors[NAME]
            tensors[NAME] = (data[:-1], kind)

        path = small_file.write(tmp_path / "it.gguf", damage=damage)
        with pytest.raises(GateError, match=rf"Tensor '{NAME}' of 'it\.gguf' is F16 \[511, 256\] and not F16 \[512, "):
            checked(path, expected=shapes("F16"))
        with pytest.raises(StepError, match=f"tensor '{NAME}' has wrong shape"):
            checked(path)

    def test_another_type(self, tmp_path):
        path = small_file.write(tmp_path / "it.gguf", "Q8_0")
        with pytest.raises(GateError, match=r"Tensor 'token_embd\.weight' of 'it\.gguf' is Q8_0 .* and not Q5_0 "):
            checked(path, expected=shapes("Q5_0"))

    def test_a_cut_file(self, tmp_path):
        path = small_file.write(tmp_path / "it.gguf")
        whole = path.read_bytes()
        for size in (3, 40, 3000, len(whole) // 2, len(whole) - 40):
            path.write_bytes(whole[:size])
            with pytest.raises(UsageError, match="is no GGUF, or it is cut short"):
                checked(path)


class TestMetadata:
    """A file that says something else than its model is refused by what it says."""

    def refused(self, tmp_path, said, family=small_file.FAMILY, **more):
        vocabulary = small_file.write(tmp_path / "vocabulary.gguf")
        path = small_file.write(tmp_path / "it.gguf", **more)
        with pytest.raises(GateError, match=said):
            checked(path, family, vocabulary=vocabulary)
        return path

    def test_another_template(self, tmp_path):
        changes = {"tokenizer.chat_template": small_file.FAMILY.jinja + "\n"}
        self.refused(tmp_path, r"does not carry the template of family 'chatml', at byte", changes=changes)

    def test_no_template(self, tmp_path):
        self.refused(tmp_path, "does not carry the template", changes={"tokenizer.chat_template": None})

    def test_a_name_by_which_text_is_read_in_another_way(self, tmp_path):
        self.refused(tmp_path, "says that its name is 'my phi-3'", changes={"general.name": "my phi-3"})

    def test_no_name_where_text_is_read_by_it(self, tmp_path):
        family = load_family("phi3")
        changes = {"tokenizer.chat_template": family.jinja}
        self.refused(tmp_path, "says that its name is 'twin', .* called 'phi-3'", family, changes=changes)

    def test_another_architecture(self, tmp_path):
        self.refused(tmp_path, "'general.architecture' as 'qwen2'", changes={"general.architecture": "qwen2"})

    @pytest.mark.parametrize("key", ["bos_token_id", "eos_token_id"])
    def test_other_special_tokens(self, tmp_path, key):
        said = rf"'tokenizer\.ggml\.{key}' as '0', and the base model as '[12]'"
        self.refused(tmp_path, said, changes={f"tokenizer.ggml.{key}": 0})

    def test_fewer_tokens_than_rows(self, tmp_path):
        path = small_file.write(tmp_path / "it.gguf", tokens=small_file.TOKENS[:-1])
        with pytest.raises(GateError, match=r"'token_embd\.weight' of 'it\.gguf' has 261 rows for 260 tokens"):
            checked(path)

    def test_text_as_the_end_of_generation(self, tmp_path):
        path = small_file.write(tmp_path / "it.gguf", changes={"tokenizer.ggml.eos_token_id": 40})
        with pytest.raises(GateError, match=r"is id 40, .*, which is text"):
            checked(path)

    def test_the_beginning_of_a_turn_as_the_end_of_generation(self, tmp_path):
        path = small_file.write(tmp_path / "it.gguf", changes={"tokenizer.ggml.eos_token_id": 1})
        with pytest.raises(GateError, match=r"'<\|im_start\|>' ends generation, and prompts are made of it"):
            checked(path)

    def test_an_end_marker_that_does_not_end(self, tmp_path):
        family = small_file.FAMILY.model_copy(update={"stops": ["<|im_end|>", "the"]})
        with pytest.raises(GateError, match="ends with 'the', which is no end of generation"):
            checked(small_file.write(tmp_path / "it.gguf"), family)

    def test_other_ids_than_those_of_training(self, tmp_path):
        path = small_file.write(tmp_path / "it.gguf")
        with pytest.raises(GateError, match="as 3 ids and llama"):
            check(path, small_file.FAMILY, small_file.PROMPTS, lambda turns: [5, 6, 7])


class TestAnswer:
    def test_activations_that_overflow(self, tmp_path):
        def damage(tensors):
            for layer in range(small_file.LAYERS):
                tensors[f"blk.{layer}.ffn_norm.weight"][0][:] = 3e38

        path = small_file.write(tmp_path / "it.gguf", damage=damage)
        with pytest.raises(GateError, match="computes what is not finite"):
            checked(path)

    def test_nothing_but_an_end(self, tmp_path):
        def damage(tensors):
            data, _ = tensors["output.weight"]
            row = data[5].copy()
            data[:] = 0
            # Two tokens end generation: whatever is computed, one of them is the likeliest.
            data[small_file.TOKENS.index("<|endoftext|>")] = row
            data[small_file.TOKENS.index("<|im_end|>")] = -row

        with pytest.raises(GateError, match="answers nothing to its first prompt"):
            checked(small_file.write(tmp_path / "it.gguf", damage=damage))
