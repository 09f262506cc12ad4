"""What a run has asked for and spent, of each contestant and judge, over all its sessions.

    usage.json    "answers of NAME" or "judge NAME" -> accounts, as `aligner.endpoints.usage`

Written after each part of the work, so a kill loses the accounts of one; what budgets go by stands
in the file of replies, and loses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aligner.endpoints.usage import added
from aligner.runs.files import dumps, parse_json, write_atomically

USAGE = "usage.json"
CURE = "delete it: the accounts start again"


class Spend:
    """The accounts of a run directory."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / USAGE
        self._before: dict[str, Any] = parse_json(self.path, CURE) if self.path.exists() else {}
        self._now: dict[str, Any] = {}

    def add(self, name: str, usage: Mapping[str, Any]) -> None:
        """Keep what somebody has used in a part of the work that is done, beside all before."""
        self.note(name, added(self._now.get(name, {}), dict(usage)))

    def note(self, name: str, usage: Mapping[str, Any]) -> None:
        """Keep what somebody has used since this session began."""
        if usage and usage != self._now.get(name):
            self._now[name] = dict(usage)
            write_atomically(self.path, dumps(self.to_json(), indent=2) + "\n")

    def to_json(self) -> dict[str, Any]:
        """Return the accounts of all, those of earlier sessions with them."""
        names = {**self._before, **self._now}
        return {name: added(self._before.get(name, {}), self._now.get(name, {})) for name in names}


def totals(usage: Mapping[str, Any]) -> dict[str, Any]:
    """Return calls, cached replies, tokens and US dollars of accounts, or of accounts below names;
    `usd` is None where nobody has prices."""
    if "calls" in usage:
        counted = ("calls", "cached", "prompt_tokens", "completion_tokens")
        return {**{key: usage[key] for key in counted}, "usd": usage.get("usd")}
    total: dict[str, Any] = dict.fromkeys(
        ("calls", "cached", "prompt_tokens", "completion_tokens"), 0
    )
    total["usd"] = None
    for part in map(totals, (value for value in usage.values() if isinstance(value, Mapping))):
        for key, value in part.items():
            if value is not None:
                total[key] = value if total[key] is None else total[key] + value
    return total


def in_words(usage: Mapping[str, Any]) -> str:
    """Return accounts in a few words: `1,024 calls, 88,000 tokens, $0.42`."""
    total = totals(usage)
    tokens = total["prompt_tokens"] + total["completion_tokens"]
    if not total["calls"] and not total["cached"]:
        return ""
    said = [f"{total['calls']:,} calls", f"{tokens:,} tokens"]
    if total["cached"]:
        said.insert(1, f"{total['cached']:,} kept replies")
    return ", ".join([*said, *([f"${total['usd']:,.2f}"] if total["usd"] is not None else [])])
