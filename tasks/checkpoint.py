"""Named points before and after each effect, where tests kill the process.

`GLEANER_KILL_AT=7` sends SIGKILL to this process at the seventh checkpoint it passes, exactly as the
kernel's out-of-memory killer or a power cut would. Unset (always, outside tests) a checkpoint only
counts. `GLEANER_CHECKPOINTS=FILE` writes the names down as they pass, one a line.
"""

from __future__ import annotations

import os
import signal

_passed = 0


def checkpoint(name: str) -> None:
    """Pass a point at which the process may die."""
    global _passed
    _passed += 1
    log = os.environ.get("GLEANER_CHECKPOINTS")
    if log:
        with open(log, "a", encoding="utf-8") as handle:
            handle.write(f"{name}\n")
    if os.environ.get("GLEANER_KILL_AT") == str(_passed):
        os.kill(os.getpid(), signal.SIGKILL)


def restart() -> None:
    """Count from zero again (a forked test child starts afresh)."""
    global _passed
    _passed = 0
