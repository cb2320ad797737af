"""Deployments on a real Prefect server, executed by a real process worker: on time, once, missed, killed, taken away."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows import heartbeat, schedule, settings
from monitoring.outbox import open_outbox
from tasks import repository
from tasks.campaign import IDENTITY, LEDGER
from tasks.lock import campaign_lock
from tasks.store import Store
from tests.quick import broken, copy, image_folder, make_workspace

GLEANER = Path(sys.executable).with_name("gleaner")
NEVER = ("--cron", "0 0 1 1 *")  # runs are asked for by the test


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A campaign that has not begun. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("fresh")
    return make_workspace(folder / "workspace", image_folder(folder / "images"))


@pytest.fixture
def campaign(fresh: Path, tmp_path: Path) -> Path:
    """A campaign of its own: deployments are named after its id."""
    root = copy(fresh, tmp_path / "workspace")
    Store(root).write_json(IDENTITY, {**Store(root).read_json(IDENTITY), "id": f"deployed-{secrets.token_hex(4)}"})
    (root / LEDGER).unlink()  # it knows the old id, and nothing else yet
    repository.stage_own(root)
    repository.commit(root, "another id")
    return root


def environment(home: Path, **more: str) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "GLEANER_"))}
    return {
        **clean,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_HOME": str(home),
        **more,
    }


class Server:
    """A real Prefect server."""

    def __init__(self, api: str, home: Path) -> None:
        self.api, self.home = api, home

    @property
    def environment(self) -> dict[str, str]:
        return environment(self.home, PREFECT_API_URL=self.api)

    def ask(self, path: str, value: Any = None) -> Any:
        """POST, or GET without a value; a SQLite server says 503 while it is locked."""
        for _ in range(20):
            url = f"{self.api}/{path}"
            found = httpx.get(url, timeout=60) if value is None else httpx.post(url, json=value, timeout=60)
            if found.status_code != 503:
                break
            time.sleep(0.5)
        found.raise_for_status()
        return found.json()

    def deployment(self, root: Path) -> dict[str, Any]:
        name = Store(root).read_json(IDENTITY)["id"]
        found = self.ask("deployments/filter", {"deployments": {"name": {"any_": [name]}}})
        assert len(found) == 1
        return dict(found[0])

    def runs(self, root: Path) -> list[dict[str, Any]]:
        wanted = {"deployments": {"id": {"any_": [self.deployment(root)["id"]]}}, "sort": "EXPECTED_START_TIME_ASC"}
        return list(self.ask("flow_runs/filter", wanted))

    def run(self, root: Path, due: datetime | None = None) -> str:
        """Ask for a run of the campaign's deployment; returns its id."""
        at = (due or datetime.now(UTC)).isoformat()
        state = {"type": "SCHEDULED", "state_details": {"scheduled_time": at}}
        return str(self.ask(f"deployments/{self.deployment(root)['id']}/create_flow_run", {"state": state})["id"])

    def end(self, run: str) -> dict[str, Any]:
        """How a run ended, once it has."""

        def ended() -> dict[str, Any] | None:
            state = dict(self.ask(f"flow_runs/{run}")["state"])
            return state if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

        return dict(wait_for(ended))

    def automations(self, root: Path) -> list[dict[str, Any]]:
        return list(self.ask(f"automations/related-to/prefect.deployment.{self.deployment(root)['id']}"))


def wait_for(what: Callable[[], Any], seconds: float = 240.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.3)
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with open(home / "server.log", "wb") as log:
        process = subprocess.Popen(command, env=environment(home), stdout=log, stderr=log)
    found = Server(f"http://127.0.0.1:{port}/api", home)
    try:
        wait_for(lambda: _healthy(found.api))
        yield found
    finally:
        process.terminate()
        process.wait(60)


def _healthy(api: str) -> bool:
    try:
        return httpx.get(f"{api}/health", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def gleaner(root: Path, *arguments: str, env: dict[str, str]) -> tuple[int, str]:
    done = subprocess.run(
        [str(GLEANER), *arguments, "--workspace", str(root)], env=env, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


def deployed(server: Server, root: Path, *arguments: str) -> None:
    code, said = gleaner(root, "deploy", *(arguments or NEVER), env=server.environment)
    assert code == 0, said


@contextmanager
def worker(server: Server, root: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`gleaner worker`, ended by SIGTERM."""
    with open(root / ".gleaner/worker.log", "ab") as log:
        process = subprocess.Popen(
            [str(GLEANER), "worker", "--workspace", str(root)],
            env=server.environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def processes(root: Path, word: str) -> list[int]:
    """Processes in a workspace whose command line holds a word."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            inside = (folder / "cwd").resolve() == root.resolve()
            if inside and word in (folder / "cmdline").read_bytes().decode().replace("\0", " "):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


# without a server -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["deploy", "worker"])
def test_without_a_server_it_says_how_to_start_one(campaign: Path, command: str) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "GLEANER_"))}
    code, said = gleaner(campaign, command, env=clean)
    assert (code, "gleaner ui" in said) == (2, True), said
    code, said = gleaner(campaign, command, env={**clean, "PREFECT_API_URL": "http://127.0.0.1:9/api"})
    assert (code, "http://127.0.0.1:9/api does not answer" in said) == (1, True), said
    assert not (campaign / schedule.SCHEDULE).exists()


# deploying ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_deploying_again_changes_the_one_deployment_and_removing_leaves_nothing(server: Server, campaign: Path) -> None:
    deployed(server, campaign, "--every", "1h")
    first, made = server.deployment(campaign), server.automations(campaign)
    deployed(server, campaign, "--cron", "*/15 8-18 * * 1-5", "--timezone", "Europe/Zurich")
    second = server.deployment(campaign)
    assert second["id"] == first["id"]
    (when,) = second["schedules"]
    assert (when["schedule"]["cron"], when["schedule"]["timezone"]) == ("*/15 8-18 * * 1-5", "Europe/Zurich")
    assert second["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    assert second["job_variables"]["working_dir"] == str(campaign)
    assert not any(
        name in ("PREFECT_API_URL", "PREFECT_API_KEY") or "SECRET" in name for name in second["job_variables"]["env"]
    )
    names = sorted(automation["name"].partition(": ")[2] for automation in server.automations(campaign))
    assert names == ["crashed run", "late run", "no run completed"]
    assert len(made) == 3
    kept = schedule.read(campaign)
    assert kept is not None and kept.gap == 61.25 * 3600  # from Friday 18:45 to Monday 8:00
    name = Store(campaign).read_json(IDENTITY)["id"]
    assert gleaner(campaign, "deploy", "--remove", env=server.environment) == (0, "removed.\n")
    assert server.ask("deployments/filter", {"deployments": {"name": {"any_": [name]}}}) == []
    every = server.ask("automations/filter", {})
    assert not [automation for automation in every if name in automation["name"]]
    assert schedule.read(campaign) is None
    assert gleaner(campaign, "deploy", "--remove", env=server.environment) == (0, "there was none to remove.\n")


@pytest.mark.slow
def test_the_server_of_gleaner_ui_is_found_while_it_runs(campaign: Path) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "GLEANER_", "MLFLOW_"))}
    with served(campaign, clean) as said:
        found = re.search(r"Prefect +(\S+)", said)
        assert found is not None
        code, printed = gleaner(campaign, "deploy", *NEVER, env=clean)
        assert (code, f"{found[1]}/api" in printed) == (0, True), printed
        assert gleaner(campaign, "deploy", "--remove", env=clean) == (0, "removed.\n")
    assert settings.own_server(campaign) is None
    assert gleaner(campaign, "deploy", *NEVER, env=clean)[0] == 2


@contextmanager
def served(root: Path, env: dict[str, str]) -> Iterator[str]:
    """`gleaner ui` on free ports, with what it printed until it was ready; ended by Ctrl-C."""
    command = [str(GLEANER), "ui", "--mlflow-port", "0", "--prefect-port", "0", "--workspace", str(root)]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = ""
            while "Ctrl-C" not in said:
                line = process.stdout.readline()
                assert line, said
                said += line
            yield said
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0


# running --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_interval_is_executed_by_a_worker_again_and_again_and_never_twice_at_once(
    server: Server, campaign: Path
) -> None:
    deployed(server, campaign, "--every", "15s")
    with worker(server, campaign):
        wait_for(lambda: "iter-0001" in repository.tags(campaign))
        assert len(processes(campaign, "prefect.engine")) <= 1
        wait_for(lambda: [run["state"]["type"] for run in server.runs(campaign)].count("COMPLETED") >= 2)
    completed = [run for run in server.runs(campaign) if run["state"]["type"] == "COMPLETED"]
    assert [run["state"]["message"] for run in completed][:2] == [
        "iteration 0: 29 tasks sent", "iteration 1: 6 tasks sent",
    ]  # fmt: skip
    for before, after in pairwise(completed):
        assert before["end_time"] <= after["start_time"]
    tasks = server.ask("task_runs/filter", {"flow_runs": {"id": {"any_": [completed[0]["id"]]}}})
    assert {"embed", "train", "export"} <= {task["name"] for task in tasks}
    assert not processes(campaign, "prefect")
    beat = heartbeat.read(campaign)
    assert beat is not None and beat.outcome == "iteration"
    assert gleaner(campaign, "watchdog", "--within", "1h", env=server.environment)[0] == 0


@pytest.mark.slow
def test_a_run_that_finds_another_at_work_says_who_and_one_that_was_missed_does_nothing(
    server: Server, campaign: Path
) -> None:
    deployed(server, campaign)
    with worker(server, campaign):
        with campaign_lock(campaign, "a test"):
            busy = server.end(server.run(campaign))
        assert busy["type"] == "COMPLETED"
        assert f"in use: `a test`, process {os.getpid()}" in busy["message"]
        assert heartbeat.read(campaign) is None
        with heartbeat.beating(campaign) as tell:
            tell("idle", "a test", None)
        written = (campaign / heartbeat.HEARTBEAT).read_bytes()
        missed = [server.run(campaign, datetime.now(UTC) - timedelta(hours=hours)) for hours in (3, 2, 1)]
        states = [server.end(run) for run in missed]
    done = [state["message"] for state in states if state["type"] == "COMPLETED"]
    assert done and all("nothing is left for it to do" in message for message in done)
    assert {state["type"] for state in states} <= {"COMPLETED", "CANCELLED"}
    assert (campaign / heartbeat.HEARTBEAT).read_bytes() == written
    assert repository.tags(campaign) == []


@pytest.mark.slow
def test_a_run_that_fails_says_why_and_the_next_one_recovers(server: Server, campaign: Path) -> None:
    deployed(server, campaign)
    text = (campaign / "params.yaml").read_text()
    with worker(server, campaign):
        (campaign / "params.yaml").write_text(text.replace("strategy:", "strategi:"))
        failed = server.end(server.run(campaign))
        assert (failed["type"], "params.yaml" in failed["message"]) == ("FAILED", True)
        assert "Did you mean 'strategy'?" in failed["message"]
        beat = heartbeat.read(campaign)
        assert beat is not None and (beat.outcome, beat.why) == ("failed", "BadInput")
        with open_outbox(campaign) as outbox:
            assert outbox.newest("tick_failed") == "error"
        (campaign / "params.yaml").write_text(text)
        assert server.end(server.run(campaign))["message"] == "iteration 0: 29 tasks sent"
    assert repository.tags(campaign) == ["iter-0000"]


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True], ids=["the run", "the run and its worker"])
def test_a_run_killed_with_sigkill_is_seen_as_crashed_and_the_next_one_recovers(
    server: Server, campaign: Path, whole: bool
) -> None:
    deployed(server, campaign)
    with worker(server, campaign) as process:
        run = server.run(campaign)
        wait_for(lambda: processes(campaign, "tasks.train"))
        (engine,) = processes(campaign, "prefect.engine")
        if whole:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            os.kill(engine, signal.SIGKILL)
        crashed = server.end(run)
    assert (crashed["type"], "no heartbeat" in crashed["message"]) == ("CRASHED", whole)
    assert repository.tags(campaign) == []
    with worker(server, campaign):
        assert server.end(server.run(campaign))["message"] == "iteration 0: 29 tasks sent"
    assert broken(campaign) == []
    assert json.loads((campaign / heartbeat.HEARTBEAT).read_text())["iteration"] == 0
