"""What a brain holds, counted: nothing is counted twice, and nothing of others is counted as the person's own."""

from datetime import datetime

from hypothesis import given
from hypothesis import strategies as st

from twin.dataset.stats import LENGTHS, Counts
from twin.records import Conversation, Message


def counted(*conversations):
    counts = Counts("Ana")
    for one in conversations:
        counts.hear(one)
    return counts.as_json()


def test_golden():
    counts = counted(
        Conversation(
            "c",
            (
                Message("Beto", "tea?", datetime(2024, 1, 31, 23, 59)),
                Message("Ana", "no", datetime(2024, 2, 1, 0, 1)),
                Message("Ana", "coffee, please", datetime(2024, 2, 1, 0, 2)),
            ),
        ),
        Conversation("d", (Message("Ana", "x" * 2000), Message("Cleo", ""))),
    )
    assert counts["conversations"] == 2
    assert (counts["messages"], counts["own_messages"]) == (5, 3)
    assert counts["people"] == {"Ana": 3, "Beto": 1, "Cleo": 1}
    assert counts["messages_by_month"] == {"2024-01": 1, "2024-02": 2}
    assert {month: count for month, count in counts["own_messages_by_month"].items() if count} == {"2024-02": 2}
    assert {hour: count for hour, count in counts["own_messages_by_hour"].items() if count} == {"0": 2}
    lengths = {low: count for low, count in counts["own_lengths_in_characters"].items() if count}
    assert lengths == {"1": 1, "10": 1, "1280": 1}


def test_nothing():
    counts = counted()
    assert (counts["conversations"], counts["messages"], counts["own_messages"], counts["people"]) == (0, 0, 0, {})
    assert counts["own_messages_by_hour"] == dict.fromkeys(map(str, range(24)), 0)
    assert counts["own_lengths_in_characters"] == dict.fromkeys(map(str, LENGTHS), 0)


def test_the_pieces_of_a_chat_are_one_conversation():
    one, other = Message("Ana", "a"), Message("Beto", "b")
    whole = counted(Conversation("c", (one, other)))
    assert counted(Conversation("c", (one,)), Conversation("c", (other,), 1)) == whole


def test_months_are_in_order_whatever_the_order_of_the_chats():
    late, early = (Conversation(str(year), (Message("Ana", "a", datetime(year, 3, 1)),)) for year in (2024, 987))
    assert list(counted(late, early)["messages_by_month"]) == ["0987-03", "2024-03"]


def test_the_most_talkative_come_first():
    talk = tuple(Message(who, "a") for who in ("Beto", "Cleo", "Cleo", "Ana", "Cleo", "Ana"))
    assert list(counted(Conversation("c", talk))["people"]) == ["Cleo", "Ana", "Beto"]


messages = st.builds(
    Message,
    st.sampled_from(["Ana", "Beto", "Cleo"]),
    st.text(st.just("x"), min_size=1, max_size=700),
    st.none() | st.datetimes(),
)


@given(st.lists(messages, max_size=20))
def test_the_sums_agree(talk):
    counts = counted(Conversation("c", tuple(talk)))
    own = [one for one in talk if one.speaker == "Ana"]
    assert counts["messages"] == sum(counts["people"].values()) == len(talk)
    assert counts["own_messages"] == sum(counts["own_lengths_in_characters"].values()) == len(own)
    assert sum(counts["messages_by_month"].values()) == sum(one.at is not None for one in talk)
    dated = sum(one.at is not None for one in own)
    assert sum(counts["own_messages_by_month"].values()) == sum(counts["own_messages_by_hour"].values()) == dated
    for low, high in zip(LENGTHS, [*LENGTHS[1:], 10**9], strict=True):
        assert counts["own_lengths_in_characters"][str(low)] == sum(low <= len(one.text) < high for one in own)
