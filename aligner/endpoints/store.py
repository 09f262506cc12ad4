"""The SQLite file of replies, so that nothing is asked twice, with the usage of each run beside
them.

The key is the request (`request_key`). Failures are never kept, and truncated replies only for who
asks for them; no one else is answered with one. The file is in write-ahead mode with
synchronous=NORMAL: a commit takes well under a millisecond, and the file is whole after a kill at
any point and shared by several processes on one machine (not over a network disk, where SQLite's
locks do not hold). Prompts, keys and addresses are not in the file; replies are, and only its owner
may read it.

The accounts of a run (`run` key) are written in the same commit as the reply that they count, so a
kill cannot part them.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from aligner.endpoints.budget import Spent
from aligner.endpoints.request import Completion, completion_to_json
from aligner.errors import UsageError

VERSION = 1
LOCK_WAIT_S = 30.0
AWAY = "move it away, or name another file; a new one is made"

TABLES = (
    "CREATE TABLE replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL, model TEXT NOT NULL, "
    "created REAL NOT NULL)"
    " WITHOUT ROWID",
    "CREATE TABLE spent (run TEXT PRIMARY KEY, calls INTEGER NOT NULL DEFAULT 0, replies INTEGER "
    "NOT NULL DEFAULT 0,"
    " prompt_tokens INTEGER NOT NULL DEFAULT 0, completion_tokens INTEGER NOT NULL DEFAULT 0) "
    "WITHOUT ROWID",
)

ADD_REPLY = "INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?)"
ADD_SPENT = (
    "INSERT INTO spent VALUES (?, ?, ?, ?, ?) ON CONFLICT (run) DO UPDATE SET"
    " calls = calls + excluded.calls, replies = replies + excluded.replies,"
    " prompt_tokens = prompt_tokens + excluded.prompt_tokens,"
    " completion_tokens = completion_tokens + excluded.completion_tokens"
)
CUT = ".cut"  # at the end of the key of a truncated reply


class Store:
    """The file. `run` names the accounts to continue; without one nothing is kept but replies.
    `keep_truncated`: also those that were cut."""

    def __init__(self, path: Path, run: str = "", *, keep_truncated: bool = False) -> None:
        """Open the file, or make it. Raises: UsageError when it cannot be opened or is something
        else."""
        self.path = path
        self.run = run
        self.keep_truncated = keep_truncated
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._db = sqlite3.connect(
                path, timeout=LOCK_WAIT_S, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as error:
            raise UsageError(
                f"the cache {path} cannot be opened: {error}", "name a file in a writable folder"
            ) from error
        try:
            self._prepare()
        except sqlite3.Error as error:
            self._db.close()
            raise UsageError(
                f"the cache {path} cannot be read: {error}",
                AWAY,
            ) from error
        except UsageError:
            self._db.close()
            raise

    def _prepare(self) -> None:
        _in_wal_mode(self._db)
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute("BEGIN IMMEDIATE")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        names = [
            name
            for (name,) in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        if version == 0 and not names:
            for table in TABLES:
                self._db.execute(table)
            self._db.execute(f"PRAGMA user_version={VERSION}")
        elif version != VERSION or not {"replies", "spent"} <= set(names):
            self._db.execute("ROLLBACK")
            raise UsageError(
                f"{self.path} is not a cache of this version of aligner", "name another file"
            )
        self._db.execute("COMMIT")

    def get(self, key: str) -> Completion | None:
        """Return the reply to a request, marked as cached, or None. A truncated one comes only to
        who keeps them, and where there is no whole one."""
        known = self._get(key)
        return self._get(key + CUT) if known is None and self.keep_truncated else known

    def _get(self, key: str) -> Completion | None:
        """Return what is kept; one that is not what was kept is forgotten."""
        row = self._execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        text, _, checksum = row[0].partition("\n")
        if checksum not in ("", _checksum(text)):  # replies kept by an older version have none
            self._execute("DELETE FROM replies WHERE key = ?", (key,))
            return None
        return replace(Completion(**json.loads(text)), cached=True)

    def write(self, calls: int = 0, replies: Sequence[tuple[str, str, Completion]] = ()) -> None:
        """Count calls that are about to be sent, and count and keep replies (key, model, reply), in
        one commit. The first reply to a request stays."""
        rows = [
            _row(key, model, reply)
            for key, model, reply in replies
            if self.keep_truncated or not reply.truncated
        ]
        prompt_tokens = sum(reply.prompt_tokens for _, _, reply in replies)
        completion_tokens = sum(reply.completion_tokens for _, _, reply in replies)
        self._execute("BEGIN IMMEDIATE")
        try:
            for row in rows:
                self._execute(ADD_REPLY, row)
            if self.run:
                spent = (self.run, calls, len(replies), prompt_tokens, completion_tokens)
                self._execute(ADD_SPENT, spent)
        except BaseException:
            with suppress(sqlite3.Error):  # a full disk has rolled it back already
                self._db.execute("ROLLBACK")
            raise
        self._execute("COMMIT")

    def spent(self) -> Spent:
        """Return what the run has spent until now; nothing without a run."""
        query = "SELECT calls, replies, prompt_tokens, completion_tokens FROM spent WHERE run = ?"
        row = self._execute(query, (self.run,)).fetchone()
        return Spent() if row is None else Spent(*row)

    def _execute(self, statement: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        """Carry out a statement. Raises: UsageError naming a file that is damaged, or a full
        disk."""
        try:
            return self._db.execute(statement, values)
        except sqlite3.Error as error:
            is_full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
            raise UsageError(
                f"the cache {self.path} cannot be used: {error}",
                "free some space, and start again" if is_full else AWAY,
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def take_over(source: Path, target: Path) -> None:
    """Bring the replies and accounts of one file to a new one, and remove the first. Raises:
    UsageError for a file that cannot be read."""
    for path in (source, target):
        Store(path).close()
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)
    for end in ("", "-wal", "-shm"):
        Path(f"{source}{end}").unlink(missing_ok=True)


def _row(key: str, model: str, completion: Completion) -> tuple[str, str, str, float]:
    text = json.dumps(completion_to_json(completion))
    kept = key + CUT if completion.truncated else key
    return kept, f"{text}\n{_checksum(text)}", model, time.time()


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def _in_wal_mode(db: sqlite3.Connection) -> None:
    """Switch the file to write-ahead mode. SQLite does not wait for another process that does the
    same just now."""
    end = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            db.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.01)
