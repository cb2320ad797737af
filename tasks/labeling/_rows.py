"""One answer as a file tells it, before anybody knows whether it is right.

plain(2, {"image": "0000_1f3a.png", "label": "deer"})     ->  Row(number=2, image="0000_1f3a.png", label="deer")
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.labeling import Uninterpretable
from tasks.labeling._label_studio_format import one_choice

SHOWN = 200  # characters of somebody's value that are shown


@dataclass(frozen=True)
class Row:
    """What one row says. Values are as they came: any JSON, or a cell's text."""

    number: int  # a table's line, a list's entry counted from 1
    label: Any = None  # None or "": no answer
    skipped: bool = False  # said by the tool itself, not by a label
    key: Any = None
    image: Any = None
    annotator: Any = None
    seconds: Any = None
    ground_truth: Any = None
    accepted: bool | None = None  # whether a suggestion was taken over, None when unknown
    annotation: str = ""  # the tool's own id of this annotation
    error: str = ""  # why it cannot be an answer, whatever else is known
    value: Any = None  # what `error` is about


def plain(number: int, entry: Mapping[Any, Any]) -> Row:
    """A table's row, a list's entry, or one of Label Studio's CSV and JSON_MIN (which name the time `lead_time`)."""
    label, seconds, error = entry.get("label"), entry.get("seconds"), ""
    if isinstance(label, Mapping) and "choices" in label:
        try:
            label = one_choice(label["choices"])
        except Uninterpretable as reason:
            error = str(reason)
    return Row(
        number,
        label=label,
        key=entry.get("key"),
        image=entry.get("image"),
        annotator=entry.get("annotator"),
        seconds=entry.get("lead_time") if seconds is None or seconds == "" else seconds,
        ground_truth=entry.get("ground_truth"),
        annotation=str(entry.get("annotation_id") or "")[:SHOWN],
        error=error,
        value=label if error else None,
    )
