"""Answers that were refused, one row each in `data/refused.csv`: rewritten after every look, gone when there are none.

    file,row,image,value,reason
    iteration-0003/batch.csv,7,0005_1f3a….png,dear,"unknown class 'dear'; allowed: deer, fox. Did you mean 'deer'?"

The ledger keeps them (its quarantine); this is what people correct them by.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tasks.campaign import Campaign
from tasks.labeling import RawEvent
from tasks.labeling._tables import table
from tasks.ledger import Asked, task_key

FILE = "data/refused.csv"
COLUMNS = ("file", "row", "image", "value", "reason")
SHOWN = 1000  # characters of a cell


@dataclass(frozen=True)
class Refusal:
    """One answer that means nothing known, and where it stands."""

    file: str  # "" for a tool without files
    row: str  # in the file, "" when a whole file was refused or the file says it no more
    image: str
    value: str
    reason: str  # with what is allowed, and the fix
    rank: int | None = None  # in its batch, None when no task is known


def refusals(campaign: Campaign, events: Iterable[RawEvent] = ()) -> list[Refusal]:
    """What was refused and still matters: of tasks without an answer, or since the newest iteration was opened.

    `events` is what the tool tells now: it knows in which row of its file an answer stands today.
    """
    latest, asked = campaign.ledger.latest(), campaign.asked()
    items = {task_key(campaign.id, item.iteration, item.item_id): item for item in asked}
    now = {event.annotation_id: event for event in events}
    found = []
    for row in campaign.ledger.quarantined() if latest else ():
        payload = json.loads(row["payload"])
        item = items.get(str(payload.get("key")))
        waited_for = item is not None and item.state == "pending"
        if waited_for or (latest is not None and row["seq"] > latest.event_seq):
            found.append(_refusal(payload, row["reason"], item, now.get(row["annotation_id"])))
    return found


def _refusal(payload: Mapping[str, Any], reason: str, item: Asked | None, event: RawEvent | None) -> Refusal:
    number = event.row if event else payload.get("row")
    row = str(number) if isinstance(number, int) else ""
    file = _text(payload.get("file"))
    image = (event.image if event else "") or (item.item_id[:12] if item else payload.get("image"))
    value = payload.get("value", payload.get("label"))
    told = _text(reason).removeprefix(f"{file}, row {row}: ")
    return Refusal(file, row, _text(image), _text(value), told, item.rank if item else None)


def _text(value: Any) -> str:
    """One line that any terminal and any spreadsheet can show."""
    text = "" if value is None else str(value)
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)[:SHOWN]


def line(refusal: Refusal) -> str:
    """A refusal in one line, for people."""
    file = "" if refusal.reason.startswith(refusal.file) else refusal.file
    row = f"row {refusal.row}" if refusal.row else ""
    rank = "" if refusal.rank is None else f"rank {refusal.rank}"
    where = ", ".join(part for part in (file, row, rank) if part)
    return f"{where}: {refusal.reason}" if where else refusal.reason


def write(campaign: Campaign, events: Iterable[RawEvent] = ()) -> None:
    """Rewrite the report in one atomic step, or remove it when nothing is refused."""
    found = refusals(campaign, events)
    if found:
        campaign.store.write_bytes(FILE, report(found))
    else:
        campaign.store.path(FILE).unlink(missing_ok=True)


def report(found: Iterable[Refusal]) -> bytes:
    """The report as CSV, without a cell that a spreadsheet would run."""
    return table(COLUMNS, [[getattr(refusal, name) for name in COLUMNS] for refusal in found])


def warning(campaign: Campaign) -> list[str]:
    """What a tick says of them: a line, or nothing."""
    count = len(refusals(campaign))
    return [f"{count} of the answers were refused: {FILE} and `gleaner status` say which and why"] if count else []
