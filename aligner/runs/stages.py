"""Stages of a long run: each a folder whose name does not say what is in it, but whose record does.
Imports no torch.

    NAME/stage.json   what it is made of, and the key: a hash of that; written first
    NAME/done.json    last: what came out, and the SHA-256 of each file; its presence means done

A stage is a function of what it is made of: settings, and the digests of the stages before it. So a
changed setting makes that stage and those downstream stale, and nothing else: what is there under
another key is set aside below `stale/`, and is taken back where the key comes again. One that is
unfinished resumes, its parts kept by `aligner.runs.journal`. One that is done, and whose files are
not what was written, is made again, with a remark; of a journal only the parts that are damaged.

Who may write is the run directory's business (`aligner.runs.run`).
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from aligner.errors import DataError
from aligner.events import Notice, OnEvent, Warned, tell
from aligner.runs.digests import digests_of
from aligner.runs.files import (
    dumps,
    flatten,
    is_temporary,
    parse_json,
    sync_folder,
    write_atomically,
)
from aligner.runs.journal import Journal

RECORD, DONE, STALE = "stage.json", "done.json", "stale"
NAMED = 3
"""Keys that a remark on a changed stage names."""
DIGITS = 8
CURE = "delete the folder: the stage is made again"


@dataclass
class Stage:
    """One stage, opened by `Stages.open`.

    `facts`: what it said of itself when it was finished; None while it is not. `digest`: a hash of
    its files then, which later stages are made of.
    """

    name: str
    folder: Path
    key: str
    on_event: OnEvent | None = None
    facts: dict[str, Any] | None = None
    digest: str = ""
    _started: float = field(default_factory=time.monotonic)
    _journals: dict[str, Journal] = field(default_factory=dict)

    @property
    def is_done(self) -> bool:
        """Say whether there is nothing left to do."""
        return self.facts is not None

    def journal(self, name: str) -> Journal:
        """Open the journal of its parts, `NAME.jsonl`, once; the listener hears of damage whose
        parts are to be made again."""
        if name not in self._journals:
            self._journals[name] = Journal(self.folder / f"{name}.jsonl", self.key)
            if not self.is_done:
                self._journals[name].tell_damaged(self.on_event)
        return self._journals[name]

    def write(self, name: str, value: Any) -> None:
        """Write a file of JSON below it, whole or not at all."""
        write_atomically(self.folder / name, dumps(value, indent=2) + "\n")

    def finish(self, facts: Mapping[str, Any], files: Iterable[Path] | None = None) -> None:
        """Declare it done. `files`: what came out, all that is in its folder by default."""
        listed = _files_in(self.folder) if files is None else list(files)
        digests = {
            path.relative_to(self.folder).as_posix(): digest
            for path, digest in digests_of(sorted(listed)).items()
        }
        seconds = round(time.monotonic() - self._started, 3)
        record = {"key": self.key, "facts": dict(facts), "seconds": seconds, "files": digests}
        self.write(DONE, {**record, "pruned": []})
        self.facts, self.digest = json.loads(dumps(record["facts"])), _digest(digests)

    def prune(self, wanted: Callable[[str], bool]) -> None:
        """Remove those files of a finished stage that are not needed for now; it stays done."""
        record = parse_json(self.folder / DONE, CURE)
        pruned = sorted({*record["pruned"], *filter(wanted, record["files"])})
        if pruned != record["pruned"]:
            self.write(DONE, {**record, "pruned": pruned})
        for name in pruned:
            (self.folder / name).unlink(missing_ok=True)

    @property
    def is_pruned(self) -> bool:
        """Say whether files of a finished stage are gone that would have to be made again."""
        return bool(parse_json(self.folder / DONE, CURE)["pruned"])

    def reopen(self) -> None:
        """Take back that it is done; its parts stay, for whoever can tell which still hold."""
        (self.folder / DONE).unlink(missing_ok=True)
        self.facts, self.digest, self._started = None, "", time.monotonic()

    def reset(self) -> None:
        """Start again from nothing."""
        record = parse_json(self.folder / RECORD, CURE)
        shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)
        self.write(RECORD, record)
        self._journals.clear()
        self.reopen()


@dataclass(frozen=True)
class Stages:
    """The stages below a folder."""

    root: Path
    on_event: OnEvent | None = None

    def open(self, name: str, made_of: Mapping[str, Any]) -> Stage:
        """Return the stage of this name that is made of these: done, half done, or new."""
        wanted = json.loads(dumps(made_of))
        key = sha256(json.dumps([name, wanted], sort_keys=True).encode()).hexdigest()
        folder = self.root / name
        known, aside = _record_of(folder), self.root / STALE / name / key[:DIGITS]
        if folder.is_dir() and known.get("key") != key:
            changed = self._set_aside(name, folder, known, wanted)
            if changed and not aside.is_dir():
                self._say(f"{name} is made again, since {changed} changed; the old is in stale/")
        if not folder.is_dir() and aside.is_dir():
            _move(aside, folder)
            self._say(f"{name} is taken back from stale/: it is made of the same")
        stage = Stage(name, folder, key, self.on_event)
        self._read(stage)
        if not (folder / RECORD).exists():
            folder.mkdir(parents=True, exist_ok=True)
            stage.write(RECORD, {"key": key, "made_of": wanted})
        return stage

    def _read(self, stage: Stage) -> None:
        """Take what a finished stage says; one that is damaged is emptied, but for journals, whose
        lines have checksums: of these the damaged parts alone are made again."""
        if not (stage.folder / DONE).exists():
            return
        try:
            record = parse_json(stage.folder / DONE, CURE, dict, ("facts", "files", "pruned"))
        except DataError as error:
            self._warn(f"{error.message}: {stage.name} is made again")
            shutil.rmtree(stage.folder)
            return
        damaged = _damaged(stage.folder, record)
        if not damaged:
            stage.facts, stage.digest = record["facts"], _digest(record["files"])
            return
        path = damaged[0]
        what = "is not what was written there" if path.exists() else "is missing"
        self._warn(f"{path} {what}: {stage.name} is made again")
        if all(path.suffix == ".jsonl" for path in damaged):
            stage.reopen()
        else:
            shutil.rmtree(stage.folder)

    def _set_aside(
        self, name: str, folder: Path, known: Mapping[str, Any], wanted: Mapping[str, Any]
    ) -> str:
        """Move away a stage that is made of something else, and name what changed; nothing where
        a kill came before its record was written."""
        if "key" not in known:
            if (folder / DONE).exists():
                self._warn(f"{folder / RECORD} is damaged: {name} is made again")
            shutil.rmtree(folder)
            return ""
        aside = self.root / STALE / name / str(known["key"])[:DIGITS]
        shutil.rmtree(aside, ignore_errors=True)
        _move(folder, aside)
        before, now = flatten(known.get("made_of", {})), flatten(dict(wanted))
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
        return f"{', '.join(changed[:NAMED])}{more}"

    def _warn(self, text: str) -> None:
        tell(self.on_event, Warned(text))

    def _say(self, text: str) -> None:
        tell(self.on_event, Notice(text))


def _damaged(folder: Path, record: Mapping[str, Any]) -> list[Path]:
    """The files of a finished stage that are missing, or not what was written."""
    there = [folder / name for name in record["files"] if name not in record["pruned"]]
    known = digests_of(path for path in there if path.is_file())
    written = {folder / name: digest for name, digest in record["files"].items()}
    return [path for path in there if known.get(path) != written[path]]


def done_record(folder: Path) -> dict[str, Any] | None:
    """Return what a finished stage wrote of itself, for reading: its facts and seconds; None for
    one that is not finished."""
    path = folder / DONE
    if not path.exists():
        return None
    record: dict[str, Any] = parse_json(path, CURE, dict, ("key", "facts", "seconds"))
    return record


def what_is_done(folder: Path) -> str:
    """Say how far the stages below a folder are: "1 finished stage, and 20 parts of the next"."""
    stages = [path for path in folder.iterdir() if path.is_dir() and path.name != STALE]
    done = sum((path / DONE).exists() for path in stages)
    said = f"{done} finished stage{'' if done == 1 else 's'}"
    started = (path for path in stages if not (path / DONE).exists())
    journals = (file for path in started for file in path.glob("*.jsonl"))
    parts = sum(file.read_bytes().count(b"\n") for file in journals)
    return f"{said}, and {parts:,} part{'' if parts == 1 else 's'} of the next" if parts else said


def _record_of(folder: Path) -> dict[str, Any]:
    if not (folder / RECORD).exists():
        return {}
    try:
        record: dict[str, Any] = parse_json(folder / RECORD, CURE, dict, ("key", "made_of"))
    except DataError:
        return {}
    return record


def _files_in(folder: Path) -> list[Path]:
    """All but its record, and what a kill left of a file that was being written."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != RECORD]
    return [path for path in files if not is_temporary(path)]


def _digest(files: Mapping[str, str]) -> str:
    return sha256(json.dumps(dict(files), sort_keys=True).encode()).hexdigest()


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)
    sync_folder(target.parent)
