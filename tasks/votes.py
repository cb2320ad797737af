"""Everybody's newest answer to each item, as a table that is frozen with the iteration: who said what, and how long it took."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa

from tasks.campaign import Campaign
from tasks.ledger_views import Cast
from tasks.tables import VOTES


def votes_table(campaign: Campaign, event_seq: int) -> pa.Table:
    """The votes as of an event; one a person and item, the newest."""
    asked = {row["item_id"]: row for number in _numbers(campaign) for row in campaign.ledger.batch(number)}
    newest: dict[tuple[str, str], Cast] = {}
    for cast in campaign.ledger.cast(event_seq):
        if cast.item_id in asked:  # a correction may be of an image that nobody was asked about
            newest[cast.item_id, cast.vote.annotator] = cast
    rows = [_row(campaign, cast, asked[cast.item_id]) for cast in newest.values()]
    return pa.Table.from_pylist(sorted(rows, key=lambda row: int(row["event"])), schema=VOTES.schema)


def _numbers(campaign: Campaign) -> list[int]:
    return [row.number for row in campaign.ledger.iterations()]


def _row(campaign: Campaign, cast: Cast, asked: dict[str, Any]) -> dict[str, Any]:
    guess = asked["predicted"]
    return {
        "event": cast.vote.seq,
        "item_id": cast.item_id,
        "annotator": cast.vote.annotator,
        "label": cast.vote.label,
        "seconds": math.nan if cast.seconds is None else cast.seconds,
        "truth": cast.vote.truth,
        "accepted": -1 if cast.accepted is None else int(cast.accepted),
        "arm": asked["arm"],
        "predicted": campaign.classes[guess] if 0 <= guess < len(campaign.classes) else "",
    }
