"""What report and card show of a run of `aligner online`, read from its stages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from aligner.generation.shards import RESPONSES, responses_in
from aligner.methods.online.evaluation import METRICS
from aligner.methods.online.measures import best_round
from aligner.methods.online.pair_stage import BEST, PAIRS
from aligner.methods.online.scoring import journals_of, scores_in
from aligner.methods.online.status import AHEAD, reached, records_of, round_folder
from aligner.runs.files import parse_json, read_json
from aligner.runs.recipes import recipe_of
from aligner.runs.stages import RECORD, Stage

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Round:
    """A round of a run, 0 being the start. `stages`: what each stage said of itself, None for one
    that is not finished; `seconds`: those of the finished ones together."""

    number: int
    folder: Path
    stages: Mapping[str, Facts | None]
    seconds: float

    @property
    def measured(self) -> Facts:
        """What its evaluation found, nothing where it is not finished."""
        return self.stages["eval"] or {}

    def facts(self, stage: str) -> Facts:
        """What a stage said of itself, nothing where it is not finished."""
        return self.stages.get(stage) or {}

    @property
    def pairing(self) -> str:
        """The stage whose pairs the round trains on, once it is finished."""
        return AHEAD[-1] if self.facts(AHEAD[-1]) else "pair"

    def samples(self) -> list[dict[str, Any]]:
        """The first responses to held-out prompts."""
        if not self.measured or not (self.folder / "eval" / METRICS).exists():
            return []
        found: list[dict[str, Any]] = parse_json(
            self.folder / "eval" / METRICS, "resume the run: the stage is made again"
        )["samples"]
        return found

    def pairs(self, count: int) -> list[dict[str, Any]]:
        """The first pairs, or best responses, that it trained on."""
        found = []
        for name in (PAIRS, BEST):
            file = self.folder / self.pairing / name
            if self.stages.get(self.pairing) is not None and file.exists():
                with open(file, encoding="utf-8") as lines:
                    found += [json.loads(line) for line in islice(lines, count)]
        return found


@dataclass(frozen=True)
class RunOfRounds:
    """A run: its recipe, and its rounds as far as they were started."""

    run_dir: Path
    recipe: Facts
    rounds: list[Round]

    @property
    def online(self) -> Facts:
        """The section of the method."""
        section: Facts = self.recipe["online"]
        return section

    @property
    def judge(self) -> str:
        """What the best round is chosen by."""
        return "reward" if self.online["evaluation"]["gold"] is None else "gold"

    @property
    def measured(self) -> list[Round]:
        """The start and the rounds that were measured, up to the first one that was not."""
        found = []
        for one in self.rounds:
            if not one.measured:
                break
            found.append(one)
        return found

    @property
    def best(self) -> int:
        """The best round so far; 0 where none was measured."""
        facts = [one.measured for one in self.measured]
        return best_round(facts) if len(facts) > 1 else 0

    @property
    def stopped(self) -> str:
        """Why the rounds ended early, if they did."""
        return str((read_json(self.run_dir, "rounds.json") or {}).get("stopped", ""))

    def lengths_and_rewards(self, number: int, most: int) -> list[tuple[float, float]]:
        """Tokens and reward of held-out responses of a round, so many at most."""
        models = list(self.online["reward_models"])
        folder = self.rounds[number].folder / "eval"
        if not models or not self.rounds[number].measured:
            return []
        key = parse_json(folder / RECORD, "resume the run")["key"]
        stage = Stage("eval", folder, key)
        responses, scores = stage.journal(RESPONSES), journals_of(stage, models)
        found: list[tuple[float, float]] = []
        part = 0
        while part in responses and len(found) < most:
            of_prompts = scores_in(scores, self.online["reward_weights"], part)
            for row, values in zip(responses_in(responses, part), of_prompts, strict=True):
                for one, value in zip(row, values, strict=True):
                    found += [] if value is None else [(float(len(one.token_ids)), value)]
            part += 1
        return found[:most]


def read_rounds(run_dir: Path) -> RunOfRounds:
    """Read a run.

    Raises: UsageError where this is no run of `aligner online`.
    """
    recipe = recipe_of(run_dir, "online")
    rounds = []
    for number in reached(run_dir, recipe):
        records = records_of(run_dir, recipe, number)
        stages = {name: record and record["facts"] for name, record in records.items()}
        seconds = sum(record["seconds"] for record in records.values() if record is not None)
        rounds.append(Round(number, round_folder(run_dir, number), stages, seconds))
    return RunOfRounds(run_dir, recipe, rounds)
