"""Cached features of the pool: `data/features/shard-00000.npy`, one float32 row per image of the pool's shard.

features = Features.open(store)
features.of(shards, rows)               -> (N, D) in the order asked for
for positions, block in features.blocks(shards, rows): ...      # a shard at a time, mapped into memory
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tasks.errors import GleanerError
from tasks.store import Array, Store

FOLDER = "data/features"
BACKBONE = f"{FOLDER}/backbone.json"
BLOCK = 2048  # rows in memory at once


def shard_name(shard: int) -> str:
    """'shard-00003.npy' for 3: the same name in data/pool and data/features."""
    return f"shard-{shard:05d}.npy"


def pool_shard(shard: int) -> str:
    """data/pool/shard-00003.npy: the images."""
    return f"data/pool/{shard_name(shard)}"


@dataclass(frozen=True)
class Features:
    """The features of one backbone version, read by item."""

    store: Store
    version: str
    dimension: int

    @classmethod
    def open(cls, store: Store) -> Features:
        """Read which backbone made the features. Raises GleanerError before the first `embed`."""
        value = store.read_json(BACKBONE)
        return cls(store, value["version"], value["dimension"])

    def of(self, shards: Array, rows: Array) -> Array:
        """Features of the items at (shard, row) (N,): (N, D) float32."""
        result = np.empty((len(shards), self.dimension), dtype=np.float32)
        for shard in np.unique(shards).tolist():
            positions = np.flatnonzero(shards == shard)
            result[positions] = self._rows(shard, rows[positions])
        return result

    def blocks(self, shards: Array, rows: Array, size: int = BLOCK) -> Iterator[tuple[Array, Array]]:
        """(positions (n,), features (n, D)) of all items, shard by shard, at most `size` in memory."""
        for shard in np.unique(shards).tolist():
            positions = np.flatnonzero(shards == shard)
            positions = positions[np.argsort(rows[positions], kind="stable")]
            for start in range(0, len(positions), size):
                part = positions[start : start + size]
                yield part, self._rows(shard, rows[part])

    def _rows(self, shard: int, rows: Array) -> Array:
        path = f"{FOLDER}/{shard_name(shard)}"
        mapped = self.store.read_array(path)
        if mapped.ndim != 2 or mapped.shape[1] != self.dimension or rows.max() >= len(mapped):
            raise GleanerError(
                f"{path} has shape {mapped.shape}, but row {rows.max()} of {self.dimension} features is needed. "
                "Run the stage embed again (`dvc repro embed`)."
            )
        return np.asarray(mapped[rows], dtype=np.float32)
