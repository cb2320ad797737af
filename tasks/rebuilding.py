"""Decodes all items of the pool anew, at another size or mode: a new version of the pool with the same items.

    pool.size: 28 -> 32, then `ingest(..., rebuild=True)`:  same item ids, groups, splits and labels; new shards

An item is its bytes, so labels survive. The new shards get new numbers, and the old ones go when all is done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from tasks import looking
from tasks import pool as files
from tasks.errors import BadInput
from tasks.grouping import perceptual_hashes
from tasks.images import Decoded
from tasks.originals import Originals
from tasks.params_sections import Pool
from tasks.pool import PoolInfo, ShardWriter
from tasks.sightings import Sightings
from tasks.sources import Found
from tasks.store import Store


def rebuild(
    store: Store, originals: Originals, info: PoolInfo, pool: Pool, workers: int, advance: Callable[[int], Any]
) -> PoolInfo:
    """Write the new version and commit it. Raises BadInput, changing nothing, when an item's bytes are gone."""
    manifest = files.read_manifest(store)
    items: list[str] = manifest["item_id"].to_pylist()
    places = Sightings(files.read_sightings(store)).places(set(items))
    new = replace(
        info, size=pool.size, mode=pool.mode, version=info.version + 1, first_shard=info.shards, shards=info.shards
    )
    writer = ShardWriter(store, new.first_shard, pool.shard_items, new.shape)
    missing: list[str] = []
    columns: dict[str, list[Any]] = {"shard": [], "row": [], "phash": []}
    for chunk in looking.in_parallel(items, lambda item: _decoded(originals, item, places[item], pool), workers):
        missing.extend(found for found in chunk if isinstance(found, str))
        if not missing:
            _append(writer, columns, [d for d in chunk if isinstance(d, Decoded)])
        advance(len(chunk))
    if missing:
        files.sweep(store, info)
        raise BadInput(_lacking(missing))
    writer.flush()
    new = replace(new, shards=writer.next)
    files.commit(store, _with(manifest, columns), new)
    files.sweep(store, new)
    return new


def _append(writer: ShardWriter, columns: dict[str, list[Any]], chunk: list[Decoded]) -> None:
    for decoded in chunk:
        shard, row = writer.add(decoded.pixels)
        columns["shard"].append(shard)
        columns["row"].append(row)
    columns["phash"].extend(perceptual_hashes(np.stack([d.pixels for d in chunk])).tolist())


def _decoded(originals: Originals, item: str, places: list[tuple[str, int]], pool: Pool) -> Decoded | str:
    """The item from whichever place still has its bytes, else the reason of the last one tried."""
    reason = "never seen"
    for uri, ingest in places:
        read = partial(originals.read, ingest=ingest)
        looked = looking.look_at(read, Found(uri, -1, -1), pool, lambda sha256: sha256 != item)
        if looked.decoded is not None:
            return looked.decoded
        reason = f"{uri}: {looked.refused or 'its bytes changed'}"
    return reason


def _lacking(missing: list[str]) -> str:
    shown = "\n  ".join(missing[:10])
    return (
        f"the pool cannot be rebuilt: {len(missing)} items cannot be decoded again from where they were ingested:\n  {shown}\n"
        "Put the originals back (or set pool.size and pool.mode back); nothing was changed."
    )


def _with(manifest: pa.Table, columns: dict[str, list[Any]]) -> pa.Table:
    for name, values in columns.items():
        column = manifest.schema.field(name)
        manifest = manifest.set_column(manifest.column_names.index(name), column, pa.array(values, column.type))
    return manifest
