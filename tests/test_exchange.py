"""The folder tool: batches as CSV and images, answers from whatever people put there."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import plugins
from tasks.errors import BadInput, GleanerError
from tasks.labeling import Receipt, Uninterpretable
from tasks.labeling.folder import Folder
from tasks.ledger import task_key
from tests.annotators import BATCH, CLASSES, JSON, connect, events_of, fill_in, image, item, make_place, make_tasks


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


def key(number: int) -> str:
    return task_key("camp-1", 0, item(number))


def told(tool: Folder) -> list[tuple[str, str]]:
    """(key, label) of what can be read, ("", reason) of what cannot."""
    found = []
    for event in events_of(tool):
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
    before = {event.annotation_id: event.payload["label"] for event in events_of(exchange)}
    put(exchange, "answers.csv", f"image,label\n{image(1)},deer\n{image(0)},deer\n")
    after = {event.annotation_id: event.payload["label"] for event in events_of(exchange)}
    assert set(before) == set(after), "the order of rows is no change"
    assert [name for name in before if before[name] != after[name]] == [f"iteration-0000/answers.csv#{key(1)}#1"]


BAD: dict[str, tuple[str, str | bytes, str]] = {
    "unknown image": ("a.csv", "image,label\nother.png,deer\n", r"a\.csv, row 2: no task for image 'other\.png'"),
    "no columns": ("a.csv", "picture,class\na,b\n", r"iteration-0000/a\.csv cannot be read: it needs the columns `label`"),
    "empty": ("a.csv", "", r"a\.csv cannot be read: it needs the columns"),
    "a column twice": ("a.csv", f"image,label,label\n{image(0)},deer,fox\n", "a column is there twice"),
    "an open quote": ("a.csv", f'image,label\n"{image(0)},deer\n', r"a\.csv, row 2: the table cannot be read from here on: unexpected end"),
    "nul": ("a.csv", f"image,label\n{image(0)}\x00,deer\n", r"a\.csv"),
    "latin 1": ("a.csv", f"image,label\n{image(0)},Reh\xe4\n".encode("latin-1"), r"a\.csv cannot be read: 'utf-8' codec"),
    "utf 16": ("a.csv", f"image,label\n{image(0)},deer\n".encode("utf-16"), r"a\.csv cannot be read"),
    "a comma in a cell": ("a.csv", f"image,label\n{image(0)},deer, brown\n", r"row 2: more cells than columns"),
    "bad seconds": ("a.csv", f"image,label,seconds\n{image(0)},deer,long\n", "row 2: seconds must be a number from 0 to 1000000000, not long"),
    "negative seconds": ("a.csv", f"image,label,seconds\n{image(0)},deer,-1\n", "row 2: seconds must be a number from 0"),
    "a spreadsheet": ("a.xlsx", b"PK", r"a\.xlsx cannot be read: a \.xlsx file; save the table as \.csv"),
    "half of a json": ("a.json", '[{"image": ', r"a\.json cannot be read: Expecting value"),
    "json text": ("a.json", '"deer"', "must be a list of answers or a mapping"),
    "json numbers": ("a.json", "[1, 2]", "must be a list of answers or a mapping"),
    "json label": ("a.json", json.dumps([{"image": image(0), "label": 5}]), "row 1: label must be text, not 5"),
    "json nan": ("a.json", f'[{{"image": "{image(0)}", "label": "deer", "seconds": NaN}}]', "row 1: seconds must be a number"),
    "json huge": ("a.json", f'[{{"image": "{image(0)}", "label": "deer", "seconds": 1{"0" * 400}}}]', "seconds must be"),
    "json deep": ("a.json", "[" * 100_000, r"a\.json cannot be read"),
    "json twice": ("a.json", f'{{"{image(0)}": "deer", "{image(0)}": "fox"}}', "is there twice in one object"),
    "ground truth": ("a.csv", f"image,label,ground_truth\n{image(0)},deer,maybe\n", "row 2: ground_truth must be true or"),
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
    assert events_of(exchange) == events_of(exchange)


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
        events_of(exchange)
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
