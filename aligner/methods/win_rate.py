"""`eval.arena`: at every evaluation, how often the trained model beats the one that training
started from, on held-out prompts.

The start answers once, greedily, and its answers are kept; the trained model answers at each
evaluation, and a scorer says which answer is better. Identical answers are a tie and an empty one
loses, without asking. The interval is a bootstrap over prompts, so for a share of 0 or 1 it has no
width. A prompt without a verdict counts for nothing and is counted. One process answers and judges
while the others wait.

The answers and the verdicts stay in `arena/` of the run, in the forms of `aligner.arena`: people
can vote on them, and `aligner arena rate` fits all evaluations together. Nothing here leaves a
trace in the training's random numbers.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import starmap
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list

from aligner.arena.battle.prompts import digest_of
from aligner.arena.battle.sheets import Answer
from aligner.arena.records import Battle, append, style_of
from aligner.config.recipe import EvalArena
from aligner.data.reasoning import without_reasoning
from aligner.data.rows import Messages
from aligner.errors import RecipeError
from aligner.evaluation.bootstrap import intervals, shares
from aligner.events import StageProgress, tell
from aligner.launch.world import world
from aligner.methods.job import Job
from aligner.reward_models.base import Scorer
from aligner.reward_models.batching import Answers, Pairs, ask, chunks, refuse_silent
from aligner.reward_models.catalogue import load_scorer, read_spec
from aligner.runs.files import json_line, write_atomically
from aligner.training.trainer import OrderedTrainer

FOLDER = "arena"
START = "start"
BATTLES = "battles.jsonl"
RESAMPLES = 1000

Question = tuple[str | Messages, str | None]
Measure = Callable[[OrderedTrainer], dict[str, float]]


def against_start(job: Job, model: Any) -> Measure | None:
    """Let the start answer, unless it has, and return what measures against it; None where the
    recipe asks for no battles.

    Raises: RecipeError for a judge that cannot be loaded, or a model that no process holds whole.
    """
    arena = job.recipe.eval.arena
    if arena is None:
        return None
    if job.is_sharded:
        raise RecipeError(
            f"eval.arena answers with a whole model, and `{job.recipe.launch.strategy}` splits it",
            "use ddp, zero1 or zero2, or drop eval.arena",
        )
    if world()[0] != 0:
        return _Follower()
    if arena.judge not in job.scorers:
        job.announce_walls([read_spec(arena.judge)])
    judge = job.scorers.get(arena.judge) or load_scorer(arena.judge)
    found = WinRate(job, arena, judge, _start(job, arena, model))
    found.try_references()
    return found


@dataclass(frozen=True)
class WinRate:
    """Measures a model against the answers of the start."""

    job: Job
    arena: EvalArena
    judge: Scorer
    start: Sequence[Answer]

    def __call__(self, trainer: OrderedTrainer) -> dict[str, float]:
        """Return the win rate, the ends of its interval, the mean length of the answers in
        characters, and how many prompts have no verdict.

        Raises: DataError where hardly a prompt has one; EndpointError where a server gave up.
        """
        step = trainer.state.global_step
        with undisturbed():
            model = trainer.accelerator.unwrap_model(trainer.model)
            answers = _answers(self.job, self.arena, model, f"step-{step}")
            found = self._measured(answers)
        broadcast_object_list([found])
        return found

    def _measured(self, answers: Sequence[Answer]) -> dict[str, float]:
        prompts = self.job.arena_prompts
        verdicts = self._verdicts(answers)
        judged = [one for one in zip(prompts, answers, self.start, verdicts) if one[3] is not None]
        wins = np.array([win for *_, win in judged], float)
        _keep(self.job, answers)
        append(self.job.run.dir / FOLDER / BATTLES, starmap(self._battle, judged))
        share = shares(wins, np.zeros(len(wins), np.int64), 1)
        ends = intervals(share, np.arange(len(wins)), resamples=RESAMPLES, seed=self.seed)
        return {
            "arena_win_rate": float(wins.mean()),
            "arena_win_rate_low": float(ends[0, 0]),
            "arena_win_rate_high": float(ends[1, 0]),
            "arena_answer_length": fmean(len(answer.text) for answer in answers),
            "arena_unjudged": float(len(prompts) - len(judged)),
        }

    def try_references(self) -> None:
        """Let a verifier judge once, so that a prompt without its right answer is said before
        training. Raises: DataError."""
        if self.arena.judge.startswith("verifier:"):
            prompts, references = zip(*self.job.arena_prompts)
            texts = [answer.text for answer in self.start]
            origins = [_place(number) for number in range(len(texts))]
            answers = Answers(prompts, texts, references, origins)
            ask(lambda: self.judge, answers, chunks(len(texts), None))

    @property
    def seed(self) -> int:
        """Of the resamples."""
        return self.job.recipe.seed

    def _verdicts(self, answers: Sequence[Answer]) -> list[float | None]:
        """1 for each prompt that is won, 0.5 for a tie, 0, or None without a verdict."""
        wins = [_without_asking(ours, theirs) for ours, theirs in zip(answers, self.start)]
        open_ = [place for place, win in enumerate(wins) if win is None]
        pairs = self._pairs(open_, [answers[place].text for place in open_])
        said = ask(lambda: self.judge, pairs, chunks(len(open_), None))
        for place, verdict in zip(open_, said):
            if verdict.value is not None:
                wins[place] = 0.5 + 0.5 * float(np.sign(verdict.value - 0.5))
        if said.silent:
            self._say_silent(pairs, said.silent, len(wins))
        return wins

    def _pairs(self, places: Sequence[int], texts: Sequence[str]) -> Pairs:
        """Texts beside what the start answered to the same prompts."""
        questions = [self.job.arena_prompts[place] for place in places]
        return Pairs(
            [prompt for prompt, _ in questions],
            texts,
            [self.start[place].text for place in places],
            [expected for _, expected in questions],
            [_place(place) for place in places],
        )

    def _say_silent(self, pairs: Pairs, silent: Mapping[int, str], count: int) -> None:
        """Warn of prompts without a verdict, and stop where hardly any has one."""
        if count - len(silent) < 2:
            rest = "the last checkpoint is from before"
            hint = "look at the judge's replies; resuming asks again"
            refuse_silent(self.judge.name, pairs, silent, len(pairs.prompts), rest, hint)
        why = next(iter(silent.values()))
        self.job.warn(
            f"the judge {self.judge.name} gave no verdict on some prompts of eval.arena, which "
            f"count for nothing (arena_unjudged): {why}"
        )

    def _battle(self, asked: Question, ours: Answer, theirs: Answer, win: float) -> Battle:
        """A verdict for the log, in which names stand in their order."""
        name = digest_of(asked[0])
        key = (name, ours.model, ours.sha, theirs.sha, self.judge.name, self.judge.fingerprint())
        return Battle(
            battle_id=sha256("\0".join(key).encode()).hexdigest()[:32],
            prompt_id=name,
            model_a=theirs.model,
            model_b=ours.model,
            judge_id=self.judge.name,
            winner=("model_a", "tie", "model_b")[round(2 * win)],
            style_a=style_of(theirs.text),
            style_b=style_of(ours.text),
        )


class _Follower:
    """What a process calls that neither answers nor judges."""

    def __call__(self, trainer: OrderedTrainer) -> dict[str, float]:
        """Return what the first process measured."""
        found: list[dict[str, float]] = [{}]
        broadcast_object_list(found)
        return found[0]


def _place(number: int) -> str:
    """What errors call a prompt."""
    return f"prompt {number + 1} of the arena"


def _without_asking(ours: Answer, theirs: Answer) -> float | None:
    """The win where no judge is needed."""
    texts = ours.text.strip(), theirs.text.strip()
    if texts[0] == texts[1]:
        return 0.5
    return float(bool(texts[0])) if not all(texts) else None


def _start(job: Job, arena: EvalArena, model: Any) -> list[Answer]:
    """The answers of the start, kept from an earlier attempt at this run or written now."""
    kept = _kept(job)
    if kept is not None:
        return kept
    with undisturbed():
        answers = _answers(job, arena, model, START)
    _keep(job, answers)
    return answers


def _answers(job: Job, arena: EvalArena, model: Any, name: str) -> list[Answer]:
    prompts = [prompt for prompt, _ in job.arena_prompts]

    def count(done: int, total: int) -> None:
        tell(job.on_event, StageProgress(f"arena: answers of {name}", done, total))

    found = job.greedy(
        model, prompts, arena.max_new_tokens, batch_size=arena.batch_size, on_progress=count
    )
    return [Answer(name, _shown(one.text), one.finish_reason == "length") for one in found]


def _shown(text: str) -> str:
    """An answer without what was thought before it."""
    said = without_reasoning(text)
    return text if said == text.strip() else said


def _keep(job: Job, answers: Sequence[Answer]) -> None:
    """Write answers as rows that `aligner arena` reads."""
    lines = []
    for (prompt, _), answer in zip(job.arena_prompts, answers, strict=True):
        row = {"prompt_id": digest_of(prompt), "prompt": prompt, "model": answer.model}
        lines.append(json_line({**row, "answer": answer.text, "is_cut": answer.is_cut}))
    path = _file(job, answers[0].model)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, "".join(lines))


def _kept(job: Job) -> list[Answer] | None:
    """The answers of the start that were kept; None where there are none, or not these."""
    path = _file(job, START)
    if not path.is_file():
        return None
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if [row["prompt_id"] for row in rows] != [digest_of(asked) for asked, _ in job.arena_prompts]:
        return None
    return [Answer(START, row["answer"], row["is_cut"]) for row in rows]


def _file(job: Job, name: str) -> Path:
    return job.run.dir / FOLDER / f"{name}.jsonl"


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let every random number after the block be what it would be without it."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])
