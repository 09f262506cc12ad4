"""`select`: from prompts, responses and win probabilities to the pairs worth a label. Plain lists
in, plain records out; no files.

For every prompt one pair of its responses is chosen, and then some of the prompts. The pair of a
prompt is

    max_min         the best and the worst response, by mean probability of beating the others: the
                    pair that on-policy preference
                    training would use, so that what is labelled is what the proxy will
                    have to judge
    most_uncertain  the one that the models are least sure of: more information, and more ties
    random          any

Responses that differ in outer white space alone are one response. Without a pair: a prompt that is
empty, came before, has fewer than two different responses that say something, or whose pairs are
all labelled or without a verdict of the models. Each of these is counted and none is an error.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aligner.acquisition.ngrams import ngram_vectors, text_of
from aligner.acquisition.picks import (
    OnPick,
    at_random,
    draw,
    k_center,
    k_means_seeding,
    most_uncertain,
    shortlist_size,
)
from aligner.acquisition.win_probabilities import MEASURES, chosen_measure, pairs_of, win_rates
from aligner.data.rows import as_turns
from aligner.reward_models.base import Prompt

Array = np.ndarray
Triple = tuple[Prompt, str, str]
"""A prompt and two responses to it."""

Embed = Callable[[Sequence[Triple]], Array]
"""Pairs -> unit vectors, shape (N, D)."""


@dataclass(frozen=True)
class Pair:
    """A pair that may be labelled. `a` and `b` stand in a random order, so that the position says
    nothing."""

    id: str
    """The same for the same prompt and responses in any run and order."""
    row: int
    """Index of the prompt among those that were given."""
    prompt: Prompt
    a: str
    b: str
    probability: float | None = None
    """That `a` is better, mean over the models; None without a model."""
    uncertainty: float | None = None

    @property
    def triple(self) -> Triple:
        """Prompt and responses alone."""
        return self.prompt, self.a, self.b


@dataclass
class Selection:
    """What was picked, in the order of picking; the pairs of all other prompts, in theirs; and what
    became of the rest."""

    picked: list[Pair] = field(default_factory=list)
    rest: list[Pair] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """Prompts and responses by what kept them out."""
    pair: str = ""
    """How pairs were chosen, once `auto` is settled."""
    measure: str | None = None
    """The measure of uncertainty, once `auto` is settled."""


def select(
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[str]],
    budget: int,
    *,
    win_probabilities: Sequence[Array] | None = None,
    strategy: str = "both",
    pair: str = "auto",
    uncertainty: str = "auto",
    pool_factor: float = 4.0,
    spread: str = "k_center",
    labelled: Sequence[Triple] = (),
    embed: Embed = ngram_vectors,
    seed: int = 0,
    on_pick: OnPick | None = None,
) -> Selection:
    """Choose at most `budget` pairs to be labelled, one of a prompt.

    Shapes: N prompts (texts, or lists of turns) and N lists of responses, of any lengths n_i.
    `win_probabilities`: what `judge` returns, N arrays of shape (M, n_i, n_i) with the
    probabilities of M models that response j is better than response k, NaN for pairs without a
    verdict, which are never picked. Without it only `random` and `diversity` can be asked for, and
    pairs are drawn at random. `labelled`: pairs with a label, which are never picked and which
    count as picked where picks are spread. `embed` makes vectors of pairs, (N, D), for the same.

    With a budget of at least as many pairs as there are, all are picked, in the order of the
    strategy.
    """
    assert len(prompts) == len(responses), (
        f"{len(prompts)} prompts, {len(responses)} lists of responses"
    )
    assert win_probabilities is None or len(win_probabilities) == len(prompts), (
        f"{len(prompts)} prompts, {len(win_probabilities or [])} arrays of win probabilities"
    )
    assert win_probabilities is not None or strategy in ("random", "diversity"), (
        f"{strategy} needs win probabilities"
    )
    models = len(win_probabilities[0]) if win_probabilities else 0
    selection = Selection(
        measure=chosen_measure(uncertainty, models),
        pair=("max_min" if models else "random") if pair == "auto" else pair,
    )
    known = {pair_id(*triple) for triple in labelled}
    pairs = _pairs(selection, prompts, responses, win_probabilities, known, seed)
    order = _order(pairs, budget, strategy, pool_factor, spread, [*labelled], embed, seed, on_pick)[
        :budget
    ]
    taken = set(order)
    selection.picked = [pairs[index] for index in order]
    selection.rest = [pairs[index] for index in range(len(pairs)) if index not in taken]
    return selection


def prompt_key(prompt: Prompt) -> str:
    """Return what two prompts have in common that ask the same; a plain one equals the one turn of
    a user."""
    turns = as_turns(prompt.strip() if isinstance(prompt, str) else list(prompt), "user")
    return json.dumps(turns, sort_keys=True, ensure_ascii=True)


def pair_id(prompt: Prompt, a: str, b: str) -> str:
    """Return sixteen letters that stand for a prompt and two responses, in whatever order."""
    text = json.dumps([prompt_key(prompt), *sorted((a.strip(), b.strip()))], ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- the pair of a prompt -------------------------------------------------------------------------


def _pairs(
    selection: Selection,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[str]],
    win_probabilities: Sequence[Array] | None,
    known: set[str],
    seed: int,
) -> list[Pair]:
    """Return the pair of each prompt that has one, and count the prompts that have none."""
    seen: set[str] = set()
    pairs = []
    for row, (prompt, completions) in enumerate(zip(prompts, responses)):
        if not text_of(prompt).strip():
            selection.counts["empty prompts"] += 1
            continue
        key = prompt_key(prompt)
        if key in seen:
            selection.counts["prompts that came before"] += 1
            continue
        seen.add(key)
        kept = different(completions, selection.counts)
        if len(kept) < 2:
            selection.counts["prompts with fewer than two different responses"] += 1
            continue
        probabilities = (
            None
            if win_probabilities is None
            else np.asarray(win_probabilities[row], dtype=np.float64)
        )
        pair = _pair_of(row, prompt, completions, kept, probabilities, selection, known, seed)
        if pair is not None:
            pairs.append(pair)
    return pairs


def different(completions: Sequence[str], counts: Counter[str]) -> list[int]:
    """Return the indices of the responses that say something and something new."""
    first_seen: dict[str, int] = {}
    for index, completion in enumerate(completions):
        text = completion.strip()
        if not text:
            counts["empty responses"] += 1
        elif text in first_seen:
            counts["responses given twice"] += 1
        else:
            first_seen[text] = index
    return list(first_seen.values())


def _pair_of(
    row: int,
    prompt: Prompt,
    completions: Sequence[str],
    kept: list[int],
    probabilities: Array | None,
    selection: Selection,
    known: set[str],
    seed: int,
) -> Pair | None:
    """Return the pair of a prompt that the rule likes best among those with a verdict and no label,
    or count it; equals by chance."""
    uncertainties = (
        None
        if probabilities is None or selection.measure is None
        else MEASURES[selection.measure](probabilities)
    )
    options = _with_verdict(
        _liked(selection.pair, kept, probabilities, uncertainties), probabilities, selection.counts
    )
    if not options:
        selection.counts["prompts without a verdict on any pair"] += 1
        return None
    if known:
        options = [
            option
            for option in options
            if pair_id(prompt, completions[option[1]], completions[option[2]]) not in known
        ]
    if not options:
        selection.counts["prompts whose pairs are labelled already"] += 1
        return None
    most = max(liking for liking, _, _ in options)
    equals = [
        (pair_id(prompt, completions[j], completions[k]), j, k)
        for liking, j, k in options
        if liking == most
    ]
    name, j, k = max(equals, key=lambda option: draw(seed, "pair", option[0]))
    if draw(seed, "order", name) < 0.5:
        j, k = k, j
    probability = None if probabilities is None else float(probabilities[:, j, k].mean())
    return Pair(
        name,
        row,
        prompt,
        completions[j],
        completions[k],
        probability,
        None if uncertainties is None else float(uncertainties[j, k]),
    )


def _with_verdict(
    options: list[tuple[float, int, int]], probabilities: Array | None, counts: Counter[str]
) -> list[tuple[float, int, int]]:
    """Return the pairs that every model has a verdict on."""
    if probabilities is None or np.isfinite(probabilities).all():
        return options
    kept = [(liking, j, k) for liking, j, k in options if np.isfinite(probabilities[:, j, k]).all()]
    if len(kept) < len(options):
        counts["pairs without a verdict"] += len(options) - len(kept)
    return kept


def _liked(
    rule: str, kept: list[int], probabilities: Array | None, uncertainties: Array | None
) -> list[tuple[float, int, int]]:
    """Return every pair of the kept responses, with how much the rule likes it."""
    pairs = [(kept[first], kept[second]) for first, second in pairs_of(len(kept))]
    if rule == "max_min":
        assert probabilities is not None, "max_min needs win probabilities"
        rates = dict(zip(kept, win_rates(probabilities, kept).tolist()))
        return [(abs(rates[j] - rates[k]), j, k) for j, k in pairs]
    if rule == "most_uncertain":
        assert uncertainties is not None, "most_uncertain needs win probabilities"
        return [(float(uncertainties[j, k]), j, k) for j, k in pairs]
    return [(0.0, j, k) for j, k in pairs]


# --- the prompts ----------------------------------------------------------------------------------


def _order(
    pairs: Sequence[Pair],
    budget: int,
    strategy: str,
    pool_factor: float,
    spread: str,
    labelled: Sequence[Triple],
    embed: Embed,
    seed: int,
    on_pick: OnPick | None,
) -> list[int]:
    """Return the indices of the pairs to be picked, the first pick first."""
    ids = [pair.id for pair in pairs]
    if strategy == "random":
        return at_random(ids, seed)
    if strategy == "diversity":
        candidates = first = at_random(
            ids, seed
        )  # an order that does not come from that of the rows
    else:
        first = most_uncertain(ids, [pair.uncertainty or 0.0 for pair in pairs], seed)
        if strategy == "uncertainty":
            return first
        candidates = first[: shortlist_size(budget, pool_factor, len(pairs))]
    if not candidates:
        return []
    vectors = embed([*(pairs[index].triple for index in candidates), *labelled])
    own, centres = vectors[: len(candidates)], vectors[len(candidates) :]
    start = candidates.index(first[0])
    if spread == "k_means":
        picks = k_means_seeding(own, budget, centres, start, seed, on_pick)
    else:
        picks = k_center(own, budget, centres, start, on_pick)
    return [candidates[index] for index in picks]


def as_row(pair: Pair) -> dict[str, Any]:
    """What every file says of a pair."""
    row = {"id": pair.id, "prompt": pair.prompt, "a": pair.a, "b": pair.b}
    return row if pair.uncertainty is None else {**row, "uncertainty": round(pair.uncertainty, 6)}
