"""Ask where the two most likely classes are closest.

utility(np.array([[0.5, 0.4, 0.1], [0.9, 0.1, 0.0]]))  ->  [0.9, 0.2]
"""

from __future__ import annotations

import numpy as np

from tasks.strategies import Array
from tasks.strategies._evidence import require_finite

CHUNK = 8192


def utility(probabilities: Array) -> Array:
    """One minus the gap between the two largest class probabilities: (N,C) -> (N,) in [0, 1].

    Raises ValueError when a probability is not finite. Source: Scheffer, Decomain & Wrobel, "Active Hidden Markov
    Models for Information Extraction" (IDA 2001).
    """
    require_finite(probabilities=probabilities)
    result = np.empty(len(probabilities), dtype=np.float64)
    for start in range(0, len(probabilities), CHUNK):
        rows = slice(start, start + CHUNK)
        result[rows] = _closeness(probabilities[rows])
    return result


def _closeness(probabilities: Array) -> Array:
    # Class by class over a contiguous transpose: several times faster than sorting or partitioning each row.
    by_class = np.ascontiguousarray(probabilities.T)
    first, second = by_class[0].copy(), np.zeros(by_class.shape[1], by_class.dtype)
    for column in by_class[1:]:
        np.maximum(second, np.minimum(first, column), out=second)
        np.maximum(first, column, out=first)
    utilities: Array = 1.0 - (first - second)
    return utilities
