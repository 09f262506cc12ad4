"""The local page for votes over HTTP: what it says, what it takes, and whom it refuses."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from answer_files import write_answers, write_rows

from aligner.arena.voting.ballot import Ballot, Verdict
from aligner.arena.voting.plan import make_plan
from aligner.arena.voting.reading import read_answered
from aligner.arena.voting.server import VoteServer, page_and_policy
from aligner.errors import UsageError

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[VoteServer]:
    files = write_answers(tmp_path, {"secret-x": ["a0", "a1"], "secret-y": ["b0", "b1"]})
    sheets = make_plan(read_answered(files), name="ann").sheets
    with VoteServer(Ballot(sheets, "ann", tmp_path / "votes.jsonl")) as server:
        yield server


def ask(
    server: VoteServer,
    method: str,
    path: str,
    body: Any = None,
    headers: dict[str, str] | None = None,
    token: str | None = None,
) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    sent = {**(JSON if method == "POST" else {}), **(headers or {})}
    where = f"/{server.token if token is None else token}/{path}"
    connection.request(method, where, content, sent)
    reply = connection.getresponse()
    found = reply.status, reply.read(), reply.headers
    connection.close()
    return found


def state_of(server: VoteServer) -> dict[str, Any]:
    status, body, _ = ask(server, "GET", "state")
    assert status == 200
    return json.loads(body)


def votes(server: VoteServer) -> list[dict[str, Any]]:
    log = server.ballot.log
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def test_a_session_of_votes(server: VoteServer) -> None:
    state = state_of(server)
    assert (state["turn"], state["done"], state["total"], state["verdict"]) == (0, 0, 4, None)
    sheet = server.ballot.sheets[0]
    assert state["prompt"] == [{"role": "user", "text": sheet.item.prompt}]
    assert state["first"]["text"] == sheet.first.text
    status, body, _ = ask(server, "POST", "vote", {"turn": 0, "verdict": "second"})
    assert status == 200
    assert json.loads(body)["turn"] == 1
    ask(server, "POST", "skip", {"turn": 1})
    assert state_of(server)["turn"] == 2
    assert state_of(server)["is_second_order"]
    ask(server, "POST", "back", {})
    state = state_of(server)
    assert (state["turn"], state["verdict"], state["can_go_back"]) == (0, "second", False)
    assert not server.finished.is_set()
    ask(server, "POST", "finish", {})
    assert server.finished.wait(120)
    assert [game["decoding"]["verdict"] for game in votes(server)] == ["second"]


def test_the_end_comes_when_the_page_was_answered(
    server: VoteServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for the end may end the process, and the answer with it."""
    state, was_over = server.state, []

    def slow_state() -> dict[str, Any]:
        was_over.append(server.finished.wait(0.2))
        return state()

    monkeypatch.setattr(server, "state", slow_state)
    assert ask(server, "POST", "finish", {})[0] == 200
    assert was_over == [False]
    assert server.finished.wait(120)


def test_closing_waits_for_a_vote_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aligner.arena.voting.server.LAST_ANSWER_S", 120.0)
    files = write_answers(tmp_path, {"x": ["a0", "a1"], "y": ["b0", "b1"]})
    sheets = make_plan(read_answered(files), name="ann").sheets
    has_begun, may_go_on, answers = threading.Event(), threading.Event(), []

    class Slow(Ballot):
        def vote(self, turn: int, verdict: Verdict, seconds: float = 0.0) -> None:
            has_begun.set()
            assert may_go_on.wait(120)
            super().vote(turn, verdict, seconds)

    def cast() -> None:
        answers.append(ask(opened, "POST", "vote", {"turn": 0, "verdict": "first"})[0])

    with VoteServer(Slow(sheets, "ann", tmp_path / "votes.jsonl")) as opened:
        page = threading.Thread(target=cast)
        page.start()
        assert has_begun.wait(120)
        threading.Timer(0.2, may_go_on.set).start()
    assert len(votes(opened)) == 1
    page.join(120)
    assert answers == [200]


def test_no_name_of_a_model_reaches_the_page(server: VoteServer) -> None:
    said = b""
    for turn in range(4):
        said += ask(server, "GET", "state")[1]
        said += ask(server, "POST", "vote", {"turn": turn, "verdict": "tie"})[1]
    assert b"secret" not in said + ask(server, "GET", "")[1]
    assert len(votes(server)) == 4


def test_a_vote_from_a_second_window_is_refused_with_what_is_shown(server: VoteServer) -> None:
    vote = {"turn": 0, "verdict": "first"}
    assert ask(server, "POST", "vote", vote)[0] == 200
    status, body, _ = ask(server, "POST", "vote", vote)
    assert (status, json.loads(body)["turn"]) == (409, 1)
    assert len(votes(server)) == 1


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:80"},
        {"Host": "127.0.0.1"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
def test_other_sites_are_refused(server: VoteServer, headers: dict[str, str]) -> None:
    for method, path, body in (
        ("GET", "state", None),
        ("POST", "vote", {"turn": 0, "verdict": "first"}),
    ):
        status, said, found = ask(server, method, path, body, headers)
        assert (status, b"a0" in said, b"b0" in said) == (403, False, False)
        assert "Access-Control-Allow-Origin" not in found
    assert votes(server) == []


def test_nothing_is_there_without_the_token(server: VoteServer) -> None:
    for token in ("", "x", server.token[:-1], server.token + "x", "ü"):
        if token.isascii():
            assert ask(server, "GET", "state", token=token)[0] == 404
    assert ask(server, "POST", "vote", {"turn": 0, "verdict": "tie"}, token="x")[0] == 404
    with socket.create_connection(("127.0.0.1", server.port), timeout=120) as line:
        line.sendall(
            f"GET /\xfc/ HTTP/1.0\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode("latin")
        )
        assert b" 404 " in line.recv(100)
    assert server.token not in page_and_policy()[0].decode()


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("vote", {"turn": 0, "verdict": "first"}, {"Content-Type": "text/plain"}, 415),
        ("vote", b"{" + b" " * 5000 + b"}", {}, 413),
        ("vote", b"not json", {}, 400),
        ("vote", b"[" * 3000, {}, 400),
        ("vote", b"\xff", {}, 400),
        ("vote", [1], {}, 400),
        ("vote", {"turn": 0, "verdict": "best"}, {}, 400),
        ("vote", {"turn": 0, "verdict": ["first"]}, {}, 400),
        ("vote", {"turn": "0", "verdict": "first"}, {}, 400),
        ("vote", {"turn": True, "verdict": "first"}, {}, 400),
        ("vote", {"turn": -1, "verdict": "first"}, {}, 409),
        ("vote", {"turn": 10**30, "verdict": "first"}, {}, 409),
        ("delete", {}, {}, 400),
        ("../state", {}, {}, 400),
    ],
)
def test_what_is_no_vote_is_refused(
    server: VoteServer, path: str, body: Any, headers: dict[str, str], status: int
) -> None:
    assert ask(server, "POST", path, body, headers)[0] == status
    assert votes(server) == []
    assert state_of(server)["turn"] == 0


def test_the_page_may_load_nothing_and_run_its_own_script_alone(server: VoteServer) -> None:
    status, page, headers = ask(server, "GET", "")
    assert status == 200
    assert page == page_and_policy()[0]
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert (headers["Referrer-Policy"], headers["Cache-Control"]) == ("no-referrer", "no-store")
    assert b"http://" not in page
    assert b"https://" not in page
    assert b"innerHTML" not in page


def test_what_answers_hold_arrives_as_it_is(tmp_path: Path) -> None:
    text = '</script><img src=x onerror="alert(1)">\u2028\U0001f600\x00'
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "q"}]
    files = []
    for name, answer in (("x", text), ("y", "b")):
        row = {"prompt": turns, "answer": answer}
        files.append(str(write_rows(tmp_path / f"{name}.jsonl", [row])))
    sheets = make_plan(read_answered(files), name="ann").sheets
    with VoteServer(Ballot(sheets, "ann", tmp_path / "votes.jsonl")) as server:
        state = state_of(server)
    assert text in (state["first"]["text"], state["second"]["text"])
    assert [turn["role"] for turn in state["prompt"]] == ["system", "user"]


def test_a_vote_that_cannot_be_written_is_not_taken(tmp_path: Path) -> None:
    files = write_answers(tmp_path, {"x": ["a"], "y": ["b"]})
    sheets = make_plan(read_answered(files), name="ann").sheets
    log = tmp_path / "gone" / "votes.jsonl"
    with VoteServer(Ballot(sheets, "ann", log)) as server:
        status, body, _ = ask(server, "POST", "vote", {"turn": 0, "verdict": "first"})
        assert status == 507
        assert json.loads(body)["error"] == "No such file or directory"
        assert (state_of(server)["turn"], state_of(server)["done"]) == (0, 0)


def test_only_this_machine_can_reach_it_and_a_taken_port_is_said(server: VoteServer) -> None:
    assert server._server.server_address[0] == "127.0.0.1"
    with pytest.raises(UsageError, match=f"--port {server.port} cannot be used"):
        VoteServer(server.ballot, server.port)
