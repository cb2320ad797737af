"""`gleaner deploy`: the tick as a Prefect deployment with a schedule, served by a process worker (`gleaner worker`).

    python -m flows.deploy --every 15m      # in a workspace, the same

One deployment, one work pool and three automations a campaign, all named after its id; deploying again updates them.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows import schedule as schedules
from flows import settings
from flows.automations import HEARTBEAT_SECONDS, automations
from flows.schedule import Deployed, Schedule
from monitoring.tick_ends import UNATTENDED
from tasks.campaign import IDENTITY, utc_now
from tasks.errors import BadInput, Unreachable
from tasks.stage import TICK, guarded
from tasks.store import Store

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

FLOW = "scheduled tick"
ENTRY = "flows.scheduled.scheduled_tick"
INTERVALS = 3  # so many pauses of the schedule without a finished tick are too many
NO_SERVER = (
    "no Prefect server runs for this campaign. Start it and let it run: `gleaner ui`; or name one of yours: "
    "export PREFECT_API_URL=http://127.0.0.1:4200/api"
)


@dataclass(frozen=True)
class Registered:
    """What was registered, for people."""

    name: str
    words: str
    api: str


def deploy(root: Path, schedule: Schedule) -> Registered:
    """Register or update the campaign's deployment. Raises BadInput without a server, Unreachable when it does not answer."""
    name = campaign_id(root)
    settings.point(root)  # before Prefect is imported
    when, gap = schedule.as_prefect(), schedule.gap()
    with connected(root) as client:
        _work_pool(client, name)
        identity = client.create_deployment(**_description(client, root.resolve(), name, when))
        _automate(client, identity, automations(identity, f"gleaner {name}", gap, INTERVALS))
    schedules.write(root, Deployed(f"{FLOW}/{name}", schedule, gap, utc_now()))
    return Registered(f"{FLOW}/{name}", schedule.words(), os.environ["PREFECT_API_URL"])


def remove(root: Path) -> bool:
    """Take the deployment and its automations away; returns whether there was one. Runs that were stay in Prefect."""
    name = campaign_id(root)
    with connected(root) as client:
        from prefect.exceptions import ObjectNotFound

        try:
            identity = client.read_deployment_by_name(f"{FLOW}/{name}").id
        except ObjectNotFound:
            found = False
        else:
            found = True
            client.delete_resource_owned_automations(f"prefect.deployment.{identity}")
            client.delete_deployment(identity)
    Store(root).path(schedules.SCHEDULE).unlink(missing_ok=True)
    return found


def campaign_id(root: Path) -> str:
    """The campaign's id. Raises BadInput when the folder is no campaign."""
    store = Store(root)
    if not store.exists(IDENTITY):
        raise BadInput(f"{root.resolve()} is Gleaner's own code, not a campaign. `gleaner init DIR` makes a workspace.")
    return str(store.read_json(IDENTITY)["id"])


@contextmanager
def connected(root: Path) -> Iterator[SyncPrefectClient]:
    """A client of the campaign's Prefect server, whose address is in the environment from then on."""
    settings.point(root)
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url  # of the environment or of the user's profile
    if not url:
        raise BadInput(NO_SERVER)
    os.environ["PREFECT_API_URL"] = url
    problem = settings.unreachable(root)
    if problem:
        raise Unreachable(f"Prefect: {problem}. Start it (`gleaner ui`) or correct PREFECT_API_URL.")
    try:
        with get_client(sync_client=True) as client:
            yield client
    except httpx.HTTPError as error:
        raise Unreachable(
            f"Prefect's server failed ({type(error).__name__}: {error}). Run the command again."
        ) from error


def _work_pool(client: SyncPrefectClient, name: str) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.workers.process import ProcessWorker

    try:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
    except ObjectAlreadyExists:
        pass


def _description(client: SyncPrefectClient, root: Path, name: str, when: Any) -> dict[str, Any]:
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions

    return {
        "flow_id": client.create_flow_from_name(FLOW),
        "name": name,
        "description": f"The loop of campaign {name}: each run is one tick.",
        "schedules": [DeploymentScheduleCreate(schedule=when, active=True)],
        "concurrency_limit": 1,
        "concurrency_options": ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
        "work_pool_name": name,
        "entrypoint": ENTRY,
        "path": None,
        "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": str(root)}}],
        "job_variables": _job(root),
        "tags": ["gleaner"],
        "parameter_openapi_schema": {"type": "object", "properties": {}},
        "enforce_parameter_schema": True,
    }


def _job(root: Path) -> dict[str, Any]:
    """How a worker starts a run: in the workspace, with its code and this environment's programs.

    The command is named because Prefect, left to itself, would give a folder with a pyproject.toml an environment of
    its own wherever uv is on PATH.
    """
    path = [str(Path(sys.executable).parent), *os.environ.get("PATH", os.defpath).split(os.pathsep)]
    environment = {
        **settings.DEFAULTS,
        "PATH": os.pathsep.join(dict.fromkeys(path)),
        "PYTHONPATH": str(root),
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
        UNATTENDED: "1",
    }
    command = shlex.join([sys.executable, "-m", "prefect.engine"])
    return {"command": command, "working_dir": str(root), "env": environment, "stream_output": True}


def _automate(client: SyncPrefectClient, deployment: Any, wanted: list[Any]) -> None:
    """Replace the deployment's automations: those of an older schedule would cry wolf."""
    client.delete_resource_owned_automations(f"prefect.deployment.{deployment}")
    for automation in wanted:
        client.create_automation(automation)


def work(root: Path) -> None:
    """Become the campaign's process worker, until Ctrl-C. Does not return."""
    name = campaign_id(root)
    with connected(root) as client:
        _work_pool(client, name)
    environment = {k: v for k, v in os.environ.items() if k != TICK}  # a worker is not a tick: its runs outlive it
    environment["PYTHONPATH"] = str(root.resolve())
    os.chdir(root)
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", name, "--type", "process"]
    os.execve(sys.executable, command, environment)  # noqa: S606


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Let the campaign in this folder tick on a schedule.")
    parser.add_argument("--every", default="", help="interval, like 15m")
    parser.add_argument("--cron", default="", help="cron line instead, like '*/15 8-18 * * 1-5'")
    parser.add_argument("--timezone", default="UTC", help="of the cron line, like Europe/Zurich")
    given = parser.parse_args()
    sys.exit(
        guarded(lambda: print(deploy(Path.cwd(), schedules.wanted(given.every, given.cron, given.timezone)).words))
    )
