"""The battles of the flywheel: who answers, who meets whom, and what was judged.

    games.jsonl               every game of the run
    replies.sqlite            every reply and score that was paid for
    PLACE/answers/NAME/       the answers of a contestant to the prompts of a battle, a stage
    PLACE/battle/             the merged battles, a stage
    PLACE/again/, PLACE/noise/    the target's second sample, and its battles against it

Battles are known by their contents, so a file's answers, and opponents that meet on the same
prompts again, are judged once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from aligner.arena.battle.answer_files import AnswerFile, read_answer_file, refuse_missing
from aligner.arena.battle.contestants import Answered, Answering, answers_of
from aligner.arena.battle.log import GameLog
from aligner.arena.battle.merged import battle_of
from aligner.arena.battle.plan import matches, pairs_of
from aligner.arena.battle.play import Table, play
from aligner.arena.battle.recipe import Arena
from aligner.arena.battle.sheets import Answer, BattleJudge, Item
from aligner.arena.battle.spend import Spend
from aligner.arena.records import Battle, Game, read_battles
from aligner.arena.selection.contests import Contest, contests_of
from aligner.config.battles import Contestant
from aligner.events import OnEvent, StageStarted, Warned, tell
from aligner.methods.flywheel.recipe import FlywheelRecipe
from aligner.runs.files import json_line, write_parts_atomically
from aligner.runs.stages import Stage, Stages

BATTLES = "battles.jsonl"
AGAIN = " (again)"
"""Behind the name of the target: its second sample."""


@dataclass(frozen=True)
class Fought:
    """What a battle showed. `digest`: of its verdicts; `answered`: of everybody's answers; `revs`:
    what tells who answered from others of the same name."""

    items: Sequence[Item]
    answers: Mapping[str, Mapping[str, Answer]]
    battles: Sequence[Battle]
    digest: str
    answered: Mapping[str, str]
    revs: Mapping[str, str]

    def contests(self, difficulties: Mapping[str, float]) -> list[Contest]:
        """Return it prompt by prompt."""
        return contests_of(self.items, self.answers, self.battles, difficulties)


@dataclass
class Battlefield:
    """Where a run's contestants meet. `files`: the answers of opponents that are files."""

    recipe: FlywheelRecipe
    stages: Stages
    judges: Sequence[BattleJudge]
    log: GameLog
    spend: Spend
    cache: Path
    on_event: OnEvent | None = None

    def fight(
        self,
        place: str,
        target: Contestant,
        opponents: Sequence[Contestant],
        items: Sequence[Item],
        *,
        only_target: bool,
        about: Game,
        answered: str | None = None,
    ) -> Fought:
        """Have the target and its opponents answer prompts and meet; `only_target`: opponents do
        not meet each other. `answered`: the place where opponents answered these prompts, if that
        is another one.

        Raises: EndpointError where a server cannot be asked any more, with what was judged kept.
        """
        seed = self.recipe.seed
        found = {
            **self._answers(place, [target], items, seed),
            **self._answers(answered or place, opponents, items, seed),
        }
        pairs = pairs_of(found, target.name if only_target else None)
        return self._played(f"{place}/battle", items, found, pairs, about)

    def fight_itself(
        self, place: str, target: Contestant, fought: Fought, count: int, about: Game
    ) -> Fought:
        """Have the target meet a second sample of itself on the first prompts of a battle."""
        items = fought.items[:count]
        again = target.model_copy(update={"name": target.name + AGAIN})
        name = target.name
        known = {item.id: fought.answers[name][item.id] for item in items}
        first = Answered(known, {}, fought.answered[name], fought.revs[name])
        second = self._answers(f"{place}/again", [again], items, self.recipe.seed + 1)
        found = {name: first, **second}
        return self._played(f"{place}/noise", items, found, pairs_of(found), about)

    def _answers(
        self, place: str, contestants: Sequence[Contestant], items: Sequence[Item], seed: int
    ) -> dict[str, Answered]:
        stages = Stages(self.stages.root / place, self.on_event)
        arena = arena_of(self.recipe, contestants)
        how = Answering(arena, seed, self.cache, spend=self.spend, on_event=self.on_event)
        answers = {}
        for section in contestants:
            given = file_of(section, items)
            if given is not None:
                given = replace(given, others=0)  # the other prompts are those of other battles
            answers[section.name] = answers_of(section, items, how, stages, given)
        return answers

    def _played(
        self,
        place: str,
        items: Sequence[Item],
        answered: Mapping[str, Answered],
        pairs: Sequence[tuple[str, str]],
        about: Game,
    ) -> Fought:
        rating = self.recipe.flywheel.rating
        answers = {name: one.answers for name, one in answered.items()}
        digests = {name: one.digest for name, one in answered.items()}
        revs = {name: one.rev for name, one in answered.items()}
        made_of = {
            "answers": digests,
            "judges": {judge.id: [judge.rev, judge.template_sha] for judge in self.judges},
            "pairs": [list(pair) for pair in pairs],
            "merge": [rating.merge, rating.tie_margin],
            "seed": self.recipe.seed,
        }
        stage = self.stages.open(place, made_of)
        if not stage.is_done:
            tell(self.on_event, StageStarted(f"battles of {place.rpartition('/')[0]}"))
            wanted = matches(items, answers, pairs, self.recipe.seed)
            table = Table(self.judges, self.log, self.spend, self.on_event, about)
            if (stopped := play(wanted, table, place)) is not None:
                raise stopped
            _finish(stage, [games for match in wanted for games in table.games(match)], self.recipe)
            if (text := _unread(stage, place)) is not None:
                tell(self.on_event, Warned(text))
        battles = read_battles(stage.folder / BATTLES)
        return Fought(items, answers, battles, stage.digest, digests, revs)


def _finish(stage: Stage, played: Sequence[Sequence[Game]], recipe: FlywheelRecipe) -> None:
    """Write the merged battles, and finish the stage."""
    merged = [battle_of(games, recipe.flywheel.rating) for games in played]
    found = [battle for battle in merged if battle is not None]
    found.sort(key=lambda one: (one.prompt_id, one.model_a, one.model_b, one.judge_id))
    lines = (json_line(asdict(battle)) for battle in found)
    write_parts_atomically(stage.folder / BATTLES, lines)
    stage.finish({"battles": len(played), "left out": len(played) - len(found)})


def _unread(stage: Stage, place: str) -> str | None:
    """Say how many battles of a finished stage have no verdict, where there are any."""
    assert stage.facts is not None, "it is finished"
    lost, count = stage.facts["left out"], stage.facts["battles"]
    if not lost:
        return None
    return (
        f"{place}: {lost:,} of {count:,} battles have no verdict, since a judge's reply could not "
        "be read or the two orders disagree; `aligner arena diagnose` on games.jsonl says more"
    )


def arena_of(recipe: FlywheelRecipe, contestants: Sequence[Contestant]) -> Arena:
    """Return how these contestants answer, as the settings of an arena."""
    flywheel = recipe.flywheel
    shared: dict[str, Any] = {
        name: getattr(flywheel, name)
        for name in ("system", "temperature", "top_p", "max_new_tokens", "batch_size", "rating")
    }
    return Arena.model_construct(contestants=list(contestants), judges=flywheel.judges, **shared)


def file_of(section: Contestant, items: Sequence[Item]) -> AnswerFile | None:
    """Return what a file of answers says to prompts, where the contestant is one.

    Raises: DataError for rows that cannot be used, and for prompts without an answer.
    """
    if section.answers is None:
        return None
    path = Path(section.answers).expanduser()
    found = read_answer_file(path, items, section.name)
    refuse_missing(path, items, found.answers)
    return found
