"""Every tick's heartbeat: when the newest one began and ended and how, in `.gleaner/heartbeat.json`.

with beating(root) as tell:
    ...
    tell("idle", "waiting for annotators", None)      # one that raises has failed, and says so

A tick that is told who holds the lock leaves nothing: that other one is the tick. One that is killed or hangs leaves
nothing either: its silence is what the watchdog hears.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from tasks.campaign import runs_here
from tasks.errors import Busy, GleanerError

HEARTBEAT = ".gleaner/heartbeat.json"
Tell = Callable[[str, str, int | None], None]


@dataclass(frozen=True)
class Beat:
    """The newest tick that ended, and since when the campaign is well."""

    started: str  # UTC, ISO 8601, as all times here
    finished: str
    outcome: str  # "idle", "iteration" or "failed"
    why: str  # what it said; of a failed one the error's class
    well: str = ""  # when the newest tick that did not fail ended, "" when none did
    iteration: int | None = None  # the newest one that a tick closed
    closed: str = ""  # and when


def now() -> str:
    """Now, in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def age(then: str, at: str) -> float:
    """Seconds from `then` to `at`; negative when `then` is later."""
    return (datetime.fromisoformat(at) - datetime.fromisoformat(then)).total_seconds()


@contextmanager
def beating(root: Path) -> Iterator[Tell]:
    """Record the tick of the block: what it tells at its end, or that it raised."""
    started, said = now(), Beat("", "", "idle", "")

    def tell(outcome: str, why: str, iteration: int | None) -> None:
        nonlocal said
        said = Beat(started, now(), outcome, why, iteration=iteration)

    try:
        yield tell
    except Busy:
        raise
    except Exception as error:
        tell("failed", type(error).__name__, None)
        raise
    finally:
        if said.finished:
            _keep(root, said)


def read(root: Path) -> Beat | None:
    """The newest heartbeat; None when there is none, or one that cannot be read (the next tick writes it again)."""
    try:
        beat = Beat(**json.loads((root / HEARTBEAT).read_text(encoding="utf-8")))
        for then in filter(None, (beat.started, beat.finished, beat.well, beat.closed)):
            age(then, now())
    except (OSError, ValueError, TypeError):
        return None
    return beat


def _keep(root: Path, beat: Beat) -> None:
    """Write the beat over the one before. A tick does not fail for it: a heart that is not heard is the watchdog's."""
    if not runs_here(root):
        return
    try:
        _replace(root, beat)
    except (OSError, GleanerError) as error:
        logging.getLogger("gleaner.tick").warning("%s cannot be written: %s", HEARTBEAT, error)


def _replace(root: Path, beat: Beat) -> None:
    """Atomically, and with a lock of its own: ticks that fail before they have the campaign's lock come here, too."""
    path = root / HEARTBEAT
    descriptor = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        before = read(root) or Beat("", "", "", "")
        well = before.well if beat.outcome == "failed" else beat.finished
        kept = beat.iteration is None
        number, closed = (before.iteration, before.closed) if kept else (beat.iteration, beat.finished)
        whole = replace(beat, well=well, iteration=number, closed=closed)
        temporary = path.with_name(f".{path.name}.new")  # its lock is held: nobody else writes it, nobody clears it
        temporary.write_text(json.dumps(asdict(whole), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        os.close(descriptor)
