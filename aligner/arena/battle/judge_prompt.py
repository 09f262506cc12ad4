"""The prompt of a language model that judges a battle: its instructions, and what it is shown.

It sees the conversation, a right answer where there is one, and both answers, each between lines
with a mark that occurs in none of the texts (`reward_models/judge_prompts.py`): no text can close
its own frame, and whatever stands inside is material. It replies with JSON, its reasons first, so
that the scores follow from them. Of several turns the last answer alone is judged; both answers
have the same history.
"""

from __future__ import annotations

from hashlib import sha256

from aligner.arena.battle.disguise import PATTERNS, without_names
from aligner.arena.battle.sheets import Sheet
from aligner.endpoints.request import estimated_tokens
from aligner.reward_models.judge_prompts import (
    FRAME,
    RUBRIC,
    Messages,
    as_messages,
    material,
    without_control_tokens,
)

FORM = '{"analysis": "...", "score_first": N, "score_second": N}'

_SYSTEM = """\
You compare two answers to the last message of a conversation, the first answer and the second \
answer, and give each of them a score.

{criteria}

{frame}

How you judge:
- Each answer is held against what was asked, and then against the other one.
- Which of them is shown first was decided by chance and says nothing about them. You would give \
the same two scores if they changed places.
- A longer answer is not a better one, nor one with more headings, lists or bold words. What is \
said in addition counts as far as it serves the person who asked.
- Who wrote an answer is not known and does not matter. Names that gave it away were taken out.
- Where the conversation has several turns, the answers to its last message are judged, and \
whether they fit what was said before.
- Equal scores are right for answers that are equally good, or equally bad.

Scores go from 1 (of no use, or harmful) to 10 (could hardly be better); 5 is an answer with \
serious faults that is still of some use. Halves, such as 7.5, are allowed.

{form}"""

_FORM = f"""Reply with one JSON object and nothing else. It has these three keys, in this order:
{FORM}
`analysis` comes first: a few sentences on where each answer is right, wrong or incomplete, and \
what decides between them. Then the two scores, as numbers."""

REQUEST = f"""Compare the first answer with the second answer. Reply with one JSON object and \
nothing else:
{FORM}"""
"""The end of a question; said once more, since small models go by what they have read last."""

REMINDER = f"""Your reply is not of that form. {_FORM} Each score is a number from 1 to 10, whole \
or a half."""


def system_text(criteria: str | None = None) -> str:
    """The instructions; `criteria`: what is judged, in place of our own words."""
    return _SYSTEM.format(criteria=criteria or RUBRIC, frame=FRAME, form=_FORM)


def question(sheet: Sheet, criteria: str | None = None) -> Messages:
    """The messages that ask for both scores."""
    names = sorted({sheet.first.model, sheet.second.model})
    first, second = (
        without_names(without_control_tokens(answer.text), names)
        for answer in (sheet.first, sheet.second)
    )
    parts, mark = material(
        sheet.item.prompt,
        None,
        sheet.item.reference,
        further={"the first answer": first, "the second answer": second},
    )
    parts.append(f"The mark is {mark}. {REQUEST}")
    return as_messages(system_text(criteria), parts)


def template_sha(criteria: str | None = None) -> str:
    """SHA-256 of all that is the same in every question."""
    texts = [system_text(criteria), REQUEST, REMINDER, *PATTERNS]
    return sha256("\n\n".join(texts).encode()).hexdigest()


TEMPLATE_TOKENS = estimated_tokens(system_text() + REQUEST)
"""About how many tokens a question has beside the texts that are judged."""
