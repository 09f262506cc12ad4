"""Places in prompts and replies that no text inside them can imitate: tags around an instruction,
and the heading of a reply's last section.

A name that the text holds already gets a number, the first that is free: so an instruction that is
full of tags, fences or our own headings is sent and read back letter by letter. A heading is found
whatever a model puts around it (`###`, `**`, a number, a colon, the text in the same line); the
last one counts, and all below it is the section.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import count


def enclosed(text: str, name: str = "instruction") -> tuple[str, str]:
    """Return the tags to put around a text, which are not in it."""
    free = _first_free(name, lambda tag: f"<{tag}>" in text or f"</{tag}>" in text, "-")
    return f"<{free}>", f"</{free}>"


def free_label(label: str, text: str) -> str:
    """Return the label, with a number where the text has a heading of that name."""
    return _first_free(label, lambda name: _heading(name).search(text) is not None, " ")


def last_section(reply: str, labels: Iterable[str]) -> str | None:
    """Return what stands below the last heading of one of these names; None where there is none.

    Of two names that match at one place the longer one is meant.
    """
    found = list(_heading(*sorted(labels, key=len, reverse=True)).finditer(reply))
    return reply[found[-1].end() :].strip() if found else None


def _heading(*names: str) -> re.Pattern[str]:
    words = "|".join(re.escape(name) for name in names)
    before = r"[ \t]*[#*_]*[ \t]*(?:(?:step )?\d{1,2}[.:)][ \t]*)?[#*_]*"
    behind = r"[#*_]*[ \t]*(?::[#*_]*(?=\s|\Z)|$)"
    return re.compile(rf"^{before}(?:{words}){behind}", re.MULTILINE | re.IGNORECASE)


def _first_free(name: str, is_taken: Callable[[str], bool], between: str) -> str:
    if not is_taken(name):
        return name
    numbered = (f"{name}{between}{number}" for number in count(2))
    return next(candidate for candidate in numbered if not is_taken(candidate))
