"""Alerts into the process's log: the channel that needs no account and never fails.

ERROR gleaner.alerts repeated_selections (block): Of 20 items in the batch, 3 must not be asked about ...
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from monitoring.evidence import Finding, alarming


def send(findings: Sequence[Finding], *, logger: str = "gleaner.alerts") -> None:
    """Write one line a failed finding: an error when it blocks the export, else a warning."""
    log = logging.getLogger(logger)
    for finding in alarming(findings):
        level = logging.ERROR if finding.severity == "block" else logging.WARNING
        log.log(level, "%s", line(finding))


def line(finding: Finding) -> str:
    """A finding on one line: class names and ids are other people's text, so line breaks in it are folded."""
    text = f"{finding.check} ({finding.severity}): {finding.what} Why it matters: {finding.why} To do: {finding.todo}"
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
