"""Raise an alert, and deliver what was raised: the one way from something that happened to people.

    raise_alert(root, Alert("error", "watchdog", "no tick for 3 hours", "…", campaign, None, "watchdog:2026-07-01"))
    flush(root)   ->   ["2 alerts wait for apprise json://alerts.example.org: it answered 500"]

Neither raises an error: what goes wrong here must not hide what went wrong there.
"""

from __future__ import annotations

from pathlib import Path

from monitoring.alerts import Alert


def raise_alert(root: Path, alert: Alert) -> bool:
    """Put an alert into the outbox of the workspace `root`. False: it was raised before, or its kind is switched off.

    Needs no lock and no ledger. When the outbox cannot be written it is delivered at once, and that is said on stderr.
    """
    raise NotImplementedError


def flush(root: Path) -> list[str]:
    """Deliver all that waits; returns a line for each target that could not be reached. Cheap when nothing waits."""
    raise NotImplementedError
