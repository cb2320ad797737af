"""What the label events come to, as of any event: votes, what is known of each item, and what could not be read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tasks.labeling import RawEvent
from tasks.ledger_events import LabelEvents
from tasks.ledger_tables import Asked
from tasks.resolution import Policy, Resolved, Vote, resolve
from tasks.tables import CORRECTION

#: the newest revision of each annotation as of event ?1
_STANDS = (
    "NOT EXISTS (SELECT 1 FROM label_event n WHERE n.instance = e.instance AND n.annotation_id = e.annotation_id"
    " AND n.revision > e.revision AND n.seq <= ?1)"
)
_CAST = (
    "SELECT v.*, (SELECT min(f.seq) FROM label_event f WHERE f.instance = e.instance"
    " AND f.annotation_id = e.annotation_id) AS first FROM answer v JOIN label_event e USING (seq)"
    f" WHERE v.seq <= ?1 AND {_STANDS} ORDER BY v.item_id, v.seq"
)
_LIVE = f"SELECT * FROM label_event e WHERE instance = ?2 AND NOT deleted AND {_STANDS} ORDER BY seq"
_QUARANTINED = f"SELECT * FROM quarantine JOIN label_event e USING (seq) WHERE {_STANDS} ORDER BY seq"


@dataclass(frozen=True)
class Cast:
    """A vote with what is measured about annotators."""

    item_id: str
    vote: Vote
    seconds: float | None  # the annotator's lead time
    accepted: bool | None  # a suggestion submitted unchanged; None when none was shown, or it is not known


class LabelViews(LabelEvents):
    """Views of label_event, answer and quarantine."""

    def cast(self, event_seq: int | None = None) -> list[Cast]:
        """Every vote that stands as of `event_seq` (default: now), by item, oldest first.

        An answer that a later revision of the same annotation replaced does not count, even when that revision could
        not be read or says that the annotation was deleted: its annotator no longer says so.
        """
        rows = self._db.execute(_CAST, (self.last_event() if event_seq is None else event_seq,))
        return [
            Cast(
                r["item_id"],
                Vote(r["seq"], r["first"], r["annotator"], r["label"], bool(r["truth"])),
                r["seconds"],
                None if r["accepted"] is None else bool(r["accepted"]),
            )
            for r in rows
        ]

    def asked(self, policy: Policy | None = None, event_seq: int | None = None) -> list[Asked]:
        """Every selected item with what its votes come to as of `event_seq` (default: now)."""
        settled = self._settled(policy, event_seq)
        rows = self._db.execute("SELECT item_id, iteration, rank, arm FROM selection ORDER BY iteration, rank")
        return [_asked(dict(row), settled.get(row["item_id"], Resolved("pending"))) for row in rows]

    def unasked(self, policy: Policy | None = None, event_seq: int | None = None) -> list[Asked]:
        """Items that got a label although nobody was asked about them, by event; as of `event_seq` (default: now)."""
        selected = {row["item_id"] for row in self._db.execute("SELECT item_id FROM selection")}
        settled = self._settled(policy, event_seq).items()
        found = [(item, known) for item, known in settled if item not in selected and known.state == "labeled"]
        unasked = {"iteration": -1, "rank": -1, "arm": CORRECTION}
        return [_asked({"item_id": item, **unasked}, known) for item, known in sorted(found, key=lambda f: f[1].event)]

    def _settled(self, policy: Policy | None, event_seq: int | None) -> dict[str, Resolved]:
        votes: dict[str, list[Vote]] = {}
        for cast in self.cast(event_seq):
            votes.setdefault(cast.item_id, []).append(cast.vote)
        return {item: resolve(each, policy or Policy()) for item, each in votes.items()}

    def live(self, instance: str) -> Iterator[RawEvent]:
        """The newest revision of every annotation of a tool that was not deleted since, in order of arrival."""
        rows = self._db.execute(_LIVE, (self.last_event(), instance))
        for row in rows:
            yield RawEvent(row["annotation_id"], json.loads(row["payload"]))

    def quarantined(self) -> list[dict[str, Any]]:
        """Events that mean nothing known, with the reason; those that a later revision replaced are left out."""
        rows = self._db.execute(_QUARANTINED, (self.last_event(),))
        return [dict(row) for row in rows]


def _asked(row: dict[str, Any], known: Resolved) -> Asked:
    return Asked(**row, state=known.state, label=known.label, event=known.event)
