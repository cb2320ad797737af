"""The real thing, as a user runs it: the `gleaner` command, Prefect, DVC, MLflow, git, on real images."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.quick import edit, image_folder

GLEANER = Path(sys.executable).parent / "gleaner"
QUICK = {
    "source.kind": "folder", "source.options": {"labels": "folders"}, "holdout.labels": 20, "train.network": "linear",
    "select.batch": 6, "select.first_batch": 9, "evaluate.resamples": 50, "stop.labels": 47,
}  # fmt: skip


def gleaner(*arguments: str, expect: int = 0, cwd: Path | None = None, **environment: str) -> str:
    """Run the command line; returns what it prints."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "GLEANER_"))}
    done = subprocess.run(
        [str(GLEANER), *arguments], capture_output=True, text=True, env={**clean, **environment}, cwd=cwd, check=False
    )
    assert done.returncode == expect, f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def shell(root: Path, command: str) -> str:
    """Run a command in a workspace as a user with the environment's bin first on PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=root, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A campaign of three iterations through the command line."""
    folder = tmp_path_factory.mktemp("campaign")
    root = folder / "workspace"
    gleaner("init", str(root), "--name", "letters")
    edit(root, QUICK)
    counts = json.loads(gleaner("ingest", str(image_folder(folder / "images")), "--json", "--workspace", str(root)))
    assert counts["seen"] == counts["accepted"] + counts["duplicate"] + counts["quarantined"] == 120
    out = gleaner("run", "--iterations", "3", "--workspace", str(root))
    assert "iteration 2: 6 tasks sent" in out
    return root


def test_each_iteration_has_a_tag_and_all_invariants_hold(campaign: Path) -> None:
    assert shell(campaign, "git tag").split() == ["iter-0000", "iter-0001", "iter-0002"]
    assert "all invariants hold" in gleaner("verify", "--deep", "--workspace", str(campaign))


def test_status_says_where_it_stands(campaign: Path) -> None:
    state = json.loads(gleaner("status", "--json", "--workspace", str(campaign)))
    assert state["iteration"] == 2
    assert state["asked"] == {"seed": 9, "active": 10, "control": 2, "holdout": 20, "total": 41}
    assert 0.3 < state["accuracy"] <= 1.0


def test_dvc_repro_executes_nothing_now_and_at_every_tag(campaign: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(campaign, copy, symlinks=True)
    for revision in ("main", "iter-0000", "iter-0001", "iter-0002"):
        out = shell(copy, f"git checkout --quiet {revision} && dvc checkout --quiet --force && dvc repro")
        assert "Running stage" not in out, f"{revision}: {out}"
        assert not shell(copy, "git status --porcelain --untracked-files=no")


def test_recomputing_an_iteration_gives_the_same_bytes(campaign: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(campaign, copy, symlinks=True)
    shell(copy, "dvc repro --force --no-run-cache")
    assert not shell(copy, "git diff --name-only -- dvc.lock")


def test_prefect_shows_a_run_an_iteration_and_a_task_a_stage(campaign: Path) -> None:
    with sqlite3.connect(campaign / ".gleaner/prefect/prefect.db") as db:
        flows = [
            row[0] for row in db.execute("SELECT name FROM flow_run WHERE state_type = 'COMPLETED' ORDER BY start_time")
        ]
        tasks = [
            row[0] for row in db.execute("SELECT name FROM task_run WHERE state_type = 'COMPLETED' ORDER BY start_time")
        ]
        artifacts = {row[0] for row in db.execute("SELECT type FROM artifact")}
    assert flows == [f"workspace: iteration {n}" for n in range(3)]
    order = [
        "embed",
        "train",
        "score",
        "select",
        "evaluate",
        "monitor",
        "report",
        "alert",
        "validate tables",
        "export",
        "track",
    ]
    assert sorted(tasks[:14]) == sorted(["import labels", "ingest", "open", *order])
    assert {"markdown", "table"} <= artifacts


def test_mlflow_shows_the_campaign_and_its_champion_loads(campaign: Path) -> None:
    from tasks.store import Store
    from tasks.trackers.mlflow import load_champion

    uri = f"sqlite:///{campaign}/.gleaner/mlflow.db"
    with sqlite3.connect(campaign / ".gleaner/mlflow.db") as db:
        names = sorted(row[0] for row in db.execute("SELECT name FROM runs WHERE lifecycle_stage = 'active'"))
    assert names[:3] == ["iteration 0", "iteration 1", "iteration 2"]
    folder = load_champion("letters", uri)
    assert Store(folder).read_tensors("head.safetensors")


def test_a_whole_iteration_by_hand_without_prefect(campaign: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(campaign, copy, symlinks=True)
    shell(copy, "python -m tasks.import_labels && dvc repro && python -m tasks.export")
    assert "iter-0003" in shell(copy, "git tag")
    assert gleaner("verify", "--workspace", str(copy)).startswith("all invariants hold")


def test_the_budget_ends_the_campaign_and_later_ticks_say_so(campaign: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(campaign, copy, symlinks=True)
    out = gleaner("run", "--iterations", "5", "--workspace", str(copy))
    assert "Campaign finished: budget spent" in out
    assert "campaign finished" in gleaner("tick", "--workspace", str(copy))
    edit(copy, {"stop.labels": 60})
    assert "tasks sent" in gleaner("tick", "--workspace", str(copy))


def test_a_manual_stop_and_resume(campaign: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(campaign, copy, symlinks=True)
    gleaner("stop", "--because", "holiday", "--workspace", str(copy))
    assert "stopped by hand: holiday" in gleaner("tick", "--workspace", str(copy))
    gleaner("resume", "--workspace", str(copy))
    assert "tasks sent" in gleaner("tick", "--workspace", str(copy))


def test_a_blocking_finding_keeps_the_batch_back_until_it_is_accepted(campaign: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(campaign, copy, symlinks=True)
    params = copy / "params.yaml"
    params.write_text(
        params.read_text().replace(
            "  score_gap:\n    severity: warn", "  score_gap:\n    severity: block\n    limit: 0.0\n    sigmas: 0.0"
        )
    )
    out = gleaner("tick", "--workspace", str(copy), expect=3)
    assert "score_gap" in out
    assert "--accept" in out
    assert "iter-0003" not in shell(copy, "git tag")
    state = json.loads(gleaner("status", "--json", "--workspace", str(copy)))
    assert state["pending"] == 0
    assert any(f["check"] == "score_gap" for f in state["findings"])
    other = ("tick", "--accept", "stagnant_rankings", "--because", "why not", "--workspace", str(copy))
    assert "nothing of stagnant_rankings to accept: the checks that block are: score_gap" in gleaner(*other, expect=2)
    out = gleaner("tick", "--accept", "score_gap", "--because", "the limit is a test's", "--workspace", str(copy))
    assert "iteration 3: 6 tasks sent" in out


def test_two_ticks_at_once_the_second_is_told_who_works(campaign: Path, tmp_path: Path) -> None:
    from tasks.lock import campaign_lock

    copy = tmp_path / "copy"
    shutil.copytree(campaign, copy, symlinks=True)
    with campaign_lock(copy, "a test"):
        assert "`a test`" in gleaner("tick", "--workspace", str(copy), expect=75)
        gleaner("status", "--workspace", str(copy))


def test_simulate_compares_strategies(campaign: Path) -> None:
    arguments = ("--labels", "30", "--seeds", "2", "--strategy", "margin", "--strategy", "uniform", "--json")
    out = gleaner("simulate", *arguments, "--workspace", str(campaign))
    result = json.loads(out[out.index("{") :][: out.rindex("}") + 1 - out.index("{")])
    assert set(result["final_accuracy"]) == {"margin", "uniform"}
    assert Path(result["plot"]).read_bytes().startswith(b"\x89PNG")


def test_ctrl_c_ends_a_simulation_at_once_and_quietly(campaign: Path) -> None:
    command = [str(GLEANER), "simulate", "--labels", "60", "--seeds", "4", "--workspace", str(campaign)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        while not worker_of(process.pid):
            time.sleep(0.05)
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        assert process.stderr is not None
        printed = process.stderr.read()
        assert process.wait(30) == 130
    assert "interrupted: nothing is lost" in printed
    assert "Traceback" not in printed


def worker_of(pid: int) -> bool:
    """Whether the process has a child whose libraries are loaded: it ignores Ctrl-C by then."""
    try:
        children = [
            child for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()
        ]
        return any("pyarrow" in Path(f"/proc/{child}/maps").read_text() for child in children)
    except OSError:  # one of them ended meanwhile
        return False


@pytest.fixture
def prefect_server(tmp_path: Path) -> Iterator[str]:
    """A real Prefect server on a free loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with open(tmp_path / "server.log", "wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}/api"
    for _ in range(600):
        try:
            if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                break
        except httpx.TransportError:
            time.sleep(0.2)
    yield url
    server.terminate()
    server.wait(30)


@pytest.mark.slow
def test_a_tick_against_a_prefect_server(campaign: Path, tmp_path: Path, prefect_server: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(campaign, copy, symlinks=True)
    out = gleaner("tick", "--workspace", str(copy), PREFECT_API_URL=prefect_server)
    assert "iteration 3: 6 tasks sent" in out
    runs = httpx.post(f"{prefect_server}/flow_runs/filter", json={}).json()
    assert [run["name"] for run in runs] == ["copy: iteration 3"]


def test_an_iteration_goes_on_without_prefect_and_says_so(campaign: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(campaign, copy, symlinks=True)
    out = gleaner("tick", "--workspace", str(copy), PREFECT_API_URL="http://127.0.0.1:9/api")
    assert "iteration 3: 6 tasks sent" in out
    assert "ran without Prefect: http://127.0.0.1:9/api does not answer" in out
    assert "all invariants hold" in gleaner("verify", "--workspace", str(copy))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_a_killed_tick_leaves_no_server_behind_after_the_next(campaign: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(campaign, copy, symlinks=True)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "GLEANER_"))}
    with subprocess.Popen(
        [str(GLEANER), "tick", "--workspace", str(copy)], env=clean, stderr=subprocess.DEVNULL
    ) as killed:
        while not servers(copy):
            time.sleep(0.1)
            assert killed.poll() is None
        killed.kill()
    assert servers(copy)
    gleaner("tick", "--workspace", str(copy))
    assert not servers(copy)
    assert "all invariants hold" in gleaner("verify", "--workspace", str(copy))


@contextmanager
def ui(root: Path, **environment: str) -> Iterator[list[str]]:
    """`gleaner ui` with the lines it printed until it was ready; ended by Ctrl-C."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "GLEANER_", "MLFLOW_"))}
    command = [str(GLEANER), "ui", "--mlflow-port", "0", "--prefect-port", "0", "--workspace", str(root)]
    with subprocess.Popen(command, env={**clean, **environment}, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or "Ctrl-C" not in lines[-1]:
            lines.append(process.stdout.readline())
            assert lines[-1], "".join(lines)
        yield lines
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def address(lines: list[str], name: str) -> str:
    return next(match[1] for line in lines if (match := re.match(rf"{name} +(\S+)", line)))


@pytest.mark.slow
def test_ui_opens_both_and_ends_both(campaign: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(campaign, copy, symlinks=True)
    with ui(copy) as lines:
        experiments = httpx.post(
            f"{address(lines, 'MLflow')}/api/2.0/mlflow/experiments/search", json={"max_results": 9}, timeout=30
        ).json()
        assert "letters" in {experiment["name"] for experiment in experiments["experiments"]}
        runs = httpx.post(f"{address(lines, 'Prefect')}/api/flow_runs/filter", json={}, timeout=30).json()
        assert {run["name"] for run in runs} >= {"workspace: iteration 0", "workspace: iteration 2"}
        assert (
            "text/html"
            in httpx.get(address(lines, "Prefect"), timeout=30, follow_redirects=True).headers["content-type"]
        )
    assert not servers(copy)
    for name in ("MLflow", "Prefect"):
        with pytest.raises(httpx.TransportError):
            httpx.get(address(lines, name), timeout=5)


@pytest.mark.slow
def test_ui_names_servers_that_run_elsewhere_without_their_passwords(campaign: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(campaign, copy, symlinks=True)
    with ui(copy, MLFLOW_TRACKING_URI="https://ann:correct-horse@mlflow.example/x") as lines:
        assert address(lines, "MLflow") == "https://mlflow.example/x"
        assert httpx.get(f"{address(lines, 'Prefect')}/api/health", timeout=30).status_code == 200
    assert "correct-horse" not in "".join(lines)


def servers(root: Path) -> list[int]:
    """Processes that work on a workspace's Prefect database."""
    home = f"PREFECT_HOME={root}/.gleaner/prefect".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (
                home in (folder / "environ").read_bytes().split(b"\0")
                and b"uvicorn" in (folder / "cmdline").read_bytes()
            ):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def stage_runs(module: str, group: int) -> bool:
    """Whether a process of the group runs that module."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if module.encode() in (folder / "cmdline").read_bytes() and os.getpgid(int(folder.name)) == group:
                return True
        except OSError:
            continue
    return False


@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [True, False])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_tick_ends_at_once_when_it_is_interrupted_in_a_stage(
    campaign: Path, tmp_path: Path, number: signal.Signals, code: int, whole_group: bool
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(campaign, copy, symlinks=True)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "GLEANER_"))}
    command = [str(GLEANER), "tick", "--workspace", str(copy)]
    with subprocess.Popen(command, env=clean, stderr=subprocess.PIPE, start_new_session=True) as process:
        while not stage_runs("tasks.train", process.pid):
            time.sleep(0.02)
            assert process.poll() is None
        (os.killpg if whole_group else os.kill)(process.pid, number)
        assert process.wait(10) == code
        assert process.stderr is not None
        assert b"interrupted: nothing is lost" in process.stderr.read()
    assert "iteration 3: 6 tasks sent" in gleaner("tick", "--workspace", str(copy))
    assert not servers(copy)
    assert "all invariants hold" in gleaner("verify", "--workspace", str(copy))
