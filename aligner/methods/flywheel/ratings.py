"""Ratings of all models of all rounds and of the opponents, in one joint fit, so that numbers of
different rounds can be compared.

The development part of the test set chooses: the best model, who fights, whether a round gained.
The test part only reports.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aligner.arena.rating import Ratings, Settings, rate
from aligner.arena.records import Battle
from aligner.arena.votes import VoteBuilder, Votes
from aligner.config.battles import Rating

OUTCOMES = {"model_a": 1.0, "model_b": 0.0, "tie": 0.5}
COVERAGE = (0.025, 0.975)


@dataclass(frozen=True)
class Standing:
    """Ratings on one part of the test set."""

    ratings: Ratings

    def of(self, name: str) -> dict[str, Any]:
        """Return the rating of a model with its interval; an end that does not exist is None."""
        place = self.ratings.models.index(name)
        ends = (self.ratings.low[place], self.ratings.high[place])
        low, high = (float(end) if np.isfinite(end) else None for end in ends)
        rating = float(self.ratings.rating[place])
        return {"rating": rating, "low": low, "high": high, "bound": self.ratings.bound[place]}

    def best(self, names: Sequence[str]) -> str:
        """Return the best rated of some models; of equals the one that was made first."""
        return max(names, key=lambda name: (self.of(name)["rating"], -names.index(name)))

    def gain(self, name: str, before: str) -> dict[str, float | None]:
        """Return by how much a model is rated above another, with the interval of the difference:
        of the same resamples of prompts."""
        models, drawn = self.ratings.models, self.ratings.draws
        one, other = models.index(name), models.index(before)
        found: dict[str, float | None] = {
            "value": float(self.ratings.rating[one] - self.ratings.rating[other]),
            "low": None,
            "high": None,
        }
        if len(drawn):
            low, high = np.quantile(drawn[:, one] - drawn[:, other], COVERAGE)
            found |= {"low": float(low), "high": float(high)}
        return found


def standing(battles: Iterable[Battle], how: Rating, seed: int) -> Standing:
    """Rate everybody by these battles. Raises: DataError where no ratings exist."""
    settings = Settings(
        resamples=how.resamples,
        seed=seed,
        anchor=how.anchor,
        anchor_rating=how.anchor_rating,
    )
    return Standing(rate(votes_of(battles), settings))


def votes_of(battles: Iterable[Battle]) -> Votes:
    """Return merged battles as votes; each judge of a panel has one."""
    builder = VoteBuilder()
    for battle in battles:
        builder.add(
            battle.model_a,
            battle.model_b,
            battle.prompt_id,
            OUTCOMES[battle.winner],
            category=battle.category,
        )
        builder.judges.add(battle.judge_id)
    return builder.votes()


def mean_lengths(answers: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean length of each contestant's answers, in characters."""
    found = {}
    for name, known in answers.items():
        found[name] = sum(len(one.text) for one in known.values()) / max(1, len(known))
    return found
