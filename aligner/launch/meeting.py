"""Machines of one training meet before it starts, and hear of each other until it ends.

torch waits in silence for a machine that never comes, and a rank whose neighbour's machine lost its
power may wait for its time-out. So the commands that start the ranks talk, too: machine 0 listens
at the address of `launch:`, the others say who they are, and each hears at once, with the reason,
when another one ends. A machine with another recipe or version is turned away by name of what
differs. Messages are lines of JSON, and nothing in them is executed; like torch's own, they are not
encrypted, and the network between the machines is trusted. Imports no torch.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from aligner.config.recipe import Launch
from aligner.errors import AlignerError, TrainingError, UsageError
from aligner.events import Notice, OnEvent, tell

PATIENCE = "ALIGNER_MEETING_TIMEOUT_S"
"""Environment variable: how long machines wait for each other at the start, in seconds."""
DEFAULT_PATIENCE_S = 600.0
HELLO_S = 10.0
"""How long one that has connected may take to say who it is."""
BEAT_S = 5.0
SILENCE_S = 60.0
"""A machine that was not heard from for so long is gone."""
CAUSE_S = 10.0
"""How long the reason may take to come after ranks have lost their connection."""
RETRY_S = 0.5
DECLINE_S = 3.0
"""How long a machine that cannot take part looks for others that wait already, to tell them."""
MAX_LINE = 1 << 20

Message = dict[str, Any]


class Meeting:
    """The connections of this machine to the others: of machine 0 to all, of any other one to
    machine 0."""

    def __init__(self, number: int, peers: Mapping[int, socket.socket]) -> None:
        self.number, self.peers = number, dict(peers)
        self.address = _plain(next(iter(peers.values())).getsockname()[0])
        """This machine's address as the others see it."""
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._heard: dict[str, Message] = {}
        self._left: set[int] = set()
        self._failure: TrainingError | None = None
        self._closed = threading.Event()
        for machine, peer in self.peers.items():
            threading.Thread(target=self._listen, args=(machine, peer), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    def say(self, kind: str, **facts: Any) -> None:
        """Tell every peer. One that is gone is noticed where it is listened to."""
        self._send(list(self.peers), {"kind": kind, **facts})

    def check(self) -> None:
        """Raise: TrainingError when another machine has ended before its time."""
        if self._failure is not None:
            raise self._failure

    def wait_for(self, *kinds: str) -> Message:
        """Return the first message of these kinds. Raises: TrainingError when another machine
        ends."""
        with self._changed:
            while True:
                self.check()
                for kind in kinds:
                    if kind in self._heard:
                        return self._heard[kind]
                self._changed.wait(1.0)

    def cause(self) -> TrainingError | None:
        """Wait a little for the reason why another machine ended, and return it."""
        with self._changed:
            self._changed.wait_for(lambda: self._failure is not None, CAUSE_S)
        return self._failure

    def leave(self, error: BaseException | None) -> None:
        """Say that this machine has ended, and why, and close the connections."""
        if error is None:
            self.say("done")
        elif not (isinstance(error, TrainingError) and error is self._failure):
            self.say("failed", machine=self.number, **_told(error))
        self._closed.set()
        for peer in self.peers.values():
            with suppress(OSError):
                peer.shutdown(socket.SHUT_WR)
            peer.close()

    def _send(self, machines: list[int], message: Message) -> None:
        data = json.dumps(message).encode() + b"\n"
        for machine in machines:
            with self._sending, suppress(OSError):
                self.peers[machine].sendall(data)

    def _beat(self) -> None:
        while not self._closed.wait(BEAT_S):
            self.say("alive")

    def _listen(self, machine: int, peer: socket.socket) -> None:
        why = "its connection was closed"
        try:
            peer.settimeout(SILENCE_S)
            with peer.makefile("rb") as lines:
                while line := lines.readline(MAX_LINE):
                    self._hear(machine, json.loads(line))
        except TimeoutError:
            why = f"nothing was heard from it for {SILENCE_S:.0f} seconds"
        except (OSError, ValueError) as error:
            why = str(error)
        if machine not in self._left and not self._closed.is_set():
            text = f"machine {machine} ({_name(peer)}) is gone: {why}"
            self._fail(machine, text, "look at what it printed last; then --resume")

    def _hear(self, machine: int, message: Message) -> None:
        kind = str(message["kind"])
        if kind == "failed":
            ended = int(message["machine"])
            self._left.add(ended)
            text = f"machine {ended} ended: {message['message']}"
            self._fail(machine, text, str(message["hint"]), ended)
            return
        if kind == "done":
            self._left.add(machine)
        with self._changed:
            self._heard.setdefault(kind, message)
            self._changed.notify_all()

    def _fail(self, teller: int, text: str, hint: str, ended: int | None = None) -> None:
        """Keep the first failure, and let the other machines know, which only machine 0 can. They
        hear of it first: once it is known here, this machine leaves and closes the connections."""
        others = [machine for machine in self.peers if machine != teller]
        bare = text.partition(" ended: ")[2] if ended is not None else text
        whose = teller if ended is None else ended
        self._send(others, {"kind": "failed", "machine": whose, "message": bare, "hint": hint})
        with self._changed:
            if self._failure is None:
                self._failure = TrainingError(text, hint)
            self._changed.notify_all()


@contextmanager
def meet(launch: Launch, facts: Mapping[str, str], on_event: OnEvent | None) -> Iterator[Meeting]:
    """Meet the other machines of a training, and tell them in the end how it went here.

    `facts` have to be the same on all machines: the version, and the values of the recipe. Raises:
    TrainingError when not all come, UsageError for a port that is taken or facts that differ.
    """
    patience = float(os.environ.get(PATIENCE) or DEFAULT_PATIENCE_S)
    if launch.machine_rank == 0:
        meeting = Meeting(0, _receive(launch, facts, patience, on_event))
    else:
        peer = _join(launch, facts, patience, on_event)
        meeting = Meeting(launch.machine_rank, {0: peer})
    try:
        yield meeting
    except BaseException as error:
        meeting.leave(error)
        raise
    meeting.leave(None)


@contextmanager
def before_meeting(launch: Launch) -> Iterator[None]:
    """In here a machine checks what it can on its own. Where that fails, the others that wait
    already hear why, and need not wait for it."""
    try:
        yield
    except AlignerError as error:
        failed = {"kind": "failed", "machine": launch.machine_rank, **_told(error)}
        with suppress(OSError, AlignerError):
            (_tell_who_comes if launch.machine_rank == 0 else _tell_machine_0)(launch, failed)
        raise


def _tell_who_comes(launch: Launch, failed: Message) -> None:
    with _listener(int(launch.main_process_port or 0)) as listener:
        _tell_all(listener, launch.num_machines - 1, failed)


def _tell_all(listener: socket.socket, machines: int, failed: Message) -> None:
    """Tell so many machines as they come, and wait no longer for them than `DECLINE_S`."""
    ends = time.monotonic() + DECLINE_S
    while machines and (seconds := ends - time.monotonic()) > 0:
        listener.settimeout(seconds)
        with suppress(TimeoutError):
            peer, _ = listener.accept()
            with peer, suppress(OSError, ValueError):
                peer.settimeout(HELLO_S)
                _read(peer)
                _write(peer, failed)
                machines -= 1


def _tell_machine_0(launch: Launch, failed: Message) -> None:
    with _reach(_address(launch), DECLINE_S, None) as peer:
        hello = {"machine": launch.machine_rank, "machines": launch.num_machines, "facts": {}}
        _write(peer, {**hello, "failed": failed})


# --- machine 0 ------------------------------------------------------------------------------------


def _receive(
    launch: Launch, facts: Mapping[str, str], patience: float, on_event: OnEvent | None
) -> dict[int, socket.socket]:
    """Wait for every other machine, and return the connections."""
    missing = set(range(1, launch.num_machines))
    place = f"{launch.main_process_ip}:{launch.main_process_port}"
    peers: dict[int, socket.socket] = {}
    ends = time.monotonic() + patience
    with _listener(int(launch.main_process_port or 0)) as listener:
        tell(on_event, Notice(f"waiting at {place} for {_numbers(missing)}"))
        while missing:
            listener.settimeout(max(0.01, ends - time.monotonic()))
            try:
                peer, _ = listener.accept()
            except TimeoutError:
                raise TrainingError(
                    f"{_numbers(missing)} did not come to {place} within {patience:.0f} seconds",
                    "start the same command there with launch.machine_rank; they have to reach "
                    "this address and port",
                ) from None
            try:
                machine = _admitted(peer, missing, launch.num_machines, facts)
            except _DeclinedError as error:
                for other in peers.values():
                    with suppress(OSError):
                        _write(other, error.failed)
                _tell_all(listener, len(missing) - 1, error.failed)
                raise _ended(error.failed) from None
            if machine is None:
                peer.close()
                continue
            peers[machine] = peer
            missing.discard(machine)
    return peers


class _DeclinedError(Exception):
    """A machine has come to say that it cannot take part, and why."""

    def __init__(self, failed: Message) -> None:
        super().__init__(failed)
        self.failed = failed


def _listener(port: int) -> socket.socket:
    """Listen at a port of all networks of this machine: a name of it may stand for one that the
    others do not see."""
    try:
        if socket.has_dualstack_ipv6():
            with suppress(PermissionError):
                return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise UsageError(
            f"port {port} of this machine cannot be used: {os.strerror(error.errno or 0)}",
            "choose another launch.main_process_port, the same on every machine",
        ) from error


def _admitted(
    peer: socket.socket, missing: set[int], machines: int, facts: Mapping[str, str]
) -> int | None:
    """The number of a machine that belongs to this training; None for others, who hear why.
    Raises: _DeclinedError for one that cannot take part."""
    peer.settimeout(HELLO_S)
    try:
        hello = _read(peer)
        machine, size, theirs = int(hello["machine"]), int(hello["machines"]), dict(hello["facts"])
        failed = dict(hello["failed"]) if "failed" in hello else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # somebody else's connection
    if failed is not None and size == machines and machine in missing:
        raise _DeclinedError(failed)
    why = ""
    differ = sorted(key for key in {*facts, *theirs} if facts.get(key) != theirs.get(key))
    if size != machines:
        why = f"it counts {size} machines, and machine 0 {machines}"
    elif machine not in missing:
        why = f"machine 0 has met a machine {machine} already, or knows of none"
    elif differ:
        more = f" and {len(differ) - 5} more" if len(differ) > 5 else ""
        why = f"{', '.join(differ[:5])}{more}: not what machine 0 has"
    with suppress(OSError):
        _write(peer, {"kind": "refused", "why": why} if why else {"kind": "welcome"})
        return None if why else machine
    return None


# --- the others -----------------------------------------------------------------------------------


def _join(
    launch: Launch, facts: Mapping[str, str], patience: float, on_event: OnEvent | None
) -> socket.socket:
    """Reach machine 0, say who this is, and return the connection."""
    address = _address(launch)
    peer = _reach(address, patience, on_event)
    hello = {"machine": launch.machine_rank, "machines": launch.num_machines, "facts": dict(facts)}
    try:
        _write(peer, hello)
        peer.settimeout(SILENCE_S)
        answer = _read(peer)
        kind = answer["kind"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"who listens at {address[0]}:{address[1]} is no machine 0 of a training",
            "correct launch.main_process_ip and launch.main_process_port",
        ) from error
    if kind == "failed":
        raise _ended(answer)
    if kind != "welcome":
        raise UsageError(
            f"machine 0 has turned this machine {launch.machine_rank} away: {answer.get('why')}",
            "start the same command on all machines, with a launch.machine_rank of its own each",
        )
    return peer


def _reach(address: tuple[str, int], patience: float, on_event: OnEvent | None) -> socket.socket:
    place, ends = f"{address[0]}:{address[1]}", time.monotonic() + patience
    told = False
    while True:
        try:
            return socket.create_connection(address, timeout=max(1.0, min(10.0, patience)))
        except OSError as error:
            if time.monotonic() > ends:
                raise TrainingError(
                    f"machine 0 was not reached at {place} within {patience:.0f} seconds: "
                    f"{error.strerror or error}",
                    "start it, or correct launch.main_process_ip and launch.main_process_port",
                ) from error
            if not told:
                tell(on_event, Notice(f"waiting for machine 0 at {place}"))
                told = True
        time.sleep(RETRY_S)


# --- both -----------------------------------------------------------------------------------------


def interface_of(address: str) -> str | None:
    """Return the name of the network interface with an address of this machine: gloo would take
    the one that the host's name stands for, which on many systems is that of loopback."""
    import psutil  # type: ignore[import-untyped]

    for name, found in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == address for one in found):
            return str(name)
    return None


def _address(launch: Launch) -> tuple[str, int]:
    return str(launch.main_process_ip), int(launch.main_process_port or 0)


def _write(peer: socket.socket, message: Message) -> None:
    peer.sendall(json.dumps(message).encode() + b"\n")


def _ended(failed: Message) -> TrainingError:
    text = f"machine {failed.get('machine')} ended: {failed.get('message')}"
    return TrainingError(text, str(failed.get("hint", "")))


def _read(peer: socket.socket) -> Message:
    """Read one line and no byte of the next."""
    data = bytearray()
    while not data.endswith(b"\n"):
        part = peer.recv(1)
        if not part or len(data) > MAX_LINE:
            raise ValueError("no line")
        data += part
    return dict(json.loads(data))


def _told(error: BaseException) -> dict[str, str]:
    if isinstance(error, AlignerError):
        return {"message": error.message, "hint": error.hint}
    text = {"KeyboardInterrupt": "it was interrupted", "SystemExit": "it was stopped"}
    kind = type(error).__name__
    return {"message": text.get(kind, f"an internal error ({kind})"), "hint": "then --resume"}


def _numbers(machines: set[int]) -> str:
    listed = ", ".join(map(str, sorted(machines)[:10])) + (" ..." if len(machines) > 10 else "")
    return f"machine{'s' if len(machines) > 1 else ''} {listed}"


def _plain(address: str) -> str:
    return address.removeprefix("::ffff:")


def _name(peer: socket.socket) -> str:
    with suppress(OSError):
        return _plain(peer.getpeername()[0])
    return "?"
