"""DiscordChatExporter's JSON: one file a channel (https://github.com/Tyrrrz/DiscordChatExporter).

Layout (its ``JsonMessageWriter.cs``): ``guild``, ``channel``, ``dateRange``, ``messages`` [{type, timestamp, content,
author {id, name, discriminator, nickname, isBot}, reference, forwardedMessage, …}]. Not obvious: speakers go by their
account's ``name``. It is one in all servers, where a nickname is another in each of them and changes with the mood;
before 2023 two accounts could share it, which is why a discriminator that means something stays with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from twin.brain.document import Document
from twin.brain.reading import clean, iso_time, json_items, pieces, starts_as_json
from twin.dropped import Dropped
from twin.errors import UsageError
from twin.records import Conversation, Message

LAYOUT = "DiscordChatExporter's JSON"
HOLDS = (Conversation,)
_SPEECH = ("Default", "Reply")
_UNIQUE_NAME = ("", "0", "0000")  # discriminators of accounts whose name is theirs alone
# How Discord stores a mention and a server's own emoji; the exporter leaves both so with --markdown false.
_MARK = re.compile(r"<(?:@!?(?P<user>\d+)|a?:(?P<emoji>\w+):\d+)>")


def sniff(document: Document, head: bytes) -> bool:
    """JSON with the keys that the exporter writes before the first message."""
    keys = (b'"guild"', b'"channel"', b'"dateRange"', b'"messages"')
    return starts_as_json(document, head) and all(key in head for key in keys)


def read(document: Document, dropped: Dropped) -> Iterator[Conversation]:
    """Yield the channel as one conversation, the oldest message first.

    Raises:
        UsageError: JSON that does not parse (an export that was stopped, say), after the messages before the break.
    """
    broken: list[UsageError] = []
    rows = _until_a_break(json_items(document, "messages"), broken)
    messages = (message for row in rows if (message := _message(row, document.name, dropped)))
    yield from pieces(document.name, _oldest_first(messages))
    if broken:
        raise broken[0]


def _until_a_break(rows: Iterator[Any], broken: list[UsageError]) -> Iterator[Any]:
    """Yield rows, and put the error that ends them into ``broken``: a piece that it cuts short is a piece still."""
    try:
        yield from rows
    except UsageError as error:
        broken.append(error)


def _oldest_first(messages: Iterator[Message]) -> Iterator[Message]:
    """Yield messages as they come; where the newest comes first (an option of the exporter), turn them."""
    begun: list[Message] = []
    turned = False
    for message in messages:
        begun.append(message)
        first, last = begun[0].at, message.at
        turned = turned or (first is not None and last is not None and last < first)
        if not turned and (first is None or last != first):  # in order: nothing more needs to be held
            break
    yield from reversed(begun) if turned else begun
    yield from messages


def _message(row: Any, where: str, dropped: Dropped) -> Message | None:
    """Return a person's own message, or None, counted by its reason."""
    author = row.get("author") if isinstance(row, dict) else None
    if not isinstance(author, dict):
        dropped.add("broken Discord message", where=where)
        return None
    text = clean(readable(clean(row.get("content")), _mentioned(row.get("mentions"))))
    if reason := _reason_to_leave_out(row, author, text):
        dropped.add(reason, text, where)
        return None
    return Message(_speaker(author), text, iso_time(row.get("timestamp")))


def _reason_to_leave_out(row: dict[str, Any], author: dict[str, Any], text: str) -> str | None:
    if row.get("type") not in _SPEECH:
        return "Discord's own message"
    if author.get("isBot") is True:
        return "a bot's words"
    reference = row.get("reference")
    kind = reference.get("type") if isinstance(reference, dict) else None
    if row.get("forwardedMessage") is not None or kind == "Forward":
        return "forward"
    return None if text else "media"


def _speaker(author: dict[str, Any]) -> str:
    name, number = clean(author.get("name")), clean(author.get("discriminator"))
    if not name:
        return clean(author.get("id")) or "Deleted User"
    return name if number in _UNIQUE_NAME else f"{name}#{number}"


def _mentioned(users: Any) -> dict[str, str]:
    """Return what each mentioned account is called in the channel, by its id."""
    known = [user for user in users if isinstance(user, dict)] if isinstance(users, list) else []
    return {clean(user.get("id")): clean(user.get("nickname")) or clean(user.get("name")) for user in known}


def readable(text: str, names: Mapping[str, str]) -> str:
    """Return a text with Discord's marks as people read them.

    Args:
        text: as Discord stores it.
        names: what accounts are called, by their id; a mention of any other stays as it is.
    """

    def shown(mark: re.Match[str]) -> str:
        if mark["emoji"]:
            return f":{mark['emoji']}:"
        name = names.get(mark["user"])
        return f"@{name}" if name else mark[0]

    return _MARK.sub(shown, text)
