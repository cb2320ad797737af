"""Experiment trackers, one file each; the file name is the value of ``track.tool``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class IterationRecord:
    """All that a tracker shows of one iteration."""

    campaign: str  # campaign id
    name: str  # campaign name
    iteration: int
    params: dict[str, str]  # flattened params.yaml: "select.batch" -> "20"
    metrics: dict[str, float]  # finite numbers only
    tags: dict[str, str]  # git SHA, git tag, DVC hashes
    artifacts: tuple[Path, ...]  # plots, tables, reports: files or folders
    model: Path | None  # folder with head.safetensors and head.json
    champion: bool  # whether this iteration's model is the champion now


class Tracker(Protocol):
    """A connection to a tracker."""

    def log(self, record: IterationRecord) -> str:
        """Show one iteration; called again for the same iteration it changes nothing. Returns a link or id."""
        ...
