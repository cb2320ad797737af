"""Who is told of alerts, and who was not: what `gleaner status` shows, and what `gleaner alert` does."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from monitoring import news
from monitoring.alarm import Clock, flush
from monitoring.channels import FAULTS, alert_settings, everyone, identity, reason_of
from monitoring.outbox import OUTBOX, Unusable, open_outbox


def reached(root: Path, now: Clock = time.time) -> dict[str, Any]:
    """For `gleaner status`: who is told from here, and what somebody does not have yet, each with the reason.

    `alerts_go_to` holds channels and targets, `alerts_go_nowhere` the channels without one and why, and
    `undelivered_alerts` mappings with title, kind, raised_at, target ("" for nobody), attempts and reason.
    """
    told = everyone(alert_settings(root))
    nowhere = {one.channel: one.why for one in told if not one.target}
    missed, sent = [], {}
    if (root / OUTBOX).exists():
        try:
            with open_outbox(root, write=False) as outbox:
                missed, sent = outbox.undelivered(now()), outbox.last_sent()
        except Unusable as error:
            nowhere["outbox"] = str(error)
    silent = "; ".join(f"{channel}: {why}" for channel, why in nowhere.items()) or "not tried yet"
    return {
        "alerts_go_to": [one.name for one in told if one.target],
        "alerts_go_nowhere": nowhere,
        "alerts_last_sent": {target: _time(at) for target, at in sent.items()},
        "undelivered_alerts": [
            {**asdict(alert), "raised_at": _time(alert.raised_at), "reason": alert.reason or silent} for alert in missed
        ],
    }


def send_test(root: Path, now: Clock = time.time) -> list[tuple[str, str]]:
    """Send a test alert to every target; returns channel and target with why it did not arrive, "" when it did."""
    alert, results = news.of_test(identity(root), now()), []
    for one in everyone(alert_settings(root)):
        reason = one.why
        try:
            if one.target:
                one.send([alert])
        except FAULTS as error:
            reason = reason_of(error)
        results.append((one.name, reason))
    return results


def deliver_now(root: Path, now: Clock = time.time) -> list[tuple[str, str]]:
    """Try all that waits without its pause; returns like `send_test`, [] when nothing waited."""
    if not reached(root, now)["undelivered_alerts"]:
        return []
    flush(root, now, hurry=True)
    missing = {alert["target"]: alert["reason"] for alert in reached(root, now)["undelivered_alerts"]}
    return [(one.name, missing.get(one.name, one.why)) for one in everyone(alert_settings(root))]


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
