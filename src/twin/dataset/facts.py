"""Memories, facts, journals and response examples as rows: what does not stand in the system prompt is learned here.

A question is made of the item's own rarest words, so that no two rows share one stock question.
"""

from __future__ import annotations

import math
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from zlib import crc32

from twin.dataset.clean import Habits, in_their_hand
from twin.dataset.voice import first_person
from twin.dataset.window import seconds
from twin.dropped import Dropped
from twin.prompt import SystemPrompt
from twin.records import Brain, Example, Kind, Turn

_MARKS = string.punctuation + "“”‘’«»…–—。、！？।"
_QUESTIONS = (
    "{a} and {b}, what should I know?",
    "Remind me, what was it with {a} and {b}?",
    "What do you say about {a} and {b}?",
    "{a}, {b}. What comes to mind?",
    "Someone asked me about {a} and {b}. Is that you?",
    "How is it with you, {a} and {b}?",
)
_JOURNAL_QUESTIONS = (  # of one with a title
    "What did you write down{when}, {title}?",
    "How was it{when}? I mean {title}",
    "Tell me about {title}{when}",
    "What was on your mind{when}, {title}?",
)
_UNTITLED_QUESTIONS = (
    "What did you write down on {date}?",
    "What was on your mind on {date}?",
    "How was {date}?",
)
Row = tuple[Example, float | None]


def _words(text: str) -> list[str]:
    """Return words of three characters at least; marks that belong to a script's letters stay in them."""
    stripped = (word.strip(_MARKS) for word in text.split())
    return [word for word in stripped if len(word) >= 3 and any(letter.isalpha() for letter in word)]


def rare_words(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Return for each text its two rarest words among all texts, in the order they stand."""
    # The first word of a note is mostly its verb, and is capital without being a name.
    words = [_words(text.partition(" ")[2]) or _words(text) for text in texts]
    frequency = Counter(word.casefold() for own in words for word in {word.casefold(): word for word in own})
    pairs: list[tuple[str, str]] = []
    for own in words:
        ranked = sorted(own, key=lambda word: (frequency[word.casefold()], -math.log1p(len(word))))
        chosen: list[str] = []
        for word in ranked:
            if word.casefold() not in {other.casefold() for other in chosen}:
                chosen.append(word)
            if len(chosen) == 2:
                break
        chosen.sort(key=own.index)
        pairs.append((chosen[0], chosen[-1]) if chosen else ("", ""))
    return pairs


def _statements(
    items: Sequence[tuple[str, str]], kind: Kind, person: str, hand: Habits, dropped: Dropped
) -> Iterator[Row]:
    for (item_id, text), (a, b) in zip(items, rare_words([text for _, text in items]), strict=True):
        asked = _QUESTIONS[crc32(text.encode()) % len(_QUESTIONS)]  # the text's own, wherever it stands
        question = asked.format(a=a, b=b) if a != b else f"What should I know, {a or text}?"
        own = first_person(text.strip(), person)
        if own is None:
            dropped.add("not in their own voice", text, item_id)
            continue
        reply = in_their_hand(own, hand)
        yield Example(item_id, item_id, kind, (Turn("user", question), Turn("assistant", reply))), None


def memory_rows(brain: Brain, prompt: SystemPrompt, hand: Habits, dropped: Dropped) -> Iterator[Row]:
    """Yield a row for each memory outside the system prompt."""
    rest = [(memory.id, memory.text) for memory in brain.memories if memory.id not in prompt.memory_ids]
    yield from _statements(rest, "memory", brain.person, hand, dropped)


def fact_rows(brain: Brain, prompt: SystemPrompt, hand: Habits, dropped: Dropped) -> Iterator[Row]:
    """Yield a row for each fact of the profile outside the system prompt."""
    rest = [
        (f"profile#fact{number}", fact)
        for number, fact in enumerate(brain.personality.facts)
        if fact not in prompt.facts
    ]
    yield from _statements(rest, "fact", brain.person, hand, dropped)


def journal_rows(brain: Brain) -> Iterator[Row]:
    """Yield a row for each journal entry, asked for by its date and title."""
    for number, entry in enumerate(brain.journals):
        date = f"{entry.at.day} {entry.at:%B %Y}" if entry.at else ""
        if any(letter.isalpha() for letter in entry.title):
            asked = _JOURNAL_QUESTIONS[number % len(_JOURNAL_QUESTIONS)]
            question = asked.format(when=f" on {date}" if date else "", title=entry.title)
        elif date:  # a title of digits is the date once more
            question = _UNTITLED_QUESTIONS[number % len(_UNTITLED_QUESTIONS)].format(date=date)
        else:
            question = f'Which note of yours begins "{" ".join(entry.text.split()[:4])}"?'
        at = seconds(entry.at)
        yield Example(entry.id, entry.id, "journal", (Turn("user", question), Turn("assistant", entry.text))), at


def response_rows(brain: Brain) -> Iterator[Row]:
    """Yield a row for each response example of the profile."""
    for number, (context, response) in enumerate(brain.personality.response_examples):
        row_id = f"profile#example{number}"
        yield Example(row_id, row_id, "example", (Turn("user", context), Turn("assistant", response))), None
