"""The run directory: who may write to it, what is in it, and when it is done. Imports no torch.

    recipe.yaml        the recipe as given
    samples.json     held-out prompts, before and after
    resolved.json      every value and where it came from
    evaluation.json  what was measured, when something was
    environment.json   versions, devices, git, command
    checkpoints/     checkpoint-N, whole once `complete` is in
    code.diff          uncommitted changes, if any           prepared/        tokenized data
    inputs.json        fingerprints of the data files, and of what else the recipe names
    final/           model, tokenizer, model card
    data.json          the ledger of rows and tokens
    report.html      everything above, to look at
    metrics.jsonl      one line for each logged step
    manifest.json    last: its presence means done
    weights.json       how many are trained, of how many, where
    decided.json       precision and cadence, decided before the first step

A process may be killed at any moment. Files are written under a temporary name, flushed to disk and
renamed, so they are whole or absent; `metrics.jsonl` is appended to, and a line cut short by a kill
is removed when the file is opened again. A run is resumed only with the recipe and the data that it
started with, apart from the keys in `FREE_KEYS`, which do not change the result. One process at a
time holds the `lock`; that of a dead process on this machine is taken over.
"""

from __future__ import annotations

import atexit
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from aligner.config.load import Resolved, recipe_hash
from aligner.errors import AlignerError, DataError, Problem, UsageError
from aligner.methods.catalogue import method_of
from aligner.runs.changes import changes, recipe_values, shown
from aligner.runs.checkpoints import latest_checkpoint, remove_incomplete, step_of
from aligner.runs.environment import (
    describe_environment,
    now,
    redact,
    redact_values,
    secrets_in,
    this_command,
    versions,
)
from aligner.runs.files import (
    dumps,
    fingerprints,
    plain,
    read_json,
    sync_folder,
    write_atomically,
)
from aligner.runs.lock import LOCK_NAME, acquire_lock, release_lock
from aligner.runs.metrics_log import MetricsLog
from aligner.runs.places import refuse_name, refuse_unusable, way_out
from aligner.runs.resumable import settle_checkpoint
from aligner.runs.stages import STALE, what_is_done

WritePage = Callable[[Path, dict[str, Any]], Any]
"""Writes a page about a run, from its directory and its manifest."""

RECORD_FILES = ("recipe.yaml", "resolved.json", "environment.json")
FIRST_FILES = frozenset([*RECORD_FILES, "code.diff", LOCK_NAME])
"""What a run killed in its first moments may have left."""

WORK = (
    "data.json",
    "rounds",
    "metrics.jsonl",
    "checkpoints",
    "final",
    "archive",
    "shards",
    "journal",
    "stages",
    "manifest.json",
)
"""A run that has none of these failed before its data was ready: it is started again, since nothing
would be lost."""

FOLDERS = (
    *("checkpoints", "final", "prepared", "archive", "shards", "journal", "rounds", "stages"),
)
"""What must be a folder where it is there."""

_TEMPORARY = re.compile(r"^\.(.+)\.\d+\.tmp$")


def looks_like_a_run(folder: Path) -> bool:
    """True for a directory that this module made, also when it was killed while making it."""
    entries = [entry.name for entry in folder.iterdir()]
    halves = {_TEMPORARY.sub(r"\1", name) for name in entries if _TEMPORARY.match(name)}
    names = {name for name in entries if not _TEMPORARY.match(name)} | (halves & FIRST_FILES)
    killed_early = names <= FIRST_FILES and bool(names & {LOCK_NAME, "resolved.json"})
    return killed_early or names.issuperset(RECORD_FILES)


class Run:
    """One run directory. `create` for the process that owns it, `attach` for other ranks and for
    readers."""

    def __init__(self, run_dir: Path) -> None:
        self.dir = run_dir
        self.final_dir = run_dir / "final"
        self.checkpoints_dir = run_dir / "checkpoints"
        self.prepared_dir = run_dir / "prepared"
        self.notes: list[str] = []
        """What a user should hear about how the run was opened: a lock taken over, versions that
        changed."""
        self.metrics = MetricsLog(run_dir)

    @classmethod
    def create(cls, resolved: Resolved, *, resume: bool = False, overwrite: bool = False) -> Run:
        """Make the run directory, or open it again. A finished run that is resumed comes back with
        `is_done`."""
        run = cls(Path(resolved.recipe.output_dir))
        is_staged = method_of(resolved.recipe.method).is_staged
        state = cls.check_place(run.dir, resume=resume, overwrite=overwrite, is_staged=is_staged)
        run._lock()
        if resume and state == "run":
            run._reopen(resolved)
        else:
            _clear(run.dir)
            run._begin(resolved)
        return run

    @staticmethod
    def check_place(
        folder: Path, *, resume: bool = False, overwrite: bool = False, is_staged: bool = False
    ) -> str:
        """Refuse a place that cannot be used, before any work; return what is there ("free",
        "barely begun", "run"). `is_staged`: a run there takes changed settings."""
        if resume and overwrite:
            raise UsageError("--resume and --overwrite exclude each other", "give one of them")
        refuse_name(folder, "output_dir")
        state = _state_of(folder)
        for place in (folder / name for name in FOLDERS):
            if state == "run" and not overwrite and place.exists() and not place.is_dir():
                raise UsageError(
                    f"{place} is a file where a folder belongs",
                    "move it away, or start again with --overwrite",
                )
        if state not in ("free", "barely begun", "run"):
            raise UsageError(
                f"{folder} {state}", "choose another output_dir; nothing in there was touched"
            )
        if state == "run" and not (resume or overwrite):
            raise UsageError(
                f"{folder} exists already: {what_is_in(folder)}",
                way_out(folder, is_staged=is_staged),
            )
        refuse_unusable(folder, "output_dir")
        return state

    @classmethod
    def attach(cls, run_dir: str | Path) -> Run:
        """A run that exists, without the lock: for the other ranks, and for reading."""
        folder = Path(run_dir)
        if not (folder / "resolved.json").is_file():
            raise UsageError(
                f"{folder} is not a run directory: it has no resolved.json",
                "give the output_dir of a run",
            )
        return cls(folder)

    def _lock(self) -> None:
        missing = [folder for folder in (self.dir, *self.dir.parents) if not folder.exists()]
        self.dir.mkdir(parents=True, exist_ok=True)
        note = acquire_lock(self.dir)
        if note:
            self.notes.append(note)
        atexit.register(self.close)
        for folder in missing:
            sync_folder(folder.parent)

    def _begin(self, resolved: Resolved) -> None:
        environment, diff = describe_environment()
        self._write_resolved(resolved)
        self.write_text(
            "recipe.yaml", redact(resolved.text, secrets_in(resolved.recipe.model_dump()))
        )
        if diff:
            self.write_text("code.diff", diff)
        self.write_json("environment.json", environment)

    def _write_resolved(self, resolved: Resolved) -> None:
        secrets = secrets_in(resolved.recipe.model_dump())
        origins = {key: redact(origin, secrets) for key, origin in resolved.origins.items()}
        content = {
            "recipe": recipe_values(resolved),
            "origins": origins,
            "recipe_hash": recipe_hash(resolved.recipe),
        }
        self.write_json("resolved.json", content)

    def _reopen(self, resolved: Resolved) -> None:
        """Refuse a changed recipe; then clear away what the kill left half done and note the new
        session."""
        changed, unwritten = changes(self.read_json("resolved.json"), resolved)
        if unwritten:
            more = f" and {len(unwritten) - 5} more" if len(unwritten) > 5 else ""
            self.notes.append(
                f"resolved.json of this run says nothing of {len(unwritten)} defaults (it was "
                "started with other versions), so they were not compared: "
                f"{', '.join(unwritten[:5])}{more}"
            )
        if changed and method_of(resolved.recipe.method).is_staged:
            (self.dir / "manifest.json").unlink(missing_ok=True)
            keys = ", ".join(key for key, *_ in changed)
            self.notes.append(f"changed since this run was started: {keys}")
            changed = []
        if changed:
            self.close()
            raise UsageError(
                f"{self.dir} was started with a different recipe; resuming would mix two runs",
                "change these keys back, or choose another output_dir",
                [Problem(f"{shown(old)} -> {shown(new)}", key=key) for key, old, new in changed],
            )
        if self.is_done:
            self.close()
            return
        try:
            self.notes += settle_checkpoint(self.checkpoints_dir, resolved.recipe)
        except AlignerError:
            self.close()
            raise
        self._write_resolved(resolved)
        self._note_session()
        self.metrics.repair()
        self._remove_leftovers()

    def _note_session(self) -> None:
        environment = self.read_json("environment.json")
        sessions = environment["sessions"]
        sessions[-1].setdefault("last_sign", self._last_sign_of_life(sessions[-1]["started"]))
        session: dict[str, Any] = {"started": now(), "command": this_command()}
        before, current = environment["versions"], versions()
        differing = {
            name: current.get(name)
            for name in {**before, **current}
            if before.get(name) != current.get(name)
        }
        if differing:
            session["versions"] = differing
            listed = ", ".join(
                f"{name} {before.get(name)} -> {current.get(name)}" for name in sorted(differing)
            )
            self.notes.append(f"versions changed since the run began, results may differ: {listed}")
        sessions.append(session)
        self.write_json("environment.json", environment)

    def _last_sign_of_life(self, started: str) -> str:
        """When the previous session last wrote something: for the time that the run took without
        the pauses."""
        path = self.dir / "metrics.jsonl"
        begun = datetime.fromisoformat(started)
        seen = (
            datetime.fromtimestamp(path.stat().st_mtime, begun.tzinfo) if path.exists() else begun
        )
        return max(begun, seen).isoformat(timespec="seconds")

    def _remove_leftovers(self) -> None:
        """Remove what a kill left half written, below the run directory and in it."""
        for path in self.dir.rglob(".*.tmp"):
            if _TEMPORARY.match(path.name) and path.is_file():
                path.unlink()
        for path in (self.dir / f"{name}.unfinished" for name in FOLDERS):
            shutil.rmtree(path, ignore_errors=True)
        remove_incomplete(self.checkpoints_dir)

    def check_data(self, fingerprint: str, sources: Mapping[str, Any]) -> None:
        """Remember the data on the first call; on a resumed run refuse other data. `sources`: path
        -> fingerprint."""
        new = {"fingerprint": fingerprint, "sources": plain(sources)}
        old = self.read_json("inputs.json")
        if old is None or not old["fingerprint"]:
            self.write_json("inputs.json", {**(old or {}), **new})
            return
        problems = list(_data_changes(old["sources"], new["sources"]))
        if not problems and old["fingerprint"] != fingerprint:
            problems = [
                Problem(
                    "the files are the same, but what is made of them is not (a mapping function, "
                    "or aligner)"
                )
            ]
        if problems:
            raise DataError(
                f"the data changed since {self.dir} was started; resuming would mix two runs",
                "put the old data back, or choose another output_dir",
                problems,
            )

    def read_json(self, name: str) -> Any:
        return read_json(self.dir, name)

    def write_json(self, name: str, value: Any) -> None:
        """Write `name` below the run directory, whole or not at all."""
        self.write_text(name, dumps(value, indent=2) + "\n")

    def write_text(self, name: str, text: str) -> None:
        path = self.dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)

    def record_devices(self, devices: Mapping[str, Any]) -> None:
        """Add what the accelerator library says to `environment.json`; called once torch is
        loaded."""
        environment = self.read_json("environment.json")
        environment["devices"] = plain(devices)
        self.write_json("environment.json", environment)

    def record_isolation(self, isolation: Mapping[str, str]) -> None:
        """Add to `environment.json` which walls stand around programs that are run."""
        if isolation:
            environment = self.read_json("environment.json")
            environment["isolation"] = dict(isolation)
            self.write_json("environment.json", environment)

    def record_arguments(self, arguments: Mapping[str, Any], of_device: Sequence[str]) -> list[str]:
        """Add to `environment.json` what the recipe leaves to device, data and model, as the
        trainer has it; return remarks on what the device decided otherwise before a
        resumption."""
        environment = self.read_json("environment.json")
        before, found = environment.get("arguments", {}), redact_values(plain(arguments))
        environment["arguments"] = found
        self.write_json("environment.json", environment)
        return [
            f"{key} was {shown(before[key])} before this run was resumed, and is "
            f"{shown(found[key])} on this device: results may differ"
            for key in of_device
            if key in before and before[key] != found.get(key)
        ]

    def log_metrics(self, record: Mapping[str, Any]) -> None:
        """Append one line to `metrics.jsonl`, and send it to the trackers."""
        self.metrics.add(record)

    def trim_metrics(self, step: int) -> None:
        """Drop what was logged after `step`, or everything for step 0: a resumed run logs it
        again."""
        self.metrics.trim(step)

    @property
    def is_done(self) -> bool:
        return (self.dir / "manifest.json").exists()

    def finish(
        self,
        results: Mapping[str, Any],
        parents: list[dict[str, Any]],
        *,
        write_card: WritePage,
        write_report: WritePage,
    ) -> None:
        """Write the model card, the report, and `manifest.json` last of all; the pages are given
        the folder and the manifest."""
        manifest = self._manifest(results, parents)
        if self.final_dir.is_dir():
            write_card(self.dir, manifest)
            manifest["files"] = fingerprints(self.dir, self.final_dir)
        write_report(self.dir, manifest)
        self._end(manifest)

    def finish_without_training(
        self,
        results: Mapping[str, Any],
        parents: Sequence[dict[str, Any]] = (),
        files: Path | None = None,
    ) -> None:
        """`manifest.json` of a run that trained no model of its own and wrote its report itself;
        `files` is what it made."""
        manifest = self._manifest(results, list(parents))
        if files is not None:
            manifest["files"] = fingerprints(self.dir, files)
        self._end(manifest)

    def _end(self, manifest: Mapping[str, Any]) -> None:
        self.metrics.finish(manifest)
        self.write_json("manifest.json", manifest)
        self.close()

    def _manifest(
        self, results: Mapping[str, Any], parents: list[dict[str, Any]]
    ) -> dict[str, Any]:
        environment, resolved = self.read_json("environment.json"), self.read_json("resolved.json")
        finished = now()
        return {
            "aligner": versions().get("aligner"),
            "method": resolved["recipe"]["method"],
            "recipe_hash": resolved["recipe_hash"],
            "data_fingerprint": (self.read_json("inputs.json") or {}).get("fingerprint") or None,
            "results": plain(results),
            "parents": plain(parents),
            "files": {},
            # Last what differs between two equal runs: nothing above does.
            "created": environment["sessions"][0]["started"],
            "finished": finished,
            "seconds": seconds_worked(environment["sessions"], finished),
        }

    def close(self) -> None:
        """Give the lock back. Called by `finish`, and at the end of the process."""
        self.metrics.close()
        release_lock(self.dir)
        atexit.unregister(self.close)


def seconds_worked(sessions: list[dict[str, Any]], finished: str) -> float:
    """Time in which the run was worked on: a session that was killed counts up to its last sign of
    life."""
    ends = [session.get("last_sign", finished) for session in sessions]
    spans = [
        datetime.fromisoformat(b) - datetime.fromisoformat(s["started"])
        for s, b in zip(sessions, ends)
    ]
    return sum(span.total_seconds() for span in spans)


def _state_of(folder: Path) -> str:
    """`free`, `barely begun`, `run`, or the end of a sentence that says why this place cannot be
    used."""
    if not folder.exists():
        return "free"
    if not folder.is_dir():
        return "is a file"
    here, home = Path.cwd(), Path.home()
    if folder.resolve() in (here, *here.parents, home, *home.parents):
        return "holds the working directory or your home, so it cannot be a run directory"
    if not any(folder.iterdir()):
        return "free"
    if not looks_like_a_run(folder):
        return "holds files that are not a run of aligner's"
    return "run" if any((folder / name).exists() for name in WORK) else "barely begun"


def what_is_in(folder: Path) -> str:
    """Say what a run directory holds: "an unfinished sft run, saved up to step 20"."""
    run = Run(folder)
    resolved = run.read_json("resolved.json")
    method = resolved["recipe"]["method"] if resolved else "training"
    if run.is_done:
        return f"a finished {method} run of {run.read_json('manifest.json')['finished']}"
    if (folder / "archive").is_dir():
        tried = sum(1 for _ in (folder / "archive").glob("*/record.json"))
        return f"an unfinished {method} run that has tried {tried} objectives"
    if (folder / "shards").is_dir():
        built = sum(1 for _ in (folder / "shards").glob("*.done"))
        return f"an unfinished {method} run that has built {built} part{'' if built == 1 else 's'}"
    if (folder / "rounds").is_dir():
        places = (path.relative_to(folder).parts for path in (folder / "rounds").rglob("done.json"))
        done = sum(STALE not in parts for parts in places)
        stages = "1 stage of which is" if done == 1 else f"{done:,} stages of which are"
        return f"an unfinished {method} run, {stages} done"
    if (folder / "stages").is_dir():
        return f"an unfinished {method} run with {what_is_done(folder / 'stages')}"
    if (folder / "journal").is_dir():
        return f"an unfinished {method} run, parts of which are done"
    latest = latest_checkpoint(run.checkpoints_dir)
    saved = f"saved up to step {step_of(latest)}" if latest else "with no checkpoint yet"
    return f"an unfinished {method} run, {saved}"


def _clear(folder: Path) -> None:
    """Empty a run directory. `manifest.json` goes first and the record last, so that half a
    deletion can be told."""
    (folder / "manifest.json").unlink(missing_ok=True)
    for path in sorted(folder.iterdir(), key=lambda path: path.name in FIRST_FILES):
        if path.name == LOCK_NAME:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _data_changes(old: dict[str, Any], new: dict[str, Any]) -> Iterator[Problem]:
    for path in {**old, **new}:
        if path not in new:
            yield Problem("is no longer among the sources", where=path)
        elif path not in old:
            yield Problem("was not among the sources", where=path)
        elif old[path] != new[path]:
            yield Problem("has other content now", where=path)
