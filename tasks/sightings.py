"""What has been seen of a source so far: which files need not be read again, and what became of each.

one row per (uri, sha256):  cat/001.jpg  3fa1…  accepted
                            cat/copy.jpg 3fa1…  duplicate    same bytes as cat/001.jpg
                            cat/.DS_Store 9c0e… quarantined  not an image: starts with …
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa

from tasks.sources import Found
from tasks.tables import SIGHTINGS


@dataclass(frozen=True)
class Sighting:
    """A row of the sightings table."""

    uri: str
    sha256: str  # "" when the bytes could not be read
    size: int
    mtime_ns: int
    outcome: str  # accepted | duplicate | quarantined
    reason: str
    ingest: int  # that first came to this outcome


class Sightings:
    """All sightings, in memory."""

    def __init__(self, table: pa.Table) -> None:
        rows: list[dict[str, Any]] = table.to_pylist()
        self._rows = {(r["uri"], r["sha256"]): Sighting(**r) for r in rows}
        self._by_time = {_stamp(s): s for s in self._rows.values()}
        self.changed = False

    def unchanged(self, found: Found) -> Sighting | None:
        """The sighting of that file with the same size and time, None when it must be read.

        What has no clock or could not be read is read again.
        """
        if found.mtime_ns < 0:
            return None
        sighting = self._by_time.get((found.uri, found.size, found.mtime_ns))
        return sighting if sighting is not None and sighting.sha256 else None

    def record(self, new: Sighting) -> bool:
        """Note what became of a file; the first ingest that came to an outcome stays. True: seen before, same bytes."""
        old = self._rows.get((new.uri, new.sha256))
        again = old is not None and old.outcome != "quarantined" and new.outcome == "duplicate"
        if old is not None and (again or (old.outcome, old.reason) == (new.outcome, new.reason)):
            new = replace(old, size=new.size, mtime_ns=new.mtime_ns)
        self._rows[new.uri, new.sha256] = new
        self._by_time[_stamp(new)] = new
        self.changed = self.changed or new != old
        return again

    def places(self, items: set[str]) -> dict[str, list[tuple[str, int]]]:
        """Item id -> where its bytes were seen: uri, and the ingest that read it there."""
        places: dict[str, list[tuple[str, int]]] = {}
        for sighting in self._rows.values():
            if sighting.sha256 in items:
                places.setdefault(sighting.sha256, []).append((sighting.uri, sighting.ingest))
        return places

    def counts(self, ingest: int) -> int:
        """How many outcomes an ingest was the first to come to."""
        return sum(s.ingest == ingest for s in self._rows.values())

    def table(self) -> pa.Table:
        """All rows, sorted by ingest, uri and hash: the order does not tell how often a run had to start over."""
        rows = sorted(self._rows.values(), key=lambda s: (s.ingest, s.uri, s.sha256))
        return pa.Table.from_pylist([asdict(s) for s in rows], schema=SIGHTINGS.schema)


def _stamp(sighting: Sighting) -> tuple[str, int, int]:
    return sighting.uri, sighting.size, sighting.mtime_ns
