"""What a person and a program see, whatever is in it."""

from __future__ import annotations

import json

import pytest

from twin.cli.console import Output
from twin.errors import UsageError


def test_an_error_of_an_odd_name_is_one_object_too(capfd: pytest.CaptureFixture[str]) -> None:
    Output(json=True).error(UsageError("There is nothing at 'a\udcff'.", "Name another."))
    assert json.loads(capfd.readouterr().out) == {
        "error": "There is nothing at 'a?'.", "hint": "Name another.", "exit_code": 2,
    }  # fmt: skip
