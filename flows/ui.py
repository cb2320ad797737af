"""`gleaner ui`: MLflow and Prefect over a workspace's own databases, on loopback only, until Ctrl-C."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

from flows import settings
from tasks.errors import GleanerError

HOST = "127.0.0.1"
READY_SECONDS = 180


def serve(root: Path, mlflow_port: int, prefect_port: int) -> None:
    """Start both servers, print where they are, and wait. Raises GleanerError when one of them does not come up."""
    settings.prepare(root)
    folder = root.resolve() / ".gleaner"
    folder.mkdir(exist_ok=True, mode=0o700)
    ports = [_free(mlflow_port), _free(prefect_port)]
    commands = [_mlflow(folder, ports[0]), _prefect(ports[1])]
    logs = [folder / "mlflow-server.log", folder / "prefect-server.log"]
    health = [f"http://{HOST}:{ports[0]}/health", f"http://{HOST}:{ports[1]}/api/health"]
    os.environ["PREFECT_SERVER_UI_API_URL"] = f"http://{HOST}:{ports[1]}/api"  # the page asks there, not at 4200
    print("starting both servers (some 20 seconds) ...", flush=True)
    servers = [_start(command, log) for command, log in zip(commands, logs, strict=True)]
    try:
        for server, url, log in zip(servers, health, logs, strict=True):
            _wait(server, url, log)
        print(f"MLflow   http://{HOST}:{ports[0]}   (experiments, plots, batches, model registry)")
        print(f"Prefect  http://{HOST}:{ports[1]}   (runs, logs, artifacts)")
        print("Ctrl-C ends both.", flush=True)
        _until_interrupted(servers)
    finally:
        _stop(servers)


def _mlflow(folder: Path, port: int) -> list[str]:
    uri = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    artifacts = f"{folder}/mlartifacts"
    arguments = [
        "server",
        "--host",
        HOST,
        "--port",
        str(port),
        "--backend-store-uri",
        uri,
        "--default-artifact-root",
        artifacts,
    ]
    return [sys.executable, "-m", "mlflow", *arguments, "--workers", "1"]


def _prefect(port: int) -> list[str]:
    return [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]


def _free(port: int) -> int:
    """`port`, or a free one when it is taken."""
    for wanted in (port, 0):
        with socket.socket() as probe:
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


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if httpx.get(url, timeout=5.0).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.3)
    raise GleanerError(f"a server did not start. Its log: {log}")


def _until_interrupted(servers: list[subprocess.Popen[bytes]]) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        while all(server.poll() is None for server in servers):
            time.sleep(0.5)
    except KeyboardInterrupt:
        print()


def _stop(servers: list[subprocess.Popen[bytes]]) -> None:
    for server in servers:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
    for server in servers:
        try:
            server.wait(timeout=15)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
