"""Wakes a tick from outside: one child process at a time, one more wake kept, a storm is one wake.

waker = Waker(command); waker.ask(); await waker.work()
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tasks.errors import Busy


def _print(line: str) -> None:
    print(line, flush=True)


@dataclass
class Waker:
    """Starts `command` in `root` when asked; whoever asks meanwhile is served by the next start, all of them by one."""

    root: Path
    command: Sequence[str]
    environment: Mapping[str, str]
    pause: float = 10.0  # seconds between the first question and the start: a storm comes within them
    again: float = 60.0  # seconds after which a tick that found another at work is tried once more
    log: Callable[[str], None] = _print
    _asked: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _child: asyncio.subprocess.Process | None = field(default=None, init=False)

    def ask(self) -> None:
        """A tick is wanted. Costs nothing and never waits."""
        self._asked.set()

    async def work(self) -> None:
        """Serve for ever; a child that is at work when this is cancelled is ended (the next tick goes on from there)."""
        try:
            while True:
                await self._asked.wait()
                await asyncio.sleep(self.pause)
                self._asked.clear()
                if await self._tick() == Busy.exit_code:
                    await asyncio.sleep(self.again)
                    self._asked.clear()
                    await self._tick()
        finally:
            await self._end()

    async def _tick(self) -> int:
        try:
            self._child = await asyncio.create_subprocess_exec(
                *self.command,
                cwd=self.root,
                env=self.environment,
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the listener, which ends its child itself
            )
        except OSError as error:  # no memory, no processes left: the next wake tries again
            self.log(f"wake: no tick could be started: {error.strerror or error}")
            return 1
        self.log(f"wake: tick begins, process {self._child.pid}")
        code = await self._child.wait()
        self.log(f"wake: tick ended with {code}" + (" (another is at work)" if code == Busy.exit_code else ""))
        return code

    async def _end(self) -> None:
        if self._child is None or self._child.returncode is not None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self._child.pid, number)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._child.wait(), 10)
                return
