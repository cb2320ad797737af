"""The ledger: what was asked, answered and decided. One SQLite file, one writer, nothing is ever deleted.

    iteration      one row an iteration: open -> selected -> exported -> closed
    selection      every item ever asked about (UNIQUE: no item twice)
    outbox         one row a task for the labeling tool, with its receipt once the tool holds it
    label_event    what annotators did, raw, append-only; a changed payload is a new revision
    answer         what an event means; an event that means nothing known is in `quarantine` with the reason
    decision       what people decided: stop, resume, accept a finding

WAL with `synchronous=FULL`: what a commit acknowledged survives a power cut. Raw events are stored before they
are interpreted. Snapshots (`tasks/snapshot.py`) are Parquet; a fresh clone rebuilds the ledger from them.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.checkpoint import checkpoint
from tasks.errors import GleanerError
from tasks.labeling import Answer, RawEvent, Receipt, Uninterpretable

VERSION = 1
STATES = ("open", "selected", "exported", "closed")
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
    UNIQUE (instance, annotation_id, revision)
) STRICT;
CREATE TABLE answer (
    seq INTEGER PRIMARY KEY REFERENCES label_event(seq), item_id TEXT NOT NULL REFERENCES selection(item_id),
    kind TEXT NOT NULL CHECK (kind IN ('label','skip')), label TEXT NOT NULL, annotator TEXT NOT NULL, seconds REAL
) STRICT;
CREATE INDEX answer_item ON answer (item_id, seq);
CREATE TABLE quarantine (seq INTEGER PRIMARY KEY REFERENCES label_event(seq), reason TEXT NOT NULL) STRICT;
CREATE TABLE decision (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL CHECK (kind IN ('stop','resume','accept')),
    iteration INTEGER NOT NULL, subject TEXT NOT NULL, reason TEXT NOT NULL, decided_at TEXT NOT NULL
) STRICT;
"""
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
    """An item that was asked about, with the answer that counts (the newest) as of an event."""

    item_id: str
    iteration: int
    rank: int
    arm: str
    state: str  # pending | labeled | skipped
    label: str
    event: int  # sequence number of that answer, 0 while pending


class Ledger:
    """An open ledger. Use `open_ledger`; one process writes at a time (the campaign's lock sees to it)."""

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

    # iterations -------------------------------------------------------------------------------------------

    def iterations(self) -> list[IterationRow]:
        """All iterations, in order."""
        rows = self._db.execute("SELECT * FROM iteration ORDER BY number").fetchall()
        return [
            IterationRow(**{**dict(r), "outcome": json.loads(r["outcome"]) if r["outcome"] else None}) for r in rows
        ]

    def latest(self) -> IterationRow | None:
        """The newest iteration."""
        rows = self.iterations()
        return rows[-1] if rows else None

    def open_iteration(self, base_commit: str) -> IterationRow:
        """Start the next iteration; its labels are as of the newest event. The one before must be closed."""
        latest = self.latest()
        if latest is not None and latest.state != "closed":
            raise GleanerError(f"iteration {latest.number} is not closed yet ({latest.state}).")
        number = 0 if latest is None else latest.number + 1
        with self._transaction():
            self._db.execute(
                "INSERT INTO iteration (number, state, event_seq, base_commit, opened_at) VALUES (?, 'open', ?, ?, ?)",
                (number, self.last_event(), base_commit, self._now()),
            )
        return self._row(number)

    def select(self, number: int, campaign: str, rows: Sequence[dict[str, Any]], frozen: Frozen) -> None:
        """Put the batch in the outbox, in one transaction. From here on the iteration is never recomputed."""
        with self._transaction():
            self._db.execute(
                "UPDATE iteration SET selection_sha256 = ?, params = ?, dvc_lock = ?, base_commit = ? WHERE number = ?",
                (frozen.selection_sha256, frozen.params, frozen.dvc_lock, frozen.commit, number),
            )
            for row in rows:
                self._db.execute(
                    "INSERT INTO selection VALUES (:item_id, :iteration, :rank, :arm, :utility, :inclusion, :predicted,"
                    " :confidence)",
                    {**row, "iteration": number},
                )
                self._db.execute(
                    "INSERT INTO outbox (key, item_id) VALUES (?, ?)",
                    (task_key(campaign, number, row["item_id"]), row["item_id"]),
                )
            self._advance(number, "open", "selected")

    def sent(self, number: int, instance: str, receipts: Sequence[Receipt]) -> None:
        """The tool holds these tasks."""
        with self._transaction():
            for receipt in receipts:
                self._db.execute(
                    "UPDATE outbox SET instance = ?, task_id = ?, sent_at = coalesce(sent_at, ?) WHERE key = ?",
                    (instance, receipt.task_id, self._now(), receipt.key),
                )
            if not self.unsent(number):
                self._advance(number, "selected", "exported")

    def close(self, number: int, outcome: dict[str, Any]) -> None:
        """The iteration is committed and tagged."""
        with self._transaction():
            self._advance(number, "exported", "closed")
            self._db.execute("UPDATE iteration SET closed_at = ? WHERE number = ?", (self._now(), number))
            self._set_outcome(number, outcome)

    def record_outcome(self, number: int, outcome: dict[str, Any]) -> None:
        """What the iteration measured (before it is tagged, so that the snapshot holds it)."""
        with self._transaction():
            self._set_outcome(number, outcome)

    def _set_outcome(self, number: int, outcome: dict[str, Any]) -> None:
        text = json.dumps(outcome, sort_keys=True, allow_nan=False)
        self._db.execute("UPDATE iteration SET outcome = ? WHERE number = ?", (text, number))

    def _advance(self, number: int, before: str, after: str) -> None:
        changed = self._db.execute(
            "UPDATE iteration SET state = ? WHERE number = ? AND state = ?", (after, number, before)
        ).rowcount
        if changed != 1:
            raise GleanerError(
                f"iteration {number} cannot go from {before} to {after}: it is {self._row(number).state}."
            )

    def _row(self, number: int) -> IterationRow:
        return next(row for row in self.iterations() if row.number == number)

    def unsent(self, number: int) -> list[str]:
        """Keys of the iteration's tasks that have no receipt yet, in rank order."""
        rows = self._db.execute(
            "SELECT key FROM outbox JOIN selection USING (item_id) WHERE iteration = ? AND task_id IS NULL ORDER BY rank",
            (number,),
        )
        return [row["key"] for row in rows]

    def batch(self, number: int) -> list[dict[str, Any]]:
        """An iteration's batch with its outbox rows, in rank order."""
        rows = self._db.execute(
            "SELECT * FROM selection JOIN outbox USING (item_id) WHERE iteration = ? ORDER BY rank", (number,)
        )
        return [dict(row) for row in rows]

    def forget_unanswered(self) -> None:
        """Drop tasks that nobody answered, and close every iteration: a fork does not own the other campaign's tasks."""
        with self._transaction():
            self._db.execute("DELETE FROM outbox WHERE item_id NOT IN (SELECT item_id FROM answer)")
            self._db.execute("DELETE FROM selection WHERE item_id NOT IN (SELECT item_id FROM answer)")
            self._db.execute(
                "UPDATE iteration SET state = 'closed', closed_at = coalesce(closed_at, ?)", (self._now(),)
            )

    # label events -----------------------------------------------------------------------------------------

    def last_event(self) -> int:
        """Sequence number of the newest label event, 0 when there is none."""
        return int(self._db.execute("SELECT coalesce(max(seq), 0) FROM label_event").fetchone()[0])

    def store_events(self, instance: str, events: Iterable[RawEvent]) -> int:
        """Append what is new: an unknown annotation, or a payload that differs from its latest revision."""
        stored = 0
        with self._transaction():
            for event in events:
                stored += self._store_event(instance, event)
        return stored

    def _store_event(self, instance: str, event: RawEvent) -> int:
        payload = _storable(json.dumps(event.payload, sort_keys=True, ensure_ascii=False))
        annotation_id = _storable(event.annotation_id)
        digest = hashlib.sha256(payload.encode()).hexdigest()
        latest = self._db.execute(
            "SELECT revision, payload_sha256 FROM label_event WHERE instance = ? AND annotation_id = ?"
            " ORDER BY revision DESC LIMIT 1",
            (instance, annotation_id),
        ).fetchone()
        if latest is not None and latest["payload_sha256"] == digest:
            return 0
        revision = 0 if latest is None else latest["revision"] + 1
        self._db.execute(
            "INSERT INTO label_event (instance, annotation_id, revision, payload, payload_sha256, received_at)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (instance, annotation_id, revision, payload, digest, self._now()),
        )
        return 1

    def interpret_events(self, interpret: Callable[[dict[str, Any]], Answer], classes: Sequence[str]) -> int:
        """Interpret every event that has no answer yet, quarantined ones again; returns how many became answers."""
        rows = self._db.execute(
            "SELECT seq, payload FROM label_event WHERE seq NOT IN (SELECT seq FROM answer) ORDER BY seq"
        ).fetchall()
        known = {row["key"]: row["item_id"] for row in self._db.execute("SELECT key, item_id FROM outbox")}
        answered = 0
        with self._transaction():
            for row in rows:
                self._db.execute("DELETE FROM quarantine WHERE seq = ?", (row["seq"],))
                try:
                    answer = _check_answer(interpret(json.loads(row["payload"])), known, classes)
                except Uninterpretable as error:
                    self._db.execute("INSERT INTO quarantine VALUES (?, ?)", (row["seq"], _storable(str(error))))
                    continue
                self._db.execute(
                    "INSERT INTO answer VALUES (?, ?, ?, ?, ?, ?)",
                    (
                        row["seq"],
                        known[answer.key],
                        answer.kind,
                        answer.label,
                        _storable(answer.annotator),
                        answer.seconds,
                    ),
                )
                answered += 1
        return answered

    def asked(self, event_seq: int | None = None) -> list[Asked]:
        """Every item of every exported batch with its newest answer up to `event_seq` (default: all events)."""
        limit = self.last_event() if event_seq is None else event_seq
        rows = self._db.execute(
            "SELECT s.item_id, s.iteration, s.rank, s.arm, coalesce(a.kind, 'pending') AS kind,"
            " coalesce(a.label, '') AS label, coalesce(a.seq, 0) AS event FROM selection s LEFT JOIN answer a ON a.seq ="
            " (SELECT max(seq) FROM answer WHERE item_id = s.item_id AND seq <= ?) ORDER BY s.iteration, s.rank",
            (limit,),
        )
        states = {"pending": "pending", "label": "labeled", "skip": "skipped"}
        return [
            Asked(r["item_id"], r["iteration"], r["rank"], r["arm"], states[r["kind"]], r["label"], r["event"])
            for r in rows
        ]

    def quarantined(self) -> list[dict[str, Any]]:
        """Events that mean nothing known, with the reason; those that a later revision replaced are left out."""
        rows = self._db.execute(
            "SELECT * FROM quarantine JOIN label_event e USING (seq) WHERE revision = (SELECT max(revision)"
            " FROM label_event WHERE instance = e.instance AND annotation_id = e.annotation_id) ORDER BY seq"
        )
        return [dict(row) for row in rows]

    # decisions --------------------------------------------------------------------------------------------

    def decide(self, kind: str, iteration: int, subject: str, reason: str) -> None:
        """Record what a person decided and why."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO decision (kind, iteration, subject, reason, decided_at) VALUES (?, ?, ?, ?, ?)",
                (kind, iteration, subject, reason, self._now()),
            )

    def stopped_by_hand(self) -> str | None:
        """The reason of a manual stop that nobody took back."""
        row = self._db.execute(
            "SELECT kind, reason FROM decision WHERE kind IN ('stop','resume') ORDER BY seq DESC LIMIT 1"
        ).fetchone()
        return row["reason"] if row is not None and row["kind"] == "stop" else None

    def accepted(self, iteration: int) -> dict[str, str]:
        """Findings of an iteration that a person overruled: check -> reason."""
        rows = self._db.execute(
            "SELECT subject, reason FROM decision WHERE kind = 'accept' AND iteration = ?", (iteration,)
        )
        return {row["subject"]: row["reason"] for row in rows}

    # meta, copies -----------------------------------------------------------------------------------------

    def get(self, key: str) -> str | None:
        """A value of `meta`."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row["value"])

    def put(self, key: str, value: str) -> None:
        """Set a value of `meta`."""
        with self._transaction():
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


def task_key(campaign: str, iteration: int, item_id: str) -> str:
    """The key of a task: the labeling tool holds at most one task with it."""
    return f"{campaign}:{iteration}:{item_id}"


def _storable(text: str) -> str:
    """Text that UTF-8 can hold: a lone surrogate (JSON and file names may have one) becomes its escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def _check_answer(answer: Answer, known: dict[str, str], classes: Sequence[str]) -> Answer:
    if answer.key not in known:
        raise Uninterpretable(f"unknown task key {answer.key!r}: this campaign did not ask it")
    if answer.kind == "label" and answer.label not in classes:
        raise Uninterpretable(f"unknown class {answer.label!r}; allowed: {', '.join(classes)}")
    return answer


def require_ledger(path: Path, create: bool = False) -> None:
    """Raise GleanerError when there is no ledger and none may be made: a copy of a campaign has none, and an empty
    one would begin the campaign anew."""
    if create or (path.exists() and path.stat().st_size > 0):
        return
    if path.with_name(f"{path.name}.backup").exists():
        raise GleanerError(f"{path} is gone or empty. Put {path.name}.backup in its place; `gleaner verify` checks it.")
    raise GleanerError(
        f"{path} not found: this folder is a copy of a campaign, and read-only. "
        "`gleaner fork` starts a campaign of its own from it."
    )


@contextmanager
def open_ledger(path: Path, now: Callable[[], str], *, create: bool = False) -> Iterator[Ledger]:
    """Open the ledger. Raises GleanerError when it is missing (unless `create`), damaged or of another version."""
    require_ledger(path, create)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    connection = sqlite3.connect(path, isolation_level=None, timeout=30.0)
    try:
        _prepare(connection, path)
        yield Ledger(connection, now)
    except sqlite3.OperationalError as error:
        raise GleanerError(
            f"{path}: {error}. Free disk space or end the other program, then run the command again."
        ) from error
    except sqlite3.IntegrityError as error:
        raise GleanerError(
            f"the ledger refused a change that breaks an invariant: {error}. Nothing was written."
        ) from error
    except sqlite3.DatabaseError as error:
        raise GleanerError(
            f"{path} is damaged ({error}). Put {path.name}.backup in its place; `gleaner verify` checks it."
        ) from error
    finally:
        connection.close()


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == VERSION:
        return
    if version != 0:
        raise GleanerError(
            f"{path} has version {version}, this Gleaner reads {VERSION}. Use the code of the campaign's own tag."
        )
    checkpoint("ledger:create:before")
    connection.executescript(f"BEGIN EXCLUSIVE; {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
    checkpoint("ledger:create:after")
