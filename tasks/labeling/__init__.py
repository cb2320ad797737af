"""Labeling tools, one file each; the file name is the value of ``labeling.tool``.

A tool is somebody else's system: it may be slow, down, or answer twice. The contract keeps money safe:

- `push` is idempotent by our key: tasks that are already there are adopted, only missing ones are created.
- `pull` returns raw events, as they came; the ledger stores them before anybody interprets them.
- `interpret` is pure and turns one raw payload into an `Answer`, or raises `Uninterpretable` with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

MOST_SECONDS = 1e9  # an answer that took thirty years is a mistake


@dataclass(frozen=True)
class Task:
    """One question to an annotator."""

    key: str  # campaign:iteration:item, ours, unique for ever
    item_id: str  # SHA-256 of the image's bytes
    iteration: int
    rank: int  # 0 is shown first
    arm: str
    image: Path  # a copy of the original's bytes, verified by hash
    utility: float | None = None
    predicted: str | None = None  # class the model suggests, None without a model
    confidence: float | None = None


@dataclass(frozen=True)
class Receipt:
    """The tool's proof that it holds a task."""

    key: str
    task_id: str  # the tool's own id


@dataclass(frozen=True)
class RawEvent:
    """Something an annotator did, as the tool tells it."""

    annotation_id: str  # unique in the tool instance
    payload: dict[str, Any]  # JSON, stored as it came
    row: int | None = None  # where in its file it stands now; not stored: moving a row says nothing new
    image: str = ""  # the image as its file names it, not stored either


@dataclass(frozen=True)
class Answer:
    """What a raw event means."""

    key: str
    kind: str  # label | skip
    label: str  # "" for a skip
    annotator: str
    seconds: float | None  # time the annotator needed, None when unknown


class Uninterpretable(ValueError):
    """A raw event that cannot be turned into an answer; its text is the reason shown in the quarantine."""


class LabelingTool(Protocol):
    """A connection to a labeling tool."""

    @property
    def instance(self) -> str:
        """Identity of the server and project: ids are unique only within it."""
        ...

    @property
    def address(self) -> str:
        """Where annotators find their tasks, for people to read."""
        ...

    def push(self, tasks: Sequence[Task]) -> list[Receipt]:
        """Make sure that the tool holds every task exactly once; one receipt a task, in order."""
        ...

    def pull(self) -> Iterable[RawEvent]:
        """Every event the tool has, or all since the last pull; repeats are harmless."""
        ...

    def interpret(self, payload: dict[str, Any]) -> Answer:
        """Read one payload. Raises Uninterpretable."""
        ...

    def lost(self, receipts: Sequence[Receipt]) -> list[str]:
        """Keys of the tasks that the tool certainly holds no more; they are sent again. In doubt it holds them."""
        ...


@dataclass(frozen=True)
class Place:
    """Where an adapter may keep files, and what it needs to know of the campaign."""

    workspace: Path
    campaign: str
    classes: tuple[str, ...]
    known_labels: Path  # Parquet of labels that came with the source; only the oracle may read it


def read_answer(payload: dict[str, Any]) -> Answer:
    """Read a payload with `key`, `kind` or `label`, and perhaps `annotator` and `seconds`. Raises Uninterpretable."""
    if "error" in payload:
        raise Uninterpretable(str(payload["error"]))
    key, label, kind = payload.get("key"), payload.get("label"), payload.get("kind", "label")
    if not isinstance(key, str) or not isinstance(label, str) or kind not in ("label", "skip"):
        raise Uninterpretable(f"needs text `key`, text `label` and kind label or skip; got {str(payload)[:200]}")
    annotator = payload.get("annotator")
    seconds = _seconds(payload.get("seconds"))
    return Answer(key, kind, "" if kind == "skip" else label, "" if annotator is None else str(annotator), seconds)


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MOST_SECONDS:
        return float(value)
    raise Uninterpretable(f"`seconds` must be a number from 0 to {MOST_SECONDS:.0f}, not {str(value)[:80]}")
