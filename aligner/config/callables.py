"""How a record names a function that was given in Python: `callable module:name sha256:...`.

The digest is that of the function's source, so that a run is not resumed with another one. Where
Python has no source (a prompt, a compiled function) the record says so. What a function reads from
outside itself, a closure or a global, is not in the digest.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

PREFIX = "callable "
DIGITS = 16
"""Hexadecimal digits of a digest that a record shows."""


def is_callable(name: str) -> bool:
    """Say whether a text of a recipe stands for a function that was given in Python."""
    return name.startswith(PREFIX)


def describe(function: Callable[..., Any]) -> str:
    """Return the text that stands for a function in recipes, records and fingerprints."""
    source = source_of(function)
    digest = "source unknown"
    if source is not None:
        digest = f"sha256:{hashlib.sha256(source.encode()).hexdigest()[:DIGITS]}"
    return f"{PREFIX}{name_of(function)} {digest}"


def short_name(text: str) -> str:
    """Return `module:name` of a text that `describe` returned; other texts as they are."""
    if not is_callable(text):
        return text
    return text.removeprefix(PREFIX).partition(" sha256:")[0].removesuffix(" source unknown")


def name_of(function: Callable[..., Any]) -> str:
    """Return `module:name` of a function, or of an object's class, with the arguments of a
    partial."""
    if isinstance(function, functools.partial):
        given = [repr(value) for value in function.args]
        given += [f"{key}={value!r}" for key, value in sorted(function.keywords.items())]
        return f"{name_of(function.func)}({', '.join(given)})"
    named = _named(function)
    return f"{named.__module__}:{named.__qualname__}"


def source_of(function: Callable[..., Any]) -> str | None:
    """Return the source of a function, or of an object's class; None where Python has none."""
    if isinstance(function, functools.partial):
        return source_of(function.func)
    try:
        return textwrap.dedent(inspect.getsource(_named(function)))
    except (OSError, TypeError):
        return None


def _named(function: Any) -> Any:
    return function if hasattr(function, "__qualname__") else type(function)
