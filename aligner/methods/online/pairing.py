"""From the scored responses to a prompt to pairs of them. Pure, and imports no torch.

What happens, in this order, each loss counted under its name:

1. responses without a score, or with NaN, are left out (`two_models` needs none);
2. of responses with the same text the first stays;
3. one that ended at the limit is never chosen, and with `truncated: drop` not rejected either;
4. the length penalty is taken off the scores;
5. the rule picks, by these scores, and by these alone: what is chosen is what scored higher;
6. pairs whose better response ended at the limit are dropped, then ties, then those with too small
   a margin;
7. pairs whose lengths differ too much are dropped;
8. of what is left the pairs with the largest margin stay, `max_pairs` of them;
9. with `online.future` the best response of the round's temporary policy is chosen in place of the
   one that was, where it scores above it (`guided`). No pair is lost by that.

Drawn is by the prompt's own random numbers, so that no other prompt matters.

Where it differs: the code of arXiv 2405.07863 orients a pair by the raw reward after it chose by
the penalized one, drops ties without a count, and takes the first response for a random one.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from aligner.methods.online.recipe import Pairing

POLICY, START, STRONGER, WEAKER = "policy", "start", "stronger", "weaker"
FUTURE = "future"
"""Who wrote a response."""

NO_SCORE = "responses without a score"
DUPLICATES = "responses that came twice"
EMPTY = "responses without a text"
TRUNCATED = "responses that ended at the limit"
TOO_FEW = "prompts with fewer than two different responses"
NONE_LEFT = "prompts without a response that can be used"
NONE_FINISHED = "prompts without a response that ended by itself"
NONE_BELOW = "prompts whose best finished response scores lowest"
ALONE = "responses that the other model has no partner for"
TIES = "ties"
SMALL_MARGIN = "pairs with too small a margin"
CUT_CHOSEN = "pairs whose better response ended at the limit"
LENGTHS = "pairs with too different lengths"
SURPLUS = "pairs beyond `max_pairs`"


@dataclass(frozen=True, slots=True)
class Scored:
    """A response with its score; `token_ids` with the stop id, where it has one."""

    text: str
    token_ids: Sequence[int]
    is_finished: bool
    score: float | None
    source: str = POLICY
    sample: int = 0


class Pair(NamedTuple):
    """A better and a worse response; `margin` is between their scores after the penalty, 0 where
    a model and not a score decides."""

    chosen: Scored
    rejected: Scored
    margin: float


def pairs_of(
    responses: Sequence[Scored], settings: Pairing, draw: random.Random
) -> tuple[list[Pair], Counter[str]]:
    """Return the pairs of a prompt, and what was lost on the way: name -> how many."""
    lost: Counter[str] = Counter()
    kept = _usable(responses, settings, lost)
    if settings.rule == "two_models":
        found = _of_two_models(kept, lost)
    elif len(kept) < 2:
        lost[TOO_FEW] += 1
        return [], lost
    elif not any(one.is_finished and one.source == POLICY for one in kept):
        lost[NONE_FINISHED] += 1
        return [], lost
    else:
        picked = _picked(kept, settings, draw, lost)
        found = [pair for pair in picked if _counts(pair, settings, lost)]
    found = [pair for pair in found if _are_alike(pair, settings, lost)]
    found.sort(key=lambda pair: -pair.margin)  # stable: equal ones in the order of the samples
    most = len(found) if settings.max_pairs is None else settings.max_pairs
    lost[SURPLUS] += len(found) - len(found[:most])
    return found[:most], +lost


def best_of(responses: Sequence[Scored], settings: Pairing) -> tuple[Scored | None, Counter[str]]:
    """Return the best finished response of a prompt, for next-token training, and what was lost."""
    lost: Counter[str] = Counter()
    kept = _usable(responses, settings, lost)
    finished = [one for one in kept if one.is_finished]
    said = [one for one in finished if one.text.strip()]
    lost[EMPTY] += len(finished) - len(said)
    if not said:
        lost[NONE_LEFT if finished or not kept else NONE_FINISHED] += 1
        return None, +lost
    return max(said, key=lambda one: worth(one, settings)), +lost


def worth(response: Scored, settings: Pairing) -> float:
    """Return the score that responses are chosen by: less the penalty for length."""
    assert response.score is not None, "those without one are left out"
    is_tokens = settings.length_unit == "tokens"
    length = len(response.token_ids) if is_tokens else len(response.text)
    return response.score - settings.length_penalty * length


def _usable(responses: Sequence[Scored], settings: Pairing, lost: Counter[str]) -> list[Scored]:
    found: list[Scored] = []
    seen: set[tuple[object, ...]] = set()
    for one in responses:
        # Two models may say the same: then there is no pair, which is counted as a tie.
        key = (one.source if settings.rule == "two_models" else "", one.text, one.is_finished)
        if settings.rule != "two_models" and (one.score is None or math.isnan(one.score)):
            lost[NO_SCORE] += 1
        elif key in seen:
            lost[DUPLICATES] += 1
        elif settings.truncated == "drop" and not one.is_finished:
            lost[TRUNCATED] += 1
        else:
            seen.add(key)
            found.append(one)
    return found


def _picked(
    kept: Sequence[Scored], settings: Pairing, draw: random.Random, lost: Counter[str]
) -> list[Pair]:
    """What the rule picks; of a pair the first scores at least as high."""
    ranked = sorted(kept, key=lambda one: (-worth(one, settings), not one.is_finished))
    places = range(len(ranked))
    finished = [at for at in places if ranked[at].is_finished and ranked[at].source == POLICY]
    best, last = finished[0], places[-1]
    if settings.rule == "random":
        picked = [draw.sample(places, 2)]
    elif settings.rule == "max_random":
        picked = [[best, draw.choice([at for at in places if at != best])]]
    elif settings.rule == "top_bottom":
        tops, bottoms = finished[: settings.top], places[-settings.top :]
        picked = [[top, bottom] for top, bottom in product(tops, bottoms) if top < bottom]
    else:  # max_min; anchored: the start's are among them
        picked = [[best, last]] if best != last else []
    lost[NONE_BELOW] += not picked
    ordered = map(sorted, picked)
    return [_pair(ranked[first], ranked[second], settings) for first, second in ordered]


def _pair(better: Scored, worse: Scored, settings: Pairing) -> Pair:
    return Pair(better, worse, worth(better, settings) - worth(worse, settings))


def _counts(pair: Pair, settings: Pairing, lost: Counter[str]) -> bool:
    why = ""
    if not pair.chosen.is_finished:
        why = CUT_CHOSEN
    elif pair.margin <= 0.0:
        why = TIES
    elif pair.margin <= settings.min_margin:
        why = SMALL_MARGIN
    lost[why] += bool(why)
    return not why


def _are_alike(pair: Pair, settings: Pairing, lost: Counter[str]) -> bool:
    lengths = [len(one.token_ids) for one in pair[:2]]
    ratio = max(lengths) / max(1, min(lengths))
    if settings.max_length_ratio is None or ratio <= settings.max_length_ratio:
        return True
    lost[LENGTHS] += 1
    return False


def _of_two_models(kept: Sequence[Scored], lost: Counter[str]) -> list[Pair]:
    """Pair the stronger model's responses with the weaker one's, the first with the first."""
    found = []
    stronger = [one for one in kept if one.source == STRONGER]
    weaker = [one for one in kept if one.source == WEAKER]
    lost[ALONE] += abs(len(stronger) - len(weaker))
    for better, worse in zip(stronger, weaker):
        if better.text == worse.text:
            lost[TIES] += 1
        elif not better.is_finished:
            lost[CUT_CHOSEN] += 1
        else:
            found.append(Pair(better, worse, 0.0))
    return found


def guided(pair: Pair, futures: Sequence[Scored], settings: Pairing) -> Pair:
    """Return a pair with the best of the `futures` chosen, what a temporary policy answered, where
    it ended by itself and scores above what was chosen; else the pair as it is. The rejected
    response stays (future-guided chosen, arXiv 2508.06026)."""
    best = pair
    for one in futures:
        if one.score is None or not one.is_finished or one.text == pair.rejected.text:
            continue
        made = _pair(one, pair.rejected, settings)
        if made.margin > best.margin and _are_alike(made, settings, Counter()):
            best = made
    return best
