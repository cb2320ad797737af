"""Shannon entropy that is safe where a probability is 0; used by `entropy` and `bald`.

shannon(np.array([[0.5, 0.5], [1.0, 0.0]]))  ->  [0.693, 0.0]
"""

from __future__ import annotations

import numpy as np

from tasks.strategies import Array


def shannon(probabilities: Array) -> Array:
    """Entropy over the last axis, in nats; exactly 0 for a certain distribution."""
    result: Array = np.maximum(-weighted_logs(probabilities).sum(axis=-1), 0.0)
    return result


def weighted_logs(probabilities: Array) -> Array:
    """p log p of each probability, 0 where p is 0."""
    logs: Array = np.maximum(probabilities, np.finfo(probabilities.dtype).tiny)
    np.log(logs, out=logs)
    logs *= probabilities
    return logs
