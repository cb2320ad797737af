"""Alerts into the process's log: the channel that needs no account and never fails.

ERROR gleaner.alerts deer-3f2a: repeated_selections blocks iteration 3: Of 20 items in the batch, 3 must not be asked ...
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from monitoring.alerts import Alert, one_line

LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def targets() -> tuple[str, ...]:
    """Whoever reads the log."""
    return ("of this process",)


def send(alerts: Sequence[Alert], target: str, *, logger: str = "gleaner.alerts") -> None:
    """Write one line an alert."""
    for alert in alerts:
        logging.getLogger(logger).log(LEVELS[alert.severity], "%s", line(alert))


def line(alert: Alert) -> str:
    """An alert on one line: class names and ids are other people's text, so line breaks in it are folded."""
    return one_line(f"{alert.campaign}: {alert.title}: {alert.text}", 4000)
