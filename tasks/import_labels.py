"""Import what annotators answered and open the next iteration: `python -m tasks.import_labels`.

Gather: pull raw events, store them, interpret them. Decide: is an iteration due? Write: freeze `data/inputs/`.
An iteration that a crash left unfinished is finished first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tasks import committed, inputs, pool, refusals, repository, versions
from tasks.arrivals import new_images, take_new, watched
from tasks.campaign import Campaign, open_campaign, utc_now
from tasks.checkpoint import checkpoint
from tasks.choose import first_plan, holdout_target
from tasks.errors import BadInput, did_you_mean
from tasks.export import finish_exported, send_again
from tasks.ledger import Asked, IterationRow
from tasks.params_sections import Params
from tasks.polling import poll
from tasks.progress import candidates_left, history, reason_to_stop
from tasks.stage import guarded
from tasks.tables import ASKED, FROZEN_MANIFEST, HISTORY, LABELS, VOTES
from tasks.votes import votes_table


@dataclass(frozen=True)
class Due:
    """Whether there is something to do, and why (not)."""

    now: bool
    why: str
    waiting: bool = False  # answers may come: looking again later makes sense


def due(campaign: Campaign, *, ingested: bool = False) -> Due:
    """Whether an iteration should be opened or finished now. `ingested`: what is new in the source was taken just now."""
    by_hand = campaign.ledger.stopped_by_hand()
    latest = campaign.ledger.latest()
    committed.require_history(campaign.store, latest)
    if latest is not None and latest.state != "closed":
        return Due(True, f"iteration {latest.number} is {latest.state}, to be finished")
    if by_hand is not None:
        return Due(False, f"stopped by hand: {by_hand} (`gleaner resume` goes on)")
    if latest is None:
        campaign.pool  # noqa: B018 - an empty pool is refused here
        _require_budget(campaign.params)
        return Due(True, "the campaign begins")
    stopped = _stopped(campaign, latest)
    if stopped is None:
        campaign.pool  # noqa: B018 - params that contradict the pool are refused while people still work, not after
        _require_known(campaign)
    return stopped or _used_up(campaign, latest, ingested) or _answered(campaign, latest)


def _require_budget(params: Params) -> None:
    """Refuse a budget without room for a first batch while nothing has been opened yet."""
    budget = params.stop.labels or None
    first_plan(
        params.select.first_batch, holdout_target(params.holdout.labels, params.select.first_batch, budget), budget
    )


def _stopped(campaign: Campaign, latest: IterationRow) -> Due | None:
    if latest.outcome is None or latest.outcome.get("stop") is None:
        return None
    reason = reason_to_stop(campaign, [], len(campaign.asked()))
    return None if reason is None else Due(False, f"campaign finished: {reason}")


def _used_up(campaign: Campaign, latest: IterationRow, ingested: bool) -> Due | None:
    """With a watched source a pool without candidates is no end; None when there is something to ask or to learn from."""
    if not watched(campaign.params) or any(item.iteration == latest.number for item in campaign.asked()):
        return None
    if candidates_left(campaign, campaign.asked()):
        return None
    if not ingested and new_images(campaign):
        return Due(True, "new images are in the source")
    return Due(False, "waiting for new images: every image of the pool was asked about", waiting=True)


def _answered(campaign: Campaign, latest: IterationRow) -> Due:
    batch = [item for item in campaign.asked() if item.iteration == latest.number]
    if not batch:
        return Due(True, "no task is waiting for an answer")
    answered = sum(item.state != "pending" for item in batch)
    needed = math.ceil(campaign.params.labeling.quorum * len(batch) - 1e-9)
    if answered >= needed:
        return Due(True, f"{answered} of {len(batch)} tasks are answered")
    early = campaign.ledger.decided("close", latest.number)
    if early is not None:
        return Due(True, f"the batch was closed early with {answered} of {len(batch)} tasks answered: {early}")
    _require_same_tool(campaign, latest.number, answered)
    hours = campaign.params.labeling.deadline_hours
    if hours and answered and latest.closed_at and _hours_since(latest.closed_at) >= hours:
        return Due(True, f"the deadline of {hours} h has passed with {answered} of {len(batch)} tasks answered")
    budget, spent = campaign.params.stop.labels, len(campaign.asked())
    last = f"; the budget is spent ({spent} of {budget}), the campaign ends with them" if 0 < budget <= spent else ""
    return Due(
        False,
        f"waiting for annotators: {answered} of {len(batch)} tasks of iteration {latest.number} are answered, {needed} are "
        f"needed{last}",
        waiting=True,
    )


def _require_same_tool(campaign: Campaign, number: int, answered: int) -> None:
    """Tasks that wait at another tool, or at another server of the same one, would never be answered."""
    here, holder = campaign.tool.instance, campaign.ledger.instance()
    elsewhere = {task["instance"] for task in campaign.ledger.batch(number)} - {here}
    if elsewhere and holder:
        raise BadInput(
            f"iteration {number} waits for answers at {', '.join(sorted(elsewhere))}, but params.yaml names {here} "
            "(labeling.tool). Set the tool back until they are in, go on with what is there (`gleaner close-batch`), or send "
            "what waits to the new one (`gleaner resend`)."
        )


def _hours_since(moment: str) -> float:
    return (datetime.fromisoformat(utc_now()) - datetime.fromisoformat(moment)).total_seconds() / 3600


def open_iteration(campaign: Campaign) -> int:
    """Open the next iteration, or go on with the one that is open, and freeze its inputs. Returns its number."""
    _require_known(campaign)
    latest = campaign.ledger.latest()
    committed.require(campaign.store, latest)
    if latest is None or latest.state == "closed":
        checkpoint("open:ledger:before")
        latest = campaign.ledger.open_iteration(repository.head(campaign.root))
        checkpoint("open:ledger:after")
    inputs.freeze(campaign.store, iteration_of(campaign, latest), tables(campaign, latest))
    checkpoint("open:freeze:after")
    versions.heal_lock(campaign.root)
    versions.add_data(campaign.root, ("data/pool", "data/inputs"))
    checkpoint("open:add:after")
    return latest.number


def _require_known(campaign: Campaign) -> None:
    """A slip of the pen in select.exclude would ask about what must never be asked about."""
    excluded = campaign.params.select.exclude
    if not excluded:
        return
    known = pool.read_manifest(campaign.store)["uri"].to_pylist()
    for name in set(excluded) - set(known):
        raise BadInput(
            f"params.yaml: select.exclude: {name!r} is no image of the pool (names as in data/pool/manifest.parquet; of "
            f"images with the same bytes the first).{did_you_mean(name, known)}"
        )


def iteration_of(campaign: Campaign, row: IterationRow) -> inputs.Iteration:
    """What the stages are told."""
    budget = campaign.params.stop.labels
    seed = int(np.random.SeedSequence([campaign.params.campaign.seed, row.number]).generate_state(1)[0])
    return inputs.Iteration(
        campaign=campaign.id,
        number=row.number,
        seed=seed,
        classes=campaign.classes,
        shape=campaign.shape,
        event_seq=row.event_seq,
        remaining=max(0, budget - len(campaign.asked())) if budget else None,
    )


def tables(campaign: Campaign, row: IterationRow) -> dict[Any, pa.Table]:
    """The tables to freeze, as of the iteration's event."""
    asked = campaign.asked(row.event_seq)
    labeled = [*(item for item in asked if item.state == "labeled"), *campaign.corrected(row.event_seq)]
    return {
        FROZEN_MANIFEST: pool.read_manifest(campaign.store),
        LABELS: pa.table(
            {
                "item_id": [item.item_id for item in labeled],
                "label": [item.label for item in labeled],
                "class_index": [_class_index(campaign, item) for item in labeled],
                "arm": [item.arm for item in labeled],
                "asked_in": [item.iteration for item in labeled],
                "event": [item.event for item in labeled],
            },
            schema=LABELS.schema,
        ),
        ASKED: pa.Table.from_pylist(
            [{n: getattr(item, n) for n in ASKED.schema.names} for item in asked], schema=ASKED.schema
        ),
        HISTORY: pa.Table.from_pylist(history(campaign), schema=HISTORY.schema),
        VOTES: votes_table(campaign, row.event_seq),
    }


def _class_index(campaign: Campaign, item: Asked) -> int:
    if item.label not in campaign.classes:
        raise BadInput(
            f"params.yaml: labeling.classes: {item.label!r} is missing, but item {item.item_id[:12]} has that label. "
            "Classes can be added, not removed."
        )
    return campaign.classes.index(item.label)


def main() -> None:
    """Import labels in the current folder and open the next iteration."""
    with open_campaign(Path.cwd(), "import_labels") as campaign:
        finish_exported(campaign)
        answers = poll(campaign)
        verdict = due(campaign)
        if verdict.now:
            taken = take_new(campaign)
            campaign, verdict = taken.campaign, due(taken.campaign, ingested=True)
            for line in taken.lines:
                print(line)
        if verdict.now:
            print(
                f"{answers} new answers; iteration {open_iteration(campaign)} is open ({verdict.why}). Next: dvc repro"
            )
        else:
            print(f"{answers} new answers; nothing is due: {verdict.why}.")
            for line in (*(send_again(campaign) if verdict.waiting else ()), *refusals.warning(campaign)):
                print(line)


if __name__ == "__main__":
    raise SystemExit(guarded(main))
