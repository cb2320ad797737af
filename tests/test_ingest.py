"""tasks.ingest: each file is exactly one of accepted, duplicate, quarantined; nothing written ever moves."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
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
from tasks.counts import Counts, summary
from tasks.errors import BadInput, GleanerError
from tasks.features import pool_shard
from tasks.grouping import draw_split
from tasks.intake import take_in
from tasks.params_sections import Campaign, Compute, Holdout, Pool
from tasks.params_sections import Source as SourceParams
from tasks.sources import Found, folder
from tasks.store import Store
from tasks.tables import KNOWN_LABELS, MANIFEST, SIGHTINGS

SHARED = Path(__file__).parent.parent.parent / "shared/data"
ROOT = Path(__file__).parent.parent


def pool_of(**changed: Any) -> Pool:
    values = {"size": 16, "mode": "L", "near_duplicate_difference": 0.03, "shard_items": 10}
    return Pool.model_validate({**values, **changed})


class Workspace:
    """A campaign's folder with a folder of photos in it."""

    def __init__(self, root: Path, **pool: Any) -> None:
        self.root = root
        self.photos = root / "photos"
        self.photos.mkdir(exist_ok=True)
        self.store = Store(root)
        self.pool = pool_of(**pool)
        self.source = SourceParams(kind="folder", path="photos", options={"labels": "folders"})
        self.holdout = Holdout(share=0.3, labels=100)
        self.campaign = Campaign(name="t", seed=0)

    def ingest(self, workers: int = 2, rebuild: bool = False, progress: bool | None = None) -> Counts:
        counts = take_in(
            self.store, self.source, self.pool, self.holdout, self.campaign, Compute(workers=workers, threads=1),
            rebuild=rebuild, progress=progress,
        )  # fmt: skip
        assert counts.accepted + counts.duplicate + counts.quarantined == counts.seen
        assert sum(counts.reasons.values()) == counts.quarantined == len(counts.quarantine)
        return counts

    def add(self, name: str, seed: int, kind: str = "PNG", size: int = 20) -> Path:
        return self.write(name, picture(seed, kind, size))

    def write(self, name: str, content: bytes) -> Path:
        path = self.photos / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = files.read_manifest(self.store).to_pylist()
        return rows

    def outcomes(self) -> dict[str, tuple[str, str]]:
        rows = files.read_sightings(self.store).to_pylist()
        return {row["uri"]: (row["outcome"], row["reason"]) for row in rows}

    def bytes(self) -> dict[str, str]:
        """Every file of the pool by its hash."""
        found = sorted((self.root / "data/pool").iterdir())
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}

    def image(self, item: str) -> Any:
        row = next(row for row in self.rows() if row["item_id"] == item)
        return self.store.read_array(pool_shard(row["shard"]))[row["row"]]


def picture(seed: int, kind: str = "PNG", size: int = 20) -> bytes:
    array = np.random.default_rng(seed).integers(0, 256, (5, 5), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(array).resize((size, size), Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def filled(work: Workspace, count: int = 25) -> Workspace:
    for i in range(count):
        work.add(f"{'cat' if i % 2 else 'dog'}/{i:03d}.png", i)
    return work


def test_images_become_shards_and_a_manifest(work: Workspace) -> None:
    counts = filled(work).ingest()
    assert (counts.seen, counts.accepted) == (25, 25)
    shapes = [work.store.read_array(pool_shard(n)).shape for n in range(3)]
    assert shapes == [(10, 16, 16, 1), (10, 16, 16, 1), (5, 16, 16, 1)]
    rows = work.rows()
    assert [row["uri"] for row in rows] == sorted(row["uri"] for row in rows)
    for row in rows:
        content = (work.photos / row["uri"]).read_bytes()
        assert row["item_id"] == digest(content)
        assert (row["width"], row["height"], row["bytes"], row["ingest"]) == (20, 20, len(content), 1)
        expected = Image.open(io.BytesIO(content)).resize((16, 16), Image.Resampling.BILINEAR)
        assert np.array_equal(work.image(row["item_id"])[..., 0], np.asarray(expected))
    info = work.store.read_json(files.POOL)
    assert {k: info[k] for k in ("size", "mode", "salt", "share", "items", "ingests", "version", "shards")} == {
        "size": 16, "mode": "L", "salt": "0", "share": 0.3, "items": 25, "ingests": 1, "version": 1, "shards": 3,
    }  # fmt: skip
    assert info["classes"] == ["cat", "dog"]


def test_hostile_files_are_quarantined_each_with_its_reason(work: Workspace) -> None:
    good = picture(1, "JPEG", 60)
    work.write("good.jpg", good)
    work.write("good.txt", picture(2))  # the name says nothing
    work.write("empty.jpg", b"")
    work.write("cut.jpg", good[: len(good) // 2])
    work.write("page.jpg", b"<html>")
    work.write("drawing.svg", b"<svg/>")
    work.write("paper.pdf", b"%PDF-1.7 " + good)
    work.write("bomb.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\x7f\xff\xff\xff\x7f\xff\xff\xff\x08\x02\0\0\0" + b"\0" * 99)
    work.write("Thumbs.db", b"\xd0\xcf\x11\xe0")
    work.write("a\nb\xff.jpg".encode("latin-1").decode("utf-8", "surrogateescape"), picture(3))
    (work.photos / "link.jpg").symlink_to("/etc/passwd")
    (work.photos / "loop").symlink_to(work.photos)
    os.mkfifo(work.photos / "pipe.jpg")
    with (work.photos / "sparse.jpg").open("wb") as handle:
        handle.truncate(2**40)
    done: list[Counts] = []
    thread = threading.Thread(target=lambda: done.append(work.ingest()), daemon=True)
    thread.start()
    thread.join(30)
    assert done, "the ingest hangs"
    counts = done[0]
    assert (counts.seen, counts.accepted, counts.quarantined) == (14, 3, 11)
    reasons = {uri: reason.split(":")[0] for uri, reason in counts.quarantine}
    assert reasons == {
        "empty.jpg": "empty", "cut.jpg": "truncated", "page.jpg": "not an image", "drawing.svg": "not an image",
        "paper.pdf": "not an image", "bomb.png": "damaged", "Thumbs.db": "not an image", "link.jpg": "symbolic link",
        "loop": "symbolic link", "pipe.jpg": "not a regular file", "sparse.jpg": "too large",
    }  # fmt: skip
    assert all(reason for outcome, reason in work.outcomes().values() if outcome == "quarantined")
    assert "a%0Ab%FF.jpg" in work.outcomes()


def test_exact_duplicates_are_folded_into_the_first(work: Workspace) -> None:
    work.add("a.png", 1)
    work.add("b/copy.png", 1)
    work.add("c.png", 2)
    counts = work.ingest()
    assert (counts.accepted, counts.duplicate, counts.known) == (2, 1, 0)
    assert work.outcomes()["b/copy.png"] == ("duplicate", "same bytes as a.png")


def test_bytes_that_are_known_are_not_decoded_again(work: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(work).ingest()
    shutil.copytree(work.photos / "cat", work.photos / "copies")
    monkeypatch.setattr(looking, "decode", lambda *_: pytest.fail("decoded again"))
    assert work.ingest().duplicate == 37


def test_running_again_reads_nothing_and_changes_no_byte(work: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(work).write("broken.jpg", b"no")
    work.ingest()
    before = work.bytes()
    monkeypatch.setattr(folder.Folder, "read", lambda *_: pytest.fail("read again"))
    counts = work.ingest()
    assert (counts.accepted, counts.duplicate, counts.known, counts.quarantined) == (0, 25, 25, 1)
    assert work.bytes() == before


def test_adding_images_later_reads_only_the_new_ones(work: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(work).ingest()
    before, rows = work.bytes(), work.rows()
    read: list[str] = []
    original = folder.Folder.read

    def noted(self: folder.Folder, uri: str) -> bytes:
        read.append(uri)
        return original(self, uri)

    monkeypatch.setattr(folder.Folder, "read", noted)
    work.add("aaa.png", 100)
    work.add("zzz.png", 101)
    counts = work.ingest()
    assert read == ["aaa.png", "zzz.png"]
    assert (counts.accepted, counts.known) == (2, 25)
    assert work.rows()[:25] == rows
    assert [(r["shard"], r["row"], r["ingest"]) for r in work.rows()[25:]] == [(3, 0, 2), (3, 1, 2)]
    assert all(work.bytes()[name] == value for name, value in before.items() if name.startswith("shard"))


def test_changed_bytes_under_a_name_are_a_new_item_and_a_touch_is_not(work: Workspace) -> None:
    path = work.add("a.png", 1)
    work.ingest()
    path.write_bytes(picture(2))
    os.utime(path, ns=(1, 1))
    assert work.ingest().accepted == 1
    os.utime(path, ns=(2, 2))
    assert (work.ingest().accepted, work.ingest().known) == (0, 1)
    assert [row["uri"] for row in work.rows()] == ["a.png", "a.png"]


def test_a_quarantined_file_is_taken_once_it_is_whole(work: Workspace) -> None:
    work.write("a.jpg", b"")
    assert work.ingest().quarantined == 1
    work.write("a.jpg", picture(1))
    counts = work.ingest()
    assert (counts.accepted, counts.quarantined) == (1, 0)


def test_raising_max_pixels_looks_at_refused_files_again(work: Workspace) -> None:
    work.add("a.png", 1)
    work.pool = pool_of(max_pixels=100)
    assert work.ingest().reasons == {"too large": 1}
    assert work.ingest().accepted == 0
    work.pool = pool_of(max_pixels=1000)
    assert work.ingest().accepted == 1


def test_a_file_that_cannot_be_read_is_tried_again(work: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    work.add("a.png", 1)

    def denied(*_: Any) -> bytes:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(folder.Folder, "read", denied)
        assert work.ingest().reasons == {"unreadable": 1}
    assert work.ingest().accepted == 1


def test_a_file_that_changes_while_it_is_read_is_the_bytes_that_were_read(
    work: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = work.add("a.png", 1)
    original = folder.Folder.read

    def changing(self: folder.Folder, uri: str) -> bytes:
        content = original(self, uri)
        path.write_bytes(picture(2, size=33))
        os.utime(path, ns=(5, 5))
        return content

    with monkeypatch.context() as patch:
        patch.setattr(folder.Folder, "read", changing)
        work.ingest()
    assert [row["item_id"] for row in work.rows()] == [digest(picture(1))]
    assert work.ingest().accepted == 1
    assert work.rows()[1]["item_id"] == digest(picture(2, size=33))


def test_a_sequence_that_changes_after_the_first_ingest_is_said_and_changes_no_group(work: Workspace) -> None:
    for seed, name in enumerate(("a_1.png", "a_2.png", "b_1.png")):
        work.add(name, seed)
    work.ingest()
    before = [(row["item_id"], row["group"], row["sequence"], row["split"]) for row in work.rows()]
    work.source = work.source.model_copy(update={"options": {"labels": "folders", "sequence": "(.*)_[0-9]"}})
    (warning,) = work.ingest().warnings
    assert warning.startswith("3 images now have another sequence")
    assert [(row["item_id"], row["group"], row["sequence"], row["split"]) for row in work.rows()] == before


def test_known_labels_stay_out_of_the_manifest(work: Workspace) -> None:
    filled(work, 4).ingest()
    labels = files.read_known_labels(work.store)
    assert {row["uri"]: labels[row["item_id"]] for row in work.rows()} == {
        "cat/001.png": "cat", "cat/003.png": "cat", "dog/000.png": "dog", "dog/002.png": "dog",
    }  # fmt: skip
    assert "label" not in MANIFEST.schema.names


def test_contradicting_labels_of_the_same_bytes_are_dropped_and_said(work: Workspace) -> None:
    work.add("cat/a.png", 1)
    work.add("dog/a.png", 1)
    counts = work.ingest()
    assert counts.accepted == 1
    assert files.read_known_labels(work.store) == {}
    assert counts.warnings == ("cat/a.png: the same bytes are labeled cat, dog: no label is known",)
    assert work.ingest().warnings == counts.warnings  # still so, and still said
    (work.photos / "dog/a.png").unlink()
    work.ingest()
    assert list(files.read_known_labels(work.store).values()) == ["cat"]


def test_a_moved_file_takes_its_new_label(work: Workspace) -> None:
    path = work.add("cat/a.png", 1)
    work.ingest()
    (work.photos / "dog").mkdir()
    path.rename(work.photos / "dog/a.png")
    counts = work.ingest()
    assert (counts.accepted, counts.duplicate, counts.known) == (0, 1, 0)
    assert list(files.read_known_labels(work.store).values()) == ["dog"]
    assert counts.warnings == ("cat/a.png: known label changed from cat to dog",)
    assert work.store.read_json(files.POOL)["classes"] == ["cat", "dog"]  # positions never move


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


def check_invariants(work: Workspace) -> None:
    """What must hold of any pool."""
    rows = work.rows()
    sides: dict[str, set[str]] = {}
    for row in rows:
        sides.setdefault(row["group"], set()).add(row["split"])
        sides.setdefault(f"sequence {row['sequence']}" if row["sequence"] else row["group"], set()).add(row["split"])
    assert all(len(side) == 1 for side in sides.values())
    sightings = files.read_sightings(work.store).to_pylist()
    assert {s["sha256"] for s in sightings if s["outcome"] == "accepted"} == {r["item_id"] for r in rows}
    assert Counter(s["outcome"] for s in sightings)["accepted"] == len(rows)
    held = Counter(r["shard"] for r in rows)
    for shard, count in held.items():
        assert len(work.store.read_array(pool_shard(shard))) == count
    assert len({(r["shard"], r["row"]) for r in rows}) == len(rows)


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


def test_an_empty_source_is_a_no_op_that_says_why(work: Workspace) -> None:
    counts = work.ingest()
    assert counts.seen == 0
    assert "nothing to do" in summary(counts)
    assert not (work.root / "data").exists()


def test_a_source_of_only_broken_files_still_leaves_a_pool(work: Workspace) -> None:
    work.write("a.jpg", b"x")
    assert work.ingest().quarantined == 1
    assert work.rows() == []
    assert work.ingest().quarantined == 1
    work.add("b.png", 1)
    assert work.ingest().accepted == 1


def test_the_summary_names_counts_and_reasons(work: Workspace) -> None:
    filled(work, 3).write("x.jpg", b"")
    assert summary(work.ingest()).splitlines()[:2] == [
        "4 files seen: 3 accepted, 0 duplicates, 1 quarantined",
        "      1  empty",
    ]


def test_the_bar_goes_to_standard_error_and_only_when_wanted(
    work: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    filled(work, 5).ingest()
    assert capfd.readouterr() == ("", "")
    work.ingest(progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "5/5" in err


def test_pillows_remarks_stay_off_the_screen(work: Workspace, capfd: pytest.CaptureFixture[str]) -> None:
    tiff = bytearray(picture(1, "TIFF"))
    for at in range(len(tiff) - 150, len(tiff), 7):
        broken = bytearray(tiff)
        broken[at] ^= 0xFF
        work.write(f"{at}.tif", bytes(broken))
    work.ingest()
    assert capfd.readouterr() == ("", "")


CRASH = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_ingest import Workspace
work = Workspace(Path({root!r}), **{pool!r})
work.ingest(rebuild={rebuild!r})
"""


def crash(work: Workspace, at: int, rebuild: bool = False, pool: dict[str, Any] | None = None) -> bool:
    """Run an ingest that is killed at its n-th checkpoint; False when it came to its end."""
    code = CRASH.format(tests=str(ROOT / "tests"), root=str(work.root), rebuild=rebuild, pool=pool or {})
    pid = os.fork()
    if pid == 0:
        try:
            from tasks import checkpoint

            checkpoint.restart()
            os.environ["GLEANER_KILL_AT"] = str(at)
            exec(code)
        finally:
            os._exit(3 if sys.exc_info()[0] else 0)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def settled(work: Workspace) -> None:
    for path in work.photos.rglob("*.*"):
        os.utime(path, ns=(1, 1))


def second_step(work: Workspace) -> None:
    for i in range(25, 40):
        work.add(f"cat/{i:03d}.png", i)
    work.write("cat/broken.png", b"x")
    settled(work)
    work.add("cat/late.png", 999)
    os.utime(work.photos / "cat/late.png", ns=(2, 2))


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
