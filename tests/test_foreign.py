"""A server's text on one line, and which addresses are this machine."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.foreign import bounded, is_loopback, one_line


@given(st.text(max_size=40))
def test_any_text_is_one_printable_line(text):
    line = one_line(text)
    assert line.isprintable()
    assert line.split() == line.split(" ") or line == ""
    assert one_line(line) == line


def test_nothing_moves_the_cursor():
    assert one_line(" a\x1b[2J\n\tb ") == "a [2J b"


@pytest.mark.parametrize(("most", "shown"), [(5, "abcde"), (4, "abc…"), (1, "…")])
def test_what_is_cut_says_so(most, shown):
    assert bounded("abcde", most) == shown


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("localhost", True), ("LocalHost", True), ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True),
        ("[::1]", True), ("0.0.0.0", False), ("::", False), ("192.168.0.2", False),  # noqa: S104
        ("localhost.example", False), ("127.0.0.1.example", False), ("app", False),
    ],
)  # fmt: skip
def test_this_machine(host, here):
    assert is_loopback(host) is here
