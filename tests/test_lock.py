"""The campaign's lock: one process, named to the second, freed by death, not inherited."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.errors import Busy
from tasks.lock import LOCK, campaign_lock

ROOT = Path(__file__).resolve().parent.parent
HOLD = """
import os, subprocess, sys, time
from pathlib import Path
from tasks.lock import campaign_lock
with campaign_lock(Path(sys.argv[1]), "tick"):
    {inside}
    print(child, flush=True)
    time.sleep(60)
"""


def start(root: Path, inside: str = "child = 0") -> tuple[subprocess.Popen[str], int]:
    """A process that holds the lock, and the id of the child that it started."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(inside=inside), str(root)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process, _ = start(tmp_path)
    yield process
    process.kill()
    process.communicate()


def test_the_second_is_told_who_holds_the_lock_since_when(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    began = time.monotonic()
    told = rf"is in use: `tick`, process {holder.pid}, since 20\d\d-"
    with pytest.raises(Busy, match=told) as caught, campaign_lock(tmp_path, "export"):
        pass
    assert time.monotonic() - began < 1, "it does not wait"
    assert caught.value.exit_code == 75
    assert str(tmp_path) in str(caught.value)
    assert str(holder.pid) in (tmp_path / LOCK).read_text(), "the refused one leaves the holder's name"


def test_the_lock_is_free_when_its_holder_was_killed(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with campaign_lock(tmp_path, "export"):
        assert f'"pid": {os.getpid()}' in (tmp_path / LOCK).read_text()


def test_the_same_process_cannot_take_it_twice(tmp_path: Path) -> None:
    with campaign_lock(tmp_path, "a"), pytest.raises(Busy, match="`a`"), campaign_lock(tmp_path, "b"):
        pass
    with campaign_lock(tmp_path, "c"):
        pass


def test_an_error_inside_frees_it(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), campaign_lock(tmp_path, "a"):
        1 / 0  # noqa: B018
    with campaign_lock(tmp_path, "b"):
        pass


CHILDREN = {
    "another program": "child = subprocess.Popen(['sleep', '30'], close_fds=False, stdout=subprocess.DEVNULL).pid",
    "a fork": "child = os.fork()\n    if child == 0: os.close(1); time.sleep(30); os._exit(0)",
}


def take_within(seconds: float, root: Path) -> None:
    """Take the lock; a child that was forked a moment ago may not have run yet."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with campaign_lock(root, "export"):
                return
        except Busy:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@pytest.mark.parametrize("kind", sorted(CHILDREN))
def test_a_child_that_lives_on_does_not_keep_the_lock(kind: str, tmp_path: Path) -> None:
    process, child = start(tmp_path, CHILDREN[kind])
    try:
        with pytest.raises(Busy), campaign_lock(tmp_path, "export"):
            pass
        process.kill()
        process.wait()
        take_within(5, tmp_path)
        os.kill(child, 0)  # it is still there
    finally:
        os.kill(child, signal.SIGKILL)
        process.communicate()


def test_a_forked_child_that_ends_does_not_free_its_parents_lock(tmp_path: Path) -> None:
    with campaign_lock(tmp_path, "tick"):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(Busy), campaign_lock(tmp_path, "export"):
            pass


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"5", b"\xff", b'{"pid": 1}'])
def test_a_lock_file_with_any_content_is_a_lock(content: bytes, tmp_path: Path) -> None:
    with campaign_lock(tmp_path, "tick"):
        (tmp_path / LOCK).write_bytes(content)
        with pytest.raises(Busy, match="another process that has just started"), campaign_lock(tmp_path, "export"):
            pass
    with campaign_lock(tmp_path, "export"):
        pass


def test_the_lock_is_for_its_owner_only(tmp_path: Path) -> None:
    with campaign_lock(tmp_path, "tick"):
        assert (tmp_path / LOCK).stat().st_mode & 0o077 == 0
        assert (tmp_path / LOCK).parent.stat().st_mode & 0o077 == 0
