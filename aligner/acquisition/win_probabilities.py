"""How likely each response to a prompt beats each other one by the reward models, and how uncertain
that is.

Those of a prompt are an array of shape (M, n, n): for each of M models the probability that
response j is better than response k. Of a model that scores single responses it is the sigmoid of
the difference (Bradley and Terry), of one that compares what it says itself. So models of different
scales count alike.

Measures of uncertainty, of the M probabilities p of one pair (in nats where they are entropies):

    entropy    H(mean p), with H(p) = -p ln p - (1 - p) ln(1 - p): how open the question is, all
               models together
    variance   of the p: how much the models contradict one another (as in arXiv 2203.07472)
    bald       H(mean p) - mean H(p), the mutual information of label and model (arXiv 1112.5745):
               high where each
               model is sure and they disagree, low where all find the two responses equally good

An entropy cannot tell a pair that is a tie from one that the model has not understood; disagreement
can, if the models differ. For a scorer whose numbers are not logits (a judge's grades, a verifier)
the sigmoid only orders pairs.

A pair that a judge has no usable verdict on is NaN there, and no pair to choose; the win
rates are those over the other pairs.

Legend: M models, n responses to a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from aligner.reward_models.base import Comparer, Prompt, Scorer
from aligner.reward_models.batching import Answers, Pairs, ask, chunks
from aligner.reward_models.verdicts import Verdicts

Array = np.ndarray


def judge(
    scorers: Sequence[Scorer],
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[str]],
    references: Sequence[str | None] | None = None,
) -> list[Array]:
    """Return the win probabilities by the scorers: an array of shape (M, n_i, n_i) for each prompt
    i with its n_i responses.

    `references`: a right answer for each prompt, for scorers that compare with one.

    NaN stands for a pair without a verdict.

    Raises: DataError when a scorer gives something else than a finite number.
    """
    known = [None] * len(prompts) if references is None else references
    origins = [f"the prompt {str(prompt)[:80]!r}" for prompt in prompts]

    def by(scorer: Scorer) -> list[Array]:
        compares = isinstance(scorer, Comparer)
        rows, _ = questions(prompts, responses, known, origins, compares=compares)
        verdicts = ask(lambda: scorer, rows, chunks(len(rows.prompts), None))
        return win_probabilities(responses, verdicts, compares=compares)

    return [np.stack(matrices) for matrices in zip(*map(by, scorers))]


def questions(
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[str]],
    references: Sequence[str | None],
    origins: Sequence[str],
    *,
    compares: bool,
) -> tuple[Answers | Pairs, list[int]]:
    """Return the rows that a scorer is asked about, every response or, where it compares, every
    pair of responses to a prompt; and the index of each row's prompt."""
    pairs = [(i, *pair) for i, few in enumerate(responses) for pair in pairs_of(len(few))]
    completions = [(i, text) for i, few in enumerate(responses) for text in few]
    owners = [i for i, *_ in pairs] if compares else [i for i, _ in completions]
    asked = [prompts[i] for i in owners]
    known = [references[i] for i in owners]
    named = [origins[i] for i in owners]
    if not compares:
        return Answers(asked, [text for _, text in completions], known, named), owners
    first = [responses[i][j] for i, j, _ in pairs]
    second = [responses[i][k] for i, _, k in pairs]
    return Pairs(asked, first, second, known, named), owners


def win_probabilities(
    responses: Sequence[Sequence[str]], verdicts: Verdicts, *, compares: bool
) -> list[Array]:
    """Return for each prompt how likely each response is better than each other one, from the
    verdicts on its `questions`: shape (n_i, n_i), 0.5 on the diagonal, NaN without a verdict."""
    values = np.array(verdicts.values)
    matrices, start = [], 0
    for count in map(len, responses):
        upper = np.triu_indices(count, 1)
        size = len(upper[0]) if compares else count
        part, start = values[start : start + size], start + size
        if not compares:
            part = sigmoid(part[:, None] - part[None, :])[upper]
        matrix = np.full((count, count), 0.5)
        matrix[upper], matrix.T[upper] = part, 1.0 - part
        matrices.append(matrix)
    return matrices


def sigmoid(value: Array) -> Array:
    """1 / (1 + exp(-value)), without overflow; the values of x and -x add up to 1."""
    return 0.5 * (1.0 + np.tanh(0.5 * value))


def pairs_of(count: int) -> list[tuple[int, int]]:
    """Return all pairs j < k of so many responses."""
    return [(j, k) for j in range(count) for k in range(j + 1, count)]


def entropy(p: Array) -> Array:
    """Return the entropy in nats of a yes with probability p; 0 at 0 and at 1."""
    p = np.asarray(p, dtype=np.float64)
    inside = (p > 0.0) & (p < 1.0)
    safe = np.where(inside, p, 0.5)
    return np.where(inside, -safe * np.log(safe) - (1.0 - safe) * np.log(1.0 - safe), 0.0)


MEASURES: dict[str, Callable[[Array], Array]] = {
    "entropy": lambda p: entropy(p.mean(axis=0)),
    "variance": lambda p: p.var(axis=0),
    "bald": lambda p: np.maximum(0.0, entropy(p.mean(axis=0)) - entropy(p).mean(axis=0)),
}
"""Name -> from probabilities of shape (M, ...) to uncertainties of shape (...)."""


def chosen_measure(name: str, models: int) -> str | None:
    """Return the measure that `auto` stands for with so many models; None without any."""
    if not models:
        return None
    return name if name != "auto" else ("bald" if models > 1 else "entropy")


def win_rates(probabilities: Array, kept: Sequence[int]) -> Array:
    """Return for each kept response its mean probability of beating another kept one, over models:
    shape (len(kept),).

    With one model that scores single responses this orders them as their scores do. Pairs without a
    verdict do not count.
    """
    inner = probabilities[:, kept][:, :, kept].mean(axis=0)
    others = np.maximum(1, np.isfinite(inner).sum(axis=1) - 1)
    return (np.nansum(inner, axis=1) - np.diag(inner)) / others
