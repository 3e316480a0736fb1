"""Messages that give a secret away, each beside its near miss: what only talks of one stays."""

import hashlib
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mnemonic import Mnemonic

from twin.dataset.secrets import holds_key, holds_seed_phrase, kind_of_secret, tells_password

# Put together here: a whole one in a file would make scanners of repositories shout. Of few different characters, so
# that nothing but the format makes it one.
LOWER, UPPER, HEX = "a1" * 60, "A1" * 60, "e0" * 60


def keys():
    """Yield (name, a key, what is none for one character, or one part, less)."""

    def sized(name, prefix, body, length, suffix=""):
        return name, prefix + body[:length] + suffix, prefix + body[: length - 1] + suffix

    yield "pem", "-----BEGIN OPENSSH PRIVATE KEY-----", "-----BEGIN PUBLIC KEY-----"
    yield "pgp", "-----BEGIN PGP PRIVATE KEY BLOCK-----", "-----BEGIN PGP PUBLIC KEY BLOCK-----"
    for prefix in ("AKIA", "ASIA", "A3TX"):
        yield sized(f"aws {prefix}", prefix, UPPER, 16)
    yield sized("google", "AIza", LOWER, 35)
    yield sized("google oauth", "ya29.", LOWER, 20)
    yield sized("google client", "GOCSPX-", LOWER, 20)
    for prefix in ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"):
        yield sized(f"github {prefix}", prefix, LOWER, 30)
    yield sized("github pat", "github_pat_", LOWER, 22)
    yield sized("gitlab", "glpat-", LOWER, 20)
    for prefix in ("xoxb-", "xoxp-", "xapp-1-"):
        yield sized(f"slack {prefix}", prefix, LOWER, 10)
    yield sized("slack hook", "https://hooks.slack.com/services/T1/B1/", LOWER, 16)
    yield sized("discord hook", "https://discord.com/api/webhooks/123/", LOWER, 30)
    bot = ("M" + LOWER[:23], LOWER[:6], LOWER[:27])
    yield "discord bot", ".".join(bot), ".".join((bot[0], bot[1][1:], bot[2]))
    yield sized("telegram bot", "123456789:", LOWER, 35)
    yield sized("stripe", "sk_live_", LOWER, 16)
    yield sized("stripe test", "rk_test_", LOWER, 16)
    yield sized("stripe hook", "whsec_", LOWER, 20)
    yield sized("openai", "sk-", LOWER, 20)
    yield "openai project", "sk-proj-" + LOWER[:20], "pk-proj-" + LOWER[:20]
    yield "anthropic", "sk-ant-" + LOWER[:20], "task-ant-" + LOWER[:20]
    yield sized("hugging face", "hf_", LOWER, 30)
    yield sized("npm", "npm_", LOWER, 36)
    yield sized("pypi", "pypi-", LOWER, 50)
    yield "sendgrid", f"SG.{LOWER[:16]}.{LOWER[:16]}", f"SG.{LOWER[:16]}.{LOWER[:15]}"
    yield sized("mailgun", "key-", HEX, 32)
    yield sized("mailchimp", "", HEX, 32, "-us12")
    yield sized("twilio", "AC", HEX, 32)
    yield sized("digitalocean", "dop_v1_", HEX, 64)
    yield sized("docker", "dckr_pat_", LOWER, 20)
    yield sized("shopify", "shpat_", HEX, 32)
    jwt = ("eyJ" + LOWER[:8], "eyJ" + LOWER[:8], LOWER[:10])
    yield "jwt", ".".join(jwt), ".".join(jwt[:2])
    yield sized("age", "AGE-SECRET-KEY-1", UPPER, 58)
    yield "bitcoin", "K" + "2a" * 25 + "2", "0" + "2a" * 25 + "2"
    yield sized("bip-32", "xprv", "2a" * 30, 50)
    yield sized("square", "sq0atp-", LOWER, 19)
    yield sized("linear", "lin_api_", LOWER, 30)
    yield sized("notion", "ntn_", LOWER, 30)
    yield sized("notion old", "secret_", LOWER, 40)


KEYS = list(keys())


@pytest.mark.parametrize(("key", "none"), [pytest.param(*two, id=name) for name, *two in KEYS])
def test_each_format_of_a_key_and_its_near_miss(key, none):
    for text in (key, f"so, use {key} please", f"それは {key} です", f"x={key}"):
        assert holds_key(text)
        assert kind_of_secret(text) == "key"
    assert kind_of_secret(none) is None
    assert kind_of_secret(f"so, use {none} please") is None


def test_a_long_token_that_looks_random():
    token = "kP3vXz9QmT7rLw2YbN8sHd4JfG6cRa1U"
    assert kind_of_secret(f"here: {token}") == "key"
    assert kind_of_secret(token[:31]) is None
    assert kind_of_secret(token.lower()) is None
    assert kind_of_secret("aA1" * 12) is None  # few different characters: somebody laughs, or a pattern


@given(st.uuids(), st.binary(min_size=1, max_size=8))
def test_uuids_and_hashes_stay(one, data):
    for digest in (hashlib.sha1(data).hexdigest(), hashlib.sha256(data).hexdigest()):  # noqa: S324 - what git names by
        for text in (digest, digest.upper(), f"reverted in {digest}, see there", f"/commit/{digest}"):
            assert kind_of_secret(text) is None
    assert kind_of_secret(f"ticket {one}") is None
    assert kind_of_secret(f"ticket {str(one).upper()}") is None
    assert kind_of_secret(f"order {one.hex}") is None


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/a-long-Path/With4Words-and-numbers-in-the-name-2024",
        "see src/twin/dataset/Redactor2/and/ManyMore/folders/below.py",
        "NoOneEverWritesSuchALongWordButGermansWould",
        "1234567890123456789012345678901234567890",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "sk-ating",
        "pk_live_" + LOWER[:24],  # publishable
    ],
)
def test_what_is_long_and_no_key(text):
    assert kind_of_secret(text) is None


# ---------------------------------------------------------------- passwords


@pytest.mark.parametrize(
    "text",
    [
        "the password is k4lem-2x",
        "Password: sunflower",
        'its password, "sunflower"',
        "k4lem-2x is the password",
        "pin 4711",
        "wifi kalimba / Kal1mba-77",
        "das Passwort lautet: kalimba",
        "Passwort ist Sonnenblume!",
        "WLAN-Schlüssel: 8827-3391-0021",
        "la contraseña es kal1mba",
        "la clave del wifi: girasol22",
        "a senha é kal1mba!",
        "le mot de passe : tournesol",
        "mdp: tournesol",
        "het wachtwoord is kal1mba",
        "hasło: kal1mba",
        "şifre: kal1mba",
        "пароль: kal1mba",
        "пин 4711",
        "パスワードは「himawari7」です",
        "暗証番号は4711です",
        "密码：kal1mba",
        "비밀번호는 kal1mba 야",
        "كلمة السر: kal1mba",
        "الرقم السري ٤٧١١ هو 4711",
        "पासवर्ड है kal1mba",
        "पिन 4711 है",
        "הסיסמה: kal1mba",
        "ο κωδικός: kal1mba",
    ],
)
def test_a_password_told_in_words(text):
    assert tells_password(text)
    assert kind_of_secret(text) == "password"


@pytest.mark.parametrize(
    "text",
    [
        "I forgot my password again",
        "can you reset my password?",
        "password?",
        "don't tell anyone the password",
        "the password manager is great",
        "he wants a new password every month, so annoying",
        "pass me the salt",
        "I'll pass by at 18:30",
        "pin it to the wall",
        "my wifi is down again",
        "the router blinks since 2024",
        "the password page: https://example.org/reset4me",
        "hab mein Passwort vergessen",
        "olvidé mi contraseña otra vez",
        "la palabra clave aquí es paciencia",
        "esqueci a senha de novo",
        "j'ai oublié mon mot de passe",
        "забыл пароль",
        "パスワード忘れた",
        "又忘了密码",
        "비밀번호 까먹었어",
        "نسيت كلمة السر",
        "पासवर्ड भूल गया",
        "I got 4711 points",
        "kal1mba is my nickname",
    ],
)
def test_talk_of_a_password_stays(text):
    assert kind_of_secret(text) is None


def test_a_word_for_a_password_in_turkish_capitals():
    assert tells_password("ŞİFRE: kal1mba")


def test_a_link_after_talk_of_a_password():
    assert kind_of_secret("reset your password here https://example.org/reset") is None


@given(st.text(max_size=60))
def test_any_text_has_one_kind_or_none(text):
    kind = kind_of_secret(text)
    assert kind in (None, "key", "password", "seed phrase")
    assert (kind is None) == (not (holds_key(text) or tells_password(text) or holds_seed_phrase(text)))


# ---------------------------------------------------------------- seed phrases

LANGUAGES = (
    "english",
    "spanish",
    "french",
    "italian",
    "portuguese",
    "czech",
    "japanese",
    "korean",
    "turkish",
    "russian",
)


def phrase(language, strength=128, seed=1):
    """Return a phrase as it is typed: 12 words, or 24 of ``strength`` 256."""
    entropy = hashlib.sha256(f"{language} {seed}".encode()).digest()[: strength // 8]
    return unicodedata.normalize("NFC", Mnemonic(language).to_mnemonic(entropy))


@pytest.mark.parametrize("language", LANGUAGES)
def test_seed_phrases_in_the_languages_of_bip_39(language):
    words = phrase(language).split()
    assert len(words) == 12
    for text in (
        " ".join(words),
        "\u3000".join(words),
        ", ".join(words),
        "\n".join(f"{number}. {word}" for number, word in enumerate(words, 1)),
        "\n".join(f"{number}.{word}" for number, word in enumerate(words, 1)),
        f"so: {' '.join(words)} and that is all of it",
        " ".join(words).title(),
        phrase(language, 256),
    ):
        assert holds_seed_phrase(text)
        assert kind_of_secret(text) == "seed phrase"
    assert not holds_seed_phrase(" ".join(words[:11]))
    assert not holds_seed_phrase(f"{' '.join(words[:6])} xyzzy {' '.join(words[6:])}")


@given(st.sampled_from(LANGUAGES), st.integers(0, 99), st.integers(0, 40), st.integers(0, 12))
def test_a_phrase_is_found_wherever_it_stands(language, seed, before, after):
    assert holds_seed_phrase(f"{'qq ' * before}{phrase(language, seed=seed)}{' qq' * after}")


@pytest.mark.parametrize(
    "text",
    [
        "ha " * 20,
        "wait " * 30,
        "wait baby " * 10,
        "I think we should go there early because the queue is long and nobody wants to wait in the cold for hours",
        "no me digas que otra vez te quedaste dormido en el sofá mientras mirabas la película de siempre con el gato",
        "",
        " " * 40,
    ],
)
def test_common_words_are_no_seed_phrase(text):
    assert not holds_seed_phrase(text)


@pytest.mark.parametrize("language", ["spanish", "french", "japanese"])
def test_a_phrase_as_bip_39_writes_it(language):
    for seed in range(10):
        assert holds_seed_phrase(unicodedata.normalize("NFKD", phrase(language, seed=seed)))


@pytest.mark.parametrize("between", ["、", "-", ".", "/"])
def test_other_marks_between_the_words(between):
    assert holds_seed_phrase(between.join(phrase("english").split()))
