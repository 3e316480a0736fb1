"""The app's address: read once, checked, and fit to be printed."""

from __future__ import annotations

import re

import httpx

from twin.errors import UsageError

_MAX_SHOWN = 200


def check_url(value: str) -> str:
    """Return the base URL of the app without a slash at its end.

    Args:
        value: what a setting or option says.

    Raises:
        UsageError: not http or https, a login or a query in it, or no URL at all.
    """
    text = value.strip()
    if not text.isprintable():
        raise UsageError("The app's address holds characters that no address has.", "Type it again: --url URL")
    # What stands before an @ or after a ? may be a secret, and this goes into messages.
    shown = re.sub(r"//[^/]*@", "//…@", re.split(r"[?#]", text)[0])[:_MAX_SHOWN]
    try:
        url = httpx.URL(text)
        if url.port is not None and not 0 < url.port < 65536:
            raise ValueError(url.port)
    except (httpx.InvalidURL, ValueError):
        raise UsageError(f"'{shown}' is no address.", "Write it like this: --url http://localhost:8000") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise UsageError(
            f"'{shown}' is not an http or https address.", "Write it like this: --url http://localhost:8000"
        )
    if "@" in text.partition("//")[2].partition("/")[0]:
        raise UsageError(
            f"'{shown}' has a login in it, which would end up in messages and histories.",
            "Take it out; the app wants a token: TWIN_APP_TOKEN",
        )
    if url.query or url.fragment or "?" in text or "#" in text:
        raise UsageError(f"The address '{shown}' has something after a ? or #.", "Give the app's base address alone.")
    return str(url).rstrip("/")
