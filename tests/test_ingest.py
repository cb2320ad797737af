"""tasks.intake: each file is exactly one of accepted, duplicate, quarantined; nothing written ever moves."""

from __future__ import annotations

import io
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks import looking
from tasks import pool as files
from tasks.counts import Counts, summary
from tasks.features import pool_shard
from tasks.sources import folder
from tasks.tables import MANIFEST
from tests.photos import Workspace, digest, filled, picture, pool_of


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


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
