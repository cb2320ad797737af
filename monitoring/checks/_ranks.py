"""Rank statistics in NumPy: scipy.stats would cost a second to import for two formulas.

spearman([1, 2, 3], [10, 20, 15])  ->  0.5
outscores([3, 4], [1, 2])          ->  1.0     # each of the first is above each of the second
"""

from __future__ import annotations

import math

import numpy as np

from monitoring.evidence import Array


def ranks(values: Array) -> Array:
    """(N,) ranks from 1, ties share their mean rank. Values must not be NaN."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2.0)[inverse], dtype=np.float64)


def spearman(first: Array, second: Array) -> float:
    """Rank correlation in [-1, 1]; NaN where one side is constant or a value is not finite (Spearman, 1904)."""
    if len(first) < 2 or not (np.isfinite(first).all() and np.isfinite(second).all()):
        return math.nan
    a, b = ranks(first) - (len(first) + 1) / 2.0, ranks(second) - (len(second) + 1) / 2.0
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale > 0 else math.nan


def outscores(these: Array, those: Array) -> float:
    """P(one of `these` is above one of `those`), ties count half: U / nm (Mann and Whitney, 1947)."""
    n, m = len(these), len(those)
    values = np.concatenate([these, those])
    if n == 0 or m == 0 or not np.isfinite(values).all():
        return math.nan
    return (float(ranks(values)[:n].sum()) - n * (n + 1) / 2.0) / (n * m)


def chance_spread(n: int, m: int) -> float:
    """Standard deviation of `outscores` where the two sides do not differ."""
    return math.sqrt((n + m + 1) / (12.0 * n * m)) if n and m else math.inf
