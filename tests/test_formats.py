"""What a batch's folder holds in each format, what only some tools say, and what their files may not say."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from ruamel.yaml import YAML

from tasks import plugins
from tasks.errors import BadInput
from tasks.labeling import Answer, Task, Uninterpretable
from tasks.labeling._answers import answers
from tasks.labeling._batch import batch_files
from tasks.params import parse
from tasks.refusals import COLUMNS
from tasks.workspace import set_value
from tests.annotators import CLASSES, events_of, image, make_place, make_tasks
from tests.exchanges import FOLDER, FORMATS, GOOD_TASK, exchange, held, payloads, put, told

ROOT = Path(__file__).resolve().parent.parent

# out --------------------------------------------------------------------------------------------------------


def test_a_batch_holds_the_files_that_were_asked_for(tmp_path: Path) -> None:
    tool = exchange(tmp_path)
    names = {path.name for path in (tool.path / FOLDER).iterdir()}
    assert names == {
        "batch.csv", "batch.json", "batch.coco.json", "batch.label_studio.json", "label_studio.xml", "tasks.json", "images",
    }  # fmt: skip
    assert "batch.csv" in tool.address


def test_without_a_table_people_are_sent_to_the_folder(tmp_path: Path) -> None:
    tool = plugins.find("labeling", "folder").connect(make_place(tmp_path), formats=["coco"])
    tool.push(make_tasks(tmp_path))
    assert sorted(path.name for path in (tool.path / FOLDER).iterdir()) == ["batch.coco.json", "images", "tasks.json"]
    assert tool.address == str(tool.path / FOLDER)


def test_no_format_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"labeling\.options\.formats: at least one of csv, json, coco, label_studio"):
        plugins.find("labeling", "folder").connect(make_place(tmp_path), formats=[])


def test_coco_knows_the_size_of_an_image_and_what_is_suggested(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    tasks = make_tasks(tmp_path)
    Image.new("L", (5, 7)).save(tmp_path / "image.png")
    plugins.find("labeling", "folder").connect(place, formats=["coco"]).push(tasks)
    value = json.loads((tmp_path / f"data/exchange/{FOLDER}/batch.coco.json").read_text())
    assert value["images"][1] == {
        "id": 2, "file_name": f"images/{image(1)}", "width": 5, "height": 7, "key": tasks[1].key, "rank": 1,
        "arm": "active", "suggestion": "fox", "confidence": 0.9,
    }  # fmt: skip
    assert [category["name"] for category in value["categories"]] == list(CLASSES)
    assert value["annotations"] == []


def test_the_rest_of_a_batch_has_files_of_its_own_in_every_format(tmp_path: Path) -> None:
    tasks = make_tasks(tmp_path)
    tool = plugins.find("labeling", "folder").connect(make_place(tmp_path), formats=list(FORMATS))
    tool.push(tasks[:4])
    before = {path: path.read_bytes() for path in (tool.path / FOLDER).glob("batch.*")}
    tool.push(tasks)
    assert {path: path.read_bytes() for path in before} == before
    assert len(held(tool, "batch-from-0004.json")) == len(held(tool, "batch-from-0004.label_studio.json")) == 4
    assert len(held(tool, "batch-from-0004.coco.json")["images"]) == 4


def test_a_class_name_with_a_lone_surrogate_is_written_all_the_same() -> None:
    task = Task("camp-1:0:a", "a", 0, 0, "seed", Path("a.png"), None, "\udc80", None)
    files = batch_files("batch", FORMATS, [task], {task.key: "a.png"}, ("\udc80", "b"), {})
    assert all(content for content in files.values())


# in: what only some tools say -----------------------------------------------------------------------------


def test_label_studio_tells_ground_truth_and_whether_the_suggestion_was_taken(tmp_path: Path) -> None:
    tool = exchange(tmp_path)
    made = {"id": 7, "completed_by": 4, "ground_truth": True, "parent_prediction": 1, "lead_time": 3.2}
    prediction = {"id": 1, "result": [{"from_name": "label", "type": "choices", "value": {"choices": ["deer"]}}]}
    put(tool, "export.json", [{**GOOD_TASK, "annotations": [{**GOOD_TASK["annotations"][0], **made, "prediction": prediction}]}])  # fmt: skip
    (payload,) = payloads(tool)
    assert payload == {
        "file": f"{FOLDER}/export.json", "key": make_tasks(tmp_path)[3].key, "kind": "label", "label": "fox",
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
    line = f"2026-01-01,/data/local-files/?d={FOLDER}/images/{image(3)},fox,1,7,3.5"
    put(tool, "export.csv", f"created_at,image,label,annotator,annotation_id,lead_time\n{line}\n".encode())
    assert told(tool) == [Answer(make_tasks(tmp_path)[3].key, "label", "fox", "1", 3.5)]


def test_two_annotators_of_one_task_are_two_answers_whose_ids_do_not_hang_on_their_order(tmp_path: Path) -> None:
    tool = exchange(tmp_path)
    first = GOOD_TASK["annotations"][0]
    second = {**first, "id": 9, "was_cancelled": True}
    put(tool, "a.json", [{**GOOD_TASK, "annotations": [first, second]}])
    before = {event.annotation_id: event.payload for event in events_of(tool)}
    put(tool, "a.json", [{**GOOD_TASK, "annotations": [second, first]}])
    assert {event.annotation_id: event.payload for event in events_of(tool)} == before
    assert sorted(payload["kind"] for payload in before.values()) == ["label", "skip"]


def test_moving_a_good_row_is_nothing_new(tmp_path: Path) -> None:
    tool = exchange(tmp_path)
    put(tool, "a.csv", f"image,label\n{image(0)},deer\n{image(1)},lynx\n".encode())
    before = {event.annotation_id: event.payload for event in events_of(tool)}
    put(tool, "a.csv", f"image,label\n{image(2)},fox\n{image(1)},lynx\n{image(0)},deer\n".encode())
    after = {event.annotation_id: event.payload for event in events_of(tool)}
    assert before.items() <= after.items()
    assert [event.row for event in events_of(tool)] == [2, 3, 4]


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
    (event,) = events_of(tool)
    assert event.row == 1
    with pytest.raises(Uninterpretable, match=expected):
        tool.interpret(event.payload)


def test_label_studio_answers_of_other_shapes_are_refused_with_their_annotation(tmp_path: Path) -> None:
    tool = exchange(tmp_path)
    put(tool, "a.json", [{"data": {}}, {**GOOD_TASK, "annotations": [{"id": 5, "result": []}]}])
    (event,) = events_of(tool)
    assert (event.row, event.image) == (2, image(3))
    with pytest.raises(Uninterpretable, match=r"a\.json, row 2: annotation 5: it is empty: neither a class nor a skip"):
        tool.interpret(event.payload)


# docs/exchange.md -----------------------------------------------------------------------------------------

PAGE = re.findall(r"^ *```(\w+)\n(.*?)^ *```", (ROOT / "docs/exchange.md").read_text(encoding="utf-8"), re.S | re.M)
SAID = [(kind, text) for kind, text in PAGE if kind in ("csv", "json") and not text.startswith("file,")]


@pytest.mark.parametrize("number", range(len(SAID)))
def test_an_example_of_the_page_is_read_as_it_says(number: int, tmp_path: Path) -> None:
    kind, text = SAID[number]
    (tmp_path / f"a.{kind}").write_text(text)
    keys = {name: f"camp-1:0:{name}" for name in re.findall(r"\d{4}_[0-9a-f]{12}\.png", text)}
    payloads = [event.payload for event in answers(tmp_path / f"a.{kind}", keys)]
    assert payloads and not [payload["error"] for payload in payloads if "error" in payload]
    assert payloads[0]["label"] == "deer"
    assert [payload["kind"] for payload in payloads[1:]] in ([], ["skip"])


def test_the_settings_of_the_page_are_valid() -> None:
    (text,) = [text for kind, text in PAGE if kind == "yaml"]
    params = (ROOT / "params.yaml").read_text(encoding="utf-8")
    for key, value in YAML(typ="safe").load(text)["labeling"].items():
        params = set_value(params, "labeling", key, value)
    assert parse(params).labeling.tool == "folder"


def test_the_report_of_the_page_is_what_is_said(tmp_path: Path) -> None:
    (text,) = [text for kind, text in PAGE if text.startswith("file,")]
    header, _, seconds, extra, sheet = csv.reader(io.StringIO(text))
    assert tuple(header) == COLUMNS
    (tmp_path / "iteration-0003").mkdir()
    (tmp_path / "iteration-0003/answers.xlsx").write_bytes(b"PK")
    lines = {
        "batch.csv": f"image,label,seconds\n{seconds[2]},deer,{seconds[3]}\n",
        "extra.csv": f"image,label\n{extra[2]},deer\n",
    }
    for name, content in lines.items():
        (tmp_path / "iteration-0003" / name).write_text(content)
    for row in (seconds, extra, sheet):
        (event,) = answers(tmp_path / row[0], {seconds[2]: "camp-1:0:a"})
        assert event.payload["error"].endswith(row[4])
