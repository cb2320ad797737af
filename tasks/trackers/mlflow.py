"""MLflow: an experiment a campaign name, a run a campaign, below it a run an iteration, a version a model.

    connect("sqlite:////srv/digits/.gleaner/mlflow.db").log(record)
    # MLFLOW_TRACKING_URI, where set, wins over the address given here

    experiment "digits"
    └── run "digits 3f2a…"            learning curves: main metrics, step = iteration
        ├── run "iteration 0"         params, metrics, plots, model/head.safetensors
        └── run "iteration 1"  ────►  registered model "digits", version 2, alias champion

Logging an iteration again changes nothing: a run counts once its tag gleaner.complete is set, which is done last;
what was left half-done is deleted and logged anew. A workspace's own database appears whole, too, and its artefact
addresses follow the workspace when that is moved or copied.
"""

from __future__ import annotations

import fcntl
import math
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from tasks.checkpoint import checkpoint
from tasks.errors import GleanerError
from tasks.store import flush_folder, remove_folder, sha256
from tasks.trackers import IterationRecord, Tracker
from tasks.trackers._addresses import follow
from tasks.trackers._registry import ALIAS, CAMPAIGN, ITERATION, model_name, register

#: set before MLflow is imported, unless the user has set them: no telemetry, and a dead server is noticed in seconds
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
#: the metrics whose curve over the iterations is shown on the campaign's run
MAIN = (
    *("accuracy", "accuracy_low", "accuracy_high", "macro_f1", "nll", "ece"),
    *("labels_total", "training_labels", "champion"),
)
COMPLETE, ROLE = "gleaner.complete", "gleaner.role"
PARENT_RUN = "mlflow.parentRunId"
BATCH = 100  # params or tags that the server takes at once
LONGEST = 5_000  # characters of a param or tag


@dataclass(frozen=True)
class Mlflow:
    """A tracking address. Nothing is contacted or imported before `log`."""

    uri: str

    def log(self, record: IterationRecord) -> str:
        """Show one iteration; returns its link, or its run id where there is no server.

        Raises GleanerError when the tracker cannot be reached or refuses; calling again finishes the work.
        """
        with _session(self.uri) as client:
            experiment = _experiment(client, self.uri, record.name)
            parent = _parent(client, experiment, record)
            found = _iteration_run(client, experiment, record)
            run_id = found or _log_iteration(client, experiment, parent, record)
        return _link(self.uri, experiment, run_id)


def connect(default: str | Path) -> Tracker:
    """The tracker at `address(default)`."""
    return Mlflow(address(default))


def address(default: str | Path) -> str:
    """MLFLOW_TRACKING_URI, else `default`: a URI, or a workspace whose own SQLite file is meant."""
    own = default if isinstance(default, str) else f"sqlite:///{default.resolve()}/.gleaner/mlflow.db"
    return os.environ.get("MLFLOW_TRACKING_URI") or own


def prepare(uri: str) -> None:
    """Make a workspace's own database, or have it follow its workspace, before a server works on it."""
    if _own(uri) is not None:
        with _reached(uri):
            pass


def load_champion(name: str, uri: str) -> Path:
    """Fetch the champion of campaign `name`; returns the folder with head.safetensors, its SHA-256 verified.

    Raises GleanerError when there is none, or when its bytes are not those that were registered.
    """
    with _session(uri) as client:
        from mlflow.artifacts import download_artifacts

        version = client.get_model_version_by_alias(model_name(name), ALIAS)
        folder = Path(download_artifacts(artifact_uri=version.source, tracking_uri=uri))
    if sha256(folder / "head.safetensors") != version.tags["gleaner.sha256"]:
        raise GleanerError(f"{folder}: head.safetensors is not the file that was registered as {name} {ALIAS}.")
    return folder


@contextmanager
def _session(uri: str) -> Iterator[Any]:
    """A client of `uri`."""
    with _reached(uri):
        from mlflow import MlflowClient

        yield MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def _reached(uri: str) -> Iterator[None]:
    """`uri` in one process at a time where it is SQLite, whose creation races; what MLflow raises becomes one error."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with _alone(uri):
            _create(uri)
            _follow(uri)
            yield
    except (MlflowException, requests.RequestException, SQLAlchemyError, OSError) as error:
        reason = f"{type(error).__name__}: {error}".replace(uri, public(uri)).split("\n")[0][:300]
        raise GleanerError(f"MLflow at {public(uri)}: {reason}. The iteration is safe; log it again later.") from None


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    folder = _sqlite_folder(uri)
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _create(uri: str) -> None:
    """Let MLflow make a workspace's own database beside its place, then rename it. Call it alone.

    MLflow's 1,700 statements are no transaction: after a kill amidst them it can neither go on nor begin again.
    """
    database = _own(uri)
    if database is None:
        return
    building = database.with_name(f".{database.name}.new")  # a folder: SQLite's journal is beside the file
    remove_folder(building)
    if database.exists():
        return
    building.mkdir()
    _initialize(building / database.name)
    checkpoint("mlflow:create:before")
    (building / database.name).rename(database)
    flush_folder(database.parent)
    checkpoint("mlflow:create:after")
    remove_folder(building)


def _initialize(file: Path) -> None:
    """All tables, tracking and registry, at the newest revision; closed and on disk."""
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine
    from sqlalchemy import event

    engine = create_sqlalchemy_engine(f"sqlite:///{file}")
    # each statement flushed is most of the time on a slow disk; the whole is flushed below, before anybody reads it
    event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
    _initialize_tables(engine)
    engine.dispose()
    with open(file, "rb") as handle:
        os.fsync(handle.fileno())


def _follow(uri: str) -> None:
    """Have a workspace's own database follow the workspace. Call it alone."""
    database = _own(uri)
    if database is not None and database.parent.name == ".gleaner":
        follow(uri, database.resolve().parent / "mlartifacts")


def _own(uri: str) -> Path | None:
    """The file of a SQLite database that is ours to make; None for what the environment names, or one with options."""
    ours = uri.startswith("sqlite:////") and "?" not in uri and uri != os.environ.get("MLFLOW_TRACKING_URI")
    return Path(uri.removeprefix("sqlite:///")) if ours else None


def _sqlite_folder(uri: str) -> Path | None:
    """The folder of a SQLite database, None for a server."""
    return Path(uri.removeprefix("sqlite:///")).resolve().parent if uri.startswith("sqlite:///") else None


def public(uri: str) -> str:
    """The address without user name and password."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


def _link(uri: str, experiment: str, run_id: str) -> str:
    return f"{public(uri).rstrip('/')}/#/experiments/{experiment}/runs/{run_id}" if uri.startswith("http") else run_id


def _experiment(client: Any, uri: str, name: str) -> str:
    """Id of the experiment `name`; created, restored, or found after somebody else created it meanwhile."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        folder = _sqlite_folder(uri)
        try:
            return str(client.create_experiment(name, (folder / "mlartifacts").as_uri() if folder else None))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _parent(client: Any, experiment: str, record: IterationRecord) -> str:
    tags = {CAMPAIGN: record.campaign, ROLE: "campaign"}
    runs = _search(client, experiment, tags)
    if runs:
        return str(runs[0].info.run_id)
    run = client.create_run(experiment, tags=tags, run_name=record.campaign)
    return str(run.info.run_id)


def _search(client: Any, experiment: str, tags: dict[str, str]) -> list[Any]:
    text = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    return list(client.search_runs([experiment], text, order_by=["attributes.start_time ASC"]))


def _iteration_run(client: Any, experiment: str, record: IterationRecord) -> str | None:
    """Id of the complete run of this iteration; incomplete ones are deleted."""
    runs = _search(client, experiment, {CAMPAIGN: record.campaign, ITERATION: str(record.iteration)})
    complete = [run.info.run_id for run in runs if run.data.tags.get(COMPLETE) == "true"]
    if complete:
        return str(complete[0])
    for run in runs:
        client.delete_run(run.info.run_id)
    return None


def _log_iteration(client: Any, experiment: str, parent: str, record: IterationRecord) -> str:
    tags = {CAMPAIGN: record.campaign, ITERATION: str(record.iteration), ROLE: "iteration", PARENT_RUN: parent}
    run = client.create_run(experiment, tags=tags, run_name=f"iteration {record.iteration}")
    run_id = str(run.info.run_id)
    _log_values(client, run_id, record)
    for path in record.artifacts:
        if path.exists():
            send = client.log_artifacts if path.is_dir() else client.log_artifact
            send(run_id, str(path), *([path.name] if path.is_dir() else []))
    if record.model is not None:
        client.log_artifacts(run_id, str(record.model), "model")
        register(client, run, record)
    _log_curve(client, parent, record)
    client.set_terminated(run_id)
    client.set_tag(run_id, COMPLETE, "true")
    return run_id


def _log_values(client: Any, run_id: str, record: IterationRecord) -> None:
    from mlflow.entities import Param, RunTag

    params = [Param(_key(k), v[:LONGEST]) for k, v in sorted(record.params.items())]
    tags = [RunTag(_key(k), v[:LONGEST]) for k, v in sorted(record.tags.items())]
    metrics = _metrics(record.metrics, record.iteration)
    for start in range(0, max(len(params), len(tags), len(metrics), 1), BATCH):
        part = slice(start, start + BATCH)
        client.log_batch(run_id, metrics[part], params[part], tags[part])


def _metrics(values: dict[str, float], step: int) -> list[Any]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(_key(k), float(v), now, step) for k, v in sorted(values.items()) if math.isfinite(v)]


def _key(name: str) -> str:
    """A name that MLflow takes: others' characters (class names) become _."""
    return re.sub(r"[^\w.\- /]", "_", name)[:250]


def _log_curve(client: Any, parent: str, record: IterationRecord) -> None:
    """Add this iteration's point to the campaign's curves, once: `iteration` is logged with it and tells."""
    if any(point.step == record.iteration for point in client.get_metric_history(parent, "iteration")):
        return
    values = {key: record.metrics[key] for key in MAIN if key in record.metrics}
    client.log_batch(parent, _metrics({**values, "iteration": float(record.iteration)}, record.iteration))
    client.set_terminated(parent)
