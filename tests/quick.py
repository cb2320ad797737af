"""A quick tick for tests: the real ledger, git, DVC cache and oracle; stages run in this process instead of through DVC.

Children are forked from a server that has everything imported, so that a tick costs a second, not ten, and can be
killed at any checkpoint.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from monitoring import run as monitor
from tasks import embed, evaluate, report, repository, score, select, train, verify, versions
from tasks.arrivals import take_new
from tasks.campaign import IDENTITY, LEDGER, Campaign, open_campaign
from tasks.checkpoint import checkpoint, restart
from tasks.export import export, finish_exported
from tasks.import_labels import due, open_iteration
from tasks.ingest import ingest
from tasks.ledger import TABLES, open_ledger
from tasks.polling import poll
from tasks.stage import call
from tasks.store import Store, sha256
from tasks.workspace import init, set_value

TEMPLATE = Path(__file__).resolve().parent.parent
STAGES = (embed, train, score, select, evaluate, monitor, report)
CLASSES, PER_CLASS = 3, 40
CHANGES: dict[str, Any] = {
    "source.kind": "folder",
    "source.options": {"labels": "folders"},
    "holdout.labels": 20,
    "train.network": "linear",
    "select.batch": 6,
    "select.first_batch": 9,
    "evaluate.resamples": 50,
}


def image_folder(path: Path) -> Path:
    """A folder per class with real digits as PNG."""
    digits = load_digits()
    for label in range(CLASSES):
        (path / str(label)).mkdir(parents=True)
        for number, pixels in enumerate(digits.images[digits.target == label][:PER_CLASS]):
            Image.fromarray((pixels * 15.9).astype(np.uint8)).save(path / str(label) / f"{number:03d}.png")
    return path


def make_workspace(root: Path, images: Path, **changes: Any) -> Path:
    """A small campaign with its pool ingested; `changes` like {"select.batch": 4}."""
    init(TEMPLATE, root, "quick")
    Store(root).write_json(IDENTITY, {"id": "quick-5eed5eed", "forked_from": None})  # the oracle's habits hang on it
    repository.stage_own(root)
    repository.commit(root, "a campaign id that is the same in every run")
    edit(root, {**CHANGES, **changes})
    ingest(root, images)
    return root


def edit(root: Path, changes: dict[str, Any]) -> None:
    """Change values in a workspace's params.yaml."""
    path = root / "params.yaml"
    text = path.read_text()
    for name, value in changes.items():
        section, key = name.split(".")
        text = set_value(text, section, key, value)
    path.write_text(text)


def tick(root: Path) -> str:
    """One tick; returns what it did."""
    with open_campaign(root, "tick") as campaign:
        if finish_exported(campaign) is not None:
            return "recovered"
        poll(campaign)
        verdict = due(campaign)
        if not verdict.now:
            return verdict.why
        campaign = take_new(campaign).campaign
        verdict = due(campaign, ingested=True)
        if not verdict.now:
            return verdict.why
        number = open_iteration(campaign)
        compute(campaign)
        export(campaign)
        return f"iteration {number}"


def compute(campaign: Campaign) -> None:
    """Run the stages of the open iteration in this process."""
    for stage in STAGES:
        call(stage.run, campaign.store, campaign.params)
        checkpoint(f"stage:{stage.__name__}:after")
    versions.record_outputs(campaign.root)
    checkpoint("stages:recorded:after")


def ticks_until(root: Path, iterations: int) -> None:
    """Tick until so many iterations are closed."""
    for _ in range(2 * iterations + 2):
        if len(repository.tags(root)) >= iterations and closed(root) >= iterations:
            return
        tick(root)
    raise AssertionError(f"no {iterations} iterations after {2 * iterations + 2} ticks")


def closed(root: Path) -> int:
    """Closed iterations in the ledger."""
    with open_ledger(root / LEDGER, lambda: "") as ledger:
        return sum(row.state == "closed" for row in ledger.iterations())


def _child(root: str, kill_at: int, iterations: int, log: str) -> None:
    restart()
    os.environ["GLEANER_KILL_AT"] = str(kill_at)
    os.environ["GLEANER_CHECKPOINTS"] = log
    ticks_until(Path(root), iterations)


def run_child(root: Path, iterations: int, kill_at: int = 0) -> tuple[bool, list[str]]:
    """Tick in a forked process that dies at checkpoint `kill_at` (0: never). Returns (was killed, checkpoints passed)."""
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.quick"])
    log = root.with_name(root.name + ".checkpoints")
    log.unlink(missing_ok=True)
    process = context.Process(target=_child, args=(str(root), kill_at, iterations, str(log)))
    process.start()
    process.join(120)
    passed = log.read_text().split("\n")[:-1] if log.exists() else []
    if process.exitcode == -signal.SIGKILL:
        return True, passed
    assert process.exitcode == 0, f"exit {process.exitcode} after {passed[-3:]}"
    return False, passed


def copy(source: Path, target: Path) -> Path:
    """A copy of a workspace that stands in its own place (the cache's remote path is not used)."""
    shutil.copytree(source, target, symlinks=True)
    return target


#: columns that differ between an undisturbed run and one that was killed
VOLATILE = {"opened_at", "closed_at", "sent_at", "received_at", "decided_at", "base_commit", "dvc_lock"}


def state(root: Path) -> dict[str, Any]:
    """The campaign's logical state: ledger without clocks, tags, bytes of every artefact, the tool's tasks."""
    files = {
        str(p.relative_to(root)): sha256(p)
        for folder in ("data", "models")
        for p in sorted((root / folder).rglob("*"))
        if p.is_file() and "data/ledger" not in str(p) and p.name not in ("artefacts.json", "ledger.dvc")
    }
    ledger_rows = {}
    with open_ledger(root / LEDGER, lambda: "") as ledger:
        for name in TABLES:
            columns, rows = ledger.rows(name)
            keep = [i for i, column in enumerate(columns) if column not in VOLATILE]
            ledger_rows[name] = [tuple(row[i] for i in keep) for row in rows]
    ledger_rows["meta"] = [row for row in ledger_rows["meta"] if not row[0].startswith("cursor:")]  # holds a clock
    queued = sorted(p.name for p in (root / ".gleaner/tracking").glob("iter-*"))
    return {
        "files": files,
        "ledger": ledger_rows,
        "tags": repository.tags(root),
        "tool": _oracles_tasks(root),
        "queued": queued,
    }


def _oracles_tasks(root: Path) -> list[str]:
    database = root / ".gleaner/oracle.sqlite"
    if not database.exists():
        return []
    with sqlite3.connect(database) as db:
        return sorted(row[0] for row in db.execute("SELECT key FROM task"))


def broken(root: Path) -> list[str]:
    """What `gleaner verify --deep` finds."""
    return [f"{v.invariant}: {v.what}" for v in verify.verify(root, deep=True)]


def found(root: Path, *, deep: bool = False) -> dict[str, str]:
    """Invariant -> all that is wrong with it."""
    texts: dict[str, str] = {}
    for violation in verify.verify(root, deep=deep):
        texts[violation.invariant] = texts.get(violation.invariant, "") + violation.what + "\n"
    return texts


__all__ = [
    "Store",
    "broken",
    "closed",
    "copy",
    "image_folder",
    "make_workspace",
    "run_child",
    "state",
    "tick",
    "ticks_until",
]
