"""Signal: the app's own "Export chat history" (``main.jsonl``), and signal-export's ``data.json`` and ``chat.md``.

Layouts: the app (Desktop and Android, 2026) writes a backup's frames, one JSON object a line: ``recipient``, ``chat``
and, for all chats in one order, ``chatItem``
(https://github.com/signalapp/libsignal/blob/main/rust/message-backup/src/proto/backup.proto). signal-export
(https://github.com/carderne/signal-export, ``sigexport/models.py``) writes a folder a chat: ``data.json`` has one
message a line, ``chat.md`` is the same to read. Not obvious: the app leaves out what is zero or empty, and writes
numbers as strings; a mention is one U+FFFC in the text, whose name stands in ``bodyRanges``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import orjson

from twin.brain.document import Document, as_text
from twin.brain.reading import clean, epoch_time, iso_time, pieces
from twin.dropped import Dropped
from twin.records import ME, Conversation, Message

LAYOUT = "Signal's own export, and signal-export's"
HOLDS = (Conversation,)
_OWN = "Signal's own message"
_BROKEN = "broken Signal message"
_OBJECT = "\ufffc"  # stands in the text for a mention
_NOT_TYPED = ("stickerMessage", "viewOnceMessage", "contactMessage", "poll")
_DATA_JSON = re.compile(
    rb'\s*\{"date": ?"\d{4}-[^"]{5,40}", ?"sender": ?(?:null|"(?:[^"\\]|\\.){0,500}"), ?"body": ?"',
)
_CHAT_MD = re.compile(r"\[(\d{4}-\d{2}-\d{2}),? (\d{2}:\d{2}(?::\d{2})?)\] (.{0,200}?): ?(.*)")
_CALL = re.compile(r"(?:Incoming|Outgoing|Missed)(?: (?:voice|video|direct|group|adhoc))? call(?: \([^()]{1,60}\))?")
_DELETED = "(This message was deleted)"
_QUOTE = re.compile(r"\s*\n(?:>.*\n)+")
_LINKED = re.compile(r"!?\[[^\[\]\n]{0,255}\]\((?:\./media|\.\./exported_stickers)/[^()\n]{0,500}\) {0,2}")
_REACTIONS_OR_STICKER = re.compile(r"^(?:\(- .* -\)|\(\( .* \)\))\s*$", re.MULTILINE)


def sniff(document: Document, head: bytes) -> bool:
    """One of the three, by its first line."""
    if document.suffix == ".jsonl":
        return b'"backupTimeMs"' in head.split(b"\n", 1)[0]
    if document.suffix == ".json":
        return bool(_DATA_JSON.match(head))
    return document.path.name in {"chat.md", "index.md"} and bool(_CHAT_MD.match(as_text(head)))


def read(document: Document, dropped: Dropped) -> Iterator[Conversation]:
    """Yield each chat as a conversation. The app's own export is held in memory: its chats alternate.

    Raises:
        UsageError: a file that can't be read.
    """
    if document.suffix == ".jsonl":
        yield from _app_chats(document, dropped)
    elif document.suffix == ".json":
        yield from pieces(document.name, _from_data_json(document, dropped))
    elif document.sibling("data.json"):
        dropped.add("copy of a Signal chat", where=document.name)
    else:
        yield from pieces(document.name, _from_chat_md(document, dropped))


def _lines(document: Document, dropped: Dropped) -> Iterator[dict[str, Any]]:
    """Yield the object on each line; count lines that hold none."""
    for _, line in document.byte_lines():
        if line is not None and not line.strip():
            continue
        try:
            row = orjson.loads(line or b"")
        except orjson.JSONDecodeError:
            row = None
        if isinstance(row, dict):
            yield row
        else:
            dropped.add(_BROKEN, where=document.name)


def _app_chats(document: Document, dropped: Dropped) -> Iterator[Conversation]:
    people = _People()
    said: dict[str, list[Message]] = {}
    try:
        for frame in _lines(document, dropped):
            if isinstance(frame.get("recipient"), dict):
                people.add(frame["recipient"])
            elif "chatItem" in frame:
                item = frame["chatItem"] if isinstance(frame["chatItem"], dict) else {}
                if message := _from_item(item, people, document.name, dropped):
                    said.setdefault(_key(item.get("chatId")), []).append(message)
    finally:
        for chat, messages in said.items():
            yield from pieces(f"{document.name}/{chat}", messages)


def _from_item(item: dict[str, Any], people: _People, where: str, dropped: Dropped) -> Message | None:
    """Return what a person typed, in its last version, or None, counted by its reason."""
    text, reason = _typed(item, people)
    author = _key(item.get("authorId"))
    mine = isinstance(item.get("outgoing"), dict) or author in people.myself
    if author in people.signal:
        reason = _OWN
    if reason or not text:
        dropped.add(reason or "media", text, where)
        return None
    return Message(ME if mine else people.name(author), text, epoch_time(item.get("dateSent"), 1000))


def _typed(item: dict[str, Any], people: _People) -> tuple[str, str | None]:
    """Return the text of an item and the reason, if there is one, why it is no speech."""
    if isinstance(item.get("standardMessage"), dict):
        return people.text_of(item["standardMessage"].get("text")), None
    story = item.get("directStoryReplyMessage")
    if isinstance(story, dict):
        reply = story.get("textReply")
        return (people.text_of(reply.get("text")), None) if isinstance(reply, dict) else ("", "reaction")
    return "", "media" if any(kind in item for kind in _NOT_TYPED) else _OWN


class _People:
    """The recipients of an export, by their number in it."""

    def __init__(self) -> None:
        self.myself: set[str] = set()
        self.signal: set[str] = set()  # the app's own announcements
        self._names: dict[str, str] = {}
        self._mentioned: dict[str, str] = {}

    def add(self, recipient: Mapping[str, Any]) -> None:
        """Take in one recipient."""
        number, contact = _key(recipient.get("id")), recipient.get("contact")
        if "self" in recipient:
            self.myself.add(number)
        elif "releaseNotes" in recipient:
            self.signal.add(number)
        elif isinstance(contact, dict) and (name := _name(contact)):
            self._names[number] = name
            self._mentioned[_key(contact.get("aci"))] = name

    def name(self, number: str) -> str:
        """Return somebody's name, or what tells them from others."""
        return self._names.get(number) or f"Unknown {number}".strip()

    def text_of(self, text: Any) -> str:
        """Return a text with the names of those it mentions. Ranges count UTF-16 units; nought is left out."""
        if not isinstance(text, dict) or not isinstance(text.get("body"), str):
            return ""
        units = text["body"].encode("utf-16-le", "surrogatepass")
        ranges = text.get("bodyRanges")
        mentions = {
            one.get("start", 0): _key(one["mentionAci"])
            for one in (ranges if isinstance(ranges, list) else ())
            if isinstance(one, dict) and "mentionAci" in one and isinstance(one.get("start", 0), int)
        }
        parts, done = [], 0
        for begin in sorted(begin for begin in mentions if 0 <= begin * 2 < len(units)):
            name = self._mentioned.get(mentions[begin], "")
            parts += [units[done : begin * 2], f"@{name}".encode("utf-16-le", "ignore")]
            done = begin * 2
        whole = b"".join([*parts, units[done:]]).decode("utf-16-le", "ignore")
        return clean(whole.replace(_OBJECT, ""))


def _name(contact: Mapping[str, Any]) -> str:
    """Return what the app shows: a nickname, the address book's name, the profile's, the number, the user name."""
    nickname = contact.get("nickname") if isinstance(contact.get("nickname"), dict) else {}
    names = (
        [clean(holder.get(f"{kind}{part}")) for part in parts]
        for holder, kind, parts in (
            (nickname or {}, "", ("given", "family")),
            (contact, "system", ("GivenName", "FamilyName")),
            (contact, "profile", ("GivenName", "FamilyName")),
        )
    )
    number = _key(contact.get("e164"))
    named = next((" ".join(filter(None, both)) for both in names if any(both)), "")
    return named or (number and f"+{number}") or clean(contact.get("username"))


def _key(value: Any) -> str:
    """Return a number or its digits as a string."""
    return str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""


def _from_data_json(document: Document, dropped: Dropped) -> Iterator[Message]:
    for row in _lines(document, dropped):
        body, sender = row.get("body"), row.get("sender")
        text = clean(body.replace(_OBJECT, "")) if isinstance(body, str) else ""
        if not isinstance(body, str) or not isinstance(sender, str | None):
            dropped.add(_BROKEN, where=document.name)
        elif row.get("deleted") is True or row.get("call") is True or _CALL.fullmatch(text):
            dropped.add(_OWN, text, document.name)
        elif not text:
            dropped.add("media" if row.get("attachments") or row.get("sticker") else _OWN, where=document.name)
        else:
            yield Message(_sender(sender), text, iso_time(row.get("date")))


def _sender(name: str | None) -> str:
    sender = clean(name)
    return ME if sender == "Me" else "Unknown" if sender in {"", "No-Sender", "None"} else sender


def _from_chat_md(document: Document, dropped: Dropped) -> Iterator[Message]:
    begun: tuple[datetime | None, str] | None = None
    said: list[str] = []
    for line in document.lines(dropped):
        if match := _CHAT_MD.fullmatch(line):
            if begun and (message := _from_section(*begun, said, document.name, dropped)):
                yield message
            begun, said = (iso_time(f"{match[1]} {match[2]}"), match[3]), [match[4]]
        else:
            said.append(line)
    if begun and (message := _from_section(*begun, said, document.name, dropped)):
        yield message


def _from_section(at: datetime | None, name: str, said: list[str], where: str, dropped: Dropped) -> Message | None:
    """Return the message without what stands around it: quote, reactions, sticker and attachments."""
    whole = "\n".join(said)
    whole = whole[quote.end() :] if (quote := _QUOTE.match(whole)) else whole
    typed, linked = _LINKED.subn("", whole.replace(_OBJECT, ""))
    typed, marks = _REACTIONS_OR_STICKER.subn("", typed)
    text = clean(typed)
    if text == _DELETED or _CALL.fullmatch(text) or not (text or linked or marks):
        dropped.add(_OWN, text, where)
    elif not text:
        dropped.add("media", where=where)
    else:
        return Message(_sender(name), text, at)
    return None
