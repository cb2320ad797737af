"""Run ticks in one process, with a progress bar: `gleaner tick` once, `gleaner run` until there is nothing to do."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from flows import settings
from flows.heartbeat import beating
from monitoring.standing import notice
from monitoring.tick_ends import tick_failed, tick_worked
from tasks import tracking, versions
from tasks.campaign import open_campaign
from tasks.errors import Unreachable
from tasks.export import send_again
from tasks.import_labels import due
from tasks.polling import poll
from tasks.refusals import warning

if TYPE_CHECKING:
    from flows.iterate import Tick

STEPS_AROUND = 5  # import labels, ingest, open, validate tables, export: the steps beside DVC's stages


@dataclass(frozen=True)
class Idle:
    """A look that found nothing to do, before anything heavy was imported."""

    why: str
    waiting: bool = False  # for answers
    warnings: tuple[str, ...] = ()


def look(root: Path) -> Idle | None:
    """Poll the labeling tool and decide whether a tick is due. Imports no Prefect, and MLflow only when it is waited for."""
    with open_campaign(root, "tick") as campaign:
        latest = campaign.ledger.latest()
        if latest is not None and latest.state in ("selected", "exported"):
            return None
        poll(campaign)
        notice(campaign)
        verdict = due(campaign)
        if verdict.now:
            return None
        again = send_again(campaign) if verdict.waiting else []
        return Idle(verdict.why, verdict.waiting, (*again, *warning(campaign), *tracking.flush(campaign)))


def run_ticks(root: Path, iterations: int, wait_seconds: float = 0.0) -> list[Tick | Idle]:
    """Run up to `iterations` iterations; ends early when nothing is due (after waiting `wait_seconds` for answers)."""
    done: list[Tick | Idle] = []
    settings.end_orphans(root)
    deadline = time.monotonic() + wait_seconds
    while sum(not isinstance(tick, Idle) for tick in done) < iterations:
        ended = _watched(root, f"iteration {len(done) + 1} of {iterations}")
        if not isinstance(ended, Idle):
            done.append(ended)
            deadline = time.monotonic() + wait_seconds
        elif time.monotonic() < deadline and ended.waiting:
            time.sleep(min(5.0, max(0.1, wait_seconds / 10)))
        else:
            return [*done, ended]
    return done


def _watched(root: Path, title: str) -> Tick | Idle:
    """One look and the tick that is due. Whether it ends well or not, people hear of it (`monitoring/tick_ends.py`)."""
    steps = ["import labels"]
    with beating(root) as tell:
        try:
            ended = look(root) or _tick(root, title, steps)
        except Exception as error:
            tick_failed(root, error, steps[-1])
            raise
        closed = None if isinstance(ended, Idle) or ended.closed is None else ended.closed.number
        tell("idle" if closed is None else "iteration", ended.why, closed)
    return replace(ended, warnings=(*ended.warnings, *tick_worked(root)))


def _tick(root: Path, title: str, steps: list[str]) -> Tick:
    """Run one tick; the names of its steps are appended to `steps` as they begin."""
    settings.prepare(root)
    import httpx
    from prefect.runtime import flow_run

    from flows.iterate import ON_STEP, tick

    settings.quiet_console()
    problem = settings.unreachable(root)
    with _progress(len(versions.stage_order(root)) + STEPS_AROUND, title) as step:
        before = ON_STEP.set(_interruptible(root, _both(step, steps.append), step.terminal))
        try:
            if problem is None and not flow_run.id:
                return tick(str(root))
            done: Tick = tick.fn(str(root))  # in a scheduled run the steps are that run's own
            if problem is None:
                return done
            return replace(done, warnings=(*done.warnings, f"this iteration ran without Prefect: {problem}"))
        except httpx.HTTPError as error:
            raise Unreachable(
                f"Prefect's server went away during the iteration ({type(error).__name__}: {error}). "
                "Nothing is lost: run the tick again."
            ) from error
        finally:
            ON_STEP.reset(before)


def _both(first: Callable[[str], None], second: Callable[[str], None]) -> Callable[[str], None]:
    def announce(step: str) -> None:
        first(step)
        second(step)

    return announce


def _interruptible(root: Path, step: Callable[[str], None], terminal: int) -> Callable[[str], None]:
    """End at once on Ctrl-C and SIGTERM: the next tick recovers from an end at any point, and Prefect's own handler
    would wait for a server that the same signal has ended. Prefect takes SIGTERM over when a flow starts, so each step
    takes it back."""

    def end(number: int, frame: object) -> None:
        settings.end_own(root)
        os.write(terminal, b"\x1b[?25h\ninterrupted: nothing is lost, the next tick goes on from here.\n")
        os._exit(128 + number)

    def announce(name: str) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, end)
        step(name)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    return announce


class _Steps:
    """Moves the bar when a step begins; `terminal` is where the bar is."""

    def __init__(self, bar: Progress, title: str, total: int, terminal: int) -> None:
        self.terminal = terminal
        self._bar, self._task = bar, bar.add_task(title, total=total, step="starting Prefect")
        self._begun = 0

    def __call__(self, step: str) -> None:
        self._bar.update(self._task, step=step, completed=self._begun)
        self._begun += 1

    def finish(self) -> None:
        """Fill the bar."""
        total = self._bar.tasks[0].total
        self._bar.update(self._task, completed=total, step="done")


@contextmanager
def _progress(total: int, title: str) -> Iterator[_Steps]:
    """A bar on a copy of the terminal's descriptor: stages redirect the original one into their logs."""
    with os.fdopen(os.dup(2), "w") as stream:
        columns = (
            TextColumn("{task.description:<20}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[step]}"),
        )
        with Progress(*columns, console=Console(file=stream)) as bar:
            steps = _Steps(bar, title, total, stream.fileno())
            yield steps
            steps.finish()
