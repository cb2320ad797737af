"""Deliver one message through Apprise: `python -m monitoring.alerts._delivery`, started by `apprise.py`.

    standard input   {"place": 0, "severity": "error", "title": "…", "text": "…", "timeout_seconds": 10.0}
    standard output  {"delivered": "yes"}, {"why": "it answered 500"} or {"wrong": "…"}

Of what Apprise and the server say, only numbers and words of our own are passed on: both repeat addresses and tokens.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterable
from typing import Any

from tasks.alert_urls import VARIABLE, entries

#: what is in Apprise's log -> what may be said of it
REASONS: tuple[tuple[str, str], ...] = (
    (r"\berror=([1-5]\d\d)\b", "it answered {}"),
    (r"CERTIFICATE_VERIFY_FAILED", "its certificate is not valid"),
    (r"Socket Exception: \(([45]\d\d), b", "the mail server answered {}"),
    (r"Socket Exception: \{.*?\(([45]\d\d), b", "the mail server answered {}"),
    (r"timed out|TimeoutError", "no answer in time"),
    (r"Connection refused", "nobody listens there"),
    (r"Name or service not known|No address associated|nodename nor servname|name resolution", "no such host"),
    (r"unreachable|No route to host", "the network does not reach it"),
    (r"There are no .*(?:recipients|targets)", "it names nobody to send to"),
)
UNKNOWN = "it was not delivered, and Apprise does not say why in words that may be shown"


class Collected(logging.Handler):
    """Keeps what Apprise logs."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self.lines.append(record.getMessage())


def reason(lines: Iterable[str]) -> str:
    """Why a message was not delivered, in words that hold nothing of the address or of the answer."""
    text = "\n".join(lines)
    for pattern, words in REASONS:
        found = re.search(pattern, text)
        if found:
            return words.format(*found.groups())
    return UNKNOWN


def deliver(order: dict[str, Any], url: str) -> dict[str, str]:
    """Send one message to one address."""
    import apprise

    collected, log = Collected(), logging.getLogger("apprise")
    log.addHandler(collected)
    log.propagate = False
    log.setLevel(logging.DEBUG)
    asset = apprise.AppriseAsset(
        app_id="Gleaner", app_desc="Gleaner", app_url="", image_url_mask="", image_url_logo="", storage_mode="memory",
        pgp_autogen=False, pem_autogen=False, async_mode=False,
    )  # fmt: skip
    server = apprise.Apprise.instantiate(url, asset=asset)
    if server is None:
        unknown = any(line.startswith("Unparseable URL") for line in collected.lines)
        known = "its schema (the part before ://) is none of Apprise's." if unknown else "it is not complete."
        return {"wrong": known}
    server.redirects = False
    server.retry, server.optional = 0, False  # the outbox tries again, and a failure is one
    server.overflow_mode = apprise.OverflowMode.SPLIT
    server.socket_connect_timeout = server.socket_read_timeout = float(order["timeout_seconds"])
    kinds = {
        "info": apprise.NotifyType.INFO,
        "warning": apprise.NotifyType.WARNING,
        "error": apprise.NotifyType.FAILURE,
    }
    sender = apprise.Apprise(servers=[server], asset=asset)
    sent = sender.notify(
        body=order["text"], title=order["title"], notify_type=kinds[order["severity"]],
        body_format=apprise.NotifyFormat.TEXT,
    )  # fmt: skip
    return {"delivered": "yes"} if sent else {"why": reason(collected.lines)}


def main() -> None:
    """Read one order, carry it out, say what came of it."""
    order = json.loads(sys.stdin.read())
    urls = entries(os.environ.get(VARIABLE, ""))
    print(json.dumps(deliver(order, urls[order["place"]])))


if __name__ == "__main__":
    main()
