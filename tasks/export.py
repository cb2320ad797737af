"""Close an iteration: `python -m tasks.export` sends the batch to the labeling tool and sets the tag.

    open ──gate, one transaction──> selected ──push, adopt by key──> exported ──snapshot, cache, commit, tag──> closed

Each step can be repeated: after a crash the next start goes on where the ledger stands. Once the batch is in the
outbox it is never computed again; its stored hash is asserted instead.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tasks import committed, repository, serving, tracking, versions
from tasks.campaign import Campaign, open_campaign
from tasks.checkpoint import checkpoint
from tasks.closing import Closed, close
from tasks.errors import Blocked, GleanerError
from tasks.findings import blocking
from tasks.inputs import read_iteration
from tasks.labeling import Receipt, Task
from tasks.ledger import Frozen, IterationRow, task_key
from tasks.progress import reason_to_stop
from tasks.stage import guarded
from tasks.store import Store, sha256
from tasks.tables import METRICS, SELECTION


def export(campaign: Campaign) -> Closed | None:
    """Close the iteration that is open; None when there is none. Raises Blocked when a check refuses the batch."""
    row = campaign.ledger.latest()
    if row is None or row.state == "closed":
        return None
    if row.state == "open":
        _select(campaign, row)
    return finish_exported(campaign)


def finish_exported(campaign: Campaign) -> Closed | None:
    """Finish an iteration whose batch is in the outbox already; None when there is none."""
    row = campaign.ledger.latest()
    if row is None or row.state in ("open", "closed"):
        return None
    _require_same_code(campaign, row)
    committed.require(campaign.store, row)
    _require_same_selection(campaign, row)
    if row.state == "selected":
        _push(campaign, row.number)
    return close(campaign, row.number)


def _select(campaign: Campaign, row: IterationRow) -> None:
    """Gate, then put batch and outbox into the ledger in one transaction."""
    frozen = _freeze(campaign, row)
    metrics = campaign.store.read_json(METRICS)
    stop = reason_to_stop(campaign, [_measured(metrics)], len(campaign.asked()))
    selection = [] if stop else campaign.store.read_table(SELECTION).to_pylist()
    if selection:
        _require_within_budget(campaign, len(selection))
        gate(campaign.store, row.number, campaign.ledger.accepted(row.number))
        serving.serve(campaign, [item["item_id"] for item in selection])
    campaign.ledger.put(f"stop:{row.number}", stop or "")
    campaign.ledger.put("classes", json.dumps(read_iteration(campaign.store).classes))
    checkpoint("export:select:before")
    campaign.ledger.select(row.number, campaign.id, selection, frozen)
    checkpoint("export:select:after")


def _require_within_budget(campaign: Campaign, size: int) -> None:
    """stop.labels may have been lowered since the batch was computed."""
    spent, budget = len(campaign.asked()), campaign.params.stop.labels
    if budget and spent + size > budget:
        raise GleanerError(
            f"the batch of {size} labels does not fit: {spent} of stop.labels {budget} are spent. Nothing was sent: run "
            "`gleaner tick`, or `python -m tasks.import_labels && dvc repro`, which compute a batch that fits."
        )


def _freeze(campaign: Campaign, row: IterationRow) -> Frozen:
    """What the batch was computed from; refuses when the outputs are not of this iteration, params and code."""
    repository.require_clean(campaign.root)
    if campaign.store.path("params.yaml").read_text(encoding="utf-8") != campaign.params_text:
        raise GleanerError(
            f"params.yaml was edited while iteration {row.number} was computed. Nothing was sent: run the tick again, "
            "it computes with what the file says now."
        )
    stale = versions.stale(campaign.root)
    frozen_number = read_iteration(campaign.store).number
    if stale or frozen_number != row.number:
        names = ", ".join(stale) or "all"
        raise GleanerError(
            f"iteration {row.number} is not computed yet (stages to run: {names}). Run `dvc repro`, or `gleaner tick`."
        )
    return Frozen(
        sha256(campaign.store.path(SELECTION.path)),
        campaign.params_text,
        campaign.store.path("dvc.lock").read_text(encoding="utf-8"),
        repository.head(campaign.root),
    )


def _measured(metrics: dict[str, Any]) -> dict[str, float]:
    nan = float("nan")
    return {
        "accuracy": nan if metrics["accuracy"] is None else metrics["accuracy"],
        "low": nan if metrics["accuracy_low"] is None else metrics["accuracy_low"],
    }


def gate(store: Store, number: int, accepted: dict[str, str]) -> None:
    """Raise Blocked when a blocking check failed and nobody accepted it."""
    refused = [
        f"- {finding['check']}: {finding['what']} To do: {finding['todo']}"
        for finding in blocking(store)
        if finding["check"] not in accepted
    ]
    if refused:
        raise Blocked(
            f"iteration {number}: the batch is not exported, no money was spent.\n" + "\n".join(refused) + "\n"
            "Fix the cause and run the tick again, or overrule: gleaner tick --accept CHECK --because REASON"
        )


def _require_same_code(campaign: Campaign, row: IterationRow) -> None:
    changed, code = repository.code_changed(campaign.root, row.base_commit), " ".join(repository.CODE)
    if changed:
        raise GleanerError(
            f"iteration {row.number} was selected with the code of commit {row.base_commit[:10]}, but {', '.join(changed[:5])} changed "
            f"since. Finish it with its own code first: `git checkout --no-overlay {row.base_commit[:10]} -- {code} && "
            f"git commit -m 'finish iteration {row.number}' -- {code}`, then tick. "
            f"`git revert HEAD~1`, once it is tagged, brings the new code back."
        )


def _require_same_selection(campaign: Campaign, row: IterationRow) -> None:
    """The batch on disk must be the one in the outbox; if someone recomputed it, bring the recorded one back."""
    path, lock = campaign.store.path(SELECTION.path), (row.dvc_lock or "").encode()
    same = path.exists() and sha256(path) == row.selection_sha256
    if not same or campaign.store.path("dvc.lock").read_bytes() != lock or versions.stale(campaign.root):
        campaign.store.write_bytes("dvc.lock", lock)
        versions.checkout(campaign.root)
    if sha256(path) != row.selection_sha256:
        raise GleanerError(
            f"{path} is not the batch of iteration {row.number} in the outbox, and the cache does not hold that one."
        )


def _push(campaign: Campaign, number: int) -> None:
    tasks = _tasks(campaign, number)
    checkpoint("export:push:before")
    receipts = campaign.tool.push(tasks) if tasks else []
    checkpoint("export:push:after")
    if [receipt.key for receipt in receipts] != [task.key for task in tasks]:
        raise GleanerError(
            f"the labeling tool {campaign.params.labeling.tool} did not confirm every task of iteration {number}."
        )
    instance = campaign.tool.instance if tasks else ""
    campaign.ledger.sent(number, instance, receipts)
    checkpoint("export:sent:after")


def send_again(campaign: Campaign) -> list[str]:
    """Push tasks once more that wait for an answer and that the tool has lost, or never had; says so in a line."""
    latest = campaign.ledger.latest()
    pending = {item.item_id for item in campaign.asked() if item.state == "pending"}
    if latest is None or latest.state != "closed":
        return []
    return [line for row in campaign.ledger.iterations() for line in _send_again(campaign, row.number, pending)]


def _send_again(campaign: Campaign, number: int, pending: set[str]) -> list[str]:
    waiting = [task for task in campaign.ledger.batch(number) if task["item_id"] in pending]
    tool, given_up = campaign.tool, not campaign.ledger.instance()
    if not waiting or not (given_up or waiting[0]["instance"] == tool.instance):
        return []
    here = [Receipt(task["key"], task["task_id"]) for task in waiting if task["instance"] == tool.instance]
    lost = {*tool.lost(here), *(task["key"] for task in waiting if task["instance"] != tool.instance)}
    if not lost:
        return []
    receipts = tool.push([task for task in _tasks(campaign, number) if task.key in lost])
    checkpoint("export:again:after")
    campaign.ledger.sent_again(tool.instance, receipts)
    return [
        f"{len(lost)} tasks of iteration {number} were not in the labeling tool and were sent again: {tool.address}"
    ]


def _tasks(campaign: Campaign, number: int) -> list[Task]:
    batch, classes = campaign.ledger.batch(number), read_iteration(campaign.store).classes
    images = serving.serve(campaign, [row["item_id"] for row in batch])
    return [
        Task(
            key=task_key(campaign.id, number, row["item_id"]),
            item_id=row["item_id"],
            iteration=number,
            rank=row["rank"],
            arm=row["arm"],
            image=images[row["item_id"]],
            utility=row["utility"],
            predicted=classes[row["predicted"]] if _suggested(row) else None,
            confidence=row["confidence"] if _suggested(row) else None,
        )
        for row in batch
    ]


def _suggested(row: dict[str, Any]) -> bool:
    """Whether annotators see what the model says: not where people are the measure of it (control and holdout)."""
    return row["predicted"] >= 0 and row["arm"] in ("seed", "active")


def main() -> None:
    """Close the open iteration of the current folder."""
    with open_campaign(Path.cwd(), "export") as campaign:
        closed = export(campaign)
        if closed is None:
            print("nothing to export: no iteration is open.")
            return
        print(
            f"iteration {closed.number} is closed: {closed.asked} tasks sent, tag {repository.tag_name(closed.number)}."
            + (f" Annotators: {closed.where}." if closed.where else "")
        )
        if closed.stop:
            print(f"the campaign is finished: {closed.stop}.")
        for problem in tracking.flush(campaign):
            print(f"warning: {problem}")


if __name__ == "__main__":
    raise SystemExit(guarded(main))
