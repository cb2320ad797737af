"""What a killed process leaves behind: half-written files of ours, lock files of git and DVC. Every start clears them.

    with campaign_lock(root, "tick"):
        clear(root)

A lock file says nothing about whether its owner lives (pids are used again), so the processes themselves are looked at.
"""

from __future__ import annotations

import json
from pathlib import Path

from tasks.errors import Busy
from tasks.store import TEMPORARY, remove_folder

#: lock files of a program
STALE = {
    "git": (".git/*.lock", ".git/refs/**/*.lock"),
    "dvc": (".dvc/tmp/rwlock", ".dvc/tmp/rwlock.lock", ".dvc/tmp/lock"),
}


def clear(root: Path) -> None:
    """Remove all of it. Call only while holding the campaign's lock.

    Raises Busy when a git or DVC that somebody started by hand is at work in the workspace.
    """
    _clear_locks(root)
    for path in unfinished(root):
        remove_folder(path)


def _clear_locks(root: Path) -> None:
    for program, patterns in STALE.items():
        found = [path for pattern in patterns for path in root.glob(pattern)]
        holder = _at_work(root, program) if found else None
        if holder is not None:
            raise Busy(f"{root} is in use: {holder}. Run the command again when that has ended.")
        for path in found:
            path.unlink(missing_ok=True)


def stale_locks(root: Path) -> list[Path]:
    """Lock files that would stop git or DVC (after each command DVC leaves others, which hold nothing)."""
    rwlock = root / ".dvc/tmp/rwlock"
    found = [path for pattern in STALE["git"] for path in root.glob(pattern)]
    return sorted(found) + [rwlock] * (rwlock.exists() and _held(rwlock))


def _held(rwlock: Path) -> bool:
    try:
        return any(json.loads(rwlock.read_text(encoding="utf-8") or "{}").values())
    except (OSError, ValueError, AttributeError):
        return True


def _at_work(root: Path, program: str) -> str | None:
    """A living process of a program in the workspace (a pid in a lock file may be somebody else's by now)."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
            inside = (process / "cwd").resolve().is_relative_to(root.resolve())
        except OSError:
            continue
        if inside and program in {Path(argument).name for argument in arguments[:3]}:
            return f"`{' '.join(arguments).strip()}`, process {process.name}"
    return None


def unfinished(root: Path) -> list[Path]:
    """Files and folders of a workspace that a dead process was still writing; each will be written again."""
    places = ("", "data/**/", "models/**/", ".gleaner/", ".gleaner/serving/images/*/", ".gleaner/tracking/")
    files = (f"*{TEMPORARY}", f".*{TEMPORARY}")
    folders = [f"{place}.*{end}" for place in ("data/", ".gleaner/tracking/") for end in (".new", ".old")]
    patterns = [f"{place}{name}" for place in places for name in files] + folders + [".gleaner/*.rebuilding*"]
    return sorted({path for pattern in patterns for path in root.glob(pattern)})
