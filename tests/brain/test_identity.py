"""One name for a person's aliases, handles and numbers; names match whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.brain.identity import Identity
from twin.errors import UsageError
from twin.names import key

PEOPLE = {"Chirag": ["chirag_p", "+91 98765 43210", "Chirag Patel"], "Beto": ["beto@example.org"]}


@pytest.mark.parametrize(
    "alias",
    [
        "Chirag", "chirag", "CHIRAG_P", " Chirag  Patel ", "Chirag\u00a0Patel", "+91 98765 43210", "+919876543210",
        "0091 (98765) 43210", "91-98765-43210",
    ],
)  # fmt: skip
def test_aliases_are_one_person(alias):
    assert Identity(PEOPLE).resolve(alias) == "Chirag"


@pytest.mark.parametrize(
    "name", ["Chira", "Chirag P", "Chirag Patel Jr", "98765 43210", "43210", "xchirag_p", "", "Cleo"]
)
def test_another_name_is_itself(name):
    assert Identity(PEOPLE).resolve(name) == name


def test_without_people_everybody_is_themselves():
    assert not Identity()
    assert not Identity({})
    assert Identity(PEOPLE)
    assert Identity().resolve("Chirag ") == "Chirag "


def test_an_alias_of_two_people():
    with pytest.raises(UsageError) as caught:
        Identity({"Ana": ["boss", "ana_b"], "Beto": ["BOSS"]})
    assert caught.value.message == "[people] gives 'BOSS' to both 'Ana' and 'Beto'."
    assert caught.value.hint == "Take it out of one in twin.toml."
    assert caught.value.exit_code == 2


def test_a_number_of_two_people_in_two_spellings():
    with pytest.raises(UsageError, match=r"'0049 176 1234567' to both 'Ana' and 'Beto'"):
        Identity({"Ana": ["+49 (176) 123-4567"], "Beto": ["0049 176 1234567"]})


def test_an_alias_said_twice_of_one_person_is_no_error():
    assert Identity({"Ana": ["ana", "Ana", "ANA"]}).resolve("ana") == "Ana"


@pytest.mark.parametrize(
    "name", ["1234", "12 34", "1234567 (work)", "+49 176 1234567 Ana", "room 1234567", "007 James Bond"]
)
def test_few_digits_or_words_are_no_number(name):
    assert key(name) == name.casefold()


@given(st.text(max_size=20))
def test_case_and_spaces_do_not_count(name):
    assert key(f"  {name}\u00a0 ") == key(name)
    assert key(key(name)) == key(name)
    assert Identity({name: []}).resolve(f" {name}\u00a0") == name


@given(st.from_regex(r"\+[1-9][0-9]{6,13}", fullmatch=True), st.sampled_from([" ", "-", "/", ".", " ("]))
def test_a_number_in_any_spelling(number, mark):
    spaced = mark.join((number[:3], number[3:6], number[6:]))
    assert key(spaced) == key(number) == key("00" + number[1:]) == number[1:]


@given(st.dictionaries(st.sampled_from(["Ana", "Beto", "Cleo"]), st.lists(st.sampled_from(["x", "y", "+4917612345"]))))
def test_everyone_has_one_name_or_it_is_refused(people):
    owners = {}
    for name, aliases in people.items():
        for alias in (name, *aliases):
            owners.setdefault(alias, set()).add(name)
    if any(len(names) > 1 for names in owners.values()):
        with pytest.raises(UsageError):
            Identity(people)
        return
    identity = Identity(people)
    for alias, names in owners.items():
        assert {identity.resolve(alias)} == names
        assert identity.resolve(identity.resolve(alias)) == identity.resolve(alias)
