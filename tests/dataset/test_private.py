"""What is private in memories, journals and the profile is gone before anything is made of them."""

import hashlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin import prompt
from twin.brain import load
from twin.dataset import build
from twin.dataset.dedup import jaccard, shingles
from twin.dataset.private import Private
from twin.errors import UsageError
from twin.records import Brain, Conversation, Held, JournalEntry, Memory, Message, Personality
from twin.settings import ExportSettings

SECRETS = {
    "key": "ghp_" + "a1" * 20,
    "password": "the wifi password is k4lem-2x",
    "seed phrase": "abandon ability able about above absent absorb abstract absurd abuse access accident",
}
TALK = Held((Conversation("c", (Message("Beto", "tea or coffee?"), Message("Ana", "tea, always"))),))


def cleaned(brain, **settings):
    """Return a brain as it is after cleaning, and the cleaner."""
    private = Private(brain.person, ExportSettings(**{"reserve": 0.0, **settings}))
    return private.clean(brain), private


def everything(brain, **settings):
    """Build a brain's dataset; return all that a row, the prompt or the cleaned brain says."""
    own = ExportSettings(**settings)
    private = Private(brain.person, own)
    known = private.clean(brain)
    system = prompt.build(known, own.prompt_tokens)
    built = build(known, system, own, Path(tempfile.mkdtemp(dir=".")), private)
    rows = [turn.content for row in [*built.train, *built.val] for turn in row.turns]
    who = known.personality
    rest = [
        *(one.text for one in known.memories),
        *(text for one in known.journals for text in (one.text, one.title)),
        *who.facts, *who.common_phrases, *who.typing_quirks, *who.tone,
        *(text for pair in who.response_examples for text in pair),
    ]  # fmt: skip
    return [system.text, *rows, *rest], private, built


# ---------------------------------------------------------------- reserved memories


def memories(count):
    """Return memories that are nothing like one another."""
    letters = str.maketrans("0123456789", "ghijklmnop")
    names = (hashlib.sha256(str(number).encode()).hexdigest().translate(letters) for number in range(count))
    return tuple(Memory(f"m#{n}", f"Likes {name[:9]} and {name[9:22]}") for n, name in enumerate(names))


@pytest.fixture(scope="module")
def sample(sample_brain):
    return load([sample_brain])


def test_reserved_memories_are_nowhere_in_a_dataset(sample):
    told, private, built = everything(sample, reserve=0.2)
    assert len(private.reserved) == round(len(sample.memories) * 0.2) > 10
    known = [shingles(text) for text in set(told)]
    for one in private.reserved:
        assert not any(one.text in text for text in told)
        own = shingles(one.text)
        assert max(jaccard(own, other) for other in known) < 0.6
    ids = {row.id for row in [*built.train, *built.val]}
    assert ids.isdisjoint(one.id for one in private.reserved)
    assert built.dropped.counts["reserved for evaluation"] >= len(private.reserved)


def test_the_same_memories_are_told_without_a_reserve(sample):
    """The control of the test above: whatever is reserved there would have been said."""
    reserved = everything(sample, reserve=0.2)[1].reserved
    told, private, built = everything(sample, reserve=0, deduplicate=False, quality_filter=False)
    assert private.reserved == ()
    assert "reserved for evaluation" not in built.dropped.counts
    assert all(any(one.text in text for text in told) for one in reserved)


def test_what_says_the_same_as_a_reserved_memory_goes_with_it():
    brain = Brain(
        "Ana",
        (TALK,),
        memories(20),
        personality=Personality(facts=(*(one.text + "!" for one in memories(20)), "Has two left feet")),
    )
    known, private = cleaned(brain, reserve=0.25)
    assert len(private.reserved) == 5
    gone = {one.text for one in private.reserved}
    assert {one.text for one in known.memories} == {one.text for one in brain.memories} - gone
    assert set(known.personality.facts) == {fact for fact in brain.personality.facts if fact[:-1] not in gone}
    assert private.dropped.counts == {"reserved for evaluation": 10}


def test_two_memories_that_say_the_same_are_not_parted():
    twice = (*memories(10), *(Memory(f"again#{n}", one.text + ".") for n, one in enumerate(memories(10))))
    known, private = cleaned(Brain("Ana", memories=twice), reserve=0.2)
    gone = {one.text.rstrip(".") for one in private.reserved}
    assert len(private.reserved) == 4
    assert gone.isdisjoint(one.text.rstrip(".") for one in known.memories)


@given(st.integers(0, 40), st.floats(0, 0.5), st.integers(0, 5), st.randoms(use_true_random=False))
def test_the_choice_is_the_seeds(count, share, seed, chance):
    brain = Brain("Ana", memories=memories(count))
    known, private = cleaned(brain, reserve=share, seed=seed)
    chosen = {one.id for one in private.reserved}
    assert len(private.reserved) == len(chosen) == round(count * share)
    assert chosen.isdisjoint(one.id for one in known.memories)
    order = list(brain.memories)
    chance.shuffle(order)
    assert {
        one.id for one in cleaned(Brain("Ana", memories=tuple(order)), reserve=share, seed=seed)[1].reserved
    } == chosen


def test_another_seed_chooses_others():
    brain = Brain("Ana", memories=memories(40))
    chosen = [frozenset(one.id for one in cleaned(brain, reserve=0.25, seed=seed)[1].reserved) for seed in range(4)]
    assert len(set(chosen)) == 4


def test_one_memory_more_changes_the_choice_by_little():
    chosen = [
        {one.id for one in cleaned(Brain("Ana", memories=memories(n)), reserve=0.5)[1].reserved} for n in (39, 40)
    ]
    assert len(chosen[0] - chosen[1]) <= 1


def test_zero_uses_all():
    brain = Brain("Ana", (TALK,), memories(20), personality=Personality(facts=("Has two left feet",)))
    known, private = cleaned(brain)
    assert known == brain
    assert (private.reserved, private.dropped.counts) == ((), {})


# ---------------------------------------------------------------- secrets and private values


def brain_with(text):
    """Return a brain that holds a text in every place that rows or the prompt are made of."""
    plain = memories(3)
    return Brain(
        "Ana",
        (TALK,),
        (*plain, Memory("m#s", text, importance=1.0)),
        (JournalEntry("j#1", "slept in", "New year"), JournalEntry("j#s", text)),
        Personality(
            name="Ana",
            common_phrases=("so there", text),
            typing_quirks=("no capitals", text),
            tone=("dry", text),
            facts=("Has two left feet", text),
            response_examples=(("hi", "yo yo"), ("and?", text), (text, "as I said")),
        ),
    )


@pytest.mark.parametrize("kind", SECRETS)
def test_secrets_are_nowhere(kind):
    secret = SECRETS[kind]
    told, private, built = everything(brain_with(secret), reserve=0)
    assert len(told) > 15
    assert not any(secret in text for text in told)
    assert not any(part in text for text in told for part in secret.split() if any(map(str.isdigit, part)))
    assert private.dropped.counts == {f"secret ({kind})": 8}
    assert built.dropped.counts[f"secret ({kind})"] == 8
    assert {"slept in", "Has two left feet", "yo yo", "tea, always"} <= {*told}


@pytest.mark.parametrize("kind", SECRETS)
def test_the_same_places_do_tell_what_is_no_secret(kind):
    """The control of the test above."""
    told, private, _ = everything(brain_with("I forgot my password again"), reserve=0)
    assert sum("forgot my password again" in text for text in told) >= 8
    assert private.dropped.counts == {}


def test_a_secret_in_a_title():
    brain = Brain("Ana", (TALK,), journals=(JournalEntry("j", "slept in", SECRETS["password"]),))
    assert not any("k4lem-2x" in text for text in everything(brain)[0])


def test_no_listing_holds_a_secret():
    private = Private("Ana", ExportSettings(reserve=0))
    private.clean(brain_with(SECRETS["key"]), watch="secret (key)")
    assert len(private.dropped.listed) == 8
    assert {text for _, text in private.dropped.listed} == {"…"}
    assert {where for where, _ in private.dropped.listed} == {"m#s", "j#s", "profile"}


def test_private_values_are_placeholders_everywhere():
    value = "mail ana@example.org or 4111 1111 1111 1111"
    known, private = cleaned(brain_with(value))
    text = "mail [email 1] or [card 1]"
    assert known.memories[-1].text == text
    assert known.journals[-1].text == text
    who = known.personality
    assert who.common_phrases[-1] == who.typing_quirks[-1] == who.tone[-1] == who.facts[-1] == text
    assert who.response_examples == (("hi", "yo yo"), ("and?", text), (text, "as I said"))
    assert set(private.redactor.counts) == {"email", "card"}
    assert len(private.redactor.values) == 2


def test_a_title_is_redacted_too():
    brain = Brain("Ana", journals=(JournalEntry("j", "slept in", "to ana@example.org"),))
    assert cleaned(brain)[0].journals == (JournalEntry("j", "slept in", "to [email 1]"),)


def test_values_stay_where_they_are_wanted_and_secrets_never():
    known, private = cleaned(brain_with("mail ana@example.org"), redact=False)
    assert known.memories[-1].text == "mail ana@example.org"
    assert private.redactor.counts == {}
    assert len(cleaned(brain_with(SECRETS["key"]), redact=False)[0].memories) == 3


def test_placeholders_go_on_counting_in_chats():
    """One value, one number: in a memory, a journal, the profile and two parts of the chats."""
    talks = tuple(
        Held(
            (Conversation(name, (Message("Beto", "where to?"), Message("Ana", f"{text}, as ever"))),),
            name,
            size=9 << 20,
        )
        for name, text in (("a", "bo@example.org"), ("b", "ana@example.org"), ("c", "cy@example.org"))
    )
    brain = Brain(
        "Ana",
        talks,
        (Memory("m", "Answers to ana@example.org"),),
        (JournalEntry("j", "wrote to bo@example.org"),),
        Personality(facts=("Has the address ana@example.org",)),
    )
    told, _, built = everything(brain, reserve=0, validation_split=0, deduplicate=False, processes=1)
    replies = {row.conversation_id.partition("#")[0]: row.reply for row in built.train if row.kind == "chat"}
    assert replies == {"a": "[email 2], as ever", "b": "[email 1], as ever", "c": "[email 3], as ever"}
    assert "wrote to [email 2]" in told
    assert "Has the address [email 1]" in told
    assert "Answers to [email 1]" in told
    assert built.redacted == {"email": 6}
    assert not any("@" in text for text in told)


def test_people_by_a_pseudonym_but_not_the_person():
    brain = Brain("Ana", memories=(Memory("m", "Ana likes Beto"),))
    private = Private("Ana", ExportSettings(reserve=0), {"Ana": "Ana", "Beto": "Beto"})
    assert [one.text for one in private.clean(brain).memories] == ["Ana likes [person 1]"]
    assert private.names == {"Beto": "Beto"}


def test_a_memory_without_words_is_no_memory():
    brain = Brain("Ana", memories=(Memory("m#1", " \u200e\n"), Memory("m#2", " Likes tea ")))
    known, private = cleaned(brain)
    assert known.memories == (Memory("m#2", "Likes tea"),)
    assert private.dropped.counts == {}


# ---------------------------------------------------------------- names, ids, and what tells a reserved memory


@pytest.mark.parametrize("called", ["ana@example.org", "+44 20 7946 0958"])
def test_a_person_who_is_called_by_an_address_needs_a_name(called):
    for brain in (Brain(called), Brain("Ana", personality=Personality(name=called))):
        with pytest.raises(UsageError, match="would stand in every prompt and row") as caught:
            cleaned(brain)
        assert "[people]" in caught.value.hint
        assert cleaned(brain, redact=False)[0].person == brain.person


def test_ids_categories_and_emoji_are_redacted_too():
    brain = Brain(
        "Ana",
        memories=(Memory("to ana@example.org/a.json#1", "Likes tea", category="of ana@example.org"),),
        journals=(JournalEntry("to ana@example.org/a.md", "slept in"),),
        personality=Personality(emoji=("🙂", SECRETS["key"], "at ana@example.org")),
    )
    known, _private = cleaned(brain)
    assert known.memories == (Memory("to [email 1]/a.json#1", "Likes tea", category="of [email 1]"),)
    assert known.journals[0].id == "to [email 1]/a.md"
    assert known.personality.emoji == ("🙂", "at [email 1]")


def test_what_holds_a_reserved_memory_is_reserved_with_it():
    held = "Plays the accordion every Thursday night"
    brain = Brain(
        "Ana",
        memories=(Memory("m", held),),
        journals=(JournalEntry("j#1", f"A long day. {held}, as ever, and home."), JournalEntry("j#2", "tea")),
        personality=Personality(
            common_phrases=(held.lower(), "as if"),
            facts=(f"In the band: {held.lower()} with the neighbours of the old mill", "Has a cat"),
            response_examples=(("what do you do?", f"well, {held.lower()}!"), ("hi", "yo")),
        ),
    )
    private = Private("Ana", ExportSettings(reserve=0.5))
    known = private.clean(brain)  # half of one memory is none: rounded, it is kept
    assert (private.reserved, known.journals) == ((), brain.journals)
    private = Private("Ana", ExportSettings(reserve=0.5))
    private._reserve = lambda memories: ["m"]  # the seed's choice, made here
    known = private.clean(brain)
    assert [one.text for one in private.reserved] == [held]
    assert [one.id for one in known.journals] == ["j#2"]
    assert (known.personality.common_phrases, known.personality.facts) == (("as if",), ("Has a cat",))
    assert known.personality.response_examples == (("hi", "yo"),)
    assert private.dropped.counts["reserved for evaluation"] == 5
