"""What tests of importers share: a file as its document, and everything that is read of it."""

from pathlib import Path

import orjson

from twin.brain.document import Document
from twin.dropped import Dropped
from twin.records import Conversation


def document(path, name=None):
    """Return the document of a file on disk."""
    path = Path(path)
    return Document(path, name or path.name, size=path.stat().st_size if path.exists() else 0)


def put(path, content):
    """Write bytes, text as UTF-8, or anything else as JSON; return its document."""
    data = content if isinstance(content, bytes) else content.encode() if isinstance(content, str) else None
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(orjson.dumps(content) if data is None else data)
    return document(path)


def read(importer, path, name=None):
    """Return what an importer makes of a file, conversations whole again, and the counts of what it leaves out."""
    dropped = Dropped()
    return whole(importer.read(document(path, name), dropped)), dict(dropped.counts)


def whole(items):
    """Return items with the pieces of each conversation joined."""
    done = []
    for item in items:
        last = done[-1] if done else None
        if isinstance(item, Conversation) and isinstance(last, Conversation) and last.id == item.id:
            assert item.start == last.start + len(last.messages)
            done[-1] = Conversation(last.id, last.messages + item.messages, last.start)
        else:
            done.append(item)
    return done
