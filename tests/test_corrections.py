"""Corrections of served predictions: each once, one person's vote, trained on without costing a label, never measured with."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from itertools import count
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks import corrections
from tasks.campaign import IDENTITY, LEDGER, Campaign, open_campaign, read_campaign
from tasks.corrections import INSTANCE, SPOOL, Correction, correct, correct_all, read_file
from tasks.errors import BadInput, GleanerError
from tasks.ledger import Asked, open_ledger
from tasks.lock import campaign_lock
from tasks.polling import poll
from tasks.pool import read_manifest
from tasks.restore import fork, restore
from tasks.status import status
from tasks.store import Store
from tasks.tables import LABELS, METRICS, SIGHTINGS
from tests.children import run_in_child
from tests.quick import TEMPLATE, broken, copy, edit, found, image_folder, make_workspace, tick


@pytest.fixture
def root(closed_iteration: Path, tmp_path: Path) -> Path:
    """A workspace whose iterations 0 and 1 are closed."""
    return copy(closed_iteration, tmp_path / "workspace")


def look(root: Path) -> Any:
    """Poll, and what is asked, corrected and quarantined then."""
    with open_campaign(root, "test") as campaign:
        poll(campaign)
        return campaign.asked(), campaign.corrected(), campaign.ledger.quarantined()


def asked(root: Path) -> dict[str, Asked]:
    with open_ledger(root / LEDGER, lambda: "") as ledger:
        return {item.item_id: item for item in ledger.asked()}


def free(root: Path, split: str = "pool") -> list[dict[str, Any]]:
    """Rows of the manifest that nobody was asked about."""
    known = asked(root) if (root / LEDGER).exists() else {}
    return [r for r in read_manifest(Store(root)).to_pylist() if r["split"] == split and r["item_id"] not in known]


def events(root: Path) -> list[dict[str, Any]]:
    with open_ledger(root / LEDGER, lambda: "") as ledger:
        columns, rows = ledger.rows("label_event")
    every = [dict(zip(columns, row, strict=True)) for row in rows]
    return [event for event in every if event["instance"] == INSTANCE]


def labels(root: Path) -> dict[str, dict[str, Any]]:
    return {row["item_id"]: row for row in Store(root).read_table(LABELS).to_pylist()}


# what they count for ----------------------------------------------------------------------------------------


def test_corrections_before_during_and_after_a_batch_are_trained_on_and_cost_no_label(tmp_path: Path) -> None:
    root = make_workspace(tmp_path / "workspace", image_folder(tmp_path / "images"))
    first, second, third = free(root)[-3:]
    correct(root, first["uri"], "0", by="ann")
    assert tick(root) == "iteration 0"
    assert labels(root) == {}
    assert tick(root) == "iteration 1"
    before = labels(root)[first["item_id"]]
    with campaign_lock(root, "somebody else's tick"):
        correct(root, second["item_id"], "1", by="ann", predicted="2", model="iteration 1")
    assert tick(root) == "iteration 2"
    correct(root, third["item_id"][:16], "2", by="bob")
    assert tick(root) == "iteration 3"
    now = labels(root)
    wanted = {first["item_id"]: "0", second["item_id"]: "1", third["item_id"]: "2"}
    unasked = {item: label for item, label in wanted.items() if item not in asked(root)}
    assert unasked
    for item, label in unasked.items():
        assert (now[item]["label"], now[item]["arm"], now[item]["asked_in"]) == (label, "correction", -1)
    assert before["label"] == "0"
    measured = Store(root).read_json(METRICS)
    assert measured["labels_correction"] == len(unasked)
    assert measured["labels_total"] == len(now) - len(unasked)
    assert measured["training_labels"] == len(now) - measured["labels_holdout"]
    told = status(root)
    assert told["corrections"] == {"told": 3, "unasked": len(unasked), "waiting": 0}
    assert told["asked"]["total"] == len(asked(root))
    assert "corrections of users" in (root / "data/report/report.md").read_text()
    assert broken(root) == []


def test_a_corrected_image_is_never_asked_about(root: Path) -> None:
    rows = free(root)
    corrected = {row["item_id"] for row in rows[: len(rows) // 2]}
    correct_all(root, [Correction(item, "1", "ann") for item in sorted(corrected)])
    edit(root, {"select.batch": 1000})
    assert [tick(root), tick(root)] == ["iteration 2", "iteration 3"]
    assert not corrected & set(asked(root))
    assert not [row for row in free(root) if row["item_id"] not in corrected]
    assert tick(root).startswith("waiting for new images")
    assert broken(root) == []


def test_a_correction_of_an_image_that_was_asked_about_is_one_more_vote(root: Path) -> None:
    item = next(a for a in asked(root).values() if a.state == "labeled" and a.arm != "holdout")
    other = "0" if item.label != "0" else "1"
    correct(root, item.item_id, other, by="ann")
    now, corrected, _ = look(root)
    assert next(a for a in now if a.item_id == item.item_id).label == other
    assert corrected == []
    edit(root, {"labeling.resolution": "first"})
    assert next(a for a in look(root)[0] if a.item_id == item.item_id).label == item.label
    edit(root, {"labeling.resolution": "majority", "labeling.overlap": 2, "labeling.minimum_votes": 1})
    assert next(a for a in look(root)[0] if a.item_id == item.item_id).state == "disputed"


def test_a_correction_of_a_reserved_image_counts_only_when_it_was_asked_about(root: Path) -> None:
    edit(root, {"holdout.labels": len([a for a in asked(root).values() if a.arm == "holdout"])})
    unasked = free(root, "holdout")[0]["item_id"]
    measured = next(a for a in asked(root).values() if a.arm == "holdout" and a.state == "labeled")
    other = "0" if measured.label != "0" else "1"
    correct_all(root, [Correction(unasked, "1", "ann"), Correction(measured.item_id, other, "ann")])
    assert tick(root) == "iteration 2"
    assert unasked not in labels(root)
    assert labels(root)[measured.item_id]["label"] == other
    assert len(events(root)) == 2
    assert broken(root) == []


def test_a_correction_can_be_changed_and_taken_back(root: Path) -> None:
    item = free(root)[0]["item_id"]
    said = []
    for label in ("0", "1", "skip", "2"):
        correct(root, item, label, by="ann")
        said.append([(c.item_id, c.label) for c in look(root)[1]])
    assert said == [[(item, "0")], [(item, "1")], [], [(item, "2")]]
    assert [event["revision"] for event in events(root)] == [0, 1, 2, 3]


def test_what_is_unknown_is_in_quarantine_with_the_reason_until_it_is_known(root: Path) -> None:
    item = free(root)[0]["item_id"]
    correct(root, "later.png", "1", by="ann")
    correct(root, item, "lynx", by="ann")
    reasons = [row["reason"] for row in look(root)[2]]
    assert reasons == [
        "unknown image 'later.png': no name and no item id of the pool",
        "unknown class 'lynx'; allowed: 0, 1, 2.",
    ]
    assert "later.png" in (root / "data/refused.csv").read_text()
    edit(root, {"labeling.classes": ["0", "1", "2", "lynx"]})
    _, corrected, quarantined = look(root)
    assert [c.label for c in corrected] == ["lynx"]
    assert len(quarantined) == 1
    assert tick(root) == "iteration 2"
    assert labels(root)[item]["label"] == "lynx"
    assert broken(root) == []


def test_a_copy_and_a_fork_keep_what_was_corrected(root: Path, tmp_path: Path) -> None:
    rows = free(root)
    correct(root, rows[0]["item_id"], "1", by="ann")
    assert tick(root) == "iteration 2"
    correct(root, rows[1]["item_id"], "1", by="ann")  # waits at the campaign that it was said to
    made = tmp_path / "copy"
    restore(root, 2, made)
    fork(made)
    with read_campaign(made) as campaign:
        assert [c.item_id for c in campaign.corrected()] == [rows[0]["item_id"]]
    correct(made, rows[2]["item_id"], "0", by="bob")
    assert {c.item_id for c in look(made)[1]} == {rows[0]["item_id"], rows[2]["item_id"]}
    assert broken(made) == []


def test_an_answer_to_an_image_that_nobody_asked_about_is_found_unless_it_is_a_correction(root: Path) -> None:
    item = free(root)[0]["item_id"]
    correct(root, item, "1", by="ann")
    look(root)
    assert broken(root) == []
    with sqlite3.connect(root / LEDGER) as db:
        db.execute("UPDATE label_event SET instance = 'oracle:1' WHERE instance = 'corrections'")
    assert "never asked about" in found(root)["I1 every answer is to a question or a correction"]


# exactly once -----------------------------------------------------------------------------------------------


def _correct_one(root: Path) -> str:
    return correct(root, "0/000.png", "1", by="ann", predicted="0")


def _poll(root: Path) -> int:
    with open_campaign(root, "test") as campaign:
        return poll(campaign)


def test_a_kill_at_any_effect_loses_and_doubles_nothing(root: Path) -> None:
    for label in ("1", "2", "1"):  # there and back: read twice, it would be more revisions
        correct(root, "0/001.png", label, by="ann")
    calm = copy(root, root.with_name("calm"))
    noting, reading = run_in_child(_correct_one, calm).passed, run_in_child(_poll, calm).passed
    expected = [(e["annotation_id"], e["revision"], e["payload"]) for e in events(calm)]
    assert len(expected) == 4
    for at in range(1, len(noting) + 1):
        killed = copy(root, root.with_name(f"noting{at}"))
        assert run_in_child(_correct_one, killed, kill_at=at).killed
        _correct_one(killed)
        _poll(killed)
        assert [(e["annotation_id"], e["revision"], e["payload"]) for e in events(killed)] == expected
    _correct_one(root)
    points = [at for at, name in enumerate(reading, start=1) if name.startswith("import:")]
    assert "import:corrections:before" in reading
    for at in points:
        killed = copy(root, root.with_name(f"reading{at}"))
        assert run_in_child(_poll, killed, kill_at=at).killed
        _poll(killed)
        assert [(e["annotation_id"], e["revision"], e["payload"]) for e in events(killed)] == expected, reading[at - 1]
        assert broken(killed) == []


MANY = """
import sys
from pathlib import Path
from tasks.corrections import correct
for number in range(20):
    correct(Path(sys.argv[1]), f"image {number}", "1", by=sys.argv[2])
"""


def test_processes_that_note_at_once_while_a_tick_works_lose_nothing(root: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(TEMPLATE)}
    with campaign_lock(root, "tick"):
        command = [sys.executable, "-c", MANY, str(root)]
        writers = [subprocess.Popen([*command, name], env=environment) for name in ("ann", "bob", "eve", "joe")]
        assert [writer.wait(120) for writer in writers] == [0, 0, 0, 0]
    look(root)
    assert len({event["annotation_id"] for event in events(root)}) == len(events(root)) == 80


SAID = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["ann", "bob"]), st.sampled_from(["deer", "fox", "skip"])),
    min_size=1,
    max_size=12,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(history=SAID, cuts=st.sets(st.integers(0, 12)), page=st.integers(1, 5))
def test_whatever_is_said_in_any_portions_the_newest_of_each_person_stands(
    history: list[tuple[str, str, str]], cuts: set[int], page: int
) -> None:
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    ticks = count()
    with tempfile.TemporaryDirectory(dir=memory) as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(corrections, "PAGE", page)
        store = Store(Path(folder))
        store.write_json(IDENTITY, {"id": "x"})
        with open_ledger(store.path(LEDGER), lambda: str(next(ticks)), create=True) as ledger:
            campaign = Campaign("x", store, cast(Any, None), "", ledger)
            for number, (image, by, label) in enumerate(history):
                correct(store.root, image, label, by=by)
                if number in cuts:
                    corrections.store(campaign)
            corrections.store(campaign)
            assert corrections.store(campaign) == 0
            newest = {
                event.payload["image"] + event.payload["by"]: event.payload["label"] for event in ledger.live(INSTANCE)
            }
            changes = sum(
                label != next((old for i, b, old in reversed(history[:n]) if (i, b) == (image, by)), None)
                for n, (image, by, label) in enumerate(history)
            )
            assert len(ledger.rows("label_event")[1]) == changes
    assert newest == {image + by: label for image, by, label in history}


def test_a_spool_that_was_lost_begins_anew(root: Path) -> None:
    rows = free(root)
    for row in rows[:3]:
        correct(root, row["item_id"], "1", by="ann")
    look(root)
    (root / SPOOL).unlink()
    correct(root, rows[3]["item_id"], "1", by="ann")
    assert status(root)["corrections"] == {"told": 3, "unasked": 3, "waiting": 1}
    assert len(look(root)[1]) == 4


def test_a_damaged_spool_is_named_with_the_way_out(root: Path) -> None:
    correct(root, "a", "1", by="ann")
    (root / SPOOL).write_bytes(b"not a database" * 100)
    with pytest.raises(GleanerError, match=r"corrections.sqlite is damaged .*Move it away"):
        tick(root)


# what people give -------------------------------------------------------------------------------------------


def test_a_correction_needs_image_label_and_person(root: Path) -> None:
    for image, label, by in (("", "1", "ann"), ("a", " ", "ann"), ("a", "1", ""), ("a" * 5000, "1", "ann")):
        with pytest.raises(BadInput, match="a correction needs"):
            correct(root, image, label, by=by)
    with pytest.raises(BadInput, match="no JSON"):
        correct(root, "a", "1", by="ann", scores=float("nan"))
    with pytest.raises(BadInput, match="is no campaign"):
        correct(root.parent, "a", "1", by="ann")
    assert not (root / SPOOL).exists()


def test_a_file_of_corrections_keeps_its_other_columns(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "said.csv"
    path.write_text("\ufeffImage,label,by,predicted\n0/000.png,1,,0\n0/001.png,2,bob,\n")
    correct_all(root, read_file(path, by="ann"))
    correct_all(root, read_file(path, by="ann"))  # the same file again says nothing new
    look(root)
    assert [json.loads(event["payload"]) for event in events(root)] == [
        {"image": "0/000.png", "label": "1", "by": "ann", "predicted": "0"},
        {"image": "0/001.png", "label": "2", "by": "bob"},
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("image,label\na,b\n", "no column by"),
        ("", "no column by, image, label"),
        ("image,label,by\na,b,ann\na,,ann\n", "row 3: image, label and by must not be empty"),
        ("image,label,by\na,b\n", "row 2: another number of cells"),
        ("image,label,by\na,b,c,d\n", "row 2: another number of cells"),
        ('image,label,by\n"a"x,b,ann\n', "row 2: "),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_whole_with_the_row(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "said.csv"
    path.write_text(text)
    with pytest.raises(BadInput, match=complaint):
        read_file(path)


@settings(max_examples=100, deadline=None)
@given(content=st.one_of(st.binary(max_size=200), st.text(alphabet='ab,"\n\r\0é', max_size=60).map(str.encode)))
def test_any_bytes_are_corrections_or_one_clear_error(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "said.csv"
        path.write_bytes(b"image,label,by\n" + content)
        try:
            assert all(c.image and c.label and c.by for c in read_file(path))
        except BadInput as error:
            assert "said.csv" in str(error)


def test_a_name_that_two_images_have_is_refused_and_an_item_id_is_not(root: Path) -> None:
    store = Store(root)
    manifest, seen = read_manifest(store).to_pylist(), store.read_table(SIGHTINGS).to_pylist()
    other = {**seen[0], "sha256": seen[1]["sha256"], "outcome": "duplicate", "reason": "same bytes"}
    store.write_table(SIGHTINGS, pa.Table.from_pylist([*seen, other], schema=SIGHTINGS.schema))
    find = corrections._finder(store)
    with pytest.raises(ValueError, match=f"2 images of the pool are called '{seen[0]['uri']}'"):
        find(seen[0]["uri"])
    assert find(seen[0]["sha256"]) == seen[0]["sha256"]
    assert find("1/000.png") == next(r["item_id"] for r in manifest if r["uri"] == "1/000.png")
    assert find(manifest[0]["item_id"][:12]) == manifest[0]["item_id"]
    with pytest.raises(ValueError, match="unknown image"):
        find(manifest[0]["item_id"][:11])


def test_the_command_takes_a_file_of_the_image_by_its_bytes(root: Path, tmp_path: Path) -> None:
    image = root.parent / "mine.png"
    row = free(root)[0]
    source = Path(json.loads((root / IDENTITY).read_text())["sources"]["1"]["path"])
    image.write_bytes((source / row["uri"]).read_bytes())
    command = [sys.executable, "-m", "flows.cli", "correct"]
    environment = {**os.environ, "PYTHONPATH": str(root), "GLEANER_STARTED_IN": str(root.parent)}
    run = {"cwd": root, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run([*command, "mine.png", "1", "--by", "ann"], check=False, **cast(Any, run))
    assert (done.returncode, done.stdout) == (0, "1 correction noted. The next `gleaner tick` reads what is new.\n")
    assert [(c.item_id, c.label) for c in look(root)[1]] == [(row["item_id"], "1")]
    done = subprocess.run([*command, "mine.png", "1"], check=False, **cast(Any, run))
    assert done.returncode == 2
    assert "give IMAGE LABEL --by NAME" in done.stderr
