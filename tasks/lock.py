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
from functools import cache
from pathlib import Path
from typing import Any

from tasks.errors import Busy

LOCK = ".gleaner/lock"
_open: set[int] = set()  # this process's descriptors of lock files


@contextmanager
def campaign_lock(root: Path, purpose: str) -> Iterator[None]:
    """Hold the lock for the length of the block. Raises Busy when another process has it."""
    path = root / LOCK
    path.parent.mkdir(mode=0o700, exist_ok=True)
    _keep_from_forked_children()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    _open.add(descriptor)
    try:
        _take(descriptor, root)
        holder = {"pid": os.getpid(), "purpose": purpose, "since": datetime.now(UTC).isoformat(timespec="seconds")}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield
    finally:
        if descriptor in _open:  # not in a forked child
            _open.discard(descriptor)
            os.close(descriptor)


@cache
def _keep_from_forked_children() -> None:
    """A forked child shares the lock and would keep it after this process is gone: it closes its copy at once."""
    os.register_at_fork(after_in_child=_close_copies)


def _close_copies() -> None:
    while _open:
        os.close(_open.pop())


def is_locked(root: Path) -> bool:
    """Whether another process is at work on the campaign now."""
    try:
        descriptor = os.open(root / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def last_holder(root: Path) -> dict[str, Any] | None:
    """Who took the lock last (pid, purpose, since), perhaps long gone; None when nobody did or the note is damaged."""
    try:
        holder = json.loads((root / LOCK).read_bytes())
        datetime.fromisoformat(holder["since"])
        return {name: holder[name] for name in ("pid", "purpose", "since")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _take(descriptor: int, root: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy(f"{root} is in use: {_holder(descriptor)}. Run the command again when that has ended.") from None


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"`{holder['purpose']}`, process {holder['pid']}, since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process that has just started"
