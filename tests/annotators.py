"""Tasks, tools and what annotators do with them, for tests of labeling."""

from __future__ import annotations

import csv
import hashlib
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

from tasks import plugins
from tasks.labeling import LabelingTool, Place, RawEvent, Task
from tasks.ledger import task_key
from tasks.store import Store
from tasks.tables import KNOWN_LABELS

CLASSES = ("deer", "fox", "=cmd|' /C calc'!A0")


BATCH = "data/exchange/iteration-0000"


def make_place(root: Path, items: int = 8, classes: tuple[str, ...] = CLASSES) -> Place:
    """A workspace whose items' labels are known."""
    labels = [classes[n % len(classes)] for n in range(items)]
    table = pa.table({"item_id": [item(n) for n in range(items)], "label": labels}, schema=KNOWN_LABELS.schema)
    Store(root).write_table(KNOWN_LABELS, table)
    return Place(root, "camp-1", classes, root / KNOWN_LABELS.path)


def item(number: int) -> str:
    return hashlib.sha256(b"%d" % number).hexdigest()


def make_tasks(root: Path, items: int = 8, iteration: int = 0) -> list[Task]:
    image = root / "image.png"
    image.write_bytes(b"\x89PNG\r\n\x1a\n")
    return [
        Task(task_key("camp-1", iteration, item(n)), item(n), iteration, n, "active", image, 0.5, CLASSES[n % 3], 0.9)
        for n in range(items)
    ]


def connect(name: str, root: Path, **options: Any) -> LabelingTool:
    tool: LabelingTool = plugins.find("labeling", name).connect(make_place(root), **options)
    return tool


def events_of(tool: LabelingTool, cursor: str = "") -> list[RawEvent]:
    """All that a tool tells."""
    return [event for page in tool.pull(cursor) for event in page.events]


def fill_in(root: Path, answer: str = "fox", name: str = "batch.csv") -> Path:
    """What a person does with batch.csv."""
    path = root / BATCH / name
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows({**r, "label": answer, "annotator": "ann", "seconds": "2.5"} for r in rows)
    path.write_text(text.getvalue())
    return path


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.integers(10**300, 10**310), st.floats(), st.text(st.characters(codec=None, exclude_categories=[]))),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)  # fmt: skip


def image(number: int) -> str:
    return f"{number:04d}_{item(number)[:12]}.png"
