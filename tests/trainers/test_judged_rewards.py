"""Language models as rewards in training: groups ranked by a tournament, and checklists by a
rubric."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_endpoint import Answer, FakeEndpoint
from fakes import small_recipe, write_jsonl, write_rounds_world
from sampled import train, trained

from aligner.errors import RecipeError
from aligner.methods.online.rounds import run_online
from aligner.runs.files import read_json, read_metrics

pytest.importorskip("openai")


@pytest.fixture(autouse=True)
def cache(own_cache: Path) -> Path:
    return own_cache


@pytest.fixture(scope="module")
def world(toy_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rounds_world(tmp_path_factory.mktemp("rounds"), toy_world)


GOLD = "online.evaluation.gold=toy"


def vowels(text: str) -> int:
    return sum(letter in "aeiou" for letter in text)


def said(side: Any) -> str:
    """The response of a pair."""
    return side if isinstance(side, str) else str(side[-1]["content"])


def has_early_letter(side: Any) -> bool:
    return any("a" <= letter <= "m" for letter in said(side))


def more_vowels(body: dict[str, Any]) -> Answer:
    """Prefers the answer with more vowels."""
    text = body["messages"][1]["content"]
    a, b = (
        text.split(f"[answer {x} ")[1].split("]\n", 1)[1].split("\n[end of answer")[0] for x in "AB"
    )
    a, b = vowels(a), vowels(b)
    return Answer(text=f"So.\nBetter: {'tie' if a == b else 'A' if a > b else 'B'}")


def tournament(folder: Path, server: FakeEndpoint) -> Path:
    endpoint = {"model": "m", "base_url": server.base_url, "max_retries": 0}
    (folder / "judge.yaml").write_text(yaml.safe_dump({"kind": "judge", "endpoint": endpoint}))
    card = folder / "tournament.yaml"
    card.write_text("kind: tournament\nmembers: [./judge.yaml]\n")
    return card


def rubric(folder: Path) -> Path:
    """An item holds where the answer has a letter from a to m, as a script says."""
    has_it = r"\[the answer \w+\]\n(?:(?!\n\[end of the answer).)*[a-m]"
    rules = [
        {"match": f"(?s){has_it}", "reply": "It has one.\nHolds: yes"},
        {"match": "the item", "reply": "It has none.\nHolds: no"},
    ]
    script = write_jsonl(folder / "script.jsonl", rules)
    card = folder / "rubric.yaml"
    endpoint = {"backend": "scripted", "script": str(script)}
    items = ["The answer has an early letter.", {"text": "It has one indeed.", "weight": 2}]
    card.write_text(yaml.safe_dump({"kind": "rubric", "endpoint": endpoint, "items": items}))
    return card


# --- rlhf -----------------------------------------------------------------------------------------


def test_a_tournament_rewards_the_responses_of_each_group(
    small_world: Path, tmp_path: Path
) -> None:
    with FakeEndpoint(more_vowels) as server:
        card = tournament(tmp_path, server)
        more = ("rlhf.group_size=4", "trainer.max_steps=2")
        log, _ = train(small_world, tmp_path / "run", f"rlhf.reward_models=['{card}']", *more)
    rows = read_json(tmp_path / "run", "rollouts.json")
    assert rows
    assert all(abs(value) < 0.1 for value in trained(log, "reward"))  # of a group about 0
    assert max(trained(log, "reward_std")) > 0.1
    assert server.bodies


def test_a_tournament_needs_a_group_and_a_judge_alone_needs_a_tournament(
    small_world: Path, tmp_path: Path
) -> None:
    with FakeEndpoint(more_vowels) as server:
        card = tournament(tmp_path, server)
        alone = ("rlhf.algorithm=ppo", "rlhf.group_size=1", f"rlhf.reward_models=['{card}']")
        with pytest.raises(RecipeError, match=r"rlhf\.group_size is 1"):
            train(small_world, tmp_path / "a", *alone)
        with pytest.raises(RecipeError, match="compares two answers") as caught:
            train(small_world, tmp_path / "b", f"rlhf.reward_models=['{tmp_path / 'judge.yaml'}']")
        assert "a card of the kind `tournament`" in caught.value.hint
        assert not server.bodies


def test_a_scripted_rubric_rewards_responses(small_world: Path, tmp_path: Path) -> None:
    more = ("rlhf.group_size=4", "trainer.max_steps=2", "rlhf.reward_models=")
    _, _ = train(small_world, tmp_path / "rubric", *more[:2], f"{more[2]}['{rubric(tmp_path)}']")
    train(small_world, tmp_path / "rule", *more[:2], f"{more[2]}['verifier:regex=[a-m]']")
    by_rubric, by_rule = (read_metrics(tmp_path / run) for run in ("rubric", "rule"))
    rewards = trained(by_rubric, "reward")
    assert rewards == pytest.approx(trained(by_rule, "reward"))
    assert 0.0 < sum(rewards) / len(rewards) < 1.0


# --- online ---------------------------------------------------------------------------------------


def rounds(world: Path, folder: Path, *overrides: str) -> list[dict[str, Any]]:
    """Run one round, and return its pairs."""
    recipe = small_recipe("online", world, folder, "online.rounds=1", *overrides)
    run_online(recipe)
    text = (folder / "rounds/01/pair/pairs.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_a_round_of_online_pairs_by_a_tournament(world: Path, tmp_path: Path) -> None:
    with FakeEndpoint(more_vowels) as server:
        card = tournament(tmp_path, server)
        pairs = rounds(world, tmp_path / "run", f"online.reward_models=['{card}']", GOLD)
    assert pairs
    assert all(vowels(said(pair["chosen"])) > vowels(said(pair["rejected"])) for pair in pairs)


def test_a_round_of_online_pairs_by_a_scripted_rubric(world: Path, tmp_path: Path) -> None:
    pairs = rounds(world, tmp_path / "run", f"online.reward_models=['{rubric(tmp_path)}']")
    assert pairs
    assert all(has_early_letter(pair["chosen"]) for pair in pairs)
    assert not any(has_early_letter(pair["rejected"]) for pair in pairs)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ("online.evaluation.gold={card}", "online.reward_models=[toy]"),
            "says nothing of two rounds",
        ),
        (("online.evaluation.gold=null", "online.reward_models=['{card}']"), r"gold is missing"),
        (
            ("online.evaluation.num_samples=1", "online.reward_models=['{card}']", GOLD),
            r"online\.evaluation\.num_samples is 1",
        ),
    ],
)
def test_rounds_that_a_tournament_cannot_judge_are_refused(
    overrides: tuple[str, ...], says: str, world: Path, tmp_path: Path
) -> None:
    with FakeEndpoint(more_vowels) as server:
        card = str(tournament(tmp_path, server))
        given = [one.replace("{card}", card) for one in overrides]
        with pytest.raises(RecipeError, match=says):
            rounds(world, tmp_path / "run", *given)
        assert not server.bodies
