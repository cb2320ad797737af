"""How far a campaign is: its closed iterations as rows, and what is left to ask about."""

from __future__ import annotations

import math
from typing import Any

from tasks import pool, stopping
from tasks.arrivals import watched
from tasks.campaign import Campaign
from tasks.ledger import Asked
from tasks.tables import HISTORY

#: what stands for "none" in a table without nulls
NOTHING = {"accuracy": math.nan, "low": math.nan, "high": math.nan, "champion": -1, "model_sha256": "", "correction": 0}


def history(campaign: Campaign) -> list[dict[str, Any]]:
    """One row a closed iteration (HISTORY's columns)."""
    rows = []
    for row in campaign.ledger.iterations():
        if row.state == "closed" and row.outcome is not None:
            values = {name: row.outcome.get(name) for name in HISTORY.schema.names}
            missing = {name: NOTHING[name] for name in NOTHING if values[name] is None}
            rows.append({**values, **missing, "iteration": row.number})
    return rows


def candidates_left(campaign: Campaign, asked: list[Asked]) -> int:
    """Items that may still be asked about for training."""
    exclude = set(campaign.params.select.exclude)
    rows = pool.read_manifest(campaign.store).select(["item_id", "uri", "split"]).to_pylist()
    done = {item.item_id for item in (*asked, *campaign.corrected())} | {
        row["item_id"] for row in rows if row["uri"] in exclude
    }
    return sum(row["split"] == "pool" and row["item_id"] not in done for row in rows)


def reason_to_stop(campaign: Campaign, current: list[dict[str, Any]], spent: int) -> str | None:
    """The rule of params.yaml that ends the campaign now, None to go on. `current`: rows not in the history yet."""
    left = 1 if watched(campaign.params) else candidates_left(campaign, campaign.asked())  # more may arrive
    return stopping.decide(campaign.params.stop, [*history(campaign), *current], spent, left)
