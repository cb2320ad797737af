"""Labeling tools, one file each; the file name is the value of ``labeling.tool``.

A tool is somebody else's system: it may be slow, down, or answer twice. The contract keeps money safe:

- `push` is idempotent by our key: tasks that are already there are adopted, only missing ones are created.
- `pull` returns raw events, as they came, page by page; the ledger stores each page before anybody interprets it.
- `deleted` tells what was taken away, and only after a targeted look: a page that is short proves nothing.
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
    deleted: bool = False  # the annotation is gone; the payload says how that is known
    row: int | None = None  # where in its file it stands now; not stored: moving a row says nothing new
    image: str = ""  # the image as its file names it, not stored either


@dataclass(frozen=True)
class Page:
    """Some of what a tool has to tell; stored in one transaction together with its cursor."""

    events: Sequence[RawEvent]
    cursor: str = ""  # what `pull` is told the next time; "" starts from the beginning


@dataclass(frozen=True)
class Answer:
    """What a raw event means."""

    key: str
    kind: str  # label | skip
    label: str  # "" for a skip
    annotator: str
    seconds: float | None  # time the annotator needed, None when unknown
    truth: bool = False  # somebody marked it as ground truth: it outweighs all others
    accepted: bool | None = None  # the model's suggestion, unchanged; None when none was shown or it is not known


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

    def require(self) -> None:
        """Make sure that the tool can be used. Raises Unreachable, or BadInput with the fix: wrong token, another server."""
        ...

    def pull(self, cursor: str) -> Iterable[Page]:
        """Every event the tool has, or those since `cursor` (the last page's); repeats are harmless."""
        ...

    def deleted(self, live: Iterable[RawEvent]) -> Iterable[RawEvent]:
        """Which of the `live` annotations the tool certainly holds no more. In doubt it holds them."""
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
    instance: str = ""  # the tool that holds the campaign's tasks already; "" when none does
    overlap: int = 1  # people who are asked about each item


def read_answer(payload: dict[str, Any]) -> Answer:
    """Read a payload with `key`, `kind` or `label`, and perhaps `annotator`, `seconds`, `ground_truth` and `accepted`.

    Raises Uninterpretable.
    """
    if "error" in payload:
        raise Uninterpretable(str(payload["error"]))
    key, label, kind = payload.get("key"), payload.get("label"), payload.get("kind", "label")
    if not isinstance(key, str) or not isinstance(label, str) or kind not in ("label", "skip"):
        raise Uninterpretable(f"needs text `key`, text `label` and kind label or skip; got {str(payload)[:200]}")
    annotator = payload.get("annotator")
    seconds = _seconds(payload.get("seconds"))
    truth, accepted = payload.get("ground_truth", False), payload.get("accepted")
    if not isinstance(truth, bool) or not isinstance(accepted, bool | None):
        raise Uninterpretable(
            f"`ground_truth` and `accepted` must be true or false, not {truth!r:.80}, {accepted!r:.80}"
        )
    said_by = "" if annotator is None else str(annotator)
    return Answer(key, kind, "" if kind == "skip" else label, said_by, seconds, truth, accepted)


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MOST_SECONDS:
        return float(value)
    raise Uninterpretable(f"`seconds` must be a number from 0 to {MOST_SECONDS:.0f}, not {str(value)[:80]}")
