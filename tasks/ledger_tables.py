"""The ledger's tables, and the file that holds them.

WAL with `synchronous=FULL`: what a commit acknowledged survives a power cut. Nothing is deleted, but for what a
fork must not own (unanswered tasks of the campaign it came from).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VERSION = 2
#: what reading an open ledger raises when its file is damaged; `open_ledger` makes a GleanerError of it
Damaged = sqlite3.Error

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE iteration (
    number INTEGER PRIMARY KEY, state TEXT NOT NULL CHECK (state IN ('open','selected','exported','closed')),
    event_seq INTEGER NOT NULL, base_commit TEXT NOT NULL, opened_at TEXT NOT NULL,
    params TEXT, dvc_lock TEXT, selection_sha256 TEXT, outcome TEXT, closed_at TEXT
) STRICT;
CREATE TABLE selection (
    item_id TEXT PRIMARY KEY, iteration INTEGER NOT NULL REFERENCES iteration(number), rank INTEGER NOT NULL,
    arm TEXT NOT NULL CHECK (arm IN ('seed','active','control','holdout')), utility REAL, inclusion REAL NOT NULL,
    predicted INTEGER NOT NULL, confidence REAL, UNIQUE (iteration, rank)
) STRICT;
CREATE TABLE outbox (
    key TEXT PRIMARY KEY, item_id TEXT NOT NULL UNIQUE REFERENCES selection(item_id),
    instance TEXT, task_id TEXT, sent_at TEXT
) STRICT;
CREATE TABLE label_event (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, instance TEXT NOT NULL, annotation_id TEXT NOT NULL,
    revision INTEGER NOT NULL, payload TEXT NOT NULL, payload_sha256 TEXT NOT NULL, received_at TEXT NOT NULL,
    deleted INTEGER NOT NULL DEFAULT 0, UNIQUE (instance, annotation_id, revision)
) STRICT;
CREATE TABLE answer (
    seq INTEGER PRIMARY KEY REFERENCES label_event(seq), item_id TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('label','skip')), label TEXT NOT NULL, annotator TEXT NOT NULL, seconds REAL,
    truth INTEGER NOT NULL DEFAULT 0, accepted INTEGER
) STRICT;
CREATE INDEX answer_item ON answer (item_id, seq);
CREATE TABLE quarantine (seq INTEGER PRIMARY KEY REFERENCES label_event(seq), reason TEXT NOT NULL) STRICT;
CREATE TABLE decision (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL,
    iteration INTEGER NOT NULL, subject TEXT NOT NULL, reason TEXT NOT NULL, decided_at TEXT NOT NULL
) STRICT;
"""
#: what turns a ledger of a version into one of the next
MIGRATIONS = {
    1: """
ALTER TABLE label_event ADD COLUMN deleted INTEGER NOT NULL DEFAULT 0;
ALTER TABLE answer RENAME TO answer_1;
DROP INDEX answer_item;
CREATE TABLE answer (
    seq INTEGER PRIMARY KEY REFERENCES label_event(seq), item_id TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('label','skip')), label TEXT NOT NULL, annotator TEXT NOT NULL, seconds REAL,
    truth INTEGER NOT NULL DEFAULT 0, accepted INTEGER
) STRICT;
CREATE INDEX answer_item ON answer (item_id, seq);
INSERT INTO answer SELECT seq, item_id, kind, label, annotator, seconds, 0, NULL FROM answer_1;
DROP TABLE answer_1;
ALTER TABLE decision RENAME TO decision_1;
CREATE TABLE decision (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, iteration INTEGER NOT NULL, subject TEXT NOT NULL,
    reason TEXT NOT NULL, decided_at TEXT NOT NULL
) STRICT;
INSERT INTO decision SELECT * FROM decision_1;
DROP TABLE decision_1;
INSERT INTO meta SELECT 'instance', instance FROM outbox JOIN selection USING (item_id) WHERE instance > ''
    ORDER BY iteration DESC LIMIT 1;
"""
}
TABLES = ("meta", "iteration", "selection", "outbox", "label_event", "answer", "quarantine", "decision")


@dataclass(frozen=True)
class IterationRow:
    """One row of `iteration`."""

    number: int
    state: str
    event_seq: int
    base_commit: str
    opened_at: str
    params: str | None
    dvc_lock: str | None
    selection_sha256: str | None
    outcome: dict[str, Any] | None
    closed_at: str | None


@dataclass(frozen=True)
class Frozen:
    """What an iteration is made of at the moment its batch enters the outbox."""

    selection_sha256: str  # of data/selection.parquet
    params: str  # text of params.yaml
    dvc_lock: str  # text of dvc.lock
    commit: str  # HEAD: the code


@dataclass(frozen=True)
class Asked:
    """An item that was asked about, with what its answers come to as of an event."""

    item_id: str
    iteration: int
    rank: int
    arm: str
    state: str  # pending | labeled | skipped | disputed
    label: str
    event: int  # sequence number of the event that settled it, 0 while pending


class LedgerFile:
    """An open database: transactions, settings, whole tables, copies."""

    def __init__(self, connection: sqlite3.Connection, now: Callable[[], str]) -> None:
        self._db = connection
        self._now = now

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def get(self, key: str) -> str | None:
        """A value of `meta`."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row["value"])

    def put(self, key: str, value: str) -> None:
        """Set a value of `meta`."""
        with self._transaction():
            self._put(key, value)

    def _put(self, key: str, value: str) -> None:
        self._db.execute(
            "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (key, value)
        )

    def rows(self, table: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        """A table's columns and rows, sorted by primary key."""
        if table not in TABLES:
            raise ValueError(f"no table {table!r}")
        cursor = self._db.execute(f"SELECT * FROM {table} ORDER BY 1")  # noqa: S608 - a name from TABLES
        return [column[0] for column in cursor.description], [tuple(row) for row in cursor.fetchall()]

    def column_types(self, table: str) -> dict[str, str]:
        """Declared SQLite type of each column."""
        if table not in TABLES:
            raise ValueError(f"no table {table!r}")
        return {row["name"]: row["type"] for row in self._db.execute(f"PRAGMA table_info({table})")}

    def insert_rows(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Fill an empty table (rebuilding from snapshots)."""
        if table not in TABLES:
            raise ValueError(f"no table {table!r}")
        marks = ", ".join("?" * len(columns))
        with self._transaction():
            self._db.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", rows)  # noqa: S608

    def check(self) -> list[str]:
        """What SQLite itself finds wrong with the file, [] when it is sound."""
        problems = [str(r[0]) for r in self._db.execute("PRAGMA integrity_check") if r[0] != "ok"]
        problems += [f"row without its parent: {tuple(r)}" for r in self._db.execute("PRAGMA foreign_key_check")]
        return problems

    def events_given(self) -> int:
        """How many sequence numbers label events were ever given: without a loss, 1 to this number are there."""
        row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'label_event'").fetchone()
        return 0 if row is None else int(row["seq"])

    def backup(self, path: Path) -> None:
        """Copy the database, consistent, to `path`."""
        temporary = path.with_name(path.name + ".writing")
        temporary.unlink(missing_ok=True)
        with sqlite3.connect(temporary) as target:
            self._db.backup(target)
        target.close()
        temporary.replace(path)
