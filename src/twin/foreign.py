"""What comes from a server, before it is believed or shown: its text on one line, and whether it is this machine."""

from __future__ import annotations

import ipaddress


def one_line(text: str) -> str:
    """Return a server's text fit for a terminal: on one line, with nothing that moves a cursor."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def bounded(line: str, most: int) -> str:
    """Return a text of at most ``most`` characters; one that is cut ends with an ellipsis."""
    return line if len(line) <= most else line[: most - 1] + "…"


def is_loopback(host: str) -> bool:
    """Say whether ``host`` is this machine itself, by its spelling; no name is looked up."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
