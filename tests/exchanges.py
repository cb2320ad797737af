"""A batch of eight that was sent in every format, and what people put beside it, for tests of the exchange folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tasks import plugins
from tasks.labeling import Answer, Uninterpretable
from tasks.labeling.folder import Folder
from tests.annotators import CLASSES, events_of, image, make_place, make_tasks

FORMATS = ("csv", "json", "coco", "label_studio")
FOLDER = "iteration-0000"


#: a task of a Label Studio export whose image was uploaded
GOOD_TASK: dict[str, Any] = {
    "data": {"image": f"/data/upload/1/0a1b2c3d-{image(3)}"},
    "annotations": [{"id": 7, "result": [{"from_name": "label", "type": "choices", "value": {"choices": ["fox"]}}]}],
}


def exchange(root: Path, classes: tuple[str, ...] = CLASSES) -> Folder:
    """A folder tool that has sent a batch of eight in every format."""
    place = replace(make_place(root), classes=classes)
    tool = plugins.find("labeling", "folder").connect(place, formats=list(FORMATS))
    assert isinstance(tool, Folder)
    tool.push([replace(task, predicted=classes[task.rank % len(classes)]) for task in make_tasks(root)])
    return tool


def told(tool: Folder) -> list[Answer]:
    """Every answer that can be read, by key."""
    found = []
    for event in events_of(tool):
        try:
            found.append(tool.interpret(event.payload))
        except Uninterpretable:
            continue
    return sorted(found, key=lambda answer: answer.key)


def payloads(tool: Folder) -> list[dict[str, Any]]:
    return [event.payload for event in events_of(tool)]


def put(tool: Folder, name: str, value: Any) -> None:
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    (tool.path / FOLDER / name).write_bytes(content)


def held(tool: Folder, name: str) -> Any:
    return json.loads((tool.path / FOLDER / name).read_text(encoding="utf-8"))
