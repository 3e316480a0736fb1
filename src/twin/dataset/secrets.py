"""Messages that give a secret away: keys, tokens, passwords told in words, seed phrases. They are left out whole.

Patterns of keys follow what their makers document (a fixed prefix and a length), each looked up at its maker's. Not
obvious: a password needs both a word for it nearby and the looks of one, so that "I forgot my password again" stays.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from functools import cache

from ahocorasick_rs import AhoCorasick, MatchKind

_KEYS = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ ){0,3}(?:PRIVATE KEY|PGP PRIVATE KEY BLOCK)"
    r"|\b(?:A3T[A-Z0-9]|AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b"  # AWS
    r"|\bAIza[\w-]{35}(?![\w-])"  # Google
    r"|\bya29\.[\w-]{20,}"
    r"|\bGOCSPX-[\w-]{20,}"
    r"|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{22,}"  # GitHub
    r"|\bgl(?:pat|ptt|dt|rt|cbt|soat)-[\w-]{20,}"  # GitLab
    r"|\bxox[abposre]-[\w-]{10,}|\bxapp-\d-[\w-]{10,}"  # Slack
    r"|hooks\.slack\.com/services/T\w+/B\w+/\w{16,}"
    r"|discord(?:app)?\.com/api/webhooks/\d+/[\w-]{30,}"
    r"|\b[MNO][\w-]{23,25}\.[\w-]{6}\.[\w-]{27,}"  # Discord bot
    r"|\b\d{8,10}:[A-Za-z0-9_-]{35}\b"  # Telegram bot
    r"|\b[rs]k_(?:live|test)_[A-Za-z0-9]{16,}|\bwhsec_[A-Za-z0-9+/=]{20,}"  # Stripe
    r"|\bsk-(?:ant-|proj-|svcacct-|or-v1-)?[A-Za-z0-9_-]{20,}"  # OpenAI, Anthropic, OpenRouter
    r"|\bhf_[A-Za-z0-9]{30,}"  # Hugging Face
    r"|\bnpm_[A-Za-z0-9]{36}\b|\bpypi-[\w-]{50,}"
    r"|\bSG\.[\w-]{16,32}\.[\w-]{16,64}"  # SendGrid
    r"|\bkey-[0-9a-f]{32}\b|\b[0-9a-f]{32}-us\d{1,2}\b"  # Mailgun, Mailchimp
    r"|\b(?:AC|SK)[0-9a-f]{32}\b"  # Twilio
    r"|\bdop_v1_[0-9a-f]{64}\b|\bdckr_pat_[\w-]{20,}|\bshp(?:at|ca|pa|ss)_[0-9a-f]{32}\b"
    r"|\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{10,}"  # JWT
    r"|\bAGE-SECRET-KEY-1[0-9A-Z]{58}\b|\b[5KL][1-9A-HJ-NP-Za-km-z]{50,51}\b|\bxprv[1-9A-HJ-NP-Za-km-z]{50,}"
    r"|\b(?:sq0(?:atp|csp)|EAAA)[\w-]{20,}"  # Square
    r"|\blin_api_[A-Za-z0-9]{30,}|\bntn_[A-Za-z0-9]{30,}|\bsecret_[A-Za-z0-9]{40,}",
    re.ASCII,
)
# Words for a password, in small letters; what follows or precedes one must also look like a password.
_WORDS = (
    "password", "passwd", "passwort", "kennwort", "passcode", "passphrase", "passwört", "pwd", "contraseña",
    "contrasena", "senha", "mot de passe", "wachtwoord", "parola", "hasło", "şifre", "пароль", "lösenord",
    "adgangskode", "salasana", "jelszó", "heslo", "mật khẩu", "kata sandi", "パスワード", "暗証番号", "密码", "密碼",
    "비밀번호", "كلمة السر", "كلمة المرور", "كلمه السر", "باسورد", "باسوورد", "الرقم السري", "पासवर्ड", "पासकोड",
    "סיסמה", "κωδικ", "zugangsdaten", "zugangscode", "passkey", "合言葉", "رمز المرور", "رمز الواي", "wifi key",
    "wlan-schlüssel", "wlan schlüssel", "clave", "パス", "secret key", "api key", "apikey", "api-key",
)  # fmt: skip
_SHORT_WORDS = re.compile(r"(?<![^\W_])(?:pw|pass|pin|mdp|psw|पिन|пин)(?![^\W_])")
WORDS = (*_WORDS, "pw", "pass", "pin", "mdp", "psw", "पिन", "пин")
# A network's name and its password are often told together.
NETWORKS = (
    "wifi",
    "wi-fi",
    "wlan",
    "hotspot",
    "router",
    "ワイファイ",
    "ルーター",
    "وايفاي",
    "واي فاي",
    "वाईफाई",
    "वाई-फाई",
)
_NETWORK = re.compile("|".join(map(re.escape, NETWORKS)))
_NEAR = 48  # characters between the word and the password
_TOKEN = re.compile(r"[^\s\"'“”‘’«»「」『』`]+")
_SAYS = re.compile(r"(?:[:=：→](?!//)|->|lautet|\breads)\s*[\"'“‘«「『`]?(?P<token>[^\s\"'”’»」』`]{4,})")
_DIGITS_AFTER = re.compile(r"[^\d.!?\n]{0,14}(?<![\d.,:/\-])\d{4,12}(?![\d/]|[.,:\-]\d)")
_IS = r"(?:is|ist|es|é|est|hai|है|هو|هي|は|it's|eh)"
_NAMED_AFTER = re.compile(rf"[^.!?\n]{{0,24}}?\s{_IS}\s+[A-ZÄÖÜÉ][^\W\d_]{{4,}}\s*(?:[.!,;)\n]|$)")
_QUOTED = re.compile(r"[\"“«「『`]([^\s\"”»」』`]{4,40})[\"”»」』`]")
_EDGES = ".,;:!?()[]{}<>…。、！？،؟।→\"'“”‘’«»「」『』`*"
_NO_PASSWORD = re.compile(
    r"https?://.*|www\..*|[\w.+-]+@[\w-]+\.[\w.]+|\d{1,2}[:.]\d{2}|\d{1,4}[./-]\d{1,2}[./-]\d{1,4}"
    r"|\d+(?:st|nd|rd|th|x|%|€|\$)?"
    r"|@\w+|#\w+|[\w'’]+(?:[-/][^\W\d_]+)+"
)
_NO_LITERAL = re.compile(r"https?://.*|www\..*|\d{1,2}[:.]\d{2}|\d{1,4}[./-]\d{1,2}[./-]\d{1,4}")
_UUID_OR_HEX = re.compile(r"(?:[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|[0-9a-f]+|[0-9A-F]+|\d+)")
_LONG = re.compile(r"(?<![\w/.=+\-])[A-Za-z0-9+/_=\-]{32,}(?![\w/.])")
_LETTERS = re.compile(r"[^\W\d_]+")
_FEW_WORDS, _ALONE = 3, 6  # words of a message, and letters of one, that may be a password by itself
_SEED_WORDS = 12
_DISTINCT_SEED_WORDS = 8  # "ha ha ha …" is none


@cache
def _finder() -> AhoCorasick:
    return AhoCorasick(_WORDS, matchkind=MatchKind.LeftmostLongest)


@cache
def _seed_words() -> tuple[frozenset[str], ...]:
    """Return BIP-39's word lists, each letter apart from its marks; Chinese has no spaces between its words."""
    from mnemonic import Mnemonic

    languages = [name for name in Mnemonic.list_languages() if not name.startswith("chinese")]
    return tuple(frozenset(_bare(word) for word in Mnemonic(name).wordlist) for name in languages)


@cache
def _any_seed_word() -> frozenset[str]:
    return frozenset().union(*_seed_words())


def _bare(word: str) -> str:
    if word.isascii():
        return word.lower()
    letters = unicodedata.normalize("NFKD", word.lower())
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


def kind_of_secret(text: str) -> str | None:
    """Return what kind of secret a text gives away (``"key"``, ``"password"`` or ``"seed phrase"``), or None."""
    if holds_key(text):
        return "key"
    if tells_password(text):
        return "password"
    return "seed phrase" if holds_seed_phrase(text) else None


def holds_key(text: str) -> bool:
    """Say whether a key or token of a known make stands in a text, or a long one that looks random."""
    return bool(_KEYS.search(text)) or any(_random_looking(match[0]) for match in _LONG.finditer(text))


def _random_looking(token: str) -> bool:
    """Say whether a long token mixes cases and digits as random ones do; hashes and UUIDs are no secrets."""
    if _UUID_OR_HEX.fullmatch(token) or not (re.search(r"\d", token) and re.search(r"[a-z]", token)):
        return False
    counts = Counter(token)
    entropy = -sum(count / len(token) * math.log2(count / len(token)) for count in counts.values())
    return bool(re.search(r"[A-Z]", token)) and entropy > 3.8


def tells_password(text: str) -> bool:
    """Say whether a word for a password stands near something that looks like one."""
    low = text.replace("İ", "I").lower()  # its small form would be two characters
    spots = [(begin, end) for _, begin, end in _finder().find_matches_as_indexes(low)]
    spots += [match.span() for match in _SHORT_WORDS.finditer(low)]
    for begin, end in spots:
        after = text[end : end + _NEAR].partition("?")[0]
        said = _SAYS.search(after[:32])
        quoted = _QUOTED.search(after[:40])
        if quoted and _plausible(quoted[1]):
            return True
        if said and _plausible(said["token"].strip(_EDGES)):
            return True
        if _DIGITS_AFTER.match(after) or _NAMED_AFTER.match(after):
            return True
        before = text[max(0, begin - 24) : begin]
        if any(_looks_made_up(token[0].strip(_EDGES)) for part in (after, before) for token in _TOKEN.finditer(part)):
            return True
    made_up = (token[0].strip(_EDGES) for token in _TOKEN.finditer(text)) if _NETWORK.search(low) else ()
    return any(len(token) >= 8 and _looks_made_up(token) for token in made_up)


def is_password(text: str) -> bool:
    """Say whether a short message looks like a password and nothing else: the answer to who asked for one."""
    words = [token[0].strip(_EDGES) for token in _TOKEN.finditer(text)]
    return len(words) <= _FEW_WORDS and any(len(word) >= _ALONE and _looks_made_up(word) for word in words)


def _plausible(token: str) -> bool:
    """Say whether what follows a colon can be a password: it is no link, date or address."""
    return len(token) >= 4 and not _NO_LITERAL.fullmatch(token)


def _looks_made_up(token: str) -> bool:
    """Say whether a word looks like a password: letters with digits or marks inside, or capitals amid small letters."""
    if len(token) < 5 or _NO_PASSWORD.fullmatch(token):
        return False
    letters = any(letter.isalpha() for letter in token)
    digits = any(letter.isdigit() for letter in token)
    marks = any(not letter.isalnum() and letter not in "'’-_/." and letter.isascii() for letter in token)
    capitals = bool(re.search(r"[a-z][A-Z]", token))
    return letters and (digits or marks or capitals)


def holds_seed_phrase(text: str) -> bool:
    """Say whether twelve words of one of BIP-39's lists stand in a row, numbered or not."""
    found = _LETTERS.findall(text if text.isascii() else unicodedata.normalize("NFC", text))
    some = [_bare(word) for word in found[_SEED_WORDS - 1 :: _SEED_WORDS]]  # of twelve in a row one is among these
    if _any_seed_word().isdisjoint(some):
        return False
    words = [_bare(word) for word in found]
    for known in _seed_words():
        run = 0
        for place, word in enumerate(words):
            run = run + 1 if word in known else 0
            if run >= _SEED_WORDS and len(set(words[place - _SEED_WORDS + 1 : place + 1])) >= _DISTINCT_SEED_WORDS:
                return True
    return False
