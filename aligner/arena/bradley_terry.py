"""Bradley-Terry models by Newton's method, many resamples of one table at once.

The log-odds of a cell are d = theta_i - theta_j + z . gamma, with z the seat and the style of the
answers, and eta for ties. What a cell adds to the log-likelihood with w wins of i, l wins of j and
t ties:

    half        (w + t/2) log s(d) + (l + t/2) log s(-d)
    davidson    w d/2 - l d/2 + t eta - (w + l + t) log(e^(d/2) + e^(-d/2) + e^eta)
    rao_kupper  (w + t) log s(d - eta) + (l + t) log s(-d - eta) + t log(e^(2 eta) - 1)

A tie is half a win (the default), or has a probability of its own (Davidson 1970; Rao and Kupper
1967). All three are concave. Ratings do not change when all of them rise by the same; the centre is
held by the way the step is computed. Where no finite maximum exists, `prior` adds for each model
one game against an average player (theta 0), split evenly among the outcomes. A weak normal prior
(precision 0.01) on gamma and eta keeps them finite: a first seat that always wins has no other end.

Legend: B resamples, C cells, M models, P pairs, K parameters: theta, gamma, and eta where there is
one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import numpy as np

from aligner.arena.votes import Floats, Integers

TieModel = Literal["half", "davidson", "rao_kupper"]
TIE_MODELS: tuple[TieModel, ...] = get_args(TieModel)

PRECISION = 0.01
LONGEST_STEP = 1.5
"""Logits that the odds of a cell move at most in one step, so that a bad start cannot run away."""
LARGEST_FALL = 0.75
"""Share by which the eta of Rao and Kupper, which is above 0, falls at most in one step."""
CLOSE = 1e-8
NO_GAIN = 1e-14
"""A step is the last one where it is so short, or where the log-likelihood rises by so little: what
is left is rounding. A step after which the log-likelihood falls again is taken back by half."""
MOST_STEPS = 200


class Sums:
    """Sums of columns by group, for all rows at once; `groups` names the group of each column."""

    def __init__(self, groups: Integers, count: int) -> None:
        self._order = np.argsort(groups, kind="stable")
        self._present, self._starts = np.unique(groups[self._order], return_index=True)
        self._count = count

    def __call__(self, columns: Floats) -> Floats:
        """(B, columns) -> (B, count)."""
        found = np.zeros((len(columns), self._count))
        if len(self._starts):
            ordered = columns[:, self._order]
            found[:, self._present] = np.add.reduceat(ordered, self._starts, axis=1)
        return found


@dataclass(frozen=True)
class Design:
    """Who meets whom in each cell, and the covariates. Cells of a pair stand together, and `first`
    is below `second`; the M cells at the end are games against the average player, whose number is
    M."""

    models: int
    first: Integers
    second: Integers
    covariates: Floats

    @classmethod
    def of(cls, models: int, first: Integers, second: Integers, covariates: Floats) -> Design:
        """Add the average player's cells."""
        return cls(
            models,
            np.concatenate([first, np.arange(models)]),
            np.concatenate([second, np.full(models, models)]),
            np.concatenate([covariates, np.zeros((models, covariates.shape[1]))]),
        )

    @property
    def cells(self) -> int:
        """Without those of the average player."""
        return len(self.first) - self.models

    @cached_property
    def pair_starts(self) -> Integers:
        key = self.first * (self.models + 1) + self.second
        return np.flatnonzero(np.diff(key, prepend=-1)).astype(np.int64)

    @cached_property
    def pairs(self) -> tuple[Integers, Integers]:
        return self.first[self.pair_starts], self.second[self.pair_starts]

    @cached_property
    def _by_model(self) -> tuple[Sums, Sums]:
        first, second = self.pairs
        return Sums(first, self.models + 1), Sums(second, self.models + 1)

    def by_pair(self, cells: Floats) -> Floats:
        """(B, C) -> (B, P)."""
        if len(self.pair_starts) == cells.shape[1]:
            return cells
        found: Floats = np.add.reduceat(cells, self.pair_starts, axis=1)
        return found

    def to_models(self, pairs: Floats, sign: float = -1.0) -> Floats:
        """(B, P) -> (B, M): added to the first of each pair, and to the second with a sign."""
        first, second = self._by_model
        return (first(pairs) + sign * second(pairs))[:, : self.models]

    def log_odds(self, parameters: Floats) -> Floats:
        """(B, K) -> (B, C)."""
        theta = np.concatenate(
            [parameters[:, : self.models], np.zeros((len(parameters), 1))], axis=1
        )
        odds = theta[:, self.first] - theta[:, self.second]
        if self.covariates.shape[1]:
            gamma = parameters[:, self.models : self.models + self.covariates.shape[1]]
            odds += gamma @ self.covariates.T
        return odds


class Slopes(NamedTuple):
    """Derivatives of the log-likelihood of each cell: by d, twice by d with the sign turned, and
    the same by eta, and by both."""

    d: Floats
    dd: Floats
    eta: Floats | None = None
    eta_eta: Floats | None = None
    d_eta: Floats | None = None


def sigmoid(value: Floats) -> Floats:
    """1 / (1 + e^-x), without an overflow."""
    return 0.5 + 0.5 * np.tanh(0.5 * value)


def _half(odds: Floats, masses: Floats, eta: Floats) -> Slopes:
    won, lost = masses[..., 0], masses[..., 1]
    share = sigmoid(odds)
    games = won + lost
    expected = games * share
    return Slopes(won - expected, expected * (1.0 - share))


def _davidson(odds: Floats, masses: Floats, eta: Floats) -> Slopes:
    won, lost, tied = (masses[..., outcome] for outcome in range(3))
    games = won + lost + tied
    top = np.maximum(np.abs(odds) / 2, eta)
    win, loss = np.exp(odds / 2 - top), np.exp(-odds / 2 - top)
    tie = np.exp(eta - top)
    whole = win + loss + tie
    lead, tie = (win - loss) / whole, tie / whole
    return Slopes(
        (won - lost - games * lead) / 2,
        games / 4 * ((1.0 - tie) - lead**2),
        tied - games * tie,
        games * tie * (1.0 - tie),
        -games * tie * lead / 2,
    )


def _rao_kupper(odds: Floats, masses: Floats, eta: Floats) -> Slopes:
    up, down = masses[..., 0] + masses[..., 2], masses[..., 1] + masses[..., 2]
    win, loss = sigmoid(odds - eta), sigmoid(-odds - eta)
    left, right = up * win * (1.0 - win), down * loss * (1.0 - loss)
    shrunk = -np.expm1(-2.0 * eta)
    return Slopes(
        up * (1.0 - win) - down * (1.0 - loss),
        left + right,
        masses[..., 2] * 2.0 / shrunk - up * (1.0 - win) - down * (1.0 - loss),
        masses[..., 2] * 4.0 * np.exp(-2.0 * eta) / shrunk**2 + left + right,
        right - left,
    )


SLOPES: dict[TieModel, Callable[[Floats, Floats, Floats], Slopes]] = {
    "half": _half,
    "davidson": _davidson,
    "rao_kupper": _rao_kupper,
}
START_ETA = {"half": 0.0, "davidson": -0.5, "rao_kupper": 0.5}


def newton(
    design: Design, ties: TieModel, masses: Floats, prior: Floats, start: Floats | None = None
) -> Floats:
    """Maximize each row of `masses`, which are (B, C, outcomes); (B, K).

    `prior`: how many games against the average player each model has in each row; 0 only where the
    maximum is finite.
    """
    masses = _with_prior(design, masses, prior)
    count = design.models + design.covariates.shape[1]
    if start is None:
        start = np.zeros(count + (ties != "half"))
        start[count:] = START_ETA[ties]
    parameters = np.tile(start, (len(prior), 1))
    met = (masses != 0).any(axis=2)
    step, gain = np.zeros_like(parameters), np.zeros(len(prior))
    is_done = np.zeros(len(prior), bool)
    for _ in range(MOST_STEPS):
        gradient, curvature = _derivatives(design, ties, masses, parameters)
        overshot = (gradient * step).sum(axis=1) < np.minimum(-0.5 * gain, -NO_GAIN)
        whole = curvature + _centre(curvature, design, prior)
        wanted = np.linalg.solve(whole, gradient[..., None])[..., 0]
        longest = _longest(design, wanted, met)
        wanted *= np.minimum(1.0, LONGEST_STEP / np.maximum(longest, 1e-300))
        if ties == "rao_kupper":
            fall = np.maximum(-wanted[:, -1:] / parameters[:, -1:], 1e-300)
            wanted *= np.minimum(1.0, LARGEST_FALL / fall)
        new_gain = (gradient * wanted).sum(axis=1)
        moved = np.where(overshot[:, None], -0.5 * step, wanted)
        parameters = parameters + np.where(is_done[:, None], 0.0, moved)
        is_done |= ~overshot & ((longest[:, 0] < CLOSE) | (new_gain < NO_GAIN))
        if is_done.all():
            return parameters
        step = np.where(overshot[:, None], 0.5 * step, wanted)
        gain = np.where(overshot, 0.5 * gain, new_gain)
    raise AssertionError(f"Newton's method has not converged after {MOST_STEPS} steps")


def _longest(design: Design, step: Floats, met: Floats) -> Floats:
    """(B, 1): how far a step moves the log-odds of a cell that has votes, or another parameter.
    Ratings themselves may lie far apart, at the ends of a long chain."""
    odds = np.abs(design.log_odds(step), where=met, out=np.zeros(met.shape)).max(axis=1)
    others = np.abs(step[:, design.models :]).max(axis=1, initial=0.0)
    return np.maximum(odds, others)[:, None]


def _centre(curvature: Floats, design: Design, prior: Floats) -> Floats:
    """What makes the system solvable: the step of the centre is 0 where no prior holds it."""
    size = curvature.shape[-1]
    diagonal = np.einsum("bkk->bk", curvature)
    scale = diagonal[:, : design.models].mean(axis=1)
    added = np.zeros_like(curvature)
    held = np.where(prior == 0, scale / design.models, 0.0)
    added[:, : design.models, : design.models] = held[:, None, None]
    added += 1e-12 * scale[:, None, None] * np.eye(size)
    return added


def _derivatives(
    design: Design, ties: TieModel, masses: Floats, parameters: Floats
) -> tuple[Floats, Floats]:
    """Gradient (B, K) and curvature (B, K, K), the Hessian with its sign turned."""
    models, covariates = design.models, design.covariates
    extra = covariates.shape[1]
    slopes = SLOPES[ties](design.log_odds(parameters), masses, parameters[:, -1:])
    gradient = np.zeros_like(parameters)
    curvature = np.zeros((*parameters.shape, parameters.shape[1]))
    gradient[:, :models] = design.to_models(design.by_pair(slopes.d))
    met = design.by_pair(slopes.dd)
    real = design.pairs[1] < models
    first, second = design.pairs[0][real], design.pairs[1][real]
    curvature[:, first, second] = curvature[:, second, first] = -met[:, real]
    every = np.arange(models)
    curvature[:, every, every] = design.to_models(met, sign=1.0)
    for column in range(extra):
        place, values = models + column, covariates[:, column]
        gamma = parameters[:, place]
        gradient[:, place] = slopes.d @ values - PRECISION * gamma
        weighted = slopes.dd * values
        _both(curvature, place, design.to_models(design.by_pair(weighted)))
        curvature[:, models : models + extra, place] = weighted @ covariates
        curvature[:, place, place] += PRECISION
    if slopes.eta is not None:
        assert slopes.eta_eta is not None
        assert slopes.d_eta is not None
        gradient[:, -1] = slopes.eta.sum(axis=1) - PRECISION * parameters[:, -1]
        _both(curvature, -1, design.to_models(design.by_pair(slopes.d_eta)))
        across = slopes.d_eta @ covariates
        curvature[:, models : models + extra, -1] = across
        curvature[:, -1, models : models + extra] = across
        curvature[:, -1, -1] = slopes.eta_eta.sum(axis=1) + PRECISION
    return gradient, curvature


def _both(curvature: Floats, place: int, values: Floats) -> None:
    """Write what stands between the models and one other parameter, on both sides."""
    curvature[:, : values.shape[1], place] = values
    curvature[:, place, : values.shape[1]] = values


def derivatives(
    design: Design, ties: TieModel, masses: Floats, prior: float, parameters: Floats
) -> tuple[Floats, Floats]:
    """Gradient (K) and curvature (K, K) of one table (C, outcomes), with its prior."""
    whole = _with_prior(design, masses[None], np.array([prior]))
    gradient, curvature = _derivatives(design, ties, whole, parameters[None])
    return gradient[0], curvature[0]


def _with_prior(design: Design, masses: Floats, prior: Floats) -> Floats:
    """The masses, and those of games against the average player."""
    size = masses.shape[-1]
    games = np.broadcast_to(prior[:, None, None] / size, (len(prior), design.models, size))
    return np.concatenate([masses, games], axis=1)
