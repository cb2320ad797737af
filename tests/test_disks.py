"""Disks that are full, gone or read-only, remotes among them: nothing is tagged that could not be brought back."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tasks import repository, restore, versions
from tasks.errors import GleanerError
from tasks.pointers import objects_of
from tasks.status import status
from tests.calm import Calm, assert_converged
from tests.children import run_in_child
from tests.quick import broken, copy, tick


@pytest.fixture
def root(calm: Calm, tmp_path: Path) -> Path:
    """A workspace of the test's own."""
    return copy(calm.before, tmp_path / "workspace")


# DVC's remote -----------------------------------------------------------------------------------------------


def set_remote(root: Path, url: Path) -> None:
    """Make a folder the default remote and commit that, as a person would."""
    for arguments in (("remote", "add", "--force", "far", str(url)), ("config", "core.remote", "far")):
        subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=root, check=True, capture_output=True)
    identity = ("-c", "user.name=x", "-c", "user.email=x@localhost")
    repository.git(root, *identity, "commit", "--quiet", "--message", "a remote", "--", ".dvc/config")


def test_a_remote_that_is_gone_stops_before_the_tag_and_a_later_tick_finishes(
    root: Path, calm: Calm, tmp_path: Path
) -> None:
    remote = tmp_path / "nas/campaign"
    set_remote(root, remote)
    with pytest.raises(GleanerError, match=r"DVC remote .*nas/campaign is not there.*Nothing was tagged"):
        tick(root)
    assert not remote.exists(), "a disk that is not mounted must not be replaced by a folder"
    assert repository.tags(root) == ["iter-0000", "iter-0001"]
    remote.mkdir(parents=True)
    assert tick(root) == "recovered"
    assert_converged(root, calm)
    assert any(remote.rglob("files/md5/*/*"))


def test_a_remote_that_takes_nothing_stops_before_the_tag_and_a_later_tick_finishes(
    root: Path, calm: Calm, tmp_path: Path
) -> None:
    remote = tmp_path / "remote"
    remote.mkdir()
    (remote / "files").write_text("a file where DVC wants a folder\n")
    set_remote(root, remote)
    with pytest.raises(GleanerError, match=r"DVC remote .*/remote did not take the iteration's data"):
        tick(root)
    assert repository.tags(root) == ["iter-0000", "iter-0001"]
    (remote / "files").unlink()
    assert tick(root) == "recovered"
    assert_converged(root, calm)


def test_a_fresh_clone_restores_from_the_remote_alone(root: Path, tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    remote.mkdir()
    set_remote(root, remote)
    promised = {md5 for number in (0, 1) for md5 in objects_of(root, repository.tag_name(number))}
    assert tick(root) == "iteration 2"
    promised |= objects_of(root, "iter-0002")
    held = {"".join(path.parts[-2:]) for path in (remote / "files/md5").glob("*/*")}
    assert promised and promised == held
    clone = tmp_path / "clone"
    repository.git(tmp_path, "clone", "--quiet", str(root), str(clone))
    (root / ".dvc/cache").rename(tmp_path / "out of reach")
    for number in (0, 1, 2):  # those closed before there was a remote, too
        assert restore.restore(clone, number, tmp_path / f"copy-{number}") > 20


def test_a_copy_makes_no_folder_where_its_original_stood(root: Path, tmp_path: Path) -> None:
    (root / ".dvc/config").write_text("")
    versions.configure(root, root)
    repository.git(root, "-c", "user.name=x", "-c", "user.email=x@localhost", "commit", "--quiet", "-am", "moved here")
    assert tick(root) == "iteration 2"
    repository.git(tmp_path, "clone", "--quiet", str(root), str(tmp_path / "clone"))
    root.rename(tmp_path / "moved")
    with pytest.raises(GleanerError, match=r"the data of iter-0002 cannot be brought back, nothing was changed"):
        restore.restore(tmp_path / "clone", 2, tmp_path / "copy")
    with pytest.raises(GleanerError, match=r"the data of this copy cannot be brought back"):
        restore.fork(tmp_path / "clone")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clone", "moved"]


# a disk that cannot be written ------------------------------------------------------------------------------


def test_a_workspace_on_a_read_only_disk_can_be_looked_at(root: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        place = copy(root, disk / "workspace")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert broken(place) == []
        assert status(place)["state"] == "closed"
        with pytest.raises(GleanerError, match="mounted read-only"):
            tick(place)


# disk full --------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    """A file system of 24 MB; skips where mounting one is not permitted."""
    path.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(path)], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"small-disk: a small disk cannot be mounted here: {mount.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(disk: str, leave: int = 0) -> None:
    """Take all room of a disk but `leave` bytes."""
    status = os.statvfs(disk)
    descriptor = os.open(os.path.join(disk, "filler"), os.O_CREAT | os.O_WRONLY)
    os.posix_fallocate(descriptor, 0, status.f_bavail * status.f_frsize - leave)
    os.close(descriptor)


def fills_at(point: str, disk: str) -> None:
    """A twin whose disk is full from a checkpoint on."""
    import tasks.checkpoint

    original = tasks.checkpoint.checkpoint

    def filling(name: str) -> None:
        original(name)
        if name == point:
            fill(disk)

    for module in list(sys.modules.values()):
        if getattr(module, "checkpoint", None) is original:
            module.checkpoint = filling  # type: ignore[attr-defined]


def assert_survives_full_disk(root: Path, calm: Calm, disk: Path, twin: Any = None) -> None:
    """The tick fails with one clear error and no tag; with room again, the next ticks converge."""
    ended = run_in_child(tick, root, twin=twin)
    assert "GleanerError" in ended.kinds, f"{ended.error}: {ended.text}"
    assert re.search(r"No space left|disk is full|disk I/O error|Out of diskspace|0 MB are free", ended.text), (
        ended.text
    )
    assert str(root) in ended.text, "names the place"
    tagged = {"iter-0002"} & set(repository.tags(root))
    assert not tagged or "close:tag:after" in ended.passed
    (disk / "filler").unlink()
    assert [line for line in broken(root) if not line.startswith("I9")] == [], "the old state is intact"
    assert tick(root) in ("iteration 2", "recovered")
    assert_converged(root, calm)


PHASES = (
    "import:store:before",
    "open:ledger:after",
    "stage:tasks.select:after",
    "oracle:create:before",
    "export:push:after",
    "close:outcome:after",
    "close:artefacts:after",
    "close:push:after",
    "close:commit:after",
    "close:tag:after",
)


@pytest.mark.parametrize(
    "phase", [pytest.param(phase, marks=[pytest.mark.slow] * (place % 2)) for place, phase in enumerate(PHASES)]
)
def test_a_disk_that_fills_up_at_any_phase_costs_nothing_but_time(calm: Calm, phase: str, tmp_path: Path) -> None:
    assert phase in calm.points
    with small_disk(tmp_path / "disk") as disk:
        root = copy(calm.before, disk / "workspace")
        assert_survives_full_disk(root, calm, disk, partial(fills_at, phase, str(disk)))


@pytest.mark.parametrize("room", [0, 256, 1024])
def test_with_little_room_left_no_step_hangs_or_loses_anything(calm: Calm, room: int, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        root = copy(calm.before, disk / "workspace")
        fill(str(disk), room * 1024)
        assert_survives_full_disk(root, calm, disk)
