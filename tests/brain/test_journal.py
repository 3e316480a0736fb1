"""Journals: one file an entry, its date from the file's name, its title from the first heading."""

from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.brain.importers import journal
from twin.records import JournalEntry


def read(content, file="entry.md"):
    Path(file).write_bytes(content.encode("utf-8"))
    skipped = Counter()
    return list(journal.read(Path(file), f"j/{file}", skipped)), dict(skipped)


def test_date_title_and_text():
    assert read("\n## 41 pages  \n\nhanded in the bid  \n\nfelt ill\n", "2025-01-22 bid.md") == (
        [JournalEntry("j/2025-01-22 bid.md", "handed in the bid\n\nfelt ill", "41 pages", datetime(2025, 1, 22))],
        {},
    )


@pytest.mark.parametrize("file", ["notes.md", "12025-01-22.md", "2025-1-22.md", "x.markdown"])
def test_without_a_date(file):
    assert read("slept in", file)[0] == [JournalEntry(f"j/{file}", "slept in")]


def test_an_impossible_date_is_counted_and_the_entry_kept():
    assert read("x", "2024-02-31.md") == (
        [JournalEntry("j/2024-02-31.md", "x")],
        {"journal with an impossible date": 1},
    )


@pytest.mark.parametrize("content", ["# Only a title\n", "\n\n", "#  T \n \n"])
def test_a_heading_alone_is_no_entry(content):
    assert read(content) == ([], {"journal without text": 1})


def test_a_hashtag_is_no_heading():
    assert read("#tired\nmore")[0] == [JournalEntry("j/entry.md", "#tired\nmore")]


def test_byte_order_mark_and_windows_line_ends():
    assert read("\ufeff# T\r\na\r\nb\r\n")[0] == [JournalEntry("j/entry.md", "a\nb", "T")]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
def test_no_word_is_lost(text):
    entries, skipped = read(text)
    told = [word for entry in entries for word in f"{entry.title} {entry.text}".split()]
    words = text.removeprefix("\ufeff").split()
    assert [word for word in told if word.strip("#")] == [word for word in words if word.strip("#")]
    assert len(entries) + skipped.get("journal without text", 0) == 1


@pytest.mark.parametrize(
    "lines",
    [
        "5.3.2024 kell 21.14 - Ana: tuled\n5.3.2024 kell 21.15 - Ben: jah\n",
        "2024/03/06(水) 午後9:14 - Ana: 何食べたい?\n2024/03/06(水) 午後9:15 - Ben: うどん\n",
        "21:14, 05/03/2024 - Ana: ăn gì?\n21:15, 05/03/2024 - Ben: phở\n",
    ],
)
def test_a_chat_in_an_unknown_layout_is_no_journal(lines):
    """The words of the other side would become the person's own."""
    assert not journal.sniff(Path("chat.txt"), lines.encode("utf-8"))


@pytest.mark.parametrize(
    "text",
    [
        "2024-03-05 woke at 7:30, ran: 5 km\nslept in\nread\nrain\n",
        "bought: 3 lemons\n12 eggs\n",
        "On 5/3/2024 at 21:14 she said: come\n",
        "21:14 home. tired\n",
    ],
)
def test_notes_with_dates_and_colons_are_journals(text):
    assert journal.sniff(Path("notes.txt"), text.encode("utf-8"))
