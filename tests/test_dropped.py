"""What is left out is counted; its words are kept only where somebody looks, and no more than a list holds."""

import pickle

from hypothesis import given
from hypothesis import strategies as st

from twin import dropped
from twin.dropped import Dropped

reasons = st.lists(st.tuples(st.sampled_from("abc"), st.text(max_size=3)), max_size=12)


def told(things, watch=None):
    done = Dropped(watch)
    for reason, text in things:
        done.add(reason, text, "here")
    return done


def test_reasons_are_counted_and_no_text_is_kept():
    done = told([("media", "a"), ("media", "b"), ("links only", "c")])
    assert done.counts == {"media": 2, "links only": 1}
    assert done.listed == []


def test_the_watched_reason_is_listed_with_its_place():
    done = Dropped("media")
    done.add("media", "a", "chat.txt:3")
    done.add("links only", "b", "chat.txt:4")
    done.add("media")
    assert done.listed == [("chat.txt:3", "a"), ("", "")]
    assert done.counts == {"media": 2, "links only": 1}


def test_a_problem_is_told_once_with_its_first_hint():
    done = Dropped()
    done.problem("'a' is broken.", "Export it again.")
    done.problem("'a' is broken.", "Something else.")
    done.problem("'b' is empty.", "")
    assert done.problems == {"'a' is broken.": "Export it again.", "'b' is empty.": ""}
    assert done.counts == {}


@given(reasons, reasons, st.sampled_from([None, "a", "b"]))
def test_two_parts_are_as_one(one, other, watch):
    whole, left, right = told([*one, *other], watch), told(one, watch), told(other, watch)
    left.merge(right)
    assert left.counts == whole.counts
    assert left.listed == whole.listed
    assert (right.counts, right.listed) == (told(other, watch).counts, told(other, watch).listed)


def test_merged_problems_keep_what_was_known():
    one, other = Dropped(), Dropped()
    one.problem("x", "mine")
    other.problem("x", "theirs")
    other.problem("y", "theirs")
    one.merge(other)
    assert one.problems == {"x": "mine", "y": "theirs"}


def test_a_list_has_an_end(monkeypatch):
    monkeypatch.setattr(dropped, "MAX_LISTED", 3)
    one, other = told([("a", str(n)) for n in range(2)], "a"), told([("a", str(n)) for n in range(2, 9)], "a")
    assert [text for _, text in other.listed] == ["2", "3", "4"]
    one.merge(other)
    assert [text for _, text in one.listed] == ["0", "1", "2"]
    assert one.counts == {"a": 9}
    one.merge(other)
    assert len(one.listed) == 3


def test_it_travels_between_processes():
    done = told([("a", "x"), ("b", "y")], "a")
    done.problem("p", "h")
    back = pickle.loads(pickle.dumps(done))  # noqa: S301 - its own
    assert (back.counts, back.listed, back.problems, back.watch) == (done.counts, done.listed, done.problems, "a")
