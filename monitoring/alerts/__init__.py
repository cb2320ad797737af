"""Alert channels, one file each; what an alert is, and how other people's text in it is made harmless.

A channel is a file here with two functions, and `NOBODY` where it may have nobody to tell:

    targets() -> tuple[str, ...]                        who is told, by names that may be shown: no part of a secret
    send(alerts, target, *, <options>) -> None          one message with all of `alerts`, all or nothing
    NOBODY = "GLEANER_ALERT_URLS is not set"            why `targets` may be empty

`send` raises Unreachable with a reason that may be shown when the message could not be delivered, and BadInput when it
never can be. It waits for seconds at most.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Severity = Literal["info", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "error")
LONGEST_TITLE, LONGEST_TEXT = 200, 2000  # characters
#: words that make chat services call everybody, wherever they stand in a text
MENTION = re.compile(r"(<(?=[!@#])|@(?=everyone|here|channel|all\b))", re.IGNORECASE)


@dataclass(frozen=True)
class Alert:
    """Something that people should hear of. The same `key` is never raised twice."""

    severity: Severity
    kind: str  # one of `alerts.events` in params.yaml, or "test"
    title: str  # one line
    text: str
    campaign: str
    iteration: int | None
    key: str  # what it is de-duplicated by


def harmless(text: str, longest: int = LONGEST_TEXT) -> str:
    """Text of files and annotators without control signs and calls to everybody, cut to `longest` characters."""
    lines = ("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line) for line in text.split("\n"))
    calm = MENTION.sub(r"\1 ", "\n".join(lines)).strip()
    return calm if len(calm) <= longest else f"{calm[: longest - 1]}…"


def one_line(text: str, longest: int = LONGEST_TITLE) -> str:
    """The same on one line: a line end in a title would be a mail header of its own."""
    return harmless(" ".join(text.split()), longest)


@dataclass(frozen=True)
class Message:
    """What one alert or several come to, for a channel that sends texts."""

    severity: Severity  # the worst of them
    title: str
    text: str


def message(alerts: Sequence[Alert]) -> Message:
    """One message with at least one alert; several become a list, so that an outage ends with one mail."""
    worst = max((alert.severity for alert in alerts), key=SEVERITIES.index)
    campaigns = ", ".join(dict.fromkeys(alert.campaign for alert in alerts))
    if len(alerts) == 1:
        return Message(worst, one_line(f"{campaigns}: {alerts[0].title}"), alerts[0].text)
    text = "\n\n".join(f"{alert.severity.upper()}: {alert.title}\n{alert.text}".strip() for alert in alerts)
    return Message(worst, one_line(f"{campaigns}: {len(alerts)} alerts"), text)
