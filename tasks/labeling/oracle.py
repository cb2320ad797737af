"""An annotator made of known labels: the demo's, and a realistic one when asked to be.

It behaves like a real tool: it keeps its tasks in a database of its own (`.gleaner/oracle.sqlite`), does not refuse
a second task with the same key (the adapter adopts by key, as it must with any tool), answers after a while, errs,
skips, and leaves some tasks unanswered. What it does with a task depends on `seed` and the task's key alone.

    labeling: {tool: oracle, options: {error_rate: 0.05, skip_rate: 0.02, unanswered_rate: 0.1, delay_seconds: 60.0}}
"""

from __future__ import annotations

import hashlib
import math
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import pyarrow.parquet as pq
from annotated_types import Interval

from tasks.checkpoint import checkpoint
from tasks.errors import BadInput, Unreachable
from tasks.labeling import Answer, Page, Place, RawEvent, Receipt, Task, read_answer

DATABASE = ".gleaner/oracle.sqlite"
SCHEMA = """
CREATE TABLE IF NOT EXISTS server (instance TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS task (
    id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL, item_id TEXT NOT NULL, created REAL NOT NULL
);
"""
CHUNK = 500  # tasks created in one request


@dataclass(frozen=True)
class Habits:
    """How the annotator behaves; rates are shares of tasks."""

    error_rate: float = 0.0
    skip_rate: float = 0.0
    unanswered_rate: float = 0.0
    delay_seconds: float = 0.0
    seed: int = 0

    def answer(self, key: str, truth: str | None, classes: Sequence[str]) -> dict[str, Any] | None:
        """What is answered to the task `key`, and after how many seconds (`delay`); None: it never is. Pure."""
        digest = hashlib.sha256(f"{self.seed}:{key}".encode()).digest()
        rng = np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))
        ignores, skips, errs, waits, thinks = rng.random(5)
        if ignores < self.unanswered_rate:
            return None
        timing = {"delay": -math.log1p(-waits) * self.delay_seconds, "seconds": round(1.0 + 5.0 * thinks, 2)}
        if truth is None or skips < self.skip_rate:
            return {"kind": "skip", "label": "", "annotator": "oracle", **timing}
        others = [name for name in classes if name != truth]
        label = str(rng.choice(others)) if others and errs < self.error_rate else truth
        return {"kind": "label", "label": label, "annotator": "oracle", **timing}


def connect(
    place: Place,
    *,
    error_rate: Annotated[float, Interval(ge=0, le=1)] = 0.0,
    skip_rate: Annotated[float, Interval(ge=0, le=1)] = 0.0,
    unanswered_rate: Annotated[float, Interval(ge=0, le=1)] = 0.0,
    delay_seconds: Annotated[float, Interval(ge=0)] = 0.0,
    seed: int = 0,
) -> Oracle:
    """Connect to the oracle of a workspace. Raises BadInput without known labels."""
    if not place.known_labels.exists() or not pq.read_metadata(place.known_labels).num_rows:
        raise BadInput(
            "params.yaml: labeling.tool: the oracle answers from known labels, and the source gave none. "
            "Use a source with labels (a folder per class, a table with a label column), or another tool."
        )
    known = set(pq.read_table(place.known_labels, columns=["label"])["label"].unique().to_pylist())
    if known.isdisjoint(place.classes):
        raise BadInput(
            f"params.yaml: labeling.classes: {', '.join(place.classes)}: none of them is a label that the source knows "
            f"({', '.join(sorted(known)[:10])}), so the oracle could answer nothing."
        )
    return Oracle(place, Habits(error_rate, skip_rate, unanswered_rate, delay_seconds, seed))


@dataclass(frozen=True)
class Oracle:
    """A connection; each call opens the database anew, as a request would."""

    place: Place
    habits: Habits

    @cached_property
    def instance(self) -> str:
        """Identity of this oracle's database, fixed when it is made."""
        with self._open() as db:
            (name,) = db.execute("SELECT instance FROM server").fetchone()
        return f"oracle:{name}"

    @property
    def address(self) -> str:
        """Nobody needs to go anywhere."""
        return "the oracle answers by itself, from known labels"

    def push(self, tasks: Sequence[Task]) -> list[Receipt]:
        """Create the tasks that are missing, by key, in chunks; one receipt a task."""
        held = self._held()
        missing = [task for task in tasks if task.key not in held]
        for start in range(0, len(missing), CHUNK):
            checkpoint("oracle:create:before")
            with self._open() as db, db:
                db.executemany(
                    "INSERT INTO task (key, item_id, created) VALUES (?, ?, ?)",
                    [(task.key, task.item_id, time.time()) for task in missing[start : start + CHUNK]],
                )
            checkpoint("oracle:create:after")
        held = self._held()
        return [Receipt(task.key, str(held[task.key])) for task in tasks]

    def require(self) -> None:
        """The known labels were looked at when it was opened."""

    def pull(self, cursor: str) -> Iterator[Page]:
        """Answers of all tasks whose time has come, in the order they were created."""
        yield Page(list(self._events()))

    def deleted(self, live: Iterable[RawEvent]) -> list[RawEvent]:
        """It never takes an answer back."""
        return []

    def _events(self) -> Iterator[RawEvent]:
        known = dict(
            zip(*pq.read_table(self.place.known_labels).select(["item_id", "label"]).to_pydict().values(), strict=True)
        )
        with self._open() as db:
            tasks = db.execute("SELECT id, key, item_id, created FROM task ORDER BY id").fetchall()
        for number, key, item_id, created in tasks:
            payload = self.habits.answer(key, known.get(item_id), self.place.classes)
            if payload is not None and created + payload.pop("delay") <= time.time():
                yield RawEvent(f"{number}", {"task": number, "key": key, **payload})

    def interpret(self, payload: dict[str, Any]) -> Answer:
        """Read an answer of this oracle."""
        return read_answer(payload)

    def lost(self, receipts: Sequence[Receipt]) -> list[str]:
        """Tasks that are not in its database."""
        held = self._held()
        return [receipt.key for receipt in receipts if receipt.key not in held]

    def _held(self) -> dict[str, int]:
        with self._open() as db:
            return dict(db.execute("SELECT key, min(id) FROM task GROUP BY key").fetchall())

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """One request: a connection that is closed afterwards. Raises Unreachable when the database cannot be used."""
        path = self.place.workspace / DATABASE
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            with closing(sqlite3.connect(path, timeout=30.0)) as db:
                db.executescript(SCHEMA)
                with db:
                    db.execute("BEGIN IMMEDIATE")
                    if db.execute("SELECT count(*) FROM server").fetchone()[0] == 0:
                        db.execute("INSERT INTO server VALUES (?)", (uuid.uuid4().hex,))
                yield db
        except sqlite3.DatabaseError as error:
            raise Unreachable(f"the oracle's database {path} cannot be used: {error}.") from error
