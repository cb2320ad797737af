"""Close an iteration whose tasks are out: snapshot, list of artefacts, cache, commit, tag, outbox of the tracker.

close(campaign, 7)   ->   Closed(number=7, asked=20, stop=None)

Each step can be repeated; the tag is the commit point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tasks import artefacts, remotes, repository, tracking, versions
from tasks.campaign import Campaign
from tasks.checkpoint import checkpoint
from tasks.errors import GleanerError
from tasks.ledger import IterationRow
from tasks.params import parse
from tasks.pointers import DATA, cached_files
from tasks.snapshot import write_snapshot
from tasks.tables import ARMS, CORRECTION, METRICS


@dataclass(frozen=True)
class Closed:
    """An iteration that was closed just now."""

    number: int
    asked: int  # tasks it sent
    stop: str | None  # why the campaign ends with it, None when it goes on
    where: str = ""  # where annotators find the tasks


def close(campaign: Campaign, number: int) -> Closed:
    """Close the iteration. Raises GleanerError when DVC's cache does not hold what it should; nothing is tagged then."""
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
    return Closed(number, outcome["asked"], outcome["stop"], campaign.tool.address if outcome["asked"] else "")


def _outcome(campaign: Campaign, number: int) -> dict[str, Any]:
    metrics = campaign.store.read_json(METRICS)
    return {
        **{arm: metrics[f"labels_{arm}"] for arm in (*ARMS, CORRECTION)},
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
    remotes.push(campaign.root)
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
