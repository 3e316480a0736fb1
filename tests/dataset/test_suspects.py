"""The coarse look lets through whatever the close look finds, message by message, whatever stands beside it."""

import random
from pathlib import Path

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twin.dataset.redact import find
from twin.dataset.secrets import NETWORKS, WORDS, holds_key, holds_seed_phrase, kind_of_secret, tells_password
from twin.dataset.suspects import Suspects, suspects

HERE = Path(__file__).parent
SEED = "abandon ability able about above absent absorb abstract absurd abuse access accident"
WIDE_NUMBERS = {code: code + 0xFEE0 for code in map(ord, "0123456789+-.@")} | {0x20: 0x3000}
WIDE = {code: code + 0xFEE0 for code in range(0x21, 0x7F)} | {0x20: 0x3000}
PARTS = (
    "ana@example.org", "Ana.B@Example.org", "ana (at) example dot org", "ana [AT] example [dot] org",
    "ana at example dot org", "ana एट example डॉट com", "ana (@) example.org", "ana ت", "用户@例子.广告",
    "+49 176 12345678", "0176/1234567", "(415) 555-2671", "+1 (415) 5 5 5 - 2 6 7 1", "98123 45678", "03-1234-5678",
    "4111 1111 1111 1111", "4111 - 1111 - 1111 - 1111", "3782 822463 10005", "DE89 3704 0044 0532 0130 00",
    "GB82-WEST-1234-5698-7654-32", "MT84MALT011000012345MTLCAST001S", "1.1.1.1", "255.255.255.255", "::ffff:1.2.3.4",
    "2001:db8::1", "fe80::1%eth0", "1:2:3:4:5:6:7:8", "https://ana:pw12@example.org/", "ftp://h/?x=1&token=abcdef",
    "AKIA" + "ABCD2345" * 2, "ghp_" + "a1B2" * 9, "xoxb-" + "a1b2c3d4e5", "123456789:" + "a1B2c" * 7,
    "-----BEGIN RSA PRIVATE KEY-----", "hooks.slack.com/services/T0/B0/" + "a" * 16,
    "discord.com/api/webhooks/1/" + "a" * 30, "aB3" * 14, "password: k4lem-2x", "PASSWORT ist Kalimba7", "pin 4711",
    "パスワードは「tanuki9」", "wifi: kalimba-77x", "пароль kal1mba!",
    SEED, SEED.replace(" ", ",").upper(), SEED.replace(" ", "\u3000"),
    "yes", "ok 7", "İstanbul", "ß", "\u212a", "\n", " ", ",", "1", "12", ":", ".", "日本語", "🙂",
)  # fmt: skip
NUMBERS = [part for part in PARTS if not any(letter.isalpha() for letter in part)]
texts_ = st.lists(
    st.one_of(
        st.sampled_from(PARTS),
        st.sampled_from(PARTS).map(lambda part: part.translate(WIDE_NUMBERS)),
        st.sampled_from(NUMBERS).map(lambda part: part.translate({ord("0") + n: 0x660 + n for n in range(10)})),
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12),
        st.text(st.sampled_from("0123456789-+.:/ @aF٣४"), max_size=20),
    ),
    max_size=5,
).map(" ".join)


def missed(texts):
    """Return (number, what was found) of each find that the right list lacks."""
    lists = suspects(texts)
    lacking = []
    for number, text in enumerate(texts):
        if number not in lists.values and (found := find(text)):
            lacking.append((number, found[0].kind))
        for name, of, look in (
            ("key", lists.keys, holds_key),
            ("password", lists.passwords, tells_password),
            ("seed phrase", lists.seeds, holds_seed_phrase),
        ):
            if number not in of and look(text):
                lacking.append((number, name))
    return lacking


def control(number):
    lines = (HERE / f"redaction_control_{number}.jsonl").read_bytes().splitlines()
    return [orjson.loads(line)["text"] for line in lines]


@pytest.mark.parametrize("number", [1, 2])
def test_nothing_of_the_controls_is_missed(number):
    """Addresses apart, which a test of their own is about."""
    texts = control(number)
    assert [kind for _, kind in missed(texts) if kind != "address"] == []
    random.Random(number).shuffle(texts)  # noqa: S311 - another order of them
    assert [kind for _, kind in missed(texts) if kind != "address"] == []
    assert [kind for text in texts for _, kind in missed([text]) if kind != "address"] == []


@pytest.mark.parametrize("number", [1, 2])
def test_the_controls_have_something_to_find(number):
    texts = control(number)
    assert sum(bool(find(text)) for text in texts) > 100
    assert {kind_of_secret(text) for text in texts} >= {None, "key", "password"}


@given(st.lists(texts_, max_size=6))
@example(["a", "İ" * 3 + " password: k4lem-2x", "ana@example.org"])
@example(["İ" * 40, "password: k4lem-2x", "x" * 60])
@example(["", "", "1.1.1.1", ""])
def test_nothing_is_missed(texts):
    assert missed(texts) == []


@pytest.mark.parametrize("part", PARTS)
def test_each_part_alone_and_amid_others(part):
    assert missed([part]) == []
    assert missed(["yes", f"İ {part}", "no"]) == []
    assert missed(["yes", part.translate(WIDE_NUMBERS), "no"]) == []


@pytest.mark.parametrize("word", [*WORDS, *NETWORKS])
def test_each_word_for_a_password_is_one_here(word):
    for text in (f"{word}: k4lem-2x9", f"so {word.upper()} is kalemBa77x", f"「{word}」k4lem-2x9"):
        assert suspects(["", text]).passwords == [1]


@given(st.lists(texts_, min_size=1, max_size=5), st.lists(texts_, max_size=2))
def test_neighbours_take_nothing_away(texts, others):
    alone, beside = suspects(texts), suspects([*texts, *others])
    for own, both in zip(alone, beside, strict=True):
        assert set(own) <= set(both)


@given(st.lists(texts_, max_size=6))
def test_the_lists_are_numbers_in_order(texts):
    for numbers in suspects(texts):
        assert numbers == sorted(set(numbers))
        assert set(numbers) <= set(range(len(texts)))


def test_golden():
    texts = [
        "hi there",
        "ana@example.org",
        "my pin",
        "a1b2c3d4e5f6g7h8",
        "one " * 12,
        "18:30, 4 of them" + "~" * 30,
        "1.1.1.1",
    ]
    assert suspects(texts) == Suspects(values=[1, 3, 6], keys=[3], passwords=[2], seeds=[4])
    assert suspects([]) == Suspects([], [], [], [])


# A coarse look that lets everything through would pass all of the above, and save nothing.
def test_most_messages_of_a_chat_are_passed_over(sample_brain):
    from twin.brain import load

    texts = [message.text for talk in load([sample_brain]).conversations() for message in talk.messages]
    assert len(texts) > 1000
    found = suspects(texts)
    assert (
        len({number for numbers in (found.values, found.keys, found.passwords) for number in numbers}) < len(texts) / 8
    )


@pytest.mark.parametrize(
    "text",
    [
        "ana (arroba) example.org",
        "ana { at } example.org",
        "ana（at）example.org",
        "anaアットexample.org",
        "𝟎𝟏𝟕𝟔 𝟏𝟐𝟑𝟒𝟓𝟔𝟕𝟖",
        "https：//example.org?token=abcdef",
        *(part.translate(WIDE) for part in ("fe80::1", "ana (at) example dot org", "ana at example dot org")),
        SEED.replace(" ", "-", 1),
        "xoxb-" + "ä" * 10,
    ],
)
def test_spellings_that_the_close_look_knows(text):
    assert missed([text]) == []


@pytest.mark.parametrize(
    "texts",
    [
        ["10 Elm St, Ottawa, ON K1A 0B1"],
        ["1 Abbey Way, London NW8 9AY"],
        ["7 Old Mill\nStreet, York YO1 7HH"],
        pytest.param(control(1), id="control"),
    ],
)
def test_addresses_of_every_kind_of_street(texts):
    assert missed(texts) == []
