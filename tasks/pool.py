"""The pool's files: images in immutable shards, a manifest, what was seen, and the labels a source knew.

    data/pool/
      shard-00000.npy        (N, H, W, channels) uint8, at most pool.shard_items images; never changed
      manifest.parquet       one row an item, in order of arrival
      sightings.parquet      one row a file seen: accepted, duplicate or quarantined, and why
      known_labels.parquet   item -> label that came with the source
      pool.json              size, salt, classes, counts: written last, and so the commit point

Rows of an ingest that pool.json does not count yet are of a run that died: readers here leave them out, and
the next ingest writes them again. Shards of such a run are overwritten or swept away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tasks.checkpoint import checkpoint
from tasks.errors import BadInput, GleanerError
from tasks.features import pool_shard
from tasks.grouping import Groups, thumbnails
from tasks.store import TEMPORARY, Store
from tasks.tables import KNOWN_LABELS, MANIFEST, SIGHTINGS, TableKind

Array = npt.NDArray[Any]
FOLDER = "data/pool"
POOL = f"{FOLDER}/pool.json"
FORMAT = 1


@dataclass(frozen=True)
class PoolInfo:
    """data/pool/pool.json."""

    size: int  # images are size x size
    mode: str  # L | RGB
    salt: str  # of the holdout draw, frozen at the first ingest
    share: float  # of groups in the holdout, frozen too
    classes: tuple[str, ...] = ()  # known to the source; appended to, never reordered
    items: int = 0
    ingests: int = 0  # the last one's number; manifest and sightings rows beyond are not committed
    version: int = 1  # grows when a rebuild decodes the items anew
    first_shard: int = 0  # shards first_shard .. shards - 1 are the pool's
    shards: int = 0
    limits: dict[str, float] = field(default_factory=dict)  # quarantined files are looked at again when these change
    format: int = FORMAT

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width, channels of an image."""
        return (self.size, self.size, 1 if self.mode == "L" else 3)


def require_same(info: PoolInfo, size: int, mode: str) -> None:
    """Raise BadInput when params.yaml asks for other images than the pool holds."""
    if (info.size, info.mode) != (size, mode):
        raise BadInput(
            f"params.yaml: pool.size {size} and pool.mode {mode}, but data/pool holds images of "
            f"{info.size} x {info.size} {info.mode}. Set them back, or decode the pool anew "
            "(`gleaner ingest --rebuild`): items, groups, splits and labels stay."
        )


def read_info(store: Store) -> PoolInfo | None:
    """pool.json, None before the first ingest. Raises GleanerError when another version of Gleaner wrote it."""
    if not store.exists(POOL):
        return None
    value = store.read_json(POOL)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise GleanerError(f"{store.path(POOL)}: not of format {FORMAT}. Use the version of Gleaner that wrote it.")
    try:
        return PoolInfo(**{**value, "classes": tuple(value["classes"])})
    except (TypeError, KeyError) as error:
        raise GleanerError(f"{store.path(POOL)} is damaged: {error}. `gleaner restore` brings it back.") from None


def read_manifest(store: Store) -> pa.Table:
    """The committed rows of the manifest; empty before the first ingest."""
    return _committed(store, MANIFEST)


def read_sightings(store: Store) -> pa.Table:
    """The committed rows of the sightings; empty before the first ingest."""
    return _committed(store, SIGHTINGS)


def _committed(store: Store, kind: TableKind) -> pa.Table:
    info = read_info(store)
    if info is None:
        return kind.schema.empty_table()
    table = store.read_table(kind)
    return table.filter(pc.less_equal(table["ingest"], info.ingests))


def read_known_labels(store: Store) -> dict[str, str]:
    """Item id -> label that came with the source."""
    if read_info(store) is None:
        return {}
    table = store.read_table(KNOWN_LABELS)
    return dict(zip(table["item_id"].to_pylist(), table["label"].to_pylist(), strict=True))


class ShardWriter:
    """Collects images and writes a shard whenever it is full; holds one shard in memory."""

    def __init__(self, store: Store, first: int, items: int, shape: tuple[int, int, int]) -> None:
        self._store = store
        self._buffer = np.empty((items, *shape), np.uint8)
        self._filled = 0
        self.next = first  # number of the shard that is being filled

    def add(self, image: Array) -> tuple[int, int]:
        """Append one image; returns its (shard, row)."""
        if self._filled == len(self._buffer):
            self.flush()
        self._buffer[self._filled] = image
        self._filled += 1
        return self.next, self._filled - 1

    def flush(self) -> None:
        """Write what is there, as a shard of its own."""
        if self._filled:
            with effect("shard"):
                self._store.write_array(pool_shard(self.next), self._buffer[: self._filled])
            self.next += 1
            self._filled = 0


def write_sightings(store: Store, table: pa.Table) -> None:
    """Write all sightings."""
    with effect("sightings"):
        store.write_table(SIGHTINGS, table)


def write_known_labels(store: Store, labels: dict[str, str]) -> None:
    """Write all known labels, sorted by item."""
    items = sorted(labels)
    table = pa.table({"item_id": items, "label": [labels[i] for i in items]}, schema=KNOWN_LABELS.schema)
    with effect("known_labels"):
        store.write_table(KNOWN_LABELS, table)


def commit(store: Store, manifest: pa.Table, info: PoolInfo) -> None:
    """The last two writes of an ingest, in this order; then leftovers go."""
    with effect("manifest"):
        store.write_table(MANIFEST, manifest)
    write_info(store, info)


def write_info(store: Store, info: PoolInfo) -> None:
    """Write pool.json: from here on the ingest has happened."""
    with effect("pool"):
        store.write_json(POOL, asdict(info))


def sweep(store: Store, info: PoolInfo) -> None:
    """Remove shards that the pool does not hold (a dead run's, an older version's) and temporary files."""
    kept = {store.path(pool_shard(n)) for n in range(info.first_shard, info.shards)}
    folder = store.path(FOLDER)
    stale = [p for p in folder.glob("shard-*.npy") if p not in kept] + list(folder.glob(f".*{TEMPORARY}"))
    if stale:
        with effect("sweep"):
            for path in sorted(stale):
                path.unlink()


@contextmanager
def effect(name: str) -> Iterator[None]:
    """Name an effect of an ingest, so that tests can kill the process on either side of it."""
    checkpoint(f"ingest:{name}:before")
    yield
    checkpoint(f"ingest:{name}:after")


def read_groups(store: Store, manifest: pa.Table) -> Groups:
    """All groups of the manifest; thumbnails of first members are made from the shards when asked for."""
    columns = manifest.select(["item_id", "group", "sequence", "split", "phash", "shard", "row"]).to_pydict()
    items, named = columns["item_id"], columns["group"]
    first = [i for i, (item, group) in enumerate(zip(items, named, strict=True)) if item == group]
    position = {items[i]: k for k, i in enumerate(first)}
    sizes = Counter(named)
    shards, rows = (np.array([columns[c][i] for i in first], np.int64) for c in ("shard", "row"))
    shard = lru_cache(maxsize=None)(lambda number: store.read_array(pool_shard(number)))

    def seen_at(positions: Array) -> Array:
        images = [shard(int(shards[p]))[rows[p]] for p in positions]
        return thumbnails(np.stack(images))

    return Groups(
        ids=list(position),
        hashes=np.array([columns["phash"][i] for i in first], np.uint64),
        holdout=np.array([columns["split"][i] == "holdout" for i in first], bool),
        sizes=np.array([sizes[group] for group in position], np.int64),
        sequences={s: position[g] for s, g in zip(columns["sequence"], named, strict=True) if s},
        seen_at=seen_at,
        loaded=len(first),
    )
