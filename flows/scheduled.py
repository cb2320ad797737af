"""One scheduled tick as a Prefect flow run: what `gleaner deploy` registers and a process worker executes.

It looks first, and most runs end there. All of a tick's steps are this run's tasks; recovery, polling, alerts and the
rest are `flows/run.py`'s, the same as by hand.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from flows import heartbeat
from flows.run import Idle, run_ticks
from monitoring.tick_ends import UNATTENDED
from tasks.errors import Busy, GleanerError

CLOCKS = 60.0  # seconds that this machine's clock may differ from that of Prefect's server


def _run_name() -> str:
    return f"{Path.cwd().name}: tick of {flow_run.scheduled_start_time:%Y-%m-%d %H:%M}"


@flow(name="scheduled tick", flow_run_name=_run_name)
def scheduled_tick() -> State[Any]:
    """Tick the campaign in the current folder once. A failure is the run's; the next run recovers."""
    os.environ[UNATTENDED] = "1"
    root = Path.cwd()
    beat = heartbeat.read(root)
    if superseded(flow_run.scheduled_start_time, beat, heartbeat.now()):
        return Completed(message="a tick has begun since this one was due: nothing is left for it to do")
    try:
        done = run_ticks(root, 1)
    except Busy as error:
        return Completed(message=f"another is at work: {error}")
    except GleanerError as error:  # the message is what people need; a bug keeps its traceback
        return Failed(message=str(error))
    return Completed(message="; ".join(said(tick) for tick in done))


def superseded(due: datetime, beat: heartbeat.Beat | None, at: str) -> bool:
    """Whether a tick that has ended began after this one was due: it did this one's work, whether it failed or not.

    A heartbeat from the future says nothing: the clock has jumped.
    """
    if beat is None or heartbeat.age(beat.started, at) < -CLOCKS:
        return False
    return heartbeat.age(due.astimezone(UTC).isoformat(), beat.started) > 0


def said(tick: Any) -> str:
    """What a tick did, in a line."""
    if isinstance(tick, Idle) or tick.closed is None:
        return f"nothing to do: {tick.why}"
    return f"iteration {tick.closed.number}: {tick.closed.asked} tasks sent"
