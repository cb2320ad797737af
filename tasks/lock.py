"""The campaign's lock: an OS lock (flock) held by the process that works, gone when that process is gone.

    with campaign_lock(root, "tick"):
        ...

A second process is told who holds it and since when; it never waits and never breaks the lock.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from tasks.errors import Busy

LOCK = ".gleaner/lock"


@contextmanager
def campaign_lock(root: Path, purpose: str) -> Iterator[None]:
    """Hold the lock for the length of the block. Raises Busy when another process has it."""
    path = root / LOCK
    path.parent.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _take(descriptor, root)
        holder = {"pid": os.getpid(), "purpose": purpose, "since": datetime.now(UTC).isoformat(timespec="seconds")}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, root: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy(f"{root} is in use: {_holder(descriptor)}. Run the command again when that has ended.") from None


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"`{holder['purpose']}`, process {holder['pid']}, since {holder['since']}"
    except (ValueError, KeyError):
        return "another process that has just started"
