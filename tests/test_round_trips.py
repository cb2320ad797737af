"""Every format there and back: a batch goes out, a simulated person answers, and exactly those answers come in."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.labeling import Answer
from tasks.labeling._tables import FORMULA, active, inert, table
from tasks.labeling.folder import Folder
from tests.annotators import JSON, events_of, image, make_tasks
from tests.exchanges import FOLDER, GOOD_TASK, exchange, held, payloads, put, told


@dataclass(frozen=True)
class Said:
    """What a person says to one task: a class, `skip`, or nothing ("")."""

    label: str
    annotator: str
    seconds: float | None


# what people do with each format --------------------------------------------------------------------------


def by_csv(tool: Folder, said: list[Said], delimiter: str = ",") -> None:
    path = tool.path / FOLDER / "batch.csv"
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
        assert events_of(tool) == [], "a batch that nobody changed holds no answer"
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
        assert events_of(tool) == events_of(tool)
        ids = [event.annotation_id for event in events_of(tool)]
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
        events = events_of(tool)
        assert [answer.label for answer in told(tool) if answer.key.endswith(make_tasks(Path(folder))[3].item_id)] == ["fox"]  # fmt: skip
        assert [event.annotation_id for event in events] == [event.annotation_id for event in events_of(tool)]
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
        assert repr(events_of(tool)) == repr(events_of(tool))


@settings(max_examples=60, deadline=None)
@given(value=JSON | st.dictionaries(st.sampled_from(["images", "annotations", "categories", "data"]), st.lists(JSON)))
def test_any_json_is_read_or_refused_with_its_file(value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tool = exchange(Path(folder))
        put(tool, "a.json", value)
        for payload in payloads(tool):
            json.dumps(payload)
            assert payload["file"] == f"{FOLDER}/a.json"
            assert "error" not in payload or f"{FOLDER}/a.json" in payload["error"]
