"""What an arena writes down: one line of JSON for each game (one call of a judge) and each battle.

A battle is one prompt answered by two models; it has a game for each order in which a judge saw the
answers. Files of records only grow: what a kill cut off at the end of one is dropped when the next
line is added, and passed over when it is read. Nothing here judges, merges or rates.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from aligner.errors import DataError
from aligner.runs.files import json_line

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SCHEMA_VERSION = 1

ParseStatus = Literal["ok", "repaired", "failed", "refused", "truncated", "error"]

READ_WELL = ("ok", "repaired")
"""States of a reply whose scores count; a game in any other state has none."""

RULE = "rule"
"""Key of `Game.decoding` that names the rule which decided a game, where no judge was asked."""

_HEADER = re.compile(r"^#{1,6} \S", re.MULTILINE)
_ITEM = re.compile(r"^[^\S\n]*(?:[-*+]|\d{1,9}[.)]) +\S", re.MULTILINE)
_BOLD = re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__")
_FENCE = re.compile(r"^```.*?(?:^```|\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Style:
    """How an answer looks: characters, Markdown headers, list items and bold spans."""

    length: int
    headers: int = 0
    list_items: int = 0
    bold: int = 0


@dataclass(frozen=True, slots=True)
class Game:
    """One call of a judge, which saw the answer of `model_first` before that of `model_second`."""

    game_id: str
    battle_id: str
    prompt_id: str
    model_first: str
    model_second: str
    judge_id: str
    parse_status: ParseStatus
    score_first: float | None = None
    score_second: float | None = None
    raw_text: str = ""
    answer_first_sha: str = ""
    answer_second_sha: str = ""
    judge_rev: str = ""
    prompt_template_sha: str = ""
    decoding: dict[str, Any] = field(default_factory=dict)
    cache_hit: bool = False
    tokens_in: int = 0
    tokens_out: int = 0
    latency_ms: float = 0.0
    usd: float | None = None
    ts: str = ""
    attempt: int = 1
    shard: str = ""
    stage: str = ""
    round: int | None = None
    category: str = ""
    style_first: Style | None = None
    style_second: Style | None = None
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class Battle:
    """Two models on one prompt, the games of both orders merged; `model_a` sorts before
    `model_b`."""

    battle_id: str
    prompt_id: str
    model_a: str
    model_b: str
    judge_id: str
    winner: Literal["model_a", "model_b", "tie"]
    s_a: float | None = None
    s_b: float | None = None
    margin: float | None = None
    consistent: bool | None = None
    n_games: int = 2
    category: str = ""
    difficulty: float | None = None
    style_a: Style | None = None
    style_b: Style | None = None
    judge_rev: str = ""
    schema_version: int = SCHEMA_VERSION


def style_of(text: str) -> Style:
    """Count what an answer looks like; Markdown within fences of code does not count."""
    prose = _FENCE.sub("", text)
    found = (len(pattern.findall(prose)) for pattern in (_HEADER, _ITEM, _BOLD))
    return Style(len(text), *found)


def append(path: Path, records: Iterable[Game | Battle]) -> None:
    """Add records to a file; they are on disk when this returns. Several processes may do so at the
    same time where the disk has locks."""
    text = "".join(json_line(asdict(record)) for record in records)
    with path.open("ab+") as file:
        if fcntl is not None:
            with suppress(OSError):  # a disk without locks
                fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(_end_of_whole_lines(path))
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def read_battles(path: Path) -> list[Battle]:
    """Return the battles of a file of merged ones.

    Raises: DataError for a line that is not what was written.
    """
    found = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                for key in ("style_a", "style_b"):
                    row[key] = None if row[key] is None else Style(**row[key])
                found.append(Battle(**row))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise DataError(
                    f"{path}:{number} is not the record of a battle: {error}",
                    "name a file that `aligner arena battle` wrote",
                ) from error
    return found


def _end_of_whole_lines(path: Path) -> int:
    """Where the last whole line ends."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0
