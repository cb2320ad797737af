"""The oracle: a labeling tool whose annotator errs, skips and is late, the same in every run."""

from __future__ import annotations

import sqlite3
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tasks.errors import BadInput, GleanerError
from tasks.labeling import RawEvent, Task
from tasks.labeling import oracle as oracle_module
from tasks.ledger import task_key
from tasks.tables import KNOWN_LABELS
from tests.annotators import CLASSES, events_of, item, make_place, make_tasks


def ask_oracle(root: Path, items: int, **options: Any) -> tuple[list[Task], list[RawEvent]]:
    tool = oracle_module.connect(make_place(root, items), **options)
    tasks = make_tasks(root, items)
    tool.push(tasks)
    return tasks, events_of(tool)


def test_the_oracle_tells_the_truth_by_default(tmp_path: Path) -> None:
    tasks, events = ask_oracle(tmp_path, 30)
    assert [event.payload["label"] for event in events] == [CLASSES[n % 3] for n in range(30)]
    assert [event.payload["key"] for event in events] == [task.key for task in tasks]


def test_the_oracles_rates_are_what_was_asked_for(tmp_path: Path) -> None:
    items = 4000
    _, events = ask_oracle(tmp_path, items, error_rate=0.2, skip_rate=0.1, unanswered_rate=0.25)
    truth = {task_key("camp-1", 0, item(n)): CLASSES[n % 3] for n in range(items)}
    skipped = sum(event.payload["kind"] == "skip" for event in events)
    wrong = sum(event.payload["label"] not in ("", truth[event.payload["key"]]) for event in events)
    for share, n, rate in (
        (len(events), items, 0.75),
        (skipped, len(events), 0.1),
        (wrong, len(events) - skipped, 0.2),
    ):
        assert abs(share / n - rate) < 4 * (rate * (1 - rate) / n) ** 0.5
    false = Counter(
        event.payload["label"] for event in events if event.payload["label"] not in ("", truth[event.payload["key"]])
    )
    assert set(false) == set(CLASSES), "errors are spread over the classes"


def test_the_oracle_always_answers_a_task_alike_and_another_seed_differs(tmp_path: Path) -> None:
    def labels(name: str, **options: Any) -> list[tuple[str, str]]:
        (tmp_path / name).mkdir()
        _, events = ask_oracle(tmp_path / name, 200, error_rate=0.3, unanswered_rate=0.3, **options)
        return [(event.payload["key"], event.payload["label"]) for event in events]

    assert labels("a") == labels("b")
    assert labels("c", seed=1) != labels("d")


def test_the_oracle_takes_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("tasks.labeling.oracle.time.time", lambda: now[0])
    tool = oracle_module.connect(make_place(tmp_path, 400), delay_seconds=60.0)
    tool.push(make_tasks(tmp_path, 400))
    answered = []
    for now[0] in (1000.0, 1060.0, 1120.0, 1e6):
        answered.append(len(events_of(tool)))
    assert answered[0] == 0
    assert abs(answered[1] / 400 - 0.632) < 0.1, "half of them and more after the mean delay"
    assert answered == sorted(answered)
    assert answered[3] == 400


def test_the_oracle_skips_what_it_does_not_know(tmp_path: Path) -> None:
    tool = oracle_module.connect(make_place(tmp_path, 2))
    tool.push(make_tasks(tmp_path, 3))
    assert [event.payload["kind"] for event in events_of(tool)] == ["label", "label", "skip"]


def test_the_oracle_like_any_tool_accepts_a_key_twice_and_the_adapter_adopts_the_first(tmp_path: Path) -> None:
    tool, tasks = oracle_module.connect(make_place(tmp_path)), make_tasks(tmp_path)
    first = tool.push(tasks)
    with sqlite3.connect(tmp_path / oracle_module.DATABASE) as db:
        db.execute("INSERT INTO task (key, item_id, created) SELECT key, item_id, created FROM task")
    assert tool.push(tasks) == first


def test_the_oracle_needs_known_labels(tmp_path: Path) -> None:
    place = replace(make_place(tmp_path), known_labels=tmp_path / "none.parquet")
    with pytest.raises(BadInput, match="the source gave none"):
        oracle_module.connect(place)
    pq.write_table(KNOWN_LABELS.schema.empty_table(), place.known_labels)  # what an ingest of unlabeled images leaves
    with pytest.raises(BadInput, match="the source gave none"):
        oracle_module.connect(place)


def test_the_oracle_refuses_classes_that_it_never_heard_of(tmp_path: Path) -> None:
    place = replace(make_place(tmp_path), classes=("yes", "no"))
    with pytest.raises(BadInput, match=r"labeling\.classes: yes, no: none of them is a label that the source knows"):
        oracle_module.connect(place)


def test_a_damaged_oracle_is_an_error_that_names_its_file(tmp_path: Path) -> None:
    (tmp_path / ".gleaner").mkdir()
    (tmp_path / oracle_module.DATABASE).write_bytes(b"no database" * 500)
    with pytest.raises(GleanerError, match=r"oracle\.sqlite"):
        oracle_module.connect(make_place(tmp_path)).push(make_tasks(tmp_path))
