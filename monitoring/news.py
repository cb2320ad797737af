"""What happened, as alerts: sentences for people who are not at the machine. Pure.

    of_findings("deer-3f2a", 3, findings)  ->  (Alert("error", "finding_blocks", "repeated_selections blocks iteration 3", …),)

The key says what is the same thing happening again: it is told once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from datetime import UTC, datetime

from monitoring.alerts import Alert
from monitoring.evidence import Finding, alarming
from tasks.errors import GleanerError

AGAIN_HOURS = 24.0  # a batch that still waits
RECOVERIES = 5  # ticks that fail and work again this often in a day are told of no more that day
CHANGING = re.compile(r"[0-9]+|0x[0-9a-f]+")  # room left, seconds, process ids: the same failure in other numbers


def of_findings(campaign: str, iteration: int, findings: Iterable[Finding]) -> tuple[Alert, ...]:
    """One alert a failed check and iteration; none for a check that is switched off."""
    return tuple(_of_finding(campaign, iteration, finding) for finding in alarming(findings))


def _of_finding(campaign: str, iteration: int, finding: Finding) -> Alert:
    blocks = finding.severity == "block"
    title = f"{finding.check} {'blocks' if blocks else 'warns of'} iteration {iteration}"
    text = f"{finding.what}\nWhy it matters: {finding.why}\nTo do: {finding.todo}"
    if blocks:
        text += "\nNothing was sent. To overrule: gleaner tick --accept CHECK --because REASON"
    kind = "finding_blocks" if blocks else "finding_warns"
    key = f"{kind}:{campaign}:{iteration}:{finding.check}"
    return Alert("error" if blocks else "warning", kind, title, text, campaign, iteration, key)


def of_failure(campaign: str, error: BaseException, step: str, day: str, recoveries: int) -> Alert:
    """A tick that failed: told once a day for each error, and again when ticks had worked in between.

    Only a GleanerError's message is told: that of any other may hold an address with its password.
    """
    name = type(error).__name__
    text = str(error) if isinstance(error, GleanerError) else f"{name}{_place(error)}. `gleaner tick` shows all of it."
    digest = hashlib.sha256(CHANGING.sub("#", text).encode("utf-8", "replace")).hexdigest()[:16]
    if recoveries >= RECOVERIES:
        text += "\nTicks fail and work again; more of that is told tomorrow."
    key = f"tick_failed:{campaign}:{day}:{min(recoveries, RECOVERIES)}:{name}:{digest}"
    return Alert("error", "tick_failed", f"the tick failed at {step}: {name}", text, campaign, None, key)


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    return f" in {trace.tb_frame.f_globals.get('__name__', '?')}, line {trace.tb_lineno}"


def of_recovery(campaign: str, day: str, recoveries: int) -> Alert | None:
    """Ticks work again; None when that was told often enough today."""
    if recoveries >= RECOVERIES:
        return None
    key = f"{recovered(campaign, day)}{recoveries}"
    return Alert("info", "tick_failed", "ticks work again", "The newest tick ended well.", campaign, None, key)


def recovered(campaign: str, day: str) -> str:
    """How the keys of a day's recoveries begin."""
    return f"tick_recovered:{campaign}:{day}:"


def of_end(campaign: str, iteration: int, reason: str) -> Alert:
    """The campaign is finished."""
    key = f"campaign_finished:{campaign}:{iteration}"
    return Alert("info", "campaign_finished", "the campaign is finished", reason, campaign, iteration, key)


def of_stop(campaign: str, iteration: int | None, reason: str, decision: int) -> Alert:
    """Somebody stopped it; `decision` is its number in the ledger."""
    text = f"Stopped by hand: {reason}\n`gleaner resume` goes on."
    key = f"campaign_stopped:{campaign}:{decision}"
    return Alert("info", "campaign_stopped", "the campaign was stopped", text, campaign, iteration, key)


def of_waiting(
    campaign: str, iteration: int, answered: int, total: int, hours: float, limit: float, where: str
) -> Alert | None:
    """A batch that has waited for `limit` hours (0: never told) or a day more, and so on; None before."""
    if not limit or hours < limit or answered >= total:
        return None
    times = int((hours - limit) // AGAIN_HOURS)
    title = f"iteration {iteration} has waited for answers for {hours:.0f} hours"
    text = f"{total - answered} of {total} tasks are not answered yet. Annotators: {where}"
    key = f"batch_waiting:{campaign}:{iteration}:{times}"
    return Alert("warning", "batch_waiting", title, text, campaign, iteration, key)


def of_labels(campaign: str, iteration: int, total: int) -> Alert:
    """All of a batch is answered."""
    title, key = f"all {total} tasks of iteration {iteration} are answered", f"labels_finished:{campaign}:{iteration}"
    return Alert("info", "labels_finished", title, "The next tick goes on with them.", campaign, iteration, key)


def of_batch(campaign: str, iteration: int, asked: int, where: str) -> Alert:
    """A batch was sent."""
    title, key = f"iteration {iteration}: {asked} tasks to label", f"batch_sent:{campaign}:{iteration}"
    return Alert("info", "batch_sent", title, f"Annotators: {where}", campaign, iteration, key)


def of_test(campaign: str, now: float) -> Alert:
    """What `gleaner alert --test` sends."""
    at = datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds")
    text = f"Sent by `gleaner alert --test` at {at}. Alerts arrive here."
    return Alert("info", "test", "a test alert", text, campaign, None, f"test:{now}")
