"""Close an iteration: `python -m tasks.export` sends the batch to the labeling tool and sets the tag.

    open ──gate, one transaction──> selected ──push, adopt by key──> exported ──snapshot, cache, commit, tag──> closed

Each step can be repeated: after a crash the next start goes on where the ledger stands. Once the batch is in the
outbox it is never computed again; its stored hash is asserted instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import artefacts, repository, serving, tracking, versions
from tasks.campaign import Campaign, open_campaign
from tasks.checkpoint import checkpoint
from tasks.errors import Blocked, GleanerError
from tasks.inputs import read_iteration
from tasks.labeling import Task
from tasks.ledger import Frozen, IterationRow, task_key
from tasks.params import parse
from tasks.pointers import DATA, cached_files
from tasks.progress import reason_to_stop
from tasks.snapshot import write_snapshot
from tasks.stage import guarded
from tasks.store import sha256
from tasks.tables import SELECTION

FINDINGS = "data/findings.json"
METRICS = "data/evaluation/metrics.json"


@dataclass(frozen=True)
class Closed:
    """An iteration that was closed just now."""

    number: int
    asked: int  # tasks it sent
    stop: str | None  # why the campaign ends with it, None when it goes on


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
    _require_same_selection(campaign, row)
    if row.state == "selected":
        _push(campaign, row.number)
    return _close(campaign, row.number)


def _select(campaign: Campaign, row: IterationRow) -> None:
    """Gate, then put batch and outbox into the ledger in one transaction."""
    frozen = _freeze(campaign, row)
    metrics = campaign.store.read_json(METRICS)
    stop = reason_to_stop(campaign, [_measured(metrics)], len(campaign.ledger.asked()))
    selection = [] if stop else campaign.store.read_table(SELECTION).to_pylist()
    if selection:
        gate(campaign.store.read_json(FINDINGS), campaign.ledger.accepted(row.number))
        serving.serve(campaign, [item["item_id"] for item in selection])
    campaign.ledger.put(f"stop:{row.number}", stop or "")
    checkpoint("export:select:before")
    campaign.ledger.select(row.number, campaign.id, selection, frozen)
    checkpoint("export:select:after")


def _freeze(campaign: Campaign, row: IterationRow) -> Frozen:
    """What the batch was computed from; refuses when the outputs are not of this iteration, params and code."""
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


def gate(findings: dict[str, Any], accepted: dict[str, str]) -> None:
    """Raise Blocked when a blocking check failed and nobody accepted it."""
    refused = [
        f"- {finding['check']}: {finding['what']} To do: {finding['todo']}"
        for finding in findings["findings"]
        if finding["severity"] == "block" and finding["outcome"] == "fail" and finding["check"] not in accepted
    ]
    if refused:
        raise Blocked(
            f"iteration {findings['iteration']}: the batch is not exported, no money was spent.\n"
            + "\n".join(refused)
            + "\n"
            "Fix the cause and run the tick again, or overrule: gleaner tick --accept CHECK --because REASON"
        )


def _require_same_code(campaign: Campaign, row: IterationRow) -> None:
    changed = repository.code_changed(campaign.root, row.base_commit)
    if changed:
        raise GleanerError(
            f"iteration {row.number} was selected with the code of commit {row.base_commit[:10]}, but {', '.join(changed[:5])} changed "
            f"since. Finish it with its own code first: `git checkout --no-overlay {row.base_commit[:10]} -- "
            f"{' '.join(repository.CODE)} && git commit -m 'finish iteration {row.number}'`, then tick. "
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


def _tasks(campaign: Campaign, number: int) -> list[Task]:
    batch = campaign.ledger.batch(number)
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
            predicted=campaign.classes[row["predicted"]] if row["predicted"] >= 0 else None,
            confidence=row["confidence"] if row["predicted"] >= 0 else None,
        )
        for row in batch
    ]


def _close(campaign: Campaign, number: int) -> Closed:
    row = campaign.ledger.latest()
    assert row is not None
    outcome = _outcome(campaign, number)
    campaign.ledger.record_outcome(number, outcome)
    checkpoint("close:outcome:after")
    _record_bytes(campaign, row)
    _tag(campaign, row)
    tracking.queue(campaign, number)
    checkpoint("close:queue:after")
    campaign.ledger.close(number, outcome)
    checkpoint("close:ledger:after")
    return Closed(number, outcome["asked"], outcome["stop"])


def _outcome(campaign: Campaign, number: int) -> dict[str, Any]:
    metrics = campaign.store.read_json(METRICS)
    return {
        **{arm: metrics[f"labels_{arm}"] for arm in ("seed", "active", "control", "holdout")},
        "asked": len(campaign.ledger.batch(number)),
        "accuracy": metrics["accuracy"],
        "low": metrics["accuracy_low"],
        "high": metrics["accuracy_high"],
        "model_sha256": metrics["model_sha256"],
        "champion": metrics["champion"],
        "stop": campaign.ledger.get(f"stop:{number}") or None,
    }


def _record_bytes(campaign: Campaign, row: IterationRow) -> None:
    """Snapshot, list of artefacts, cache; every new cache object is read back before anything is committed."""
    store = campaign.store
    write_snapshot(store, campaign.ledger)
    checkpoint("close:snapshot:after")
    listed = artefacts.build(store, row.number, campaign.id, row.params or "", _threads(campaign, row))
    store.write_json(artefacts.ARTEFACTS, listed)
    checkpoint("close:artefacts:after")
    versions.add_data(campaign.root, DATA)
    checkpoint("close:add:after")
    problems = artefacts.check_cache(listed["files"], cached_files(campaign.root), _committed(campaign))
    if problems:
        raise GleanerError(
            f"iteration {row.number} is not tagged: DVC's cache does not hold what it should.\n"
            + "\n".join(problems[:10])
        )
    versions.push(campaign.root)
    checkpoint("close:push:after")


def _threads(campaign: Campaign, row: IterationRow) -> int:
    """Of the params that the batch was computed with; params.yaml may have been edited since."""
    params = parse(row.params) if row.params else campaign.params
    return params.compute.threads


def _committed(campaign: Campaign) -> dict[str, artefacts.Entry]:
    """Files whose cached bytes were read back before a commit (the list in the working tree may be of a failed try)."""
    where = f"HEAD:{artefacts.ARTEFACTS}"
    text = repository.show_all(campaign.root, [where]).get(where)
    files: dict[str, artefacts.Entry] = artefacts.read_artefacts(text, where)["files"] if text else {}
    return files


def _tag(campaign: Campaign, row: IterationRow) -> None:
    name = repository.tag_name(row.number)
    if name in repository.tags(campaign.root):
        return
    repository.stage_own(campaign.root, row.params)
    checkpoint("close:stage:after")
    repository.commit(campaign.root, f"iteration {row.number} of {campaign.id}")
    checkpoint("close:commit:after")
    repository.tag(campaign.root, row.number, f"iteration {row.number} of {campaign.id}")
    checkpoint("close:tag:after")


def main() -> None:
    """Close the open iteration of the current folder."""
    with open_campaign(Path.cwd(), "export") as campaign:
        closed = export(campaign)
        if closed is None:
            print("nothing to export: no iteration is open.")
            return
        print(
            f"iteration {closed.number} is closed: {closed.asked} tasks sent, tag {repository.tag_name(closed.number)}."
        )
        if closed.stop:
            print(f"the campaign is finished: {closed.stop}.")
        for problem in tracking.flush(campaign):
            print(f"warning: {problem}")


if __name__ == "__main__":
    raise SystemExit(guarded(main))
