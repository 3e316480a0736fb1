"""Digests that stand for names: one for all spellings of a person, and of a document those of what it lies in."""

import pytest

from twin.names import is_digest, person_digest, source_digest, source_digests


@pytest.mark.parametrize(
    ("name", "other", "same"),
    [
        ("Ada Byron", " ada  BYRON", True), ("Ada Byron", "Ada\u00a0Byron", True), ("Ada Byron", "Ada", False),
        ("+44 20 7946 0958", "+442079460958", True), ("+44 20 7946 0958", "0044 (20) 7946-0958", True),
        ("+44 20 7946 0958", "+44 20 7946 0959", False),
    ],
)  # fmt: skip
def test_one_digest_for_all_spellings_of_a_person(name, other, same):
    assert (person_digest(name) == person_digest(other)) is same
    assert is_digest(person_digest(name))
    assert not is_digest(name)


def test_a_document_has_the_digests_of_what_it_lies_in():
    assert source_digests("old/a.zip/in/b.txt") == [
        source_digest(name) for name in ("old/a.zip/in/b.txt", "old/a.zip/in", "old/a.zip", "old")
    ]
    assert source_digests("b.txt") == [source_digest("b.txt")] != [source_digest("B.txt")]
    assert is_digest(source_digest("b.txt"))
