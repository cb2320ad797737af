"""Images that arrive while a campaign runs: the tick ingests them between iterations, and nothing about them stops it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tasks import arrivals, repository
from tasks.arrivals import new_images, take_new
from tasks.campaign import LEDGER, open_campaign
from tasks.errors import GleanerError
from tasks.import_labels import main as import_labels
from tasks.ingest import ingest
from tasks.inputs import read_iteration
from tasks.ledger import open_ledger
from tasks.params import load
from tasks.pool import read_info, read_manifest
from tasks.sources import folder, grows
from tasks.status import status
from tasks.store import Store
from tasks.tables import FROZEN_MANIFEST
from tests.children import run_in_child
from tests.quick import broken, copy, edit, image_folder, make_workspace, state, tick


@pytest.fixture
def root(closed_iteration: Path, tmp_path: Path) -> Path:
    """A workspace whose iterations 0 and 1 are closed, with a source folder of its own."""
    images = tmp_path / "images"
    shutil.copytree(closed_iteration.parent / "images", images)
    root = copy(closed_iteration, tmp_path / "workspace")
    edit(root, {"source.path": "../images"})
    ingest(root, None)
    return root


def add(root: Path, label: int, count: int, first: int = 50) -> None:
    """Images that the folder did not hold."""
    digits = load_digits()
    place = root.parent / "images" / str(label)
    place.mkdir(exist_ok=True)
    for number, pixels in enumerate(digits.images[digits.target == label][first : first + count], start=first):
        Image.fromarray((pixels * 15.9).astype(np.uint8)).save(place / f"{number:03d}.png")


def items(root: Path) -> int:
    info = read_info(Store(root))
    assert info is not None
    return info.items


def take(root: Path) -> arrivals.Taken:
    with open_campaign(root, "test") as campaign:
        return take_new(campaign)


def log(root: Path) -> list[str]:
    return repository.git(root, "log", "--format=%s").splitlines()


def test_images_that_arrive_while_a_batch_is_out_are_in_the_next_iterations_pool(root: Path) -> None:
    before = read_manifest(Store(root)).to_pylist()
    add(root, 1, 7)
    assert tick(root) == "iteration 2"
    frozen = Store(root).read_table(FROZEN_MANIFEST)
    assert frozen.num_rows == len(before) + 7
    assert frozen.to_pylist()[: len(before)] == before
    assert log(root)[1] == "ingest: 7 images accepted"
    assert broken(root) == []


def test_a_class_that_arrives_with_them_is_asked_with_at_once(root: Path) -> None:
    add(root, 3, 30)
    assert tick(root) == "iteration 2"
    assert read_iteration(Store(root)).classes == ("0", "1", "2", "3")
    for _ in range(3):
        tick(root)
    with open_ledger(root / LEDGER, lambda: "") as ledger:
        assert any(asked.label == "3" for asked in ledger.asked())
    assert broken(root) == []


def test_nothing_new_costs_no_commit_and_reads_no_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root.parent / "images/.hidden").mkdir()
    (root.parent / "images/1/link.png").symlink_to("/etc/passwd")
    (root.parent / "images/note.txt").write_text("no image")
    edit(root, {"campaign.name": "edited"})
    take(root)
    commits = log(root)
    monkeypatch.setattr(folder.Folder, "read", lambda *_: pytest.fail("read again"))
    monkeypatch.setattr(arrivals, "take_in", lambda *_, **__: pytest.fail("looked at again"))
    assert take(root).accepted == 0
    assert log(root) == commits


def test_a_folder_that_was_ingested_by_hand_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_workspace(tmp_path / "workspace", image_folder(tmp_path / "images"))
    commits = log(root)
    monkeypatch.setattr(folder.Folder, "read", lambda *_: pytest.fail("read again"))
    assert take(root).accepted == 0
    assert log(root) == commits


def test_a_file_that_stays_unreadable_is_tried_again_and_makes_no_commit(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(root, 1, 1)
    original = folder.Folder.read

    def denied(self: folder.Folder, uri: str) -> bytes:
        if uri == "1/050.png":
            raise PermissionError(13, "Permission denied")
        return original(self, uri)

    with monkeypatch.context() as patch:
        patch.setattr(folder.Folder, "read", denied)
        assert take(root).lines == ("1 files of the source are quarantined: data/pool/sightings.parquet says why",)
        commits = log(root)
        take(root)
        assert log(root) == commits
    before = items(root)
    take(root)
    assert items(root) == before + 1


def test_an_edit_of_params_is_left_to_the_iteration(root: Path) -> None:
    with open_campaign(root, "test") as campaign:
        add(root, 1, 2)
        edit(root, {"campaign.name": "renamed meanwhile"})
        take_new(campaign)
    assert "renamed" not in repository.show(root, "HEAD", "params.yaml")
    assert "renamed" in (root / "params.yaml").read_text()


def test_an_idle_tick_ingests_nothing(root: Path) -> None:
    edit(root, {"labeling.options": {"unanswered_rate": 0.9}})
    before = items(root)
    add(root, 1, 3)
    assert tick(root).startswith("waiting for annotators")
    assert items(root) == before


def test_an_iteration_that_is_open_keeps_its_pool(root: Path) -> None:
    passed = run_in_child(tick, copy(root, root.with_name("calm"))).passed
    assert run_in_child(tick, root, kill_at=passed.index("open:freeze:after") + 1).killed
    before = items(root)
    add(root, 1, 3)
    assert tick(root) == "iteration 2"
    assert items(root) == before
    assert tick(root) == "iteration 3"
    assert items(root) == before + 3


@pytest.mark.parametrize("how", ["gone", "not mounted", "no folder"])
def test_a_source_that_cannot_be_read_is_a_line_and_the_iteration_goes_on(root: Path, how: str) -> None:
    before, commits = items(root), log(root)
    (root.parent / "images").rename(root.parent / "elsewhere")
    if how == "not mounted":
        (root.parent / "images").mkdir()
    if how == "no folder":
        (root.parent / "images").write_text("a file")
    (line,) = take(root).lines
    assert line.startswith("the source cannot be read, the iteration goes on with the pool as it is: ")
    assert (items(root), log(root)) == (before, commits)


def test_a_lost_source_neither_stops_the_loop_nor_shrinks_the_pool(root: Path) -> None:
    before = items(root)
    for copied in (root.parent / "images").glob("*/*"):  # what is asked is served from copies
        item = next(
            r for r in read_manifest(Store(root)).to_pylist() if r["uri"] == f"{copied.parent.name}/{copied.name}"
        )
        place = root / ".gleaner/serving/images" / item["item_id"][:2] / f"{item['item_id']}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(copied, place)
    (root.parent / "images").rename(root.parent / "elsewhere")
    assert [tick(root), tick(root)] == ["iteration 2", "iteration 3"]
    assert items(root) == before
    (root.parent / "elsewhere").rename(root.parent / "images")
    add(root, 1, 2)
    assert tick(root) == "iteration 4"
    assert items(root) == before + 2
    assert broken(root) == []


@pytest.mark.slow
def test_a_kill_at_every_effect_of_the_ticks_ingest_converges(root: Path) -> None:
    add(root, 1, 5)
    (root.parent / "images/broken.png").write_bytes(b"x")
    calm = copy(root, root.with_name("calm"))
    passed = run_in_child(tick, calm).passed
    points = [at for at, name in enumerate(passed, start=1) if name.startswith("ingest:")]
    assert {passed[at - 1].split(":")[1] for at in points} >= {"begin", "shard", "pool", "add", "commit", "end"}
    expected = state(calm)
    for at in points:
        killed = copy(root, root.with_name(f"kill{at}"))
        assert run_in_child(tick, killed, kill_at=at).killed
        assert run_in_child(tick, killed).text == "iteration 2"
        assert state(killed) == expected, passed[at - 1]
        assert not list((killed / ".gleaner").glob("ingesting*"))
    assert broken(killed) == []


def test_an_ingest_that_was_killed_is_finished_without_its_source(root: Path) -> None:
    add(root, 1, 5)
    passed = run_in_child(tick, copy(root, root.with_name("calm"))).passed
    at = passed.index("ingest:sightings:after") + 1
    assert run_in_child(tick, root, kill_at=at).killed
    (root.parent / "images").rename(root.parent / "elsewhere")
    take(root)
    assert not list((root / ".gleaner").glob("ingesting*"))
    assert broken(root) == []


def test_data_that_somebody_changed_are_not_taken_for_an_ingest_of_ours(root: Path) -> None:
    add(root, 1, 5)
    path = root / "data/pool/known_labels.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(GleanerError, match="known_labels.parquet has other bytes"):
        tick(root)


def used_up(root: Path) -> None:
    """Ask about the whole pool, and learn from the answers."""
    edit(root, {"select.batch": 1000})
    assert [tick(root), tick(root)] == ["iteration 2", "iteration 3"]


def test_a_campaign_whose_pool_is_used_up_waits_for_new_images(root: Path) -> None:
    used_up(root)
    waiting = "waiting for new images: every image of the pool was asked about"
    assert [tick(root), tick(root)] == [waiting, waiting]
    assert "waiting for new images" in status(root)["next"]
    add(root, 1, 6)
    with open_campaign(root, "test") as campaign:
        assert new_images(campaign)
    assert "new images are in the source" in status(root)["next"]
    assert tick(root) == "iteration 4"
    assert tick(root) == "iteration 5"
    assert tick(root) == waiting
    assert broken(root) == []


def test_files_that_bring_no_candidate_open_no_iteration(root: Path) -> None:
    used_up(root)
    shutil.copyfile(root.parent / "images/1/000.png", root.parent / "images/1/copy.png")
    (root.parent / "images/note.txt").write_text("no image")
    assert tick(root).startswith("waiting for new images")
    assert tick(root).startswith("waiting for new images")


def test_a_spent_budget_ends_a_watched_campaign(root: Path) -> None:
    edit(root, {"stop.labels": 40, "select.batch": 1000})
    for _ in range(3):
        last = tick(root)
    assert last.startswith("campaign finished: budget spent")
    add(root, 1, 6)
    assert tick(root).startswith("campaign finished: budget spent")


def test_a_source_that_is_not_watched_is_ingested_by_hand_only(root: Path) -> None:
    edit(root, {"source.watch": False})
    add(root, 1, 6)
    before = items(root)
    used_up(root)
    assert items(root) == before
    assert tick(root).startswith("campaign finished: pool exhausted")
    assert ingest(root, None).accepted == 6


def test_switching_the_watch_does_not_make_it_another_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_workspace(tmp_path / "workspace", image_folder(tmp_path / "images"))
    edit(root, {"source.watch": False})
    monkeypatch.setattr(folder.Folder, "read", lambda *_: pytest.fail("read again"))
    ingest(root, None)


def test_data_sets_that_never_change_are_not_watched(root: Path) -> None:
    watched = {}
    for kind in ("digits", "idx", "torchvision", "folder", "table"):
        edit(root, {"source.kind": kind, "source.options": {}, "source.path": ""})
        watched[kind] = grows(load(root / "params.yaml").source)
    assert watched == {"digits": False, "idx": False, "torchvision": False, "folder": True, "table": True}


def test_the_way_by_hand_takes_them_too(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(root, 1, 4)
    before = items(root)
    monkeypatch.chdir(root)
    import_labels()
    assert Store(root).read_table(FROZEN_MANIFEST).num_rows == before + 4


def test_a_campaign_begins_with_what_the_source_holds_by_then(tmp_path: Path) -> None:
    images = image_folder(tmp_path / "images")
    root = make_workspace(tmp_path / "workspace", images)
    add(root, 2, 3)
    before = items(root)
    assert tick(root) == "iteration 0"
    assert items(root) == before + 3
