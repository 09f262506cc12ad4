"""What is known of one prompt after its battles: everybody's answer, mean scores and margins.

`scores[m]` is the mean of what m was given over all its battles and judges on this prompt (S_m of
arXiv 2407.10627), `margins[a, b]` the mean over judges of (score of a - score of b) in the battles
of these two (D_ab). Where a battle was decided without a judge (an empty answer loses, equal ones
tie) its margin is infinite or 0, and it has no scores. A battle with a reply that could not be read
is in neither.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean

from aligner.arena.battle.sheets import Answer, Item
from aligner.arena.records import Battle


@dataclass(frozen=True)
class Contest:
    """One prompt, answered and judged. `battles[a, b]`, a sorting before b: those of the two, one
    for each judge."""

    item: Item
    answers: Mapping[str, Answer]
    battles: Mapping[tuple[str, str], tuple[Battle, ...]]
    difficulty: float | None = None
    scores: Mapping[str, float] = field(init=False)

    def __post_init__(self) -> None:
        given = defaultdict(list)
        for battles in self.battles.values():
            for battle in battles:
                for model, score in ((battle.model_a, battle.s_a), (battle.model_b, battle.s_b)):
                    if score is not None:
                        given[model].append(score)
        object.__setattr__(self, "scores", {name: fmean(found) for name, found in given.items()})

    @property
    def models(self) -> list[str]:
        """Who answered, sorted."""
        return sorted(self.answers)

    def between(self, a: str, b: str) -> tuple[Battle, ...]:
        """The battles of two models, none where they did not meet or could not be judged."""
        return self.battles.get((min(a, b), max(a, b)), ())

    def margin(self, a: str, b: str) -> float | None:
        """D_ab, or None where nobody judged these two."""
        battles = self.between(a, b)
        if not battles:
            return None
        return fmean(_margin(battle) * (1.0 if battle.model_a == a else -1.0) for battle in battles)

    def is_consistent(self, a: str, b: str) -> bool:
        """Whether every judge said the same in both orders."""
        return all(battle.consistent is not False for battle in self.between(a, b))


def _margin(battle: Battle) -> float:
    """Score of a less that of b; without scores, what the verdict says."""
    if battle.margin is not None:
        return battle.margin
    return {"model_a": math.inf, "model_b": -math.inf, "tie": 0.0}[battle.winner]


def contests_of(
    items: Iterable[Item],
    answers: Mapping[str, Mapping[str, Answer]],
    battles: Iterable[Battle],
    difficulties: Mapping[str, float] | None = None,
) -> list[Contest]:
    """The contests of all prompts that were answered, in the order of the prompts.

    `answers`: model -> prompt id -> answer. A battle that is there twice for the same judge counts
    once, the first one.
    """
    met: dict[str, dict[tuple[str, str], dict[str, Battle]]] = defaultdict(dict)
    for battle in battles:
        pair = (battle.model_a, battle.model_b)
        met[battle.prompt_id].setdefault(pair, {}).setdefault(battle.judge_id, battle)
    found = []
    for item in items:
        of_item = {name: known[item.id] for name, known in answers.items() if item.id in known}
        pairs = {}
        for pair, by_judge in met.get(item.id, {}).items():
            pairs[pair] = tuple(by_judge[judge] for judge in sorted(by_judge))
        found.append(Contest(item, of_item, pairs, (difficulties or {}).get(item.id)))
    return found
