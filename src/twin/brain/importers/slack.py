"""Slack's workspace export, the zip or its folder: a folder a channel, in it a file a day (``2024-01-09.json``).

Layout (https://slack.com/help/articles/220556107): a day is a list of messages {type, subtype, user, text, ts,
thread_ts, …}; above the folders lie ``users.json`` (``org_users.json`` of an Enterprise Grid), ``channels.json`` and
``groups.json``. Texts are in Slack's markup (https://docs.slack.dev/messaging/formatting-message-text). Not obvious:
``user`` is an id, whose name ``users.json`` knows; replies of a thread stand among the channel's messages, but were
said beside them, so a thread is a conversation of its own; and an emoji's character is told in ``blocks`` alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from twin.brain.document import Document
from twin.brain.reading import clean, epoch_time, json_items, json_value, pieces, starts_as_json
from twin.dropped import Dropped
from twin.records import Conversation, Message

LAYOUT = "Slack workspace exports (folder or zip)"
HOLDS = (Conversation,)
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
# All other subtypes (https://docs.slack.dev/reference/events/message) are Slack telling what happened.
_SPEECH = (None, "thread_broadcast", "reply_broadcast", "me_message", "file_share", "bot_message")
_SLACKBOT = "USLACKBOT"  # in no users.json
_EVERYBODY = ("here", "channel", "everyone")
_MARKUP = re.compile(r"<([^<>]+)>|&(amp|lt|gt);")
_ENTITIES = {"amp": "&", "lt": "<", "gt": ">"}
_EMOJI = re.compile(r":([\w+'-]+):(?::skin-tone-\d:)?")


class _Workspace(NamedTuple):
    """What the lists above the channels tell: users' and channels' names by id, and which users are bots."""

    users: Mapping[str, str]
    channels: Mapping[str, str]
    bots: frozenset[str]


def sniff(document: Document, head: bytes) -> bool:
    """A list of messages in a file that is named after a day."""
    ours = b'"ts"' in head and b'"type"' in head
    return ours and starts_as_json(document, head, b"[") and bool(_DAY.fullmatch(document.path.stem))


def read(document: Document, dropped: Dropped) -> Iterator[Conversation]:
    """Yield the day's talk in the channel as a conversation, and each thread as one.

    Raises:
        UsageError: JSON that does not parse: the lists', or the day's own after the messages before the break.
    """
    workspace = _workspace(document)
    said: list[tuple[str, str, Message]] = []
    try:
        for row in json_items(document):
            if message := _message(row, workspace, document.name, dropped):
                said.append((clean(row.get("thread_ts")), clean(row.get("ts")), message))
    finally:
        replied = {thread for thread, ts, _ in said if thread and thread != ts}
        talks: dict[str, list[Message]] = {"": []}
        for thread, _, message in said:
            talks.setdefault(thread if thread in replied else "", []).append(message)
        for thread, messages in talks.items():
            if all(message.at for message in messages):
                messages.sort(key=lambda message: message.at or datetime.min)
            yield from pieces(f"{document.name}/{thread}" if thread else document.name, messages)


def _message(row: Any, workspace: _Workspace, where: str, dropped: Dropped) -> Message | None:
    """Return a person's own message, or None, counted by its reason."""
    if not isinstance(row, dict):
        dropped.add("broken Slack message", where=where)
        return None
    text = clean(_with_emoji(readable(_typed(row), workspace.users, workspace.channels), row.get("blocks")))
    if reason := _reason_to_leave_out(row, text, workspace.bots):
        dropped.add(reason, text, where)
        return None
    return Message(_speaker(row, workspace.users), text, epoch_time(row.get("ts")))


def _typed(row: dict[str, Any]) -> str:
    """Return the words; until 2018 those that came with a file stood in the file, and the text was Slack's."""
    file = row.get("file")
    if not isinstance(file, dict):
        return clean(row.get("text"))
    comment = file.get("initial_comment")
    return clean(comment.get("comment")) if isinstance(comment, dict) and row.get("upload") is True else ""


def _reason_to_leave_out(row: dict[str, Any], text: str, bots: frozenset[str]) -> str | None:
    subtype, user = row.get("subtype"), clean(row.get("user"))
    if row.get("type") != "message" or subtype not in _SPEECH or row.get("hidden") is True:
        return "Slack's own message"
    if subtype == "bot_message" or row.get("bot_id") or user in bots or user == _SLACKBOT:
        return "a bot's words"
    if not user:
        return "broken Slack message"
    if text:
        return None
    shared = row.get("attachments")
    shares = [one for one in shared if isinstance(one, dict)] if isinstance(shared, list) else []
    return "forward" if any(one.get("is_share") is True for one in shares) else "media"


def _speaker(row: dict[str, Any], users: Mapping[str, str]) -> str:
    """Return a member's name; a guest of another workspace has it in the message, a stranger has the id alone."""
    user = clean(row.get("user"))
    if known := users.get(user):
        return known
    profile = row.get("user_profile")
    name = _name({"profile": profile} | profile) if isinstance(profile, dict) else ""
    return f"{name} ({user})" if name in users.values() else name or user


def _name(user: dict[str, Any]) -> str:
    profile = user.get("profile")
    inner = profile if isinstance(profile, dict) else {}
    shown = (inner.get("display_name"), inner.get("real_name"), user.get("real_name"), user.get("name"))
    return next((name for name in map(clean, shown) if name), "")


def _workspace(document: Document) -> _Workspace:
    users, bots = _users(*_above(document, "users.json") or _above(document, "org_users.json") or (None, 0))
    channels = {
        **_channels(*_above(document, "groups.json") or (None, 0)),
        **_channels(*_above(document, "channels.json") or (None, 0)),
    }
    return _Workspace(users, channels, bots)


def _above(document: Document, name: str) -> tuple[Document, int] | None:
    """Return a list above the channel's folder and when it was changed: the same for all days of all channels."""
    found = document.sibling(f"../{name}")
    if found is None:
        return None
    file = found.file.resolve()
    return Document(file, name, found.member, found.size), file.stat().st_mtime_ns


def _entries(listing: Document | None) -> dict[str, dict[str, Any]]:
    value = json_value(listing) if listing else None
    known = [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
    return {clean(one.get("id")): one for one in known}


@lru_cache(maxsize=4)
def _users(listing: Document | None, modified: int) -> tuple[Mapping[str, str], frozenset[str]]:
    """Return the members' names by id, no two alike (two Alexes are two people), and the ids of bots."""
    entries = _entries(listing)
    names = {user: _name(entry) or user for user, entry in entries.items()}
    often = Counter(names.values())
    for user, name in names.items():
        if often[name] > 1:
            names[user] = f"{name} ({clean(entries[user].get('name')) or user})"
    return names, frozenset(user for user, entry in entries.items() if entry.get("is_bot") is True)


@lru_cache(maxsize=8)
def _channels(listing: Document | None, modified: int) -> Mapping[str, str]:
    return {channel: clean(entry.get("name")) for channel, entry in _entries(listing).items()}


def readable(text: str, users: Mapping[str, str], channels: Mapping[str, str]) -> str:
    """Return a text with Slack's markup as people read it: names, labels and characters for ids, links and escapes.

    Args:
        text: as Slack stores it.
        users: members' names by id.
        channels: channels' names by id.
    """

    def shown(mark: re.Match[str]) -> str:
        if mark[2]:
            return _ENTITIES[mark[2]]
        target, _, rest = mark[1].partition("|")
        target, label = (_MARKUP.sub(lambda inner: _ENTITIES.get(inner[2], inner[0]), part) for part in (target, rest))
        kind, known = target[:1], target[1:]
        if kind == "@":
            return f"@{users.get(known) or label or known}"
        if kind == "#":
            return f"#{label or channels.get(known) or known}"
        if kind == "!":
            return f"@{known}" if known in _EVERYBODY else label or f"@{known.rpartition('^')[2]}"
        return label or target

    return _MARKUP.sub(shown, text)


def _with_emoji(text: str, blocks: Any) -> str:
    """Return a text with the characters of those emoji whose code its blocks tell: ``:wave:`` → 👋."""
    characters: dict[str, str] = {}
    waiting = [blocks]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting += one
        elif isinstance(one, dict) and one.get("type") == "emoji":
            characters[clean(one.get("name"))] = _character(one.get("unicode"))
        elif isinstance(one, dict):
            waiting.append(one.get("elements"))
    return _EMOJI.sub(lambda mark: characters.get(mark[1]) or mark[0], text)


def _character(codes: Any) -> str:
    try:
        return "".join(chr(int(code, 16)) for code in codes.split("-")) if isinstance(codes, str) else ""
    except (ValueError, OverflowError):
        return ""
