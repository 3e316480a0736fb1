"""What importers of JSON share: a whole object or a sentence, and dates that may be none."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from twin.errors import UsageError


def json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in ``path``; a byte order mark is no error.

    Raises:
        UsageError: JSON that does not parse (a truncated download, say), or no object.
    """
    try:
        data = orjson.loads(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        raise UsageError(
            f"'{path}' is broken JSON: {error.msg} at line {error.lineno}.", "It may be cut short: export it again."
        ) from None
    if not isinstance(data, dict):
        raise UsageError(f"'{path}' should hold a JSON object.", "Export it again.")
    return data


def iso_time(value: Any) -> datetime | None:
    """Return a date in ISO 8601 as wall-clock time, or None for anything else."""
    try:
        return datetime.fromisoformat(value).replace(tzinfo=None) if isinstance(value, str) else None
    except ValueError:
        return None
