"""Ask where the most likely class is least likely.

utility(np.array([[0.9, 0.1], [0.6, 0.4]]))  ->  [0.1, 0.4]
"""

from __future__ import annotations

import numpy as np

from tasks.strategies import Array
from tasks.strategies._evidence import require_finite


def utility(probabilities: Array) -> Array:
    """One minus the largest of C class probabilities: (N,C) -> (N,) in [0, 1 - 1/C].

    Raises ValueError when a probability is not finite. Source: Lewis & Gale, "A Sequential Algorithm for Training
    Text Classifiers" (SIGIR 1994).
    """
    require_finite(probabilities=probabilities)
    confidence: Array = probabilities.max(axis=1).astype(np.float64)
    return 1.0 - confidence
