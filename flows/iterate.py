"""One tick of the loop as a Prefect flow: one task a stage, in the order of DVC's own graph.

    tick("workspaces/demo")
      import labels ─> ingest ─> open ─> embed ─> train ─> score ─> select ─> evaluate ─> monitor ─> report ─> validate tables ─> export ─> track

No flow waits in memory for people: a tick with nothing due ends at once, and the next one looks again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run

from monitoring import news
from monitoring.alarm import raise_alert
from monitoring.alerts.log import LEVELS, line
from monitoring.evidence import from_json
from monitoring.standing import notice
from tasks import repository, tracking, versions
from tasks.arrivals import Taken, take_new
from tasks.campaign import Campaign, open_campaign
from tasks.closing import Closed
from tasks.errors import GleanerError, Unreachable
from tasks.export import export, finish_exported
from tasks.findings import FINDINGS
from tasks.import_labels import due, open_iteration
from tasks.polling import poll

LOGS = ".gleaner/logs"
OUTSIDE: dict[str, Any] = {"retries": 3, "retry_delay_seconds": [1, 5, 20], "cache_policy": NO_CACHE}


Result = TypeVar("Result")


@dataclass(frozen=True)
class Tick:
    """What a tick did."""

    closed: Closed | None
    why: str  # why there was something to do, or not
    warnings: tuple[str, ...] = ()


def _worth_retrying(task: Any, run: Any, state: State[Any]) -> bool:
    """A network or a disk may come back; a refused batch or a wrong setting stays wrong."""
    return isinstance(state.result(raise_on_failure=False), Unreachable | OSError)


@task(name="import labels", task_run_name="import labels", retry_condition_fn=_worth_retrying, **OUTSIDE)
def import_labels(campaign: Campaign) -> None:
    """Pull what the labeling tool has, store it, read it."""
    _log().info("%d new answers", poll(campaign))


@task(name="ingest", task_run_name="ingest", retry_condition_fn=_worth_retrying, **OUTSIDE)
def ingest_new(campaign: Campaign) -> Taken:
    """Take what is new in the source into the pool."""
    taken = take_new(campaign)
    _log().info("%d new images", taken.accepted)
    return taken


@task(name="open", task_run_name="open", retry_condition_fn=_worth_retrying, **OUTSIDE)
def open_next(campaign: Campaign) -> int:
    """Open the iteration that is due: freeze its inputs."""
    number = open_iteration(campaign)
    _log().info("iteration %d is open", number)
    return number


@task(task_run_name="{stage}", cache_policy=NO_CACHE)
def run_stage(campaign: Campaign, stage: str, number: int) -> bool:
    """Run one DVC stage if anything it depends on changed."""
    log = campaign.store.path(f"{LOGS}/{repository.tag_name(number)}-{stage}.log")
    ran = versions.reproduce(campaign.root, stage, log)
    _log().info("%s", log.read_text(encoding="utf-8", errors="replace").strip() or f"{stage}: nothing changed")
    return ran


@task(name="validate tables", task_run_name="validate tables", cache_policy=NO_CACHE)
def validate_tables(campaign: Campaign) -> None:
    """Great Expectations over the tables at each border, once an iteration, in this process."""
    from monitoring.tables import render, validate

    report = validate(campaign.store)
    campaign.store.write_bytes(".gleaner/tables.html", render(report).encode())
    if not report.passed:
        raise GleanerError("tables are not valid, nothing was exported:\n" + "\n".join(report.problems()))


@task(name="alert", task_run_name="alert", cache_policy=NO_CACHE)
def alert(campaign: Campaign) -> tuple[str, ...]:
    """Raise what the checks found, before anything is sent; returns one line a finding. `flows/run.py` delivers."""
    report = campaign.store.read_json(FINDINGS)
    alerts = news.of_findings(campaign.id, report["iteration"], from_json(report))
    for each in alerts:
        _log().log(LEVELS[each.severity], "%s", line(each))
        raise_alert(campaign.root, each)
    return tuple(f"{each.title}: {' '.join(each.text.split())}" for each in alerts)


@task(name="export", task_run_name="export", retry_condition_fn=_worth_retrying, **OUTSIDE)
def export_batch(campaign: Campaign) -> Closed | None:
    """Gate, export, snapshot, commit, tag."""
    return export(campaign)


@task(name="track", task_run_name="track", cache_policy=NO_CACHE)
def track(campaign: Campaign) -> list[str]:
    """Show the iteration in the tracker; when that is not there, the outbox keeps it."""
    problems = tracking.flush(campaign)
    for problem in problems:
        _log().warning(problem)
    return problems


def _log() -> Any:
    """Prefect's log of this run; the process's own when Prefect is not there."""
    return get_run_logger() if flow_run.id else logging.getLogger("gleaner.tick")


def _do(what: Callable[..., Result], *arguments: Any) -> Result:
    """Call a task through Prefect, or plainly when the tick runs without it (`tick.fn`)."""
    plain: Callable[..., Result] = what if flow_run.id else what.fn  # type: ignore[attr-defined]
    return plain(*arguments)


def _silent(step: str) -> None:
    return None


#: told the name of each step as it begins; the command line shows a bar with it
ON_STEP: ContextVar[Callable[[str], None]] = ContextVar("ON_STEP", default=_silent)


def _run_name() -> str:
    root = Path(flow_run.parameters["workspace"])
    return f"{root.resolve().name}: iteration {len(repository.tags(root))}"


@flow(name="tick", flow_run_name=_run_name)
def tick(workspace: str) -> Tick:
    """Recover, poll, and run one iteration if one is due. Raises Blocked when a check refuses the batch.

    `tick.fn(workspace)` is the same without Prefect, for when its server is down.
    """
    root = Path(workspace)
    with open_campaign(root, "tick") as campaign:
        recovered = finish_exported(campaign)
        if recovered is not None:
            return _finished(campaign, recovered, "an iteration that was interrupted is finished")
        ON_STEP.get()("import labels")
        _do(import_labels, campaign)
        notice(campaign)
        verdict = due(campaign)
        if not verdict.now:
            _log().info("nothing is due: %s", verdict.why)
            return Tick(None, verdict.why)
        ON_STEP.get()("ingest")
        taken = _do(ingest_new, campaign)
        campaign, verdict = taken.campaign, due(taken.campaign, ingested=True)
        if not verdict.now:
            return Tick(None, verdict.why, taken.lines)
        closed, found = _iterate(campaign)
        return _finished(campaign, closed, verdict.why, (*taken.lines, *found))


def _iterate(campaign: Campaign) -> tuple[Closed | None, tuple[str, ...]]:
    step = ON_STEP.get()
    step("open")
    number = _do(open_next, campaign)
    for stage in versions.stage_order(campaign.root):
        step(stage)
        _do(run_stage, campaign, stage, number)
    found = _do(alert, campaign)
    step("validate tables")
    _do(validate_tables, campaign)
    step("export")
    return _do(export_batch, campaign), found


def _finished(campaign: Campaign, closed: Closed | None, why: str, found: tuple[str, ...] = ()) -> Tick:
    notice(campaign)
    warnings = [*found, *_do(track, campaign)]
    if closed is not None and flow_run.id:
        _artifacts(campaign, closed)
    return Tick(closed, why, tuple(warnings))


def _artifacts(campaign: Campaign, closed: Closed) -> None:
    key = f"{campaign.id}-iteration-{closed.number}"
    lines = campaign.store.path("data/report/report.md").read_text(encoding="utf-8").splitlines()
    report = "\n".join(line for line in lines if not line.startswith("!["))  # its images are files of the workspace
    create_markdown_artifact(report, key=f"{key}-report", description=f"Iteration {closed.number}")
    metrics = campaign.store.read_json("data/evaluation/metrics.json")
    rows = [{"measure": name, "value": str(value)} for name, value in sorted(metrics.items())]
    create_table_artifact(
        rows, key=f"{key}-metrics", description=f"Measures of iteration {closed.number}, {closed.asked} tasks sent"
    )
