"""A brain of any size, the same for the same seed: exchanges in six scripts, with copies and private values among them.

Of the pairs 10 % are exact copies of an earlier one of the same chat, 10 % near copies (a mark or a letter more), 5 %
hold something to redact (e-mail, phone, card, IBAN, IP, a link with a token). A file a chat, JSONL with the columns
conversation, context, response and at; three pairs a sitting.
"""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from pathlib import Path

import orjson

ALPHABETS = {
    "latin": ("bcdfghjklmnprstvwz", "aeiou"),
    "cyrillic": ("бвгджзклмнпрстфхц", "аеиоуя"),
    "devanagari": ("कखगघचजटडतदनपबमयरलवसह", "ािीुूेो"),
    "arabic": ("بتثجحخدذرزسشصضطظعغفقكلمنه", "اوي"),
    "kana": ("かきくけこさしすせそたちつてとなにぬねのはひふへほまみむめもやゆよらりるれろわ", ""),
    "hangul": ("가나다라마바사아자차카타파하거너더러머버서어저처커터퍼허", ""),
}
PRIVATE = (
    "mail me at {word}{n}@example.org",
    "call +49 176 {n:08d}",
    "my number is (415) 555-{m:04d}",
    "card 4111 1111 1111 1111",
    "DE89 3704 0044 0532 0130 00 please",
    "it is on 192.168.{a}.{b}",
    "https://example.org/share?token={n:012x}",
)
PAIRS_A_SITTING = 3
PAIRS_A_FILE = 10_000


def words(alphabet: tuple[str, str], rng: random.Random, count: int) -> list[str]:
    consonants, vowels = alphabet
    made = []
    for _ in range(count):
        parts = [rng.choice(consonants) + (rng.choice(vowels) if vowels else "") for _ in range(rng.randint(1, 4))]
        made.append("".join(parts))
    return made


def sentence(vocabulary: list[str], rng: random.Random) -> str:
    return " ".join(rng.choices(vocabulary, k=min(18, 2 + int(rng.expovariate(0.22)))))


def generate(folder: Path, pairs: int, seed: int = 0) -> None:
    """Write ``pairs`` exchanges below ``folder``."""
    rng = random.Random(seed)  # noqa: S311 - the same for the same seed
    vocabularies = [words(alphabet, rng, 3000) for alphabet in ALPHABETS.values()]
    folder.mkdir(parents=True, exist_ok=True)
    done = 0
    at = datetime(2015, 1, 1)
    while done < pairs:
        recent: list[tuple[str, str]] = []
        name = f"chat-{done // PAIRS_A_FILE:05d}"
        with (folder / f"{name}.jsonl").open("wb") as handle:
            for number in range(min(PAIRS_A_FILE, pairs - done)):
                vocabulary = vocabularies[(number // PAIRS_A_SITTING) % len(vocabularies)]
                context, response = sentence(vocabulary, rng), sentence(vocabulary, rng)
                luck = rng.random()
                if luck < 0.2 and recent:
                    context, response = rng.choice(recent)
                    if luck >= 0.1:
                        response += rng.choice(("!", ".", " x"))
                elif luck < 0.25:
                    n = rng.randrange(10**8)
                    value = rng.choice(PRIVATE).format(word="ab", n=n, m=n % 10_000, a=n % 256, b=n // 256 % 256)
                    response = f"{response} {value}"
                elif len(context) + len(response) > 60:  # long enough for a mark more to make it a near copy
                    recent.append((context, response))
                at += timedelta(minutes=2) if number % PAIRS_A_SITTING else timedelta(hours=9)
                row = {"conversation": name, "context": context, "response": response, "at": at.isoformat()}
                handle.write(orjson.dumps(row) + b"\n")
        done += min(PAIRS_A_FILE, pairs - done)


if __name__ == "__main__":
    import sys

    generate(Path(sys.argv[1]), int(sys.argv[2]))
