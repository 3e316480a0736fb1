"""E-mail in an mbox: Gmail's Takeout, Thunderbird's and Apple Mail's folders.

Layout (https://www.rfc-editor.org/rfc/rfc4155): messages one after another, each
after a line ``From address date``; such lines inside a message begin with ``>``. Takeout adds ``X-GM-THRID`` and
``X-Gmail-Labels``. Not obvious: most of a mailbox is nobody's speech to the person (lists, receipts, spam) and most of
a reply is a quote, so what was typed is little and is kept in memory until the threads are known. Times are in UTC.
"""

from __future__ import annotations

import codecs
import html
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email import policy
from email.errors import HeaderParseError
from email.header import decode_header
from email.message import Message as Part
from email.parser import BytesHeaderParser, BytesParser
from email.utils import getaddresses, parsedate_to_datetime
from typing import IO, NamedTuple

from twin.brain.document import Document
from twin.brain.reading import clean, epoch_time, pieces
from twin.dropped import Dropped
from twin.records import Conversation, Message

LAYOUT = "e-mail (mbox)"
HOLDS = (Conversation,)
MAX_MAIL = 1 << 20  # of each message; text stands before attachments
MAX_LINE = 1 << 20
MAX_FIELD = 4096
MAX_DEPTH = 20
# After an empty line, before a header; some write no date at all.
_POSTMARK = re.compile(rb"From (?:-?\s*|.{0,320}\d\d:\d\d.{0,20}\d{4}.{0,80}\s*)")
_FIELD = re.compile(rb"[!-9;-~]{1,76}:|>From ")
_POSTMARK_DATE = re.compile(r"([A-Z][a-z]{2}) +(\d{1,2}) (\d\d:\d\d(?::\d\d)?)(?: ([+-]\d{4}))? (\d{4})")
_IDS = re.compile(r"<[^<>\s]{1,500}>")
_REPLY = re.compile(r"(?:(?:re|aw|antw|sv|vs|rif|res|odp|ynt|ang|回复|答复|回覆|返信)(?:\[\d+\])?\s?[:：]\s*)+", re.I)
_FORWARD = re.compile(r"(?:fwd?|wg|tr|rv|enc|doorst|vl|vb|pd|转发|轉寄)\s?[:：]", re.I)
_ROBOT = re.compile(
    r"(?:.*[-_.+])?(?:no|donot|do-not|do_not)[-_.]?reply(?:[-_.+].*)?|mailer-daemon|postmaster|notifications?"
)
_AUTOMATIC = ("x-autoreply", "x-autorespond", "x-auto-reply", "x-failed-recipients")
_LIST = ("list-id", "list-unsubscribe", "list-post")
# Takeout writes labels in the account's language; in most languages spam is spam.
_SPAM = {"spam", "спам", "迷惑メール", "垃圾邮件", "垃圾郵件", "스팸함"}
_DRAFTS = {
    "draft",
    "drafts",
    "entwurf",
    "entwürfe",
    "brouillon",
    "brouillons",
    "borrador",
    "borradores",
    "bozza",
    "bozze",
}
_DRAFTS |= {"rascunho", "rascunhos", "concept", "concepten", "черновик", "черновики", "下書き", "草稿", "임시보관함"}
_CHAT = {"chat", "chats", "чат", "チャット", "聊天", "채팅"}
# Charsets that people write in: others of Python's decoders are slow, or no charsets.
_CHARSET = re.compile(
    r"(?:utf|us-?ascii|ascii|iso|latin|windows|cp|koi|gb|big5|hz|euc|shift|sjis|ks|mac|tis|viscii)", re.I
)


class _Mail(NamedTuple):
    """What one person typed in one mail.

    Args:
        number: its place in the file.
        node: its id, or one made up.
        related: ids of mails of the same thread.
        subject: its words without "Re:", and who is written to; None where that says nothing.
        reply: whether its subject says that it is one.
        address, name: the sender's.
        text, at: the message.
    """

    number: int
    node: str
    related: tuple[str, ...]
    subject: tuple[str, frozenset[str]] | None
    reply: bool
    address: str
    name: str
    text: str
    at: datetime | None


def sniff(document: Document, head: bytes) -> bool:
    """A postmark and a header, in a file that is not called a text."""
    first, _, second = head.partition(b"\n")
    is_text = document.suffix in {".txt", ".md", ".markdown"}
    return not is_text and bool(_POSTMARK.fullmatch(first)) and bool(_FIELD.match(second))


def read(document: Document, dropped: Dropped) -> Iterator[Conversation]:
    """Yield each thread as a conversation.

    Raises:
        UsageError: a file that can't be read, after the mails before the break.
    """
    mails: list[_Mail] = []
    try:
        for mail in _mails(document, dropped):
            mails.append(mail)
    finally:
        yield from _conversations(mails, document.name)


def _conversations(mails: list[_Mail], name: str) -> Iterator[Conversation]:
    mails.sort(key=lambda mail: mail.at or datetime.min)
    threads = _Threads()
    for mail in mails:
        threads.add(mail)
    found: dict[str, list[_Mail]] = {}
    for mail in mails:
        found.setdefault(threads.root(mail.node), []).append(mail)
    names = _names(mails)
    for thread in found.values():
        if not all(mail.at for mail in thread):
            thread.sort(key=lambda mail: mail.number)
        said = (Message(names.get(mail.address, mail.address), mail.text, mail.at) for mail in thread)
        yield from pieces(f"{name}/{min(mail.number for mail in thread)}", said)


def _names(mails: Iterable[_Mail]) -> dict[str, str]:
    """Return the name of each address that always signs with one; of addresses that share it, the busiest has it."""
    signed = Counter((mail.address, mail.name) for mail in mails if mail.name)
    by_address: dict[str, set[str]] = {}
    by_name: dict[str, list[tuple[int, str]]] = {}
    for (address, name), count in signed.items():
        by_address.setdefault(address, set()).add(name)
        by_name.setdefault(name, []).append((count, address))
    names = {}
    for name, users in by_name.items():
        (most, address), *others = sorted(users, reverse=True)
        if len(by_address[address]) == 1 and not (others and others[0][0] == most):
            names[address] = name
    return names


class _Threads:
    """Mails joined by what they refer to; without references by subject and people."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}
        self._by_subject: dict[tuple[str, frozenset[str]], str] = {}

    def root(self, node: str) -> str:
        """Return the node that stands for all of its thread."""
        while (above := self._above.setdefault(node, node)) != node:
            self._above[node] = node = self._above[above]
        return node

    def add(self, mail: _Mail) -> None:
        """Join a mail with its thread. Mails come in the order of their dates."""
        for other in mail.related:
            self._above[self.root(other)] = self.root(mail.node)
        if mail.subject:
            if mail.reply and not mail.related and mail.subject in self._by_subject:
                self._above[self.root(mail.node)] = self.root(self._by_subject[mail.subject])
            self._by_subject[mail.subject] = mail.node


def _mails(document: Document, dropped: Dropped) -> Iterator[_Mail]:
    seen: set[str] = set()
    with document.open() as handle:
        for number, (postmark, raw, is_cut) in enumerate(_split(handle)):
            letter = _Letter(number, postmark, raw, is_cut)
            reason = letter.reason()
            if not reason and letter.id:
                reason = "duplicate" if letter.id in seen else None
                seen.add(letter.id)
            texts: Sequence[_Mail] = ()
            if not reason:
                texts, reason = letter.read()
                if letter.is_text_cut:
                    dropped.add("rest of a mail of over 1 MiB", letter.title, document.name)
            if reason:
                dropped.add(reason, letter.title, document.name)
            yield from texts


def _split(handle: IO[bytes]) -> Iterator[tuple[bytes, bytes, bool]]:
    """Yield each message's postmark, its first MiB, and whether there was more."""
    kept: list[bytes] = []
    postmark, size, is_cut, after_blank = b"", 0, False, True
    line = handle.readline(MAX_LINE)
    while line:
        following = handle.readline(MAX_LINE)
        if after_blank and _POSTMARK.fullmatch(line) and _FIELD.match(following):
            if kept:
                yield postmark, b"".join(kept), is_cut
            postmark, kept, size, is_cut = line, [], 0, False
        elif size < MAX_MAIL:
            kept.append(line[1:] if line.startswith(b">") and line.lstrip(b">").startswith(b"From ") else line)
            size += len(line)
        else:
            is_cut = is_cut or bool(line.strip())
        after_blank = line in (b"\n", b"\r\n")
        line = following
    if kept:
        yield postmark, b"".join(kept), is_cut


class _Letter:
    """One mail of the file, of which no more is read than is asked for.

    Args:
        number: its place in the file.
        postmark: the line above it.
        raw: its bytes.
        is_cut: whether there were more of them.
    """

    def __init__(self, number: int, postmark: bytes, raw: bytes, is_cut: bool) -> None:
        self._number, self._raw, self._is_cut = number, raw, is_cut
        self.is_text_cut = False  # known once it is read
        self._postmark = postmark.decode("latin-1")
        self._fields: dict[str, str] = {}
        # The older policy: the default one takes a millisecond a mail, and raises on addresses that are cut short.
        end = re.search(rb"\n\r?\n", raw)
        head = raw[: end.end()] if end else raw
        for name, value in BytesHeaderParser(policy=policy.compat32).parsebytes(head).raw_items():
            self._fields.setdefault(name.lower(), " ".join(_repaired(str(value))[:MAX_FIELD].split()))
        (self.name, address), *_ = [*_addresses(self._fields.get("from", "")), ("", "")]
        self.address = address.partition("/")[0]
        labels = _unfolded(self._fields.get("x-gmail-labels", "")).split(",")
        self._labels = {label.strip(' "').casefold() for label in labels}
        ids = _IDS.findall(self._fields.get("message-id", ""))
        self.id = ids[0] if ids else ""
        self.title = clean(_unfolded(self._fields.get("subject", "")))

    def reason(self) -> str | None:
        """Return why it is not read, by its fields alone."""
        if "@" not in self.address:
            return "broken mail"
        if self._labels & _SPAM:
            return "spam"
        if self._labels & _DRAFTS:
            return "draft"
        return None if self._labels & _CHAT else self._reason_by_sender()

    def _reason_by_sender(self) -> str | None:
        has = self._fields.get
        precedence, kind = has("precedence", "").lower(), has("content-type", "").lower()
        automatic = not has("auto-submitted", "no").lower().startswith("no") or precedence == "auto_reply"
        automatic = (
            automatic or any(field in self._fields for field in _AUTOMATIC) or kind.startswith("multipart/report")
        )
        if automatic or _ROBOT.fullmatch(self.address.partition("@")[0]):
            return "automatic mail"
        if precedence in {"bulk", "list", "junk"} or any(field in self._fields for field in _LIST):
            return "mailing list"
        return "encrypted mail" if kind.startswith(("multipart/encrypted", "application/pkcs7-mime")) else None

    def read(self) -> tuple[list[_Mail], str | None]:
        """Return what was typed, and the reason where that is nothing: more than one message of an old Gmail chat."""
        try:
            part = BytesParser(policy=policy.compat32).parsebytes(self._raw)
            talk = [text for text in _texts(part, "text/xml") if "google:archive:conversation" in text]
            plain = "\n\n".join(_texts(part, "text/plain"))
            kind = "text/plain" if plain.strip() else "text/html"
            whole = plain if plain.strip() else "\n\n".join(map(html_text, _texts(part, kind)))
            last = _last(part)  # an attachment, or the same words as HTML, most often: nothing of what is read is cut
            self.is_text_cut = self._is_cut and _is_text(last) and last.get_content_type() == kind
        except RecursionError:
            return [], "broken mail"
        if talk and self._labels & _CHAT:
            said = [self._mail(*one) for text in talk for one in _old_chat(text)]
            return said, None if said else "Gmail's own message"
        if whole.lstrip().startswith("-----BEGIN PGP MESSAGE-----"):
            return [], "encrypted mail"
        text = clean(whole) if self._labels & _CHAT else own_words(whole)
        if not text:
            silent = "mail without words of its own" if whole.strip() else "media"
            return [], "forward" if _FORWARD.match(self.title) else silent
        return [self._mail(self.address, text, self._time(), self.name)], None

    def _mail(self, address: str, text: str, at: datetime | None, name: str = "") -> _Mail:
        replies = " ".join(self._fields.get(field, "") for field in ("references", "in-reply-to"))
        thread = self._fields.get("x-gm-thrid", "")
        people = [one for field in ("from", "to", "cc") for one in _addresses(self._fields.get(field, ""))]
        words = _REPLY.sub("", self.title, count=1) if _REPLY.match(self.title) else self.title
        return _Mail(
            self._number,
            self.id or f"#{self._number}",
            (f"gmail {thread}",) if thread else tuple(_IDS.findall(replies)),
            (words.casefold(), frozenset(one for _, one in people)) if words and not thread else None,
            bool(_REPLY.match(self.title)),
            address,
            name,
            text,
            at,
        )

    def _time(self) -> datetime | None:
        """Return when it was sent, or when the mailbox got it."""
        found = _POSTMARK_DATE.search(self._postmark)
        got = f"{found[2]} {found[1]} {found[5]} {found[3]} {found[4] or '+0000'}" if found else ""
        for value in (self._fields.get("date", ""), got):
            try:
                at = parsedate_to_datetime(value)
                return (at.astimezone(UTC) if at.tzinfo else at).replace(tzinfo=None)
            except (TypeError, ValueError, OverflowError, IndexError):
                continue
        return None


def _repaired(value: str) -> str:
    """Return a header's text, of which raw bytes arrive as lone surrogates."""
    data = value.encode("utf-8", "surrogateescape")
    return _decoded(data, "utf-8")


def _unfolded(value: str) -> str:
    """Return a header's text with its encoded words decoded."""
    if "=?" not in value:
        return value
    try:
        parts = decode_header(value)
    except (HeaderParseError, ValueError):
        return value
    return "".join(
        part
        if isinstance(part, str)
        else _decoded(part, charset)
        if charset
        else part.decode("raw-unicode-escape", "replace")  # as decode_header encodes it
        for part, charset in parts
    )


def _addresses(value: str) -> list[tuple[str, str]]:
    """Return (name, address) of each in a header; a name that is an address, or none, is empty."""
    try:
        pairs = getaddresses([value])
    except (RecursionError, ValueError, IndexError):
        return []
    found = []
    for name, address in pairs:
        shown = " ".join(clean(_unfolded(name)).strip("'\"").split())
        if address:
            found.append(("" if "@" in shown else shown, clean(address).lower()))
    return found


def _decoded(data: bytes, charset: str) -> str:
    """Return text in the charset it says, else in the one it seems to have."""
    with suppress(ValueError, LookupError):
        if _CHARSET.match(charset) and (name := codecs.lookup(charset).name) != "ascii":
            return data.decode("cp1252" if name == "iso8859-1" else name)  # as browsers do
    for name in ("utf-8", "cp1252"):
        with suppress(ValueError):
            return data.decode(name)
    return data.decode("utf-8", "replace")


def _last(part: Part) -> Part:
    """Return the part of a message that ends it, which is no part of others."""
    for _ in range(MAX_DEPTH):
        inner = part.get_payload()
        if not isinstance(inner, list) or not inner or not isinstance(inner[-1], Part):
            break
        part = inner[-1]
    return part


def _is_text(part: Part) -> bool:
    """Say whether a part is text and no attached file."""
    is_file = part.get_content_disposition() == "attachment" or part.get_filename()
    return part.get_content_maintype() == "text" and not is_file


def _texts(part: Part, kind: str, depth: int = 0) -> Iterator[str]:
    """Yield the texts of one kind in a message; attached files and mails are none."""
    if part.get_content_maintype() == "multipart":
        inner = part.get_payload()
        for one in inner if isinstance(inner, list) and depth < MAX_DEPTH else ():
            if isinstance(one, Part):
                yield from _texts(one, kind, depth + 1)
    elif part.get_content_type() == kind and _is_text(part):
        data = part.get_payload(decode=True)
        if isinstance(data, bytes):
            text = _decoded(data, part.get_content_charset("utf-8")).replace("\r\n", "\n").replace("\r", "\n")
            flowed = str(part.get_param("format", "")).lower() == "flowed"
            yield _joined(text, str(part.get_param("delsp", "")).lower() == "yes") if flowed else text


def _joined(text: str, delete_space: bool) -> str:
    """Return the paragraphs of ``format=flowed`` text (RFC 3676): a line that ends with a space goes on below."""
    paragraphs: list[list[str]] = []
    depth, goes_on = 0, False
    for line in text.split("\n"):
        words = line.lstrip(">")
        quoted = len(line) - len(words)
        words = words.removeprefix(" ")
        if not (goes_on and quoted == depth):
            paragraphs.append(["> "] if quoted else [])
        goes_on, depth = words.endswith(" ") and words != "-- ", quoted
        paragraphs[-1].append(words[:-1] if goes_on and delete_space else words)
    return "\n".join("".join(parts) for parts in paragraphs)


# What stands around a person's own words.

_FROM = r"From|Von|De|Da|Van|Fra|Från|Från|Od|От|Від|Kimden|Lähettäjä|Feladó|Από|发件人|寄件者|差出人|보낸 사람|מאת|من"
_FROM_LINE = re.compile(rf"[*>\s]*(?:{_FROM})\s?[:：]\*?\s*\S")
_LABEL_LINE = re.compile(r"[*>\s]*[^\W\d_][^:：\n]{0,24}[:：]\*?\s")
_RULE = re.compile(r"-{4,} ?[^\W_].{2,70}[^\W_] ?-{4,}")
_TIME_OR_ADDRESS = re.compile(r"\d{1,2}[:.h]\d\d|\d{4}|@")
_WROTE = re.compile(
    r"(?:wrote|schrieb|escribió|a écrit|ha scritto|schreef|skrev|escreveu|napisał\(?a?\)?|писал\(?а?\)?)\s?:$", re.I
)
_SENT_FROM = re.compile(
    r"(?:Sent from (?:my|Mail|Outlook|Yahoo|Proton|Samsung|Gmail)\b|Get Outlook for|Von meinem .{1,40} gesendet"
    r"|Gesendet (?:von|mit) |Envoyé (?:de|depuis|à partir) |Enviado (?:desde|do meu|de mi|a partir) |Inviato da"
    r"|Verzonden (?:vanaf|met) |Skickat från|Sendt fra|Lähetetty |Wysłan[eo] z|Отправлено (?:из|с) |Odesláno z"
    r"|iPhoneから送信|从我的.{1,20}发送|[发發]自我的).{0,60}",
    re.I,
)


def own_words(text: str) -> str:
    """Return a mail's text without quotes, the lines that introduce them, what was forwarded, and the signature.

    Quotes are found by their form, which is the same in all languages: lines with ``>``, and above them one that ends
    with a colon and holds a time or an address; or a block of header lines, as Outlook writes it. A greeting below
    the text stays: people type it.
    """
    kept: list[str] = []
    lines = _signed(text).split("\n")
    in_quote = False
    for number, line in enumerate(lines):
        bare = line.strip()
        if line.rstrip() == "--" or _begins_quoted_mail(lines, number):
            break
        if bare.startswith(">"):
            if not in_quote:
                _drop_introduction(kept, bare.lstrip("> "))
        else:
            kept.append(line.rstrip())
        in_quote = bare.startswith(">") or (in_quote and not bare)
    while kept and (not kept[-1].strip(" _") or _SENT_FROM.fullmatch(kept[-1].strip())):
        kept.pop()
    return clean(re.sub(r"\n{3,}", "\n\n", "\n".join(kept)))


def _signed(text: str) -> str:
    """Return what stands inside a PGP signature."""
    start = text.lstrip()
    if not start.startswith("-----BEGIN PGP SIGNED MESSAGE-----"):
        return text
    return start.partition("\n\n")[2].partition("-----BEGIN PGP SIGNATURE-----")[0]


def _begins_quoted_mail(lines: Sequence[str], number: int) -> bool:
    """Say whether a header of another mail stands here, or a rule with words in it above one."""
    here = lines[number]
    if _FROM_LINE.match(here):
        return sum(bool(_LABEL_LINE.match(line)) for line in lines[number + 1 : number + 5]) >= 2
    if not _RULE.fullmatch(here.strip()):
        return False
    return any(_LABEL_LINE.match(line) for line in lines[number + 1 : number + 3])


def _drop_introduction(kept: list[str], quoted: str) -> None:
    """Take the line off that introduces a quote, which begins with ``quoted``; it may be broken in two or three."""
    last = len(kept) - 1
    while last >= 0 and not kept[last].strip():
        last -= 1
    if last < 0 or not kept[last].rstrip("\u200e\u200f ").endswith((":", "：")):
        return
    for first in range(last, max(last - 3, -1), -1):
        if not kept[first].strip():
            break
        if _TIME_OR_ADDRESS.search(kept[first]):
            del kept[first:]
            return
    if _LABEL_LINE.match(quoted) or _WROTE.search(kept[last]):
        del kept[last:]


# HTML, for mails that hold nothing else. Python's own parser needs a minute for 100 KB made to be slow.

_TAG = re.compile(r"(/?)([a-z][a-z0-9:]*)", re.I)
_BLOCKS = {"div", "p", "tr", "li", "ul", "ol", "table", "blockquote", "pre", "hr", "h1", "h2", "h3", "h4", "h5", "h6"}
_UNSEEN = {name: re.compile(f"</{name}", re.I) for name in ("style", "script", "head", "title", "template")}
_SIGNATURE = re.compile(r"gmail_signature|moz-signature|applemailsignature|outlook-mobile-signature", re.I)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#x[0-9a-f]{1,6}|[a-z]{2,24}[0-9]{0,2});?", re.I)


def html_text(page: str) -> str:
    """Return the text of a page; a quote in it becomes a line with ``>``, a signature nothing."""
    said: list[str] = []
    left_out, depth, fresh = "", 0, True
    for tag, words in _tokens(page):
        name = tag.lstrip("/")
        if left_out:
            depth += (name == left_out) * (-1 if tag.startswith("/") else 1)
            left_out = left_out if depth else ""
        elif not tag:
            text = _ENTITY.sub(lambda entity: html.unescape(entity[0]), re.sub(r"[ \t\r\n\f]+", " ", words))
            if text.strip(" ") or not fresh:
                said.append(text)
                fresh = False
        elif tag == "br" or name in _BLOCKS:
            said.append("\n" if tag == "br" or not fresh else "")
            # Outlook's paragraphs are lines, with empty ones between.
            said.append("\n" if tag == "p" and said and "mso" not in words.lower() else "")
            fresh = True
        # What is only moved in has no border.
        quote = tag == "blockquote" and "border:none" not in words.lower().replace(" ", "")
        if not left_out and (quote or (tag in {"div", "span", "table"} and _SIGNATURE.search(words))):
            left_out, depth = tag, 1
            said.append(">\n" if quote else "")
    return "\n".join(re.sub(" {2,}", " ", line).strip() for line in "".join(said).split("\n"))


def _tokens(page: str) -> Iterator[tuple[str, str]]:
    """Yield each tag as (name, with a slash before it where it closes; all of it), each text as ("", text)."""
    at = 0
    while (begin := page.find("<", at)) >= 0:
        yield "", page[at:begin]
        if not page[begin + 1 : begin + 2].isalpha() and page[begin + 1 : begin + 2] not in ("/", "!", "?"):
            yield "", "<"
            at = begin + 1
            continue
        comment = page.startswith("<!--", begin)
        end = page.find("-->" if comment else ">", begin)
        if end < 0:
            return
        at = end + (3 if comment else 1)
        if tag := _TAG.match(page, begin + 1):
            name = tag[2].lower()
            yield tag[1] + name, page[begin:at]
            if name in _UNSEEN and not tag[1]:
                close = _UNSEEN[name].search(page, at)
                if close is None:
                    return
                at = close.start()
    yield "", page[at:]


# Gmail's chats before 2013, a talk a mail.

_TALK_BODY = re.compile(r"<(?:\w{1,9}:)?body>([^<]*)</")


def _old_chat(talk: str) -> Iterator[tuple[str, str, datetime | None]]:
    """Yield each message as (address, text, time)."""
    for piece in re.split(r"<(?:\w{1,9}:)?message\b", talk)[1:]:
        tag, _, inner = piece.partition(">")
        sender, body = re.search(r'\sfrom="([^"]{1,300})"', tag), _TALK_BODY.search(inner)
        text = clean(_ENTITY.sub(lambda entity: html.unescape(entity[0]), body[1])) if body else ""
        if sender and text:
            at = re.search(r'\sms="(\d{1,15})"', inner)
            yield sender[1].partition("/")[0].lower(), text, epoch_time(at[1], 1000) if at else None
