"""The collector: images of a stream are offered as they arrive; those worth labeling go into the inbox that ticks ingest.

    Collector(Path(".")).offer(content, {"deer": 0.55, "fox": 0.45})   ->   Offer(kept=True, why="band", inclusion=0.198)

    data/inbox/random/<sha256>.jpg     the random share: an unbiased sample of the stream
    data/inbox/band/<sha256>.jpg       what the model was unsure about
    data/collected.jsonl               a line for each: why, probability of inclusion, predicted class, confidence, time

Any number of processes on one machine share one budget: `.gleaner/collected.sqlite`. A row is committed before its image
enters the inbox; an image whose process was killed in between is put there by the next offer.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.campaign import IDENTITY
from tasks.checkpoint import checkpoint
from tasks.collecting import Guess, Limit, Verdict, draws, limits, top, wanted
from tasks.errors import BadInput, GleanerError
from tasks.images import suffix
from tasks.params import load
from tasks.params_sections import Stream
from tasks.store import Store, disk_errors

INBOX = "data/inbox"
LINES = "data/collected.jsonl"
BUDGET = ".gleaner/collected.sqlite"
STAGED = ".gleaner/collected"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS kept (
    item_id TEXT PRIMARY KEY, staged TEXT NOT NULL, suffix TEXT NOT NULL, why TEXT NOT NULL, inclusion REAL NOT NULL, label TEXT, confidence REAL,
    at REAL NOT NULL, placed INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX IF NOT EXISTS kept_at ON kept (why, at);
CREATE INDEX IF NOT EXISTS kept_unplaced ON kept (placed) WHERE NOT placed;
"""
_COLUMNS = ("item_id", "why", "inclusion", "label", "confidence", "at")


@dataclass(frozen=True)
class Offer:
    """What became of an image that was offered."""

    kept: bool
    why: str  # "random" or "band" when kept, else the reason
    inclusion: float  # probability that an image like it is kept for this reason while there is room; 0 when not kept


class Collector:
    """Offers images to a campaign. Cheap to make; safe to use from many processes, not from many threads at once."""

    def __init__(self, root: Path, now: Callable[[], float] = time.time) -> None:
        """Raises BadInput where no campaign is, or when its params.yaml says that nothing is collected."""
        self._store, self._now = Store(root), now
        self._rules: Stream = load(self._store.path("params.yaml")).stream
        if not self._store.exists(IDENTITY):
            raise BadInput(f"{root.resolve()} is no campaign. Name its workspace: --workspace DIR.")
        if not self._rules.enabled:
            raise BadInput(f"{root.resolve()}: stream.enabled is false in params.yaml: nothing is collected.")
        self._salt = str(self._store.read_json(IDENTITY)["id"])

    def offer(self, content: bytes, probabilities: Mapping[str, float] | None = None) -> Offer:
        """Keep an image (its encoded bytes), or not. `probabilities`: class -> calibrated probability.

        What is kept is on disk when this returns. Raises BadInput for probabilities that are none, GleanerError when the
        disk takes nothing.
        """
        item_id, guess = hashlib.sha256(content).hexdigest(), _guess(probabilities)
        verdict = wanted(self._rules, draws(self._salt, item_id), guess)
        if verdict.kept:
            verdict = self._keep(content, item_id, guess, verdict)
        return Offer(verdict.kept, verdict.why, verdict.inclusion if verdict.kept else 0.0)

    def _keep(self, content: bytes, item_id: str, guess: Guess | None, verdict: Verdict) -> Verdict:
        with disk_errors(self._store.root), self._opened() as db:
            staged = f"{STAGED}/{item_id}.{secrets.token_hex(8)}"  # another process may hold the same bytes
            with _transaction(db):
                self._place(db)
                refused = self._refused(db, item_id, guess, verdict, self._now())
            if refused:
                return refused
            self._store.write_bytes(staged, content)
            checkpoint("collect:staged:after")
            with _transaction(db):
                refused = self._refused(db, item_id, guess, verdict, now := self._now())
                if refused is None:
                    row = (item_id, staged, suffix(content), verdict.why, verdict.inclusion, *_told(guess), now)
                    db.execute("INSERT INTO kept VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0)", row)
            checkpoint("collect:row:after")
            with _transaction(db):
                self._place(db)
            self._store.path(staged).unlink(missing_ok=True)  # it was refused
            return refused or verdict

    def _refused(
        self, db: sqlite3.Connection, item_id: str, guess: Guess | None, verdict: Verdict, now: float
    ) -> Verdict | None:
        if db.execute("SELECT 1 FROM kept WHERE item_id = ?", (item_id,)).fetchone():
            return Verdict(False, "the same bytes were kept before")
        full = [limit for limit in limits(self._rules, verdict.why, guess) if _used(db, limit, now) >= limit.most]
        return Verdict(False, f"the limit stream.{full[0].name} is reached") if full else None

    def _place(self, db: sqlite3.Connection) -> None:
        """Put staged images whose rows are committed into the inbox, with their lines."""
        for row in db.execute("SELECT * FROM kept WHERE NOT placed").fetchall():
            staged, place = self._store.path(row["staged"]), f"{INBOX}/{row['why']}/{row['item_id']}{row['suffix']}"
            if staged.exists():
                self._store.write_bytes(place, staged.read_bytes())
                checkpoint("collect:place:after")
                staged.unlink()
            if self._store.exists(place):
                _append(self._store.path(LINES), {name: row[name] for name in _COLUMNS})
                checkpoint("collect:line:after")
                db.execute("UPDATE kept SET placed = 1 WHERE item_id = ?", (row["item_id"],))
            else:  # somebody removed it: it was never in the inbox
                db.execute("DELETE FROM kept WHERE item_id = ?", (row["item_id"],))

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        path = self._store.path(BUDGET)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            with closing(sqlite3.connect(path, isolation_level=None, timeout=60.0)) as db:
                db.row_factory = sqlite3.Row
                db.execute("PRAGMA synchronous = FULL")
                if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'kept_unplaced'").fetchone():
                    db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
                yield db
        except sqlite3.OperationalError as error:
            raise GleanerError(f"{path}: {error}. Free disk space or end the other program, then try again.") from error
        except sqlite3.DatabaseError as error:
            raise GleanerError(f"{path} is damaged ({error}). Move it away: the limits begin anew.") from error


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _used(db: sqlite3.Connection, limit: Limit, now: float) -> int:
    """Images that share a window with now, on either side: a clock that was set back cannot be used to exceed a limit,
    and what it wrote further ahead than a window does not count."""
    where, bound = "why = ?", list[Any]([limit.why])
    if limit.seconds:
        where, bound = f"{where} AND at > ? AND at < ?", [*bound, now - limit.seconds, now + limit.seconds]
    if limit.label is not None:
        where, bound = f"{where} AND label = ?", [*bound, limit.label]
    return int(db.execute(f"SELECT count(*) FROM kept WHERE {where}", bound).fetchone()[0])  # noqa: S608 - our own words


def _guess(probabilities: Mapping[str, float] | None) -> Guess | None:
    for name, value in (probabilities or {}).items():
        if not isinstance(name, str) or not 0.0 <= value <= 1.0:
            raise BadInput(f"the probability of {name!r} is {value!r}: it must be a number from 0 to 1.")
    return top(probabilities)


def _told(guess: Guess | None) -> tuple[str | None, float | None]:
    return (None, None) if guess is None else (guess.label, guess.confidence)


def _append(path: Path, value: dict[str, Any]) -> None:
    line = json.dumps(value, sort_keys=True, ensure_ascii=True).encode() + b"\n"
    with path.open("ab") as handle:
        handle.write(line)
        handle.flush()
        os.fsync(handle.fileno())
