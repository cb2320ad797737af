"""Ask where the predicted distribution is most spread out.

utility(np.array([[0.5, 0.5], [1.0, 0.0]]))  ->  [0.693, 0.0]
"""

from __future__ import annotations

import numpy as np

from tasks.strategies import Array
from tasks.strategies._entropy import shannon
from tasks.strategies._evidence import require_finite

CHUNK = 8192


def utility(probabilities: Array) -> Array:
    """Shannon entropy in nats: (N,C) -> (N,) in [0, log C]; 0 log 0 is 0.

    Raises ValueError when a probability is not finite. Source: Shannon (1948), as uncertainty sampling in Settles,
    "Active Learning Literature Survey" (2009).
    """
    require_finite(probabilities=probabilities)
    result = np.empty(len(probabilities), dtype=np.float64)
    for start in range(0, len(probabilities), CHUNK):
        rows = slice(start, start + CHUNK)
        result[rows] = shannon(probabilities[rows])
    return result
