"""A flywheel whose opponents and judge are on servers: what they cost, and budgets that run out in
the middle of a round."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import Answer, FakeEndpoint
from flywheel_world import flywheel_recipe, write_flywheel_world

from aligner.errors import EndpointError
from aligner.methods.flywheel.run import run_flywheel
from aligner.methods.flywheel.status import status_of

PRICES = {"usd_per_million_prompt_tokens": 1.0, "usd_per_million_completion_tokens": 2.0}
PROMPTS, TESTS, AGAIN = 6, 12, 4
"""Of a battle, of the test set, and of the battles of the target against itself."""


def number(body: dict[str, Any]) -> int:
    return int(sha256(json.dumps(body["messages"]).encode()).hexdigest(), 16)


def opponent(name: str) -> Any:
    return lambda body: Answer(text=f"{name} says {number(body) % 1000}")


def judge(body: dict[str, Any]) -> Answer:
    found = number(body)
    scores = {"score_first": found % 10 + 1, "score_second": found // 10 % 10 + 1}
    return Answer(text=json.dumps({"analysis": "as it is", **scores}))


@pytest.fixture(scope="module")
def world(toy_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flywheel_world(tmp_path_factory.mktemp("flywheel"), toy_world)


class Servers:
    """Two opponents, the second of which must not be learned from, and a judge."""

    def __init__(self, world: Path) -> None:
        self.world = world
        self.free, self.barred = FakeEndpoint(opponent("free")), FakeEndpoint(opponent("barred"))
        self.judge = FakeEndpoint(judge)
        self.all = (self.free, self.barred, self.judge)

    def turn(self, folder: Path, *, resume: bool = False, calls: int = 0, judged: int = 0) -> None:
        """Run with budgets of so many calls of the first opponent and of the judge; 0: none."""
        kinds = {
            "free": (self.free, calls, {"license": "apache-2.0"}),
            "barred": (self.barred, 0, {"license": "other", "may_be_trained_on": False}),
        }
        opponents = [
            {"name": name, "endpoint": _endpoint(name, server, most), **more}
            for name, (server, most, more) in kinds.items()
        ]
        chosen = {"k": 0.5, "min_winner_score": None}
        recipe = flywheel_recipe(
            self.world,
            folder,
            flywheel__strategies=["sft"],
            flywheel__opponents=opponents,
            flywheel__judges=[{"name": "judge", "endpoint": _endpoint("j", self.judge, judged)}],
            flywheel__sft=chosen,
        )
        run_flywheel(recipe, resume=resume)

    def asked(self) -> list[int]:
        return [len(server.bodies) for server in self.all]


def _endpoint(name: str, server: FakeEndpoint, most: int) -> dict[str, Any]:
    budget = {"budget": {"calls": most}} if most else {}
    return {"model": name, "base_url": server.base_url, **PRICES, **budget}


@pytest.fixture
def servers(world: Path) -> Iterator[Servers]:
    found = Servers(world)
    with found.free, found.barred, found.judge:
        yield found


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_all_calls_are_counted_and_rows_say_whose_answer_they_hold(
    servers: Servers, tmp_path: Path
) -> None:
    servers.turn(tmp_path / "run")
    assert servers.asked()[:2] == [PROMPTS + TESTS] * 2
    spend = json.loads((tmp_path / "run/flywheel.json").read_text())["spend"]
    found = {name: spend[name]["calls"] for name in spend}
    names = ("answers of free", "answers of barred", "judge judge")
    assert found == dict(zip(names, servers.asked(), strict=True))
    assert spend["answers of free"]["usd"] == pytest.approx((PROMPTS + TESTS) * 13e-6)
    chosen = rows(tmp_path / "run/rounds/01/sft/select/train.jsonl")
    assert chosen
    assert {row["winner"] for row in chosen} == {"free"}
    assert {row["license"] for row in chosen} == {"apache-2.0"}
    for row in chosen:
        assert (row["loser"], row["shard"]) == ("start", "1-sft")
        assert len(row["winner_rev"]) == len(row["loser_rev"]) == 16
        assert row["winner_rev"] != row["loser_rev"]
        assert len(row["judge_revs"]) == len(row["judges"]) == len(row["battle_ids"])
        assert all(row["judge_revs"])
    page = (tmp_path / "run/report.html").read_text()
    assert 'href="rounds/01/sft/select/train.jsonl"' in page
    assert f"Licences of the chosen answers: apache-2.0 {len(chosen)}." in page


def test_a_budget_that_runs_out_and_is_raised_costs_nothing_twice(
    servers: Servers, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(EndpointError, match="free: the budget is spent") as caught:
        servers.turn(run, calls=TESTS + 2)
    assert "--resume continues" in caught.value.hint
    assert servers.asked()[0] == TESTS + 2
    assert status_of(run).remark == (
        "stopped; the same command with --resume continues; next: battle of sft-1"
    )
    before = servers.asked()[2]
    with pytest.raises(EndpointError, match="judge judge: the budget is spent"):
        servers.turn(run, resume=True, judged=before + 4)
    assert servers.asked()[2] == before + 4
    servers.turn(run, resume=True)
    for server in servers.all:
        asked = Counter(json.dumps(body["messages"]) for body in server.bodies)
        assert set(asked.values()) == {1}
    stopped = servers.asked()
    servers.turn(tmp_path / "whole")
    assert servers.asked() == [2 * count for count in stopped]
    for name in ("select/train.jsonl", "battle/battles.jsonl", "train/run/final/model.safetensors"):
        one, other = (folder / "rounds/01/sft" / name for folder in (run, tmp_path / "whole"))
        assert one.read_bytes() == other.read_bytes(), name
