"""An optimization that is killed with SIGKILL, at the boundary of every kind of call and around
every write, and resumed: the same method and record, and no reply asked for twice."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from aligner.builders.evolve.optimization import HISTORY, METHOD, optimize
from aligner.builders.evolve.recipe import Evolve, Optimization
from aligner.config.recipe import Endpoint
from aligner.endpoints.client import open_client
from aligner.endpoints.request import ChatRequest, Completion
from aligner.endpoints.scripted import ScriptedBackend
from aligner.runs.stages import Stages
from tests.deadly import Place, die, in_process, set_trap
from tests.simulated_evolver import Roles, SimulatedModel, seeds

SETTINGS = Evolve(
    optimization=Optimization(steps=2, candidates=2, development_size=8, batch_size=4)
)
JOURNAL, STORE = "aligner.runs.journal:Journal", "aligner.endpoints.store:Store"
ROOT = Path(__file__).parents[3]

CALLS = [
    *(("evolve", count) for count in (1, 8, 9, 12, 13, 25)),
    *(("answer", count) for count in (1, 9)),
    *(("analyse", count) for count in (1, 2, 3)),
    *(("rewrite", count) for count in (1, 2, 3)),
]
"""Purpose, and the call at which the process dies, before it is answered: the first and the last
of each part of a step."""

WRITES = [
    *((JOURNAL, "add", before, count) for before in (True, False) for count in (1, 2)),
    *(("os", "replace", before, count) for before in (True, False) for count in (1, 2, 3, 4, 5, 7)),
    *((STORE, "write", before, count) for before in (True, False) for count in (39, 40)),
]
"""Module or "module:Class", function, whether the process dies before it (else after it), and at
which passage."""

QUICK = [("rewrite", 2), (JOURNAL, "add", True, 2), (JOURNAL, "add", False, 2)]
"""Those that are tried in every run of the tests."""


def moments(of: list[Any]) -> list[Any]:
    slow = pytest.mark.slow
    return [one if one in QUICK else pytest.param(*one, marks=slow) for one in of]


def run(folder: Path) -> None:
    """Optimize in a folder, or resume there. A line in `calls` for each reply that was given."""
    model = SimulatedModel(bad=0.3)

    def reply(request: ChatRequest) -> Completion:
        completion = model.reply(request)
        with open(folder / "calls", "a") as file:
            file.write(f"{request.purpose}\n")
        return completion

    async def go() -> None:
        section = Endpoint(backend="scripted", script="-", model="m", max_in_flight=1)
        backend = ScriptedBackend(reply)
        async with open_client(section, cache=folder / "replies.sqlite", backend=backend) as client:
            stage = Stages(folder).open("optimize", {"seed": 0})
            found = await optimize(SETTINGS, seeds(60), Roles(client), stage, None, 0)
            if not stage.is_done:
                stage.finish({"method": found.best.id})

    asyncio.run(go())


def work(folder: Path, place: Place | None) -> None:
    if place is not None:
        set_trap(place)
    run(folder)


def work_until_call(folder: Path, purpose: str, count: int) -> None:
    """Die before the so-manyth reply of a purpose."""
    simulated, seen = SimulatedModel.reply, 0

    def reply(self: SimulatedModel, request: ChatRequest) -> Completion:
        nonlocal seen
        seen += request.purpose == purpose
        if seen == count:
            die()
        return simulated(self, request)

    SimulatedModel.reply = reply  # type: ignore[method-assign]
    run(folder)


def outcome(folder: Path) -> tuple[bytes, ...]:
    stage = folder / "optimize"
    return tuple((stage / name).read_bytes() for name in (METHOD, HISTORY, "steps.jsonl"))


def calls_of(folder: Path) -> list[str]:
    return sorted((folder / "calls").read_text().split())


@pytest.fixture(autouse=True)
def processes_find_this_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


@pytest.mark.parametrize(("purpose", "count"), moments(CALLS))
def test_killed_before_a_call_and_resumed_it_is_the_same(
    purpose: str, count: int, whole: Path, tmp_path: Path
) -> None:
    assert in_process(work_until_call, tmp_path, purpose, count) == -signal.SIGKILL
    assert in_process(work, tmp_path, None) == 0
    assert outcome(tmp_path) == outcome(whole)
    assert calls_of(tmp_path) == calls_of(whole)


@pytest.mark.parametrize(("owner", "name", "before", "count"), moments(WRITES))
def test_killed_around_a_write_and_resumed_it_is_the_same(
    owner: str, name: str, before: bool, count: int, whole: Path, tmp_path: Path
) -> None:
    """A reply that was given and is not kept yet is the only one that is asked for again."""
    assert in_process(work, tmp_path, (owner, name, before, count)) == -signal.SIGKILL
    assert in_process(work, tmp_path, None) == 0
    assert outcome(tmp_path) == outcome(whole)
    again = len(calls_of(tmp_path)) - len(calls_of(whole))
    assert again in ((0, 1) if owner == STORE and before else (0,))
