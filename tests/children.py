"""Runs an action on a workspace in a forked process, which may be killed at a checkpoint, fail, or hold a twin.

    ended = run_in_child(tick, root, kill_at=7)   ->   Ended(killed=True, error="", text="", passed=[...])

A twin is a function that breaks the product on purpose, in that process only.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.checkpoint import restart

Action = Callable[[Path], object]


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    killed: bool
    error: str  # the exception's class, "" when there was none
    text: str  # its message, or what the action returned
    kinds: tuple[str, ...]  # the exception's class and its bases
    passed: list[str]  # checkpoints, in order


def run_in_child(
    action: Action, root: Path, *, kill_at: int = 0, twin: Callable[[], None] | None = None, barrier: Any = None
) -> Ended:
    """Run `action(root)` in a fresh process and wait for it."""
    return start(action, root, kill_at=kill_at, twin=twin, barrier=barrier)()


def start(
    action: Action, root: Path, *, kill_at: int = 0, twin: Callable[[], None] | None = None, barrier: Any = None
) -> Callable[[], Ended]:
    """Start `action(root)` in a fresh process; the result waits for its end."""
    notes = Path(tempfile.mkdtemp())
    process = context().Process(target=_child, args=(action, str(root), kill_at, twin, barrier, str(notes)))
    process.start()
    return lambda: _end(process, notes)


def context() -> Any:
    """Processes forked from a server that has everything imported."""
    found: Any = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["tests.quick"])
    return found


def _child(action: Action, root: str, kill_at: int, twin: Callable[[], None] | None, barrier: Any, notes: str) -> None:
    restart()
    os.environ["GLEANER_KILL_AT"] = str(kill_at)
    os.environ["GLEANER_CHECKPOINTS"] = str(Path(notes) / "passed")
    if twin is not None:
        twin()
    if barrier is not None:
        barrier.wait(60)
    try:
        value = {"error": "", "text": str(action(Path(root))), "kinds": []}
    except Exception as error:  # noqa: BLE001 - the parent judges it
        value = {
            "error": type(error).__name__,
            "text": str(error),
            "kinds": [kind.__name__ for kind in type(error).__mro__],
        }
    (Path(notes) / "ended").write_text(json.dumps(value))


def _end(process: Any, notes: Path) -> Ended:
    process.join(180)
    log, result = notes / "passed", notes / "ended"
    passed = log.read_text().split("\n")[:-1] if log.exists() else []
    if process.exitcode == -signal.SIGKILL:
        return Ended(True, "", "", (), passed)
    assert process.exitcode == 0, f"exit {process.exitcode} after {passed[-3:]}"
    value = json.loads(result.read_text())
    return Ended(False, value["error"], value["text"], tuple(value["kinds"]), passed)
