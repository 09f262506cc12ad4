"""Machines that meet: who is let in, who is missed, and how an end is heard everywhere."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any, cast

import pytest
from fake_endpoint import closed_port

from aligner.config.recipe import Launch
from aligner.errors import AlignerError, DataError, TrainingError, UsageError
from aligner.events import Event
from aligner.launch import meeting as rooms
from aligner.launch.meeting import PATIENCE, Meeting, before_meeting, interface_of, meet

FACTS = {"version": "1", "trainer.learning_rate": "a"}
Part = Callable[[Meeting], Any]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATIENCE, "60")


def section(number: int, port: int, machines: int = 2) -> Launch:
    return Launch(
        num_processes=machines,
        num_machines=machines,
        machine_rank=number,
        main_process_ip="127.0.0.1",
        main_process_port=port,
    )


def hold(*parts: Part, facts: dict[int, dict[str, str]] | None = None) -> list[Any]:
    """Let machines meet, each in a thread with its part; return what came out of each, or its
    error."""
    port, outcomes = closed_port(), [None] * len(parts)

    def attend(number: int) -> None:
        mine = (facts or {}).get(number, FACTS)
        try:
            with meet(section(number, port, len(parts)), mine, None) as meeting:
                outcomes[number] = parts[number](meeting)
        except AlignerError as error:
            outcomes[number] = error

    threads = [
        threading.Thread(target=attend, args=(number,), name=f"machine {number}")
        for number in range(len(parts))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return outcomes


def until_told(meeting: Meeting) -> None:
    """What a machine does while it trains: look whether another one has ended."""
    for _ in range(2400):
        meeting.check()
        time.sleep(0.05)


def unable(number: int, port: int, machines: int, outcomes: list[Any]) -> None:
    """What a machine does that lacks a file."""
    try:
        with before_meeting(section(number, port, machines)):
            raise DataError("there is no file or folder rows.jsonl", "check the path")
    except AlignerError as error:
        outcomes[number] = error


@pytest.mark.parametrize("whose", [0, 1, 2])
def test_what_a_machine_finds_missing_before_they_meet_is_heard_by_those_that_wait(
    whose: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "DECLINE_S", 60.0)
    port, outcomes = closed_port(), cast("list[Any]", [None] * 3)

    def attend(number: int) -> None:
        try:
            with meet(section(number, port, 3), FACTS, None) as meeting:
                until_told(meeting)
        except AlignerError as error:
            outcomes[number] = error

    able = [number for number in range(3) if number != whose]
    threads = [threading.Thread(target=attend, args=(number,)) for number in able]
    threads.append(threading.Thread(target=unable, args=(whose, port, 3, outcomes)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    own = outcomes.pop(whose)
    assert isinstance(own, DataError), "the machine itself says what it is"
    for error in outcomes:
        assert isinstance(error, TrainingError)
        assert error.message == f"machine {whose} ended: there is no file or folder rows.jsonl"


def test_a_machine_that_lacks_something_does_not_wait_for_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rooms, "DECLINE_S", 0.2)
    for number in (0, 1):
        outcomes: list[Any] = [None, None]
        unable(number, closed_port(), 2, outcomes)
        assert isinstance(outcomes[number], DataError)


def give_up_after(monkeypatch: pytest.MonkeyPatch, connections: int) -> None:
    """Let the patience of machine 0 be over when it has heard so many, and not sooner."""
    admitted, heard, clock = rooms._admitted, [], time.monotonic

    def hear(*given: Any) -> int | None:
        machine = admitted(*given)
        heard.append(machine)
        return machine

    def now() -> float:
        is_over = len(heard) == connections and threading.current_thread().name == "machine 0"
        return clock() + (1000.0 if is_over else 0.0)

    monkeypatch.setattr(rooms, "_admitted", hear)
    monkeypatch.setattr(rooms.time, "monotonic", now)


def test_machine_0_says_when_to_start_and_the_others_wait_for_its_end() -> None:
    def lead(meeting: Meeting) -> str:
        meeting.say("start", port=4000)
        return meeting.address

    def follow(meeting: Meeting) -> tuple[int, str]:
        port = meeting.wait_for("start", "done")["port"]
        return port, meeting.wait_for("done")["kind"]

    assert hold(lead, follow, follow) == ["127.0.0.1", (4000, "done"), (4000, "done")]


@pytest.mark.parametrize("whose", [0, 1, 2])
def test_the_reason_why_one_machine_ends_is_heard_by_all(whose: int) -> None:
    def end(meeting: Meeting) -> None:
        raise DataError("row 7 is empty", "fill it")

    found = hold(*(end if number == whose else until_told for number in range(3)))
    assert isinstance(found.pop(whose), DataError)
    for error in found:
        assert isinstance(error, TrainingError)
        assert (error.message, error.hint) == (f"machine {whose} ended: row 7 is empty", "fill it")


def test_machine_0_tells_the_others_before_it_leaves_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its own end could close the connections while the reason was still to be sent."""
    send = Meeting._send

    def late(self: Meeting, machines: list[int], message: dict[str, Any]) -> None:
        if self.number == 0 and message["kind"] == "failed":
            time.sleep(0.5)
        send(self, machines, message)

    monkeypatch.setattr(Meeting, "_send", late)

    def end(meeting: Meeting) -> None:
        raise DataError("row 7 is empty", "fill it")

    found = hold(until_told, until_told, end)
    assert [error.message for error in found[:2]] == ["machine 2 ended: row 7 is empty"] * 2


def test_a_machine_that_vanishes_is_missed_by_all() -> None:
    def vanish(meeting: Meeting) -> None:
        meeting._closed.set()
        meeting.peers[0].shutdown(socket.SHUT_RDWR)
        meeting.leave(None)

    found = hold(until_told, vanish, until_told)
    for error in (found[0], found[2]):
        assert isinstance(error, TrainingError)
        assert "machine 1" in error.message
        assert "its connection was closed" in error.message


def test_a_machine_that_falls_silent_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    missed, begin = threading.Event(), Meeting.__init__

    def begin_impatiently(self: Meeting, number: int, peers: Any) -> None:
        if number == 0:
            monkeypatch.setattr(rooms, "SILENCE_S", 1.0)
        begin(self, number, peers)

    monkeypatch.setattr(Meeting, "__init__", begin_impatiently)

    def wait(meeting: Meeting) -> None:
        try:
            until_told(meeting)
        finally:
            missed.set()

    def freeze(meeting: Meeting) -> None:
        meeting._closed.set()  # no more signs of life, and the connection stays
        missed.wait(120)

    error, _ = hold(wait, freeze)
    assert isinstance(error, TrainingError)
    assert "nothing was heard from it for 1 seconds" in error.message


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({**FACTS, "version": "2"}, "version: not what machine 0 has"),
        ({"version": "1"}, "trainer.learning_rate: not what machine 0 has"),
        ({f"data.key{n}": "x" for n in range(9)}, "and 6 more: not what machine 0 has"),
    ],
)
def test_a_machine_with_another_recipe_is_turned_away(
    facts: dict[str, str], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_up_after(monkeypatch, connections=1)
    lead, follow = hold(until_told, until_told, facts={1: facts})
    assert isinstance(follow, UsageError)
    assert why in follow.message
    assert isinstance(lead, TrainingError)
    assert "machine 1 did not come to 127.0.0.1:" in lead.message


def test_a_number_that_is_taken_or_unknown_is_turned_away(monkeypatch) -> None:
    give_up_after(monkeypatch, connections=3)
    port = closed_port()
    found: list[Any] = []

    def attend(launch: Launch) -> None:
        try:
            with meet(launch, FACTS, None) as meeting:
                until_told(meeting)
        except AlignerError as error:
            found.append(error.message)

    wanted = [section(0, port, 3), section(1, port, 3), section(1, port, 3), section(1, port, 2)]
    threads = [
        threading.Thread(target=attend, args=(launch,), name=f"machine {launch.machine_rank}")
        for launch in wanted
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sum("machine 0 has met a machine 1 already" in message for message in found) == 1
    assert sum("it counts 2 machines, and machine 0 3" in message for message in found) == 1
    assert any("machine 2 did not come" in message for message in found)


def test_who_is_no_machine_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A browser, a scanner of ports, somebody who says nothing."""
    admitted, heard = rooms._admitted, []

    def hear(*given: Any) -> int | None:
        heard.append(None)
        monkeypatch.setattr(rooms, "HELLO_S", 0.2 if len(heard) == 4 else 60.0)
        return admitted(*given)

    monkeypatch.setattr(rooms, "_admitted", hear)
    port = closed_port()
    outcome: list[str] = []

    def lead() -> None:
        with meet(section(0, port), FACTS, None) as meeting:
            meeting.say("start", port=1)
            outcome.append("met")

    thread = threading.Thread(target=lead)
    thread.start()
    strangers = []
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b'{"machine": "x"}\n', b""):
        strangers.append(rooms._reach(("127.0.0.1", port), 60, None))
        strangers[-1].sendall(data)
    with meet(section(1, port), FACTS, None) as meeting:
        assert meeting.wait_for("start")["port"] == 1
    thread.join(120)
    assert outcome == ["met"]
    for stranger in strangers:
        stranger.close()


def test_nobody_at_the_address_is_told_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATIENCE, "1")
    told: list[Event] = []
    with (
        pytest.raises(TrainingError) as caught,
        meet(section(1, closed_port()), FACTS, told.append),
    ):
        pass
    assert "machine 0 was not reached at 127.0.0.1:" in caught.value.message
    assert "within 1 seconds: Connection refused" in caught.value.message
    assert "waiting for machine 0 at 127.0.0.1:" in str(told[0])


def test_a_port_in_use_is_refused() -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError) as caught, meet(section(0, port), FACTS, None):
            pass
    assert f"port {port} of this machine cannot be used: Address already in use" in str(
        caught.value
    )


def test_another_program_at_the_address_is_no_machine_0(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            peer, _ = server.accept()
            peer.recv(10)
            peer.sendall(b"HTTP/1.1 400 Bad Request\n")
            peer.close()

        threading.Thread(target=answer, daemon=True).start()
        launch = section(1, server.getsockname()[1])
        with pytest.raises(TrainingError, match="is no machine 0"), meet(launch, FACTS, None):
            pass


def test_an_address_has_its_interface() -> None:
    assert interface_of("127.0.0.1") in ("lo", "lo0")
    assert interface_of("203.0.113.9") is None
