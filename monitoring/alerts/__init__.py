"""Alert channels, one file each; what an alert is, and how other people's text in it is made harmless.

A channel is a file here with two functions:

    targets() -> tuple[str, ...]                        who is told, by names that may be shown: no part of a secret
    send(alerts, target, *, <options>) -> None          one message with all of `alerts`, all or nothing

`send` raises Unreachable with a reason that may be shown when the message could not be delivered, and BadInput when it
never can be. It waits for seconds at most.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Severity = Literal["info", "warning", "error"]
Kind = Literal[
    "finding_blocks", "finding_warns", "tick_failed", "tick_recovered", "campaign_finished", "campaign_stopped",
    "batch_waiting", "labels_finished", "batch_sent", "watchdog", "test",
]  # fmt: skip
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "error")
LONGEST_TITLE, LONGEST_TEXT = 200, 2000  # characters
#: words that make chat services call everybody, wherever they stand in a text
MENTION = re.compile(r"(<(?=[!@#])|@(?=everyone|here|channel|all\b))", re.IGNORECASE)


@dataclass(frozen=True)
class Alert:
    """Something that people should hear of. The same `key` is never raised twice."""

    severity: Severity
    kind: Kind
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
