"""Prefect's automations of a deployment: a dead run is called Crashed, a late one Cancelled, and silence is an event.

They tell nobody outside Prefect; that is the alerts' and the watchdog's work (flows/watchdog.py).
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from prefect.events.schemas.automations import AutomationCore

RUN = "prefect.flow-run"
ENDED = {f"{RUN}.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
HEARTBEAT_SECONDS = 30  # Prefect's shortest
SILENT_SECONDS = 90  # three heartbeats


def automations(deployment: UUID, name: str, gap: float, intervals: int) -> list[AutomationCore]:
    """All of a deployment's automations; `gap` is the schedule's longest pause in seconds."""
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState, DoNothing

    crashed = ChangeFlowRunState(
        name=None,
        state=StateType.CRASHED,
        force=False,
        message=f"no heartbeat for {SILENT_SECONDS} s: its process is gone. The next run recovers.",
    )
    late = ChangeFlowRunState(
        name=None,
        state=StateType.CANCELLED,
        force=False,
        message="no worker took it before the next one was due, which does its work. Is `gleaner worker` running?",
    )
    alive, taken = {f"{RUN}.heartbeat"}, {f"{RUN}.Pending", f"{RUN}.Running"} | ENDED
    return [
        _silence(deployment, f"{name}: crashed run", alive, alive | ENDED, SILENT_SECONDS, crashed, each=True),
        _silence(deployment, f"{name}: late run", {f"{RUN}.Late"}, taken, max(gap, 60.0), late, each=True),
        _silence(
            deployment,
            f"{name}: no run completed",
            set(),
            {f"{RUN}.Completed"},
            max(intervals * gap, 60.0),
            DoNothing(),
        ),
    ]


def _silence(
    deployment: UUID, name: str, after: set[str], expect: set[str], within: float, action: Any, *, each: bool = False
) -> AutomationCore:
    """An automation for what did not come: none of `expect` within so many seconds, for each run or for all."""
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    owner = f"prefect.deployment.{deployment}"
    return AutomationCore(
        name=name,
        description="Made by `gleaner deploy`; made again by the next one, taken away by `gleaner deploy --remove`.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            after=after,
            expect=expect,
            match={"prefect.resource.id": f"{RUN}.*"},
            match_related={"prefect.resource.role": "deployment", "prefect.resource.id": owner},
            for_each={"prefect.resource.id"} if each else set(),
            threshold=1,
            within=timedelta(seconds=within),
        ),
        actions=[action],
        owner_resource=owner,
    )
