"""Limits of a verifier, as they are written behind its name: `tests,timeout_s=10,memory_mb=512`. A
plain table."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass

from aligner.config.hints import did_you_mean
from aligner.errors import RecipeError

_WRITTEN = re.compile(r",([A-Za-z_]\w*)=([^,=]*)$")


@dataclass(frozen=True, slots=True)
class Options:
    """What a verifier may use for one row."""

    timeout_s: float = 10.0
    """Seconds, by the clock on the wall; what is waited for a core does not count
    (`sandbox/patience.py`)."""
    memory_mb: int = 1024
    """Memory of all its processes in MiB, beside what its libraries take."""
    processes: int = 8
    """Processes and threads that it may start."""
    network: bool = False
    """Leave the network in reach."""

    def text(self) -> str:
        """All of them as one text, for fingerprints."""
        return " ".join(f"{key}={value}" for key, value in asdict(self).items())


RULES: dict[str, tuple[str, str]] = {
    "timeout_s": (r"\d+(\.\d*)?|\.\d+", "seconds, above 0 and up to 86400, like timeout_s=2.5"),
    "memory_mb": (r"\d{1,7}", "whole MiB, at least 16, like memory_mb=512"),
    "processes": (r"\d{1,4}", "a whole number, 0 for none"),
    "network": ("yes|no", "yes or no"),
}
"""Option -> how its value is written, and that in words."""


def split_options(text: str) -> tuple[str, dict[str, str]]:
    """`name,option=value,...` -> the name, and the options as they are written."""
    found: dict[str, str] = {}
    while match := _WRITTEN.search(text):
        if match[1] in found:
            raise RecipeError(
                f"the option {match[1]} stands twice behind a verifier", "write it once"
            )
        found[match[1]] = match[2]
        text = text[: match.start()]
    return text, found


def read_options(name: str, written: dict[str, str], allowed: tuple[str, ...]) -> Options:
    """The options of a verifier that takes those of the given names; RecipeError for all others."""
    values: dict[str, float | int | bool] = {}
    for key, value in written.items():
        if key not in allowed:
            takes = f"It takes {', '.join(allowed)}." if allowed else "It takes none."
            raise RecipeError(
                f"{name} has no option {key!r}", f"{takes} {did_you_mean(key, allowed)}".strip()
            )
        values[key] = _value(name, key, value)
    return Options(**values)  # type: ignore[arg-type]


def _value(name: str, key: str, value: str) -> float | int | bool:
    pattern, words = RULES[key]
    bad = RecipeError(f"{name}: the option {key} is {value!r}", f"write {words}")
    if not re.fullmatch(pattern, value):
        raise bad
    if key == "network":
        return value == "yes"
    number = float(value)
    if (key == "timeout_s" and not 0 < number <= 86_400) or (key == "memory_mb" and number < 16):
        raise bad
    assert math.isfinite(number)
    return number if key == "timeout_s" else int(value)
