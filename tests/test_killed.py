"""Killed with SIGKILL: an ingest at every effect, and a whole command line from outside at any moment."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tasks import repository
from tasks.ingest import ingest
from tasks.store import Store, sha256
from tasks.verify import verify
from tasks.workspace import init
from tests import quick
from tests.calm import Calm
from tests.children import run_in_child
from tests.quick import broken, copy, edit, image_folder, state

POINTS_OF_INGEST = 12  # effects of a first ingest; fewer means that checkpoints were lost


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
