"""Everything that hands out a score, behind one protocol: `catalogue.py` finds them, `base.py` has
the rules, README.md the list."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_NAMES = {
    "Card": "card",
    "Comparer": "base",
    "Preferences": "base",
    "Prompt": "base",
    "Scorer": "base",
    "Scores": "base",
    "load_scorer": "catalogue",
    "preferences": "base",
    "read_spec": "catalogue",
    "shipped_cards": "card",
}
"""Name -> the module that holds it, imported when the name is first asked for."""

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_NAMES[name]}"), name)
