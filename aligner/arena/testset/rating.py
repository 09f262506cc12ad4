"""How hard prompts are, by any scorer: the prompt is what it scores.

A scorer reads an answer to a question. So the question is to write an instruction that is hard to
follow well, and the answer is the prompt: a judge's criteria may say more of what is hard. A reward
model was not trained for that, and its numbers say little.
"""

from __future__ import annotations

from collections.abc import Sequence

from aligner.arena.testset.pool import PoolItem
from aligner.reward_models.base import Scorer
from aligner.reward_models.batching import Answers, Progress, ask, chunks, refuse_silent
from aligner.runs.journal import Journal

QUESTION = (
    "Write one instruction for a language model that is hard to follow well: it needs knowledge, "
    "several steps of reasoning, or care with many constraints, and a weak model would fail it."
)
AT_ONCE = 64


def rate(
    scorer: Scorer,
    items: Sequence[PoolItem],
    journal: Journal | None = None,
    on_progress: Progress | None = None,
) -> list[float]:
    """Return how hard each prompt is. What is in the journal is not asked again.

    Raises: DataError that lists the prompts which got no score, after all others are kept.
    """
    texts = [item.asked for item in items]
    origins = [item.origin for item in items]
    rows = Answers([QUESTION] * len(items), texts, [None] * len(items), origins)
    parts = chunks(len(items), AT_ONCE)
    found = ask(lambda: scorer, rows, parts, journal=journal, on_progress=on_progress)
    refuse_silent(scorer.name, rows, found.silent, len(found), hint="the same command asks again")
    return list(found.values)
