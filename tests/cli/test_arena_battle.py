"""`aligner arena battle` at the front door: files, models and scripts battle, judged by the gold
score of the toy world."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import save_model, write_jsonl
from runner import aligner

from aligner.runs.files import read_json
from aligner.toy.tasks import gold_score

WORDS = ("bad", "cab", "fed", "hid", "jig", "abe", "ace", "bid", "dig", "fig", "gab", "hag")
PROMPTS = [
    {"prompt": f"{task}: {word}", "uid": f"{task}-{word}", "task": task}
    for task in ("copy", "upper")
    for word in WORDS
]


def right(row: dict[str, Any]) -> str:
    task, word = row["prompt"].split(": ")
    return word.upper() if task == "upper" else word


def write_answers(name: str, answer: Callable[[dict[str, Any]], str]) -> None:
    write_jsonl(Path(name), [{"prompt_id": row["uid"], "answer": answer(row)} for row in PROMPTS])


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Prompts, answers that are right, half right and wrong, and a script that copies."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("prompts.jsonl"), PROMPTS)
    write_answers("good.jsonl", right)
    write_answers("half.jsonl", lambda row: right(row) if row["task"] == "copy" else "?")
    write_answers("bad.jsonl", lambda row: "?!" if row["uid"] != "copy-bad" else "bad")
    script = [{"match": rf"copy: {word}$", "reply": word} for word in WORDS]
    write_jsonl(Path("script.jsonl"), [*script, {"match": "", "reply": "no idea"}])
    return tmp_path


THREE = ("--contestant", "good=good.jsonl", "--contestant", "half=half.jsonl")
THREE = (*THREE, "--contestant", "bad=bad.jsonl", "--judge", "toy", "--output", "run")
ALL = (*THREE, "--data", "prompts.jsonl")


def battle(*arguments: object) -> Any:
    return aligner("arena", "battle", *arguments)


def summary(folder: str = "run") -> dict[str, Any]:
    found: dict[str, Any] = read_json(Path(folder), "summary.json")
    return found


def test_files_battle_and_are_rated(world: Path) -> None:
    done = battle(*ALL, "arena.category=task", "arena.rating.anchor=half")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[1].split()[:3] == ["1", "1-1", "good"]
    with open("run/leaderboard.csv", encoding="utf-8") as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    assert [rows[name]["rank"] for name in ("good", "half", "bad")] == ["1", "2", "3"]
    assert rows["half"]["rating"] == "1000.0"
    board = read_json(Path("run"), "leaderboard.json")
    assert set(board["categories"]) == {"copy", "upper"}
    found = summary()
    assert found["battles"] == {
        "wanted": 72,
        "played": 72,
        "merged": 72,
        "by_rule": {"identical": 12 + 1 + 1},
    }
    assert found["judges"]["toy"]["win_share"]["half"] == pytest.approx((0 + 6 + 11.5 + 6) / 48)
    games = [json.loads(line) for line in Path("run/games.jsonl").read_text().splitlines()]
    assert len(games) == 144
    asked = [game for game in games if "rule" not in game["decoding"]]
    prompts = {row["uid"]: row["prompt"] for row in PROMPTS}
    for game in asked[:20]:
        assert game["score_first"] in (0.0, 1.0)
        assert game["category"] == game["prompt_id"].split("-")[0]
    assert gold_score(prompts["copy-bad"], "bad") == 1.0
    for name in ("report.html", "leaderboard.html", "leaderboard.svg", "battles.jsonl"):
        assert (Path("run") / name).stat().st_size > 100
    assert "<script src" not in Path("run/report.html").read_text()
    again = aligner("arena", "rate", "run/games.jsonl", "--anchor", "half", "--json")
    rated = {row["model"]: row["rating"] for row in json.loads(again.stdout)["models"]}
    assert {name: float(row["rating"]) for name, row in rows.items()} == pytest.approx(rated)
    assert aligner("arena", "rate", "run/battles.jsonl").exit_code == 0
    assert aligner("arena", "diagnose", "run/games.jsonl").exit_code in (0, 3)


def test_prompts_may_come_from_the_answers(world: Path) -> None:
    for name in ("good", "half"):
        rows = [json.loads(line) for line in Path(f"{name}.jsonl").read_text().splitlines()]
        prompts = {row["uid"]: row["prompt"] for row in PROMPTS}
        asked = [{"prompt": prompts[row["prompt_id"]], "answer": row["answer"]} for row in rows]
        write_jsonl(Path(f"{name}.jsonl"), asked)
    done = battle(*THREE[:4], "--judge", "toy", "--output", "run")
    assert done.exit_code == 0, done.output
    assert summary()["battles"]["played"] == 24


def test_a_finished_run_says_so_and_a_changed_one_judges_what_is_new(world: Path) -> None:
    assert battle(*ALL).exit_code == 0
    log = Path("run/games.jsonl").read_bytes()
    again = battle(*ALL, "--resume")
    assert again.exit_code == 0, again.output
    assert "is finished already" in again.stderr
    more = battle(*ALL, "--resume", "arena.rating.merge=votes")
    assert more.exit_code == 0, more.output
    assert Path("run/games.jsonl").read_bytes() == log, "no game is judged again"
    write_answers("bad.jsonl", lambda row: "?!")
    changed = battle(*ALL, "--resume")
    assert changed.exit_code == 0, changed.output
    games = Path("run/games.jsonl").read_bytes()
    assert games.startswith(log)
    assert games.count(b"\n") == 144 + 4, "of two battles one answer is new"
    assert summary()["battles"]["played"] == 72
    assert summary()["judges"]["toy"]["win_share"]["bad"] == pytest.approx((0 + 0.5 * 12) / 48)


def test_what_is_wrong_is_said_before_anything_is_asked(world: Path) -> None:
    rows = Path("half.jsonl").read_text().splitlines()
    Path("half.jsonl").write_text("\n".join(rows[:-2]) + "\n")
    refused = battle(*ALL)
    assert refused.exit_code == 3
    assert "half.jsonl has no answer to 2 of 24 prompts" in refused.stderr
    assert "no answer to 'upper-hag': 'upper: hag'" in refused.stderr
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (("arena.target=best",), "'best' is no contestant", 2),
        (("arena.plan=target",), "`plan: target` needs it", 2),
        (("arena.rating.anchor=x",), "'x' is no contestant", 2),
        (("arena.temperature=0.5",), "all contestants have their answers in files", 2),
        (("arena.adaptive.confidence=0.9",), "has no effect with `plan: round_robin`", 2),
        (("--contestant", "more=nowhere.jsonl"), "nowhere.jsonl is not a file", 3),
        (("--contestant", "more=nowhere/model"), "nowhere/model", 2),
        (("--contestant", "good=bad.jsonl"), "2 are called 'good'", 2),
        (("--contestant", "bad.jsonl"), "it has no name", 2),
        (("--judge", "toy"), "2 judges are called 'toy'", 2),
        (("--judge", "verifier:exact"), "24 of 24 prompts have none", 3),
        (("arena.category=sort",), "no row has the column sort", 3),
        (("--fail-below", "0.5"), "add arena.target=NAME", 2),
        (
            ("--fail-below", "0.5", "arena.target=good", "arena.plan=adaptive"),
            "that was fixed before",
            2,
        ),
        (("--confidence", "0.9"), "no effect without --fail-below", 2),
        (("--estimate", "--resume"), "--resume has no effect with --estimate", 2),
        (("data.eval=0.5",), "has no effect on battles", 2),
    ],
)
def test_mistakes_are_named(world: Path, arguments: tuple[str, ...], said: str, code: int) -> None:
    refused = battle(*ALL, *arguments)
    assert refused.exit_code == code, refused.output
    assert said in " ".join(refused.stderr.split())
    assert not Path("run").exists()


def test_a_dry_run_and_an_estimate_ask_nobody(world: Path) -> None:
    dry = battle(*ALL, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert "nothing was answered and nothing was judged" in dry.stdout
    shown = battle(*ALL, "--estimate", "--json")
    facts = json.loads(shown.stdout)
    assert (facts["prompts"], facts["battles"]) == (24, 72)
    # 14 of 72 battles are ties without a call; the others have two games
    assert facts["asked"] == [
        {
            "for": "scores",
            "name": "toy",
            "calls": [116, 116],
            "tokens_in": [0, 0],
            "tokens_out": [0, 0],
            "usd": None,
        }
    ]
    assert "72 battles of two games at most" in battle(*ALL, "--estimate").stdout
    assert not Path("run").exists()


def test_the_gate_has_an_exit_code_of_its_own(world: Path) -> None:
    passed = battle(*ALL, "arena.target=good", "--fail-below", 0.5)
    assert passed.exit_code == 0, passed.output
    assert "passed: good wins 86.5%" in passed.stdout
    failed = battle(*ALL, "arena.target=bad", "--fail-below", 0.5, "--overwrite")
    assert failed.exit_code == 6
    assert "error: bad is worse: it wins" in failed.stderr
    shown = battle(*ALL, "arena.target=bad", "--fail-below", 0.5, "--resume", "--json")
    assert shown.exit_code == 6
    found = json.loads(shown.stdout)
    assert not found["gate"]["passed"]
    assert found["gate"]["upper"] < 0.5
    assert found["summary"]["win_rates"]["all"]["rate"] == pytest.approx(found["gate"]["win_rate"])


def recipe(**arena: Any) -> None:
    """A recipe with a file and a script that answers."""
    contestants = [
        {"name": "half", "answers": "half.jsonl"},
        {"name": "copy cat", "endpoint": {"backend": "scripted", "script": "script.jsonl"}},
    ]
    whole = {
        "method": "arena",
        "output_dir": "run",
        "data": {"train": "prompts.jsonl"},
        "arena": {"contestants": contestants, "judges": [{"scorer": "toy"}], **arena},
    }
    Path("recipe.yaml").write_text(json.dumps(whole))


def test_a_model_behind_an_endpoint_is_asked_once(world: Path) -> None:
    recipe()
    done = battle("recipe.yaml", "arena.system=answer")
    assert done.exit_code == 0, done.output
    folder = next(Path("run/stages/answers").glob("copy-cat-*"))
    rows = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert {row["answer"] for row in rows} == {*WORDS, "no idea"}
    assert {row["model"] for row in rows} == {"copy cat"}
    usage = read_json(Path("run"), "usage.json")["answers of copy cat"]
    assert usage["calls"] == 24
    status = battle("status", "run")
    assert "answers of copy cat" in status.stdout
    assert "24 calls" in status.stdout
    assert "done: 24 battles" in status.stdout
    facts = json.loads(battle("status", "run", "--json").stdout)
    assert facts["answers"] == {"half": True, "copy cat": True}
    assert facts["games"] == {"toy": 48}


def test_a_spent_budget_keeps_the_answers_and_resumes(world: Path) -> None:
    recipe()
    endpoint = "arena.contestants[1].endpoint"
    text = json.loads(Path("recipe.yaml").read_text())
    text["arena"]["contestants"][1]["endpoint"]["budget"] = {"calls": 10}
    Path("recipe.yaml").write_text(json.dumps(text))
    stopped = battle("recipe.yaml")
    assert stopped.exit_code == 4, stopped.output
    assert "10 of 24 prompts are answered" in stopped.stderr
    assert endpoint not in stopped.stderr
    assert "started" in battle("status", "run").stdout
    text["arena"]["contestants"][1]["endpoint"]["budget"] = {"calls": 24}
    Path("recipe.yaml").write_text(json.dumps(text))
    done = battle("recipe.yaml", "--resume")
    assert done.exit_code == 0, done.output
    usage = read_json(Path("run"), "usage.json")["answers of copy cat"]
    assert usage["calls"] == 24, "no prompt is asked twice"


def test_an_endpoint_has_no_sampling_of_its_own(world: Path) -> None:
    recipe()
    text = json.loads(Path("recipe.yaml").read_text())
    text["arena"]["contestants"][1]["endpoint"]["temperature"] = 0.5
    text["arena"]["contestants"][0]["model"] = "also"
    Path("recipe.yaml").write_text(json.dumps(text))
    refused = battle("recipe.yaml")
    assert refused.exit_code == 2
    assert "set arena.temperature, which all contestants share" in refused.stderr
    assert "has `model` and `answers`" in refused.stderr


def test_a_model_here_answers_in_shards(world: Path) -> None:
    save_model(Path("model"))
    arguments = ("--contestant", "half=half.jsonl", "--contestant", "random=model")
    more = ("--judge", "toy", "--data", "prompts.jsonl", "--output", "run", "arena.batch_size=2")
    done = battle(*arguments, *more, "arena.max_new_tokens=4")
    assert done.exit_code == 0, done.output
    journal = Path("run/stages/answers/random/responses.jsonl").read_text().splitlines()
    assert len(journal) == 3
    facts = summary()["contestants"]["random"]
    assert facts["prompts"] == 24
    assert facts["cut"] > 0
    assert "answers were cut off" in done.stderr
    first = Path("run/stages/answers/random/answers.jsonl").read_bytes()
    again = battle(*arguments, *more, "arena.max_new_tokens=4", "--overwrite")
    assert again.exit_code == 0, again.output
    assert Path("run/stages/answers/random/answers.jsonl").read_bytes() == first
    long = battle(*arguments, *more, "arena.max_new_tokens=600", "--overwrite")
    assert long.exit_code == 2
    assert "no prompt leaves room for 600 tokens" in long.stderr


def test_other_plans_run_from_the_front_door(world: Path) -> None:
    recipe(plan="adaptive", adaptive={"prompts_per_look": 6})
    done = battle("recipe.yaml")
    assert done.exit_code == 0, done.output
    assert summary()["plan"]["pairs"][0]["models"] == ["copy cat", "half"]
    assert "win rate of the first" in Path("run/report.html").read_text()
    bracket = battle(*ALL, "arena.plan=bracket", "--overwrite")
    assert bracket.exit_code == 0, bracket.output
    assert summary()["plan"]["winner"] == "good"
    target = battle(*ALL, "arena.plan=target", "arena.target=half", "--overwrite")
    assert target.exit_code == 0, target.output
    assert summary()["battles"]["played"] == 48
    assert set(summary()["win_rates"]) == {"all", "good", "bad"}


def test_names_may_be_anything(world: Path) -> None:
    arguments = ("--contestant", "../up=good.jsonl", "--contestant", "org/<b>model=half.jsonl")
    done = battle(*arguments, "--judge", "toy", "--data", "prompts.jsonl", "--output", "run")
    assert done.exit_code == 0, done.output
    folders = sorted(path.name for path in Path("run/stages/answers").iterdir())
    assert [name.rpartition("-")[0] for name in folders] == ["org-b-model", "up"]
    html = Path("run/report.html").read_text()
    assert "<b>model" not in html
    assert "&lt;b&gt;model" in html


def test_status_is_of_a_run_of_battles(world: Path) -> None:
    refused = battle("status", "nowhere")
    assert refused.exit_code == 2
    assert "is not a run of `aligner arena battle`" in refused.stderr
    assert "--resume has no effect" in battle("status", "run", "--resume").stderr


def judged(budget: int) -> None:
    """A recipe with a judge that is a script: it always prefers the second answer."""
    reply = json.dumps({"analysis": "as it is", "score_first": 3, "score_second": 8.5})
    write_jsonl(Path("judge.jsonl"), [{"match": "", "reply": reply}])
    prices = {f"usd_per_million_{kind}_tokens": 1.0 for kind in ("prompt", "completion")}
    endpoint = {"backend": "scripted", "script": "judge.jsonl", "max_in_flight": 1, **prices}
    whole = {
        "method": "arena",
        "output_dir": "run",
        "data": {"train": "prompts.jsonl"},
        "arena": {
            "contestants": [
                {"name": name, "answers": f"{name}.jsonl"} for name in ("good", "half")
            ],
            "judges": [{"name": "llm", "endpoint": {**endpoint, "budget": {"calls": budget}}}],
        },
    }
    Path("recipe.yaml").write_text(json.dumps(whole))


def test_a_spent_budget_of_a_judge_rates_what_is_whole_and_resumes(world: Path) -> None:
    judged(7)
    stopped = battle("recipe.yaml")
    assert stopped.exit_code == 4, stopped.output
    assert "--resume" in stopped.stderr
    found = summary()
    whole = found["battles"]["played"] - found["battles"]["by_rule"]["identical"]
    assert whole == 3, "seven calls are three battles and a half"
    board = read_json(Path("run"), "leaderboard.json")
    assert board["notes"][0].startswith("partial: ")
    assert "partial: " in Path("run/report.html").read_text()
    assert not Path("run/manifest.json").exists()
    assert "battles of at most 24 are judged" in battle("status", "run").stdout
    judged(10)
    again = battle("recipe.yaml", "--resume")
    assert again.exit_code == 4, "what was spent before counts"
    assert read_json(Path("run"), "usage.json")["judge llm"]["calls"] == 10
    judged(100)
    done = battle("recipe.yaml", "--resume")
    assert done.exit_code == 0, done.output
    found = summary()
    assert found["battles"]["played"] == 24
    usage = read_json(Path("run"), "usage.json")["judge llm"]
    assert usage["calls"] == 24, "12 battles are not of the same answers: each game once"
    assert found["spend"]["total"]["usd"] == pytest.approx(usage["usd"])
    assert found["spend"]["usd_per_battle"] == pytest.approx(usage["usd"] / 24)
    assert "the judge llm fails: the flip rate is 100.0%" in done.stderr
    assert "stopped" not in battle("status", "run").stdout


def test_what_a_judge_will_cost_is_estimated(world: Path) -> None:
    judged(100)
    dry = battle("recipe.yaml", "--estimate", "--json")
    asked = json.loads(dry.stdout)["asked"][0]
    assert (asked["for"], asked["name"], asked["calls"]) == ("games", "llm", [24, 24])
    assert asked["tokens_in"][0] > 24 * 200
    low, high = asked["usd"]
    assert low == pytest.approx((asked["tokens_in"][0] + asked["tokens_out"][0]) / 1e6)
    assert high > low
