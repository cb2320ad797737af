"""The report of refused answers: each with its file, row, image, value and reason; gone when nothing is refused."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from flows.run import look
from flows.screen import show_status
from tasks.campaign import open_campaign
from tasks.refusals import FILE, Refusal, line, report, warning
from tasks.status import status
from tests.quick import broken, copy, edit, image_folder, make_workspace, tick

BATCH = "data/exchange/iteration-0000"


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A campaign whose first batch waits in a folder; not to be changed."""
    home = tmp_path_factory.mktemp("refusals")
    root = make_workspace(home / "deer", image_folder(home / "images"), **{"labeling.tool": "folder"})
    assert tick(root) == "iteration 0"
    return root


@pytest.fixture
def root(asked: Path, tmp_path: Path) -> Path:
    return copy(asked, tmp_path / "workspace")


def images(root: Path) -> list[str]:
    with open(root / BATCH / "batch.csv", newline="") as handle:
        return [row["image"] for row in csv.DictReader(handle)]


def put(root: Path, name: str, text: str) -> None:
    (root / BATCH / name).write_text(text, encoding="utf-8")


def reported(root: Path) -> list[tuple[str, ...]]:
    """The report's rows after a look for answers."""
    look(root)
    if not (root / FILE).exists():
        return []
    rows = list(csv.reader(io.StringIO((root / FILE).read_text(encoding="utf-8"))))
    assert rows[0] == ["file", "row", "image", "value", "reason"]
    return [tuple(row) for row in rows[1:]]


def test_each_refused_answer_has_its_row_in_the_report(root: Path) -> None:
    one, two, three, four = images(root)[:4]
    put(root, "a.csv", f"image,label,seconds\n{one},0,1\n{two},zerro,1\nother.png,1,\n{three},1,soon\n{four},1,2\n")
    put(root, "b.json", json.dumps([{"key": "camp:0:x", "label": "0"}, 5, {"image": four, "label": "2"}]))
    put(root, "c.xlsx", "PK")
    file = "iteration-0000/"
    assert [row[:4] for row in reported(root)] == [
        (f"{file}a.csv", "3", two, "zerro"),
        (f"{file}a.csv", "4", "other.png", "other.png"),
        (f"{file}a.csv", "5", three, "soon"),
        (f"{file}b.json", "1", "", "0"),
        (f"{file}b.json", "2", "", "5"),
        (f"{file}c.xlsx", "", "", ""),
    ]
    reasons = [row[4] for row in reported(root)]
    for reason, expected in zip(
        reasons,
        ["unknown class 'zerro'; allowed: 0, 1, 2.", "no task for image 'other.png'; use", "seconds must be a number from",
         "unknown task key 'camp:0:x'", "an answer must be an object", "iteration-0000/c.xlsx cannot be read: a .xlsx file; save"],
        strict=True,
    ):  # fmt: skip
        assert reason.startswith(expected)
    assert status(root)["asked"]["total"] - status(root)["pending"] == 2, "the good rows count"
    assert broken(root) == []


def test_the_report_goes_when_everything_is_corrected(root: Path) -> None:
    put(root, "a.csv", f"image,label\n{images(root)[0]},zerro\n")
    assert len(reported(root)) == 1
    put(root, "a.csv", f"image,label\n{images(root)[0]},0\n")
    assert reported(root) == []
    assert not (root / FILE).exists()
    assert status(root)["refused_file"] is None


def test_a_refused_second_answer_is_reported_until_the_next_iteration_is_open(root: Path) -> None:
    names = images(root)
    put(root, "a.csv", f"image,label\n{names[0]},0\n")
    put(root, "b.csv", f"image,label\n{names[0]},zerro\n")
    assert [row[:3] for row in reported(root)] == [("iteration-0000/b.csv", "2", names[0])]
    put(root, "a.csv", "image,label\n" + "".join(f"{name},0\n" for name in names))
    assert tick(root) == "iteration 1"
    assert reported(root) == []


def test_a_row_that_moved_is_reported_where_it_is(root: Path) -> None:
    one, two = images(root)[:2]
    put(root, "a.csv", f"image,label\n{one},zerro\n{two},0\n")
    assert reported(root)[0][1] == "2"
    put(root, "a.csv", f"image,label\n{two},0\n{one},zerro\n")
    assert reported(root)[0][1] == "3"


def test_the_tick_and_the_status_name_the_report(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(root, "a.csv", f"image,label\n{images(root)[0]},zerro\n")
    idle = look(root)
    assert idle is not None
    assert any(f"1 of the answers were refused: {FILE} and `gleaner status`" in told for told in idle.warnings)
    told = status(root)
    assert told["refused_file"] == FILE
    assert told["refused_answers"][0].startswith("iteration-0000/a.csv, rank 0: unknown class 'zerro'")
    show_status(told)
    assert FILE in capsys.readouterr().out


def test_the_report_is_nobodys_commit(root: Path) -> None:
    put(root, "a.csv", f"image,label\n{images(root)[0]},0\nother.png,0\n")
    assert len(reported(root)) == 1
    edit(root, {"labeling.quorum": 0.01})
    assert tick(root) == "iteration 1"
    assert broken(root) == []


def test_a_report_holds_no_formula_and_no_control_sign(root: Path) -> None:
    put(root, "a.csv", f'image,label\n{images(root)[0]},"=1+1"\n=cmd.png,0\n{images(root)[1]},a\tb\n')
    assert [row[2:4] for row in reported(root)] == [
        (images(root)[0], "'=1+1"),
        ("'=cmd.png", "'=cmd.png"),
        (images(root)[1], "a\N{REPLACEMENT CHARACTER}b"),
    ]


def test_without_refusals_nothing_is_said(root: Path) -> None:
    with open_campaign(root, "look") as campaign:
        assert warning(campaign) == []


def test_a_refusal_in_one_line_says_each_thing_once() -> None:
    assert line(Refusal("a.csv", "", "", "", "a.csv cannot be read: empty")) == "a.csv cannot be read: empty"
    assert line(Refusal("a.csv", "3", "x.png", "dear", "unknown class", 7)) == "a.csv, row 3, rank 7: unknown class"
    assert line(Refusal("", "", "", "", "why")) == "why"
    assert report([Refusal("a.csv", "3", "x", "=1", "y, z")]) == b'file,row,image,value,reason\na.csv,3,x,\'=1,"y, z"\n'
