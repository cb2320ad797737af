"""The contract of a labeling tool, over every file of tasks/labeling; then what only the oracle or the folder does."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import plugins
from tasks.errors import BadInput, GleanerError
from tasks.labeling import Answer, LabelingTool, Place, RawEvent, Receipt, Task, Uninterpretable, read_answer
from tasks.labeling import oracle as oracle_module
from tasks.labeling.folder import Folder
from tasks.labeling.oracle import Oracle
from tasks.ledger import task_key
from tasks.store import Store
from tasks.tables import KNOWN_LABELS

TOOLS = plugins.names("labeling")
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


#: how the tool's annotators answer; an entry for every tool, so that no tool goes without these tests
ANNOTATORS: dict[str, Callable[[Path], object]] = {"oracle": lambda root: None, "folder": fill_in}


def test_every_tool_is_tested() -> None:
    assert set(ANNOTATORS) == set(LOSSES) == set(TOOLS)


# the contract ---------------------------------------------------------------------------------------------


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
    keys = [event.payload["key"] for event in connect(name, tmp_path).pull()]
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
    counted = Counter(event.payload["key"] for event in connect(name, tmp_path).pull())
    assert counted == Counter(task.key for task in tasks)


@pytest.mark.parametrize("name", TOOLS)
def test_pulling_twice_gives_the_same_events(name: str, tmp_path: Path) -> None:
    connect(name, tmp_path).push(make_tasks(tmp_path))
    ANNOTATORS[name](tmp_path)
    events = list(connect(name, tmp_path).pull())
    assert len(events) == 8
    assert list(connect(name, tmp_path).pull()) == events
    assert len({event.annotation_id for event in events}) == 8


@pytest.mark.parametrize("name", TOOLS)
def test_events_are_json_and_mean_the_tasks_that_were_sent(name: str, tmp_path: Path) -> None:
    tool, tasks = connect(name, tmp_path), make_tasks(tmp_path)
    tool.push(tasks)
    ANNOTATORS[name](tmp_path)
    events = list(tool.pull())
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
    (tmp_path / "a").mkdir()
    tool = connect(name, tmp_path / "a")
    assert tool.instance
    assert tool.instance == connect(name, tmp_path / "a").instance
    assert tool.address
    place = replace(make_place(tmp_path / "b"), campaign="camp-2")
    assert plugins.find("labeling", name).connect(place).instance != tool.instance


@pytest.mark.parametrize("name", TOOLS)
def test_nothing_to_send_and_nothing_to_pull_is_fine(name: str, tmp_path: Path) -> None:
    tool = connect(name, tmp_path)
    assert tool.push([]) == []
    assert list(tool.pull()) == []


#: how the tool loses its tasks, without a word; an entry for every tool
LOSSES: dict[str, Callable[[Path], object]] = {
    "oracle": lambda root: _forget(root),
    "folder": lambda root: shutil.rmtree(root / BATCH),
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


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.integers(10**300, 10**310), st.floats(), st.text(st.characters(codec=None, exclude_categories=[]))),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)  # fmt: skip
KEYS = st.sampled_from(["key", "kind", "label", "annotator", "seconds", "error", "file", "task", "result", "other"])


@pytest.mark.parametrize("name", TOOLS)
@settings(max_examples=150, deadline=None)
@given(payload=st.dictionaries(KEYS, JSON | st.sampled_from(["skip", "label", "deer"])))
def test_any_payload_is_an_answer_or_uninterpretable(name: str, payload: dict[str, Any]) -> None:
    tool: LabelingTool = {"oracle": Oracle, "folder": Folder}[name](None, None)
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


# the oracle -----------------------------------------------------------------------------------------------


def ask_oracle(root: Path, items: int, **options: Any) -> tuple[list[Task], list[RawEvent]]:
    tool = oracle_module.connect(make_place(root, items), **options)
    tasks = make_tasks(root, items)
    tool.push(tasks)
    return tasks, list(tool.pull())


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
        answered.append(len(list(tool.pull())))
    assert answered[0] == 0
    assert abs(answered[1] / 400 - 0.632) < 0.1, "half of them and more after the mean delay"
    assert answered == sorted(answered)
    assert answered[3] == 400


def test_the_oracle_skips_what_it_does_not_know(tmp_path: Path) -> None:
    tool = oracle_module.connect(make_place(tmp_path, 2))
    tool.push(make_tasks(tmp_path, 3))
    assert [event.payload["kind"] for event in tool.pull()] == ["label", "label", "skip"]


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


# the folder -----------------------------------------------------------------------------------------------


@pytest.fixture
def exchange(tmp_path: Path) -> Folder:
    """A folder that holds a batch of eight."""
    tool = plugins.find("labeling", "folder").connect(make_place(tmp_path))
    assert isinstance(tool, Folder)
    tool.push(make_tasks(tmp_path))
    return tool


def put(tool: Folder, name: str, content: str | bytes) -> Path:
    path = tool.path / "iteration-0000" / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def image(number: int) -> str:
    return f"{number:04d}_{item(number)[:12]}.png"


def key(number: int) -> str:
    return task_key("camp-1", 0, item(number))


def told(tool: Folder) -> list[tuple[str, str]]:
    """(key, label) of what can be read, ("", reason) of what cannot."""
    found = []
    for event in tool.pull():
        try:
            answer = tool.interpret(event.payload)
            found.append((answer.key, answer.label or answer.kind))
        except Uninterpretable as error:
            found.append(("", str(error)))
    return found


def test_a_batch_is_a_table_and_its_images_in_order(exchange: Folder, tmp_path: Path) -> None:
    batch = exchange.path / "iteration-0000"
    rows = list(csv.DictReader(io.StringIO((batch / "batch.csv").read_text())))
    assert [row["image"] for row in rows] == [image(n) for n in range(8)]
    assert [row["rank"] for row in rows] == [str(n) for n in range(8)]
    assert all((batch / "images" / row["image"]).read_bytes() == (tmp_path / "image.png").read_bytes() for row in rows)
    assert told(exchange) == [], "an empty label is no answer yet"
    assert not [p for p in exchange.path.iterdir() if p.name.startswith(".")]


def test_no_cell_is_a_formula(exchange: Folder) -> None:
    for line in csv.reader(io.StringIO((exchange.path / "iteration-0000/batch.csv").read_text())):
        assert not [cell for cell in line if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]


def test_a_suggestion_that_was_made_harmless_can_be_copied_as_the_answer(exchange: Folder) -> None:
    put(exchange, "a.csv", f'image,label\n{image(2)},"\'{CLASSES[2]}"\n{image(5)},{CLASSES[2]}\n')
    assert told(exchange) == [(key(2), CLASSES[2]), (key(5), CLASSES[2])]


GOOD = {
    "by image": f"image,label\n{image(0)},deer\n{image(1)},fox\n",
    "by key": f"key,label\n{key(0)},deer\n{key(1)},fox\n",
    "windows": f"\ufeffimage,label\r\n{image(0)},deer\r\n{image(1)},fox\r\n",
    "old mac": f"image,label\r{image(0)},deer\r{image(1)},fox\r",
    "semicolons": f"rank;image;label;note\n0;{image(0)};deer;a, b\n1;{image(1)};fox;\n",
    "tabs": f"image\tlabel\n{image(0)}\tdeer\n{image(1)}\tfox\n",
    "quotes": f'"image","label"\n"{image(0)}","deer"\n"{image(1)}","fox"\n',
    "spaces": f" Image , Label \n {image(0)} , deer \n{image(1)},fox\n",
    "paths": f"image,label\nimages/{image(0)},deer\nC:\\batch\\images\\{image(1)},fox\n",
    "blank lines": f"image,label\n\n{image(0)},deer\n\n{image(1)},fox\n{image(2)},\n{image(3)},  \n\n",
    "trailing commas": f"image,label\n{image(0)},deer,,\n{image(1)},fox,,\n",
    "no end": f"image,label\n{image(0)},deer\n{image(1)},fox",
    "a long note": f"image,label,note\n{image(0)},deer,{'x' * 200_000}\n{image(1)},fox,\n",
}


@pytest.mark.parametrize("name", sorted(GOOD))
def test_what_spreadsheets_write_is_read(exchange: Folder, name: str) -> None:
    put(exchange, "answers.csv", GOOD[name])
    assert told(exchange) == [(key(0), "deer"), (key(1), "fox")]


GOOD_JSON = {
    "mapping": {image(0): "deer", image(1): "fox", image(2): "", image(3): None},
    "list": [{"image": image(0), "label": "deer"}, {"key": key(1), "label": "fox", "annotator": "ann", "seconds": 3}],
}


@pytest.mark.parametrize("name", sorted(GOOD_JSON))
@pytest.mark.parametrize("file", ["answers.json", "ANSWERS.JSON"])
def test_json_is_read_as_a_list_or_a_mapping(exchange: Folder, name: str, file: str) -> None:
    put(exchange, file, "\ufeff" + json.dumps(GOOD_JSON[name]))
    assert told(exchange) == [(key(0), "deer"), (key(1), "fox")]


@pytest.mark.parametrize("word", ["skip", "SKIP", " Skip "])
def test_skip_is_an_answer(exchange: Folder, word: str) -> None:
    put(exchange, "answers.csv", f"image,label\n{image(0)},{word}\n")
    assert told(exchange) == [(key(0), "skip")]


def test_a_class_that_means_skip_is_refused(tmp_path: Path) -> None:
    place = make_place(tmp_path, classes=("deer", "Skip"))
    with pytest.raises(BadInput, match=r"labeling\.classes: 'Skip' cannot be a class"):
        plugins.find("labeling", "folder").connect(place)


def test_an_edit_is_the_same_annotation_with_another_payload(exchange: Folder) -> None:
    put(exchange, "answers.csv", f"image,label\n{image(0)},deer\n{image(1)},fox\n")
    before = {event.annotation_id: event.payload["label"] for event in exchange.pull()}
    put(exchange, "answers.csv", f"image,label\n{image(1)},deer\n{image(0)},deer\n")
    after = {event.annotation_id: event.payload["label"] for event in exchange.pull()}
    assert set(before) == set(after), "the order of rows is no change"
    assert [name for name in before if before[name] != after[name]] == [f"iteration-0000/answers.csv#{key(1)}#1"]


BAD: dict[str, tuple[str, str | bytes, str]] = {
    "unknown image": ("a.csv", "image,label\nother.png,deer\n", r"a\.csv, row 2: no task for image 'other\.png'"),
    "no columns": ("a.csv", "picture,class\na,b\n", r"iteration-0000/a\.csv cannot be read: it needs the columns `label`"),
    "empty": ("a.csv", "", r"a\.csv cannot be read: it needs the columns"),
    "a column twice": ("a.csv", f"image,label,label\n{image(0)},deer,fox\n", "a column is there twice"),
    "an open quote": ("a.csv", f'image,label\n"{image(0)},deer\n', r"a\.csv cannot be read: unexpected end of data"),
    "nul": ("a.csv", f"image,label\n{image(0)}\x00,deer\n", r"a\.csv"),
    "latin 1": ("a.csv", f"image,label\n{image(0)},Reh\xe4\n".encode("latin-1"), r"a\.csv cannot be read: 'utf-8' codec"),
    "utf 16": ("a.csv", f"image,label\n{image(0)},deer\n".encode("utf-16"), r"a\.csv cannot be read"),
    "a comma in a cell": ("a.csv", f"image,label\n{image(0)},deer, brown\n", r"row 2: more cells than columns"),
    "bad seconds": ("a.csv", f"image,label,seconds\n{image(0)},deer,long\n", "row 2: seconds must be a number, not long"),
    "negative seconds": ("a.csv", f"image,label,seconds\n{image(0)},deer,-1\n", "`seconds` must be a number from 0"),
    "a spreadsheet": ("a.xlsx", b"PK", r"a\.xlsx cannot be read: a \.xlsx file; save the table as \.csv"),
    "half of a json": ("a.json", '[{"image": ', r"a\.json cannot be read: Expecting value"),
    "json text": ("a.json", '"deer"', "must be a list of answers or a mapping"),
    "json numbers": ("a.json", "[1, 2]", "must be a list of answers or a mapping"),
    "json label": ("a.json", json.dumps([{"image": image(0), "label": 5}]), "row 1: label must be text, not 5"),
    "json nan": ("a.json", f'[{{"image": "{image(0)}", "label": "deer", "seconds": NaN}}]', "`seconds` must be a number"),
    "json huge": ("a.json", f'[{{"image": "{image(0)}", "label": "deer", "seconds": 1{"0" * 400}}}]', "seconds must be"),
    "json deep": ("a.json", "[" * 100_000, r"a\.json cannot be read"),
    "json list in seconds": ("a.json", json.dumps([{"key": key(0), "label": "deer", "seconds": []}]), "seconds must be"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(BAD))
def test_what_cannot_be_read_is_told_with_file_and_reason(exchange: Folder, name: str) -> None:
    file, content, expected = BAD[name]
    put(exchange, file, content)
    put(exchange, "good.csv", f"image,label\n{image(7)},fox\n")
    (bad, reason), good = told(exchange)
    assert (bad, good) == ("", (key(7), "fox")), "the other files count"
    assert re.search(expected, reason)
    assert list(exchange.pull()) == list(exchange.pull())


def test_a_bad_row_does_not_hold_up_the_others(exchange: Folder) -> None:
    put(exchange, "a.csv", f"image,label\n{image(0)},deer\nother.png,deer\n{image(1)},fox\n")
    assert [found[0] for found in told(exchange)] == [key(0), "", key(1)]


def test_what_is_not_an_answer_file_is_left_alone(exchange: Folder, tmp_path: Path) -> None:
    for name in (".hidden.csv", "._answers.csv", "~$answers.xlsx", "readme.md", ".~lock.answers.csv#"):
        put(exchange, name, "nothing")
    (exchange.path / "iteration-0000/folder.csv").mkdir()
    os.mkfifo(exchange.path / "iteration-0000/pipe.csv")
    (exchange.path / "iteration-0000/dangling.csv").symlink_to(tmp_path / "nowhere")
    (exchange.path / "iteration-0000 (copy)").mkdir()
    (exchange.path / "iteration-0001.zip").write_bytes(b"PK")
    assert told(exchange) == []


def test_the_folder_of_another_batch_is_not_touched(exchange: Folder, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in exchange.path.rglob("*") if p.is_file()}
    others = [replace(task, key=task.key.replace("camp-1", "camp-2")) for task in make_tasks(tmp_path)]
    with pytest.raises(GleanerError, match="holds another batch"):
        exchange.push(others)
    assert {p: p.read_bytes() for p in exchange.path.rglob("*") if p.is_file()} == before


def test_sending_again_never_touches_what_people_wrote(exchange: Folder, tmp_path: Path) -> None:
    path = fill_in(tmp_path)
    before = path.read_bytes()
    exchange.push(make_tasks(tmp_path))
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [None, "", "{}", "[1]", '[{"key": "a"}]'])
def test_a_damaged_list_of_tasks_is_named(exchange: Folder, content: str | None, tmp_path: Path) -> None:
    path = exchange.path / "iteration-0000/tasks.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(GleanerError, match=r"tasks\.json"):
        list(exchange.pull())
    with pytest.raises(GleanerError, match=r"tasks\.json"):
        exchange.push(make_tasks(tmp_path))


def test_an_image_that_is_gone_is_an_error_that_names_the_batch(tmp_path: Path) -> None:
    tasks = [replace(task, image=tmp_path / "gone.png") for task in make_tasks(tmp_path)]
    with pytest.raises(GleanerError, match="iteration-0000"):
        connect("folder", tmp_path).push(tasks)
    assert not (tmp_path / BATCH).exists()
    receipts = connect("folder", tmp_path).push(make_tasks(tmp_path))
    assert receipts[0] == Receipt(key(0), f"iteration-0000/{image(0)}")


@settings(max_examples=60, deadline=None)
@given(
    content=st.one_of(
        st.binary(max_size=80), st.text(max_size=80).map(str.encode), JSON.map(lambda v: json.dumps(v).encode())
    )
)
@pytest.mark.parametrize("name", ["a.csv", "a.json"])
def test_any_bytes_in_an_answer_file_raise_nothing(
    name: str, content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from tasks.labeling._answers import answers

    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    for event in answers(path, {}):
        json.dumps(event.payload)
    path.write_bytes(b"image,label\n" + content)
    list(answers(path, {}))


def test_a_folder_of_another_campaign_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    connect("folder", tmp_path).push(make_tasks(tmp_path))
    place = replace(make_place(tmp_path), campaign="camp-2")
    with pytest.raises(
        BadInput, match=r"labeling\.options\.path: .*holds batches of campaign camp-1, this one is camp-2"
    ):
        plugins.find("labeling", "folder").connect(place)
    plugins.find("labeling", "folder").connect(place, path="data/exchange-2").push([])
