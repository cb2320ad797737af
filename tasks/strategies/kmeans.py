"""Ask about one typical item of each of k clusters, the largest clusters first: a good first batch.

    batch(features (N,D), k=20, rng=np.random.default_rng(0))  ->  20 positions

Plain NumPy (k-means++ start, Lloyd's iterations by matrix products): scikit-learn costs 3 CPU-seconds to import.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Interval

from tasks.strategies import Array, Rng
from tasks.strategies._evidence import require_finite
from tasks.strategies._seeding import draw, euclidean

ELEMENTS = 2**22  # of the item x centre distances held at once


def batch(features: Array, k: int, rng: Rng, *, iterations: Annotated[int, Interval(ge=0)] = 10) -> Array:
    """The item nearest to each of k cluster centres, by descending cluster size: (k,) int64.

    When items coincide there are fewer clusters than k: the batch is filled with the items farthest from their
    centres. Raises ValueError when a feature is not finite. Sources: Lloyd, "Least Squares Quantization in PCM"
    (1982); Arthur & Vassilvitskii, "k-means++" (2007); as a start of active learning: Nguyen & Smeulders (ICML 2004).
    """
    require_finite(features=features)
    mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = np.subtract(features, mean, dtype=np.float32)
    seeds = draw(euclidean(centred), len(centred), k, int(rng.integers(len(centred))), rng)
    cluster, distance = _lloyd(centred, centred[seeds], iterations)
    return _representatives(cluster, distance, k)


def _lloyd(features: Array, centres: Array, iterations: int) -> tuple[Array, Array]:
    """Cluster (N,) and squared distance to its centre (N,), after at most `iterations` moves of the centres."""
    cluster, distance = _assign(features, centres)
    for _ in range(iterations):
        centres = _means(features, cluster, centres)
        moved, distance = _assign(features, centres)
        if np.array_equal(moved, cluster):
            break
        cluster = moved
    return cluster, distance


def _assign(features: Array, centres: Array) -> tuple[Array, Array]:
    norms = np.einsum("kd,kd->k", centres, centres)
    cluster = np.empty(len(features), dtype=np.int64)
    distance = np.empty(len(features), dtype=np.float32)
    rows = max(1, ELEMENTS // len(centres))
    for start in range(0, len(features), rows):
        part = slice(start, start + rows)
        partial = features[part] @ (-2.0 * centres.T)
        partial += norms
        cluster[part] = partial.argmin(axis=1)
        distance[part] = np.take_along_axis(partial, cluster[part][:, None], axis=1)[:, 0]
    return cluster, np.maximum(distance + np.einsum("nd,nd->n", features, features), 0.0)


def _means(features: Array, cluster: Array, centres: Array) -> Array:
    """The mean of each cluster; an empty one stays where it was."""
    from scipy.sparse import csr_array

    count = len(features)
    member = csr_array((np.ones(count, np.float32), cluster, np.arange(count + 1)), shape=(count, len(centres)))
    sizes = np.bincount(cluster, minlength=len(centres))
    sums = member.T @ features
    return np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], centres).astype(np.float32)


def _representatives(cluster: Array, distance: Array, k: int) -> Array:
    by_cluster = np.lexsort((distance, cluster))
    found, first, sizes = np.unique(cluster[by_cluster], return_index=True, return_counts=True)
    nearest = by_cluster[first][np.argsort(-sizes, kind="stable")]
    others = np.setdiff1d(np.arange(len(cluster)), nearest)
    farthest = others[np.argsort(-distance[others], kind="stable")]
    return np.concatenate([nearest, farthest[: k - len(found)]]).astype(np.int64)
