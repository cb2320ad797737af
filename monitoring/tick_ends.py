"""How a tick ended, told to people: once a day for each failure, and once when ticks work again.

tick_failed(root, error, "train")   raises an alert, unless it is nobody's business, and delivers what waits
tick_worked(root)                   takes that back, and delivers what waits
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from monitoring import news
from monitoring.alarm import Clock, flush, raise_alert, say
from monitoring.channels import identity
from monitoring.outbox import OUTBOX, Outbox, Unusable, open_outbox
from tasks.campaign import runs_here
from tasks.errors import BadInput, Blocked, Busy

UNATTENDED = "GLEANER_UNATTENDED"
Value = TypeVar("Value")


def tick_failed(root: Path, error: BaseException, step: str, now: Clock = time.time) -> None:
    """A tick ended with `error` at a step: tell people, unless it is none of their business, and deliver.

    Not told: another process at work (Busy), a batch that a check refused (its finding was told), and what the person
    at the terminal mistyped (BadInput; set GLEANER_UNATTENDED=1 where a terminal has nobody before it).
    """
    if not runs_here(root):
        return  # no campaign: nobody but the one who typed the command is concerned
    attended = sys.stdin is not None and sys.stdin.isatty() and not os.environ.get(UNATTENDED)
    mistyped = attended and isinstance(error, BadInput)
    if not isinstance(error, Busy | Blocked) and not mistyped:
        campaign, day = identity(root), _day(now())
        raise_alert(root, news.of_failure(campaign, error, step, day, _recoveries(root, campaign, day)), now)
    for line in flush(root, now):
        say(line)


def tick_worked(root: Path, now: Clock = time.time) -> list[str]:
    """A tick ended well: tell people who were told that ticks fail, and deliver. Returns what `flush` does."""
    if (root / OUTBOX).exists() and _ask(root, lambda outbox: outbox.newest("tick_failed")) == "error":
        campaign, day = identity(root), _day(now())
        alert = news.of_recovery(campaign, day, _recoveries(root, campaign, day))
        if alert is not None:
            raise_alert(root, alert, now)
    return flush(root, now)


def _recoveries(root: Path, campaign: str, day: str) -> int:
    return _ask(root, lambda outbox: outbox.count(news.recovered(campaign, day))) or 0


def _ask(root: Path, question: Callable[[Outbox], Value]) -> Value | None:
    try:
        with open_outbox(root) as outbox:
            return question(outbox)
    except Unusable:
        return None


def _day(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).date().isoformat()
