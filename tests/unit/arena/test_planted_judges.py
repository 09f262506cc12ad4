"""Judges with planted preferences, asked over HTTP as any model is: `diagnose` finds each of them,
and the ratings of categories what was planted there."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from aligner.arena.battle.judges import open_judges
from aligner.arena.battle.sheets import Answer, BattleJudge, Item, Sheet
from aligner.arena.diagnosis import Settings, diagnose
from aligner.arena.judgments import judgments_of
from aligner.arena.merging import Played
from aligner.arena.records import style_of
from aligner.config.battles import Judge
from aligner.config.recipe import Endpoint
from benchmarks.real.arena import CODE
from benchmarks.real.simulated_judges import FAMILY, JUDGES, MEAN, JudgeServer

pytest.importorskip("openai")

PROMPTS = 40
WORDS = ("sun", "moon", "river", "stone", "cloud", "field", "bird", "song")


def answers() -> dict[str, dict[str, str]]:
    """Texts of different lengths, none like another."""
    rng = random.Random(0)
    return {
        model: {
            str(prompt): " ".join(
                [model[-3:], str(prompt), *rng.choices(WORDS, k=rng.randint(5, 60))]
            )
            for prompt in range(PROMPTS)
        }
        for model in MEAN
    }


def sheets(said: dict[str, dict[str, str]]) -> list[Sheet]:
    """Every pair on every prompt in both orders."""
    return [
        Sheet(
            Item(prompt, f"Question {prompt}"),
            Answer(one, said[one][prompt]),
            Answer(two, said[two][prompt]),
        )
        for prompt in said["gpt-4-0314"]
        for one in said
        for two in said
        if one != two
    ]


def play(judge: BattleJudge, games: list[Sheet]) -> list[tuple[str, Played]]:
    judging = judge.judge(games)
    assert judging.stopped is None
    found = []
    for game, judged in zip(games, judging.judged):
        assert judged is not None
        assert judged.parse_status == "ok"
        models = game.first.model, game.second.model
        styles = ({"length": style_of(one.text).length} for one in (game.first, game.second))
        scores = judged.score_first, judged.score_second
        played = Played(*models, game.item.id, *scores, "", *styles, judge=judge.id)  # type: ignore[arg-type]
        found.append((f"{game.item.id} {sorted(models)}", played))
    return found


def test_each_planted_preference_is_found_and_none_where_there_is_none(tmp_path: Path) -> None:
    said = answers()
    with JudgeServer(said, CODE) as server:
        sections = [
            Judge(name=name, endpoint=Endpoint(model=name, base_url=server.base_url, temperature=0))
            for name in JUDGES
        ]
        judges = open_judges(sections, tmp_path / "replies.sqlite")
        games = [game for judge in judges for game in play(judge, sheets(said))]
        for judge in judges:
            judge.close()
    record = diagnose(judgments_of(games, 0.0), Settings(families=FAMILY, resamples=200))
    failed = {name: " ".join(row["failed"]) for name, row in record["judges"].items()}
    assert failed["fair"] == ""
    assert "first seat" in failed["eager"]
    assert "longer answers" in failed["wordy"]
    assert "own family" in failed["gpt-4-judge"]
    others = {"eager": ("longer", "family"), "wordy": ("seat",), "gpt-4-judge": ("seat", "longer")}
    for name, words in others.items():
        assert not any(word in failed[name] for word in words), (name, failed[name])
