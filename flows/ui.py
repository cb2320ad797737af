"""`gleaner ui`: MLflow and Prefect over a workspace's own databases, on loopback only, until Ctrl-C."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from flows import settings
from tasks.errors import GleanerError
from tasks.trackers.mlflow import address, prepare, public

HOST = "127.0.0.1"
READY_SECONDS = 180


@dataclass(frozen=True)
class Server:
    """A server to start."""

    command: list[str]
    log: Path
    health: str  # URL that answers 200 when it is up
    line: str  # for people
    api: str = ""  # of Prefect's, for `gleaner deploy` and `gleaner worker`


def serve(root: Path, mlflow_port: int, prefect_port: int) -> None:
    """Start both servers, print where they are, and wait. Raises GleanerError when one of them does not come up."""
    settings.prepare(root)
    folder = root.resolve() / ".gleaner"
    folder.mkdir(exist_ok=True, mode=0o700)
    uri = address(root)
    here, there = _ours(folder, uri, mlflow_port, prefect_port)
    if here:
        print("starting (some 20 seconds) ...", flush=True)
    prepare(uri)
    servers = [_start(server.command, server.log) for server in here]
    try:
        for process, server in zip(servers, here, strict=True):
            wait_for(process, server.health, server.log)
            if server.api:
                settings.announce_server(root, server.api)
        for line in [*(server.line for server in here), *there]:
            print(line)
        for line in _pages(here):
            print(line)
        if servers:
            print("Ctrl-C ends what was started.", flush=True)
            until_interrupted(servers)
    finally:
        stop(servers)


def _ours(folder: Path, uri: str, mlflow_port: int, prefect_port: int) -> tuple[list[Server], list[str]]:
    """Servers to start, and lines about those that the environment says run elsewhere."""
    here, there = [], []
    if uri.startswith(("http://", "https://")):
        there.append(f"MLflow   {public(uri)}   (MLFLOW_TRACKING_URI: it runs there)")
    else:
        port = free_port(mlflow_port)
        line = f"MLflow   http://{HOST}:{port}   (experiments, plots, batches, model registry)"
        health = f"http://{HOST}:{port}/health"
        here.append(Server(_mlflow(folder, uri, port), folder / "mlflow-server.log", health, line))
    url = os.environ.get("PREFECT_API_URL")
    if url:
        there.append(f"Prefect  {public(url)}   (PREFECT_API_URL: it runs there)")
    else:
        port = free_port(prefect_port)
        os.environ["PREFECT_SERVER_UI_API_URL"] = f"http://{HOST}:{port}/api"  # the page asks there, not at 4200
        line = f"Prefect  http://{HOST}:{port}   (runs, logs, artifacts)"
        api = f"http://{HOST}:{port}/api"
        here.append(Server(_prefect(port), folder / "prefect-server.log", f"{api}/health", line, api))
    return here, there


def _pages(here: list[Server]) -> list[str]:
    """Where MLflow shows the campaigns: its own first page is about something else."""
    lines = []
    for url in [server.health.removesuffix("/health") for server in here if "/api/" not in server.health]:
        found = httpx.post(f"{url}/api/2.0/mlflow/experiments/search", json={"max_results": 50}, timeout=30.0).json()
        for experiment in found.get("experiments", ()):
            page = f"{url}/#/experiments/{experiment['experiment_id']}/runs"
            lines += [f"         {page}   ({experiment['name']})"] * (experiment["name"] != "Default")
        lines.append(f"         {url}/#/models   (registered models and their champion)")
    return lines


def _mlflow(folder: Path, uri: str, port: int) -> list[str]:
    os.environ["MLFLOW_BACKEND_STORE_URI"] = uri  # it may hold a password, and arguments are public
    where = ["--host", HOST, "--port", str(port), "--default-artifact-root", f"{folder}/mlartifacts"]
    return [sys.executable, "-m", "mlflow", "server", *where, "--workers", "1"]


def _prefect(port: int) -> list[str]:
    return [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]


def free_port(port: int) -> int:
    """`port`, or a free one when it is taken."""
    for wanted in (port, 0):
        with socket.socket() as probe:
            probe.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # as servers do: one that just ended holds nothing
            try:
                probe.bind((HOST, wanted))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise GleanerError(f"no free port on {HOST}.")


def _start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with open(log, "wb") as handle:
        return subprocess.Popen(
            command, stdout=handle, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )


def wait_for(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Return when `url` answers 200. Raises GleanerError with the log's place when the server ends or takes too long."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if httpx.get(url, timeout=5.0).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.3)
    raise GleanerError(f"a server did not start. Its log: {log}")


def until_interrupted(servers: list[subprocess.Popen[bytes]]) -> None:
    """Wait for Ctrl-C, SIGTERM or the end of a server."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        while all(server.poll() is None for server in servers):
            time.sleep(0.5)
    except KeyboardInterrupt:
        print()


def stop(servers: list[subprocess.Popen[bytes]]) -> None:
    """End servers with all they started."""
    for server in servers:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
    for server in servers:
        try:
            server.wait(timeout=15)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
