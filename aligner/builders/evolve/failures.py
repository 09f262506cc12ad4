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

import re
from collections import Counter
from typing import Literal, get_args

from aligner.builders.evolve.prompts import LEAKS
from aligner.builders.evolve.recipe import Failures
from aligner.data.normal_text import normal_text, words_of

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

_REASONING = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_REASONING_TAIL = re.compile(r"\A.*</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_PLAIN = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201b\u2032\u00b4`\uff07", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\uff02", '"'),
        **dict.fromkeys("\uff1f\ufe56\u061f", "?"),
        "\u00a0": " ",
    }
)
"""Quotes, question marks and a blank, as keyboards with fewer signs write them."""
_INABILITY = (
    r"(?:can'?t|cannot|can not|could not|couldn'?t|won'?t|unable|not able|not allowed|not equipped|"
    r"(?:don'?t|do not) have the (?:ability|capability|capacity))"
)
_ASSISTANT = r"as an? [^.!?,\n]{0,40}\b(?:ai|chatbot|assistant|(?:large )?language model)\b"
_ACTS = (
    r"(?:assist|help|provide|fulfil|fulfill|comply|answer|create|write|generate|produce|complete|"
    r"do that|do this|engage|discuss|support|share|continue|rewrite|respond|process|access|offer)"
)
_REFUSALS = re.compile(
    rf"(?:i'm|i am|i apologi[sz]e|my apologies|apologies|sorry)[^.!?\n]{{0,60}}[,.;!]? *"
    rf"(?:but )?(?:i[^.!?\n]{{0,40}}|{_ASSISTANT}[^.!?\n]{{0,90}}){_INABILITY}\b"
    rf"|(?:unfortunately, )?i(?:'m| am)? (?:really |simply )?{_INABILITY} (?:to )?"
    rf"(?:\w+ )?{_ACTS}\b"
    rf"|as an? (?:ai|artificial intelligence|(?:large )?language model)[^.!?\n]{{0,60}}"
    rf"(?:{_INABILITY}|don'?t|do not)\b"
)


def without_reasoning(text: str) -> str:
    """Return a reply without what a reasoning model thought before it, and without outer blanks."""
    return _REASONING_TAIL.sub("", _REASONING.sub("", text)).strip()


def plain(text: str) -> str:
    """Return a text as the `robust` rules read it."""
    return without_reasoning(text).translate(_PLAIN).strip().casefold()


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


def refuses(text: str) -> bool:
    """Say whether a text begins as a refusal does: with a regret or a limit of the model, and that
    it will not do what was asked. A regret alone is none: letters of apology begin so."""
    return _REFUSALS.match(plain(text)) is not None


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
