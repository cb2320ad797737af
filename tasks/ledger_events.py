"""What annotators did: raw events in, each once, and what they mean."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tasks.errors import did_you_mean
from tasks.labeling import Answer, RawEvent, Uninterpretable
from tasks.ledger_tables import LedgerFile


class LabelEvents(LedgerFile):
    """The tables label_event, answer and quarantine."""

    def last_event(self) -> int:
        """Sequence number of the newest label event, 0 when there is none."""
        return int(self._db.execute("SELECT coalesce(max(seq), 0) FROM label_event").fetchone()[0])

    def store_events(self, instance: str, events: Iterable[RawEvent], cursor: str | None = None) -> int:
        """Append what is new: an unknown annotation, or a payload that differs from its latest revision.

        `cursor` is kept in the same transaction: where the tool is asked to go on the next time.
        """
        stored = 0
        with self._transaction():
            for event in events:
                stored += self._store_event(instance, event)
            if cursor is not None and cursor != self.cursor(instance):
                self._put(f"cursor:{instance}", cursor)
        return stored

    def cursor(self, instance: str) -> str:
        """Where the last pull from a tool ended, "" before the first."""
        return self.get(f"cursor:{instance}") or ""

    def _store_event(self, instance: str, event: RawEvent) -> int:
        payload = _storable(json.dumps(event.payload, sort_keys=True, ensure_ascii=False))
        annotation_id = _storable(event.annotation_id)
        digest = hashlib.sha256(payload.encode()).hexdigest()
        latest = self._db.execute(
            "SELECT revision, payload_sha256, deleted FROM label_event WHERE instance = ? AND annotation_id = ?"
            " ORDER BY revision DESC LIMIT 1",
            (instance, annotation_id),
        ).fetchone()
        if latest is not None and (latest["payload_sha256"], bool(latest["deleted"])) == (digest, event.deleted):
            return 0
        revision = 0 if latest is None else latest["revision"] + 1
        self._db.execute(
            "INSERT INTO label_event (instance, annotation_id, revision, payload, payload_sha256, received_at, deleted)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (instance, annotation_id, revision, payload, digest, self._now(), event.deleted),
        )
        return 1

    def interpret_events(
        self, interpret: Callable[[dict[str, Any]], Answer], classes: Sequence[str], instance: str | None = None, *,
        by_item: bool = False,
    ) -> int:  # fmt: skip
        """Interpret every event of `instance` (default: all) that has no answer yet, quarantined ones again.

        `by_item`: the answers' keys are item ids, of items that need not have been asked about; else keys of tasks.
        Returns how many became answers.
        """
        rows = self._db.execute(
            "SELECT seq, payload FROM label_event WHERE seq NOT IN (SELECT seq FROM answer)"
            " AND NOT deleted AND instance = coalesce(?, instance) ORDER BY seq",
            (instance,),
        ).fetchall()
        known = {row["key"]: row["item_id"] for row in self._db.execute("SELECT key, item_id FROM outbox")}
        answered = 0
        with self._transaction():
            for row in rows:
                self._db.execute("DELETE FROM quarantine WHERE seq = ?", (row["seq"],))
                try:
                    answer = interpret(json.loads(row["payload"]))
                    item_id = answer.key if by_item else _item_of(answer, known)
                    _check_class(answer, classes)
                except Uninterpretable as error:
                    self._db.execute("INSERT INTO quarantine VALUES (?, ?)", (row["seq"], _storable(str(error))))
                    continue
                self._insert_answer(row["seq"], item_id, answer)
                answered += 1
        return answered

    def _insert_answer(self, seq: int, item_id: str, answer: Answer) -> None:
        annotator = _storable(answer.annotator)
        self._db.execute(
            "INSERT INTO answer (seq, item_id, kind, label, annotator, seconds, truth, accepted) VALUES (?,?,?,?,?,?,?,?)",
            (seq, item_id, answer.kind, answer.label, annotator, answer.seconds, answer.truth, answer.accepted),
        )


def _storable(text: str) -> str:
    """Text that UTF-8 can hold: a lone surrogate (JSON and file names may have one) becomes its escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def _item_of(answer: Answer, known: dict[str, str]) -> str:
    if answer.key not in known:
        raise Uninterpretable(f"unknown task key {answer.key!r}: this campaign did not ask it")
    return known[answer.key]


def _check_class(answer: Answer, classes: Sequence[str]) -> None:
    if answer.kind == "label" and answer.label not in classes:
        raise Uninterpretable(
            f"unknown class {answer.label!r}; allowed: {', '.join(classes)}.{did_you_mean(answer.label, classes)}"
        )
