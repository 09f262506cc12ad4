"""What the language models of `aligner evolve` read in the mode `skillmix`. All texts are our own.

Names of topics and skills come from a model and may hold anything: they are put in, never formatted
with.
"""

from __future__ import annotations

from collections.abc import Sequence

LIST_LABEL = "List"
QUERY_LABEL = "Finished instruction"

KNOWN = 200
"""Items that a model is shown of a list that it continues."""

_ENDS_WITH_LIST = f"""\
End your reply with a line that reads

### {LIST_LABEL}

and below that line one item in each line: a name of a few words, no explanation, no item twice.\
"""


def topics_prompt(number: int, known: Sequence[str]) -> str:
    """Ask for topics."""
    return _list_prompt(
        f"People bring very different matters to an AI assistant: at work, in their studies, in "
        f"daily life, for fun. Name {number} topics that together cover as much of this as "
        "possible. A topic is a field such as one would find as a shelf in a large library.",
        known,
    )


def skills_prompt(topic: str, number: int, known: Sequence[str]) -> str:
    """Ask for the skills of a topic."""
    return _list_prompt(
        f"An AI assistant gets requests about this topic: {topic}\n\nName {number} skills that a "
        "very good answer to such requests can show. A skill is something one can do well or "
        "badly (weighing risks, explaining with an example), not a piece of knowledge.",
        known,
    )


def kinds_prompt(number: int, known: Sequence[str]) -> str:
    """Ask for kinds of query."""
    return _list_prompt(
        f"Requests to an AI assistant differ in what is wanted: help with a decision, say, or a "
        f"text to be written. Name {number} such kinds of request, as different from one another "
        "as possible. They must fit any topic.",
        known,
    )


def query_prompt(skills: Sequence[tuple[str, str]], kind: str, structured: bool) -> str:
    """Ask for a query of a kind that needs skills of (name, topic)."""
    listed = "\n".join(f"- {name} (topic: {topic})" for name, topic in skills)
    return (
        "Write one request that a person might really send to an AI assistant.\n\n"
        f"It is a request of this kind: {kind}\n\n"
        f"A good answer to it needs these skills, all of them together:\n{listed}\n\n"
        "The request names none of the skills and does not speak of skills at all: they show in "
        "the answer. It tells of a concrete situation, holds everything that is needed to answer "
        "it without asking back, and is demanding for a strong assistant. Do not answer it.\n\n"
        f"{_AS_JSON if structured else _AS_SECTION}"
    )


_AS_JSON = (
    "Reply with a JSON object of two texts: `work`, your thoughts on how the skills come "
    "together, and `instruction`, the request alone, in full, without a comment."
)
_AS_SECTION = f"""\
Think first about how the skills come together. Then end your reply with a line that reads

### {QUERY_LABEL}

and below that line the request alone, in full: no title, no comment, no explanation.\
"""


def _list_prompt(task: str, known: Sequence[str]) -> str:
    parts = [task]
    if known:
        shown = "\n".join(f"- {item}" for item in known[-KNOWN:])
        parts.append(f"These are there already, so name others:\n{shown}")
    return "\n\n".join([*parts, _ENDS_WITH_LIST])
