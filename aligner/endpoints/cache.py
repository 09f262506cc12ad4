"""Replies in one SQLite file, so that nothing is asked twice, with the usage of each run beside
them.

The key is the request (`request_key`); failures and truncated replies are never kept. The file is
in write-ahead mode with synchronous=NORMAL: one commit for each reply, in well under a millisecond,
whole after a kill at any point, and shared by several processes on one machine (not over a network
disk, where SQLite's locks do not hold). Prompts, keys and addresses are not in the file; replies
are, and only its owner may read it.

The accounts of a run (`run` key) are written in the same commit as the reply that they count, so a
kill cannot part them.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from aligner.endpoints.budget import Spent
from aligner.endpoints.request import (
    ChatRequest,
    Completion,
    LLMClient,
    Wrapper,
    completion_to_json,
    request_key,
)
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

ADD_CALL = (
    "INSERT INTO spent (run, calls) VALUES (?, 1) ON CONFLICT (run) DO UPDATE SET calls = calls + 1"
)
ADD_REPLY = (
    "INSERT INTO spent (run, replies, prompt_tokens, completion_tokens) VALUES (?, 1, ?, ?) ON "
    "CONFLICT (run) DO UPDATE"
    " SET replies = replies + 1, prompt_tokens = prompt_tokens + excluded.prompt_tokens,"
    " completion_tokens = completion_tokens + excluded.completion_tokens"
)


class Store:
    """The file. `run` names the accounts to continue; without one nothing is kept but replies."""

    def __init__(self, path: Path, run: str = "") -> None:
        """Open the file, or make it. Raises: UsageError when it cannot be opened or is something
        else."""
        self.path = path
        self.run = run
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
        """Return the reply to a request, marked as cached, or None; one that is not what was kept
        is forgotten."""
        row = self._execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        text, _, checksum = row[0].partition("\n")
        if checksum not in ("", _checksum(text)):  # replies kept by an older version have none
            self._execute("DELETE FROM replies WHERE key = ?", (key,))
            return None
        return replace(Completion(**json.loads(text)), cached=True)

    def add_call(self) -> None:
        """Count a request that is about to be sent."""
        if self.run:
            self._execute(ADD_CALL, (self.run,))

    def add_reply(self, key: str, model: str, completion: Completion) -> None:
        """Count a reply and keep it, unless it is truncated; the first reply to a request stays."""
        self._execute("BEGIN IMMEDIATE")
        try:
            if not completion.truncated:
                text = json.dumps(completion_to_json(completion))
                row = (key, f"{text}\n{_checksum(text)}", model, time.time())
                self._execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?)", row)
            if self.run:
                self._execute(
                    ADD_REPLY, (self.run, completion.prompt_tokens, completion.completion_tokens)
                )
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


class Cache(Wrapper):
    """Answers from the store what was answered before, and stores what was not."""

    def __init__(self, inner: LLMClient, store: Store, identity: str = "") -> None:
        super().__init__(inner)
        self.store = store
        self._identity = identity

    async def chat(self, request: ChatRequest) -> Completion:
        """Answer from the store, or ask and store."""
        key = request_key(request, self._identity)
        known = self.store.get(key)
        if known is not None:
            return known
        completion = await self.inner.chat(request)
        self.store.add_reply(key, request.model, completion)
        return completion

    async def aclose(self) -> None:
        """Close the inner one, then the file."""
        try:
            await super().aclose()
        finally:
            self.store.close()


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
