"""What annotators did: raw events in, answers out, and the view of them that an iteration is frozen from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tasks.errors import did_you_mean
from tasks.labeling import Answer, RawEvent, Uninterpretable
from tasks.ledger_tables import Asked, LedgerFile


class LabelEvents(LedgerFile):
    """The tables label_event, answer and quarantine."""

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

    def interpret_events(
        self, interpret: Callable[[dict[str, Any]], Answer], classes: Sequence[str], instance: str | None = None
    ) -> int:
        """Interpret every event of `instance` (default: all) that has no answer yet, quarantined ones again.

        Returns how many became answers.
        """
        rows = self._db.execute(
            "SELECT seq, payload FROM label_event WHERE seq NOT IN (SELECT seq FROM answer)"
            " AND instance = coalesce(?, instance) ORDER BY seq",
            (instance,),
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
        """Every selected item with its newest answer up to `event_seq` (default: all events).

        An answer that a later revision of the same annotation replaced does not count, even when that revision could
        not be read: its annotator no longer says so.
        """
        limit = self.last_event() if event_seq is None else event_seq
        rows = self._db.execute(
            "SELECT s.item_id, s.iteration, s.rank, s.arm, coalesce(a.kind, 'pending') AS kind,"
            " coalesce(a.label, '') AS label, coalesce(a.seq, 0) AS event FROM selection s LEFT JOIN answer a ON a.seq ="
            " (SELECT max(v.seq) FROM answer v JOIN label_event e USING (seq) WHERE v.item_id = s.item_id AND v.seq <= ?1"
            " AND NOT EXISTS (SELECT 1 FROM label_event n WHERE n.instance = e.instance AND n.seq <= ?1"
            " AND n.annotation_id = e.annotation_id AND n.revision > e.revision)) ORDER BY s.iteration, s.rank",
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


def _storable(text: str) -> str:
    """Text that UTF-8 can hold: a lone surrogate (JSON and file names may have one) becomes its escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def _check_answer(answer: Answer, known: dict[str, str], classes: Sequence[str]) -> Answer:
    if answer.key not in known:
        raise Uninterpretable(f"unknown task key {answer.key!r}: this campaign did not ask it")
    if answer.kind == "label" and answer.label not in classes:
        raise Uninterpretable(
            f"unknown class {answer.label!r}; allowed: {', '.join(classes)}.{did_you_mean(answer.label, classes)}"
        )
    return answer
