"""Whether an answer ends in a loop: a model that says the same again and again until it is cut."""

from __future__ import annotations

TIMES = 5
"""So often in a row is a loop."""
SHORTEST = 100
"""Characters that the loop takes at least, so that "ha ha ha ha ha" and rules of dashes are
none."""
LONGEST_UNIT = 400
"""Characters of what is repeated."""


def is_looping(text: str) -> bool:
    """Whether the end of a text is one unit, of at most 400 characters and not all the same one,
    five times in a row or more; white space at the end does not count."""
    text = text.rstrip()
    for unit in range(max(2, SHORTEST // TIMES), min(LONGEST_UNIT, len(text) // TIMES) + 1):
        last = text[-unit:]
        if text.endswith(last * TIMES) and len(set(last)) > 1:
            return True
    return False
