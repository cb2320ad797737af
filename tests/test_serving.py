"""Annotators see exactly the bytes that an item is named after, or the batch is not sent."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tasks import repository
from tasks.campaign import LEDGER, open_campaign
from tasks.errors import BadInput
from tasks.ingest import ingest
from tasks.labeling.oracle import DATABASE
from tasks.ledger import open_ledger
from tasks.serving import FOLDER, serve
from tasks.store import sha256
from tests.quick import copy, edit, image_folder, make_workspace, tick


@dataclass
class World:
    """A campaign and the folder that its images came from."""

    root: Path
    images: Path

    def items(self) -> list[tuple[str, str]]:
        """Item ids and URIs, in the order of arrival."""
        table = pq.read_table(self.root / "data/pool/manifest.parquet", columns=["item_id", "uri"])
        return list(zip(*table.to_pydict().values(), strict=True))

    def serve(self, *places: int) -> list[Path]:
        """Serve the items at these places of the manifest."""
        ids = [self.items()[place][0] for place in places]
        with open_campaign(self.root, "test") as campaign:
            served = serve(campaign, ids)
        return [served[item] for item in ids]

    def original(self, place: int) -> Path:
        """The file that an item was read from."""
        return self.images / self.items()[place][1]


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("serving")
    images = image_folder(folder / "images")
    shutil.copytree(images, folder / "pristine")
    return World(make_workspace(folder / "base", images, **{"source.watch": False}), images)


@pytest.fixture
def world(ingested: World, tmp_path: Path) -> Iterator[World]:
    """A copy of the workspace; the images are put back afterwards."""
    yield World(copy(ingested.root, tmp_path / "workspace"), ingested.images)
    shutil.rmtree(ingested.images, ignore_errors=True)
    shutil.copytree(ingested.images.parent / "pristine", ingested.images)


def test_what_is_served_is_the_bytes_the_item_is_named_after(world: World) -> None:
    for place, path in zip((0, 50, 119), world.serve(0, 50, 119), strict=True):
        item = world.items()[place][0]
        assert path.read_bytes() == world.original(place).read_bytes()
        assert hashlib.sha256(path.read_bytes()).hexdigest() == item
        assert path == world.root / FOLDER / item[:2] / f"{item}.png"


def test_what_was_served_once_needs_no_original_any_more(world: World) -> None:
    before = world.serve(0, 1)
    shutil.rmtree(world.images)
    assert world.serve(0, 1) == before


def test_a_served_copy_that_was_tampered_with_is_made_anew(world: World) -> None:
    (path,) = world.serve(0)
    path.write_bytes(b"something else")
    (path,) = world.serve(0)
    assert sha256(path) == world.items()[0][0]


def test_an_original_that_changed_is_refused_by_name(world: World) -> None:
    world.original(3).write_bytes(world.original(4).read_bytes())
    with pytest.raises(BadInput, match=rf"{world.items()[3][1]}: its bytes changed since it was ingested"):
        world.serve(0, 3)


def test_an_original_that_is_gone_is_refused_by_name(world: World) -> None:
    world.original(3).unlink()
    with pytest.raises(
        BadInput, match=rf"{world.items()[3][1]}.*Bring the original back, or name it in select.exclude"
    ):
        world.serve(0, 3)


def test_an_excluded_image_is_never_asked_about(world: World) -> None:
    gone = [uri for _, uri in world.items()[::2]]
    for uri in gone:
        (world.images / uri).unlink()
    with pytest.raises(BadInput, match=r"select\.exclude"):
        tick(world.root)
    edit(world.root, {"select.exclude": gone})
    while (did := tick(world.root)).startswith("iteration"):
        pass
    assert did != "blocked"
    with open_campaign(world.root, "look") as campaign:
        asked = {item.item_id for item in campaign.ledger.asked()}
    assert len(asked) > 40
    assert asked.isdisjoint(item for item, uri in world.items() if uri in gone)


def test_an_original_that_became_a_link_is_not_followed(world: World, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.new("L", (8, 8), 7).save(secret)
    world.original(3).unlink()
    world.original(3).symlink_to(secret)
    with pytest.raises(BadInput):
        world.serve(3)


def test_a_folder_that_is_gone_is_refused_by_name(world: World) -> None:
    shutil.rmtree(world.images)
    with pytest.raises(BadInput, match=str(world.images)):
        world.serve(0)


def test_a_folder_that_moved_is_found_where_params_point_now(world: World, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.move(world.images, moved)
    edit(world.root, {"source.path": str(moved)})
    assert sha256(world.serve(5)[0]) == world.items()[5][0]


def test_items_of_an_earlier_source_are_served_from_there(world: World, tmp_path: Path) -> None:
    more = tmp_path / "more" / "0"
    more.mkdir(parents=True)
    for number in range(3):
        Image.effect_noise((8, 8), 90 + number).save(
            more / f"{number:03d}.png"
        )  # names that are in the first source too
    ingest(world.root, more.parent)
    assert len(world.items()) > 120
    assert world.items()[120][1] in {uri for _, uri in world.items()[:120]}
    for place, path in zip((0, 120), world.serve(0, 120), strict=True):
        assert sha256(path) == world.items()[place][0]


def noise(folder: Path, *names: str, size: int = 8) -> Path:
    """Images of noise under these names, all of the same size in bytes and the same time."""
    (folder / "0").mkdir(parents=True)
    for number, name in enumerate(names):
        path = folder / "0" / name
        Image.effect_noise((size, size), 60 + 7 * len(str(folder)) + number).save(path, format="BMP")
        os.utime(path, ns=(5, 5))
    return folder


def test_a_source_that_brings_nothing_new_does_not_take_the_place_of_an_earlier_one(
    world: World, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    assert ingest(world.root, tmp_path / "empty").accepted == 0
    assert sha256(world.serve(7)[0]) == world.items()[7][0]


def test_a_pool_of_two_sources_is_rebuilt_from_both(world: World, tmp_path: Path) -> None:
    ingest(world.root, noise(tmp_path / "more", "a.bmp", "b.bmp"))
    before = world.items()
    edit(world.root, {"pool.size": 12})
    ingest(world.root, None, rebuild=True)
    assert world.items() == before
    shards = sorted((world.root / "data/pool").glob("shard-*.npy"))
    assert [np.load(shard).shape for shard in shards] == [(len(before), 12, 12, 1)]


def test_an_equal_name_size_and_time_in_another_source_is_another_file(world: World, tmp_path: Path) -> None:
    assert ingest(world.root, noise(tmp_path / "first", "a.bmp")).accepted == 1
    counts = ingest(world.root, noise(tmp_path / "the second", "a.bmp"))
    assert (counts.accepted, counts.known) == (1, 0)
    assert ingest(world.root, None).known == 1


def test_a_batch_with_a_changed_original_is_refused_before_anything_is_in_the_outbox(world: World) -> None:
    for path in world.images.rglob("*.png"):
        path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(BadInput, match="its bytes changed"):
        tick(world.root)
    with open_ledger(world.root / LEDGER, lambda: "") as ledger:
        assert [row.state for row in ledger.iterations()] == ["open"]
        assert ledger.rows("selection")[1] == []
        assert ledger.rows("outbox")[1] == []
    if (world.root / DATABASE).exists():
        with sqlite3.connect(world.root / DATABASE) as db:
            assert db.execute("SELECT count(*) FROM task").fetchone() == (0,)
    assert repository.tags(world.root) == []
    for path in world.images.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:-4])
    assert tick(world.root) == "iteration 0"
    assert repository.tags(world.root) == ["iter-0000"]
