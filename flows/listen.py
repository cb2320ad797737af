"""What `gleaner listen` puts together: the door (flows/webhook.py) and the tick that a knock wakes (flows/wake.py)."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from flows.deploy import campaign_id
from flows.wake import Waker
from flows.webhook import SECRET, Door, is_loopback, secret, serve, stamp
from monitoring.tick_ends import UNATTENDED
from tasks.errors import BadInput


def listen(root: Path, host: str, port: int, exposed: bool) -> None:
    """Serve until Ctrl-C. Raises BadInput for a missing secret, or an address that others reach without `exposed`."""
    campaign_id(root)
    door_secret, loopback = secret(), is_loopback(host)
    if not loopback and not exposed:
        raise BadInput(
            f"--host {host} is reached from other machines, and the secret goes there in the clear. Put a proxy with TLS "
            "before 127.0.0.1; or, in a network that you trust, add --exposed."
        )
    environment = {name: value for name, value in os.environ.items() if name != SECRET}
    environment[UNATTENDED] = "1"
    command = [sys.executable, "-m", "flows.cli", "tick"]
    asyncio.run(_both(Waker(root.resolve(), command, environment, log=stamp), host, port, door_secret, loopback))


async def _both(waker: Waker, host: str, port: int, door_secret: bytes, loopback: bool) -> None:
    def ready(taken: int) -> None:
        stamp(f"listening at http://{host}:{taken}/wake; Ctrl-C ends it")

    end, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end.set)
    worker = asyncio.create_task(waker.work())
    try:
        await serve(host, port, Door(door_secret, waker.ask, loopback), ready, end)
    finally:
        worker.cancel()
        with suppress(asyncio.CancelledError):
            await worker
