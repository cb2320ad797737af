"""Crash, disk and concurrency faults, row by row of docs/invariants.md: after each the campaign converges to the state
that nothing disturbed, or refuses with a message that says who, what and how to go on."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flows import settings
from tasks import leftovers, repository, tracking
from tasks.campaign import open_campaign
from tasks.errors import BadInput, Busy, GleanerError
from tasks.lock import campaign_lock, is_locked
from tasks.stage import TICK, tick_mark
from tasks.store import sha256
from tasks.trackers import IterationRecord
from tests import quick
from tests.calm import Calm, assert_converged, kill_after
from tests.children import context, run_in_child, start
from tests.quick import broken, copy, edit, tick


@pytest.fixture
def root(calm: Calm, tmp_path: Path) -> Path:
    """A workspace of the test's own."""
    return copy(calm.before, tmp_path / "workspace")


def everything(root: Path) -> dict[str, str]:
    """Every file of a workspace with its hash, without what a refused start may touch: the lock, DVC's own cache."""
    files = (p for p in sorted(root.rglob("*")) if p.is_file() and not p.is_symlink())
    skipped = (".gleaner/lock", ".gleaner/dvc-site", ".dvc/tmp", ".gleaner/ledger.sqlite-", ".git/index")
    names = {p: p.relative_to(root).as_posix() for p in files}
    return {name: sha256(p) for p, name in names.items() if not name.startswith(skipped)}


# two at once ------------------------------------------------------------------------------------------------


def test_of_two_ticks_at_once_the_second_is_told_who_works_and_since_when(root: Path, calm: Calm) -> None:
    barrier = context().Barrier(2)
    waiting = [start(tick, root, barrier=barrier) for _ in range(2)]
    winner, loser = sorted((wait() for wait in waiting), key=lambda ended: ended.error)
    assert (winner.text, loser.error) == ("iteration 2", "Busy")
    assert re.search(r"in use: `tick`, process \d+, since \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", loser.text)
    assert Busy.exit_code == 75
    assert_converged(root, calm)


ORPHANS = """
import os, subprocess, sys, time
from pathlib import Path
from tasks.lock import campaign_lock
with campaign_lock(Path(sys.argv[1]), "tick"):
    executed = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL)
    forked = os.fork()
    if not forked:
        time.sleep(60)
    print(executed.pid, forked, flush=True)
    time.sleep(60)
"""


def test_no_orphaned_child_keeps_the_lock_of_a_killed_parent(root: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHANS, str(root)], stdout=subprocess.PIPE, text=True, cwd=quick.TEMPLATE
    )
    assert parent.stdout is not None
    orphans = [int(pid) for pid in parent.stdout.readline().split()]
    with pytest.raises(Busy, match=f"process {parent.pid}"), campaign_lock(root, "tick"):
        pass
    parent.kill()
    parent.communicate() if not orphans else parent.wait()
    deadline = time.monotonic() + 10  # a child holds its copy until it has run its first instructions
    while is_locked(root) and time.monotonic() < deadline:
        time.sleep(0.05)
    try:
        with campaign_lock(root, "tick"):
            assert all(Path(f"/proc/{pid}").exists() for pid in orphans)
    finally:
        for pid in orphans:
            os.kill(pid, signal.SIGKILL)
        parent.stdout.close()


# stale locks ------------------------------------------------------------------------------------------------


def leave_stale_locks(root: Path) -> list[Path]:
    """What a killed git and a killed DVC leave behind; the pid has been given to another process since (this one)."""
    held = {str(root / "data/scores.parquet"): {"write": {"pid": os.getpid(), "cmd": "dvc repro"}}}
    (root / ".git/index.lock").write_bytes(b"")
    (root / ".git/refs/heads/main.lock").write_bytes(b"")
    (root / ".git/refs/tags/iter-0002.lock").write_bytes(b"")
    (root / ".dvc/tmp/rwlock").write_text(json.dumps(held))
    return leftovers.stale_locks(root)


def test_stale_locks_of_git_and_dvc_are_cleared_and_the_tick_goes_on(root: Path, calm: Calm) -> None:
    assert len(leave_stale_locks(root)) == 4
    assert sum("I9" in line for line in broken(root)) == 4
    assert tick(root) == "iteration 2"
    assert_converged(root, calm)


def test_stale_locks_stay_while_another_process_holds_ours(root: Path) -> None:
    locks = leave_stale_locks(root)
    with campaign_lock(root, "demo"):
        assert run_in_child(tick, root).error == "Busy"
    assert leftovers.stale_locks(root) == locks


def test_the_lock_of_a_git_that_is_at_work_is_respected(root: Path) -> None:
    by_hand = subprocess.Popen(["git", "cat-file", "--batch"], cwd=root, stdin=subprocess.PIPE)
    try:
        (root / ".git/index.lock").write_bytes(b"")
        with pytest.raises(Busy, match=f"`git cat-file --batch`, process {by_hand.pid}"):
            tick(root)
        assert (root / ".git/index.lock").exists()
    finally:
        by_hand.communicate()
    assert tick(root) == "iteration 2"


# other people's work ----------------------------------------------------------------------------------------


def _edited_code(root: Path) -> str:
    (root / "tasks/train.py").write_text("# somebody is in the middle of something\n")
    return "tasks/train.py"


def _stray_code(root: Path) -> str:
    (root / "tasks/strategies/mine.py").write_text("def utility(probabilities): ...\n")
    return "tasks/strategies/mine.py"


def _staged_file(root: Path) -> str:
    (root / "tests/mine.py").write_text("")
    repository.git(root, "add", "tests/mine.py")
    return "tests/mine.py"


def _detached(root: Path) -> str:
    repository.git(root, "checkout", "--quiet", "--detach", "HEAD")
    return "HEAD is detached. `git checkout main && dvc checkout` returns"


def _merging(root: Path) -> str:
    for branch, text in (("other", "other\n"), ("main", "main\n")):
        repository.git(root, "checkout", "--quiet", *(["-b"] if branch == "other" else []), branch)
        (root / "Makefile").write_text(text)
        repository.git(
            root, "-c", "user.name=x", "-c", "user.email=x@localhost", "commit", "-qam", f"Makefile of {branch}"
        )
    with pytest.raises(GleanerError, match="CONFLICT"):
        repository.git(root, "-c", "user.name=x", "-c", "user.email=x@localhost", "merge", "other")
    return "a merge is in progress"


@pytest.mark.parametrize("work", [_edited_code, _stray_code, _staged_file, _detached, _merging])
def test_other_peoples_work_is_named_and_left_alone(root: Path, work: Any) -> None:
    named = work(root)
    before = everything(root)
    with pytest.raises(BadInput, match=re.escape(named)):
        tick(root)
    assert everything(root) == before


# between selection and tag ----------------------------------------------------------------------------------


def test_params_edited_between_selection_and_tag_do_not_enter_the_tag(root: Path, calm: Calm) -> None:
    used = (root / "params.yaml").read_text()
    kill_after(root, calm, "export:select:after")
    edit(root, {"select.batch": 3, "select.strategy": "entropy"})
    assert tick(root) == "recovered"
    assert repository.show(root, "iter-0002", "params.yaml") == used
    record = tracking.read_record(root / tracking.FOLDER / "iter-0002")
    assert (record.params["select.batch"], record.params["select.strategy"]) == ("6", "margin")
    assert (root / tracking.FOLDER / "iter-0002/files/params.yaml").read_text() == used
    assert "batch: 3 " in (root / "params.yaml").read_text()
    assert_converged(root, calm)
    assert tick(root) == "iteration 3"
    assert "batch: 3 " in repository.show(root, "iter-0003", "params.yaml")
    assert broken(root) == []


def test_code_committed_between_selection_and_tag_is_refused_and_the_advice_works(root: Path, calm: Calm) -> None:
    kill_after(root, calm, "export:select:after")
    repository.git(root, "config", "user.name", "A person")
    repository.git(root, "config", "user.email", "person@localhost")
    (root / "tasks/strategies/new.py").write_text("def utility(count): ...\n")
    (root / "tasks/train.py").write_text((root / "tasks/train.py").read_text() + "# faster\n")
    repository.git(root, "add", "tasks")
    repository.git(root, "commit", "--quiet", "--message", "a new strategy", "--", "tasks")
    with pytest.raises(GleanerError, match=r"tasks/strategies/new.py.*changed since") as refused:
        tick(root)
    back, forth = re.findall(r"`(git [^`]+)`", str(refused.value))
    subprocess.run(["bash", "-ec", back], cwd=root, check=True, capture_output=True)
    assert tick(root) == "recovered"
    assert_converged(root, calm)
    subprocess.run(["bash", "-ec", f"{forth} --no-edit"], cwd=root, check=True, capture_output=True)
    assert (root / "tasks/strategies/new.py").exists() and "# faster" in (root / "tasks/train.py").read_text()
    assert tick(root) == "iteration 3"


def test_a_batch_that_was_computed_again_is_replaced_by_the_recorded_one(root: Path, calm: Calm) -> None:
    kill_after(root, calm, "export:push:after")
    for name in ("data/selection.parquet", "data/evaluation/metrics.json"):
        (root / name).unlink()
        (root / name).write_bytes((root / "params.yaml").read_bytes())
    (root / "dvc.lock").write_text((root / "dvc.lock").read_text().replace("schema", "# edited\nschema"))
    assert tick(root) == "recovered"
    assert_converged(root, calm)


def test_outputs_that_were_deleted_between_selection_and_tag_are_brought_back(root: Path, calm: Calm) -> None:
    kill_after(root, calm, "export:sent:after")
    (root / "data/selection.parquet").unlink()
    (root / "data/report/report.md").unlink()
    assert tick(root) == "recovered"
    assert_converged(root, calm)


# what a killed tick leaves running --------------------------------------------------------------------------


def test_only_what_dead_ticks_of_this_workspace_left_is_ended(root: Path, tmp_path: Path) -> None:
    pid, began, _ = tick_mark(root).split(" ", 2)
    marks = {
        "ours, the id used again": f"{pid} {int(began) - 1} {root}",
        "ours, alive": f"{pid} {began} {root}",
        "of another workspace": f"{pid} {int(began) - 1} {tmp_path / 'other'}",
    }
    left = {
        name: subprocess.Popen(["sleep", "60"], env={**os.environ, TICK: mark, "PREFECT_HOME": "/somewhere/else"})
        for name, mark in marks.items()
    }
    try:
        assert settings.end_orphans(root) == [left["ours, the id used again"].pid]
        assert left["ours, the id used again"].wait(10) == -signal.SIGTERM
        assert [name for name, process in left.items() if process.poll() is None] == list(marks)[1:]
    finally:
        for process in left.values():
            process.kill()
            process.wait()


# clocks, trackers -------------------------------------------------------------------------------------------


def test_a_clock_that_jumps_backwards_changes_nothing(root: Path, calm: Calm, monkeypatch: pytest.MonkeyPatch) -> None:
    year = iter(range(2100, 0, -1))
    backwards = partial(open_campaign, now=lambda: f"{next(year):04d}-01-01T00:00:00.000+00:00")
    monkeypatch.setattr(quick, "open_campaign", backwards)
    assert tick(root) == "iteration 2"
    assert_converged(root, calm)
    assert next(year) < 2100
    with open_campaign(root, "look") as campaign:
        moments = [row.opened_at for row in campaign.ledger.iterations()]
    assert moments[2] > moments[1], "the injected clock was used"


@dataclass
class Flaky:
    """A tracker that fails when it has shown `good` iterations."""

    good: int
    seen: list[int]

    def log(self, record: IterationRecord) -> str:
        """Show an iteration."""
        if len(self.seen) >= self.good:
            raise GleanerError("connection refused")
        self.seen.append(record.iteration)
        return ""


def test_the_trackers_outbox_is_replayed_once_when_it_is_back(root: Path) -> None:
    assert tick(root) == "iteration 2"
    tracker = Flaky(1, [])
    with open_campaign(root, "track") as campaign:
        assert "2 iterations wait" in tracking.flush(campaign, tracker)[0]
        tracker.good = 9
        assert tracking.flush(campaign, tracker) == []
        assert tracking.flush(campaign, tracker) == []
    assert tracker.seen == [0, 1, 2]


def test_with_mlflow_down_the_loop_goes_on_and_catches_up_later(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = probe.getsockname()[1]
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed}")
    with open_campaign(root, "track") as campaign:
        assert "not reachable, 2 iterations wait" in tracking.flush(campaign)[0]
    assert tick(root) == "iteration 2"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with open_campaign(root, "track") as campaign:
        assert tracking.flush(campaign) == []
        assert tracking.flush(campaign) == []
    assert _runs(root) == ["iteration 0", "iteration 1", "iteration 2"]


def _runs(root: Path) -> list[str]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root}/.gleaner/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return sorted(run.info.run_name for run in runs if run.info.run_name.startswith("iteration"))
