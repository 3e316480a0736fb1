"""A tokenizer that can't be read is told in a sentence; what a whole one reads is held in ``tests/templates``."""

from __future__ import annotations

import pytest

from twin.errors import UsageError
from twin.gguf.vocabulary import copy_checkpoint
from twin.training.tokenizer import load_tokenizer


@pytest.mark.parametrize("content", [None, b"", b'{"a":', b"{}", b'{"model": {"type": "BPE"}}', b"\xff\xfe", b"[1]"])
def test_no_tokenizer(tmp_path, smollm2, content):
    copy_checkpoint(smollm2, tmp_path)
    assert load_tokenizer(tmp_path)("yes")["input_ids"]
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / "tokenizer.json").unlink()
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"The tokenizer of .* can't be read: ") as told:
        load_tokenizer(tmp_path)
    assert "\n" not in told.value.message
    assert told.value.hint
