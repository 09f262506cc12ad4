"""The votes of one person: what was voted on, what comes next, and each vote in the log at once.

A vote is a game of the log (`aligner.arena.records`) whose judge is the person; the better answer
has score 1 and the other 0, a tie a half each. "Both bad" is a tie with its own mark. The log only
grows: a vote that is changed is written again with the next `attempt`, and readers take the last.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, get_args

from aligner.arena.battle.sheets import Sheet
from aligner.arena.records import Game, append, style_of
from aligner.arena.voting.plan import battle_key, game_key
from aligner.data.files import BLANK, Unreadable, read_file
from aligner.errors import DataError

Verdict = Literal["first", "second", "tie", "bothbad"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

SCORES: dict[Verdict, tuple[float, float]] = {
    "first": (1.0, 0.0),
    "second": (0.0, 1.0),
    "tie": (0.5, 0.5),
    "bothbad": (0.5, 0.5),
}


@dataclass(frozen=True, slots=True)
class Cast:
    """A vote in the log, and how often it was written."""

    verdict: Verdict
    attempt: int


class OutOfTurn(Exception):
    """A vote on another pair than the one that is shown, from a second window say."""


class Ballot:
    """Hands out sheets and takes votes; safe to use from several threads.

    `turn`: the number of the sheet that is shown, or None when all were voted on. A number is the
    place of a sheet in the plan.
    """

    def __init__(self, sheets: Sequence[Sheet], name: str, log: Path) -> None:
        """Raises: DataError for a log that holds other things than games."""
        self.sheets, self.name, self.log = sheets, name, log
        self.cast: dict[int, Cast] = {}
        """Number of a sheet -> its vote."""
        self.taken = 0
        """Votes that were written since the ballot was opened."""
        self._lock = threading.RLock()
        self._voted: list[int] = []
        self._read_log()
        self._waiting = deque(n for n in range(len(sheets)) if n not in self.cast)
        self._again: int | None = None

    def _read_log(self) -> None:
        places = {game_key(sheet, self.name): n for n, sheet in enumerate(self.sheets)}
        for game in games_in(self.log):
            number = places.get(str(game["game_id"]))
            if number is None or game.get("judge_id") != self.name:
                continue
            try:
                self.cast[number] = Cast(_verdict_of(game), int(game.get("attempt", 1)))
            except (ValueError, TypeError) as error:
                raise DataError(
                    f"{self.log}: the vote {game['game_id']} is damaged: {error}",
                    "correct or remove that line",
                ) from error

    @property
    def turn(self) -> int | None:
        """The number of the sheet that is shown."""
        with self._lock:
            if self._again is not None:
                return self._again
            return self._waiting[0] if self._waiting else None

    def vote(self, turn: int, verdict: Verdict, seconds: float = 0.0) -> None:
        """Write down a vote on the sheet that is shown, and go on to the next.

        Raises: OutOfTurn.
        """
        with self._lock:
            self._check(turn)
            self.write([(turn, verdict)], seconds)
            self._voted = [number for number in self._voted if number != turn] + [turn]
            self._leave(turn)

    def skip(self, turn: int) -> None:
        """Leave the sheet for later, or a vote that was looked at again as it is.

        Raises: OutOfTurn.
        """
        with self._lock:
            self._check(turn)
            if self._again is None:
                self._waiting.rotate(-1)
            self._again = None

    def back(self) -> None:
        """Show the sheet before again, of those that were voted on since the ballot was opened."""
        with self._lock:
            if before := self._before():
                self._again = before[-1]

    @property
    def can_go_back(self) -> bool:
        """Whether there is a vote to go back to."""
        with self._lock:
            return bool(self._before())

    def write(self, votes: Sequence[tuple[int, Verdict]], seconds: float = 0.0) -> None:
        """Add votes to the log, each as the next attempt of its game."""
        new, games = {}, []
        for number, verdict in votes:
            attempt = self.cast[number].attempt + 1 if number in self.cast else 1
            new[number] = Cast(verdict, attempt)
            games.append(game_of(self.sheets[number], self.name, new[number], seconds))
        append(self.log, games)
        self.cast |= new  # now, because a disk may be full
        self.taken += len(games)

    def _check(self, turn: int) -> None:
        if turn != self.turn:
            raise OutOfTurn

    def _leave(self, turn: int) -> None:
        if self._again is None:
            self._waiting.popleft()
        self._again = None

    def _before(self) -> list[int]:
        """What was voted on before the sheet that is shown."""
        if self._again is None:
            return self._voted
        return self._voted[: self._voted.index(self._again)]


def game_of(sheet: Sheet, name: str, cast: Cast, seconds: float = 0.0) -> Game:
    """A vote as a game."""
    first, second = SCORES[cast.verdict]
    return Game(
        game_id=game_key(sheet, name),
        battle_id=battle_key(sheet, name),
        prompt_id=sheet.item.id,
        model_first=sheet.first.model,
        model_second=sheet.second.model,
        judge_id=name,
        parse_status="ok",
        score_first=first,
        score_second=second,
        answer_first_sha=sheet.first.sha,
        answer_second_sha=sheet.second.sha,
        decoding={"verdict": cast.verdict},
        latency_ms=round(1000.0 * seconds, 1),
        ts=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        attempt=cast.attempt,
        category=sheet.item.category,
        style_first=style_of(sheet.first.text),
        style_second=style_of(sheet.second.text),
    )


def games_in(log: Path) -> Iterator[dict[str, Any]]:
    """The games of a log; one that is not there has none, and a last line that a kill cut off
    counts for nothing.

    Raises: DataError for a file that is no log of games.
    """
    if not log.exists():
        return
    if not log.is_file():
        raise DataError(f"{log} is not a file", "choose another --log")
    if log.suffix != ".jsonl":
        raise DataError(f"{log} is no file of JSON lines", "give --log a name that ends in .jsonl")
    lines = log.read_bytes().count(b"\n")
    for number, row in read_file(log):
        if row is BLANK or number > lines:
            continue
        if isinstance(row, Unreadable):
            raise DataError(f"{log}:{number}: {row.reason}", "correct or remove that line")
        if "game_id" not in row:
            raise DataError(f"{log}:{number} is no game", "choose another --log")
        yield row


def _verdict_of(game: dict[str, Any]) -> Verdict:
    decoding = game.get("decoding")
    said = decoding.get("verdict") if isinstance(decoding, dict) else None
    if said in VERDICTS:
        return said
    lead = float(game.get("score_first") or 0.0) - float(game.get("score_second") or 0.0)
    return "tie" if lead == 0 else "first" if lead > 0 else "second"
