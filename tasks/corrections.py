"""Corrections: a user of the served model says that a prediction was wrong, and what is right.

    correct(Path("."), "cat/001.jpg", "dog", by="ann")              # any process, at any time, also while a tick works
    correct_all(Path("."), read_file(Path("corrections.csv"), by="ann"))

They wait in a spool of their own, `.gleaner/corrections.sqlite`, append-only; each poll takes what is new into the
ledger, exactly once, as label events of the instance `corrections`. One person has one annotation an image: saying
something else about it is a revision, saying it again is nothing new.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tasks import pool
from tasks.campaign import IDENTITY, Campaign, utc_now
from tasks.checkpoint import checkpoint
from tasks.errors import BadInput, GleanerError
from tasks.labeling import Answer, Page, RawEvent, Uninterpretable
from tasks.store import Store, disk_errors

SPOOL = ".gleaner/corrections.sqlite"
INSTANCE = "corrections"
TAKE_BACK = "skip"  # as a label: the correction is taken back
LONGEST = 4096  # characters of a text
PAGE = 1000  # corrections stored in one transaction
SHORTEST = 12  # digits of an item id that may stand for all of it
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT",
    "CREATE TABLE IF NOT EXISTS correction (seq INTEGER PRIMARY KEY AUTOINCREMENT, annotation_id TEXT NOT NULL,"
    " payload TEXT NOT NULL, received_at TEXT NOT NULL) STRICT",
)


@dataclass(frozen=True)
class Correction:
    """What a user says."""

    image: str  # its name in the pool, or its item id (or the first 12 digits or more of it)
    label: str  # a class; "skip" takes the correction back
    by: str  # who says so
    id: str = ""  # of the served prediction, if the caller has one; else image and person tell one from another
    details: Mapping[str, Any] = field(default_factory=dict)  # kept as it is: what was predicted, by which model, …

    @property
    def annotation_id(self) -> str:
        """Stable and unique: the same for what one person says of one image."""
        return self.id or hashlib.sha256(json.dumps([self.image, self.by]).encode()).hexdigest()[:32]

    @property
    def payload(self) -> dict[str, Any]:
        """As it is kept in the ledger."""
        return {**self.details, "image": self.image, "label": self.label, "by": self.by}


def correct(root: Path, image: str, label: str, *, by: str, id: str = "", **details: Any) -> str:
    """Note a correction; it is safe on disk when this returns its id. Needs no lock. Raises BadInput or GleanerError."""
    return correct_all(root, [Correction(image, label, by, id, details)])[0]


def correct_all(root: Path, corrections: Iterable[Correction]) -> list[str]:
    """Note all of them or, when one is refused, none. Returns their ids. Raises BadInput or GleanerError."""
    store = Store(root)
    if not store.exists(IDENTITY):
        raise BadInput(f"{root.resolve()} is no campaign. Name its workspace: --workspace DIR.")
    rows = [(c.annotation_id, _json(c), utc_now()) for c in corrections]
    with _opened(store) as spool:
        checkpoint("correct:spool:before")
        spool.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA:
            spool.execute(statement)
        spool.execute("INSERT OR IGNORE INTO meta VALUES ('id', ?)", (secrets.token_hex(8),))
        spool.executemany("INSERT INTO correction (annotation_id, payload, received_at) VALUES (?, ?, ?)", rows)
        spool.execute("COMMIT")
        checkpoint("correct:spool:after")
    return [row[0] for row in rows]


def _json(correction: Correction) -> str:
    for name in ("image", "label", "by"):
        text = getattr(correction, name)
        if not isinstance(text, str) or not text.strip() or len(text) > LONGEST:
            raise BadInput(f"a correction needs {name}: text of 1 to {LONGEST} characters, not {str(text)[:80]!r}.")
    try:
        correction.id.encode()
        return json.dumps(correction.payload, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadInput(f"correction of {correction.image!r}: its id or details are no JSON: {error}.") from None


@contextmanager
def _opened(store: Store) -> Iterator[sqlite3.Connection]:
    path = store.path(SPOOL)
    with disk_errors(store.root):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=30.0)) as spool:
            spool.execute("PRAGMA synchronous = FULL")
            yield spool
    except sqlite3.OperationalError as error:
        raise GleanerError(f"{path}: {error}. Free disk space or end the other program, then try again.") from error
    except sqlite3.DatabaseError as error:
        raise GleanerError(
            f"{path} is damaged ({error}). Move it away; what was read of it is in the ledger, the rest must be said again."
        ) from error


def store(campaign: Campaign) -> int:
    """Take what is new in the spool into the ledger, each correction once; returns how many events were new."""
    stored = 0
    while campaign.store.exists(SPOOL):
        page = _next(campaign.store, campaign.ledger.cursor(INSTANCE))
        if not page.events:
            break
        checkpoint("import:corrections:before")
        stored += campaign.ledger.store_events(INSTANCE, page.events, page.cursor)
        checkpoint("import:corrections:after")
    return stored


def _next(store: Store, cursor: str) -> Page:
    """The next page after a cursor `spool:number`; of another spool (a fork's, or one that was lost) from the beginning."""
    with _opened(store) as spool:
        if not spool.execute("SELECT 1 FROM sqlite_master WHERE name = 'correction'").fetchone():
            return Page(())
        ((name,),) = spool.execute("SELECT value FROM meta WHERE key = 'id'").fetchall()
        before, _, number = cursor.partition(":")
        rows = spool.execute(
            "SELECT seq, annotation_id, payload FROM correction WHERE seq > ? ORDER BY seq LIMIT ?",
            (int(number) if before == name else 0, PAGE),
        ).fetchall()
    events = [RawEvent(annotation, json.loads(payload)) for _, annotation, payload in rows]
    return Page(events, f"{name}:{rows[-1][0]}" if rows else cursor)


def counts(campaign: Campaign) -> dict[str, int]:
    """How many corrections the ledger holds, how many images they give a label that nobody was asked about, how many
    wait for the next tick."""
    columns, rows = campaign.ledger.rows("label_event")
    instance, annotation = columns.index("instance"), columns.index("annotation_id")
    told = {row[annotation] for row in rows if row[instance] == INSTANCE}
    return {"told": len(told), "unasked": len(campaign.corrected()), "waiting": _waiting(campaign)}


def _waiting(campaign: Campaign) -> int:
    found, cursor = 0, campaign.ledger.cursor(INSTANCE)
    while campaign.store.exists(SPOOL) and (page := _next(campaign.store, cursor)).events:
        found, cursor = found + len(page.events), page.cursor
    return found


def interpret(campaign: Campaign) -> int:
    """Read what is not read yet, quarantined ones again: an image or a class may be known by now. Returns new answers."""
    return campaign.ledger.interpret_events(_reader(campaign), campaign.classes, INSTANCE, by_item=True)


def _reader(campaign: Campaign) -> Callable[[dict[str, Any]], Answer]:
    find = cache(lambda: _finder(campaign.store))  # the pool is read only when there is something to read

    def read(payload: dict[str, Any]) -> Answer:
        image, label, by = (payload.get(name) for name in ("image", "label", "by"))
        if not isinstance(image, str) or not isinstance(label, str) or not isinstance(by, str):
            raise Uninterpretable(f"needs text `image`, `label` and `by`; got {str(payload)[:200]}")
        taken_back = label == TAKE_BACK and label not in campaign.classes
        return Answer(find()(image), "skip" if taken_back else "label", "" if taken_back else label, by, None)

    return read


def _finder(store: Store) -> Callable[[str], str]:
    """What tells the item of an image by its name or id. Raises Uninterpretable."""
    items = set(pool.read_manifest(store)["item_id"].to_pylist())
    seen = pool.read_sightings(store).select(["uri", "sha256"]).to_pydict()
    names: dict[str, set[str]] = {}
    for uri, item in zip(seen["uri"], seen["sha256"], strict=True):
        if item in items:
            names.setdefault(uri, set()).add(item)

    def find(image: str) -> str:
        if image in items:
            return image
        found = names.get(image) or {i for i in items if len(image) >= SHORTEST and i.startswith(image)}
        if not found:
            raise Uninterpretable(f"unknown image {image!r}: no name and no item id of the pool")
        if len(found) > 1:
            raise Uninterpretable(f"{len(found)} images of the pool are called {image!r}: give the item id")
        return next(iter(found))

    return find


def item_of(content: bytes) -> str:
    """The item id of an image: the SHA-256 of its bytes."""
    return hashlib.sha256(content).hexdigest()


def read_file(path: Path, by: str = "") -> list[Correction]:
    """Corrections of a CSV file with the columns image, label and by; others are kept as details.

    by: who says so where the column is empty or missing. Raises BadInput that names file and row.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read as UTF-8 text: {error}.") from None
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or []]
        missing = {"image", "label", *(() if by else ("by",))} - set(reader.fieldnames)
        if missing:
            raise BadInput(
                f"{path}: no column {', '.join(sorted(missing))}. Name them in the first line: image,label,by"
            )
        return [_of_row(path, reader.line_num, row, by) for row in reader]
    except csv.Error as error:
        raise BadInput(f"{path}, row {reader.line_num + 1}: {error}. Correct its quotes; nothing was taken.") from None


def _of_row(path: Path, number: int, row: dict[str, Any], by: str) -> Correction:
    if None in row or None in row.values():
        raise BadInput(f"{path}, row {number}: another number of cells than columns. Nothing was taken.")
    cells = {name: value.strip() for name, value in row.items()}
    image, label, who = cells.pop("image"), cells.pop("label"), cells.pop("by", "") or by
    if not image or not label or not who:
        raise BadInput(f"{path}, row {number}: image, label and by must not be empty. Nothing was taken.")
    return Correction(image, label, who, cells.pop("id", ""), {name: value for name, value in cells.items() if value})
