"""What the checks said of the batch, as `monitor` wrote it: read by the gate, the report and the status.

blocking(store)   ->   [{"check": "repeated_selections", "severity": "block", "what": "…", "todo": "…", …}]
"""

from __future__ import annotations

from typing import Any

from tasks.store import Store

FINDINGS = "data/findings.json"


def failed(store: Store) -> list[dict[str, Any]]:
    """Findings that somebody should hear of: failed and not switched off; [] before the first ones."""
    found = store.read_json(FINDINGS)["findings"] if store.exists(FINDINGS) else []
    return [finding for finding in found if finding["outcome"] == "fail" and finding["severity"] != "off"]


def blocking(store: Store) -> list[dict[str, Any]]:
    """Findings that keep the batch from being exported."""
    return [finding for finding in failed(store) if finding["severity"] == "block"]
