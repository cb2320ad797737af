"""Every format there and back: a batch goes out, a simulated person answers, and exactly those answers come in."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tasks import plugins
from tasks.errors import BadInput
from tasks.labeling import Answer, Task, Uninterpretable
from tasks.labeling._batch import batch_files
from tasks.labeling._tables import FORMULA, active, inert, table
from tasks.labeling.folder import Folder
from tests.annotators import CLASSES, JSON, image, make_place, make_tasks

ALL = ("csv", "json", "coco", "label_studio")
BATCH = "iteration-0000"


@dataclass(frozen=True)
class Said:
    """What a person says to one task: a class, `skip`, or nothing ("")."""

    label: str
    annotator: str
    seconds: float | None


def exchange(root: Path, classes: tuple[str, ...] = CLASSES, **changes: Any) -> Folder:
    """A folder tool that has sent a batch of eight in every format; `changes` are the tasks'."""
    place = replace(make_place(root), classes=classes)
    tool = plugins.find("labeling", "folder").connect(place, formats=list(ALL))
    assert isinstance(tool, Folder)
    tool.push([replace(task, predicted=classes[task.rank % len(classes)], **changes) for task in make_tasks(root)])
    return tool


def told(tool: Folder) -> list[Answer]:
    """Every answer that can be read, by key."""
    found = []
    for event in tool.pull():
        try:
            found.append(tool.interpret(event.payload))
        except Uninterpretable:
            continue
    return sorted(found, key=lambda answer: answer.key)


def payloads(tool: Folder) -> list[dict[str, Any]]:
    return [event.payload for event in tool.pull()]


def put(tool: Folder, name: str, value: Any) -> None:
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    (tool.path / BATCH / name).write_bytes(content)


def held(tool: Folder, name: str) -> Any:
    return json.loads((tool.path / BATCH / name).read_text(encoding="utf-8"))


# what people do with each format --------------------------------------------------------------------------


def by_csv(tool: Folder, said: list[Said], delimiter: str = ",") -> None:
    path = tool.path / BATCH / "batch.csv"
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
    for row, each in zip(rows, said, strict=True):
        copied = row["suggestion"] if active(row["suggestion"]) == each.label else inert(each.label)
        seconds = "" if each.seconds is None else str(each.seconds)
        row |= {"label": copied, "annotator": each.annotator, "seconds": seconds}
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(text.getvalue().encode())


def by_semicolons(tool: Folder, said: list[Said]) -> None:
    by_csv(tool, said, ";")


def by_json(tool: Folder, said: list[Said]) -> None:
    rows = held(tool, "batch.json")
    answered = [{**row, "label": each.label or None} for row, each in zip(rows, said, strict=True)]
    more = [{"annotator": each.annotator, "seconds": each.seconds} for each in said]
    put(tool, "batch.json", [{**row, **each} for row, each in zip(answered, more, strict=True)])


def by_coco(tool: Folder, said: list[Said]) -> None:
    """As CVAT writes it: file names and attributes, none of our own fields, perhaps two boxes of one class."""
    value = held(tool, "batch.coco.json")
    numbers = {category["name"]: category["id"] for category in value["categories"]} | {"skip": 1000}
    value["categories"].append({"id": 1000, "name": "skip"})
    for picture, each in zip(value["images"], said, strict=True):
        attributes = {"annotator": each.annotator, "seconds": each.seconds}
        box = {"image_id": picture["id"], "category_id": numbers.get(each.label), "attributes": attributes}
        value["annotations"] += [box] * (1 + picture["id"] % 2) if each.label else []
    value["images"] = [{"id": each["id"], "file_name": each["file_name"]} for each in value["images"]]
    put(tool, "instances_default.json", value)


def by_label_studio(tool: Folder, said: list[Said]) -> None:
    """As Label Studio exports it (JSON)."""
    exported = []
    for number, (task, each) in enumerate(zip(held(tool, "batch.label_studio.json"), said, strict=True), start=1):
        result = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [each.label]}}
        annotation = {
            "id": number, "completed_by": {"email": each.annotator}, "was_cancelled": each.label == "skip",
            "result": [] if each.label == "skip" else [result], "ground_truth": False, "lead_time": each.seconds,
        }  # fmt: skip
        exported.append(
            {"id": number, "data": task["data"], "annotations": [annotation] if each.label else [], "predictions": [1]}
        )
    put(tool, "project-1-at-2026-01-01.json", exported)


PEOPLE: dict[str, Callable[[Folder, list[Said]], None]] = {
    "csv": by_csv, "semicolons": by_semicolons, "json": by_json, "coco": by_coco, "label studio": by_label_studio,
}  # fmt: skip

PRINTABLE = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cn", "Co", "Cf", "Zl", "Zp"]), max_size=8)
AWKWARD = st.sampled_from(["=1+1", "'=1+1", "''@a", "'", "'quoted'", '"', 'a "b", c', "a,b;c", "-", "ايل", "שועל", "鹿,", "+", "$a", "<b>&amp;"])  # fmt: skip
NAMES = (PRINTABLE | AWKWARD | st.tuples(AWKWARD, PRINTABLE).map("".join)).map(lambda text: "".join(filter(str.isprintable, text)).strip())  # fmt: skip
CLASS_LISTS = st.lists(NAMES.filter(lambda name: name and name.lower() != "skip"), min_size=2, max_size=5, unique=True)


@st.composite
def batches(draw: st.DrawFn) -> tuple[tuple[str, ...], list[Said]]:
    """Classes, and what a person says to eight tasks."""
    classes = tuple(draw(CLASS_LISTS))
    label = st.sampled_from([*classes, "skip", ""])
    seconds = st.none() | st.floats(0, 1e6).map(lambda value: round(value, 3))
    said = draw(st.lists(st.builds(Said, label, NAMES, seconds), min_size=8, max_size=8))
    return classes, said


@settings(max_examples=60, deadline=None)
@given(batch=batches())
@pytest.mark.parametrize("name", sorted(PEOPLE))
def test_what_people_answer_is_what_comes_in(name: str, batch: tuple[tuple[str, ...], list[Said]]) -> None:
    classes, said = batch
    with tempfile.TemporaryDirectory() as folder:
        tool = exchange(Path(folder), classes)
        assert list(tool.pull()) == [], "a batch that nobody changed holds no answer"
        PEOPLE[name](tool, said)
        keys = [task.key for task in make_tasks(Path(folder))]
        expected = [
            Answer(key, "label", each.label, each.annotator, each.seconds)
            if each.label != "skip"
            else Answer(key, "skip", "", each.annotator, each.seconds)
            for key, each in zip(keys, said, strict=True)
            if each.label
        ]
        assert told(tool) == sorted(expected, key=lambda answer: answer.key)
        assert list(tool.pull()) == list(tool.pull())
        ids = [event.annotation_id for event in tool.pull()]
        assert len(set(ids)) == len(ids)


@given(st.text())
def test_a_cell_is_never_a_formula_and_means_what_it_meant(text: str) -> None:
    assert not inert(text).startswith(FORMULA)
    assert active(inert(text)) == text


@given(st.text(FORMULA[0] + "'-+@a\t"))
def test_apostrophes_before_formulas_are_kept_apart(text: str) -> None:
    assert active(inert(text)) == text
    assert active(inert(inert(text))) == inert(text)


# garbage ----------------------------------------------------------------------------------------------------

GOOD = {"image": image(3), "label": "fox"}
GOOD_TASK: dict[str, Any] = {
    "data": {"image": f"/data/upload/1/0a1b2c3d-{image(3)}"},
    "annotations": [{"id": 7, "result": [{"from_name": "label", "type": "choices", "value": {"choices": ["fox"]}}]}],
}
GARBAGE: dict[str, Callable[[list[Any]], Any]] = {
    "list": lambda junk: [*junk, GOOD, *junk],
    "tasks": lambda junk: [*junk, GOOD_TASK, *({"data": j, "annotations": j} for j in junk)],
    "annotations": lambda junk: [{**GOOD_TASK, "predictions": junk, "annotations": [*junk, *GOOD_TASK["annotations"], *junk]}],
    "coco": lambda junk: {
        "images": [*junk, {"id": "ours", "file_name": image(3)}],
        "categories": [*junk, {"id": "fox", "name": "fox"}],
        "annotations": [*junk, {"image_id": "ours", "category_id": "fox"}, *({"image_id": j, "category_id": j} for j in junk)],
    },
    "coco fields": lambda junk: {
        "images": [{"id": "ours", "file_name": image(3)}, *({"id": j, "file_name": j, "key": j} for j in junk)],
        "categories": [{"id": "fox", "name": "fox"}, *({"id": j, "name": j} for j in junk)],
        "annotations": [{"image_id": "ours", "category_id": "fox", "attributes": junk}],
    },
}  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(junk=st.lists(JSON.filter(lambda value: value not in ("ours", "fox")), max_size=4))
@pytest.mark.parametrize("kind", sorted(GARBAGE))
def test_no_garbage_loses_a_good_answer(kind: str, junk: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tool = exchange(Path(folder))
        put(tool, "a.json", GARBAGE[kind](junk))
        events = list(tool.pull())
        assert [answer.label for answer in told(tool) if answer.key.endswith(make_tasks(Path(folder))[3].item_id)] == ["fox"]  # fmt: skip
        assert [event.annotation_id for event in events] == [event.annotation_id for event in tool.pull()]
        assert len({event.annotation_id for event in events}) == len(events)


CELLS = st.lists(st.text(max_size=12), max_size=5)


@settings(max_examples=60, deadline=None)
@given(before=st.lists(CELLS, max_size=4), after=st.lists(CELLS, max_size=4), broken=st.text(max_size=20))
def test_no_garbage_in_a_table_loses_a_good_answer(
    before: list[list[str]], after: list[list[str]], broken: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tool = exchange(Path(folder))
        good = [image(3), "fox", "ann", "2"]
        content = table(["image", "label", "annotator", "seconds"], [*before, good, *after])
        put(tool, "a.csv", content + broken.encode("utf-8", "replace"))
        key = make_tasks(Path(folder))[3].key
        assert Answer(key, "label", "fox", "ann", 2.0) in told(tool)
        assert repr(list(tool.pull())) == repr(list(tool.pull()))


@settings(max_examples=100, deadline=None)
@given(value=JSON | st.dictionaries(st.sampled_from(["images", "annotations", "categories", "data"]), st.lists(JSON)))
def test_any_json_is_read_or_refused_with_its_file(value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tool = exchange(Path(folder))
        put(tool, "a.json", value)
        for payload in payloads(tool):
            json.dumps(payload)
            assert payload["file"] == f"{BATCH}/a.json"
            assert "error" not in payload or f"{BATCH}/a.json" in payload["error"]


# out --------------------------------------------------------------------------------------------------------


def test_a_batch_holds_the_files_that_were_asked_for(tmp_path: Path) -> None:
    tool = exchange(tmp_path)
    names = {path.name for path in (tool.path / BATCH).iterdir()}
    assert names == {
        "batch.csv", "batch.json", "batch.coco.json", "batch.label_studio.json", "label_studio.xml", "tasks.json", "images",
    }  # fmt: skip
    assert "batch.csv" in tool.address


def test_without_a_table_people_are_sent_to_the_folder(tmp_path: Path) -> None:
    tool = plugins.find("labeling", "folder").connect(make_place(tmp_path), formats=["coco"])
    tool.push(make_tasks(tmp_path))
    assert sorted(path.name for path in (tool.path / BATCH).iterdir()) == ["batch.coco.json", "images", "tasks.json"]
    assert tool.address == str(tool.path / BATCH)


def test_no_format_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"labeling\.options\.formats: at least one of csv, json, coco, label_studio"):
        plugins.find("labeling", "folder").connect(make_place(tmp_path), formats=[])


def test_coco_knows_the_size_of_an_image_and_what_is_suggested(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    tasks = make_tasks(tmp_path)
    Image.new("L", (5, 7)).save(tmp_path / "image.png")
    plugins.find("labeling", "folder").connect(place, formats=["coco"]).push(tasks)
    value = json.loads((tmp_path / f"data/exchange/{BATCH}/batch.coco.json").read_text())
    assert value["images"][1] == {
        "id": 2, "file_name": f"images/{image(1)}", "width": 5, "height": 7, "key": tasks[1].key, "rank": 1,
        "arm": "active", "suggestion": "fox", "confidence": 0.9,
    }  # fmt: skip
    assert [category["name"] for category in value["categories"]] == list(CLASSES)
    assert value["annotations"] == []


def test_the_rest_of_a_batch_has_files_of_its_own_in_every_format(tmp_path: Path) -> None:
    tasks = make_tasks(tmp_path)
    tool = plugins.find("labeling", "folder").connect(make_place(tmp_path), formats=list(ALL))
    tool.push(tasks[:4])
    before = {path: path.read_bytes() for path in (tool.path / BATCH).glob("batch.*")}
    tool.push(tasks)
    assert {path: path.read_bytes() for path in before} == before
    assert len(held(tool, "batch-from-0004.json")) == len(held(tool, "batch-from-0004.label_studio.json")) == 4
    assert len(held(tool, "batch-from-0004.coco.json")["images"]) == 4


def test_a_class_name_with_a_lone_surrogate_is_written_all_the_same() -> None:
    task = Task("camp-1:0:a", "a", 0, 0, "seed", Path("a.png"), None, "\udc80", None)
    files = batch_files("batch", ALL, [task], {task.key: "a.png"}, ("\udc80", "b"), {})
    assert all(content for content in files.values())


# in: what only some tools say -----------------------------------------------------------------------------


def test_label_studio_tells_ground_truth_and_whether_the_suggestion_was_taken(tmp_path: Path) -> None:
    tool = exchange(tmp_path)
    made = {"id": 7, "completed_by": 4, "ground_truth": True, "parent_prediction": 1, "lead_time": 3.2}
    prediction = {"id": 1, "result": [{"from_name": "label", "type": "choices", "value": {"choices": ["deer"]}}]}
    put(tool, "export.json", [{**GOOD_TASK, "annotations": [{**GOOD_TASK["annotations"][0], **made, "prediction": prediction}]}])  # fmt: skip
    (payload,) = payloads(tool)
    assert payload == {
        "file": f"{BATCH}/export.json", "key": make_tasks(tmp_path)[3].key, "kind": "label", "label": "fox",
        "annotator": "4", "seconds": 3.2, "ground_truth": True, "accepted": False,
    }  # fmt: skip


@pytest.mark.parametrize("word", ["true", "TRUE", "1", "yes"])
def test_a_column_says_what_is_ground_truth(word: str, tmp_path: Path) -> None:
    tool = exchange(tmp_path)
    put(
        tool,
        "a.csv",
        f"image,label,ground_truth\n{image(0)},deer,{word}\n{image(1)},fox,no\n{image(2)},fox,\n".encode(),
    )
    assert [payload.get("ground_truth") for payload in payloads(tool)] == [True, None, None]


def test_the_short_export_of_label_studio_is_read(tmp_path: Path) -> None:
    tool, keys = exchange(tmp_path), [task.key for task in make_tasks(tmp_path)]
    about = {"annotator": 1, "annotation_id": 1, "created_at": "2026-01-01T00:00:00Z", "lead_time": 3.2}
    rows = [{"image": "images/a.png", "key": keys[2], "id": 1, "label": "deer", **about}, {"key": keys[3], "id": 2, **about}]  # fmt: skip
    put(tool, "min.json", rows)
    assert told(tool) == [Answer(keys[2], "label", "deer", "1", 3.2)]


def test_the_table_of_label_studio_is_read(tmp_path: Path) -> None:
    tool = exchange(tmp_path)
    line = f"2026-01-01,/data/local-files/?d={BATCH}/images/{image(3)},fox,1,7,3.5"
    put(tool, "export.csv", f"created_at,image,label,annotator,annotation_id,lead_time\n{line}\n".encode())
    assert told(tool) == [Answer(make_tasks(tmp_path)[3].key, "label", "fox", "1", 3.5)]


def test_two_annotators_of_one_task_are_two_answers_whose_ids_do_not_hang_on_their_order(tmp_path: Path) -> None:
    tool = exchange(tmp_path)
    first = GOOD_TASK["annotations"][0]
    second = {**first, "id": 9, "was_cancelled": True}
    put(tool, "a.json", [{**GOOD_TASK, "annotations": [first, second]}])
    before = {event.annotation_id: event.payload for event in tool.pull()}
    put(tool, "a.json", [{**GOOD_TASK, "annotations": [second, first]}])
    assert {event.annotation_id: event.payload for event in tool.pull()} == before
    assert sorted(payload["kind"] for payload in before.values()) == ["label", "skip"]


def test_moving_a_good_row_is_nothing_new(tmp_path: Path) -> None:
    tool = exchange(tmp_path)
    put(tool, "a.csv", f"image,label\n{image(0)},deer\n{image(1)},lynx\n".encode())
    before = {event.annotation_id: event.payload for event in tool.pull()}
    put(tool, "a.csv", f"image,label\n{image(2)},fox\n{image(1)},lynx\n{image(0)},deer\n".encode())
    after = {event.annotation_id: event.payload for event in tool.pull()}
    assert before.items() <= after.items()
    assert [event.row for event in tool.pull()] == [2, 3, 4]


COCO: dict[str, Any] = {
    "images": [{"id": 1, "file_name": f"images/{image(0)}"}, {"id": 2, "file_name": "other.png"}, {"id": 3}, {"id": 3}],
    "categories": [{"id": 1, "name": "deer"}, {"id": 2, "name": "fox"}, {"id": 3}],
}
BAD_COCO: dict[str, tuple[list[Any], str]] = {
    "two classes": ([(1, 1), (1, 2)], r"a\.json, row 1: the image has annotations of 2 classes: 'deer', 'fox'; one class"),
    "no image": ([(9, 1)], r"row 1: image_id '9' is the id of none of `images`; it must be that of one"),
    "an id twice": ([(3, 1)], r"image_id '3' is the id of 2 of `images`"),
    "no category": ([(1, 9)], r"category_id '9' is the id of no category"),
    "a category without a name": ([(1, 1), (1, 3)], r"category_id '3' is the id of no category"),
    "another picture": ([(2, 1)], r"no task for image 'other\.png'; use the names in batch\.csv"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(BAD_COCO))
def test_a_coco_file_that_contradicts_itself_is_refused_with_what_is_wrong(name: str, tmp_path: Path) -> None:
    pairs, expected = BAD_COCO[name]
    tool = exchange(tmp_path)
    annotations = [{"id": n, "image_id": i, "category_id": c} for n, (i, c) in enumerate(pairs)]
    put(tool, "a.json", {**COCO, "annotations": annotations})
    (event,) = tool.pull()
    assert event.row == 1
    with pytest.raises(Uninterpretable, match=expected):
        tool.interpret(event.payload)


def test_label_studio_answers_of_other_shapes_are_refused_with_their_annotation(tmp_path: Path) -> None:
    tool = exchange(tmp_path)
    put(tool, "a.json", [{"data": {}}, {**GOOD_TASK, "annotations": [{"id": 5, "result": []}]}])
    (event,) = tool.pull()
    assert (event.row, event.image) == (2, image(3))
    with pytest.raises(Uninterpretable, match=r"a\.json, row 2: annotation 5: it is empty: neither a class nor a skip"):
        tool.interpret(event.payload)
