"""k-means++ draws (Arthur & Vassilvitskii, SODA 2007), exact and without one pass over all items a draw.

An item is drawn with a probability proportional to its squared distance to the nearest item drawn before. Here
distances may be stale: they are then too large, so an item proposed by its stale distance is accepted with
probability true / stale (rejection sampling), which gives the same distribution. The distances of all items are
brought up to date for many new centres at once by a matrix product, which is several times faster than one
matrix-vector product a centre.

    draw(euclidean(features), count=len(features), k=20, first=3, rng=rng)  ->  positions, the first is 3
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tasks.strategies import Array, Rng
from tasks.strategies._evidence import require_finite

#: (positions or slice of n items, positions of c items) -> (n,c) squared distances
Squared = Callable[[Array | slice, Array], Array]
PENDING = 64  # centres that may be missing from the stored distances
REJECTED = 32  # proposals that may fail before the distances are brought up to date
CHUNK = 4096


def draw(squared: Squared, count: int, k: int, first: int, rng: Rng) -> Array:
    """Draw k distinct positions of `count` items, (k,) int64 in the order drawn, starting with `first`.

    When all remaining items coincide with drawn ones, the rest is drawn uniformly.
    """
    picks = [first]
    stale = np.full(count, np.inf)
    known = 0
    while len(picks) < k:
        update(stale, squared, np.array(picks[known:]))
        stale[picks] = 0.0
        known = len(picks)
        if not stale.any():
            return np.array(picks + _rest(count, picks, k - known, rng), dtype=np.int64)
        _propose(stale, squared, picks, k, rng)
    return np.array(picks, dtype=np.int64)


def update(nearest: Array, squared: Squared, centres: Array) -> None:
    """Lower `nearest` (N,) in place to the squared distance of the nearest of these centres."""
    rows = max(1, CHUNK * PENDING // len(centres))
    for start in range(0, len(nearest), rows):
        part = slice(start, start + rows)
        np.minimum(nearest[part], squared(part, centres).min(axis=1), out=nearest[part])


def _propose(stale: Array, squared: Squared, picks: list[int], k: int, rng: Rng) -> None:
    """Add accepted proposals to `picks` until it is full or the stored distances are too old."""
    cumulative = np.cumsum(stale)
    known, rejected = len(picks), 0
    while len(picks) < k and len(picks) - known < PENDING and rejected < REJECTED:
        position = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
        true = _distance(position, stale, squared, picks, known)
        if rng.random() * stale[position] < true:
            picks.append(position)
        else:
            rejected += 1


def _distance(position: int, stale: Array, squared: Squared, picks: list[int], known: int) -> float:
    recent = picks[known:]
    if position in recent:
        return 0.0
    if not recent:
        return float(stale[position])
    return min(float(stale[position]), float(squared(np.array([position]), np.array(recent)).min()))


def _rest(count: int, picks: list[int], missing: int, rng: Rng) -> list[int]:
    others = np.setdiff1d(np.arange(count), picks)
    return [int(position) for position in rng.permutation(others)[:missing]]


def euclidean(features: Array) -> Squared:
    """Squared Euclidean distances between rows of features (N,D), by matrix products."""
    norms = squared_lengths(features)

    def squared(rows: Array | slice, centres: Array) -> Array:
        return from_products(features[rows] @ features[centres].T, norms[rows], norms[centres])

    return squared


def squared_lengths(vectors: Array) -> Array:
    """Squared length (N,) of each row. Raises ValueError when distances would overflow: infinity would rank first."""
    lengths: Array = np.einsum("nd,nd->n", vectors, vectors)
    require_finite(squared_lengths=4.0 * lengths)
    return lengths


def from_products(products: Array, norms: Array, centre_norms: Array) -> Array:
    """Squared distances (n,c) from inner products (n,c) and squared norms; rounding noise becomes exactly 0."""
    sums = norms[:, None] + centre_norms[None, :]
    distances: Array = sums - 2.0 * products
    distances[distances < 1e-6 * sums] = 0.0
    return distances
