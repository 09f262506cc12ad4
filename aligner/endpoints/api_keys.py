"""API keys of servers: read from the environment, never shown.

A recipe names the variable, never the key. A server on this machine needs none. `strike` takes the
key out of a text, in the spellings in which a server may hand it back.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from ipaddress import ip_address
from urllib.parse import quote, urlsplit

from aligner.errors import RecipeError, UsageError

NO_KEY = "no-key"  # the client library wants one; a server on this machine does not look
STRUCK = "[key]"
SHORTEST_SECRET = 16
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Secret:
    """A key that no repr, log or pickle shows. `variable` is where it came from; `is_local`: the
    server is here."""

    __slots__ = ("_spellings", "is_local", "value", "variable")

    def __init__(self, value: str, variable: str, *, is_local: bool) -> None:
        self.value = value
        self.variable = variable
        self.is_local = is_local
        spellings = (
            {value, json.dumps(value)[1:-1], quote(value, safe="")} if value != NO_KEY else set()
        )
        self._spellings = sorted(spellings, key=len, reverse=True)

    def __repr__(self) -> str:
        return f"Secret({self.variable})"

    def __reduce__(self) -> str:
        raise TypeError("a key stays in its process")

    def strike(self, text: str) -> str:
        """Return a message without the key."""
        for spelling in self._spellings:
            text = text.replace(spelling, STRUCK)
        return text

    def strike_from_reply(self, text: str) -> str:
        """Return a reply without the key; a short one ("EMPTY", as local servers take it) is a word
        and no secret."""
        return self.strike(text) if len(self.value) >= SHORTEST_SECRET else text


def read_secret(
    base_url: str, variable: str, environment: Mapping[str, str] = os.environ
) -> Secret:
    """Read the key for a server.

    Raises: RecipeError when `variable` is not a name of a variable, or the address holds a
    password. UsageError when the variable is not set and the server is elsewhere, or holds what
    cannot be a key.
    """
    if not VARIABLE.fullmatch(variable):
        raise RecipeError(
            "endpoint: api_key_env is not the name of an environment variable",
            "name the variable there (OPENAI_API_KEY, say) and put the key into it; a key does "
            "not belong in a recipe",
        )
    is_local = _is_local(base_url)
    value = environment.get(variable, "").strip()
    if not value and not is_local:
        raise UsageError(
            f"endpoint: {base_url} needs a key, and the environment variable {variable} is not set",
            f"export {variable}=..., or name another variable with api_key_env",
        )
    if not value.isascii() or any(letter.isspace() or not letter.isprintable() for letter in value):
        raise UsageError(
            f"endpoint: {variable} holds blanks or letters that no key has",
            "set it to the key alone",
        )
    return Secret(value or NO_KEY, variable, is_local=is_local)


def _is_local(base_url: str) -> bool:
    try:
        parts = urlsplit(base_url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or parts.scheme not in ("http", "https") or port == 0:
        raise RecipeError(
            "endpoint: base_url is not an address",
            "write it like http://127.0.0.1:8000/v1, with http:// or https://",
        )
    if parts.username is not None or parts.password is not None:
        raise RecipeError(
            f"endpoint: base_url for {host} holds a user name or password",
            "put the key into the variable api_key_env",
        )
    if parts.query or parts.fragment:
        raise RecipeError(
            f"endpoint: base_url for {host} holds a query or a fragment, which would stand in "
            "logs and manifests",
            "end it at the path (/v1); put a key into the variable api_key_env",
        )
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback or ip_address(host).is_unspecified
    except ValueError:
        return False
