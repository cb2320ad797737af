"""The contract of a labeling tool, over every file of tasks/labeling."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import plugins
from tasks.labeling import Answer, LabelingTool, Uninterpretable, read_answer
from tasks.labeling import oracle as oracle_module
from tasks.labeling.folder import Folder
from tasks.labeling.label_studio import LabelStudio
from tasks.labeling.oracle import Oracle
from tests.annotators import (
    BATCH,
    CLASSES,
    JSON,
    connect,
    events_of,
    fill_in,
    make_tasks,
    server_of,
    submit,
)

TOOLS = plugins.names("labeling")


#: how the tool's annotators answer; an entry for every tool, so that no tool goes without these tests
ANNOTATORS: dict[str, Callable[[Path], object]] = {
    "oracle": lambda root: None,
    "folder": fill_in,
    "label_studio": submit,
}


def test_every_tool_is_tested() -> None:
    assert set(ANNOTATORS) == set(LOSSES) == set(TOOLS)


@pytest.mark.parametrize("name", TOOLS)
def test_there_is_one_receipt_a_task_in_order(name: str, tmp_path: Path) -> None:
    tasks = make_tasks(tmp_path)
    tasks = [tasks[n] for n in (3, 0, 7, 1, 2, 6, 5, 4)]
    receipts = connect(name, tmp_path).push(tasks)
    assert [receipt.key for receipt in receipts] == [task.key for task in tasks]
    assert len({receipt.task_id for receipt in receipts}) == len(tasks)
    assert all(receipt.task_id for receipt in receipts)


@pytest.mark.parametrize("name", TOOLS)
def test_a_batch_that_is_sent_twice_is_there_once(name: str, tmp_path: Path) -> None:
    tasks = make_tasks(tmp_path)
    first = connect(name, tmp_path).push(tasks)
    assert connect(name, tmp_path).push(tasks) == first
    ANNOTATORS[name](tmp_path)
    keys = [event.payload["key"] for event in events_of(connect(name, tmp_path))]
    assert sorted(keys) == sorted(task.key for task in tasks)


@pytest.mark.parametrize("half", [1, 4, 7])
@pytest.mark.parametrize("name", TOOLS)
def test_half_a_batch_that_is_there_is_adopted_and_the_rest_added(name: str, half: int, tmp_path: Path) -> None:
    tasks = make_tasks(tmp_path)
    first = connect(name, tmp_path).push(tasks[:half])
    receipts = connect(name, tmp_path).push(tasks)
    assert receipts[:half] == first
    assert [receipt.key for receipt in receipts] == [task.key for task in tasks]
    assert connect(name, tmp_path).push(tasks) == receipts
    ANNOTATORS[name](tmp_path)
    if name == "folder":
        fill_in(tmp_path, name=f"batch-from-{half:04d}.csv")
    counted = Counter(event.payload["key"] for event in events_of(connect(name, tmp_path)))
    assert counted == Counter(task.key for task in tasks)


@pytest.mark.parametrize("name", TOOLS)
def test_pulling_twice_gives_the_same_events(name: str, tmp_path: Path) -> None:
    connect(name, tmp_path).push(make_tasks(tmp_path))
    ANNOTATORS[name](tmp_path)
    events = events_of(connect(name, tmp_path))
    assert len(events) == 8
    assert events_of(connect(name, tmp_path)) == events
    assert len({event.annotation_id for event in events}) == 8


@pytest.mark.parametrize("name", TOOLS)
def test_events_are_json_and_mean_the_tasks_that_were_sent(name: str, tmp_path: Path) -> None:
    tool, tasks = connect(name, tmp_path), make_tasks(tmp_path)
    tool.push(tasks)
    ANNOTATORS[name](tmp_path)
    events = events_of(tool)
    assert len(events) == len(tasks)
    for event in events:
        payload = json.loads(json.dumps(event.payload, allow_nan=False))
        answer = tool.interpret(payload)
        assert answer.key in {task.key for task in tasks}
        assert answer.kind == "label"
        assert answer.label in CLASSES
        assert answer.seconds is not None
        assert answer.seconds > 0


@pytest.mark.parametrize("name", TOOLS)
def test_the_instance_stays_the_same_and_differs_elsewhere(name: str, tmp_path: Path) -> None:
    found = {}
    for campaign in ("camp-1", "camp-2"):
        root = tmp_path / campaign
        root.mkdir()
        tool = connect(name, root, campaign=campaign)
        tool.push([replace(task, key=task.key.replace("camp-1", campaign)) for task in make_tasks(root)])
        again = connect(name, root, campaign=campaign)
        assert tool.instance == again.instance
        assert tool.address == again.address
        found[tool.instance] = tool.address
    assert len(found) == 2


@pytest.mark.parametrize("name", TOOLS)
def test_nothing_to_send_and_nothing_to_pull_is_fine(name: str, tmp_path: Path) -> None:
    tool = connect(name, tmp_path)
    assert tool.push([]) == []
    assert events_of(tool) == []


#: how the tool loses its tasks, without a word; an entry for every tool
LOSSES: dict[str, Callable[[Path], object]] = {
    "oracle": lambda root: _forget(root),
    "folder": lambda root: shutil.rmtree(root / BATCH),
    "label_studio": lambda root: server_of(root).tasks.clear(),
}


def _forget(root: Path) -> None:
    with closing(sqlite3.connect(root / oracle_module.DATABASE)) as db, db:
        db.execute("DELETE FROM task")


@pytest.mark.parametrize("name", TOOLS)
def test_lost_tasks_are_told_and_can_be_sent_again(name: str, tmp_path: Path) -> None:
    tool, tasks = connect(name, tmp_path), make_tasks(tmp_path)
    receipts = tool.push(tasks)
    assert tool.lost(receipts) == []
    LOSSES[name](tmp_path)
    assert tool.lost(receipts) == [task.key for task in tasks]
    assert tool.lost(tool.push(tasks[2:])) == []


#: tools that only interpret: that is pure
UNCONNECTED: dict[str, Callable[[], LabelingTool]] = {
    "oracle": lambda: Oracle(None, None),  # type: ignore[arg-type]
    "folder": lambda: Folder(None, None),  # type: ignore[arg-type]
    "label_studio": lambda: LabelStudio(None, None, "", None),  # type: ignore[arg-type]
}


KEYS = st.sampled_from(["key", "kind", "label", "annotator", "seconds", "error", "file", "task", "result", "other"])


@pytest.mark.parametrize("name", TOOLS)
@settings(max_examples=150, deadline=None)
@given(payload=st.dictionaries(KEYS, JSON | st.sampled_from(["skip", "label", "deer"])))
def test_any_payload_is_an_answer_or_uninterpretable(name: str, payload: dict[str, Any]) -> None:
    tool = UNCONNECTED[name]()
    try:
        answer = tool.interpret(payload)
    except Uninterpretable as reason:
        assert str(reason) or payload.get("error") in ("", [], {}, None)
        assert len(str(reason)) < 400 or "error" in payload
    else:
        assert isinstance(answer, Answer)
        assert answer.kind in ("label", "skip")
        assert answer.seconds is None or 0 <= answer.seconds <= 1e9


def test_a_skip_has_no_label_and_no_annotator_is_empty() -> None:
    assert read_answer({"key": "k", "kind": "skip", "label": "deer", "annotator": None}) == Answer(
        "k", "skip", "", "", None
    )
