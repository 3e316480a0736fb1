"""What the row filter keeps is what the dataset's reader reads: the two know the same shapes."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.app.rows import row_problem
from twin.dataset.formats import WRITERS, read_rows
from twin.errors import UsageError
from twin.records import Example, Turn

words = st.sampled_from(["", " ", "hi", "Bea: hi\nAda: yo", "Ada: x", 3, None, ["x"], {}])
roles = st.sampled_from(["user", "assistant", "system", "human", "gpt", "tool", None, 3, []])
near_rows = st.fixed_dictionaries(
    {},
    optional={
        "messages": st.lists(st.fixed_dictionaries({"role": roles, "content": words}), max_size=3) | words,
        "conversations": st.lists(st.fixed_dictionaries({"from": roles, "value": words}), max_size=3) | words,
        "instruction": words, "input": words, "output": words, "system": words, "context": words, "response": words,
        "history": st.lists(st.lists(words, max_size=3), max_size=2) | words, "text": words, "id": words,
        "spans": st.lists(st.tuples(roles, st.integers(-2, 9) | st.none(), st.integers(-2, 9)), max_size=3) | words,
        "kind": st.sampled_from(["chat", "x"]), "conversation": words,
    },
)  # fmt: skip


valid_rows = st.sampled_from(
    [
        {"messages": [{"role": "human", "content": "hi"}, {"role": "gpt", "content": "yo"}]},
        {"conversations": [{"from": "user", "value": "hi"}, {"from": "assistant", "value": "yo"}]},
        {"instruction": "hi", "output": "yo"},
        {"context": "hi", "response": "yo"},
        {"text": "Bea: hi\nAda: yo"},
        {"text": "Bea: hi", "spans": [["user", 0, 4], ["assistant", 5, 7]]},
    ]
)
# Valid ones with fields of other shapes around them, and ones that are hardly ever valid.
some_rows = st.builds(lambda near, valid: near | valid, near_rows, valid_rows) | near_rows


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tmp_path_factory.mktemp("rows") / "rows.jsonl"


@given(row=some_rows)
def test_what_is_kept_can_be_trained_on(file: Any, row: dict[str, Any]) -> None:
    """The dataset reader stops at the first line that it can't read, so nothing of the kind may get that far."""
    line = orjson.dumps(row)
    file.write_bytes(line)
    if row_problem(line) == "":
        assert len(list(read_rows(file))) == 1


def test_what_is_left_out_would_have_stopped_the_reader(file: Any) -> None:
    file.write_bytes(b'{"messages": [{"role": "tool", "content": "x"}]}')
    with pytest.raises(UsageError):
        list(read_rows(file))


@pytest.mark.parametrize("format_name", sorted(WRITERS))
@pytest.mark.parametrize("system", [True, False])
def test_rows_of_every_format_are_rows(format_name: str, system: bool) -> None:
    turns = (Turn("user", "hi: there\nyou"), Turn("assistant", "one"), Turn("user", "two"), Turn("assistant", "three"))
    example = Example("a", "a", "chat", ((Turn("system", "be kind"),) if system else ()) + turns, "Bea")
    row = WRITERS[format_name](example, "Ada")
    assert row_problem(orjson.dumps(row)) == ""
