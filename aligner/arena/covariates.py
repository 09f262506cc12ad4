"""Covariates of a battle: which answer the judge saw first, and how much longer or more formatted
one of them is.

A feature of two answers is (x_a - x_b) / (x_a + x_b), divided by its standard deviation over the
votes, so that swapping the answers turns its sign and nothing else; its coefficient is in logits
per standard deviation. With one in the model, a rating says how models compare at answers of equal
length or style. That is a correction only as far as length is no part of quality, and it needs
battles of the same two models in which sometimes the one, sometimes the other answer is longer:
without them the two cannot be told apart, and the fit is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from aligner.arena.votes import FEATURES, Floats, Votes
from aligner.errors import DataError

Control = Literal["seat", "length", "style"]
CONTROLS: tuple[Control, ...] = get_args(Control)

MOST_INFLATION = 100.0
"""Variance inflation above which a coefficient is not told apart from the ratings."""


@dataclass(frozen=True)
class Covariates:
    """Named columns, for a against b, and what had to be left out."""

    names: list[str]
    values: Floats
    notes: list[str]


def covariates_of(votes: Votes, controls: Sequence[Control]) -> Covariates:
    """The columns for what is controlled; `style` includes length.

    Raises: DataError where votes lack what is needed.
    """
    names: list[str] = []
    columns = []
    if "seat" in controls:
        if not votes.seat.any():
            raise DataError(
                "no vote says which answer was seen first, so there is no seat to estimate",
                "rate games one by one: --merge votes",
            )
        names.append("seat")
        columns.append(votes.seat)
    notes = []
    wanted = FEATURES if "style" in controls else FEATURES[:1] if "length" in controls else ()
    for place, name in enumerate(wanted):
        relative = _difference(name, votes.style_a[:, place], votes.style_b[:, place])
        spread = float(np.sqrt(np.mean(relative**2)))
        if spread > 0:
            columns.append(relative / spread)
            names.append(name)
        else:
            shown = name.replace("_", " ")
            notes.append(f"{shown}: no two answers of a battle differ in it, so it is left out")
    values = np.stack(columns, axis=1) if columns else np.empty((len(votes), 0))
    return Covariates(names, values, notes)


def _difference(name: str, one: Floats, other: Floats) -> Floats:
    missing = int((np.isnan(one) | np.isnan(other)).sum())
    if missing:
        raise DataError(
            f"{missing:,} of {len(one):,} votes lack the {name.replace('_', ' ')} of an answer",
            "give rows with their answers (conversation_a, answer_a, output_1) or with len_a",
        )
    whole = one + other
    found: Floats = np.divide(one - other, whole, out=np.zeros(len(one)), where=whole != 0)
    return found


def refuse_confounded(names: Sequence[str], curvature: Floats, models: int) -> None:
    """Refuse coefficients that the votes cannot tell apart from the ratings.

    Raises: DataError.
    """
    held = curvature.copy()
    held[:models, :models] += np.einsum("kk->k", curvature)[:models].mean() / models
    covariance = np.linalg.pinv(held)
    for place, name in enumerate(names, start=models):
        inflation = held[place, place] * covariance[place, place]
        if inflation > MOST_INFLATION or held[place, place] * 1e9 < held[0, 0]:
            raise DataError(
                f"{name} cannot be told apart from the ratings (variance inflation "
                f"{inflation:.3g}): the same models always have the same {name}",
                "add battles in which it differs, or rate without it",
            )
