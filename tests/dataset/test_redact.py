"""Private values out of texts: what is found of the labelled ones, and placeholders that tell nothing."""

import re
import subprocess
import sys
from pathlib import Path

import orjson
import pyap
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twin.dataset import redact
from twin.dataset.redact import CLOSE, OPEN, Found, Redactor, find, numbered, plain_digits
from twin.dataset.secrets import kind_of_secret
from twin.dataset.suspects import suspects

HERE = Path(__file__).parent
VALUES = {
    "email": "ana.b@example.org",
    "phone": "+49 176 12345678",
    "card": "4111 1111 1111 1111",
    "iban": "DE89 3704 0044 0532 0130 00",
    "ip": "192.168.7.21",
    "url": "https://example.org/share?token=abc123def",
}
ADDRESS = "742 Evergreen Terrace, Springfield, IL 62704"
PLACEHOLDER = re.compile(r"\[(?:email|phone|card|iban|ip|url|person) \d+\]")
any_text = st.text(max_size=80)  # without lone surrogates, as tidied texts are
marks = st.text(st.sampled_from("0123456789 +-()./:@#[]<>abcdefDEtx=?&%،。٣०４ー－．：／＠\u00a0\n"), max_size=60)
words = st.text(st.sampled_from("abcdefghij klmn ñßждहिかな漢\n,;!?"), max_size=40)
pieces = st.lists(st.one_of(words, st.sampled_from(list(VALUES.values()))), max_size=6).map(", ".join)


# ---------------------------------------------------------------- how much is found, and how much is no such thing


def control(number):
    """Return the labelled messages: texts, and (start, end, kind) of their private values."""
    lines = (HERE / f"redaction_control_{number}.jsonl").read_bytes().splitlines()
    rows = []
    for row in map(orjson.loads, lines):
        places = [(row["text"].index(one["value"]), one["value"], one["kind"]) for one in row["values"]]
        rows.append((row["text"], [(start, start + len(value), kind) for start, value, kind in places]))
    return rows


def spans_of(text):
    return [(one.start, one.end) for one in find(text)]


def measure(rows, redacted=spans_of, left_out=kind_of_secret):
    """Return recall and precision over labelled messages.

    A value is found where one redacted span covers it, or where its message is left out as a secret. What was done
    wrongly: a span that touches no value, a message left out that holds no labelled secret.
    """
    values = found = right = done = 0
    for text, labelled in rows:
        values += len(labelled)
        if left_out(text):
            done += 1
            found += len(labelled)
            right += any(kind == "secret" for *_, kind in labelled)
            continue
        spans = redacted(text)
        done += len(spans)
        found += sum(any(start <= a and b <= end for start, end in spans) for a, b, _ in labelled)
        right += sum(any(start < b and a < end for a, b, _ in labelled) for start, end in spans)
    return found / values, right / done if done else 1.0


@pytest.mark.parametrize(("number", "recall", "precision"), [(1, 0.95, 0.9), (2, 0.9, 0.88)])
def test_how_much_is_found_and_how_much_of_it_is_private(number, recall, precision, record_property):
    got = measure(control(number))
    record_property("recall", got[0])
    record_property("precision", got[1])
    assert got[0] >= recall, f"control {number}: recall {got[0]:.3f}"
    assert got[1] >= precision, f"control {number}: precision {got[1]:.3f}"


@pytest.mark.parametrize("number", [1, 2])
def test_the_measure_sees_a_redactor_that_is_none(number):
    rows = control(number)
    nothing = measure(rows, lambda text: [], lambda text: None)
    everything = measure(rows, lambda text: [(0, len(text))], lambda text: None)
    silence = measure(rows, lambda text: [], lambda text: "key")
    assert nothing[0] == 0
    assert everything[0] == 1
    assert everything[1] < 0.7
    assert silence[0] == 1
    assert silence[1] < 0.2


def test_the_measure_by_hand():
    rows = [("call 123 now", [(5, 8, "phone")]), ("pw is x1", [(6, 8, "secret")]), ("nothing", [])]
    assert measure(rows, lambda text: [(5, 8)] if "call" in text else [], lambda text: "pw" in text) == (1, 1)
    assert measure(rows, lambda text: [(5, 7)] if "call" in text else [], lambda text: None) == (0, 1)  # cut short
    assert measure(rows, lambda text: [(0, 2), (5, 8)] if "call" in text else [], lambda text: None) == (0.5, 0.5)
    assert measure(rows, lambda text: [], lambda text: "call" in text) == (0.5, 0)  # left out, and no secret in it


def test_the_controls_have_every_kind_in_six_languages():
    for number in (1, 2):
        rows = control(number)
        assert {kind for _, labelled in rows for *_, kind in labelled} == {*VALUES, "secret"}
        assert sum(not labelled for _, labelled in rows) > 100
        lines = (HERE / f"redaction_control_{number}.jsonl").read_bytes().splitlines()
        assert {orjson.loads(line)["lang"] for line in lines} == {"ar", "de", "en", "es", "hi", "ja"}


# ---------------------------------------------------------------- find


@pytest.mark.parametrize("kind", VALUES)
def test_each_kind_is_found_whole(kind):
    text = f"so: {VALUES[kind]}, ok"
    assert [(one.kind, text[one.start : one.end]) for one in find(text)] == [(kind, VALUES[kind])]


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        ("email", "Ana.B@Example.org", "ana.b@example.org"),
        ("email", "Ana (AT) Example dot org", "ana (at) example dot org"),
        ("phone", "0176 12345678", "+49 (176) 123-45678"),
        ("phone", "٠١٧٦ ١٢٣٤٥٦٧٨", "0049 176 12345678"),
        ("card", "4111-1111-1111-1111", "4111111111111111"),
        ("card", "４１１１ １１１１ １１１１ １１１１", "4111 1111 1111 1111"),
        ("iban", "de89370400440532013000", "DE89 3704 0044 0532 0130 00"),
        ("ip", "2001:db8:0:0:0:0:0:1", "2001:DB8::1"),
    ],
)
def test_spellings_of_one_value_are_one_value(kind, one, other):
    found = [find(text, ("DE",)) for text in (one, other)]
    assert [len(values) for values in found] == [1, 1]
    assert [values[0].kind for values in found] == [kind, kind]
    assert found[0][0].value == found[1][0].value


@pytest.mark.parametrize(
    "text",
    [
        "see you on 12.05.2024 at 18:30",
        "2019-2024",
        "it cost 1.234.567 of them",
        "10 000 000 people",
        "order 0176 12345678",
        "ISBN 978-3-16-148410-0",
        "4111 1111 1111 1112",  # the check digit is another
        "GB82 WEST 1234 5698 7654 33",
        "999.1.2.3",
        "android 14.0.1.2",
        "git@github.com:ana/twin.git",
        "@ana@example.social",
        "https://example.org/share?page=12345",
        "call +49 800 330 1000 for free",
        "20240305",
        "::",
    ],
)
def test_what_only_looks_private_stays(text):
    assert find(text, ("DE",)) == []


def test_a_national_number_is_read_as_the_regions_say():
    said = [find("98123 45678", regions)[0].value for regions in (("DE", "IN"), ("IN", "DE"))]
    assert said == ["+499812345678", "+919812345678"]


def test_the_script_around_a_number_tells_its_country():
    [found] = find("मेरा नंबर 98123 45678 है")
    assert (found.kind, found.value) == ("phone", "+919812345678")


@given(st.one_of(any_text, marks, pieces), st.sampled_from([(), ("DE",), ("US", "IN"), ("XX",)]))
@example("İ" * 5 + " ana@example.org", ())
@example("https://example.org/?token=abcdef&tel=017612345678", ("DE",))
@example("+" * 30 + "1", ())
@example("00" + "1" * 60, ("DE",))
def test_spans_are_in_order_inside_and_apart(text, regions):
    found = find(text, regions)
    place = 0
    for one in found:
        assert place <= one.start < one.end <= len(text)
        place = one.end
        assert one.kind in (*VALUES, "address")
        assert one.value
    assert found == sorted(found)


@given(pieces)
def test_values_among_words_are_all_found(text):
    expected = sorted((text.index(value), kind) for kind, value in VALUES.items() if value in text)
    first = {}
    for one in find(text):
        first.setdefault(one.kind, one.start)
    assert sorted((start, kind) for kind, start in first.items()) == expected


@given(any_text)
def test_plain_digits_keep_every_place(text):
    plain = plain_digits(text)
    assert len(plain) == len(text)
    assert plain_digits(plain) == plain
    kept = [(one, other) for one, other in zip(text, plain, strict=True) if one.isascii()]
    assert all(one == other for one, other in kept)


def test_digits_of_other_scripts_are_digits():
    assert plain_digits("٤١१२４１𝟒 ＋（－） 1ー2 ー") == "4112414 +(-) 1-2 ー"
    assert plain_digits("²½Ⅳ") == "²½Ⅳ"


@pytest.mark.parametrize("address", [ADDRESS, ADDRESS.replace(", S", "\nS")])
def test_an_address_is_found_whole(address):
    for text in (address, f"come to {address}, at 8", f"so\n{address}\nbye"):
        assert [(one.kind, text[one.start : one.end]) for one in find(text)] == [("address", address)]


@pytest.mark.parametrize("address", ["10 Downing Street, London SW1A 2AA", "10-10 Elm St, Ottawa, ON K1A 0B1"])
def test_an_address_is_one_value_wherever_it_stands(address):
    found = [find(text) for text in (address, f"come to {address}, at 8", f"so\n{address}\nbye")]
    assert [len(values) for values in found] == [1, 1, 1]
    assert len({values[0].value for values in found}) == 1
    assert Redactor().redact(f"come to {address}, at 8") == "come to [address 1], at 8"


NUMBERS = ["12", "10-10", "Twenty Two", "One", "Zero", "P.O. Box 12", "PO Drawer D", "10000"]
STREETS = ["Main Street", "Elm St", "Downing Street", "Infinite Loop"]
PLACES = ["Springfield", "London", "Ottawa", "IL", "Illinois", "CA", "ON", "so"]
CODES = ["62704", "95014-1234", "SW1A 2AA", "K1A 0B1"]
ADDRESS_PARTS = st.sampled_from([*NUMBERS, *STREETS, *PLACES, *CODES])


@given(st.lists(ADDRESS_PARTS, min_size=3, max_size=7), st.sampled_from([", ", " "]))
@example(["P.O. Box 12", "Springfield", "IL", "62704"], ", ")
@example(["Twenty Two", "Main Street", "Springfield", "Illinois", "62704"], " ")
@example(["Downing Street", "London", "SW1A 2AA"], ", ")
def test_no_address_with_a_postal_code_is_passed_over(parts, between):
    text = between.join(parts)
    for country in ("US", "CA", "GB"):
        if any(one.postal_code for one in pyap.parse(text, country=country)):
            assert redact._may_be_addressed(text, country)


@pytest.mark.parametrize("regions", [("DE",), ("DE", "IT")])
def test_a_free_number_of_the_own_country_is_nobodys(regions):
    assert find("call 0800 330 1000", regions) == []
    assert [one.kind for one in find("call 06 5555 1234", ("IT",))] == ["phone"]


@pytest.mark.parametrize("between", [" / ", "  ", " or "])
def test_a_free_number_hides_no_number_beside_it(between):
    for pair in (("0800 330 1000", "0176 12345678"), ("0176 12345678", "0800 3301000")):
        text = between.join(pair)
        assert [text[one.start : one.end] for one in find(text, ("DE",))] == ["0176 12345678"]


@pytest.mark.parametrize("text", ["my number is 8882345678", "whatsapp 9002345678", "mi cel es 844 234 5678"])
def test_where_no_country_is_told_none_has_free_numbers(text):
    assert [one.kind for one in find(text)] == ["phone"]  # mobiles of India and Mexico, toll-free in the United States


@pytest.mark.parametrize(
    "text", ["hey @447911123456 look", "wa.me/447911123456", "https://wa.me/+447911123456?text=hi"]
)
def test_a_mention_is_a_number(text):
    assert [(one.kind, one.value) for one in find(text)] == [("phone", "+447911123456")]
    assert suspects([text]).values == [0]


def test_handles_and_long_numbers_are_no_mentions():
    assert find("@12345 @0447911123456 @447911123456789012 wa.me/qr/AB12") == []


@pytest.mark.parametrize("at", ["(ät)", "[ät]", "( arroba )", "{at}", "(ات)", "< at >"])
def test_an_address_spelt_out_is_seen_among_many(at):
    text = f"ana.quill {at} example.de"
    assert [one.kind for one in find(text)] == ["email"]
    assert suspects(["hi", text]).values == [1]


def test_a_number_alone_is_not_looked_at():
    assert not any(redact._may_be_addressed("it was 10000 in the end, 7919 of us", country) for country in ("US", "CA"))


@pytest.mark.parametrize(
    ("before", "after"), [("a  b   c    d, ", ""), ("a  b   c    d, ", " it is, at 8"), ("one,two,three,four: ", "")]
)
def test_an_address_amid_uneven_spaces(before, after):
    text = f"{before}{ADDRESS}{after}"
    assert [text[one.start : one.end] for one in find(text)] == [ADDRESS]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("4111 1111 1111 1111 12/27", ["4111 1111 1111 1111"]),
        ("12/27 4111 1111 1111 1111", ["4111 1111 1111 1111"]),
        ("4111111111111111 12/27 123", ["4111111111111111"]),
        ("0176 12345678 / 0176 87654321", ["0176 12345678", "0176 87654321"]),
        ("0176 12345678 0176 87654321", ["0176 12345678", "0176 87654321"]),
        ("+49 176 12345678 4111 1111 1111 1111", ["+49 176 12345678", "4111 1111 1111 1111"]),
    ],
)
def test_a_number_beside_another_is_found(text, values):
    assert [text[one.start : one.end] for one in find(text, ("DE",))] == values


def test_a_long_run_of_letters_does_not_hang():
    code = "from twin.dataset.redact import find\nprint(find('ha' * 2500 + ' @'))"
    # A process of its own: Python's regex engine can't be interrupted from inside.
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    except subprocess.TimeoutExpired:
        done = None
    assert done
    assert done.stdout == "[]\n"


# ---------------------------------------------------------------- placeholders


def test_a_value_keeps_its_number():
    redactor = Redactor(("DE",))
    said = [
        "mine: ana@example.org",
        "and bo@example.org, call 0176 12345678",
        "ANA@example.org again, or +49 176 12345678",
        "4111111111111111",
    ]
    assert [redactor.redact(text) for text in said] == [
        "mine: [email 1]",
        "and [email 2], call [phone 1]",
        "[email 1] again, or [phone 1]",
        "[card 1]",
    ]
    assert redactor.counts == {"email": 3, "phone": 2, "card": 1}
    assert redactor.values == [
        ("email", "ana@example.org"),
        ("email", "bo@example.org"),
        ("phone", "+4917612345678"),
        ("card", "4111111111111111"),
    ]


@given(st.lists(st.tuples(words, st.sampled_from(list(VALUES))), min_size=1, max_size=8))
def test_no_digit_of_a_value_is_left(parts):
    redactor = Redactor()
    text = "".join(f"{word} {VALUES[kind]}, " for word, kind in parts)
    done = redactor.redact(text)
    rest = PLACEHOLDER.sub("", done)
    assert not re.search(r"[\d@]", rest)
    assert "example" not in rest
    assert [match.split()[0][1:] for match in PLACEHOLDER.findall(done)] == [kind for _, kind in parts]
    # Everything that is not private is there, byte for byte.
    assert PLACEHOLDER.split(done) == re.split("|".join(map(re.escape, VALUES.values())), text)


@given(st.lists(st.sampled_from([f"someone{n}@example.org" for n in range(6)]), min_size=1, max_size=12))
def test_the_same_number_is_the_same_value_and_no_other(values):
    redactor = Redactor()
    told = [redactor.redact(f"{value} it is") for value in values]
    order = list(dict.fromkeys(values))
    assert told == [f"[email {order.index(value) + 1}] it is" for value in values]


def test_a_placeholder_tells_nothing_of_its_value():
    for value in ("+49 176 12345678", "+49 176 87654321"):
        assert Redactor().redact(f"call {value}") == "call [phone 1]"


@given(st.one_of(any_text, words))
def test_a_text_without_private_values_is_left_alone(text):
    redactor = Redactor()
    if find(text):
        assert redactor.redact(text) != text
        return
    assert redactor.redact(text) == text
    assert redactor.local(text) == text
    assert (redactor.counts, redactor.values) == ({}, [])


@given(words)
def test_words_are_never_private(text):
    assert find(text) == []


def test_values_stay_where_they_are_wanted():
    redactor = Redactor(names={"Beto": "Beto"}, values=False)
    assert redactor.redact("Beto: ana@example.org") == "[person 1]: ana@example.org"
    assert redactor.counts == {"person": 1}


def test_people_by_a_pseudonym():
    redactor = Redactor(names={"Ana": "Ana", "Ana Maria": "Ana Maria", "Jo": "Jo", " ": " "})
    assert redactor.redact("ask Ana Maria or Ana, not Joan or Anabel; Jo!") == (
        "ask [person 1] or [person 2], not Joan or Anabel; [person 3]!"
    )
    assert redactor.redact("Ana") == "[person 2]"


def test_names_with_marks_are_names():
    assert (
        Redactor(names={"A. (work)": "A. (work)"}).redact("is A. (work) there? A. works")
        == "is [person 1] there? A. works"
    )


def test_parts_count_on_their_own_until_they_are_put_together():
    text = "call +49 176 12345678 or bo@example.org"
    part = Redactor()
    part.local("first cy@example.org")
    local = part.local(text)
    assert local == f"call {OPEN}phone1{CLOSE} or {OPEN}email2{CLOSE}"
    numbers = {("phone", 1): 7, ("email", 2): 12}
    assert numbered(local.encode(), numbers).decode() == "call [phone 7] or [email 12]"
    assert numbered(b"[phone 1] phone1", numbers) == b"[phone 1] phone1"


@given(pieces)
def test_local_placeholders_become_the_same_text(text):
    whole, part = Redactor(), Redactor()
    redacted, local = whole.redact(text), part.local(text)
    numbers = {(kind, whole.number(kind, value)): whole.number(kind, value) for kind, value in part.values}
    assert numbered(local.encode(), numbers).decode() == redacted
    assert part.values == whole.values


def test_found_is_plain_data():
    assert find("mail ana@example.org") == [Found(5, 20, "email", "ana@example.org")]
