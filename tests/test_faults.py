"""Crash, disk and concurrency faults, row by row of docs/invariants.md: after each the campaign converges to the state
that nothing disturbed, or refuses with a message that says who, what and how to go on."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tasks import leftovers, repository, restore, tracking
from tasks.campaign import open_campaign
from tasks.errors import BadInput, Busy, GleanerError
from tasks.ingest import ingest
from tasks.lock import campaign_lock, is_locked
from tasks.store import Store, sha256
from tasks.trackers import IterationRecord
from tasks.verify import verify
from tasks.workspace import init
from tests import quick
from tests.children import context, run_in_child, start
from tests.quick import broken, copy, edit, image_folder, state, tick

POINTS_OF_INGEST = 12  # effects of a first ingest; fewer means that checkpoints were lost


@dataclass(frozen=True)
class Calm:
    """A campaign whose iterations 0 and 1 are closed, and what an undisturbed tick makes of it."""

    before: Path
    state: dict[str, Any]
    points: list[str]


@pytest.fixture(scope="module")
def calm(closed_iteration: Path, tmp_path_factory: pytest.TempPathFactory) -> Calm:
    """What an undisturbed third iteration is."""
    after = copy(closed_iteration, tmp_path_factory.mktemp("calm") / "after")
    ended = run_in_child(tick, after)
    assert (ended.text, broken(after)) == ("iteration 2", [])
    return Calm(closed_iteration, state(after), ended.passed)


@pytest.fixture
def root(calm: Calm, tmp_path: Path) -> Path:
    """A workspace of the test's own."""
    return copy(calm.before, tmp_path / "workspace")


def assert_converged(root: Path, calm: Calm) -> None:
    """The state is that of the undisturbed run, and no invariant is broken."""
    found = state(root)
    for part, expected in calm.state.items():
        assert found[part] == expected, f"{part} differs"
    assert broken(root) == []


def kill_after(root: Path, calm: Calm, point: str) -> None:
    """Tick and die right after a checkpoint."""
    assert run_in_child(tick, root, kill_at=calm.points.index(point) + 1).killed


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
    assert tick(root) == "iteration 2"
    clone = tmp_path / "clone"
    repository.git(tmp_path, "clone", "--quiet", str(root), str(clone))
    (root / ".dvc/cache").rename(tmp_path / "out of reach")
    for number in (0, 1, 2):  # those closed before there was a remote, too
        assert restore.restore(clone, number, tmp_path / f"copy-{number}") > 20


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


# ingest -----------------------------------------------------------------------------------------------------


def _ingest(root: Path) -> int:
    return ingest(root, root.parent / "images").accepted


def _ingested(root: Path) -> dict[str, Any]:
    data = {p.relative_to(root).as_posix(): sha256(p) for p in sorted((root / "data/pool").rglob("*")) if p.is_file()}
    texts = {name: (root / name).read_text() for name in ("data/pool.dvc", "params.yaml")}
    sources = Store(root).read_json("data/campaign.json")["sources"]
    return {**data, **texts, "sources": sources, "git": repository.git(root, "status", "--porcelain")}


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in (1, 2))])
def test_an_ingest_killed_at_any_effect_converges(part: int, tmp_path: Path) -> None:
    image_folder(tmp_path / "images")
    (tmp_path / "images/0/broken.png").write_bytes(b"")
    init(quick.TEMPLATE, tmp_path / "new", "quick")
    edit(tmp_path / "new", quick.CHANGES)
    ended = run_in_child(_ingest, copy(tmp_path / "new", tmp_path / "calm"))
    assert ended.error == "", ended.text
    expected = _ingested(tmp_path / "calm")
    assert expected["git"] == "" and len(ended.passed) >= POINTS_OF_INGEST
    for point, name in list(enumerate(ended.passed, start=1))[part::3]:
        root = copy(tmp_path / "new", tmp_path / f"at-{point}")
        assert run_in_child(_ingest, root, kill_at=point).killed, name
        assert run_in_child(_ingest, root).error == "", name
        assert _ingested(root) == expected, f"killed at {name}"
        assert verify(root) == [], f"killed at {name}"


# killed from outside ----------------------------------------------------------------------------------------

BY_HAND = """
import subprocess, sys
for step in (["-m", "tasks.import_labels"], ["-m", "dvc", "repro"], ["-m", "tasks.export"]):
    if subprocess.run([sys.executable, *step]).returncode:
        sys.exit(1)
"""


def _environment(root: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "MLFLOW", "GLEANER"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)])
    return {**kept, "PATH": path, "PYTHONPATH": str(root), "DVC_SITE_CACHE_DIR": str(root / ".gleaner/dvc-site")}


def _run(root: Path, command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        cwd=root,
        env=_environment(root),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _outcome(root: Path) -> dict[str, Any]:
    """What must not differ: what was asked, answered and tagged."""
    found = state(root)
    ledger = {name: found["ledger"][name] for name in ("selection", "outbox", "label_event", "answer")}
    return {"ledger": ledger, "tags": found["tags"], "tool": found["tool"]}


@pytest.mark.slow
@pytest.mark.parametrize("group", [True, False], ids=["whole group", "parent only"])
@pytest.mark.parametrize("way", ["by hand", "gleaner tick"])
def test_killed_from_outside_at_a_random_moment_it_recovers(calm: Calm, tmp_path: Path, way: str, group: bool) -> None:
    command = [sys.executable, "-c", BY_HAND] if way == "by hand" else [sys.executable, "-m", "flows.cli", "tick"]
    undisturbed = copy(calm.before, tmp_path / "undisturbed")
    began = time.monotonic()
    assert _run(undisturbed, command).wait(300) == 0
    length = time.monotonic() - began
    moments = random.Random(hashlib.sha256(f"{way} {group}".encode()).digest())
    for attempt in range(3):
        root = copy(calm.before, tmp_path / f"killed-{attempt}")
        process = _run(root, command)
        time.sleep(length * moments.random())
        (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
        process.wait()
        if not group:
            _end_orphans(process.pid)
        if "iter-0002" not in repository.tags(root) or quick.closed(root) < 3:
            assert _run(root, command).wait(300) == 0
        assert _outcome(root) == _outcome(undisturbed)
        assert broken(root) == []


def _end_orphans(group: int) -> None:
    """Children of a killed parent may run on for a moment; what they hold they must not keep."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.2)
    os.killpg(group, signal.SIGKILL)
