"""Prefect's environment for a workspace. Call before Prefect is imported: it reads these once."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tasks.stage import TICK, tick_lives, tick_mark
from tasks.store import Store
from tasks.versions import output_to

DEFAULTS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",  # the default of 20 is too short on a loaded machine
    "PREFECT_CLIENT_MAX_RETRIES": "5",  # a SQLite server answers 503 while it is locked; a minute, then it is down
    "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.5",
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",  # one authority for what is done already: DVC
}
#: any of these means that the user has a Prefect of their own; then theirs is used
OWN = ("PREFECT_API_URL", "PREFECT_HOME", "PREFECT_PROFILE")


#: where `gleaner ui` serves the workspace's own Prefect: its API and the mark of the process that ends it
SERVER = ".gleaner/prefect-server.json"


def prepare(root: Path) -> None:
    """Point Prefect at the workspace's own database unless the environment names another; mark what this tick starts."""
    point(root)
    os.environ[TICK] = tick_mark(root)


def point(root: Path) -> None:
    """Point Prefect at the workspace's own server where `gleaner ui` runs one, else at its database."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    if not any(name in os.environ for name in OWN):
        home = root.resolve() / ".gleaner" / "prefect"
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.environ["PREFECT_HOME"] = str(home)
        if url := own_server(root):
            os.environ["PREFECT_API_URL"] = url


def announce_server(root: Path, url: str) -> None:
    """Say that this process serves the workspace's Prefect, for as long as it lives."""
    Store(root).write_json(SERVER, {"api": url, "mark": tick_mark(root)})


def own_server(root: Path) -> str | None:
    """The API that a living process announced for this very workspace (a copy's file is not), None without one."""
    try:
        said = json.loads((root / SERVER).read_text(encoding="utf-8"))
        mark, url = str(said["mark"]), str(said["api"])
        lives = mark.endswith(f" {root.resolve()}") and tick_lives(mark)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return url if lives else None


def end_orphans(root: Path) -> list[int]:
    """End what ticks of this workspace that were killed have left (an ephemeral server lives for ever). Returns pids."""
    return _end(root, lambda mark: not tick_lives(mark))


def end_own(root: Path) -> list[int]:
    """End what this process started for its tick, stages and server. Returns pids."""
    return _end(root, lambda mark: mark == tick_mark(root))


def _end(root: Path, of: Callable[[str], bool]) -> list[int]:
    """End processes whose environment names a tick of this workspace that `of` is true of."""
    start, end = f"{TICK}=".encode(), f" {root.resolve()}".encode()
    ended = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # gone, or somebody else's
            continue
        marks = [entry for entry in environment if entry.startswith(start) and entry.endswith(end)]
        if marks and of(os.fsdecode(marks[0][len(start) :])) and int(folder.name) != os.getpid():
            with suppress(ProcessLookupError):  # the same signal may have ended it meanwhile
                os.kill(int(folder.name), signal.SIGTERM)
                ended.append(int(folder.name))
    return ended


def quiet_console() -> None:
    """Keep Prefect's log off the terminal (it goes to the API and the UI); errors are shown once, by the CLI."""
    import logging

    from prefect.logging.configuration import setup_logging
    from prefect.logging.handlers import PrefectConsoleHandler

    setup_logging()
    for name in ("prefect", "prefect.flow_runs", "prefect.task_runs", "root"):
        for handler in logging.getLogger(None if name == "root" else name).handlers:
            if isinstance(handler, PrefectConsoleHandler):
                handler.setLevel(logging.CRITICAL + 1)


def unreachable(root: Path) -> str | None:
    """Why Prefect's API cannot be used (its server is down, or the ephemeral one does not start), None when it can.

    The ephemeral server starts here, writing to a log of its own: it must not hold a pipe open after a killed tick.
    """
    import httpx
    from prefect.client.orchestration import get_client

    url = os.environ.get("PREFECT_API_URL")
    try:
        if url:  # a short look first: Prefect's own client would wait a minute for a closed port
            httpx.get(f"{url.rstrip('/')}/health", timeout=5.0).raise_for_status()
            return None
        with output_to(root / ".gleaner" / "prefect.log"), get_client(sync_client=True) as client:
            client.hello()
    except (httpx.HTTPError, RuntimeError, OSError) as error:
        return f"{url or 'its own server'} does not answer ({type(error).__name__}: {error})"
    return None
