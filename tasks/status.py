"""Where a campaign stands, as data: what `gleaner status` shows on one screen and prints with --json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks import artefacts, corrections, remotes, tracking
from tasks.campaign import IDENTITY, LEDGER, Campaign, read_campaign
from tasks.errors import BadInput
from tasks.findings import failed
from tasks.import_labels import due
from tasks.ledger import Asked, require_no_loss
from tasks.params import load
from tasks.pool import read_info
from tasks.refusals import FILE, line, refusals
from tasks.store import Store
from tasks.tables import ARMS, METRICS


def status(root: Path) -> dict[str, Any]:
    """The state of the campaign in `root`; a copy without a ledger is described from its tag."""
    store = Store(root)
    require_no_loss(store.path(LEDGER))
    if not store.exists(LEDGER) and store.exists(artefacts.ARTEFACTS):
        listed = store.read_json(artefacts.ARTEFACTS)
        why = "a copy, read-only; `gleaner fork` makes it a campaign of its own"
        return {"campaign": listed["campaign"], "iteration": listed["iteration"], "state": "copy", "next": why}
    if not store.exists(LEDGER):
        return _new(store)
    with read_campaign(root) as campaign:
        return _status(campaign)


def _images(store: Store) -> int:
    info = read_info(store)
    return info.items if info else 0


def _new(store: Store) -> dict[str, Any]:
    load(store.path("params.yaml"))
    if not store.exists(IDENTITY):
        raise BadInput(f"{store.root} is Gleaner's own code, not a campaign. `gleaner init DIR` makes a workspace.")
    images = _images(store)
    todo = "`gleaner tick` (the campaign begins)" if images else "the pool is empty: `gleaner ingest`"
    return {
        "campaign": store.read_json(IDENTITY)["id"],
        "images": images,
        "iteration": None,
        "state": "new",
        "next": todo,
    }


def _status(campaign: Campaign) -> dict[str, Any]:
    latest = campaign.ledger.latest()
    asked = campaign.asked()
    outcome = (latest.outcome if latest else None) or {}
    return {
        "campaign": campaign.id,
        "workspace": str(campaign.root.resolve()),
        "images": _images(campaign.store),
        "iteration": latest.number if latest else None,
        "state": latest.state if latest else "new",
        "asked": {arm: sum(a.arm == arm for a in asked) for arm in ARMS} | {"total": len(asked)},
        "labeled": {arm: sum(a.arm == arm and a.state == "labeled" for a in asked) for arm in ARMS}
        | {"total": sum(a.state == "labeled" for a in asked)},
        "corrections": corrections.counts(campaign),
        "skipped": sum(a.state == "skipped" for a in asked),
        "pending": sum(a.state == "pending" for a in asked),
        "disputed": _disputed(campaign, asked),
        **_time(campaign),
        "budget": campaign.params.stop.labels or None,
        "accuracy": outcome.get("accuracy"),
        "low": outcome.get("low"),
        "high": outcome.get("high"),
        "champion": outcome.get("champion"),
        "refused_answers": [line(refusal) for refusal in refusals(campaign)],
        "refused_file": FILE if campaign.store.exists(FILE) else None,
        "annotators_work_at": campaign.tool.address if any(a.state == "pending" for a in asked) else None,
        "waiting_for_tracker": len(tracking.waiting(campaign.store)),
        "remote": remotes.remote(campaign.root),
        "findings": [{k: f[k] for k in ("check", "severity", "what", "todo")} for f in failed(campaign.store)],
        "next": _next(campaign),
    }


def _disputed(campaign: Campaign, asked: list[Asked]) -> list[str]:
    """Items that several people answered differently: who said what. One of them marked as ground truth settles it."""
    items = {a.item_id: a for a in asked if a.state == "disputed"}
    said: dict[str, list[str]] = {item: [] for item in items}
    for cast in campaign.ledger.cast() if items else ():
        if cast.item_id in items:
            said[cast.item_id].append(f"{cast.vote.annotator or 'unnamed'}: {cast.vote.label or 'skip'}")
    return [
        f"iteration {a.iteration}, rank {a.rank} ({item[:12]}): {', '.join(said[item])}. Mark one answer as ground truth"
        for item, a in items.items()
    ]


def _time(campaign: Campaign) -> dict[str, float | None]:
    """Minutes that people spent, as of the newest iteration."""
    measured = campaign.store.read_json(METRICS) if campaign.store.exists(METRICS) else {}
    return {name: measured.get(name) for name in ("minutes_spent", "minutes_per_label")}


def _next(campaign: Campaign) -> str:
    if not _images(campaign.store):
        return "the pool is empty: `gleaner ingest`"
    try:
        verdict = due(campaign)
    except BadInput as error:
        return str(error)
    if verdict.now:
        return f"`gleaner tick` ({verdict.why})"
    return f"`gleaner tick` looks for answers ({verdict.why})" if verdict.waiting else verdict.why
