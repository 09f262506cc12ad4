"""How often a training is evaluated and saved, and how many prompts it answers, so that what stands
beside the training takes at most a fifth of its time, where the recipe does not say otherwise.

Costs are estimated before the first step, from the recipe, the tokens of the data and the size of
the model alone, so that every process, a resumed run and a second run come to the same cadence.
The speeds below are rough: one core of a server, one recent GPU. Nothing is measured while
training, since a measured time would differ from one run to the next.

Work of about a second is never cut, whatever its share: it would save nobody anything, and the
shortest trial still shows all there is to see. Early stopping, and a best checkpoint that is to be
loaded, need their evaluations and checkpoints: these stay at every tenth of the run.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

SHARE = 0.2
"""Of the training's time, for everything beside it."""

PART = 0.05
"""Of the training's time, at most, for checkpoints and for answers each; evaluations get the
rest."""

TIMES = 10
"""Evaluations and checkpoints in a run, where they cost little enough."""

FREE_S = 1.0
"""Seconds of work that are never saved."""

RESTARTED_S = 60.0
"""A training of less than this is started again rather than resumed, so it may do without a
checkpoint that would cost too much."""

FEWEST_ROWS = 8
"""Held-out rows below which an evaluation says nothing. A training on fifty rows pays for them; a
shorter one spends more than its fifth."""

SHORTEST_ANSWER = 32
"""Tokens below which answers are left out rather than cut further."""

BYTES_A_WEIGHT = 12
"""Of a trained weight in a checkpoint: itself and Adam's two moments, in float32."""


class Speed(NamedTuple):
    """How fast a kind of device works."""

    multiplications: float
    """Multiply-adds a second, of a forward pass over many tokens."""
    weights: float
    """Weights read in a second, by which the writing of a single token is limited."""
    token_s: float
    """Seconds that writing a token takes at least."""
    bytes: float
    """Bytes of a checkpoint written in a second."""


SPEEDS = {
    "cpu": Speed(4e10, 1.3e9, 0.0, 3e8),
    "gpu": Speed(1e14, 7e11, 0.02, 5e8),
}


@dataclass(frozen=True, kw_only=True)
class Work:
    """What there is to do, over all processes together."""

    steps: int
    tokens_a_step: float
    passes: float = 3.0
    """Forward passes over a token that training on it costs: 1, and 2 for the backward pass of a
    model that is trained whole, 1 under adapters."""
    held_out_rows: int = 0
    held_out_tokens: float = 0.0
    held_out_passes: float = 1.0
    responses_a_step: int = 0
    """Responses to the rows of a step, of `response_tokens` at most; 0 where none are sampled. An
    evaluation samples one to each row."""
    repeats: int = 1
    """How often each of them is trained on; it is sampled once."""
    response_tokens: int = 0
    arena_batches: int = 0
    """Batches of prompts that an evaluation lets the model answer for battles with the start, with
    `arena_tokens` each at most."""
    arena_tokens: int = 0
    prompts: int = 0
    max_new_tokens: int = 0
    prompt_tokens: float = 0.0
    """Tokens of a prompt in the mean."""
    weights: float
    """Weights that a token is multiplied with."""
    trained: float
    """Weights that are trained."""
    processes: int = 1
    """While one of them answers or saves, the others wait."""
    device: str = "cpu"


@dataclass(frozen=True)
class Free:
    """What the recipe leaves to us."""

    evaluations: bool = True
    checkpoints: bool = True
    prompts: bool = True
    max_new_tokens: bool = True


@dataclass(frozen=True)
class Cadence:
    """How often; None for what the recipe says itself, or what is not done. Shares are those of the
    training's estimated time, None where nothing is done."""

    eval_steps: int | None
    save_steps: int | None
    """0: no checkpoint at all."""
    held_out_rows: int
    prompts: int
    max_new_tokens: int
    evaluation_share: float | None = None
    checkpoint_share: float | None = None
    answer_share: float | None = None
    training_s: float | None = None
    """The estimated seconds of the training; None in runs of an older version."""


def choose_cadence(work: Work, free: Free) -> Cadence:
    """Return how often to evaluate and save, and what to answer."""
    costs = _Costs(work)
    save_steps, saving = _checkpoints(work, free, costs)
    prompts, max_new_tokens, answering = _answers(work, free, costs)
    left = max(SHARE - saving - answering, PART)
    eval_steps, rows, evaluating = _evaluations(work, free, costs, left)
    return Cadence(
        eval_steps,
        save_steps,
        rows,
        prompts,
        max_new_tokens,
        evaluating if work.held_out_rows and free.evaluations else None,
        saving if free.checkpoints else None,
        answering if work.prompts else None,
        costs.training,
    )


def chosen_rows(total: int, wanted: int, seed: int) -> Sequence[int]:
    """Return the places of the held-out rows that are evaluated, in their order."""
    if wanted >= total:
        return range(total)
    return sorted(random.Random(f"held out {seed}").sample(range(total), wanted))


class _Costs:
    """Seconds that parts of the work take, by estimate."""

    def __init__(self, work: Work) -> None:
        self.work, self.speed = work, SPEEDS[work.device]
        self.training = self.reading(work.steps * work.tokens_a_step * work.passes)
        self.training += work.steps / work.repeats * self.writing(work.responses_a_step)
        self.evaluation = self.reading(work.held_out_tokens * work.held_out_passes)
        if work.responses_a_step:
            self.evaluation += self.writing(work.held_out_rows)
        self.arena = work.processes * work.arena_batches * work.arena_tokens * self.token
        self.checkpoint = work.processes * work.trained * BYTES_A_WEIGHT / self.speed.bytes

    def reading(self, tokens: float) -> float:
        """Seconds of forward passes over tokens that the processes share."""
        return tokens * self.work.weights / self.speed.multiplications

    @property
    def token(self) -> float:
        """Seconds that writing a token takes, of any number of responses that fit into a batch."""
        return max(self.speed.token_s, self.work.weights / self.speed.weights)

    def writing(self, responses: int) -> float:
        """Seconds of sampling responses together, by the processes that share them."""
        tokens = self.work.response_tokens
        return max(tokens * self.token, self.reading(responses * tokens)) if responses else 0.0

    def answers(self, prompts: int, new_tokens: int) -> float:
        """Seconds of answering before and after training."""
        once = self.reading(prompts * self.work.prompt_tokens) + new_tokens * self.token
        return 2 * self.work.processes * once if prompts else 0.0

    def fits(self, seconds: float, share: float) -> bool:
        """Say whether work takes no more than a share of the training, or hardly any time."""
        return seconds <= max(share * self.training, FREE_S)

    def share(self, seconds: float) -> float:
        return seconds / self.training if self.training else 0.0


def _checkpoints(work: Work, free: Free, costs: _Costs) -> tuple[int | None, float]:
    """Steps between checkpoints, and their share; the last step is always one of them."""
    if not free.checkpoints:
        return None, 0.0
    times = min(TIMES, work.steps)
    while times and not costs.fits(times * costs.checkpoint, PART):
        times -= 1
    if not times:  # one at the end, unless it would cost more than all that it could save
        dear = not costs.fits(costs.checkpoint, SHARE)
        if dear and costs.training < RESTARTED_S:
            return 0, 0.0
        times = 1
    every = math.ceil(work.steps / times)
    return every, costs.share(math.ceil(work.steps / every) * costs.checkpoint)


def _answers(work: Work, free: Free, costs: _Costs) -> tuple[int, int, float]:
    """Prompts, tokens of an answer, and their share: shorter answers first, then fewer prompts,
    then none."""
    longest = work.max_new_tokens
    lengths = [longest]
    while free.max_new_tokens and lengths[-1] // 2 >= SHORTEST_ANSWER:
        lengths.append(lengths[-1] // 2)
    numbers = range(work.prompts, 0, -1) if free.prompts else [work.prompts]
    tried = [(number, length) for number in numbers for length in lengths]
    if not free.prompts and not free.max_new_tokens:
        return work.prompts, longest, costs.share(costs.answers(work.prompts, longest))
    for number, length in tried:
        if costs.fits(seconds := costs.answers(number, length), PART):
            return number, length, costs.share(seconds)
    if free.prompts:
        return 0, longest, 0.0
    return work.prompts, lengths[-1], costs.share(costs.answers(work.prompts, lengths[-1]))


def _evaluations(
    work: Work, free: Free, costs: _Costs, share: float
) -> tuple[int | None, int, float]:
    """Steps between evaluations, rows of each, and their share: fewer evaluations first, then fewer
    rows; the last step is always one of them."""
    rows = work.held_out_rows
    if not rows or not free.evaluations:
        return None, rows, 0.0
    once = costs.evaluation + costs.arena
    times = min(TIMES, work.steps)
    while times > 1 and not costs.fits(times * once, share):
        times -= 1
    every = math.ceil(work.steps / times)
    number = math.ceil(work.steps / every)
    if not costs.fits(number * once, share):
        left = max(share * costs.training, FREE_S) - number * costs.arena
        allowed = max(0.0, left) / costs.evaluation
        rows = max(min(FEWEST_ROWS, rows), math.floor(rows * allowed))
    spent = number * (costs.evaluation * rows / work.held_out_rows + costs.arena)
    return every, rows, costs.share(spent)
