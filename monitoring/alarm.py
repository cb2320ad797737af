"""Raise an alert, and deliver what was raised: the one way from something that happened to people.

    raise_alert(root, Alert("error", "watchdog", "no tick for 3 hours", "…", campaign, None, "watchdog:2026-07-01"))
    flush(root)   ->   ["2 alerts wait for apprise json://alerts.example.org: it answered 500 (tried 3 times)"]

Neither raises an error, needs the campaign's lock or reads the ledger: what goes wrong here must not hide what went
wrong there. An alert is delivered, or it is told that it was not: in the tick's warnings and in `gleaner status`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from monitoring.alerts import Alert, harmless, one_line
from monitoring.channels import FAULTS, Told, alert_settings, everyone, reason_of
from monitoring.outbox import OUTBOX, Unusable, only_one, open_outbox
from tasks.alert_urls import VARIABLE, entries, shown
from tasks.checkpoint import checkpoint
from tasks.disclosure import secrets

BUDGET_SECONDS = 60.0  # of one flush; what is not delivered by then waits for the next one
AT_ONCE = ".gleaner/alerts.at-once"  # its time is when an alert went out without the outbox
AT_ONCE_SECONDS = 3600.0  # between two of these: without an outbox nobody remembers what was told
Clock = Callable[[], float]


def raise_alert(root: Path, alert: Alert, now: Clock = time.time) -> bool:
    """Put an alert into the outbox of the workspace `root`. False: it was raised before, or its kind is switched off.

    Needs no lock and no ledger. When the outbox cannot be written it is delivered at once, and that is said on stderr.
    """
    if alert.kind not in (*alert_settings(root).events, "test"):
        return False
    clean = replace(alert, title=one_line(_without_secrets(alert.title)), text=harmless(_without_secrets(alert.text)))
    try:
        checkpoint("alert:raise:before")
        with open_outbox(root) as outbox:
            raised = outbox.add(clean, now())
        checkpoint("alert:raise:after")
    except Unusable as error:
        _at_once(root, clean, error, now)
        return True
    return raised


def _without_secrets(text: str) -> str:
    for url in entries(os.environ.get(VARIABLE, "")):
        text = text.replace(url, shown(url) or f"[{VARIABLE}]")
    for name, value in sorted(secrets(os.environ).items(), key=lambda found: -len(found[1])):
        text = text.replace(value, f"[{name}]")
    return text


def flush(root: Path, now: Clock = time.time, *, hurry: bool = False) -> list[str]:
    """Deliver all that is due; returns a line for each target that does not have all of it. Cheap when nothing waits.

    With `hurry` nothing waits for its next try.
    """
    if not (root / OUTBOX).exists():
        return []
    try:
        with open_outbox(root) as outbox:
            if hurry:
                outbox.hurry()
            if not outbox.is_open(now()):
                return []
        told = everyone(alert_settings(root))
        _deliver_all(root, told, now)
        return _waiting(root, told, now)
    except Unusable as error:
        return [f"alerts wait: {error}"]


def _deliver_all(root: Path, told: Sequence[Told], now: Clock) -> None:
    """Until nothing is due. Whoever finds another process at it leaves its alerts to that one, which looks once more."""
    end = time.monotonic() + BUDGET_SECONDS
    while time.monotonic() < end and any(_due(root, one, now) for one in told):
        with only_one(root) as mine:
            if not mine:
                return
            for one in told:
                _deliver(root, one, now)
    if told and all(one.target for one in told):
        with open_outbox(root) as outbox:
            outbox.settle([one.name for one in told], now())


def _due(root: Path, one: Told, now: Clock) -> list[Alert]:
    if not one.target:
        return []
    with open_outbox(root) as outbox:
        return outbox.due(one.name, now())


def _deliver(root: Path, one: Told, now: Clock) -> None:
    """One message to one target, noted down either way."""
    alerts = _due(root, one, now)
    if not alerts:
        return
    checkpoint("alert:send:before")
    reason = ""
    try:
        one.send(alerts)
    except FAULTS as error:
        reason = reason_of(error)
    checkpoint("alert:send:after")
    with open_outbox(root) as outbox:
        if reason:
            outbox.failed(alerts, one.name, reason, now())
        else:
            outbox.sent(alerts, one.name, now())
    checkpoint("alert:noted:after")


def _waiting(root: Path, told: Sequence[Told], now: Clock) -> list[str]:
    with open_outbox(root) as outbox:
        missed = outbox.undelivered(now())
    lines = []
    for one in told:
        mine = [alert for alert in missed if alert.target == one.name and alert.reason]
        if mine:
            what = "1 alert waits" if len(mine) == 1 else f"{len(mine)} alerts wait"
            tried = max(alert.attempts for alert in mine)
            lines.append(f"{what} for {one.name}: {mine[0].reason} (tried {tried} times)")
    return lines


def _at_once(root: Path, alert: Alert, error: Unusable, now: Clock) -> None:
    say(f"the outbox of alerts cannot be written ({error}): {alert.title}")
    if _lately(root / AT_ONCE, now()):
        say("that alert is not sent: without the outbox one goes out an hour")
        return
    for one in everyone(alert_settings(root)):
        try:
            if one.target:
                one.send([alert])
        except FAULTS as fault:
            say(f"{one.name}: {reason_of(fault)}")


def _lately(mark: Path, now: float) -> bool:
    """Whether the mark was set within the hour; sets it. A full disk still takes a file's time."""
    try:
        if mark.exists() and 0 <= now - mark.stat().st_mtime < AT_ONCE_SECONDS:
            return True
        mark.touch()
        os.utime(mark, (now, now))
    except OSError:
        return False
    return False


def say(line: str) -> None:
    """Where nobody else says it."""
    print(f"warning: {line}", file=sys.stderr)
