"""A neutral statement about a person, as they would say it of themselves; None where that can't be told.

English alone is turned ("Plays the accordion" → "I play the accordion"): its third person shows in the verb's ending.
In other languages a statement stays as it is unless it names the person, for then it is somebody else's sentence.
"""

from __future__ import annotations

import re

_IRREGULAR = {
    "is": "am",
    "has": "have",
    "does": "do",
    "was": "was",
    "goes": "go",
    "isn't": "am not",
    "doesn't": "don't",
}
_IRREGULAR |= {"hasn't": "haven't", "wasn't": "wasn't"}
# Verbs that may follow "and" or "but": after those a word in -s is mostly a plural.
_COMMON = {
    "is", "has", "does", "was", "likes", "loves", "hates", "wants", "needs", "lives", "works", "plays", "goes",
    "thinks", "says", "calls", "keeps", "makes", "takes", "gets", "drinks", "eats", "reads", "writes", "watches",
    "runs", "owns", "knows", "sings", "cooks", "bakes", "swims", "isn't", "doesn't", "prefers", "enjoys",
    "believes", "collects", "mends", "speaks", "studies", "teaches", "travels", "walks", "wears", "dislikes",
    "misses", "hopes", "dreams", "paints", "sleeps", "owes",
}  # fmt: skip
_AFTER_VERB = (
    r"(?= (?:a|an|the|any|every|each|it|its|them|to|in|on|at|with|for|from|out|up|nobody|no|never|only|still)\b)"
)
_ADVERB = re.compile(
    r"(?:still|never|always|often|sometimes|rarely|hardly ever|secretly|usually|also)\s+", re.IGNORECASE
)
# Capital words in -s that begin a statement and are no verbs.
_NO_VERB = {
    "his", "this", "its", "always", "sometimes", "parents", "as", "us", "yes", "perhaps", "news", "friends",
}  # fmt: skip
_THIRD = re.compile(r"(?:he|she|they|the user|user)\b\s*", re.IGNORECASE)
_FIRST = re.compile(r"\b(?:I|I'm|I've|my|me|we|our)\b", re.IGNORECASE)
_OTHERS = {"his": "my", "himself": "myself", "herself": "myself"}
_WORD = re.compile(r"[A-Za-z']+")


def _base(verb: str) -> str | None:
    """Return the first person of an English verb in the third, or None for what looks like none."""
    low = verb.lower()
    if low in _IRREGULAR:
        return _IRREGULAR[low]
    if len(low) < 4 or not low.endswith("s") or low.endswith(("ss", "us", "ous", "'s")):
        return None
    if low.endswith("ies"):
        return low[:-3] + "y"
    if low.endswith(("ches", "shes", "sses", "xes", "zzes", "oes")):
        return low[:-2]
    return low[:-1]


def first_person(text: str, name: str) -> str | None:
    """Return a statement in the person's own voice.

    Args:
        text: what is known of them, mostly without a subject or with their name for one.
        name: the person's name.
    """
    if _FIRST.search(text):
        return text
    names = [part for part in (name, name.partition(" ")[0]) if part]
    subject = next((one for one in names if re.match(rf"{re.escape(one)}(?:'s)?(?!\w)", text)), "")
    rest = text[len(subject) :].lstrip()
    if subject and rest.startswith(("'s ", "’s ")):
        return _turned("My " + rest[3:])
    third = _THIRD.match(rest)
    rest = rest[third.end() :] if third and not subject else rest
    told = bool(subject or third)
    adverb = _ADVERB.match(rest)
    begin = adverb.end() if adverb else 0
    first = _WORD.match(rest, begin)
    verb = _base(first[0]) if first and first[0].lower() not in _NO_VERB else None
    if first and verb and (told or adverb or first[0][:1].isupper() or first[0].lower() in _COMMON):
        between = rest[:begin].lower()
        return _turned(f"I {between}{verb}{rest[first.end() :]}")
    if told or any(re.search(rf"(?<!\w){re.escape(one)}(?!\w)", text) for one in names):
        return None
    return text


def _turned(text: str) -> str:
    """Return an English sentence about "I" whose other verbs and pronouns agree with it."""
    verbs = "|".join(map(re.escape, sorted(_COMMON)))
    second = rf"\b(and|but|or) ((?:{verbs})\b|[a-z]{{3,}}s\b{_AFTER_VERB})"
    text = re.sub(second, lambda match: f"{match[1]} {_base(match[2]) or match[2]}", text)
    return re.sub(r"\b(?:his|himself|herself)\b", lambda match: _OTHERS[match[0]], text)
