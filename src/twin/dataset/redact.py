"""Private values out of texts: each becomes a placeholder, the same value the same one.

Numbers count only where a library vouches for them: phones by libphonenumber, cards by Luhn and their issuer's prefix,
IBANs by their check digits, IP addresses by ``ipaddress``, street addresses of three countries by pyap2. Not obvious:
while a dataset is built, in several processes, a placeholder carries the number of its own part between two private-use
characters; ``number`` gives it the one number it has in the whole dataset, in the order of first appearance, so that no
digit of a placeholder tells of the value.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

OPEN, CLOSE = "\ue000", "\ue001"
LOCAL = re.compile(f"{OPEN}([a-z]+)(\\d+){CLOSE}")
LOCAL_BYTES = re.compile(f"{OPEN}([a-z]+)(\\d+){CLOSE}".encode())


class Found(NamedTuple):
    """A private value in a text: where it stands, its kind, and the form in which equal values are equal."""

    start: int
    end: int
    kind: str
    value: str


# Not \\w: scripts without spaces between words put theirs right before and after a number.
_NOT_BEFORE, _NOT_AFTER = r"(?<![0-9A-Za-z_])", r"(?![0-9A-Za-z_])"
_URL = re.compile(r"[a-z][a-z0-9+.\-]{1,20}://[^\s<>\"'“”「」。、]+", re.IGNORECASE)
_USER_IN_URL = re.compile(r"[a-z][a-z0-9+.\-]*://[^/?#\s@]+:[^/?#\s@]*@", re.IGNORECASE)
_SECRET_QUERY = re.compile(
    r"[?&#;](?:[\w.\-]*[_\-.])?(?:access|auth|api|secret|session|sig|signature|token|key|apikey|password|passwd|pass|pwd"
    r"|pw|jwt|sid|sessionid|credentials?|code|otp|invite)(?:[_\-.]?(?:token|key|id|sig|signature|secret|code))?"
    r"=[^&#\s]{4,}",
    re.IGNORECASE,
)
_LATIN = r"0-9A-Za-z\u00c0-\u024f"
# What may stand left and right of an @: bounded, so that no run of letters takes long.
_LOCAL_PART = re.compile(rf"[{_LATIN}.!#$%&*+/=?^_`{{|}}~\-]{{1,64}}$")
_DOMAIN = re.compile(rf"[{_LATIN}\-]{{1,63}}(?:\.[{_LATIN}\-]{{1,63}}){{1,8}}")
_LOCAL_PART_ELSEWHERE = re.compile(r"[\w.\-]{1,64}$")  # in another script, both sides of it
_DOMAIN_ELSEWHERE = re.compile(r"[^\W\d_a-zA-Z][\w\-]{0,62}(?:\.[\w\-]{1,63}){1,8}")
# Spelt out so that programs miss it: ana (at) example dot org, ana [arroba] example punto es.
_AT = r"(?:at|ät|arroba|एट|アットマーク|アット|آت|ات)"
_DOT = r"(?:dot|punkt|punto|ponto|डॉट|ドット|دوت|نقطة)"
ATS = ("at", "ät", "arroba", "एट", "アット", "آت", "ات", "@")
DOTS = ("dot", "punkt", "punto", "ponto", "डॉट", "ドット", "دوت", "نقطة", ".")
_IN_BRACKETS = r" ?[\[({{<] ?{0} ?[\])}}>] ?"
_ANY_DOT = rf"(?:{_IN_BRACKETS.format(_DOT)}| {_DOT} |ドット|\.)"
_HOST = r"[0-9A-Za-z\-]{1,63}"
_DOMAINS = rf"{_HOST}(?:{_ANY_DOT}{_HOST}){{0,4}}"
_SPELT_EMAIL = re.compile(
    rf"{_NOT_BEFORE}[0-9A-Za-z._+\-]{{1,64}}(?:"
    rf"(?:{_IN_BRACKETS.format(_AT)}|{_IN_BRACKETS.format('@')}|アットマーク|アット){_DOMAINS}{_ANY_DOT}"
    rf"| {_AT} {_DOMAINS}(?:{_IN_BRACKETS.format(_DOT)}| {_DOT} |ドット)"
    rf")[a-z]{{2,12}}{_NOT_AFTER}",
    re.IGNORECASE,
)
_IBAN = re.compile(rf"{_NOT_BEFORE}[A-Za-z]{{2}}\d{{2}}(?:[ \u00a0\-.]?[A-Za-z0-9]){{11,34}}")
_CARD = re.compile(r"(?<![0-9A-Za-z_+])\d(?:[ \u00a0\-./–]{0,3}\d){12,60}")
_CARD_GROUPS = {(4, 4, 4, 4), (4, 6, 5), (4, 6, 4), (4, 4, 4, 4, 3), (8, 8)}
_CARD_STARTS = re.compile(
    r"4|5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)|3[47]|3(?:0[0-5]|[689])|6(?:011|4[4-9]|5)|35|62|60|81|82|50|5[6-9]"
)
_IPV4 = re.compile(r"(?<![0-9A-Za-z_.])(?:\d{1,3}\.){3}\d{1,3}(?![0-9A-Za-z_]|\.\d)")
_IPV6 = re.compile(
    r"(?<![0-9A-Za-z_:.])(?:[0-9a-fA-F]{0,4}:){2,7}(?:[0-9a-fA-F]{1,4}|(?:\d{1,3}\.){3}\d{1,3})?(?:%[0-9A-Za-z]+)?"
    r"(?![0-9A-Za-z_:])"
)
# Whole postal addresses have one; pyap is slowest where it finds nothing.
_Country = Literal["US", "CA", "GB"]
_POSTAL_CODES: dict[_Country, re.Pattern[str]] = {
    "US": re.compile(r"\b\d{5}(?:-\d{4})?\b"),
    "CA": re.compile(r"\b[A-Z]\d[A-Z] ?\d[A-Z]\d\b", re.IGNORECASE),
    "GB": re.compile(r"\b[A-Z]{1,2}\d[A-Z\d]? ?\d[A-Z]{2}\b", re.IGNORECASE),
}
_HOUSE_NUMBER = re.compile(
    r"\d|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen|\w+ty|hundred|thousand|zero|box|drawer)\b",
    re.IGNORECASE,
)
_LONGEST_ADDRESSED = 1000
_VERSION = re.compile(
    r"(?:\bv|version|ver\.?|release|firmware|build|update|upgrade|\bapp|patch|android|ios|windows|chrome|driver|treiber|バージョン|الإصدار|إصدار|تحديث|نسخة|versi[oó]n|actualizaci[oó]n|アップデート|अपडेट|वर्ज़?न|संस्करण)\W{0,3}$",
    re.IGNORECASE,
)
_PHONE = re.compile(
    r"(?<![0-9A-Za-z_@/#$€£¥₹\-])(?<!\d[.,:])(?:\+|00)?[ ]?\(?\d(?:[ \u00a0\u2009\-‐‑–./()]{0,3}\d){6,40}"
    r"(?![0-9A-Za-z_%$€£¥₹@]|[.,:]\d|-[0-9A-Za-z_])"
)
_MENTION = re.compile(
    r"(?:(?<![0-9A-Za-z_])@|\bwa\.me/)\+?(?P<number>[1-9]\d{9,14})(?!\d)"
)  # WhatsApp's, with the country
_NO_PHONE = re.compile(
    r"\d{1,4}[./\- ]\d{1,2}[./\- ]\d{1,4}(?:[ \-–].*)?"  # dates, and spans of them
    r"|(?:19|20)\d{2} ?[\-–/] ?(?:19|20)\d{2}"
    r"|\d{1,2}([ .\u00a0\u2009])\d{3}(?:\1\d{3})+|(?![679]\d\d\.\d{3}\.\d{3}$)\d{1,3}(?:\.\d{3})+"  # counts: 10 000 000
    r"|\d{1,3}(?:\.\d{1,3}){3}"
    r"|(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:[0-2]\d|3[01])(?:\d{4}|\d{6})?"  # 20240305
    r"|97[89][ \-]?\d[\d \-]{8,}"  # ISBN
    r"|\d{5}[ \-]\d{4}"  # a postal code
)
# Before a number, these say that it is no phone's.
_OTHER_NUMBER = re.compile(
    r"(?:[#№]|order|tracking|ticket|invoice|isbn|serial|booking|flight|account no|\bref|\bid|\bsku|case|model|artikel"
    r"|bestell\w*|sendung\w*|rechnung\w*|auftrag\w*|kunden\w*|vorgang\w*|paket\w*|pedido|factura|env[ií]o|seguimiento|reserva"
    r"|expediente|referencia|注文|追跡|伝票|予約|会員|受付|型番|管理|طلب|شحنة|تتبع|فاتورة|حجز|تذكرة|ऑर्डर|ट्रैकिंग|बुकिंग|टिकट|पीएनआर|pnr)"
    r"[^\d\n]{0,18}$",
    re.IGNORECASE,
)
# Regions to read a national number in, by the script around it; the user's own come first.
_REGIONS = (
    (re.compile(r"[\u0900-\u097f\u0980-\u0dff]"), ("IN",)),
    (re.compile(r"[\u3040-\u30ff]"), ("JP",)),
    (re.compile(r"[\uac00-\ud7af]"), ("KR",)),
    (re.compile(r"[\u4e00-\u9fff]"), ("CN", "TW", "HK", "JP")),
    (re.compile(r"[\u0600-\u06ff]"), ("EG", "SA", "AE", "JO", "MA", "IQ", "LB", "IR", "PK")),
    (re.compile(r"[\u0590-\u05ff]"), ("IL",)),
    (re.compile(r"[\u0400-\u04ff]"), ("RU", "UA", "KZ")),
    (re.compile(r"[\u0370-\u03ff]"), ("GR",)),
    (re.compile(r"[\u0e00-\u0e7f]"), ("TH",)),
)
_FEWEST_DIGITS, _MOST_DIGITS, _FEW_DIGITS = 7, 17, 4
_LATIN_REGIONS = ("US", "GB", "DE", "ES", "FR", "IT", "MX", "BR", "AR", "NL", "AT", "CH", "IN", "JP", "AU")
_WIDE = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)} | {0x3000: 0x20, 0x2212: 0x2D}
_WIDE_MARK = re.compile("[\uff01-\uff5e\u3000\u2212ー]")
_OTHER_DIGIT = re.compile(r"[^\D0-9]")
_LONG_VOWEL = re.compile(r"(?<=\d)ー(?=\d)")  # typed for a hyphen


def plain_marks(text: str) -> str:
    """Return the text with full-width letters and marks as ASCII, each at its own place."""
    return _LONG_VOWEL.sub("-", text.translate(_WIDE)) if not text.isascii() and _WIDE_MARK.search(text) else text


def plain_digits(text: str) -> str:
    """Return the text with every script's digits, and full-width marks, as ASCII: each at its own place."""
    if text.isascii():
        return text
    return _OTHER_DIGIT.sub(lambda match: str(unicodedata.decimal(match[0])), plain_marks(text))


def find(text: str, regions: Sequence[str] = ()) -> list[Found]:
    """Return the private values of a text, in order, none over another.

    Args:
        text: one message, memory or note.
        regions: countries (ISO 3166, two letters) whose national phone numbers are meant first.
    """
    plain = plain_digits(text)
    taken: list[Found] = []
    for search in (_urls, _emails, _ibans, _cards, _ips, _addresses):
        for one in search(plain):
            if not _overlaps(one.start, one.end, taken):
                taken.append(one)
    return sorted([*taken, *_phones(plain, tuple(regions), taken)])


def _overlaps(start: int, end: int, others: Sequence[Found]) -> bool:
    return any(start < other.end and other.start < end for other in others)


def _urls(text: str) -> list[Found]:
    found: list[Found] = []
    for match in _URL.finditer(text) if "://" in text else ():
        url = match[0].rstrip(".,;:!?)]}>。、！？،؟")
        if _USER_IN_URL.match(url) or _SECRET_QUERY.search(url):
            found.append(Found(match.start(), match.start() + len(url), "url", url))
    return found


def _emails(text: str) -> list[Found]:
    low = text.casefold()
    spelt = any(word in low for word in DOTS) and any(word in low for word in ATS)
    matches = _SPELT_EMAIL.finditer(text) if spelt else ()
    found = [Found(*match.span(), "email", match[0].casefold()) for match in matches]
    at = text.find("@")
    while at >= 0:
        if one := _email(text, at):
            found.append(one)
        at = text.find("@", at + 1)
    return found


def _email(text: str, at: int) -> Found | None:
    """Return the address around an @, if there is one."""
    before = text[max(0, at - 64) : at]
    for local_part, domain in ((_LOCAL_PART, _DOMAIN), (_LOCAL_PART_ELSEWHERE, _DOMAIN_ELSEWHERE)):
        left, right = local_part.search(before), domain.match(text, at + 1)
        own = left[0].lstrip(".!#$%&*+/=?^`{|}~-") if left else ""
        if not (own and right) or not any(letter.isalnum() for letter in own):
            continue
        start = at - len(own)
        if text[:start].endswith("@") or (own == "git" and text[right.end() : right.end() + 1] == ":"):
            return None  # @ana@example.social, a repository
        value = text[start : right.end()].rstrip(".-_")
        return Found(start, start + len(value), "email", value.casefold())
    return None


def _ibans(text: str) -> list[Found]:
    from stdnum import iban

    found = []
    for match in _IBAN.finditer(text):
        for end in range(match.end(), match.start() + 14, -1):  # words may follow on: the longest beginning that checks
            if not text[end - 1].isalnum() or (text[end : end + 1].isascii() and text[end : end + 1].isalnum()):
                continue
            compact = re.sub(r"[^0-9A-Za-z]", "", text[match.start() : end]).upper()
            if len(compact) >= 15 and iban.is_valid(compact, check_country=False):
                found.append(Found(match.start(), end, "iban", compact))
                break
    return found


def _cards(text: str) -> list[Found]:
    """Return cards in runs of digits; a date or another number may stand beside one."""
    from stdnum import luhn

    found = []
    for match in _CARD.finditer(text):
        groups = [(match.start() + one.start(), one[0]) for one in re.finditer(r"\d+", match[0])]
        begin = 0
        while begin < len(groups):
            for end in range(len(groups), begin, -1):
                digits = "".join(group for _, group in groups[begin:end])
                sizes = tuple(len(group) for _, group in groups[begin:end])
                whole = (begin, end) == (0, len(groups)) or len(sizes) == 1 or sizes in _CARD_GROUPS
                if 13 <= len(digits) <= 19 and whole and _CARD_STARTS.match(digits) and luhn.is_valid(digits):
                    last, group = groups[end - 1]
                    after = text[last + len(group) : last + len(group) + 1]
                    if not (after.isascii() and (after.isalnum() or after == "_")):
                        found.append(Found(groups[begin][0], last + len(group), "card", digits))
                        begin = end - 1
                        break
            begin += 1
    return found


def _ips(text: str) -> list[Found]:
    found = []
    v4 = _IPV4.finditer(text) if text.count(".") > 2 else ()
    v6 = _IPV6.finditer(text) if text.count(":") > 1 else ()
    for match in (*v4, *v6):
        value = match[0]
        if ":" in value and sum(letter.isalnum() for letter in value) < 2:
            continue
        try:
            address = ipaddress.ip_address(value)
        except ValueError:
            continue
        if ":" not in value and _VERSION.search(text[: match.start()][-24:]):
            continue
        found.append(Found(match.start(), match.end(), "ip", str(address)))
    return found


def _addresses(text: str) -> list[Found]:
    countries = [country for country in _POSTAL_CODES if _may_be_addressed(text, country)]
    if not countries:
        return []
    import pyap  # late: it costs a millisecond a message, and few messages have a postal code

    found: list[Found] = []
    for country in countries:
        for one in pyap.parse(text, country=country):
            # Its places are those of a text whose spaces it changed: the words are looked for again.
            words = re.findall(r"\w+", str(one.full_address))
            place = re.search(r"\W{1,4}".join(map(re.escape, words)), text)
            if place and not _overlaps(place.start(), place.end(), found):
                found.append(Found(place.start(), place.end(), "address", " ".join(words).casefold()))
    return found


def _may_be_addressed(text: str, country: _Country) -> bool:
    """Say whether a postal code of a country stands there and, but for Britain, a house's number before it."""
    if len(text) > _LONGEST_ADDRESSED:
        return False
    last = max((match.start() for match in _POSTAL_CODES[country].finditer(text)), default=-1)
    return last >= 0 and (country == "GB" or bool(_HOUSE_NUMBER.search(text, 0, last)))


def _phones(text: str, regions: tuple[str, ...], taken: Sequence[Found]) -> list[Found]:
    if taken:  # what is found already is no phone's
        letters = list(text)
        for one in taken:
            letters[one.start : one.end] = "\n" * (one.end - one.start)
        text = "".join(letters)
    mentions = [(match, _phone(f"+{match['number']}", (), ())) for match in _MENTION.finditer(text)]
    found = [Found(*match.span("number"), "phone", value) for match, value in mentions if value]
    for match in _PHONE.finditer(text):
        if found and _overlaps(*match.span(), found):
            continue
        candidate = match[0].strip()
        start = match.start() + len(match[0]) - len(match[0].lstrip())
        if candidate.startswith("(") and candidate.count("(") > candidate.count(")"):
            candidate = candidate.lstrip("( ")
            start = match.end() - len(candidate)
        if not candidate.startswith(("+", "00")) and (
            _NO_PHONE.fullmatch(candidate) or _OTHER_NUMBER.search(text[: match.start()][-32:])
        ):
            continue
        for begin, end, value in _in_run(candidate, regions, _regions(text)):
            found.append(Found(start + begin, start + end, "phone", value))
    return found


def _in_run(run: str, own: tuple[str, ...], others: tuple[str, ...]) -> list[tuple[int, int, str]]:
    """Return the numbers in a run of digits and marks: one, mostly; else those that begin with a zero or a plus.

    A few more digits may follow after a space ("0176 12345678 2x"), and another number.
    """
    return [one for one in _split_run(run, own, others) or [] if one[2]]


def _split_run(run: str, own: tuple[str, ...], others: tuple[str, ...]) -> list[tuple[int, int, str]] | None:
    """Return the numbers in a run, those of services with an empty value; None where it is no run of numbers."""
    if sum(map(str.isdecimal, run)) <= _MOST_DIGITS and (value := _phone(run, own, others)) is not None:
        return [(0, len(run), value)]
    cuts = [match.end() for match in re.finditer(r"[ /]", run)]
    for cut in reversed(cuts):
        part, rest = run[:cut].rstrip(" /"), run[cut:].lstrip(" /")
        digits = sum(map(str.isdecimal, part))
        if not part.startswith(("+", "0")) or not _FEWEST_DIGITS <= digits <= _MOST_DIGITS:
            continue
        few = sum(map(str.isdecimal, rest)) <= _FEW_DIGITS
        more = [] if few else _split_run(rest, own, others)
        if more is not None and (value := _phone(part, own, others)) is not None:
            shift = len(run) - len(rest)
            return [(0, len(part), value), *((begin + shift, end + shift, other) for begin, end, other in more)]
    return None


def _regions(text: str) -> tuple[str, ...]:
    return next((regions for script, regions in _REGIONS if script.search(text)), ()) + _LATIN_REGIONS


@lru_cache(maxsize=1 << 16)
def _phone(candidate: str, own: tuple[str, ...], others: tuple[str, ...]) -> str | None:
    """Return a number in E.164; empty for a service's (toll-free, say), which is nobody's; None: there is no such.

    Args:
        candidate: digits and marks.
        own: the user's countries: a service's number there is no number of another country.
        others: countries that may be meant.
    """
    import phonenumbers

    number = "+" + candidate[2:] if candidate.startswith("00") else candidate
    bare = candidate.isdecimal()
    for region in (None,) if candidate.startswith(("+", "00")) else (*own, *others):
        try:
            parsed = phonenumbers.parse(number, region)
        except phonenumbers.NumberParseException:
            continue
        kind = phonenumbers.number_type(parsed)
        if kind in _SERVICES and (region is None or region in own):
            return ""
        if kind in _SERVICES or kind == phonenumbers.PhoneNumberType.UNKNOWN:
            continue
        if bare and not candidate.startswith("0") and len(candidate) < 9:
            continue  # eight digits in a row without a zero before them are any number
        return str(phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164))
    return None


_SERVICES = {3, 4, 5, 8}  # phonenumbers.PhoneNumberType: toll-free, premium, shared cost, pagers; nobody's own


class Redactor:
    """Replaces private values by placeholders such as ``[phone 2]``, and counts them.

    Args:
        regions: countries whose national phone numbers are meant first.
        names: what people are called who get a pseudonym, and who each is; whole words, the longest name first.
        values: replace private values; False: names alone.
    """

    def __init__(
        self, regions: Sequence[str] = (), names: Mapping[str, str] | None = None, values: bool = True
    ) -> None:
        self._replaces_values = values
        self._regions = tuple(regions)
        called = {name: who for name, who in (names or {}).items() if name.strip()}
        self._people = {name.casefold(): who.casefold() for name, who in called.items()}
        whole = "|".join(map(re.escape, sorted(called, key=len, reverse=True)))
        self._names = re.compile(rf"(?<![0-9A-Za-z_])(?:{whole})(?![0-9A-Za-z_])", re.IGNORECASE) if whole else None
        self._known: dict[tuple[str, str], int] = {}
        self._of_kind: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()

    @property
    def values(self) -> list[tuple[str, str]]:
        """The kinds and values met so far, in the order of their first appearance."""
        return list(self._known)

    def number(self, kind: str, value: str) -> int:
        """Return the number of a value among those of its kind, from 1."""
        found = self._known.get((kind, value))
        if found is None:
            self._of_kind[kind] += 1
            found = self._known[kind, value] = self._of_kind[kind]
        return found

    def local(self, text: str) -> str:
        """Return the text with placeholders that ``numbered`` understands."""
        return self._replaced(text, lambda kind, number: f"{OPEN}{kind}{number}{CLOSE}")

    def redact(self, text: str) -> str:
        """Return the text with placeholders."""
        return self._replaced(text, lambda kind, number: f"[{kind} {number}]")

    def _replaced(self, text: str, placeholder: Callable[[str, int], str]) -> str:
        parts, end = [], 0
        for one in find(text, self._regions) if self._replaces_values else ():
            self.counts[one.kind] += 1
            parts += [text[end : one.start], placeholder(one.kind, self.number(one.kind, one.value))]
            end = one.end
        done = "".join([*parts, text[end:]])
        return self._names.sub(lambda match: self._pseudonym(match[0], placeholder), done) if self._names else done

    def _pseudonym(self, name: str, placeholder: Callable[[str, int], str]) -> str:
        self.counts["person"] += 1
        return placeholder("person", self.number("person", self._people.get(name.casefold(), name.casefold())))


def numbered(data: bytes, numbers: dict[tuple[str, int], int]) -> bytes:
    """Return a row with the dataset's numbers in its placeholders.

    Args:
        data: a row of one part, as UTF-8.
        numbers: for a kind and the part's own number the dataset's.
    """

    def placeholder(match: re.Match[bytes]) -> bytes:
        kind = match[1].decode()
        number = numbers.get((kind, int(match[2])))  # None: a name of somebody's that only looks like one
        return f"[{kind} {number}]".encode() if number else match[0]

    return LOCAL_BYTES.sub(placeholder, data)
