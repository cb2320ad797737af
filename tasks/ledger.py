"""The ledger: what was asked, answered and decided. One SQLite file, one writer; what was said is never deleted.

    iteration      one row an iteration: open -> selected -> exported -> closed
    selection      every item ever asked about (UNIQUE: no item twice)
    outbox         one row a task for the labeling tool, with its receipt once the tool holds it
    label_event    what annotators did, raw, append-only; a changed payload is a new revision, a deletion the last one
    answer         what an event means; an event that means nothing known is in `quarantine` with the reason
    decision       what people decided: stop, resume, accept a finding, close a batch, send it to another tool

WAL with `synchronous=FULL`: what a commit acknowledged survives a power cut. Raw events are stored before they
are interpreted. Snapshots (`tasks/snapshot.py`) are Parquet; a fresh clone rebuilds the ledger from them.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.checkpoint import checkpoint
from tasks.errors import GleanerError
from tasks.labeling import Receipt
from tasks.ledger_tables import MIGRATIONS, SCHEMA, TABLES, VERSION, Asked, Damaged, Frozen, IterationRow
from tasks.ledger_views import LabelViews

__all__ = [
    "TABLES",
    "Asked",
    "Damaged",
    "Frozen",
    "IterationRow",
    "Ledger",
    "open_ledger",
    "require_ledger",
    "task_key",
]


class Ledger(LabelViews):
    """An open ledger. Use `open_ledger`; one process writes at a time (the campaign's lock sees to it)."""

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
            if receipts:
                self._put("instance", instance)
            if not self.unsent(number):
                self._advance(number, "selected", "exported")

    def sent_again(self, instance: str, receipts: Sequence[Receipt]) -> None:
        """The tool had lost these tasks and holds them again."""
        with self._transaction():
            for receipt in receipts:
                self._db.execute(
                    "UPDATE outbox SET instance = ?, task_id = ? WHERE key = ?",
                    (instance, receipt.task_id, receipt.key),
                )
            self._put("instance", instance)

    def instance(self) -> str:
        """The tool that holds the campaign's tasks, "" when none does yet or somebody decided for another one."""
        return self.get("instance") or ""

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

    # decisions --------------------------------------------------------------------------------------------

    def decide(self, kind: str, iteration: int, subject: str, reason: str) -> None:
        """Record what a person decided and why."""
        with self._transaction():
            self._decide(kind, iteration, subject, reason)

    def _decide(self, kind: str, iteration: int, subject: str, reason: str) -> None:
        self._db.execute(
            "INSERT INTO decision (kind, iteration, subject, reason, decided_at) VALUES (?, ?, ?, ?, ?)",
            (kind, iteration, subject, reason, self._now()),
        )

    def send_elsewhere(self, iteration: int, reason: str) -> None:
        """Record that the tool that held the tasks is given up; those that wait go to the one that params.yaml names."""
        with self._transaction():
            self._decide("resend", iteration, self.instance(), reason)
            self._put("instance", "")

    def decided(self, kind: str, iteration: int) -> str | None:
        """The reason of the newest decision of a kind about an iteration, None when there is none."""
        row = self._db.execute(
            "SELECT reason FROM decision WHERE kind = ? AND iteration = ? ORDER BY seq DESC", (kind, iteration)
        ).fetchone()
        return None if row is None else str(row["reason"])

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


def task_key(campaign: str, iteration: int, item_id: str) -> str:
    """The key of a task: the labeling tool holds at most one task with it."""
    return f"{campaign}:{iteration}:{item_id}"


def require_ledger(path: Path, create: bool = False) -> None:
    """Raise GleanerError when there is no ledger and none may be made: a copy of a campaign has none, and an empty
    one would begin the campaign anew."""
    if create or _held(path):
        return
    require_no_loss(path)
    raise GleanerError(
        f"{path} not found: this folder is a copy of a campaign, and read-only. "
        "`gleaner fork` starts a campaign of its own from it."
    )


def require_no_loss(path: Path) -> None:
    """Raise GleanerError when the ledger is gone but its backup is there: this is no copy, somebody lost a file."""
    if not _held(path) and path.with_name(f"{path.name}.backup").exists():
        raise GleanerError(f"{path} is gone or empty. Put {path.name}.backup in its place; `gleaner verify` checks it.")


def _held(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


@contextmanager
def open_ledger(path: Path, now: Callable[[], str], *, create: bool = False, write: bool = True) -> Iterator[Ledger]:
    """Open the ledger. Raises GleanerError when it is missing (unless `create`), damaged or of another version.

    Without `write` nothing is changed, and a disk that is mounted read-only will do.
    """
    require_ledger(path, create)
    if write:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    connection = sqlite3.connect(_uri(path, write), isolation_level=None, timeout=30.0, uri=True)
    try:
        _prepare(connection, path, write)
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


def _uri(path: Path, write: bool) -> str:
    address = path.absolute().as_uri()
    if write:
        return f"{address}?mode=rwc"
    if os.access(path.parent, os.W_OK) or path.with_name(f"{path.name}-wal").exists():
        return f"{address}?mode=ro"
    return f"{address}?mode=ro&immutable=1"  # a reader of a WAL database makes files beside it, which cannot be here


def _prepare(connection: sqlite3.Connection, path: Path, write: bool) -> None:
    connection.row_factory = sqlite3.Row
    if write:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == VERSION:
        return
    if not write or (version != 0 and version not in MIGRATIONS):
        raise GleanerError(
            f"{path} has version {version}, this Gleaner reads {VERSION}. Use the code of the campaign's own tag"
            + (", or run a tick: it is migrated then." if version in MIGRATIONS else ".")
        )
    checkpoint("ledger:create:before")
    for script in [MIGRATIONS[number] for number in range(version, VERSION)] if version else [SCHEMA]:
        connection.executescript(f"BEGIN EXCLUSIVE; {script} PRAGMA user_version = {VERSION}; COMMIT;")
    checkpoint("ledger:create:after")
