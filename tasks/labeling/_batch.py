"""A batch as files in the formats that people asked for. Pure: tasks in, names and bytes out.

    batch.csv   batch.json   batch.coco.json   batch.label_studio.json and label_studio.xml

None of them holds an answer: as long as nobody changes them, reading them gives none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tasks.labeling import Task
from tasks.labeling._coco import coco
from tasks.labeling._label_studio_format import labeling_config
from tasks.labeling._label_studio_format import task as label_studio_task
from tasks.labeling._tables import table

COLUMNS = ("rank", "image", "suggestion", "confidence", "label", "annotator", "seconds", "key")
Names = Mapping[str, str]  # task key -> name of its image
Sizes = Mapping[str, tuple[int, int] | None]  # task key -> width and height


def batch_files(
    stem: str, formats: Iterable[str], tasks: Sequence[Task], names: Names, classes: Sequence[str], sizes: Sizes
) -> dict[str, bytes]:
    """File name -> content, for every format once."""
    files: dict[str, bytes] = {}
    for name in formats:
        if name == "csv":
            files[f"{stem}.csv"] = table(COLUMNS, [_cells(task, names) for task in tasks])
        elif name == "json":
            rows = [dict(zip(COLUMNS, _cells(task, names), strict=True)) for task in tasks]
            files[f"{stem}.json"] = _json([{**row, "label": None, "seconds": None} for row in rows])
        elif name == "coco":
            files[f"{stem}.coco.json"] = _json(coco(tasks, names, classes, sizes))
        else:
            asked = [label_studio_task(task, f"images/{names[task.key]}", classes) for task in tasks]
            files[f"{stem}.label_studio.json"] = _json(asked)
            files["label_studio.xml"] = labeling_config(classes).encode("utf-8", "backslashreplace")
    return files


def _cells(task: Task, names: Names) -> list[object]:
    confidence = "" if task.confidence is None else f"{task.confidence:.2f}"
    return [task.rank, names[task.key], task.predicted or "", confidence, "", "", "", task.key]


def _json(value: Any) -> bytes:
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"
