"""The outbox of alerts: `.gleaner/alerts.sqlite`, what was raised and who has it. A file of its own, beside the ledger.

    alert      one row an alert; the key is unique, so that the same one is raised once
    delivery   one row an alert and target that was tried: when it was sent, or how often not and why

A tick that fails because the ledger is damaged or locked must be able to raise an alert; so must a watchdog beside it.
Raising takes one transaction. Delivering is one process's work at a time (`only_one`, an OS lock that is gone with its
process); one that is killed between sending and noting it down sends twice, never not at all.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from monitoring.alerts import Alert
from tasks.errors import GleanerError

OUTBOX, LOCK = ".gleaner/alerts.sqlite", ".gleaner/alerts.lock"
MINUTE, DAY = 60.0, 86400.0
LONGEST_PAUSE = 6 * 3600.0  # between two tries
FRESH = 3 * DAY  # what nobody could be told of when it was raised is told later, if it is not older than this
GIVEN_UP, TRIES = 7 * DAY, 10  # older than this and tried so often: tried again when that target takes something else
TOGETHER = 20  # alerts in one message
NOW = -1e18  # a next try that is due whatever the clock says

SCHEMA = """
CREATE TABLE IF NOT EXISTS alert (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, severity TEXT NOT NULL, kind TEXT NOT NULL,
    title TEXT NOT NULL, text TEXT NOT NULL, campaign TEXT NOT NULL, iteration INTEGER,
    raised_at REAL NOT NULL, settled_at REAL
) STRICT;
CREATE TABLE IF NOT EXISTS delivery (
    key TEXT NOT NULL REFERENCES alert(key), target TEXT NOT NULL, attempts INTEGER NOT NULL,
    next_try REAL NOT NULL, sent_at REAL, error TEXT, PRIMARY KEY (key, target)
) STRICT;
"""
#: open: not settled, and either not old or tried before
IS_OPEN = """
SELECT 1 FROM alert WHERE settled_at IS NULL AND (raised_at > :now - :fresh
    OR EXISTS (SELECT 1 FROM delivery tried WHERE tried.key = alert.key AND tried.sent_at IS NULL)) LIMIT 1
"""
UNDELIVERED = """
SELECT title, kind, raised_at, coalesce(target, '') AS target, coalesce(attempts, 0) AS attempts,
    coalesce(error, '') AS reason FROM alert LEFT JOIN delivery ON delivery.key = alert.key AND sent_at IS NULL
WHERE settled_at IS NULL AND (raised_at > :now - :fresh OR target NOTNULL) ORDER BY seq DESC, target
"""
DUE = """
SELECT alert.* FROM alert LEFT JOIN delivery ON delivery.key = alert.key AND target = :target
WHERE settled_at IS NULL AND sent_at IS NULL AND CASE WHEN delivery.key IS NULL THEN raised_at > :now - :fresh ELSE
    (next_try <= :now OR next_try > :now + :longest) AND NOT (attempts >= :tries AND raised_at < :now - :given_up) END
ORDER BY seq LIMIT :together
"""  # a next try that is farther off than any pause: the clock went back
CONSTANTS = {
    "fresh": FRESH, "longest": LONGEST_PAUSE, "tries": TRIES, "given_up": GIVEN_UP, "together": TOGETHER,
}  # fmt: skip


class Unusable(GleanerError):
    """The outbox cannot be read or written."""


@dataclass(frozen=True)
class Undelivered:
    """An alert that a target does not have yet."""

    title: str
    kind: str
    raised_at: float  # seconds since 1970, UTC
    target: str  # "" when nobody was there to be told
    attempts: int
    reason: str


class Outbox:
    """An open outbox. Use `open_outbox`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def add(self, alert: Alert, now: float) -> bool:
        """Raise an alert; False when its key is there already."""
        values = (alert.key, alert.severity, alert.kind, alert.title, alert.text, alert.campaign, alert.iteration, now)
        with self._db:
            added = self._db.execute(
                "INSERT INTO alert (key, severity, kind, title, text, campaign, iteration, raised_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING",
                values,
            )
        return added.rowcount == 1

    def is_open(self, now: float) -> bool:
        """Whether an alert may still have to be delivered."""
        return self._db.execute(IS_OPEN, _at(now)).fetchone() is not None

    def due(self, target: str, now: float) -> list[Alert]:
        """What this target should be told now, oldest first, as many as one message holds."""
        rows = self._db.execute(DUE, {**_at(now), "target": target})
        fields = ("severity", "kind", "title", "text", "campaign", "iteration", "key")
        return [Alert(**{name: row[name] for name in fields}) for row in rows]

    def sent(self, alerts: Sequence[Alert], target: str, now: float) -> None:
        """The target has these; whatever else it missed is due now, because it works."""
        with self._db:
            for alert in alerts:
                self._db.execute(
                    "INSERT INTO delivery VALUES (?, ?, 1, ?, ?, NULL) ON CONFLICT (key, target)"
                    " DO UPDATE SET attempts = attempts + 1, sent_at = excluded.sent_at, error = NULL",
                    (alert.key, target, now, now),
                )
            self._db.execute(
                "UPDATE delivery SET attempts = 0, next_try = ? WHERE target = ? AND sent_at IS NULL", (NOW, target)
            )

    def failed(self, alerts: Sequence[Alert], target: str, reason: str, now: float) -> None:
        """The target could not be told; the next try is after twice the last pause."""
        with self._db:
            for alert in alerts:
                self._db.execute(
                    "INSERT INTO delivery VALUES (?, ?, 1, ?, NULL, ?) ON CONFLICT (key, target) DO UPDATE SET error ="
                    " excluded.error, attempts = attempts + 1, next_try = ? + min(?, ? * (1 << min(attempts, 20)))",
                    (alert.key, target, now + MINUTE, reason, now, LONGEST_PAUSE, MINUTE),
                )

    def settle(self, targets: Iterable[str], now: float) -> None:
        """Alerts that all targets have are done with."""
        wanted = sorted(set(targets))
        with self._db:
            self._db.execute(
                "UPDATE alert SET settled_at = ? WHERE settled_at IS NULL AND ? = (SELECT count(*) FROM delivery"
                " WHERE delivery.key = alert.key AND sent_at NOTNULL AND target IN (SELECT value FROM json_each(?)))",
                (now, len(wanted), json.dumps(wanted)),
            )

    def hurry(self) -> None:
        """Try everything again now."""
        with self._db:
            self._db.execute("UPDATE delivery SET attempts = 0, next_try = ? WHERE sent_at IS NULL", (NOW,))

    def count(self, start: str) -> int:
        """Alerts whose key begins so."""
        row = self._db.execute("SELECT count(*) FROM alert WHERE substr(key, 1, ?) = ?", (len(start), start))
        return int(row.fetchone()[0])

    def newest(self, kind: str) -> str | None:
        """The severity of the alert of this kind that was raised last."""
        row = self._db.execute(
            "SELECT severity FROM alert WHERE kind = ? ORDER BY seq DESC LIMIT 1", (kind,)
        ).fetchone()
        return None if row is None else str(row["severity"])

    def undelivered(self, now: float) -> list[Undelivered]:
        """What somebody does not have yet, newest first."""
        rows = self._db.execute(UNDELIVERED, _at(now))
        return [Undelivered(**dict(row)) for row in rows]

    def last_sent(self) -> dict[str, float]:
        """Target -> when it was told something for the last time."""
        rows = self._db.execute("SELECT target, max(sent_at) AS at FROM delivery WHERE sent_at NOTNULL GROUP BY target")
        return {str(row["target"]): float(row["at"]) for row in rows}


def _at(now: float) -> dict[str, float]:
    return {**CONSTANTS, "now": now}


@contextmanager
def open_outbox(root: Path, *, write: bool = True) -> Iterator[Outbox]:
    """Open the outbox of a workspace. Raises Unusable; a damaged file is put aside, and a new one begun, when writing.

    Without `write` nothing is changed; the file must be there.
    """
    path = root / OUTBOX
    try:
        if write:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _put_aside_if_damaged(path)
        with closing(_connect(path, write)) as connection:
            yield Outbox(connection)
    except (sqlite3.Error, OSError) as error:
        raise Unusable(f"{path}: {error}") from None


def _connect(path: Path, write: bool) -> sqlite3.Connection:
    mode = "rwc" if write else "ro"
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=10.0)
    try:
        connection.row_factory = sqlite3.Row
        if write:
            connection.execute("PRAGMA synchronous = FULL")
            connection.executescript(SCHEMA)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _put_aside_if_damaged(path: Path) -> None:
    try:
        with closing(_connect(path, write=True)) as connection:
            sound = connection.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok"
    except sqlite3.OperationalError:
        raise  # locked, a full disk: the file is well
    except sqlite3.DatabaseError:
        sound = False
    if not sound:
        os.replace(path, path.with_name(f"{path.name}.damaged"))


@contextmanager
def only_one(root: Path) -> Iterator[bool]:
    """True for the one process that delivers now, False at once for any other. Raises Unusable."""
    try:
        descriptor = os.open(root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Unusable(f"{root / LOCK}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
