"""An ingest or a rebuild that is killed, or meets a full disk: old pool or new, and the next one converges."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tasks import pool as files
from tasks.errors import BadInput, GleanerError
from tasks.features import pool_shard
from tests.photos import (
    CRASH,
    ROOT,
    Workspace,
    check_invariants,
    crash,
    digest,
    filled,
    picture,
    pool_of,
    second_step,
    settled,
)


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def test_a_rebuild_at_another_size_keeps_items_groups_splits_and_labels(work: Workspace) -> None:
    filled(work).ingest()
    keep = ("item_id", "uri", "group", "split", "ingest", "width")
    before = [{k: r[k] for k in keep} for r in work.rows()]
    labels = files.read_known_labels(work.store)
    work.pool = pool_of(size=24, mode="RGB")
    with pytest.raises(BadInput, match="holds images of 16 x 16 L"):
        work.ingest()
    work.add("new.png", 500)
    counts = work.ingest(rebuild=True)
    assert (counts.known, counts.accepted) == (25, 1)
    assert [{k: r[k] for k in keep} for r in work.rows()][:25] == before
    assert files.read_known_labels(work.store).items() >= labels.items()
    assert work.image(before[7]["item_id"]).shape == (24, 24, 3)
    assert work.store.read_json(files.POOL)["version"] == 2
    assert sorted(p.name for p in (work.root / "data/pool").glob("*.npy")) == [
        f"shard-{n:05d}.npy" for n in range(3, 7)
    ]
    check_invariants(work)


def test_a_rebuild_without_the_originals_changes_nothing_and_names_them(work: Workspace) -> None:
    filled(work).ingest()
    before = work.bytes()
    (work.photos / "cat/003.png").unlink()
    work.pool = pool_of(size=24)
    with pytest.raises(BadInput, match=r"cat/003\.png: missing"):
        work.ingest(rebuild=True)
    assert work.bytes() == before


def test_a_rebuild_finds_the_bytes_at_a_copy(work: Workspace) -> None:
    work.add("a.png", 1)
    work.add("copy.png", 1)
    work.ingest()
    (work.photos / "a.png").unlink()
    work.pool = pool_of(size=24)
    work.ingest(rebuild=True)
    assert work.image(digest(picture(1))).shape == (24, 24, 1)


@pytest.mark.parametrize("step", ["first", "later", "rebuild"])
def test_a_kill_at_every_effect_converges_to_the_undisturbed_bytes(tmp_path: Path, step: str) -> None:
    start = tmp_path / "start"
    start.mkdir()
    work = filled(Workspace(start, max_pixels=1000))
    work.add("cat/big.png", 77, size=40)  # refused at first, taken by those that follow
    work.write("cat/late.png", b"not whole yet")
    work.write("broken.png", b"x")
    settled(work)
    if step != "first":
        work.ingest()
        second_step(work)
    pool = {"size": 20} if step == "rebuild" else {}

    def again(name: str) -> Workspace:
        shutil.copytree(start, tmp_path / name)
        return Workspace(tmp_path / name, **pool)

    undisturbed = again("undisturbed")
    undisturbed.ingest(rebuild=step == "rebuild")
    at = 1
    while crash(again(f"kill{at}"), at, step == "rebuild", pool):
        killed = Workspace(tmp_path / f"kill{at}", **pool)
        if (killed.root / files.POOL).exists():
            check_committed(killed)
        killed.ingest(rebuild=step == "rebuild" and killed.store.read_json(files.POOL)["size"] == 16)
        assert killed.bytes() == undisturbed.bytes(), at
        at += 1
    assert at > 10


def check_committed(work: Workspace) -> None:
    """A reader sees only what pool.json counts, except in the one step of a rebuild that changes both files."""
    info = files.read_info(work.store)
    assert info is not None
    rows = work.rows()
    assert len(rows) == info.items
    assert all((work.root / pool_shard(r["shard"])).exists() for r in rows)


def test_an_interrupted_rebuild_is_not_taken_for_a_pool(work: Workspace) -> None:
    filled(work).ingest()
    info = work.store.read_json(files.POOL)
    work.pool = pool_of(size=20)
    work.ingest(rebuild=True)
    work.store.write_json(files.POOL, info)  # as if killed before the last write
    work.pool = pool_of(size=16)
    with pytest.raises(GleanerError, match="interrupted"):
        work.ingest()


def test_leftovers_of_a_dead_run_are_swept(work: Workspace) -> None:
    filled(work).ingest()
    clean = work.bytes()
    (work.root / "data/pool/shard-00007.npy").write_bytes(b"orphan")
    (work.root / "data/pool/.shard-00008.npy.writing").write_bytes(b"half")
    work.ingest()
    assert work.bytes() == clean


def test_a_pool_of_another_format_is_refused(work: Workspace) -> None:
    filled(work, 3).ingest()
    work.store.write_json(files.POOL, {**work.store.read_json(files.POOL), "format": 99})
    with pytest.raises(GleanerError, match="format 1"):
        work.ingest()


def test_a_full_disk_leaves_the_old_pool(work: Workspace) -> None:
    filled(work).ingest()
    before, rows = work.bytes(), work.rows()
    for i in range(30, 60):
        work.add(f"{i}.png", i)
    code = CRASH.format(tests=str(ROOT / "tests"), root=str(work.root), rebuild=False, pool={})
    limited = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limited += "resource.setrlimit(resource.RLIMIT_FSIZE, (2600, 2600))\n"
    done = subprocess.run([sys.executable, "-c", limited + code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "GleanerError: cannot write" in done.stderr
    assert work.rows() == rows
    assert {name: work.bytes()[name] for name in before} == before
    assert work.ingest().accepted == 30
