"""MC dropout on the last hidden layer: T thinned networks for the price of T small matrix products.

    sampled(hidden (N,H), weights (H,C), bias (C,), rate=0.2, draws=20, rng)  ->  (20,N,C) logits

One draw drops the same units for every item, so it is one function of the item: its value does not depend on how
the pool is cut into chunks, as long as each chunk gets a generator with the same seed.
"""

from __future__ import annotations

import numpy as np

from tasks.networks import Array, Rng


def sampled(hidden: Array, weights: Array, bias: Array, rate: float, draws: int, rng: Rng) -> Array:
    """Logits (T,N,C) float64 of `draws` networks, in each of which a hidden unit is dropped with probability `rate`.

    Sources: Gal & Ghahramani, "Dropout as a Bayesian Approximation" (ICML 2016); one mask for all items as in
    Kirsch, van Amersfoort & Gal, "BatchBALD" (NeurIPS 2019).
    """
    kept = (rng.random((draws, hidden.shape[1])) >= rate) / (1.0 - rate)
    result = np.empty((draws, len(hidden), weights.shape[1]), dtype=np.float64)
    for draw in range(draws):
        result[draw] = hidden @ (kept[draw][:, None] * weights).astype(np.float32) + bias
    return result
