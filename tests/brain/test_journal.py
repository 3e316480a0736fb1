"""Journals: an entry a file or a dated heading; its date from front matter, name, folders or heading."""

from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.brain import reading
from tests.brain.reading import put
from twin.brain import document as documents
from twin.brain.importers import journal, pick
from twin.records import JournalEntry


def read(content, file="entry.md"):
    put(file, content)
    return reading.read(journal, file, f"j/{file}")


def days(content, file="entry.md"):
    """Return (number, day, title, text) of each entry."""
    found, _ = read(content, file)
    return [
        (one.id.partition("#")[2], f"{one.at:%d.%m. %H:%M}" if one.at else "", one.title, one.text) for one in found
    ]


def date_of(file, content="x"):
    [entry] = read(content, file)[0]
    return entry.at


def test_date_title_and_text():
    assert read("\n## 41 pages  \n\nhanded in the bid  \n\nfelt ill\n", "2025-01-22 bid.md") == (
        [JournalEntry("j/2025-01-22 bid.md", "handed in the bid\n\nfelt ill", "41 pages", datetime(2025, 1, 22))],
        {},
    )


MARCH = datetime(2024, 3, 5)


@pytest.mark.parametrize(
    "file",
    [
        "2024-03-05.md",
        "2024-03-05 bid.txt",
        "20240305.txt",
        "note_20240305_2.md",
        "2024_03_05.md",  # Logseq: https://docs.logseq.com, :journal/file-name-format
        "2024.03.05.md",
        "5 March 2024.md",
        "Tuesday, 5th of March, 2024.markdown",
        "05-Mar-2024.md",
        "Mar 5th, 2024.md",  # Roam
        "2024/March/2024-Mar-05.md",  # Obsidian, Daily notes: YYYY/MMMM/YYYY-MMM-DD
        "journal/2024/03/05.txt",  # jrnl's folders
        "5.3.2024.txt",
        "05. 03. 2024.txt",
    ],
)
def test_dates_in_names_and_folders(file):
    assert date_of(file) == MARCH


@pytest.mark.parametrize(
    "file",
    [
        "notes.md",
        "12025-01-22.md",
        "2025-1-22.md",
        "x.markdown",
        "12345678.txt",
        "05-03-2024.md",  # May or March?
        "maybe 2024.md",
        "Mayor 5 2024.md",
        "ticket 1234-56.md",
        "2024-03_05.md",
    ],
)
def test_without_a_date(file):
    assert read("slept in", file)[0] == [JournalEntry(f"j/{file}", "slept in")]


def test_an_impossible_date_is_counted_and_the_entry_kept():
    assert read("x", "2024-02-31.md") == (
        [JournalEntry("j/2024-02-31.md", "x")],
        {"journal with an impossible date": 1},
    )


@pytest.mark.parametrize("content", ["# Only a title\n", "\n\n", "#  T \n \n", "---\ntitle: T\n---\n"])
def test_a_heading_alone_is_no_entry(content):
    assert read(content) == ([], {"journal without text": 1})


def test_a_hashtag_is_no_heading():
    assert read("#tired\nmore")[0] == [JournalEntry("j/entry.md", "#tired\nmore")]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_mark_and_windows_line_ends(encoding):
    put("entry.md", "# T\r\naé\r\nb\r\n".encode(encoding))
    assert reading.read(journal, "entry.md", "j")[0] == [JournalEntry("j", "aé\nb", "T")]


# ---------------------------------------------------------------- front matter


@pytest.mark.parametrize(
    "line",
    [
        "date: 2024-03-05",
        "Date: '2024-03-05'",
        'date: "[[2024-03-05]]"',
        "date: March 5, 2024",
        "created: 2024-03-05",
        "tags:\n  - day\ndate: 2024-03-05\n# a remark\nmood: 7",
    ],
)
def test_the_date_of_front_matter(line):
    assert read(f"---\n{line}\n---\n\nslept in\n")[0] == [JournalEntry("j/entry.md", "slept in", "", MARCH)]


def test_a_time_in_front_matter():
    assert date_of("a.md", "---\ndate: 2024-03-05T21:14:10+01:00\n---\nx") == datetime(2024, 3, 5, 21, 14)


def test_which_date_goes_first():
    """A note's making may be years after its day."""
    content = "---\ncreated: 2024-12-31\n---\n# 6 March 2024\nx"
    assert date_of("2024-03-05.md", content) == MARCH
    assert date_of("note.md", content) == datetime(2024, 3, 6)
    assert date_of("2024-03-09.md", f"---\ndate: 2024-03-05\n{content[4:]}") == MARCH


def test_the_title_of_front_matter():
    [entry] = read("---\ntitle: 'Bid week'\n---\n# Morning\nup\n")[0]
    assert (entry.title, entry.text) == ("Bid week", "# Morning\nup")
    [entry] = read("---\ntitle: Morning\n---\n\n# Morning\nup\n")[0]
    assert (entry.title, entry.text) == ("Morning", "up")
    [entry] = read("---\ntitle: 2024-03-05\n---\n# Morning\nup\n")[0]
    assert (entry.title, entry.text) == ("Morning", "up")


@pytest.mark.parametrize("content", ["---\nslept in\n---\nmore", "---\ndate: 2024-03-05\nno end", "---", "---\n---x"])
def test_a_rule_is_no_front_matter(content):
    assert read(content)[0] == [JournalEntry("j/entry.md", content)]


# ---------------------------------------------------------------- several entries in a file


def test_an_entry_a_dated_heading():
    content = (
        "# My journal\n\nBegun in winter.\n\n# March 2024\n\n## 2024-03-05\nwoke\n\n### Work\nlong day\n\n"
        "## 2024-03-06 21:14 – Bid handed in.\n\nslept\n# April 2024\n## Mon, 1 April 2024\n\n# A title\nrain\n"
    )
    assert days(content) == [
        ("0", "", "My journal", "Begun in winter."),
        ("1", "05.03. 00:00", "", "woke\n\n### Work\nlong day"),
        ("2", "06.03. 21:14", "Bid handed in.", "slept"),
        ("3", "01.04. 00:00", "A title", "rain"),
    ]


def test_dates_alone_on_their_lines():
    content = "Monday, 4 March 2024\nran\nwe met on\n5 March 2024\nin town\n\n5 March 2024:\nrested\n"
    assert days(content, "diary.txt") == [
        ("1", "04.03. 00:00", "", "ran\nwe met on\n5 March 2024\nin town"),
        ("2", "05.03. 00:00", "", "rested"),
    ]


def test_a_daily_note_keeps_its_name():
    content = "# Tuesday, 5 March 2024\n\nwoke\n\n## Plans for 2024-04-01\n\nnone\n"
    assert days(content, "today.md") == [("", "05.03. 00:00", "", "woke\n\n## Plans for 2024-04-01\n\nnone")]


def test_a_date_below_a_letter():
    assert days("Dear me,\nbe well.\n\n5 March 2024\n") == [("", "05.03. 00:00", "", "Dear me,\nbe well.")]


def test_an_empty_day_is_counted_and_numbered():
    content = "## 2024-03-05\n\n## 2024-03-06\nx\n## 2024-02-31\ny\n"
    assert days(content) == [("2", "06.03. 00:00", "", "x"), ("3", "", "", "y")]
    assert read(content)[1] == {"journal without text": 1, "journal with an impossible date": 1}


def test_a_link_is_no_heading():
    assert days("a\n\n[2024-03-05](2024-03-05.md)\n\n[2024-03-06](x) b\n")[0][0] == ""


def test_links_to_daily_notes_are_headings():
    assert days("## [[2024-03-05]]\na\n## **2024-03-06**: rain\nb\n") == [
        ("1", "05.03. 00:00", "", "a"),
        ("2", "06.03. 00:00", "rain", "b"),
    ]


def test_jrnl():
    """As jrnl 4.6 writes its file and, with --format markdown, an export."""
    content = "[2024-03-05 07:30:00 AM] Rain, again.\nLemons: out.\n\n[2024-03-06 09:15:10 PM] Better: up at 9. *\n"
    assert days(content, "journal.txt") == [
        ("1", "05.03. 07:30", "", "Rain, again.\nLemons: out."),
        ("2", "06.03. 21:15", "", "Better: up at 9."),
    ]
    content = (
        "# 2024\n\n## March\n\n### 2024-03-05 07:30:00 AM Rain, again.\n\nLemons are out.\n \n"
        "### 2024-03-06 10:00:00 AM One line\n\n \n## April\n\n### 2024-04-01 09:00:00 PM Sick\n\nslept\n"
    )
    assert days(content) == [
        ("1", "05.03. 07:30", "Rain, again.", "Lemons are out."),
        ("2", "06.03. 10:00", "", "One line"),
        ("3", "01.04. 21:00", "Sick", "slept"),
    ]


def test_day_one():
    """Its plain text export: dates, weather and place between tabs."""
    content = (
        "\tDate:\tMarch 5, 2024 at 9:14:10\u202fPM GMT+1\n\tWeather:\t4°C Rain\n\tLocation:\tHome, Graz\n\n"
        "# Late\nStill up.\n\n\n\tDate:\tMarch 6, 2024 at 7:00:00\u202fAM GMT+1\n\nTea.\n\tNote:\tkept\n"
    )
    assert days(content, "Journal.txt") == [
        ("1", "05.03. 21:14", "Late", "Still up."),
        ("2", "06.03. 07:00", "", "Tea.\n\tNote:\tkept"),
    ]


def test_images_are_no_words():
    content = "# Lake\n![](photos/a.jpg)\ncold ![x](b.png) water\n![[c.png]]\n"
    assert read(content) == ([JournalEntry("j/entry.md", "cold ![x](b.png) water", "Lake")], {"media": 2})


# ---------------------------------------------------------------- properties


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.just("\n"), max_size=80))
def test_no_word_is_lost(text):
    assume(not any(letter.isdecimal() for letter in text))
    entries, skipped = read(text)
    told = [word for entry in entries for word in f"{entry.title} {entry.text}".split()]
    words = text.removeprefix("\ufeff").split()
    assert [word for word in told if word.strip("#")] == [word for word in words if word.strip("#")]
    assert len(entries) + skipped.get("journal without text", 0) == 1


dates = st.datetimes(datetime(1000, 1, 1), datetime(2999, 12, 31)).map(lambda at: at.replace(second=0, microsecond=0))
lines = st.text(st.characters(categories=["L", "P", "S"], exclude_characters="#![-\t"), min_size=1, max_size=20)
SHAPES = (
    "## {0:%Y-%m-%d %H:%M}",
    "# {0:%A}, {0.day} {0:%B} {0.year:04} {0:%H:%M}",
    "### {0:%b} {0.day}, {0.year:04} at {0:%I:%M %p}",
)
written = st.tuples(dates, st.lists(lines, min_size=1, max_size=4))


@given(st.lists(written, min_size=2, max_size=5), st.sampled_from(SHAPES))
def test_what_was_written_comes_back(entries, shape):
    written = [(at, "\n".join(text)) for at, text in entries]
    content = "".join(f"{shape.format(at)}\n\n{text}\n\n" for at, text in written)
    found, skipped = read(content)
    assert [(one.at, one.text) for one in found] == written
    assert [one.id for one in found] == [f"j/entry.md#{number}" for number in range(1, len(found) + 1)]
    assert skipped == {}


MARKS = "---|date: 2024-03-05|title: b|# T|## 2024-03-05|5 March 2024|[2024-03-05 09:00] a|\tDate:\t5 March 2024"
pieces = st.sampled_from(f"{MARKS}|\tTags:\tx|## 2024-02-31|# March 2024|![](a)||a".split("|"))


@given(st.lists(pieces, max_size=12))
def test_any_order_of_lines_is_read_or_counted(content):
    entries, skipped = read("\n".join(content))
    assert len({entry.id for entry in entries}) == len(entries)
    assert all(entry.text == entry.text.strip() != "" for entry in entries)
    assert len(entries) + skipped.get("journal without text", 0) >= 1


# ---------------------------------------------------------------- what is no journal


@pytest.mark.parametrize(
    "lines",
    [
        "5.3.2024 kell 21.14 - Ana: tuled\n5.3.2024 kell 21.15 - Ben: jah\n",
        "2024/03/06(水) 午後9:14 - Ana: 何食べたい?\n2024/03/06(水) 午後9:15 - Ben: うどん\n",
        "21:14, 05/03/2024 - Ana: ăn gì?\n21:15, 05/03/2024 - Ben: phở\n",
        "[2024-03-05 21:14] Ana: hi\n[2024-03-05 21:15] Ben: yo\n[2024-03-05 21:15] Ben left\n",
        "[2024-03-05, 21:14] Ana: hi\n" + "so\n" * 9 + "[2024-03-05, 21:15] Me: \nyo\n",  # signal-export's chat.md
        f"{'=' * 62}\nGuild: Home\nChannel: general\n{'=' * 62}\n\n[05/03/2024 21:14] ana\nhi\n",
    ],
)
def test_a_chat_in_an_unknown_layout_is_no_journal(lines):
    """The words of the other side would become the person's own."""
    for data in (lines.encode(), lines.encode("utf-16")):
        assert not journal.sniff(put("chat.txt", data), data)


@pytest.mark.parametrize(
    "text",
    [
        "2024-03-05 woke at 7:30, ran: 5 km\nslept in\nread\nrain\n",
        "bought: 3 lemons\n12 eggs\n",
        "On 5/3/2024 at 21:14 she said: come\n",
        "21:14 home. tired\n",
        "## 2024-03-05 21:14 late: tired\nslept\n",
        "[2024-03-05 21:14] Called in sick.\n[2024-03-06 21:14] Slept.\n[2024-03-07 21:14] Better: up at 9.\n",
        "[2024-03-05 09:14:10 PM] Called in sick.\n",
    ],
)
def test_notes_with_dates_and_colons_are_journals(text):
    assert pick(put("notes.txt", text), text.encode()) is journal


# Was wrong once: the rest of a line that is too long is lost without a word.
def test_lines_that_are_cut_are_counted(monkeypatch):
    monkeypatch.setattr(documents, "MAX_LINE_BYTES", 20)
    [entry], skipped = read("slept in\n" + "walked home " * 3 + "\nrain\n")
    assert entry.text == "slept in\nwalked home walked h\nrain"
    assert skipped == {"rest of a line of over 4 MiB": 1}


def test_the_sample_keeps_its_entries(sample_brain):
    for path in Path(sample_brain, "journal").glob("*.md"):
        [entry] = reading.read(journal, path)[0]
        assert f"{entry.at:%Y-%m-%d}" == path.stem
        assert entry.text
