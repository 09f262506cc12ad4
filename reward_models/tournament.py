"""The kind `tournament`: the answers to one prompt are compared with one another, and how they fare
becomes a score for each.

    kind: tournament
    members: [judge.yaml]       # who compares: `judge`, `pairwise`, or an ensemble with such a one
    opponents: 4                # each answer meets about four others; absent: all of them

So a language model that can say which of two answers is better, but not what one is worth, or a
pairwise reward model, gives rewards to the groups of `rlhf` and `online`. The score is a
Bradley-Terry strength in log-odds: two answers to a prompt whose scores differ by d win against
each other with the probability sigmoid(d), as far as one number each can say. `attributes` has the
mean probability to win (`wins`) and what it is the mean of (`games`).

A probability of p counts as p wins and 1 - p losses. Each answer has one more game, half won,
against an average player of strength 0 (as in `aligner.arena.bradley_terry`, whose `prior` of 1
this is): without it an answer that wins all its games would have no finite strength. It draws the
scores of small groups together: those of two answers, one of which surely wins, are 0.76 and
-0.76.

Scores are comparable within one prompt only, and depend on the answers that are there. Equal
answers to a prompt are one player. A comparison without a verdict is a game that was not played; an
answer without any game has no score.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from aligner.errors import DataError, Problem, RecipeError

from .base import (
    UNBOUNDED,
    Comparer,
    NoVerdict,
    Preferences,
    Prompt,
    Range,
    Scorer,
    Scores,
    check_lengths,
    preferences,
)
from .batching import Pairs, ask, chunks, prompt_key
from .card import Card
from .catalogue import COMPARING, holds, load_scorer
from .ensemble import refuse_cycles

PRIOR = 1.0
"""Games of each answer against an average player."""
CLOSE = 1e-10
LONGEST_STEP = 1.0
MOST_STEPS = 500
LISTED = 10

Games = Mapping[tuple[int, int], float]
"""Two players -> the probability that the first one wins."""


def strengths(players: int, games: Games, prior: float = PRIOR) -> list[float]:
    """The strengths that make the games most likely, by Newton's method; in log-odds.

    `prior`: games of each player, half won, against one of strength 0.
    """
    import numpy as np

    assert prior > 0, "without a prior there may be no finite strengths"
    won, played = np.zeros((players, players)), np.zeros((players, players))
    for (one, other), chance in games.items():
        won[one, other] += chance
        won[other, one] += 1.0 - chance
        played[[one, other], [other, one]] += 1.0
    found = np.zeros(players)
    for _ in range(MOST_STEPS):
        share = 0.5 + 0.5 * np.tanh(0.5 * (found[:, None] - found[None, :]))
        against_average = 0.5 + 0.5 * np.tanh(0.5 * found)
        gradient = (won - played * share).sum(axis=1) + prior * (0.5 - against_average)
        weights = played * share * (1.0 - share)
        of_prior = prior * against_average * (1.0 - against_average)
        curvature = np.diag(weights.sum(axis=1) + of_prior) - weights
        step = np.linalg.solve(curvature, gradient)
        longest = np.abs(step).max(initial=0.0)
        found += step * min(1.0, LONGEST_STEP / max(longest, CLOSE))
        if longest < CLOSE:
            return [float(value) for value in found]
    raise AssertionError(f"Newton's method has not converged after {MOST_STEPS} steps")


def schedule(players: int, opponents: int | None) -> list[tuple[int, int]]:
    """Who meets whom: everybody, or each about `opponents` others, an even number of them, those
    next to it on a ring."""
    if opponents is None or opponents >= players - 1:
        return list(combinations(range(players), 2))
    steps = range(1, -(-opponents // 2) + 1)
    pairs = [(one, (one + step) % players) for step in steps for one in range(players)]
    return sorted({(min(pair), max(pair)) for pair in pairs})


class Tournament:
    """Scores answers by the games among those to one prompt, and compares two as its member
    does."""

    takes_references = True

    def __init__(self, name: str, member: Comparer, opponents: int | None = None) -> None:
        self.name = name
        self.members: list[Scorer] = [member]
        self.opponents = opponents

    @property
    def range(self) -> Range:
        """None: log-odds."""
        return UNBOUNDED

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        references: Sequence[str | None] | None = None,
    ) -> Scores:
        """Score each answer by its games against others to its prompt.

        Raises: DataError naming the rows whose prompt has no other row; NoVerdict for answers
        without a game, where the prompt has different ones.
        """
        check_lengths(prompts, completions, references)
        groups = self._groups(prompts)
        players = [_players(rows, completions) for rows in groups]
        pairs = [
            (group, pair)
            for group, found in enumerate(players)
            for pair in schedule(len(found), self.opponents)
        ]
        rows_of = [
            (players[group][one][0], players[group][other][0]) for group, (one, other) in pairs
        ]
        verdicts = ask(
            lambda: self.members[0],
            _asked(rows_of, prompts, completions, references),
            chunks(len(pairs), None),
        )
        games: list[dict[tuple[int, int], float]] = [{} for _ in groups]
        said: dict[int, dict[str, None]] = defaultdict(dict)
        for (group, pair), verdict in zip(pairs, verdicts):
            if verdict.value is not None:
                games[group][pair] = verdict.value
            remark = f"not compared: {verdict.error}" if verdict.error else verdict.remark
            for row in (row for player in pair for row in players[group][player] if remark):
                said[row][remark] = None
        remarks = {row: "; ".join(of_row) for row, of_row in said.items()}
        self._refuse_unplayed(players, games, len(prompts), remarks)
        return _scores(len(prompts), players, games, remarks)

    def prefer(
        self,
        prompts: Sequence[Prompt],
        first: Sequence[str],
        second: Sequence[str],
        references: Sequence[str | None] | None = None,
    ) -> Preferences:
        """Say which of two answers is better, as the member does."""
        return preferences(self.members[0], prompts, first, second, references)

    def fingerprint(self) -> str:
        """The member's, and how many opponents an answer has."""
        text = json.dumps([self.opponents, PRIOR, self.members[0].fingerprint()])
        return f"tournament:{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def _groups(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """The rows of each prompt."""
        groups: dict[str, list[int]] = defaultdict(list)
        for row, prompt in enumerate(prompts):
            groups[prompt_key(prompt)].append(row)
        alone = [rows[0] + 1 for rows in groups.values() if len(rows) == 1]
        if alone:
            raise DataError(
                f"{self.name} compares the answers to a prompt, and {len(alone)} prompts have only "
                "one",
                "give several answers to each prompt, or use a scorer of single answers",
                [
                    Problem("the only answer to its prompt", where=f"row {row}")
                    for row in alone[:LISTED]
                ],
            )
        return list(groups.values())

    def _refuse_unplayed(
        self,
        players: Sequence[list[list[int]]],
        games: Sequence[Games],
        count: int,
        remarks: Mapping[int, str],
    ) -> None:
        """Raise for answers all of whose comparisons had no verdict."""
        missing = {}
        for found, of_group in zip(players, games):
            played = {player for pair in of_group for player in pair}
            unplayed = set(range(len(found))) - played if len(found) > 1 else set()
            for row in (row for player in unplayed for row in found[player]):
                missing[row] = remarks[row]
        if missing:
            error = NoVerdict(
                f"{self.name} could compare {len(missing)} of {count} answers with no other",
                "score again to ask about these rows only, or leave them out",
                [Problem(missing[row], where=f"row {row + 1}") for row in sorted(missing)[:LISTED]],
            )
            error.rows = missing
            raise error


def _players(rows: Sequence[int], completions: Sequence[str]) -> list[list[int]]:
    """The rows of each different answer to a prompt, in the order of the texts, so that the games
    do not depend on that of the rows."""
    found: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        found[completions[row]].append(row)
    return [found[text] for text in sorted(found)]


def _asked(
    rows_of: Sequence[tuple[int, int]],
    prompts: Sequence[Prompt],
    completions: Sequence[str],
    references: Sequence[str | None] | None,
) -> Pairs:
    return Pairs(
        [prompts[one] for one, _ in rows_of],
        [completions[one] for one, _ in rows_of],
        [completions[other] for _, other in rows_of],
        [None if references is None else references[one] for one, _ in rows_of],
        [f"row {one + 1}" for one, _ in rows_of],
    )


def _scores(
    count: int,
    players: Sequence[list[list[int]]],
    games: Sequence[Games],
    remarks: Mapping[int, str],
) -> Scores:
    """Strengths, and what they are from, by row."""
    columns: dict[str, list[float]] = {name: [0.0] * count for name in ("score", "wins", "games")}
    for found, of_group in zip(players, games):
        values = strengths(len(found), of_group)
        for player, (rows, value) in enumerate(zip(found, values)):
            won = list(_won(player, of_group))
            share = sum(won) / len(won) if won else 0.5
            for row in rows:
                said = (value, share, float(len(won)))
                for column, number in zip(columns.values(), said):
                    column[row] = number
    return Scores(columns.pop("score"), columns, remarks)


def _won(player: int, games: Games) -> Iterator[float]:
    """The probability to win of each game of a player."""
    for (one, other), chance in games.items():
        if player == one:
            yield chance
        elif player == other:
            yield 1.0 - chance


def make(card: Card) -> Scorer:
    """The scorer of a card of the kind `tournament`, with its member loaded."""
    if len(card.members) != 1:
        raise RecipeError(
            f"{card.name}: a tournament has one member, which compares, found {len(card.members)}",
            "name one; for several opinions name an ensemble of them",
        )
    refuse_cycles(card)
    if not holds(card, COMPARING):
        raise RecipeError(
            f"{card.name}: {card.members[0]} compares no answers",
            "name a card of the kind `judge` or `pairwise`; scores of single answers need no "
            "tournament",
        )
    member: Any = load_scorer(card.members[0], trust_remote_code=card.trust_remote_code)
    assert isinstance(member, Comparer), "its kind says so"
    return Tournament(card.name, member, card.opponents)
