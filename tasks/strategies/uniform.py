"""Uniformly random items: the baseline that every other strategy must beat.

batch(count=1000, k=20, rng=np.random.default_rng(0))
"""

from __future__ import annotations

from tasks.strategies import Array, Rng


def batch(count: int, k: int, rng: Rng) -> Array:
    """Draw k of `count` items without replacement, (k,) int64; the order is random too.

    Source: simple random sampling, the passive baseline in Settles, "Active Learning Literature Survey" (2009).
    """
    return rng.choice(count, size=k, replace=False, shuffle=True)
