"""What ingest keeps together: sequences, near-duplicates, splits; the counts add up whatever the files are."""

from __future__ import annotations

import io
import os
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tasks import intake, looking
from tasks import pool as files
from tasks.grouping import draw_split
from tasks.params_sections import Campaign, Holdout
from tasks.params_sections import Source as SourceParams
from tasks.sources import Found
from tasks.tables import KNOWN_LABELS, MANIFEST, SIGHTINGS
from tests.photos import SHARED, Workspace, check_invariants, digest, filled, picture, pool_of


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def test_a_sequence_stays_together_across_ingests(work: Workspace) -> None:
    work.source = replace_options(work.source, sequence="(burst[0-9]+)_")
    for burst in range(6):
        for frame in range(3):
            work.add(f"burst{burst}_{frame}.png", burst * 10 + frame)
    work.ingest()
    for burst in range(6):
        work.add(f"burst{burst}_9.png", burst * 10 + 9)
    work.ingest()
    groups = {(r["sequence"], r["group"], r["split"]) for r in work.rows()}
    assert len(work.rows()) == 24
    assert len(groups) == 6


def replace_options(source: SourceParams, **options: Any) -> SourceParams:
    return source.model_copy(update={"options": options})


def test_the_holdout_is_drawn_by_the_hash_of_the_group_and_frozen(work: Workspace) -> None:
    filled(work, 40).ingest()
    first = {r["item_id"]: r["split"] for r in work.rows()}
    assert {r["split"] for r in work.rows()} == {"pool", "holdout"}
    assert all(r["split"] == draw_split("0", r["group"], 0.3) for r in work.rows())
    work.holdout = Holdout(share=0.9, labels=1)
    work.campaign = Campaign(name="t", seed=99)
    for i in range(40, 60):
        work.add(f"{i}.png", i)
    work.ingest()
    now = {r["item_id"]: r["split"] for r in work.rows()}
    assert {item: now[item] for item in first} == first
    assert all(r["split"] == draw_split("0", r["group"], 0.3) for r in work.rows())


def near(seed: int, i: int) -> bytes:
    """Another exposure of the same picture."""
    image = np.asarray(Image.open(io.BytesIO(picture(seed, size=64)))).astype(int) + i
    buffer = io.BytesIO()
    Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_near_duplicates_of_an_earlier_ingest_join_its_groups(work: Workspace) -> None:
    for seed in range(12):
        work.write(f"{seed}_0.png", near(seed, 0))
    work.ingest()
    together = {r["item_id"]: r["group"] for r in work.rows()}
    for seed in range(12):
        work.write(f"{seed}_1.png", near(seed, 1))
    work.ingest()
    added = {r["uri"]: r["group"] for r in work.rows()[12:]}
    assert len(added) == 12
    assert all(added[f"{seed}_1.png"] == together[digest(near(seed, 0))] for seed in range(12))


def test_a_bridge_between_training_and_holdout_is_left_out_with_the_reason(work: Workspace) -> None:
    work.source = replace_options(work.source, sequence="(burst[0-9]+)_")
    for burst in range(30):
        work.write(f"burst{burst:02d}_0.png", near(burst, 0))
    work.ingest()
    split = {r["sequence"]: r["split"] for r in work.rows()}
    inside = next(s for s, side in split.items() if side == "pool")
    held = next(s for s, side in split.items() if side == "holdout")
    work.write(f"{inside}_9.png", near(int(held[5:]), 2))
    work.write("again.png", near(int(held[5:]), 1))
    counts = work.ingest()
    assert counts.reasons == {"would bridge training and holdout": 1}
    assert counts.accepted == 1
    outcome, reason = work.outcomes()[f"{inside}_9.png"]
    assert outcome == "quarantined"
    assert "near-duplicate of holdout item" in reason
    assert {r["uri"]: r["split"] for r in work.rows()}["again.png"] == "holdout"


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_counts_add_up_and_no_group_straddles_whatever_the_files(data: st.DataObject) -> None:
    kinds = st.sampled_from(["new", "copy", "near", "broken", "empty", "link"])
    with tempfile.TemporaryDirectory() as folder_name:
        work = Workspace(Path(folder_name), group_cap=3)
        work.source = replace_options(work.source, labels="folders", sequence="(s[0-9])_")
        seen = 0
        for step in range(data.draw(st.integers(1, 3))):
            for i, kind in enumerate(data.draw(st.lists(kinds, max_size=15))):
                name = f"{data.draw(st.sampled_from(['a', 'b', 'c']))}/s{data.draw(st.integers(0, 3))}_{step}_{i}"
                seed = data.draw(st.integers(0, 5))
                seen += 1
                if kind == "link":
                    (work.photos / name).parent.mkdir(exist_ok=True)
                    (work.photos / name).symlink_to("/dev/zero")
                else:
                    content = {"new": near(seed + 100 * i, 0), "copy": near(seed, 0), "near": near(seed, i + 1)}
                    broken = {"broken": picture(seed)[:40], "empty": b""}
                    work.write(name, {**content, **broken}[kind])
            counts = work.ingest(workers=data.draw(st.integers(1, 3)))
            assert counts.seen == seen
        check_invariants(work)


def test_workers_and_block_size_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for name, workers, block, chunk in (("a", 1, 1024, 32), ("b", 3, 3, 2)):
        monkeypatch.setattr(intake, "BLOCK", block)
        monkeypatch.setattr(looking, "CHUNK", chunk)
        (tmp_path / name).mkdir()
        work = filled(Workspace(tmp_path / name))
        for i in range(8):
            path = work.write(f"near_{i}.png", near(3, i))
            os.utime(path, ns=(1, 1))
        for path in work.photos.rglob("*.png"):
            os.utime(path, ns=(1, 1))
        work.ingest(workers=workers)
        results.append(work.bytes())
    assert results[0] == results[1]


def test_memory_is_bounded_by_what_is_under_way() -> None:
    under_way, most = 0, 0
    lock = threading.Lock()

    def one(found: Found) -> Found:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        return found

    for chunk in looking.in_parallel((Found(str(i), 1, 1) for i in range(2000)), one, 2):
        with lock:
            under_way -= len(chunk)
    assert most <= looking.CHUNK * 6


def test_results_come_in_order_and_an_error_is_not_lost() -> None:
    numbers = [n for chunk in looking.in_parallel(range(500), lambda n: n, 4) for n in chunk]
    assert numbers == list(range(500))
    with pytest.raises(ZeroDivisionError):
        list(looking.in_parallel(range(5), lambda n: 1 // (n - 3), 2))


def test_digits_become_a_pool(work: Workspace) -> None:
    work.source = SourceParams(kind="digits")
    work.pool = pool_of(size=8, shard_items=1000)
    counts = work.ingest()
    assert (counts.accepted, counts.quarantined) == (1797, 0)
    assert len(files.read_known_labels(work.store)) == 1797
    assert work.ingest().known == 1797


def test_real_bursts_stay_together_and_no_photo_is_lost(work: Workspace) -> None:
    if not (SHARED / "wildlife_missouri").is_dir():
        pytest.skip("shared-data: ../shared/data/wildlife_missouri is not there")
    work.source = SourceParams(
        kind="table", path=str(SHARED / "wildlife_missouri/labels.csv"), options={"path_column": "file"}
    )
    work.pool = pool_of(size=96, mode="RGB", shard_items=1000)
    counts = work.ingest()
    assert counts.seen == 1028
    assert counts.accepted >= 1000
    assert set(counts.reasons) <= {"would bridge training and holdout"}
    check_invariants(work)
    assert len({r["group"] for r in work.rows()}) == len({r["sequence"] for r in work.rows()})


def test_real_blood_cells_are_all_accepted(work: Workspace) -> None:
    if not (SHARED / "det_bccd").is_dir():
        pytest.skip("shared-data: ../shared/data/det_bccd is not there")
    work.source = SourceParams(kind="folder", path=str(SHARED / "det_bccd/images"))
    work.pool = pool_of(size=64, mode="RGB")
    assert work.ingest().accepted == 364


def test_tables_are_written_with_the_declared_schemas(work: Workspace) -> None:
    filled(work, 3).ingest()
    for kind in (MANIFEST, SIGHTINGS, KNOWN_LABELS):
        assert work.store.read_table(kind).schema.equals(kind.schema)
    assert replace(files.read_info(work.store) or files.PoolInfo(1, "L", "", 0.0), items=3).items == 3
