"""Ask about the item farthest from everything asked so far, again and again: coverage of the pool (core-set).

    batch(features (N,D), labeled_features (M,D), k=20)  ->  20 positions

Exact greedy. Distances only fall as centres are added, so a stored distance is an upper bound: only the rows with
the largest bounds (`hot`) are kept up to date after each pick; the others are brought up to date by one matrix
product when the hot rows are used up. The picks are those of the plain algorithm.
"""

from __future__ import annotations

import numpy as np

from tasks.strategies import Array
from tasks.strategies._evidence import require_finite
from tasks.strategies._seeding import from_products, squared_lengths

HOT = 2048  # rows kept up to date after each pick
ELEMENTS = 2**22  # of an item x centre matrix held at once


def batch(features: Array, labeled_features: Array, k: int) -> Array:
    """k positions, each the farthest from labeled items and earlier picks: (k,) int64.

    Without labeled items the first pick is the item nearest to the mean. Which of equally far items comes
    first is not specified, but always the same.
    Raises ValueError when a feature is not finite. Source: Sener & Savarese, "Active Learning for Convolutional
    Neural Networks: A Core-Set Approach" (ICLR 2018), the greedy 2-approximation of Gonzalez (1985).
    """
    require_finite(features=features, labeled_features=labeled_features)
    mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    # Distances do not change under a shift, but float32 keeps more of their digits near the origin.
    items = np.subtract(features, mean, dtype=np.float32)
    norms = squared_lengths(items)
    bounds = np.full(len(items), np.inf, dtype=np.float32)
    if len(labeled_features) == 0:
        start = int(norms.argmin())
        picks = np.array(
            [start, *_greedy(items, norms, _lowered(bounds, items, norms, items[[start]]), [start], k - 1)]
        )
    else:
        labeled = np.subtract(labeled_features, mean, dtype=np.float32)
        picks = np.array(_greedy(items, norms, _lowered(bounds, items, norms, labeled), [], k))
    return picks.astype(np.int64)


def _greedy(items: Array, norms: Array, bounds: Array, taken: list[int], k: int) -> list[int]:
    picks: list[int] = []
    bounds[taken] = -1.0
    while len(picks) < k:
        new = _pick_hot(items, norms, bounds, k - len(picks))
        picks += new
        if len(picks) < k:
            _lowered(bounds, items, norms, items[new])
            bounds[taken + picks] = -1.0
    return picks


def _pick_hot(items: Array, norms: Array, bounds: Array, k: int) -> list[int]:
    """Greedy picks among the rows with the largest bounds, while none of the other rows can be farther."""
    hot, limit = _hottest(bounds)
    rows, row_norms, nearest = items[hot], norms[hot], bounds[hot]
    picks: list[int] = []
    while len(picks) < k:
        best = int(nearest.argmax())
        # The first pick is exact whatever the limit: all bounds are up to date here.
        if picks and nearest[best] < limit:
            break
        picks.append(int(hot[best]))
        distances = from_products((rows @ rows[best])[:, None], row_norms, row_norms[[best]])
        np.minimum(nearest, distances[:, 0], out=nearest)
        nearest[best] = -1.0
    return picks


def _hottest(bounds: Array) -> tuple[Array, float]:
    """Positions (ascending) of the HOT largest bounds, and the largest bound of the others."""
    if len(bounds) <= 2 * HOT:
        return np.arange(len(bounds)), -np.inf
    split = len(bounds) - HOT
    order = np.argpartition(bounds, split)
    return np.sort(order[split:]), float(bounds[order[:split]].max())


def _lowered(bounds: Array, items: Array, norms: Array, centres: Array) -> Array:
    """Lower `bounds` (N,) in place to the squared distance of the nearest of `centres` (c,D), and return it."""
    centre_norms = squared_lengths(centres)
    rows = max(1, ELEMENTS // len(centres))
    for start in range(0, len(bounds), rows):
        part = slice(start, start + rows)
        distances = from_products(items[part] @ centres.T, norms[part], centre_norms)
        np.minimum(bounds[part], distances.min(axis=1), out=bounds[part])
    return bounds
