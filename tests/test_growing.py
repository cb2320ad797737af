"""A campaign that changes while it runs: new images, new classes, other strategies and networks, a doubtful annotator."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tasks import plugins
from tasks.campaign import LEDGER
from tasks.errors import BadInput
from tasks.ingest import ingest
from tasks.inputs import read_iteration
from tasks.labeling import RawEvent, read_answer
from tasks.ledger import open_ledger
from tasks.store import Store
from tests.quick import broken, copy, edit, image_folder, make_workspace, run_child, tick


def add_class(images: Path, label: int, count: int) -> None:
    """Images of a class that was not there before."""
    digits = load_digits()
    (images / str(label)).mkdir()
    for number, pixels in enumerate(digits.images[digits.target == label][:count]):
        Image.fromarray((pixels * 15.9).astype(np.uint8)).save(images / str(label) / f"{number:03d}.png")


def test_images_and_classes_that_arrive_later_are_asked_about(tmp_path: Path) -> None:
    images = image_folder(tmp_path / "images")
    root = make_workspace(tmp_path / "workspace", images)
    assert [tick(root), tick(root)] == ["iteration 0", "iteration 1"]
    add_class(images, 3, 30)
    counts = ingest(root, None)
    assert (counts.accepted, counts.known) == (30, 120)
    assert [tick(root) for _ in range(4)] == [f"iteration {n}" for n in range(2, 6)]
    assert read_iteration(Store(root)).classes == ("0", "1", "2", "3")
    with open_ledger(root / LEDGER, lambda: "") as ledger:
        assert any(asked.label == "3" for asked in ledger.asked())
    assert broken(root) == []


@pytest.mark.slow
def test_every_strategy_and_network_runs_through_the_whole_protocol(closed_iteration: Path, tmp_path: Path) -> None:
    root = copy(closed_iteration, tmp_path / "workspace")
    edit(root, {"train.network": "mlp"})
    for number, strategy in enumerate(plugins.names("strategies"), start=2):
        edit(root, {"select.strategy": strategy})
        assert tick(root) == f"iteration {number}"
    for network in plugins.names("networks"):
        edit(root, {"select.strategy": "margin", "train.network": network})
        assert tick(root).startswith("iteration")
    assert broken(root) == []


def test_an_annotator_who_errs_skips_and_leaves_tasks_is_no_obstacle(closed_iteration: Path, tmp_path: Path) -> None:
    root = copy(closed_iteration, tmp_path / "workspace")
    edit(
        root,
        {"labeling.quorum": 0.5, "labeling.options": {"error_rate": 0.3, "skip_rate": 0.2, "unanswered_rate": 0.2}},
    )
    done = [tick(root) for _ in range(4)]
    assert done[0] == "iteration 2"
    assert broken(root) == []
    with open_ledger(root / LEDGER, lambda: "") as ledger:
        states = {asked.state for asked in ledger.asked()}
    assert {"labeled", "pending"} <= states


def test_params_edited_while_an_iteration_is_open_are_the_ones_it_is_made_with(
    closed_iteration: Path, tmp_path: Path
) -> None:
    root = copy(closed_iteration, tmp_path / "workspace")
    points = run_child(copy(root, tmp_path / "calm"), 3)[1]
    scored = points.index("stage:tasks.score:after") + 1
    assert run_child(root, 3, kill_at=scored)[0]
    edit(root, {"stop.labels": 37, "campaign.seed": 7})
    assert tick(root) == "iteration 2"
    with open_ledger(root / LEDGER, lambda: "") as ledger:
        assert len(ledger.asked()) == 37
    assert read_iteration(Store(root)).remaining == 37 - 35
    assert Store(root).exists("data/inputs/previous/scores.parquet")
    assert broken(root) == []


def test_tasks_that_wait_at_another_tool_are_noticed(closed_iteration: Path, tmp_path: Path) -> None:
    root = copy(closed_iteration, tmp_path / "workspace")
    edit(root, {"labeling.tool": "folder", "labeling.options": {}})
    with pytest.raises(BadInput, match="waits for answers at oracle:.*Set the tool back"):
        tick(root)


def test_a_pool_of_another_size_than_params_say_is_refused_before_any_effect(
    closed_iteration: Path, tmp_path: Path
) -> None:
    root = copy(closed_iteration, tmp_path / "workspace")
    edit(root, {"pool.size": 16})
    with pytest.raises(BadInput, match="data/pool holds images of 8 x 8"):
        tick(root)


def test_an_answer_that_was_changed_to_nonsense_no_longer_counts(closed_iteration: Path, tmp_path: Path) -> None:
    root = copy(closed_iteration, tmp_path / "workspace")
    with open_ledger(root / LEDGER, lambda: "") as ledger:
        item = next(asked for asked in ledger.asked() if asked.state == "labeled")
        columns, rows = ledger.rows("label_event")
        event = dict(zip(columns, rows[item.event - 1], strict=True))
        payload = {**json.loads(event["payload"]), "label": "nonsense"}
        ledger.store_events(event["instance"], [RawEvent(event["annotation_id"], payload)])
        ledger.interpret_events(read_answer, ("0", "1", "2"))
        now = {asked.item_id: asked.state for asked in ledger.asked()}
        assert now[item.item_id] == "pending"
        assert {a.item_id: a.state for a in ledger.asked(event_seq=event["seq"])}[item.item_id] == "labeled"
