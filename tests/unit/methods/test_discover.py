"""The search: what it does with good and bad proposals, and that it can be stopped and taken up
anywhere."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from aligner.config.load import load_recipe
from aligner.endpoints.request import LLMError
from aligner.endpoints.scripted import ScriptedBackend
from aligner.errors import DataError, EndpointError, RecipeError, TrainingError, UsageError
from aligner.events import TableRow, Warned
from aligner.losses.dsl import sandboxed
from aligner.losses.dsl.parser import parse_objective
from aligner.methods.discover import measure
from aligner.methods.discover import search as search_module
from aligner.methods.discover.archive import Archive, mean_and_error
from aligner.runs.files import read_json, read_metrics

SIGNATURE = (
    "self, policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, "
    "reference_rejected_logps"
)
RHO = (
    "    rho = (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - "
    "reference_rejected_logps)\n"
)


def code(name: str, body: str) -> str:
    return f"def {name}({SIGNATURE}):\n{RHO}{body}"


def reply(name: str, source: str) -> str:
    return json.dumps({"thought": f"about {name}", "name": name, "code": source})


GOOD = reply(
    "wide_margin",
    code(
        "wide_margin",
        "    return torch.relu(2 - self.beta * rho) + -F.logsigmoid(self.beta * rho)\n",
    ),
)
OTHER = reply("steeper", code("steeper", "    return -F.logsigmoid(2 * self.beta * rho)\n"))


def script(folder: Path, replies: list[str]) -> Path:
    path = folder / "script.jsonl"
    path.write_text("".join(json.dumps({"reply": text}) + "\n" for text in replies))
    return path


def search(
    folder: Path, replies: list[str], *settings: str, **options: Any
) -> tuple[Archive, list[Any], Any]:
    """Run a search in `folder / "run"`; its archive, its events and its outcome."""
    events: list[Any] = []
    resolved = load_recipe(
        "discover",
        None,
        [
            "endpoint.backend=scripted",
            f"endpoint.script={script(folder, replies)}",
            f"output_dir={folder / 'run'}",
            f"discover.proposals={len(replies)}",
            "discover.start=[sigmoid]",
            "discover.seeds=1",
            *settings,
        ],
    )
    outcome = search_module.run_discovery(resolved, on_event=events.append, **options)
    return Archive(folder / "run" / "archive"), events, outcome


@pytest.fixture
def sandbox(monkeypatch):
    """In place of the sandbox: an answer at once, a fitness that follows from the text, and a list
    of what was asked."""
    asked: list[tuple[str, str]] = []

    def run(job: str, payload: dict[str, Any], **_: Any) -> dict[str, Any]:
        with pytest.raises(RuntimeError):
            # under which Ctrl-C would wait for the end of a long training
            asyncio.get_running_loop()
        asked.append((job, payload["text"]))
        if job == "check":
            return {"error": None, "result": {"errors": [], "facts": {"text": ["It is a fact."]}}}
        gain = len(payload["text"]) / 100
        return {
            "error": None,
            "result": {
                "seeds": [{"seed": s, "reward_gain": gain + s / 1e6} for s in payload["seeds"]]
            },
        }

    monkeypatch.setattr(sandboxed, "run_isolated", run)
    return asked


# --- the whole, with the real sandbox -------------------------------------------------------------


def test_good_broken_hostile_nan_and_duplicate_proposals(tmp_path):
    """The best is found, every bad one is refused with its reason, and nothing escapes."""
    trap = tmp_path / "escaped"
    replies = {
        "good": (GOOD, ""),
        "eval": (
            reply("evil", code("evil", f"    return eval(\"open('{trap}', 'w')\")\n")),
            "calling 'eval' is not allowed",
        ),
        "import": (
            reply("imp", "import os\n" + code("imp", "    return rho\n")),
            "one function and nothing beside it",
        ),
        "network": (reply("net", code("net", "    return torch.hub.load('x', 'y')\n")), "not a"),
        "loop": (
            reply("loop", code("loop", "    while True:\n        pass\n    return rho\n")),
            "loops are not allowed",
        ),
        "bomb": (reply("bomb", code("bomb", "    return rho * 10**10**10\n")), "exponent"),
        "nan": (reply("root", code("root", "    return torch.sqrt(self.beta * rho)\n")), "finite"),
        "shape": (reply("mean", code("mean", "    return (-self.beta * rho).mean()\n")), "shape"),
        "uphill": (reply("uphill", code("uphill", "    return self.beta * rho\n")), "slope"),
        "duplicate": (GOOD.replace("wide_margin", "renamed"), "says the same as wide_margin"),
        "detached": (
            reply("detached", code("detached", "    return (self.beta * rho).detach()\n")),
            "gradient",
        ),
        "prose": ("I would try a hinge.", "is not JSON"),
    }
    archive, events, outcome = search(tmp_path, [text for text, _ in replies.values()])
    records = {name: archive[index] for index, name in enumerate(replies, 1)}
    assert records["good"].valid
    for name, (_, reason) in list(replies.items())[1:]:
        assert not records[name].valid, name
        assert reason in records[name].error, (name, records[name].error)
    assert archive.best() in (records["good"], archive[0])
    assert not trap.exists()
    assert outcome.results["measured"] == 1
    assert sum(isinstance(event, TableRow) for event in events) == len(replies) + 1
    report = outcome.report.read_text()
    assert "wide_margin" in report
    assert "loops are not allowed" in report
    (found,) = (tmp_path / "run" / "found").glob("*.py")
    load_recipe(
        "dpo", None, [f"dpo.loss={found}", "model.name_or_path=unread", "data.train=unread"]
    )


# --- the loop -------------------------------------------------------------------------------------


def test_the_best_is_the_one_with_the_highest_mean_fitness(tmp_path, sandbox):
    archive, _, outcome = search(tmp_path, [OTHER, GOOD], "discover.seeds=3")
    assert archive.best().name == "wide_margin"
    assert outcome.results["best/index"] == 2
    assert len(archive.best().fitness) == 3
    assert (tmp_path / "run" / "found" / "wide_margin.py").exists()
    assert read_json(tmp_path / "run", "usage.json")["calls"] == 2
    logged = read_metrics(tmp_path / "run")
    assert [line["step"] for line in logged] == [0, 1, 2]
    assert [line["fitness"] for line in logged] == [
        mean_and_error(record.fitness)[0] for record in archive.records
    ]
    assert logged[-1]["best_fitness"] == max(line["fitness"] for line in logged)


def test_the_report_of_a_search_can_be_written_again(tmp_path, sandbox):
    from runner import aligner

    _, _, outcome = search(tmp_path, [reply("one", code("one", "logsigmoid(beta * rho)"))])
    before = outcome.report.read_bytes()
    outcome.report.unlink()
    done = aligner("runs", "report", outcome.run_dir)
    assert done.exit_code == 0, done.output
    assert outcome.report.read_bytes() == before


def test_every_proposal_knows_which_objectives_the_model_had_seen(tmp_path, sandbox):
    archive, _, _ = search(tmp_path, [OTHER, GOOD])
    assert [record.parents for record in archive.records] == [[], [0], [0, 1]]


def test_a_start_that_cannot_be_measured_ends_the_search_before_a_request(tmp_path, monkeypatch):
    monkeypatch.setattr(
        sandboxed, "run_isolated", lambda *_, **__: {"error": "no memory", "result": None}
    )
    with pytest.raises(TrainingError, match="no memory"):
        search(tmp_path, [GOOD])
    assert not (tmp_path / "run" / "replies.sqlite").exists()


def test_a_budget_ends_the_search_well(tmp_path, sandbox):
    archive, _, _ = search(tmp_path, [OTHER, GOOD], "endpoint.budget.calls=1")
    assert len(archive.records) == 2
    assert "budget" in read_json(tmp_path / "run", "search.json")["ended"]
    assert (tmp_path / "run" / "manifest.json").exists()


def test_no_time_left_ends_the_search_well(tmp_path, sandbox):
    archive, events, _ = search(tmp_path, [OTHER, GOOD], "discover.minutes=1.0e-9")
    assert len(archive.records) == 1
    assert any(
        "no proposal was better than sigmoid" in getattr(event, "text", "") for event in events
    )
    assert "minutes are over" in read_json(tmp_path / "run", "search.json")["ended"]


def test_a_script_that_is_too_short_is_an_endpoint_error_and_loses_nothing(tmp_path, sandbox):
    with pytest.raises(EndpointError, match="used up"):
        search(tmp_path, [OTHER], "discover.proposals=2")
    archive, _, _ = search(tmp_path, [OTHER, GOOD], "discover.proposals=2", resume=True)
    assert [record.name for record in archive.records] == ["sigmoid", "steeper", "wide_margin"]


def test_walls_that_are_missing_around_proposals_are_named_and_kept(tmp_path, sandbox, monkeypatch):
    monkeypatch.setattr("aligner.sandbox.worker.WITHOUT", ["landlock", "unshare"])
    _, events, outcome = search(tmp_path, [GOOD])
    warned = [event.text for event in events if isinstance(event, Warned)]
    assert sum("what runs proposed objectives can read your files" in t for t in warned) == 1
    environment = json.loads((outcome.run_dir / "environment.json").read_text())
    assert environment["isolation"]["reading"] == "this system has no Landlock"


def test_a_dry_run_asks_nothing_and_writes_nothing(tmp_path, sandbox):
    search(tmp_path, [GOOD], dry_run=True)
    assert not (tmp_path / "run").exists()
    assert not sandbox


def test_a_spent_budget_can_be_raised_and_the_search_taken_up(tmp_path, sandbox):
    search(tmp_path, [OTHER, GOOD], "endpoint.budget.calls=1")
    archive, _, outcome = search(tmp_path, [OTHER, GOOD], "endpoint.budget.calls=5", resume=True)
    assert [record.name for record in archive.records] == ["sigmoid", "steeper", "wide_margin"]
    assert outcome.results["proposals"] == 2
    assert read_json(tmp_path / "run", "usage.json")["calls"] == 2
    assert [path.name for path in (tmp_path / "run" / "found").iterdir()] == ["wide_margin.py"]


def test_a_finished_search_makes_more_proposals_when_asked_to(tmp_path, sandbox):
    search(tmp_path, [OTHER, GOOD], "discover.proposals=1")
    archive, _, _ = search(tmp_path, [OTHER, GOOD], "discover.proposals=2", resume=True)
    assert len(archive.records) == 3


def test_a_finished_search_that_cannot_be_taken_up_stays_finished(tmp_path, sandbox):
    search(tmp_path, [OTHER, GOOD], "discover.proposals=1")
    with pytest.raises(UsageError, match="different recipe"):
        search(tmp_path, [OTHER, GOOD], "discover.proposals=2", "discover.beta=0.3", resume=True)
    assert (tmp_path / "run" / "manifest.json").exists()


def test_a_search_is_not_taken_up_with_another_objective_of_the_same_name(tmp_path, sandbox):
    mine = tmp_path / "mine.py"
    start = f"discover.start=[{mine}]"
    mine.write_text(code("mine", "    return -F.logsigmoid(self.beta * rho)\n"))
    search(tmp_path, [OTHER, GOOD], start, "discover.proposals=1")
    mine.write_text(code("mine", "    return -F.logsigmoid(3 * self.beta * rho)\n"))
    with pytest.raises(DataError, match=r"mine\.py: discover\.start\[0\]: is not what it was"):
        search(tmp_path, [OTHER, GOOD], start, "discover.proposals=2", resume=True)
    assert (tmp_path / "run" / "manifest.json").exists()


def test_a_damaged_record_is_in_nobodys_way_when_the_search_starts_again(tmp_path, sandbox):
    search(tmp_path, [GOOD])
    damaged = tmp_path / "run" / "archive" / "0001" / "record.json"
    damaged.write_text("{")
    archive, *_ = search(tmp_path, [GOOD], overwrite=True)
    assert [record.name for record in archive.records] == ["sigmoid", "wide_margin"]


def test_an_endpoint_that_never_gives_a_usable_answer_ends_the_search(
    tmp_path, sandbox, monkeypatch
):
    async def refuse(*_: Any) -> Any:
        raise LLMError("blocked", kind="content_filter")

    monkeypatch.setattr(ScriptedBackend, "chat", refuse)
    with pytest.raises(EndpointError, match="3 times in a row"):
        search(tmp_path, [OTHER] * 9)
    archive = Archive(tmp_path / "run" / "archive")
    assert len(archive.records) == 3
    assert archive[2].error == "no usable answer came from the server (content_filter)"


def test_a_conversation_too_long_for_the_model_is_cut(tmp_path, sandbox, monkeypatch):
    real, sizes = ScriptedBackend.chat, []

    async def short(self: ScriptedBackend, request: Any) -> Any:
        sizes.append(len(request.messages))
        if len(request.messages) > 4:
            raise LLMError("too long", kind="context_length")
        return await real(self, request)

    monkeypatch.setattr(ScriptedBackend, "chat", short)
    archive, _, _ = search(tmp_path, [OTHER, "no json", GOOD])
    assert archive[3].name == "wide_margin"
    assert sizes == [2, 4, 6, 4]
    assert archive[3].parents == [0, 1, 2]


def test_a_name_cannot_change_what_is_saved(tmp_path, sandbox):
    source = code(
        "good", "    return -F.logsigmoid(self.beta * rho) + 0 * rho\n    # " + "x" * 99 + "\n"
    )
    archive, _, _ = search(tmp_path, [reply("x\n'''\nprint(1)", source)])
    assert archive[1].name == "x_print_1"
    saved = (tmp_path / "run" / "found" / "x_print_1.py").read_text()
    assert parse_objective(saved).hash == archive[1].hash


def test_one_seed_has_no_standard_error(tmp_path, sandbox):
    _, _, outcome = search(tmp_path, [OTHER])
    assert not any(name.endswith("stderr") for name in outcome.results)


def test_a_recipe_at_fault_is_no_verdict_on_an_objective(tmp_path):
    job = measure.Job("no/such/recipe", [], "sigmoid", [0], "p.jsonl", "toy", 8, str(tmp_path))
    with pytest.raises(UsageError, match="no/such/recipe"):
        measure.measure(job, 60)


def test_a_search_that_was_begun_says_how_far_it_came(tmp_path, sandbox):
    with pytest.raises(EndpointError):
        search(tmp_path, [OTHER], "discover.proposals=2")
    with pytest.raises(UsageError, match="discover run that has tried 2 objectives"):
        search(tmp_path, [OTHER], "discover.proposals=2")


def test_another_recipe_cannot_take_up_the_search(tmp_path, sandbox):
    search(tmp_path, [OTHER], "endpoint.budget.calls=0")
    (tmp_path / "run" / "manifest.json").unlink()
    with pytest.raises(UsageError, match="different recipe"):
        search(tmp_path, [OTHER], "endpoint.budget.calls=0", "discover.beta=0.2", resume=True)


def test_an_inner_recipe_that_is_wrong_is_told_before_the_first_request(tmp_path):
    settings = ("discover.task=recipe", "discover.recipe=tiny/dpo", "discover.reward_model=toy")
    with pytest.raises(RecipeError, match="sigmod"):
        search(
            tmp_path,
            [GOOD],
            *settings,
            "discover.prompts=x.jsonl",
            "discover.overrides=['dpo.loss=sigmod']",
        )


# --- stopped anywhere, and taken up ---------------------------------------------------------------


class Killed(BaseException):
    """Like a SIGKILL: nothing of ours catches it."""


def without_times(archive: Archive) -> list[dict[str, Any]]:
    return [{**asdict(record), "seconds": 0, "finished": ""} for record in archive.records]


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_write_and_resumed_the_archive_is_the_same_and_no_reply_is_asked_for_twice(
    tmp_path, sandbox, monkeypatch, after
):
    replies = [OTHER, "no json", GOOD]
    (tmp_path / "whole").mkdir()
    expected = without_times(search(tmp_path / "whole", replies)[0])
    real_replace, real_chat = os.replace, ScriptedBackend.chat
    for moment in range(1, 100):
        folder = tmp_path / str(moment)
        folder.mkdir()
        writes, calls = iter(range(1, 10_000)), Counter()

        def dying(source: Any, target: Any, moment: int = moment, writes: Any = writes) -> None:
            count = next(writes)
            if count == moment and not after:
                raise Killed
            real_replace(source, target)
            if count == moment:
                raise Killed

        async def counting(self: ScriptedBackend, request: Any, calls: Counter = calls) -> Any:
            calls[request.sample_index] += 1
            return await real_chat(self, request)

        monkeypatch.setattr(ScriptedBackend, "chat", counting)
        monkeypatch.setattr(os, "replace", dying)
        try:
            search(folder, replies)
            break
        except Killed:
            pass
        finally:
            monkeypatch.setattr(os, "replace", real_replace)
        archive, _, outcome = search(folder, replies, resume=True)
        assert without_times(archive) == expected, moment
        assert set(calls.values()) <= {1}, moment
        assert outcome.results["proposals"] == 3
    assert moment > 15, "a search writes more often than that"
