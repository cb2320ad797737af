"""Ask about items whose label would change the last layer most, each in another direction.

    batch(probabilities (N,C), embeddings (N,H), k=20, rng=np.random.default_rng(0))  ->  20 positions

An item's gradient embedding is the outer product of a = p - onehot(argmax p) and its activations h. It is never
built: <a x h, a' x h'> = <a,a'> <h,h'>, so memory stays N x (C + H) instead of N x C x H.
"""

from __future__ import annotations

import numpy as np

from tasks.strategies import Array, Rng
from tasks.strategies._evidence import require_finite
from tasks.strategies._seeding import Squared, draw, from_products, squared_lengths


def batch(probabilities: Array, embeddings: Array, k: int, rng: Rng) -> Array:
    """k positions by k-means++ over gradient embeddings, starting with the longest gradient: (k,) int64.

    Raises ValueError when evidence is not finite. Source: Ash et al., "Deep Batch Active Learning by Diverse,
    Uncertain Gradient Lower Bounds" (ICLR 2020) and its authors' code.
    """
    require_finite(probabilities=probabilities, embeddings=embeddings)
    errors = probabilities.astype(np.float32)
    errors[np.arange(len(errors)), probabilities.argmax(axis=1)] -= 1.0
    activations = np.ascontiguousarray(embeddings, dtype=np.float32)
    lengths = squared_lengths(errors) * squared_lengths(activations)
    return draw(_factored(errors, activations, lengths), len(errors), k, int(lengths.argmax()), rng)


def _factored(errors: Array, activations: Array, lengths: Array) -> Squared:
    def squared(rows: Array | slice, centres: Array) -> Array:
        products = activations[rows] @ activations[centres].T
        products *= errors[rows] @ errors[centres].T
        return from_products(products, lengths[rows], lengths[centres])

    return squared
