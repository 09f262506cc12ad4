"""How likely each response to a prompt beats each other one by the reward models, and how uncertain
that is.

A belief is an array of shape (M, n, n): for each of M models the probability that answer j is
better than answer k. Of a model that scores single answers it is the sigmoid of the difference
(Bradley and Terry), of one that compares what it says itself. So models of different scales count
alike.

Measures of uncertainty, of the M probabilities p of one pair (in nats where they are entropies):

    entropy    H(mean p), with H(p) = -p ln p - (1 - p) ln(1 - p): how open the question is, all
               models together
    variance   of the p: how much the models contradict one another (as in arXiv 2203.07472)
    bald       H(mean p) - mean H(p), the mutual information of label and model (arXiv 1112.5745):
               high where each
               model is sure and they disagree, low where all find the two answers equally good

An entropy cannot tell a pair that is a tie from one that the model has not understood; disagreement
can, if the models differ. For a scorer whose numbers are not logits (a judge's grades, a verifier)
the sigmoid only orders pairs.

A pair that a judge has no usable verdict on is NaN in its belief, and no pair to choose; the win
rates are those over the other pairs.

Legend: M models, n answers to a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from aligner.builders.select.asking import Ask, ask_about
from aligner.errors import DataError
from aligner.reward_models.base import Comparer, Prompt, Scorer, preferences

Array = np.ndarray


def judge(
    scorers: Sequence[Scorer],
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[str]],
    references: Sequence[str | None] | None = None,
) -> list[Array]:
    """Return what the scorers believe: one array of shape (M, n_i, n_i) for each prompt i with its
    n_i answers.

    `references`: a right answer for each prompt, for scorers that compare with one.

    NaN stands for a pair without a verdict.

    Raises: DataError when a scorer gives something else than a finite number.
    """
    by_model = [win_probabilities(scorer, prompts, responses, references) for scorer in scorers]
    return [np.stack(matrices) for matrices in zip(*by_model)]


def win_probabilities(
    scorer: Scorer,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[str]],
    references: Sequence[str | None] | None = None,
    remarks: list[str] | None = None,
    names: Sequence[str] | None = None,
    unjudged: dict[int, str] | None = None,
) -> list[Array]:
    """Return for each prompt how likely each answer is better than each other one: shape (n_i,
    n_i), 0.5 on the diagonal.

    What the scorer has to say about single rows is added to `remarks`. `names`: what errors call
    the prompts. A pair without a verdict is NaN, and why goes to `unjudged`, by the prompt's place
    (one reason each).
    """
    remarks = [] if remarks is None else remarks
    unjudged = {} if unjudged is None else unjudged
    names = [f"the prompt {str(prompt)[:80]!r}" for prompt in prompts] if names is None else names
    if isinstance(scorer, Comparer):
        return _compared(scorer, prompts, responses, references, remarks, names, unjudged)
    return _scored(scorer, prompts, responses, references, remarks, names, unjudged)


def _scored(
    scorer: Scorer,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[str]],
    references: Sequence[str | None] | None,
    remarks: list[str],
    names: Sequence[str],
    unjudged: dict[int, str],
) -> list[Array]:
    """Score all answers in one call; an answer without a score has no pair."""
    rows = [row for row, answers in enumerate(responses) for _ in answers]
    flat = [answer for answers in responses for answer in answers]

    def ask(places: list[int]) -> Sequence[float]:
        known = None if references is None else [references[rows[place]] for place in places]
        said = scorer.score(
            [prompts[rows[place]] for place in places], [flat[place] for place in places], known
        )
        remarks.extend(said.remarks.values())
        return said

    scores = _numbers(scorer, ask, rows, prompts, names, unjudged)
    ends = np.cumsum([len(answers) for answers in responses])
    found = (
        [sigmoid(part[:, None] - part[None, :]) for part in np.split(scores, ends[:-1])]
        if len(prompts)
        else []
    )
    for one in found:
        np.fill_diagonal(one, 0.5)
    return found


def _compared(
    scorer: Comparer,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[str]],
    references: Sequence[str | None] | None,
    remarks: list[str],
    names: Sequence[str],
    unjudged: dict[int, str],
) -> list[Array]:
    """Ask for every pair once; the other direction is what is left to 1."""
    asked = [
        (row, *pair) for row, answers in enumerate(responses) for pair in pairs_of(len(answers))
    ]

    def ask(places: list[int]) -> Sequence[float]:
        some = [asked[place] for place in places]
        rows = [row for row, _, _ in some]
        first = [responses[row][j] for row, j, _ in some]
        second = [responses[row][k] for row, _, k in some]
        known = None if references is None else [references[row] for row in rows]
        said = preferences(scorer, [prompts[row] for row in rows], first, second, known)
        remarks.extend(said.remarks.values())
        return said

    said = _numbers(scorer, ask, [row for row, _, _ in asked], prompts, names, unjudged)
    found = [np.full((len(few), len(few)), 0.5) for few in responses]
    for (row, j, k), value in zip(asked, said):
        found[row][j, k], found[row][k, j] = value, 1.0 - value
    return found


def _numbers(
    scorer: Scorer,
    ask: Ask,
    rows: Sequence[int],
    prompts: Sequence[Prompt],
    names: Sequence[str],
    unjudged: dict[int, str],
) -> Array:
    """Return a number for each of the things asked about, NaN where there is no verdict. `rows`:
    their prompts' places."""
    said, reasons = ask_about([names[row] for row in rows], ask)
    values = np.array([said.get(place, 0.0) for place in range(len(rows))], dtype=np.float64)
    _refuse_unusable(scorer, values, [prompts[row] for row in rows])
    for place, reason in reasons.items():
        values[place] = np.nan
        unjudged.setdefault(rows[place], reason)
    return values


def _refuse_unusable(scorer: Scorer, values: Array, prompts: Sequence[Prompt]) -> None:
    broken = np.flatnonzero(~np.isfinite(values))
    if len(broken):
        raise DataError(
            f"{scorer.name} gave {values[broken[0]]} for {len(broken)} of {len(values)} answers, "
            "the first to the prompt "
            f"{str(prompts[broken[0]])[:80]!r}",
            "a score is a finite number; check the model, its data type and the length of the "
            "answers",
        )


def sigmoid(value: Array) -> Array:
    """1 / (1 + exp(-value)), without overflow; the values of x and -x add up to 1."""
    return 0.5 * (1.0 + np.tanh(0.5 * value))


def pairs_of(count: int) -> list[tuple[int, int]]:
    """Return all pairs j < k of so many answers."""
    return [(j, k) for j in range(count) for k in range(j + 1, count)]


def entropy(p: Array) -> Array:
    """Return the entropy in nats of a yes with probability p; 0 at 0 and at 1."""
    p = np.asarray(p, dtype=np.float64)
    inside = (p > 0.0) & (p < 1.0)
    safe = np.where(inside, p, 0.5)
    return np.where(inside, -safe * np.log(safe) - (1.0 - safe) * np.log(1.0 - safe), 0.0)


def _mutual_information(p: Array) -> Array:
    return np.maximum(0.0, entropy(p.mean(axis=0)) - entropy(p).mean(axis=0))


MEASURES: dict[str, Callable[[Array], Array]] = {
    "entropy": lambda p: entropy(p.mean(axis=0)),
    "variance": lambda p: p.var(axis=0),
    "bald": _mutual_information,
}
"""Name -> from probabilities of shape (M, ...) to uncertainties of shape (...)."""


def chosen_measure(name: str, models: int) -> str | None:
    """Return the measure that `auto` stands for with so many models; None without any."""
    if not models:
        return None
    return name if name != "auto" else ("bald" if models > 1 else "entropy")


def win_rates(belief: Array, kept: Sequence[int]) -> Array:
    """Return for each kept answer its mean probability of beating another kept one, over models:
    shape (len(kept),).

    With one model that scores single answers this orders them as their scores do. Pairs without a
    verdict do not count.
    """
    inner = belief[:, kept][:, :, kept].mean(axis=0)
    others = np.maximum(1, np.isfinite(inner).sum(axis=1) - 1)
    return (np.nansum(inner, axis=1) - np.diag(inner)) / others
