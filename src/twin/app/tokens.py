"""The server's tokens: JSON Web Tokens (RFC 7519), signed with HS256, good for a role and for some hours.

Not obvious: PyJWT before 2.15 let a token's header, lists in lists by the thousand, end in a RecursionError.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
from pydantic import SecretStr

from twin.app.contract import ROLES
from twin.app.credentials import check_secret
from twin.errors import UsageError

MAX_TOKEN_HOURS = 24 * 366
_ALGORITHM = "HS256"


class NotValidError(Exception):
    """The token is none, has run out, or was signed by somebody else; the message says which."""


def mint_token(secret: SecretStr, role: str = "admin", hours: float = 12) -> SecretStr:
    """Return a token that this server takes.

    Args:
        secret: what the server signs with, at least 32 bytes.
        role: admin or owner.
        hours: how long it is good for.

    Raises:
        UsageError: another role, no time to live, or too short a secret.
    """
    if role not in ROLES:
        raise UsageError(f"'{role}' is no role that may export.", f"Use {' or '.join(ROLES)}.")
    if not 0 < hours <= MAX_TOKEN_HOURS:
        raise UsageError(f"A token can't live {hours:g} hours.", f"Use up to {MAX_TOKEN_HOURS:,}.")
    now = datetime.now(UTC)
    claims = {"sub": "twin", "role": role, "iat": now, "exp": now + timedelta(hours=hours)}
    return SecretStr(jwt.encode(claims, key_of(secret), algorithm=_ALGORITHM))


def key_of(secret: SecretStr) -> bytes:
    """Return the bytes to sign with.

    Raises:
        UsageError: below 32.
    """
    return check_secret(secret).get_secret_value().encode("utf-8", "surrogateescape")


def role_of(token: str, key: bytes) -> object:
    """Return the ``role`` that a token claims; None where it claims none.

    Args:
        token: what stood behind "Bearer".
        key: what it should be signed with.

    Raises:
        NotValidError: not a token of ours, or not any more.
    """
    claims: dict[str, Any]
    try:
        claims = jwt.decode(token, key, algorithms=[_ALGORITHM], options={"require": ["exp"]})
        return claims.get("role")
    except jwt.ExpiredSignatureError:
        problem = "The token has run out."
    except jwt.InvalidTokenError:
        problem = "The token is not valid here."
    raise NotValidError(problem)
