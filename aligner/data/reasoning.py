"""What a reasoning model thought before its reply, taken off: `<think>...</think>` at the start,
also where the opening tag stood in the prompt, and thinking that the longest length cut off.

A reply that only speaks of such tags, further on or between backticks, stays whole.
"""

from __future__ import annotations

import re

_OPENED = re.compile(
    r"\A(?:\s*<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z))+", re.DOTALL | re.IGNORECASE
)
_UNOPENED = re.compile(
    r"\A(?:(?!<think(?:ing)?>).)*?(?<!`)</think(?:ing)?>(?!`)", re.DOTALL | re.IGNORECASE
)


def without_reasoning(text: str) -> str:
    """Return a reply without what a reasoning model thought before it, and without outer blanks."""
    rest, found = _OPENED.subn("", text, count=1)
    return (rest if found else _UNOPENED.sub("", text, count=1)).strip()
