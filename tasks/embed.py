"""Stage `embed`: features of every image of the pool, once. Reads data/pool, writes data/features.

    data/pool/shard-00000.npy (uint8)  ->  data/features/shard-00000.npy (float32) + backbone.json

backbone.json says which backbone, batch and thread count made the files and of which items. A shard that fits
is left as it is; everything else in the folder goes. So the folder is a pure function of pool and params,
however often and in how many steps it was filled.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks import plugins
from tasks.backbones import Backbone
from tasks.checkpoint import checkpoint
from tasks.errors import GleanerError
from tasks.features import BACKBONE, FOLDER, pool_shard, shard_name
from tasks.params_sections import Compute, Embed
from tasks.stage import limit_threads, main
from tasks.store import Array, Store, remove_folder
from tasks.tables import MANIFEST

BATCHES = 4  # forward passes that one worker does between two steps of the progress bar


@dataclass(frozen=True)
class Job:
    """What makes the features, and how that is written down."""

    backbone: Backbone
    batch: int
    identity: dict[str, Any]

    def note(self, store: Store, marks: dict[int, str]) -> None:
        """Write which shards' features are there."""
        store.write_json(BACKBONE, {**self.identity, "shards": {str(shard): mark for shard, mark in marks.items()}})


def run(store: Store, embed: Embed, compute: Compute) -> None:
    """Embed what has no features yet. Raises BadInput when the backbone's weights are missing."""
    limit_threads(compute.threads)
    job = _job(store, embed, compute)
    wanted = _marks(store)
    marks = _present(store, job.identity, wanted)
    _clear(store, set(marks))
    job.note(store, marks)
    missing = {shard: len(store.read_array(pool_shard(shard))) for shard in wanted if shard not in marks}
    with _progress(sum(missing.values())) as advance, ThreadPoolExecutor(compute.workers) as threads:
        for shard in missing:
            checkpoint(f"embed:{shard}:before")
            images = store.read_array(pool_shard(shard))
            store.write_array(f"{FOLDER}/{shard_name(shard)}", _features(images, job, threads, advance, shard))
            marks[shard] = wanted[shard]
            job.note(store, marks)
            checkpoint(f"embed:{shard}:after")


def _job(store: Store, embed: Embed, compute: Compute) -> Job:
    pool = store.read_json("data/pool/pool.json")
    backbone = plugins.find("backbones", embed.backbone).load(pool["size"], pool["mode"], **embed.options)
    identity = {
        "backbone": embed.backbone,
        "version": backbone.version,
        "dimension": backbone.dimension,
        "batch": embed.batch,  # another batch or thread count rounds otherwise
        "threads": compute.threads,
    }
    return Job(backbone, embed.batch, identity)


def _marks(store: Store) -> dict[int, str]:
    """Shard -> hash of the items in it: an image is its id, so equal marks mean equal pixels."""
    table = store.read_table(MANIFEST, ["shard", "row", "item_id"])
    table = table.sort_by([("shard", "ascending"), ("row", "ascending")])
    shards = pc.unique(table["shard"]).to_pylist()
    return {shard: _mark(table.filter(pc.equal(table["shard"], shard))) for shard in shards}


def _mark(items: pa.Table) -> str:
    pairs = zip(items["row"].to_pylist(), items["item_id"].to_pylist(), strict=True)
    return hashlib.sha256("\n".join(f"{row} {item}" for row, item in pairs).encode()).hexdigest()


def _present(store: Store, identity: dict[str, Any], wanted: dict[int, str]) -> dict[int, str]:
    """Shards whose features are there and were made by the same backbone from the same items."""
    known = store.read_json(BACKBONE) if store.exists(BACKBONE) else {}
    if any(known.get(key) != value for key, value in identity.items()):
        return {}
    same = {shard: mark for shard, mark in wanted.items() if known.get("shards", {}).get(str(shard)) == mark}
    return {shard: mark for shard, mark in same.items() if store.exists(f"{FOLDER}/{shard_name(shard)}")}


def _clear(store: Store, present: set[int]) -> None:
    keep = {"backbone.json", *(shard_name(shard) for shard in present)}
    for path in sorted(store.path(FOLDER).glob("*")):
        if path.name not in keep:
            remove_folder(path)


def _features(
    images: Array, job: Job, threads: ThreadPoolExecutor, advance: Callable[[int], None], shard: int
) -> Array:
    """Cut at multiples of the batch, so that the number of workers changes no byte."""
    size = job.batch * BATCHES
    blocks = [images[start : start + size] for start in range(0, len(images), size)]
    parts = []
    for part in threads.map(lambda block: job.backbone.embed(np.asarray(block), job.batch), blocks):
        parts.append(part)
        advance(len(part))
    features = np.concatenate(parts)
    broken = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if features.shape != (len(images), job.backbone.dimension) or len(broken):
        raise GleanerError(
            f"embed: {job.backbone.version} gave {features.shape} features for {len(images)} images of "
            f"{pool_shard(shard)}, {len(broken)} of them not finite (rows {broken[:3].tolist()})."
        )
    return features


@contextmanager
def _progress(images: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, nothing elsewhere (and then rich is not imported)."""
    if not images or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("embed", total=images)
        yield lambda count: bar.advance(task, count)


if __name__ == "__main__":
    main(run)
