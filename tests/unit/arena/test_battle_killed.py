"""Battles that are killed with SIGKILL, while contestants answer and judges judge, and resumed: the
same ratings, and no call made twice that came back."""

from __future__ import annotations

import hashlib
import json
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from aligner.arena.battle import play
from aligner.arena.battle.build import run_arena
from aligner.config.load import load_recipe
from aligner.endpoints.request import ChatRequest, Completion, request_key
from aligner.endpoints.scripted import ScriptedBackend
from aligner.reward_models.toy import ToyScorer
from aligner.runs.files import read_json
from tests.deadly import Place, in_process, set_trap

ROOT = Path(__file__).parents[3]
WORDS = ("bad", "cab", "fed", "hid", "jig", "abe", "ace", "bid", "dig", "fig", "gab", "hag")
STORE, STAGE = "aligner.endpoints.store:Store", "aligner.runs.stages:Stage"
LOG, OUTCOME = "aligner.arena.battle.log:GameLog", "aligner.arena.battle.build"

QUICK: list[Place] = [(STORE, "write", False, 9), (LOG, "add", True, 4)]
MOMENTS: list[Place] = [
    (STAGE, "finish", True, 2),
    (STAGE, "finish", False, 3),
    (STORE, "write", True, 3),
    (STORE, "write", False, 25),
    (LOG, "add", True, 1),
    (LOG, "add", False, 5),
    (LOG, "add", False, 8),
    ("aligner.arena.battle.spend:Spend", "note", True, 3),
    (OUTCOME, "write_outcome", True, 1),
    (OUTCOME, "write_outcome", False, 1),
    ("aligner.runs.run:Run", "finish_without_training", True, 1),
]


def write_world(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    prompts = [{"prompt": f"copy: {word}", "id": word} for word in WORDS]
    answers = {
        "good": [{"id": word, "answer": word} for word in WORDS],
        "bad": [{"id": word, "answer": word if word < "c" else "?"} for word in WORDS],
    }
    for name, rows in {"prompts": prompts, **answers}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "script.jsonl").write_text(json.dumps({"match": "", "reply": "unused"}) + "\n")


def work(folder: Path, trap: Place | None) -> None:
    """Battle in a folder, or resume there; a line in `calls` for each reply and score that was
    given."""

    def note(text: str) -> None:
        with open(folder / "calls", "a") as file:
            file.write(f"{text}\n")

    async def reply(self: ScriptedBackend, request: ChatRequest) -> Any:
        note(request_key(request))
        number = int(hashlib.sha256(str(request.messages).encode()).hexdigest(), 16)
        if request.purpose == "answer":
            return Completion(WORDS[number % 12], prompt_tokens=1, completion_tokens=1)
        scores = {"score_first": number % 10 + 1, "score_second": number // 10 % 10 + 1}
        text = json.dumps({"analysis": "as it is", **scores})
        return Completion(text, prompt_tokens=1, completion_tokens=1)

    score = ToyScorer.score

    def counted(
        self: ToyScorer, prompts: Sequence[Any], completions: Sequence[str], *more: Any
    ) -> Any:
        for prompt, completion in zip(prompts, completions):
            if completion:  # the check before anything is asked has none
                note(hashlib.sha256(f"{prompt} {completion}".encode()).hexdigest())
        return score(self, prompts, completions, *more)

    ScriptedBackend._reply = reply  # type: ignore[method-assign]
    ToyScorer.score = counted  # type: ignore[assignment, method-assign]
    play.AT_ONCE = 8
    if trap is not None:
        set_trap(trap)
    endpoint = {"backend": "scripted", "script": str(folder / "script.jsonl"), "max_in_flight": 1}
    contestants: list[dict[str, Any]] = [
        {"name": name, "answers": str(folder / f"{name}.jsonl")} for name in ("good", "bad")
    ]
    contestants.append({"name": "asked", "endpoint": endpoint})
    given = [
        f"output_dir={folder / 'run'}",
        f"data.train={folder / 'prompts.jsonl'}",
        f"arena.contestants={json.dumps(contestants)}",
        f"arena.judges={json.dumps([{'name': 'llm', 'endpoint': endpoint}, {'scorer': 'toy'}])}",
        "arena.rating.resamples=50",
    ]
    run_arena(load_recipe("arena", None, given), resume=(folder / "run").exists())


def calls_of(folder: Path) -> Counter[str]:
    return Counter((folder / "calls").read_text().split())


def outcome(folder: Path) -> dict[str, Any]:
    """What came out; what was spent is counted in whole parts, of which a kill may lose one."""
    run = folder / "run"
    games = [json.loads(line) for line in (run / "games.jsonl").read_text().splitlines()]
    summary = read_json(run, "summary.json")
    del summary["spend"]
    return {
        "games": sorted((one["game_id"], one["score_first"], one["score_second"]) for one in games),
        "battles": (run / "battles.jsonl").read_text(),
        "leaderboard": read_json(run, "leaderboard.json"),
        "summary": summary,
    }


@pytest.fixture(autouse=True)
def processes_find_this_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody killed."""
    folder = tmp_path_factory.mktemp("whole")
    write_world(folder)
    sys.path.insert(0, str(ROOT))
    try:
        assert in_process(work, folder, None) == 0
    finally:
        sys.path.remove(str(ROOT))
    assert max(calls_of(folder).values()) == 1
    return folder


def kill_and_resume(folder: Path, whole: Path, trap: Place) -> None:
    """A call whose reply was on its way to the disk is the only one that is made again."""
    write_world(folder)
    assert in_process(work, folder, trap) == -signal.SIGKILL
    assert in_process(work, folder, None) == 0
    assert outcome(folder) == outcome(whole)
    assert set(calls_of(folder)) == set(calls_of(whole))
    again = calls_of(folder).total() - calls_of(whole).total()
    assert again <= (1 if trap[:3] == (STORE, "write", True) else 0), trap


@pytest.mark.parametrize("trap", QUICK)
def test_killed_and_resumed_equals_uninterrupted(trap: Place, whole: Path, tmp_path: Path) -> None:
    kill_and_resume(tmp_path, whole, trap)


@pytest.mark.slow
@pytest.mark.parametrize("trap", MOMENTS)
def test_killed_at_any_moment_and_resumed_equals_uninterrupted(
    trap: Place, whole: Path, tmp_path: Path
) -> None:
    kill_and_resume(tmp_path, whole, trap)


@pytest.mark.slow
def test_killed_again_and_again_equals_uninterrupted(whole: Path, tmp_path: Path) -> None:
    write_world(tmp_path)
    sessions = 0
    while in_process(work, tmp_path, (STORE, "write", False, 11)) != 0:
        sessions += 1
        assert sessions < 60
    assert sessions > 3
    assert outcome(tmp_path) == outcome(whole)
    assert calls_of(tmp_path) == calls_of(whole)
