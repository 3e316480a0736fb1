"""Rows in a tensor's type: each expert's are weighed by its own line of the importance matrix."""

from pathlib import Path

import numpy as np
import pytest

from tests.gguf import small_file
from twin.gguf.quantize import Quantizer, plan, type_numbers


def test_each_expert_has_its_own_weights():
    random = np.random.default_rng(0)
    values = random.standard_normal((8, 256), np.float32)  # two experts of four rows
    weights = np.stack([random.random(256, np.float32) + 0.01, np.linspace(0.01, 9, 256, dtype=np.float32)])
    kind = type_numbers()["q4_K"]
    stacked = Quantizer("experts", kind, 256, 4, weights)
    for expert in range(2):
        rows = values[4 * expert : 4 * expert + 4]
        alone = Quantizer("one", kind, 256, 4, weights[expert : expert + 1])
        other = Quantizer("other", kind, 256, 4, weights[1 - expert : 2 - expert])
        assert stacked.rows(rows, 4 * expert).tobytes() == alone.rows(rows, 0).tobytes()
        assert stacked.rows(rows, 4 * expert).tobytes() != other.rows(rows, 0).tobytes()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells")
def test_nothing_holds_the_file_that_a_plan_was_made_of(tmp_path):
    """It is removed, and Windows removes no file that is open or mapped."""
    shell = small_file.write(tmp_path / "shell.gguf", "F16")
    assert set(plan(shell, "q8_0", {})) == set(small_file.weights())
    assert not small_file.is_held(shell)
