"""What people should hear of as the ledger stands: an end, a stop, a batch that waits, labels that are all there.

    notice(campaign)    raises each of them
    standing(campaign)  ->  [Alert("warning", "batch_waiting", "iteration 3 has waited for answers for 49 hours", …)]

Asked at every look, told once: a tick that was killed before it told somebody is made up for by the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from monitoring import news
from monitoring.alarm import raise_alert
from monitoring.alerts import Alert
from tasks.campaign import Campaign, utc_now
from tasks.ledger import IterationRow


def notice(campaign: Campaign) -> None:
    """Raise what the ledger gives reason for."""
    for alert in standing(campaign):
        raise_alert(campaign.root, alert)


def standing(campaign: Campaign, now: Callable[[], str] = utc_now) -> list[Alert]:
    """The alerts that the ledger gives reason for now."""
    latest = campaign.ledger.latest()
    alerts = [_stopped(campaign, latest)]
    if latest is not None and latest.state == "closed":
        alerts += [_finished(campaign, latest), *_batch(campaign, latest, now())]
    return [alert for alert in alerts if alert is not None]


def _stopped(campaign: Campaign, latest: IterationRow | None) -> Alert | None:
    reason = campaign.ledger.stopped_by_hand()
    if reason is None:
        return None
    columns, rows = campaign.ledger.rows("decision")
    decision = max(row[columns.index("seq")] for row in rows if row[columns.index("kind")] == "stop")
    return news.of_stop(campaign.id, latest.number if latest else None, reason, decision)


def _finished(campaign: Campaign, latest: IterationRow) -> Alert | None:
    reason = (latest.outcome or {}).get("stop")
    return news.of_end(campaign.id, latest.number, reason) if reason else None


def _batch(campaign: Campaign, latest: IterationRow, now: str) -> list[Alert | None]:
    states = [item.state for item in campaign.ledger.asked() if item.iteration == latest.number]
    if not states:
        return []
    name, number, total, where = campaign.id, latest.number, len(states), campaign.tool.address
    answered = sum(state != "pending" for state in states)
    if answered == total:
        return [news.of_batch(name, number, total, where), news.of_labels(name, number, total)]
    hours = (datetime.fromisoformat(now) - datetime.fromisoformat(latest.closed_at or now)).total_seconds() / 3600
    limit = campaign.params.alerts.waiting_hours
    return [
        news.of_batch(name, number, total, where),
        news.of_waiting(name, number, answered, total, hours, limit, where),
    ]
