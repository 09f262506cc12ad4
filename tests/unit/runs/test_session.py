"""The skeleton of a resumable command: what it refuses, and what is left after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from example_run import resolved

from aligner.errors import UsageError
from aligner.events import Finished, Notice, Plan
from aligner.runs.session import Session


@pytest.fixture
def events() -> list[Any]:
    return []


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: list[Any]) -> Any:
    """Makes sessions over one folder."""
    monkeypatch.chdir(tmp_path)

    def make(**options: Any) -> Session:
        recipe = resolved(tmp_path / "run", **options.pop("changes", {}))
        return Session(resolved=recipe, on_event=events.append, scratch=("shards",), **options)

    return make


def worked(session: Session) -> Any:
    """A run that has done its work."""
    run = session.open()
    (run.dir / "shards").mkdir()
    run.write_json("data.json", {})
    return run


def test_a_run_is_finished_and_its_scratch_removed(session: Any, events: list[Any]) -> None:
    call = session()
    call.check_place()
    assert call.done() is None
    outcome = call.finish(worked(call), {"pairs": 3.0})
    assert outcome.results == {"pairs": 3.0}
    assert outcome.report == outcome.run_dir / "report.html"
    assert not (outcome.run_dir / "shards").exists()
    paths = {"run": str(outcome.run_dir), "report": str(outcome.report)}
    assert events[-1] == Finished({"pairs": 3.0}, paths)


def test_a_finished_run_is_resumed_without_work_and_scratch_that_a_kill_left_is_removed(
    session: Any, events: list[Any]
) -> None:
    outcome = session().finish(worked(session()), {"pairs": 3.0})
    (outcome.run_dir / "shards").mkdir()
    again = session(resume=True)
    again.check_place()
    assert again.done() == outcome
    assert isinstance(events[-1], Notice)
    assert not (outcome.run_dir / "shards").exists()


def test_a_finished_run_is_not_resumed_with_another_recipe(session: Any) -> None:
    session().finish(worked(session()), {})
    with pytest.raises(UsageError, match="different recipe"):
        session(resume=True, changes={"seed": 7}).done()


def test_a_dry_run_asks_only_for_a_place_that_can_be_written_to(
    session: Any, events: list[Any], tmp_path: Path
) -> None:
    session().finish(worked(session()), {})
    with pytest.raises(UsageError, match="exists already: a finished"):
        session().check_place()
    call = session(dry_run=True, resume=True)
    call.check_place()
    assert call.done() is None
    assert call.plan([("rows", "3", "")]).run_dir == tmp_path / "run"
    assert events[-1] == Plan([("rows", "3", "")])


def test_a_run_that_another_process_finished_meanwhile_is_left_alone(session: Any) -> None:
    first = session()
    run = worked(first)
    second = session(resume=True)
    assert second.done() is None
    first.finish(run, {})
    with pytest.raises(UsageError, match="finished by another process meanwhile"):
        second.open()
