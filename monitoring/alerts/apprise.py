"""Alerts through Apprise: mail, Slack, Teams, webhooks and a hundred more, by the addresses in GLEANER_ALERT_URLS.

GLEANER_ALERT_URLS="mailtos://user:password@example.org?to=team@example.org slack://TokenA/TokenB/TokenC/#gleaner"

Each message is sent by a process of its own (`_delivery.py`): it can be ended when a server keeps it waiting, whatever
the service's code does, and nothing that Apprise or a server says is written anywhere, because both repeat addresses.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Annotated

from annotated_types import Interval

from monitoring.alerts import Alert, message
from tasks import plugins
from tasks.alert_urls import VARIABLE, entries, shown
from tasks.errors import BadInput, Unreachable

NOBODY = f"{VARIABLE} is not set"
STARTING_SECONDS = 20.0  # a process that imports Apprise, on a machine that is busy


def targets() -> tuple[str, ...]:
    """The addresses as they may be shown; equal ones are numbered."""
    names = [shown(url) or "an address without schema" for url in _urls()]
    before = [names[:place].count(name) for place, name in enumerate(names)]
    return tuple(name if not same else f"{name} ({same + 1})" for name, same in zip(names, before, strict=True))


def send(
    alerts: Sequence[Alert], target: str, *, timeout_seconds: Annotated[float, Interval(gt=0, le=60)] = 10.0
) -> None:
    """One message to one address. Raises Unreachable with a reason of our own words, BadInput for a wrong address.

    `timeout_seconds` is how long to wait for a connection, and for an answer.
    """
    place = targets().index(target)
    told = message(alerts)
    order = {"place": place, "severity": told.severity, "title": told.title, "text": told.text}
    answer = _in_a_process({**order, "timeout_seconds": timeout_seconds}, 2 * timeout_seconds + STARTING_SECONDS)
    if answer.get("wrong"):
        raise BadInput(
            f"{VARIABLE}: address {place + 1} is not one that Apprise can use: {answer['wrong']} "
            "The service's page on https://appriseit.com/services/ shows how its address is written."
        )
    if not answer.get("delivered"):
        raise Unreachable(answer.get("why") or "it was not delivered")


def _urls() -> tuple[str, ...]:
    return entries(os.environ.get(VARIABLE, ""))


def _in_a_process(order: dict[str, object], seconds: float) -> dict[str, str]:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "monitoring.alerts._delivery"],
            input=json.dumps(order), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=seconds,
            cwd=plugins.ROOT, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"why": f"no answer within {seconds:.0f} seconds"}
    try:
        answer: dict[str, str] = json.loads(done.stdout)
    except ValueError:
        return {"why": f"the process that delivers ended with {done.returncode}"}
    return answer
