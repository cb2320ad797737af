"""Tasks, tools and what annotators do with them, for tests of labeling."""

from __future__ import annotations

import csv
import hashlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

from tasks import plugins
from tasks.labeling import LabelingTool, Place, RawEvent, Task
from tasks.labeling.label_studio import TOKEN_FILE
from tasks.ledger import task_key
from tasks.store import Store
from tasks.tables import KNOWN_LABELS
from tests.fake_label_studio import TOKEN, FakeLabelStudio

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


def connect(name: str, root: Path, campaign: str = "camp-1", **options: Any) -> LabelingTool:
    """A tool of a workspace; Label Studio's server is a fake of the workspace's own."""
    if name == "label_studio":
        options = {"url": server_of(root).url, **options}
    tool: LabelingTool = plugins.find("labeling", name).connect(replace(make_place(root), campaign=campaign), **options)
    return tool


SERVERS: dict[Path, FakeLabelStudio] = {}


def server_of(root: Path) -> FakeLabelStudio:
    """The fake Label Studio of a workspace, which lives as long as the tests; its token is in the workspace."""
    if root not in SERVERS:
        SERVERS[root] = FakeLabelStudio().__enter__()
        Store(root).write_bytes(TOKEN_FILE, TOKEN.encode())
    return SERVERS[root]


def submit(root: Path) -> None:
    """What people do in Label Studio with the tasks that wait."""
    server = server_of(root)
    for number, task in sorted(server.tasks.items()):
        if not task["annotations"]:
            server.annotate(number, "fox")


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
