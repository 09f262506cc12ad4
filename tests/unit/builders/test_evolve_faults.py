"""Evolve against a server on loopback that answers well, badly, late or not at all."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aligner.builders.evolve import accounts, roles
from aligner.builders.evolve.build import run_evolve
from aligner.builders.evolve.preview import preview_rows
from aligner.config.load import load_recipe
from aligner.endpoints.batch import Batching
from aligner.errors import EndpointError
from aligner.events import OnEvent, StageProgress
from tests.fake_batches import FakeBatches
from tests.fake_endpoint import Answer, FakeEndpoint, closed_port
from tests.simulated_evolver import SUBJECTS, SimulatedModel, purpose_of, seeds

pytest.importorskip("openai")

SOON = {"retry-after-ms": "1"}
FILES = ("data/train.jsonl", "dropped.jsonl", "provenance.jsonl", "method.json")
OPTIMIZATION = ("steps=1", "candidates=1", "development_size=6", "batch_size=4")
AUTO = tuple(f"evolve.optimization.{setting}" for setting in OPTIMIZATION)
CLASSIC = ("evolve.mode=classic",)
PLAIN = [f"List three uses of {word}." for word in SUBJECTS]
"""Seeds that nothing goes wrong with."""

Answers = Callable[[dict[str, Any]], Answer]


def evolve(
    folder: Path,
    base_url: str,
    *settings: str,
    resume: bool = False,
    on_event: OnEvent | None = None,
) -> dict[str, Any]:
    """Run against a server, and return the numbers."""
    folder.mkdir(exist_ok=True)
    texts = PLAIN if CLASSIC[0] in settings else seeds(24)
    rows = "".join(json.dumps({"prompt": text}) + "\n" for text in texts)
    (folder / "seeds.jsonl").write_text(rows)
    given = [
        f"output_dir={folder / 'run'}",
        f"data.train={folder / 'seeds.jsonl'}",
        f"endpoint.base_url={base_url}",
        "endpoint.model=simulated",
        "endpoint.max_retries=3",
        *(() if CLASSIC[0] in settings else AUTO),
        *settings,
    ]
    run_evolve(load_recipe("evolve", None, given), resume=resume, on_event=on_event)
    return json.loads((folder / "run" / "evolve.json").read_text())


def outcome(folder: Path) -> dict[str, bytes]:
    """The files of a run, in which the folder that it ran in has no name."""
    files = (folder / "run" / file for file in FILES)
    name = str(folder).encode()
    return {file.name: file.read_bytes().replace(name, b"") for file in files if file.exists()}


def faulty(fault: Answer, every: int) -> Answers:
    """A good server, every so manyth request of which goes wrong."""
    model, number, lock = SimulatedModel(), itertools.count(1), threading.Lock()

    def answer(body: dict[str, Any]) -> Answer:
        with lock:
            is_bad = next(number) % every == 0
        return fault if is_bad else model.answer(body)

    return answer


def on(purpose: str, instruction: str, fault: Answer) -> Answers:
    """A good server that fails at one row: whatever is asked for a purpose with these words."""
    model = SimulatedModel()

    def answer(body: dict[str, Any]) -> Answer:
        text = body["messages"][-1]["content"]
        is_bad = purpose_of(body["messages"]) == purpose and instruction in text
        return fault if is_bad else model.answer(body)

    return answer


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    with FakeEndpoint(SimulatedModel().answer) as server:
        evolve(folder, server.base_url)
        assert server.peak <= 8
    return folder


@pytest.mark.parametrize(
    ("fault", "every"),
    [
        (Answer(429, headers=SOON), 3),
        (Answer(500, headers=SOON), 7),
        (Answer(body=b'{"choices": [{"mess'), 9),
    ],
    ids=["429", "500", "truncated JSON"],
)
def test_a_server_that_fails_now_and_then_changes_nothing(
    fault: Answer, every: int, whole: Path, tmp_path: Path
) -> None:
    with FakeEndpoint(faulty(fault, every)) as server:
        evolve(tmp_path, server.base_url)
    assert outcome(tmp_path) == outcome(whole)


def test_a_socket_that_hangs_is_left_and_asked_again(whole: Path, tmp_path: Path) -> None:
    with FakeEndpoint(faulty(Answer(delay_s=30.0), 25)) as server:
        evolve(tmp_path, server.base_url, "endpoint.timeout_s=0.5")
    assert outcome(tmp_path) == outcome(whole)


FILTERED = Answer(400, body={"error": {"message": "filtered", "code": "content_filter"}})
TOO_LONG = Answer(
    400, body={"error": {"message": "too many tokens", "code": "context_length_exceeded"}}
)


@pytest.mark.parametrize(
    ("purpose", "fault", "reason"),
    [
        ("answer", FILTERED, "content_filter"),
        ("evolve", FILTERED, "content_filter"),
        ("evolve", TOO_LONG, "context_length"),
        ("answer", Answer(text=""), "empty"),
        ("evolve", Answer(text=""), "parse"),
        ("answer", Answer(text="This is", finish_reason="length"), "truncated"),
        ("answer", Answer(418, body={"error": {"message": "a teapot"}}), "fatal"),
        ("answer", Answer(body=b'{"choices": [{"mess'), "bad_reply"),
    ],
)
def test_a_row_that_cannot_be_had_is_counted_with_its_reason(
    purpose: str, fault: Answer, reason: str, tmp_path: Path
) -> None:
    with FakeEndpoint(on(purpose, PLAIN[3], fault)) as server:
        summary = evolve(tmp_path, server.base_url, *CLASSIC)
    assert summary["dropped"] == {reason: 1}
    assert summary["rows"] == 9
    (line,) = (tmp_path / "run" / "dropped.jsonl").read_text().splitlines()
    assert json.loads(line)["from"] == PLAIN[3]


def test_a_reply_that_was_cut_is_paid_for_once(tmp_path: Path) -> None:
    """It is kept for the run, though the row is dropped."""
    never = (*CLASSIC, "evolve.structured=never")  # else a resumed run asks whether it may be
    cut = on("answer", PLAIN[3], Answer(text="This is", finish_reason="length"))
    with FakeEndpoint(cut) as server:
        assert evolve(tmp_path, server.base_url, *never)["dropped"] == {"truncated": 1}
        asked = len(server.bodies)
        settings = (*never, "evolve.checks.refusals=false")
        evolve(tmp_path, server.base_url, *settings, resume=True)
        assert len(server.bodies) == asked


def test_a_key_that_is_refused_stops_at_once_and_fails_no_row(tmp_path: Path) -> None:
    refused = Answer(401, body={"error": {"message": "no such key"}})
    with FakeEndpoint([refused]) as server:
        with pytest.raises(EndpointError, match="401"):
            evolve(tmp_path, server.base_url, *CLASSIC)
        assert len(server.bodies) <= 8
    with FakeEndpoint(SimulatedModel().answer) as server:
        assert evolve(tmp_path, server.base_url, *CLASSIC, resume=True)["rows"] == 10


def test_a_server_that_goes_away_is_said_to_be_gone_and_what_is_done_is_kept(
    tmp_path: Path,
) -> None:
    model, number = SimulatedModel(), itertools.count(1)

    def answer(body: dict[str, Any]) -> Answer:
        return model.answer(body) if next(number) <= 5 else Answer(503, headers=SOON)

    with FakeEndpoint(answer) as server, pytest.raises(EndpointError) as caught:
        evolve(tmp_path, server.base_url, *CLASSIC, "endpoint.max_retries=0")
    assert "8 rows one after the other got no usable reply" in caught.value.message
    assert "of 10 rows are finished and kept" in caught.value.message
    with FakeEndpoint(model.answer) as server:
        summary = evolve(tmp_path, server.base_url, *CLASSIC, resume=True)
    assert summary["rows"] == 10


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{closed_port()}/v1"
    with pytest.raises(EndpointError, match=r"127\.0\.0\.1"):
        evolve(tmp_path, address, "endpoint.max_retries=0")


def test_rows_through_a_batch_api_are_the_same_in_few_batches_at_half_the_price(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = partial(Batching, quiet_s=0.2, first_pause_s=0.01)
    monkeypatch.setattr(roles, "Batching", at_once)
    model = SimulatedModel()
    prices = ("endpoint.usd_per_million_prompt_tokens=1e6", "evolve.structured=never")
    with FakeEndpoint(model.answer) as server:
        evolve(tmp_path / "direct", server.base_url, *CLASSIC, *prices)
    with FakeBatches(lambda line: model.answer(line["body"]).text) as batches:
        evolve(tmp_path / "batches", batches.base_url, *CLASSIC, *prices, "evolve.batch=true")
    assert outcome(tmp_path / "batches") == outcome(tmp_path / "direct")
    assert len(batches.batches) <= 4, "a file for what is asked at once, not for each request"
    direct, batched = (
        json.loads((tmp_path / name / "run" / "usage.json").read_text())["evolver"]
        for name in ("direct", "batches")
    )
    assert batched["calls"] == direct["calls"]
    assert batched["usd"] == direct["usd"] / 2


def test_a_run_in_batches_that_was_stopped_sends_no_request_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roles, "Batching", partial(Batching, quiet_s=0.1, first_pause_s=0.01))
    model = SimulatedModel()
    given = (*CLASSIC, "evolve.structured=never", "evolve.batch=true", "evolve.rows=5")
    with FakeBatches(lambda line: model.answer(line["body"]).text) as batches:
        first = evolve(tmp_path, batches.base_url, *given, "endpoint.budget.calls=7")
        assert 0 < first["unfinished"] < 5
        assert evolve(tmp_path, batches.base_url, *given, resume=True)["unfinished"] == 0
        asked = batches.submitted()
        assert len(asked) == len(set(asked)) >= 10
    with FakeEndpoint(model.answer) as server:
        evolve(tmp_path / "direct", server.base_url, *given[:2], given[3])
    assert outcome(tmp_path / "direct") == outcome(tmp_path)


def test_while_batches_are_waited_for_it_is_said_how_far_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowly = partial(Batching, quiet_s=0.1, first_pause_s=0.3)
    monkeypatch.setattr(roles, "Batching", slowly)
    monkeypatch.setattr(accounts, "TICK_S", 0.05)
    model, told = SimulatedModel(), []
    with FakeBatches(lambda line: model.answer(line["body"]).text) as batches:
        given = ("evolve.structured=never", "evolve.batch=true", "evolve.rows=5")
        evolve(tmp_path, batches.base_url, *CLASSIC, *given, on_event=told.append)
    texts = [event.text for event in told if isinstance(event, StageProgress)]
    waiting = [text for text in texts if "0 of 5 requests in batches answered" in text]
    assert waiting
    assert all(text.startswith("0 kept, 0 dropped; 5 in flight") for text in waiting)


def test_a_preview_asks_at_once_and_says_what_batches_would_cost(tmp_path: Path) -> None:
    (tmp_path / "seeds.jsonl").write_text(json.dumps({"prompt": PLAIN[0]}) + "\n")
    with FakeEndpoint(SimulatedModel().answer) as server:
        given = [
            f"output_dir={tmp_path / 'run'}",
            f"data.train={tmp_path / 'seeds.jsonl'}",
            f"endpoint.base_url={server.base_url}",
            "endpoint.model=simulated",
            "endpoint.usd_per_million_completion_tokens=100000",
            *("evolve.structured=never", *CLASSIC),
        ]
        single = preview_rows(load_recipe("evolve", None, given), 1, None)
        batched = preview_rows(load_recipe("evolve", None, [*given, "evolve.batch=true"]), 1, None)
        assert len(server.bodies) == 2
    usd = sum(one["usd"] for one in single.facts["spent"].values())
    assert single.lines[-1].endswith(f"${usd:.4f}")
    assert batched.lines[-1].startswith("all 1 rows at this rate, in batches: ")
    assert batched.lines[-1].endswith(f"${usd / 2:.4f}")
