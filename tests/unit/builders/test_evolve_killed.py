"""A run of evolve that is killed with SIGKILL, in the optimization, in the rows, in the checks and
at their boundaries, and resumed: the same files, and no reply asked for twice that was kept."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from aligner.builders.evolve.build import run_evolve
from aligner.config.load import load_recipe
from aligner.endpoints.request import ChatRequest, request_key
from aligner.endpoints.scripted import ScriptedBackend
from tests.deadly import Place, in_process, owner_of, set_trap
from tests.simulated_evolver import SimulatedModel, seeds

ROOT = Path(__file__).parents[3]
ONE = ("endpoint.max_in_flight=1", "evolve.rows_in_flight=1")
MANY = ("endpoint.max_in_flight=8",)

OPTIMIZATION = ("steps=2", "candidates=2", "development_size=6", "batch_size=4")
SETTINGS = ("evolve.rounds=2", *(f"evolve.optimization.{setting}" for setting in OPTIMIZATION))

FILES = ("data/train.jsonl", "dropped.jsonl", "provenance.jsonl", "method.json", "evolve.json")

STORE, JOURNAL = "aligner.endpoints.store:Store", "aligner.runs.journal:Journal"
PLACES = (
    (STORE, "write"),
    (JOURNAL, "add"),
    (JOURNAL, "add_all"),
    ("os", "replace"),
    ("aligner.runs.stages:Stage", "finish"),
)
"""Module or "module:Class", and what writes there."""

QUICK: list[Place] = [
    (JOURNAL, "add", False, 2),
    (JOURNAL, "add_all", True, 5),
    (STORE, "write", False, 150),
    ("os", "replace", False, 20),
]


def write_world(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    rows = "".join(json.dumps({"prompt": text}) + "\n" for text in seeds(16))
    (folder / "seeds.jsonl").write_text(rows)
    (folder / "script.jsonl").write_text(json.dumps({"match": "", "reply": "unused"}) + "\n")


def work(folder: Path, settings: tuple[str, ...], trap: Place | None, counts: bool = False) -> None:
    """Run in a folder, or resume there. A line in `calls` for each reply that was given; with
    `counts`, the file `passages` says how often each place was passed."""
    model = SimulatedModel(bad=0.3)

    async def reply(self: ScriptedBackend, request: ChatRequest) -> Any:
        completion = model.reply(request)
        with open(folder / "calls", "a") as file:
            file.write(f"{request_key(request)}\n")
        return completion

    ScriptedBackend._reply = reply  # type: ignore[method-assign]
    passed: Counter[str] = Counter()
    if counts:
        for where, name in PLACES:
            count(passed, where, name)
    if trap is not None:
        set_trap(trap)
    given = [
        f"output_dir={folder / 'run'}",
        f"data.train={folder / 'seeds.jsonl'}",
        "endpoint.backend=scripted",
        f"endpoint.script={folder / 'script.jsonl'}",
        *SETTINGS,
        *settings,
    ]
    run_evolve(load_recipe("evolve", None, given), resume=(folder / "run").exists())
    if counts:
        (folder / "passages").write_text(json.dumps(passed))


def count(passed: Counter[str], where: str, name: str) -> None:
    owner, place = owner_of(where), f"{where} {name}"
    function = getattr(owner, name)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        passed[place] += 1
        return function(*args, **kwargs)

    setattr(owner, name, wrapper)


def calls_of(folder: Path) -> Counter[str]:
    return Counter((folder / "calls").read_text().split())


def outcome(folder: Path) -> dict[str, bytes]:
    """The files of a run, in which the folder that it ran in has no name."""
    name = str(folder).encode()
    return {file: (folder / "run" / file).read_bytes().replace(name, b"") for file in FILES}


@pytest.fixture(autouse=True)
def processes_find_this_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody killed, one request after the other."""
    folder = tmp_path_factory.mktemp("whole")
    write_world(folder)
    path = os.environ.get("PYTHONPATH")
    sys.path.insert(0, str(ROOT))
    try:
        assert in_process(work, folder, ONE, None, True) == 0
    finally:
        sys.path.remove(str(ROOT))
        assert os.environ.get("PYTHONPATH") == path
    assert max(calls_of(folder).values()) == 1
    return folder


def kill_and_resume(folder: Path, whole: Path, trap: Place) -> None:
    """A reply that was given and is not kept yet is the only one that is asked for again."""
    write_world(folder)
    assert in_process(work, folder, ONE, trap) == -signal.SIGKILL
    assert in_process(work, folder, ONE, None) == 0
    assert outcome(folder) == outcome(whole)
    again = calls_of(folder).total() - calls_of(whole).total()
    assert set(calls_of(folder)) == set(calls_of(whole))
    assert again in ((0, 1) if trap[0] == STORE and trap[2] else (0,)), trap


@pytest.mark.parametrize("trap", QUICK)
def test_killed_and_resumed_equals_uninterrupted(trap: Place, whole: Path, tmp_path: Path) -> None:
    kill_and_resume(tmp_path, whole, trap)


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("place", PLACES)
def test_killed_around_every_write_and_resumed_equals_uninterrupted(
    place: tuple[str, str], before: bool, whole: Path, tmp_path: Path
) -> None:
    """Every passage of what writes seldom, and every seventh of the store of replies."""
    passages = json.loads((whole / "passages").read_text())[" ".join(place)]
    step = 7 if place[0] == STORE else 1
    for number in range(1, passages + 1, step):
        kill_and_resume(tmp_path / str(number), whole, (*place, before, number))


@pytest.mark.slow
@pytest.mark.parametrize("number", [4, 11, 18, 25, 32])
def test_killed_with_many_under_way_and_resumed_equals_uninterrupted(
    number: int, whole: Path, tmp_path: Path
) -> None:
    """What was under way, at most eight requests, may be asked for again; the files are those of
    one request after the other."""
    write_world(tmp_path)
    assert in_process(work, tmp_path, MANY, (STORE, "write", False, number)) == -signal.SIGKILL
    assert in_process(work, tmp_path, MANY, None) == 0
    assert outcome(tmp_path) == outcome(whole)
    assert calls_of(tmp_path).total() - calls_of(whole).total() <= 8


@pytest.mark.slow
def test_killed_again_and_again_and_resumed_equals_uninterrupted(
    whole: Path, tmp_path: Path
) -> None:
    write_world(tmp_path)
    sessions = 0
    while in_process(work, tmp_path, ONE, (STORE, "write", False, 23)) != 0:
        sessions += 1
        assert sessions < 60
    assert sessions > 5
    assert outcome(tmp_path) == outcome(whole)
    assert calls_of(tmp_path) == calls_of(whole)
