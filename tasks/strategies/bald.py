"""Ask where the network's dropout samples disagree with each other (not where all of them are unsure).

samples of one item, T=2: [[1, 0], [0, 1]]          ->  0.693 (each is sure, they disagree)
                          [[0.5, 0.5], [0.5, 0.5]]  ->  0.0   (all are equally unsure)
"""

from __future__ import annotations

import numpy as np

from tasks.strategies import Array
from tasks.strategies._entropy import shannon, weighted_logs
from tasks.strategies._evidence import require_finite

CHUNK = 512


def utility(samples: Array) -> Array:
    """Mutual information of label and weights in nats: probabilities (T,N,C) -> (N,) in [0, log C].

    The entropy of the mean prediction minus the mean entropy of the T predictions. Raises ValueError when a
    probability is not finite. Sources: Houlsby et al., "Bayesian Active Learning for Classification and Preference
    Learning" (2011); Gal, Islam & Ghahramani, "Deep Bayesian Active Learning with Image Data" (ICML 2017).
    """
    require_finite(items_axis=1, samples=samples)
    result = np.empty(samples.shape[1], dtype=np.float64)
    for start in range(0, len(result), CHUNK):
        rows = slice(start, start + CHUNK)
        result[rows] = _disagreement(samples[:, rows])
    return result


def _disagreement(samples: Array) -> Array:
    # Draws are summed before classes: adding whole planes is several times faster than adding short rows.
    mean_entropy = -weighted_logs(samples).sum(axis=0).sum(axis=-1) / len(samples)
    information: Array = np.maximum(shannon(samples.mean(axis=0)) - mean_entropy, 0.0)
    return information
