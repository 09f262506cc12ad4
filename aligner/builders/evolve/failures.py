"""When an evolution has failed, and how: rules on the evolved text and on the answer that it gets
(arXiv 2406.00770, section 3.3 and appendix A).

The paper's test reads the answer: one that asks back shows that the evolved text was no request any
more, or lacks something. Three sets of rules:

* `paper`: appendix A as it stands, on the text as it is. (Section 3.3 says "contains" where the
  appendix says "begins with"; the appendix, table 5 and the code agree.)
* `released`: those of the authors' code: five more beginnings, and "not possible" anywhere, which
  fires inside right answers to mathematics. An empty answer is no failure there.
* `robust`: the paper's and those of its table 5, on text without reasoning and outer blanks, in one
  letter case and with plain quotes and question marks; and classes that both leave out (empty,
  cut off, refused, and of the evolved text: unchanged, less than it was, or with words of the
  prompt in it). "Not possible" is no rule here.

The phrases are English, and of the models of their time: `asks_back` counts answers that end with a
question mark whatever they begin with, and `failures.phrases` adds beginnings.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal, get_args

from aligner.builders.evolve.prompts import LEAKS
from aligner.builders.evolve.recipe import Failures
from aligner.data.normal_text import normal_text, words_of
from aligner.data.refusals import plain, refuses

Failure = Literal[
    "stagnant",
    "unqualified",
    "lost_information",
    "parse",
    "empty",
    "unchanged",
    "template_leak",
    "truncated",
    "refusal",
]
"""`stagnant`: not harder, or no request any more; `unqualified`: cannot be answered without asking
back; `lost_information`: an input or detail is gone; `parse`: the reply has no final section;
`empty`, `unchanged`, `template_leak`: what the evolved text is; `truncated`, `refusal`: of either
reply."""

CLASSES: tuple[Failure, ...] = get_args(Failure)

PAPER_STAGNANT = ("Understood", "Thank you")
TABLE_5_STAGNANT = ("What", "That is correct", "Great")
RELEASED_STAGNANT = (
    "I'm sorry",
    "Is there anything else",
    "As an AI assistant",
    "I understand",
)
UNQUALIFIED = "Sure"
LOST = "please provide"
RELEASED_LOST = "not possible"


def failure_of_answer(
    answer: str, settings: Failures, finish_reason: str = "stop"
) -> Failure | None:
    """Return how the evolution that got this answer has failed, or None."""
    if settings.rules == "robust":
        text = plain(answer)
        if not text:
            return "truncated" if finish_reason == "length" else "empty"
        found = _asking(text, tuple(map(str.casefold, PAPER_STAGNANT + TABLE_5_STAGNANT)), "sure")
        found = found or ("lost_information" if LOST in text else None)
        found = found or ("truncated" if finish_reason == "length" else None)
        found = found or ("refusal" if refuses(answer) else None)
    elif settings.rules == "paper":
        found = _asking(answer, PAPER_STAGNANT, UNQUALIFIED)
        found = found or ("lost_information" if LOST in answer else None)
    else:
        stagnant = PAPER_STAGNANT + TABLE_5_STAGNANT + RELEASED_STAGNANT
        found = _asking(answer, stagnant, UNQUALIFIED)
        is_lost = LOST in answer.lower() or RELEASED_LOST in answer.lower()
        found = found or ("lost_information" if is_lost else None)
    phrases = tuple(plain(phrase) for phrase in settings.phrases)
    return found or (_asking(plain(answer), phrases) if phrases else None)


def failure_of_evolution(
    parent: str, text: str, settings: Failures, finish_reason: str = "stop"
) -> Failure | None:
    """Return how an evolved text has failed by itself, before it is answered, or None.

    An empty text has failed by every set of rules, since nobody can be asked it.
    """
    if settings.rules != "robust":
        return None if text.strip() else "empty"
    if finish_reason == "length":
        return "truncated"
    if not text.strip():
        return "empty"
    if _is_same(parent, text):
        return "unchanged"
    if not Counter(words_of(text)) - Counter(words_of(parent)):
        return "lost_information"  # words were left out, and none came
    if _leaks(parent, text):
        return "template_leak"
    return "refusal" if refuses(text) and not refuses(parent) else None


def asks_back(text: str) -> bool:
    """Say whether a text ends with a question mark."""
    return plain(text).endswith("?")


def _asking(text: str, stagnant: tuple[str, ...], unqualified: str = "") -> Failure | None:
    """The class of an answer that begins with one of these and ends with a question mark."""
    if not text.endswith("?"):
        return None
    if unqualified and text.startswith(unqualified):
        return "unqualified"
    return "stagnant" if text.startswith(stagnant) else None


def _is_same(parent: str, text: str) -> bool:
    words = normal_text(text)
    return words == normal_text(parent) if words else text.split() == parent.split()


def _leaks(parent: str, text: str) -> bool:
    before, now = plain(parent), plain(text)
    return any(words in now and words not in before for words in LEAKS)
