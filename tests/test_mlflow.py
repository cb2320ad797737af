"""The MLflow tracker against a real SQLite backend and a real server on the loopback interface."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows import ui
from tasks import tracking
from tasks.checkpoint import checkpoint, restart
from tasks.errors import GleanerError
from tasks.store import Store, sha256
from tasks.trackers import IterationRecord, _addresses, mlflow

NAME = "digits: a/b 'quoted'"


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty database: migrating takes seconds."""
    folder = tmp_path_factory.mktemp("template")
    with mlflow._session(f"sqlite:///{folder}/mlflow.db") as client:
        client.search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def uri(tmp_path: Path, template: Path) -> str:
    folder = tmp_path / ".gleaner"
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(template.read_bytes())
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Iterator[str]:
    """A real `mlflow server` on a free loopback port."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes(template.read_bytes())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    # MLflow's queue of jobs would start eight more processes; Gleaner asks for no job
    environment = {**os.environ, **mlflow.ENVIRONMENT, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_until_healthy(port, process, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _wait_until_healthy(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    import urllib.error
    import urllib.request

    for _ in range(240):
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.25)
    raise AssertionError(log.read_text())


def record(folder: Path, iteration: int = 3, champion: bool = True, campaign: str = "c0ffee") -> IterationRecord:
    """An iteration with a plot, a folder of tables and a head of its own."""
    files = folder / f"{campaign}-{iteration}"
    store = Store(files)
    store.write_tensors("head/head.safetensors", {"weights": np.full(4, iteration, dtype=np.float32)})
    store.write_json("head/head.json", {"network": "linear"})
    store.write_bytes("learning_curve.png", b"png")
    store.write_json("evaluation/metrics.json", {"accuracy": 0.9})
    return IterationRecord(
        campaign, NAME, iteration, {"select.batch": "20", "labeling.classes": "x" * 7000},
        {"accuracy": (80 + iteration) / 100, "labels_total": 20.0 * iteration, "recall.<b>ü/é</b>": 0.5, "bad": float("nan")},
        {"git.commit": "abc", "git.tag": f"iter-{iteration:04d}", "dvc.models/head": "123"},
        (files / "learning_curve.png", files / "evaluation"), files / "head", champion,
    )  # fmt: skip


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def runs(uri: str) -> list[Any]:
    one = client(uri)
    return list(one.search_runs([one.get_experiment_by_name(NAME).experiment_id]))


def children(uri: str) -> list[Any]:
    return [run for run in runs(uri) if "gleaner.iteration" in run.data.tags]


def parent(uri: str) -> Any:
    (run,) = [run for run in runs(uri) if "gleaner.iteration" not in run.data.tags]
    return run


def versions(uri: str) -> list[Any]:
    return list(client(uri).search_model_versions())


def test_an_iteration_is_a_child_run_with_all_that_belongs_to_it(uri: str, tmp_path: Path) -> None:
    given = record(tmp_path)
    run_id = mlflow.connect(uri).log(given)
    (child,) = children(uri)
    assert child.info.run_id == run_id
    assert child.info.run_name == "iteration 3"
    assert child.info.status == "FINISHED"
    assert child.data.tags["mlflow.parentRunId"] == parent(uri).info.run_id
    assert child.data.tags["git.tag"] == "iter-0003"
    assert child.data.params["select.batch"] == "20"
    assert child.data.metrics == {"accuracy": 0.83, "labels_total": 60.0, "recall._b_ü/é_/b_": 0.5}
    listed = {entry.path for entry in client(uri).list_artifacts(run_id)}
    assert listed == {"learning_curve.png", "evaluation", "model"}


def test_everything_of_the_default_is_inside_the_workspace(tmp_path: Path, template: Path, uri: str) -> None:
    mlflow.connect(tmp_path).log(record(tmp_path))
    assert [entry.name for entry in (tmp_path / ".gleaner").iterdir() if entry.is_dir()] == ["mlartifacts"]
    assert not Path("mlruns").exists()
    assert not Path("mlartifacts").exists()


def test_logging_again_changes_nothing(uri: str, tmp_path: Path) -> None:
    tracker, given = mlflow.connect(uri), record(tmp_path)
    first = tracker.log(given)
    assert tracker.log(given) == first
    assert len(runs(uri)) == 2
    assert len(versions(uri)) == 1
    assert len(client(uri).get_metric_history(parent(uri).info.run_id, "accuracy")) == 1


STEPS = ["log_batch", "log_artifact", "log_artifacts", "create_model_version", "set_registered_model_alias",
         "set_terminated", "set_tag"]  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_a_crash_at_any_step_is_made_good_by_the_next_try(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, done: bool
) -> None:
    from mlflow import MlflowClient

    tracker = mlflow.connect(uri)
    tracker.log(record(tmp_path, 2))
    real = getattr(MlflowClient, step)

    def crash(self: Any, *arguments: Any, **options: Any) -> Any:
        if done:
            real(self, *arguments, **options)
        raise OSError("the machine stopped here")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, step, crash)
        with pytest.raises(GleanerError, match="the machine stopped here"):
            tracker.log(record(tmp_path, 3))
    run_id = tracker.log(record(tmp_path, 3))
    complete = {run.data.tags["gleaner.iteration"]: run for run in children(uri)}
    assert sorted(complete) == ["2", "3"]
    assert len(children(uri)) == 2
    assert complete["3"].info.run_id == run_id
    assert [point.step for point in client(uri).get_metric_history(parent(uri).info.run_id, "accuracy")] == [2, 3]
    assert sorted(v.tags["gleaner.iteration"] for v in versions(uri)) == ["2", "3"]
    assert mlflow.load_champion(NAME, uri).joinpath("head.safetensors").read_bytes() == head_bytes(tmp_path, 3)


def head_bytes(folder: Path, iteration: int, campaign: str = "c0ffee") -> bytes:
    return (folder / f"{campaign}-{iteration}" / "head" / "head.safetensors").read_bytes()


def test_the_campaigns_run_has_the_learning_curve(uri: str, tmp_path: Path) -> None:
    for iteration in range(3):
        mlflow.connect(uri).log(record(tmp_path, iteration))
    history = client(uri).get_metric_history(parent(uri).info.run_id, "accuracy")
    assert [(point.step, point.value) for point in history] == [(0, 0.8), (1, 0.81), (2, 0.82)]


def test_the_champion_is_loaded_by_its_alias(uri: str, tmp_path: Path) -> None:
    for iteration, champion in ((0, True), (1, True), (2, False)):
        mlflow.connect(uri).log(record(tmp_path, iteration, champion))
    assert (mlflow.load_champion(NAME, uri) / "head.safetensors").read_bytes() == head_bytes(tmp_path, 1)
    assert len(versions(uri)) == 3


def test_a_late_replay_does_not_take_the_championship_back(uri: str, tmp_path: Path) -> None:
    for iteration in (5, 4):
        mlflow.connect(uri).log(record(tmp_path, iteration))
    assert (mlflow.load_champion(NAME, uri) / "head.safetensors").read_bytes() == head_bytes(tmp_path, 5)


def test_a_champion_whose_bytes_were_changed_is_refused(uri: str, tmp_path: Path) -> None:
    mlflow.connect(uri).log(record(tmp_path))
    (stored,) = (tmp_path / ".gleaner" / "mlartifacts").rglob("head.safetensors")
    stored.write_bytes(b"something else")
    with pytest.raises(GleanerError, match="not the file that was registered"):
        mlflow.load_champion(NAME, uri)


def test_a_version_names_its_iteration_and_the_run_has_the_rest(uri: str, tmp_path: Path) -> None:
    mlflow.connect(uri).log(record(tmp_path))
    (version,), (child,) = versions(uri), children(uri)
    digest = sha256(tmp_path / "c0ffee-3" / "head" / "head.safetensors")
    mine = {"gleaner.campaign": "c0ffee", "gleaner.iteration": "3", "git.tag": "iter-0003"}
    assert version.tags == {**mine, "gleaner.sha256": digest}
    assert version.run_id == child.info.run_id
    assert {**mine, "git.commit": "abc", "dvc.models/head": "123"}.items() <= child.data.tags.items()


def test_two_campaigns_of_one_name_keep_their_runs_apart(uri: str, tmp_path: Path) -> None:
    mlflow.connect(uri).log(record(tmp_path))
    mlflow.connect(uri).log(record(tmp_path, campaign="f00d"))
    assert len(children(uri)) == 2
    assert len(runs(uri)) == 4


def test_iteration_0_without_a_model_is_logged_without_a_version(uri: str, tmp_path: Path) -> None:
    mlflow.connect(uri).log(replace(record(tmp_path, 0), model=None, champion=False))
    assert versions(uri) == []


def test_a_deleted_experiment_is_brought_back(uri: str, tmp_path: Path) -> None:
    mlflow.connect(uri).log(record(tmp_path, 1))
    client(uri).delete_experiment(client(uri).get_experiment_by_name(NAME).experiment_id)
    mlflow.connect(uri).log(record(tmp_path, 2))
    assert client(uri).get_experiment_by_name(NAME).lifecycle_stage == "active"


def test_the_environment_wins_over_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert mlflow.connect("sqlite:////nowhere/mlflow.db") == mlflow.Mlflow("http://127.0.0.1:9")


def test_a_server_that_is_down_is_one_error_without_the_password(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(GleanerError) as caught:
        mlflow.connect("http://user:hunter2@127.0.0.1:9").log(record(tmp_path))
    assert "hunter2" not in str(caught.value)
    assert "127.0.0.1:9" in str(caught.value)
    assert time.monotonic() - start < 40


def test_connecting_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from tasks.trackers.mlflow import connect; connect('sqlite:///x'); print('mlflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def _log_first(uri: str, folder: str, campaign: str) -> None:
    mlflow.connect(uri).log(record(Path(folder), 0, campaign=campaign))


def test_two_trackers_and_a_ui_may_create_everything_at_once(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    context = get_context("spawn")
    workers = [context.Process(target=_log_first, args=(uri, str(tmp_path), name)) for name in ("aa", "bb")]
    workers.append(context.Process(target=mlflow.prepare, args=(uri,)))
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(children(uri)) == 2


# killed while the database is made ------------------------------------------------------------------------

INSIDE = 900  # statement in the middle of a table's migration: MLflow alone cannot go on from there


def _log_in_a_fork(folder: str, kill_at: int) -> list[str]:
    """Log an iteration into a new database, every SQL statement a checkpoint; returns the checkpoints passed."""
    from sqlalchemy import Engine, event

    passed = Path(folder) / f"{kill_at}.passed"
    pid = os.fork()
    if pid == 0:
        restart()
        os.environ |= {"GLEANER_KILL_AT": str(kill_at), "GLEANER_CHECKPOINTS": str(passed)}
        event.listen(Engine, "after_cursor_execute", lambda *_: checkpoint("statement"))
        mlflow.connect(f"sqlite:///{folder}/{kill_at}/mlflow.db").log(record(Path(folder)))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == (-signal.SIGKILL if kill_at else 0)
    return passed.read_text().split()


def _import_mlflow() -> None:
    """Once, not in each fork."""
    os.environ.update(mlflow.ENVIRONMENT)
    importlib.import_module("alembic.command")
    importlib.import_module("mlflow.store.tracking.sqlalchemy_store")


def _kill_everywhere(folder: str) -> None:
    """Before, at and after the rename: MLflow's migrations, its own first rows, ours."""
    _import_mlflow()
    passed = _log_in_a_fork(folder, 0)
    rename = passed.index("mlflow:create:before") + 1
    before = random.Random(7).sample(range(1, rename), 2)
    after = random.Random(7).sample(range(rename + 2, len(passed) + 1), 2)
    for moment in (*before, INSIDE, rename, rename + 1, *after):
        _log_in_a_fork(folder, moment)


def _kill_in_place(folder: str) -> None:
    """The broken twin: MLflow makes the database where it stays."""
    _import_mlflow()
    mlflow._create = lambda uri: None
    _log_in_a_fork(folder, INSIDE)


def _alone(action: Callable[[str], None], folder: Path) -> None:
    """Run in a process without threads, which may fork."""
    process = get_context("spawn").Process(target=action, args=(str(folder),))
    process.start()
    process.join(300)
    assert process.exitcode == 0


def test_a_kill_while_the_database_is_made_costs_nothing(tmp_path: Path) -> None:
    _alone(_kill_everywhere, tmp_path)
    killed = sorted(path for path in tmp_path.iterdir() if path.name.isdigit() and path.name != "0")
    assert len(killed) == 7
    assert sum((folder / "mlflow.db").exists() for folder in killed) == 3  # rename + 1 and later
    for folder in killed:
        uri = f"sqlite:///{folder}/mlflow.db"
        for iteration in (3, 4):
            mlflow.connect(uri).log(record(tmp_path, iteration))
        assert sorted(run.data.tags["gleaner.iteration"] for run in children(uri)) == ["3", "4"], folder.name
        assert sorted(entry.name for entry in folder.iterdir()) == ["mlartifacts", "mlflow.db"]


def test_a_database_that_mlflow_makes_in_place_is_lost_by_such_a_kill(tmp_path: Path) -> None:
    _alone(_kill_in_place, tmp_path)
    with pytest.raises(GleanerError, match="already exists"):
        mlflow.connect(f"sqlite:///{tmp_path}/{INSIDE}/mlflow.db").log(record(tmp_path))


def test_a_database_that_is_there_is_neither_made_again_nor_changed(uri: str, tmp_path: Path) -> None:
    mlflow.connect(uri).log(record(tmp_path))
    before = (tmp_path / ".gleaner" / "mlflow.db").read_bytes()
    mlflow.prepare(uri)
    mlflow._create(uri)
    assert (tmp_path / ".gleaner" / "mlflow.db").read_bytes() == before


def test_what_the_environment_names_is_left_to_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/theirs/mlflow.db")
    mlflow.prepare(mlflow.address(tmp_path))
    assert not (tmp_path / "theirs").exists()


def test_ui_has_the_database_made_before_a_server_could(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(command: list[str], log: Path) -> None:
        raise GleanerError(f"started with {[entry.name for entry in log.parent.glob('mlflow.db')]}")

    monkeypatch.setattr(ui, "_start", start)
    monkeypatch.setattr(os, "environ", dict(os.environ))  # Prefect's home is set there
    with pytest.raises(GleanerError, match="mlflow.db"):
        ui.serve(tmp_path, 0, 0)
    before = (tmp_path / ".gleaner" / "mlflow.db").read_bytes()
    assert mlflow.connect(tmp_path).log(record(tmp_path))
    assert (tmp_path / ".gleaner" / "mlflow.db").read_bytes() != before


# a workspace that is moved or copied ----------------------------------------------------------------------

PLACES = [("w1", "w10"), ("w10", "w1"), ("w1", "new place, 100%25_ü #1"), ("wört er 7%_", "w1")]


def _campaign_of_two(root: Path, template: Path) -> None:
    """Two iterations, the first the champion, and what only others make: a page's experiment, a model, a trace."""
    from mlflow.entities import TraceInfo, TraceLocation, TraceState
    from mlflow.tracing.client import TracingClient

    (root / ".gleaner").mkdir(parents=True)
    (root / ".gleaner" / "mlflow.db").write_bytes(template.read_bytes())
    for iteration, champion in ((0, True), (1, False)):
        mlflow.connect(root).log(record(root.parent, iteration, champion))
    one = client(mlflow.address(root))
    number = one.create_experiment("from the page", f"{root}/.gleaner/mlartifacts/1")
    one.create_logged_model(number)
    one.log_artifact(one.create_run(number).info.run_id, str(root / ".gleaner" / "mlflow.db"))
    trace = TraceInfo("tr-1", TraceLocation.from_experiment_id(number), 0, TraceState.OK)
    TracingClient(mlflow.address(root)).start_trace(trace)


def _cells(database: Path) -> dict[tuple[str, str], set[str]]:
    """Every text of every table, by table and column."""
    import sqlite3

    cells: dict[tuple[str, str], set[str]] = {}
    connection = sqlite3.connect(database)
    for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        rows = connection.execute(f'SELECT * FROM "{table}"')
        names = [column[0] for column in rows.description]
        for row in rows.fetchall():
            for name, value in zip(names, row, strict=True):
                cells.setdefault((table, name), set()).add(str(value))
    connection.close()
    return cells


def _addresses_below(root: Path) -> set[tuple[str, str]]:
    """The columns that hold an address in the artefacts of `root`."""
    cells = _cells(root / ".gleaner" / "mlflow.db")
    home = root / ".gleaner" / "mlartifacts"
    starts = (home.as_uri(), str(home))
    return {place for place, texts in cells.items() if any(text.startswith(starts) for text in texts)}


def _tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(("name", "to"), PLACES)
@pytest.mark.parametrize("kept", [False, True], ids=["mv", "cp -r"])
def test_a_workspace_goes_on_where_it_was_moved_or_copied_to(
    tmp_path: Path, template: Path, kept: bool, name: str, to: str
) -> None:
    old, new = tmp_path / name, tmp_path / to
    _campaign_of_two(old, template)
    subprocess.run([*(["cp", "-r"] if kept else ["mv"]), str(old), str(new)], check=True)
    if not kept:
        old.write_text("a folder can be made here no more")
    before = _tree(old) if kept else {}

    champion = mlflow.load_champion(NAME, mlflow.address(new))
    assert (champion / "head.safetensors").read_bytes() == head_bytes(tmp_path, 0)
    assert champion.is_relative_to(new)
    run_id = mlflow.connect(new).log(record(tmp_path, 2))
    assert (new / f".gleaner/mlartifacts/{run_id}/artifacts/learning_curve.png").exists()
    champion = mlflow.load_champion(NAME, mlflow.address(new))
    assert (champion / "head.safetensors").read_bytes() == head_bytes(tmp_path, 2)
    for run in children(mlflow.address(new)):
        assert client(mlflow.address(new)).download_artifacts(run.info.run_id, "evaluation/metrics.json")

    assert (_tree(old) == before) if kept else old.is_file()
    assert _addresses_below(new) == set(_addresses.COLUMNS)
    old_addresses = (old.as_uri() + "/.gleaner", f"{old}/.gleaner")
    texts = set().union(*_cells(new / ".gleaner" / "mlflow.db").values())
    assert not [text for text in texts if any(address in text for address in old_addresses)]


def test_a_copy_of_a_copy_and_its_original_each_stay_at_home(tmp_path: Path, template: Path) -> None:
    roots = [tmp_path / name for name in ("w", "w2", "w22")]
    _campaign_of_two(roots[0], template)
    for old, new in itertools.pairwise(roots):
        subprocess.run(["cp", "-r", str(old), str(new)], check=True)
        mlflow.prepare(mlflow.address(new))
    for number, root in enumerate(roots, 2):
        mlflow.connect(root).log(record(tmp_path, number))
        assert _addresses_below(root) == set(_addresses.COLUMNS)
        assert len(list(root.rglob("learning_curve.png"))) == 3


def test_a_database_at_home_is_not_written_to(tmp_path: Path, template: Path) -> None:
    from sqlalchemy import Engine, event

    _campaign_of_two(tmp_path / "w ü", template)
    database = tmp_path / "w ü" / ".gleaner" / "mlflow.db"
    statements: list[str] = []
    listen = (Engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    before = (database.read_bytes(), database.stat().st_mtime_ns)
    event.listen(*listen)
    try:
        mlflow.prepare(mlflow.address(tmp_path / "w ü"))
    finally:
        event.remove(*listen)
    assert (database.read_bytes(), database.stat().st_mtime_ns) == before
    assert {text.split()[0] for text in statements} == {"PRAGMA", "SELECT"}
    assert len(statements) < 4


def test_all_addresses_follow_or_none(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _campaign_of_two(tmp_path / "w", template)
    (tmp_path / "w").rename(tmp_path / "moved")
    before = (tmp_path / "moved/.gleaner/mlflow.db").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(_addresses, "COLUMNS", (*_addresses.COLUMNS, ("no_such_table", "value")))
        with pytest.raises(GleanerError, match="no_such_table"):
            mlflow.prepare(mlflow.address(tmp_path / "moved"))
    assert (tmp_path / "moved/.gleaner/mlflow.db").read_bytes() == before
    mlflow.prepare(mlflow.address(tmp_path / "moved"))
    assert _addresses_below(tmp_path / "moved") == set(_addresses.COLUMNS)


def test_only_artefacts_of_a_workspace_follow(tmp_path: Path, uri: str) -> None:
    elsewhere = [
        "s3://b/.gleaner/mlartifacts",
        "file:///a/.gleaner/mlartifacts2",
        "/data/mlruns/7",
        "/a/x.gleaner/mlartifacts",
    ]
    one = client(uri)
    for number, address in enumerate(elsewhere):
        one.create_experiment(f"experiment {number}", address)
    mlflow.prepare(uri)
    assert set(elsewhere) <= {found.artifact_location for found in one.search_experiments()}


def test_a_database_that_the_environment_names_does_not_follow(
    tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _campaign_of_two(tmp_path / "w", template)
    (tmp_path / "w").rename(tmp_path / "moved")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/moved/.gleaner/mlflow.db")
    mlflow.prepare(mlflow.address(tmp_path / "moved"))
    assert _addresses_below(tmp_path / "moved") == set()


def test_an_empty_file_is_left_to_mlflow(tmp_path: Path) -> None:
    (tmp_path / ".gleaner").mkdir()
    (tmp_path / ".gleaner" / "mlflow.db").touch()
    mlflow.prepare(mlflow.address(tmp_path))
    assert mlflow.connect(tmp_path).log(record(tmp_path))


# the outbox -----------------------------------------------------------------------------------------------


def test_an_iteration_that_sends_nothing_shows_no_sheet_of_its_batch(tmp_path: Path) -> None:
    from tests.quick import image_folder, make_workspace, tick

    root = make_workspace(tmp_path / "quick", image_folder(tmp_path / "images"), **{"stop.labels": 35})
    while "iteration" in tick(root):
        pass
    *sent, last = sorted((root / tracking.FOLDER).iterdir())
    assert sent
    assert all((folder / "files/report/batch.png").exists() for folder in sent)
    assert sorted(path.name for path in (last / "files/report").iterdir()) == ["learning_curve.png", "report.md"]


# a real server --------------------------------------------------------------------------------------------


def test_a_real_server_takes_it_all_and_gives_the_champion_back(server: str, tmp_path: Path) -> None:
    tracker = mlflow.connect(server)
    for iteration, champion in ((0, True), (1, True), (2, False)):
        link = tracker.log(record(tmp_path, iteration, champion))
        assert tracker.log(record(tmp_path, iteration, champion)) == link
    assert link.startswith(f"{server}/#/experiments/")
    assert len(children(server)) == 3
    assert [point.step for point in client(server).get_metric_history(parent(server).info.run_id, "accuracy")] == [
        0,
        1,
        2,
    ]
    folder = mlflow.load_champion(NAME, server)
    assert sha256(folder / "head.safetensors") == sha256(tmp_path / "c0ffee-1" / "head" / "head.safetensors")
    assert json.loads((folder / "head.json").read_text()) == {"network": "linear"}


def test_nothing_is_pickled(uri: str, tmp_path: Path) -> None:
    mlflow.connect(uri).log(record(tmp_path))
    stored = [path for path in (tmp_path / ".gleaner" / "mlartifacts").rglob("*") if path.is_file()]
    assert {path.suffix for path in stored} == {".png", ".json", ".safetensors"}
