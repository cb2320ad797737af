"""A folder of made-up photos and the pool they are ingested into, for tests of ingest."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tasks import pool as files
from tasks.counts import Counts
from tasks.features import pool_shard
from tasks.intake import take_in
from tasks.params_sections import Campaign, Compute, Holdout, Pool
from tasks.params_sections import Source as SourceParams
from tasks.store import Store

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


def filled(work: Workspace, count: int = 25) -> Workspace:
    for i in range(count):
        work.add(f"{'cat' if i % 2 else 'dog'}/{i:03d}.png", i)
    return work


CRASH = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from photos import Workspace
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
